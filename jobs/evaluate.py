#!/usr/bin/env python
"""Score a model on test sets and published benchmarks (stage `evaluate`).

    python jobs/evaluate.py --model.name runs/train/latest/export_student \
        --suite runs/scenes/tests --output runs/evaluate/degla

Each distinct image and text is encoded once. A finished evaluation is not repeated (docs/evaluation.md).
"""

from _start import main

if __name__ == "__main__":
    main("evaluate")
