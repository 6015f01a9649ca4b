"""The weights of DeGLA's terms beside the base loss.

λ_igc from twice the published 0.1 upwards, as short runs on small data want (docs/log.md); λ_tgc and
λ_distill around the published 0.1 and 1.28. Log-uniform over a factor of 100: what matters of a weight is
its order of magnitude. Searching all three at once costs no more than one alone where one of them hardly
matters.
"""

from __future__ import annotations

from typing import Any

from ray import tune


def space() -> dict[str, Any]:
    """Dotted settings of job `train` -> Ray Tune domains."""
    return {
        "objective.lambda_igc": tune.loguniform(0.2, 20.0),
        "objective.lambda_tgc": tune.loguniform(0.01, 1.0),
        "objective.lambda_distill": tune.loguniform(0.128, 12.8),
    }
