#!/usr/bin/env python
"""Download and verify the files of published benchmarks.

    python jobs/fetch_benchmarks.py --output benchmarks-data

Interrupted downloads continue. For files that need a form or a login, the job prints the steps
(docs/benchmarks.md).
"""

from _start import main

if __name__ == "__main__":
    main("fetch_benchmarks")
