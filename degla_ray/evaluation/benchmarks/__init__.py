"""Benchmarks, one file per family. `base.Benchmark` is the interface of each; `suite.load_suite` and
`published.load_published` find them.

To add one, write a class with the methods of `base.Benchmark` (choice.py is the shortest to copy) and let
`suite.load_suite`, `published.load_published` or `evaluation/run.py` build it from its files. If it belongs
to a published average, give it `averages`, or name it in `summary._members`.
"""
