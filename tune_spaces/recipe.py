"""Define a search space over the rest of a recipe: rate, decay, batch, epochs, negatives and their kinds.

The rate spans four orders of magnitude, from what a large pretrained model bears to what a small one needs:
narrow it to your model, as a trial with a rate far too high only costs time. The length is in epochs, so that
a small batch makes more steps.
"""

from __future__ import annotations

from typing import Any

from ray import tune


def space() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return Ray Tune domains by dotted setting of job `train`, and the settings that they go with."""
    order = ["reshuffle", "swap_nouns", "swap_adjectives"]
    domains = {
        "optimizer.lr": tune.loguniform(1e-6, 1e-2),
        "optimizer.weight_decay": tune.choice([0.0, 0.1, 0.5]),
        "global_batch_size": tune.choice([32, 64, 128, 256]),
        "epochs": tune.choice([1.0, 2.0, 5.0]),
        "objective.negatives_per_caption": tune.choice([1, 2, 4]),
        "data.kinds": tune.choice([None, order, ["replace_adjectives", "replace_nouns"]]),
    }
    return domains, {"max_steps": None}
