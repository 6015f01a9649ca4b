"""Define a search space over the weights of DeGLA's three terms other than the base loss.

λ_igc starts at twice the published 0.1, since short runs on small data need more (docs/log.md); λ_tgc and
λ_distill are centred on the published 0.1 and 1.28. Each is log-uniform over a factor of 100, because the
order of magnitude matters most. If only one weight matters, a joint search costs no more than a search over
that weight alone.
"""

from __future__ import annotations

from typing import Any

from ray import tune


def space() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return Ray Tune domains by dotted setting of job `train`, and the settings that they go with."""
    domains = {
        "objective.lambda_igc": tune.loguniform(0.2, 20.0),
        "objective.lambda_tgc": tune.loguniform(0.01, 1.0),
        "objective.lambda_distill": tune.loguniform(0.128, 12.8),
    }
    return domains, {"objective.name": "degla"}
