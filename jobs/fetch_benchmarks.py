#!/usr/bin/env python
"""Download and verify the files of published benchmarks.

    python jobs/fetch_benchmarks.py --output benchmarks-data

Interrupted downloads continue. What needs a form or a login is said (docs/benchmarks.md).
"""

from _start import main

if __name__ == "__main__":
    main("fetch_benchmarks")
