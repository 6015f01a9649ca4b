"""Scores of a model on test sets, and comparisons of such scores.

`run.evaluate` writes one model's scores; `compare.compare` sets several side by side.
"""
