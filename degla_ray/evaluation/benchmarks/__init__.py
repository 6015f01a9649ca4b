"""One file a family of benchmark. `base.Benchmark` is what each provides; `suite.load` finds them.

To add one: write a class with the methods of `base.Benchmark` (choice.py is the shortest to copy), let
`suite.load` or `run.py` make it from its files, and, if it is part of a published average, name that in
`summary.AVERAGES`.
"""
