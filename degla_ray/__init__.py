"""degla-ray: compositional fine-tuning of CLIP (DeGLA) as a Ray pipeline.

The folders are the pipeline: `sources` (images and captions), `negatives`, `model`, `objectives`,
`training`, `evaluation`; and beside it `tracking` (MLflow) and `tuning` (Ray Tune).
"""

__version__ = "0.1.0"
