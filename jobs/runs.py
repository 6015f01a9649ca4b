#!/usr/bin/env python
"""List the runs that MLflow knows, with scores and folders.

python jobs/runs.py --limit 10
"""

from _start import main

if __name__ == "__main__":
    main("runs")
