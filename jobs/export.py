#!/usr/bin/env python
"""Write a model for open_clip, Hugging Face or MLflow.

python jobs/export.py --model.name runs/train/latest/export_student --format huggingface --output clip-hf
"""

from _start import main

if __name__ == "__main__":
    main("export")
