#!/usr/bin/env python
"""Evaluate interpolations of two models: weights (1 - a) * first + a * second (WiSE-FT).

    python jobs/interpolate.py --first scenes-base --second runs/train/latest/export_student \
        --suite runs/scenes/tests
"""

from _start import main

if __name__ == "__main__":
    main("interpolate")
