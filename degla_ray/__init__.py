"""degla-ray: compositional fine-tuning of CLIP (DeGLA) as a Ray pipeline.

The folders are the pipeline: `sources` (images and captions), `negatives`, `model`, `objectives`,
`training`, `evaluation`; `tracking` (MLflow) and `tuning` (Ray Tune) stand beside them.
"""

__version__ = "0.1.0"
