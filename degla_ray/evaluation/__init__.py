"""Evaluation of models on test sets, and the statistics that compare their scores.

`run.evaluate` scores one model; `comparison.set_side_by_side` compares several evaluations.
"""
