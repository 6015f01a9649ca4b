"""What `negatives` would do, for a dry run: no request is sent and no caption edited."""

from __future__ import annotations

import os
from typing import Any

from degla_ray import ray_setup, resources
from degla_ray.config import DryRunConfig, NegativesConfig
from degla_ray.dry_run import Plan, given
from degla_ray.negatives.llm.engines.base import Engine
from degla_ray.negatives.pipeline import CAPTIONS_PER_SHARD, engine_of, identity_of, kinds_of, prompts_of
from degla_ray.negatives.shard import STAGE
from degla_ray.schema import CAPTIONS
from degla_ray.stage import MANIFEST, StageFolder, derived_shards, read_complete
from degla_ray.storage import Storage

NEGATIVE_BYTES = 150
"""A negative of 60 characters with the other columns of its row."""


def plan(config: NegativesConfig, options: DryRunConfig, captions: int | None = None) -> Plan:
    """Return what `negatives` would do.

    Args:
        config: settings of the job.
        options: speeds and price.
        captions: number of captions, if `config.prepared` is not written yet; None reads the folder.

    Raises:
        SettingError, DataError, FingerprintMismatch: as `generate`, before its first request.
    """
    engine, output = engine_of(config), Storage(config.output)
    left = 1.0
    if captions is None:
        source, manifest = read_complete(config.prepared, "prepare")
        if output.exists(MANIFEST):
            identity = identity_of(config, manifest["fingerprint"])
            folder = StageFolder(config.output, STAGE, identity, config.num_shards)
            if folder.complete and not config.generation.retry_failed:
                return Plan(stage=STAGE, output=output.uri)
            left = len(folder.pending()) / folder.num_shards
        captions = len(source.read_dataset("captions", CAPTIONS, ["sample_id"]))
    count = round(captions * left)
    each = max(1, len(kinds_of(config))) * config.per_kind
    common: dict[str, Any] = {"stage": STAGE, "output": output.uri, "size": count * each * NEGATIVE_BYTES}
    if engine is not None:
        return _by_engine(config, options, engine, count, common)
    told = f"up to {each} negatives each" if kinds_of(config) else "with the source's negatives"
    return Plan(
        work=f"{count:,} captions, {told}",
        amount=count,
        unit="captions",
        option="captions_per_s",
        rate=given(options, "captions_per_s"),
        workers=min(config.num_shards or derived_shards(captions, CAPTIONS_PER_SHARD), os.cpu_count() or 1),
        **common,
    )


def _by_engine(
    config: NegativesConfig, options: DryRunConfig, engine: Engine, captions: int, common: dict[str, Any]
) -> Plan:
    """Return the plan of a language model, whose settings and resources are checked."""
    engine.check_settings()
    ray_setup.start(config.ray)
    resources.check(engine.needs())
    pool = engine.pool(prompts_of(config))
    kinds = len(kinds_of(config))
    each = {"per_kind": kinds * config.per_kind, "joint": 1, "slots": kinds}
    answers = captions * each[config.generation.prompting]
    return Plan(
        work=f"{captions:,} captions, {kinds} kinds: {answers:,} answers if all are accepted",
        amount=answers,
        unit="answers",
        option="answers_per_s",
        rate=given(options, "answers_per_s"),
        workers=pool.max_size,
        gpus=pool.gpus,
        notes=("--generation.estimate 200 measures the speed and the share of accepted answers",),
        **common,
    )
