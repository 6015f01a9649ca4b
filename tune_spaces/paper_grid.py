"""Define a grid around the published weights (0.1, 0.1, 1.28): a fifth, the published, five times: 27 trials.

Run it with `--search grid`. It shows whether the published weights are at an optimum of your data; a search
by TPE over `loss_weights.py` finds a good point with fewer trials.
"""

from __future__ import annotations

from typing import Any

from ray import tune

PUBLISHED = {"lambda_igc": 0.1, "lambda_tgc": 0.1, "lambda_distill": 1.28}


def space() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return Ray Tune domains by dotted setting of job `train`, and the settings that they go with."""
    domains = {
        f"objective.{name}": tune.grid_search([weight / 5, weight, weight * 5])
        for name, weight in PUBLISHED.items()
    }
    return domains, {"objective.name": "degla"}
