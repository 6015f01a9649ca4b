#!/usr/bin/env python
"""Run every stage in order from one file: prepare, negatives, train, evaluate, compare.

    python jobs/chain.py --config jobs/configs/demo.yaml

`make demo` runs this command. Run again, a killed chain continues, and a finished one takes seconds.
"""

from _start import main

if __name__ == "__main__":
    main("chain")
