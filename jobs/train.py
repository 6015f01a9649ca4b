#!/usr/bin/env python
"""Fine-tune a model on prepared images, captions and negatives (stage `train`).

    python jobs/train.py --name first --data.prepared runs/scenes --data.negatives runs/scenes-negatives \
        --model.name scenes-base

Run again with the same settings, a killed run continues after its last checkpoint. Two workers on a CPU start
in about 15 s.
"""

from _start import main

if __name__ == "__main__":
    main("train")
