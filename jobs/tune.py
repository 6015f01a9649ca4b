#!/usr/bin/env python
"""Sweep settings with Ray Tune; each trial is a training run (stage `tune`).

    python jobs/tune.py --config jobs/configs/tune_demo.yaml

The search space is a file of tune_spaces/.
"""

from _start import main

if __name__ == "__main__":
    main("tune")
