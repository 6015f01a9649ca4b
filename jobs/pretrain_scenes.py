#!/usr/bin/env python
"""Train the small base model that the demo starts from, scenes-base.

python jobs/pretrain_scenes.py --config jobs/configs/pretrain_scenes.yaml --export runs/scenes-base
"""

from _start import main

if __name__ == "__main__":
    main("pretrain_scenes")
