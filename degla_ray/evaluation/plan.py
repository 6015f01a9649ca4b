"""What `evaluate` would do, for a dry run: the test sets are read, the model's weights are not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from degla_ray import ray_setup, resources
from degla_ray.config import DryRunConfig, EvaluateConfig
from degla_ray.dry_run import Plan, given
from degla_ray.encoding.images import ImageSource
from degla_ray.encoding.pool import Pool
from degla_ray.evaluation.run import check_tests
from degla_ray.evaluation.summary import STAGE
from degla_ray.model.source import check_model
from degla_ray.stage import is_complete
from degla_ray.storage import Storage

SAMPLE = 16
"""Images of each source that are read."""
FEATURE_BYTES = 4096
"""Cached features of an image or text, of 1,024 numbers."""


def plan(config: EvaluateConfig, options: DryRunConfig) -> Plan:
    """Return what `evaluate` would do.

    Raises:
        SettingError, DataError: as `evaluate`, before it reads weights.
    """
    check_model(config.model, needs_weights=True)
    tests = check_tests(config, keep=False)
    output = Storage(config.output).uri
    if is_complete(output):
        return Plan(stage=STAGE, output=output)
    images = set[str]().union(*(b.image_keys() for b in tests.benchmarks))
    texts = set[str]().union(*(b.texts() for b in tests.benchmarks))
    ray_setup.start(config.ray)
    pool = Pool(
        num_actors=config.num_actors,
        cpus_per_actor=config.compute.cpus,
        use_gpu=config.compute.use_gpu,
        batch_size=config.batch_size,
    )
    resources.check([pool.need()])
    count = len(images) + len(texts)
    return Plan(
        stage=STAGE,
        output=output,
        work=f"{len(tests.benchmarks)} benchmarks: {len(images):,} images, {len(texts):,} texts",
        amount=count,
        unit="images and texts",
        option="items_per_s",
        rate=given(options, "items_per_s"),
        workers=resources.room(pool.need())[1],
        gpus=int(config.compute.use_gpu),
        size=count * FEATURE_BYTES,
        notes=tuple(_unreadable(tests.sources, images)),
    )


def _unreadable(sources: Mapping[str, ImageSource], keys: set[str]) -> Iterator[str]:
    """Yield a line for each source of images whose sample is not complete."""
    for name, source in sorted(sources.items()):
        ids = sorted(key.partition(":")[2] for key in keys if key.startswith(f"{name}:"))
        sample = set(ids[:: max(1, len(ids) // SAMPLE)][:SAMPLE])
        batches, missing = source.batches(sample, SAMPLE)
        reasons = list(missing.values())
        reasons += [str(e) for batch in batches for e in source.read(batch) if isinstance(e, Exception)]
        if reasons:
            yield (
                f"{name}: {len(reasons)} of {len(sample)} sampled images cannot be read, e.g. {reasons[0]}; "
                "the evaluation would be partial"
            )
