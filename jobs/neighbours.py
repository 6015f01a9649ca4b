#!/usr/bin/env python
"""Find each image's nearest other images: NegCLIP's hard negatives (stage `neighbours`).

python jobs/neighbours.py --prepared runs/scenes --output runs/scenes-neighbours --model.name scenes-base
"""

from _start import main

if __name__ == "__main__":
    main("neighbours")
