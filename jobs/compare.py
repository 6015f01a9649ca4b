#!/usr/bin/env python
"""Compare evaluations in one report: tables, intervals, plots and examples (stage `compare`).

    python jobs/compare.py --evaluations runs/evaluate/base runs/evaluate/degla

The first evaluation is the base. An entry is an evaluation's folder, the id of its MLflow run or, with
`--suite`, a model.
"""

from _start import main

if __name__ == "__main__":
    main("compare")
