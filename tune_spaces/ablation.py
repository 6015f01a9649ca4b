"""Define a grid of the four objectives, each with its published settings, with three seeds: 12 trials.

Run it with `--search grid`. The seeds are a domain of their own here, so that each run is a row of the table;
`--seeds 3` with the objectives alone would show their means.
"""

from __future__ import annotations

from typing import Any

from ray import tune


def space() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return Ray Tune domains by dotted setting of job `train`, and the settings that they go with."""
    domains = {
        "objective.name": tune.grid_search(["clip", "negclip", "ceclip", "degla"]),
        "seed": tune.grid_search([0, 1, 2]),
    }
    return domains, {"objective.negatives_per_caption": None}
