"""Sweep over interpolations between two models, in one report: `sweep(config)`, run by `jobs/interpolate.py`.

Each point is exported (so that the best one is ready to use), evaluated and compared; finished evaluations
are not repeated. On scenes-base and the scenes tests, a point takes about 10 s on two cores.
"""

from __future__ import annotations

from degla_ray.config import CompareConfig, InterpolateConfig, ModelConfig, evaluation_of
from degla_ray.evaluation.run import evaluate
from degla_ray.lease import Lease
from degla_ray.model.build import build_with_weights
from degla_ray.model.export import export
from degla_ray.model.interpolate import interpolate
from degla_ray.model.source import find_model
from degla_ray.reporting.compare import compare
from degla_ray.storage import Storage


def sweep(config: InterpolateConfig) -> str:
    """Export and evaluate the model at every alpha, and compare them.

    Returns:
        URI of the report's folder.

    Raises:
        SettingError: a model that does not load, or an unknown benchmark.
        DataError: the models have different architectures.
        LeaseHeld: another driver is writing to the output folder.
    """
    for setting, name in (("first", config.first), ("second", config.second)):
        find_model(name, setting)  # check both before loading either
    with Lease(Storage(config.output)):
        return _sweep(config)


def _sweep(config: InterpolateConfig) -> str:
    first, second = (build_with_weights(ModelConfig(name=name)) for name in (config.first, config.second))
    evaluations = []
    for alpha in config.alphas:
        label = f"alpha-{alpha:g}"
        folder = f"{config.output}/models/{label}"
        between = interpolate(first, second, alpha)
        export(between, folder, {"interpolated": [config.first, config.second], "alpha": alpha})
        evaluations.append(f"{config.output}/evaluate/{label}")
        evaluate(
            evaluation_of(
                config,
                model=ModelConfig(name=folder),
                output=evaluations[-1],
                label=label,
                tracking=config.tracking,
                ray=config.ray,
            )
        )
    return compare(
        CompareConfig(evaluations=evaluations, output=f"{config.output}/compare", tracking=config.tracking)
    )
