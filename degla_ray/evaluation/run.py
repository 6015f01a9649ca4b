"""One model's scores on every benchmark asked for: `evaluate(config)`, run by `jobs/evaluate.py`.

Writes `scores/part-*.parquet` (one row an item), `summary.json` and the manifest. The folder's identity is
what the result depends on (the model's weights by content, the test sets, the benchmarks), so a rerun
does nothing and another model in the same folder is refused. Seconds on the scenes tests with 2 cores.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.progress import Progress

from degla_ray import ray_setup, tracking
from degla_ray.config import EvaluateConfig
from degla_ray.errors import SettingError
from degla_ray.evaluation import encode as encoding
from degla_ray.evaluation.benchmarks import suite
from degla_ray.evaluation.benchmarks.base import Benchmark
from degla_ray.evaluation.benchmarks.negatives import own_negatives
from degla_ray.evaluation.benchmarks.retrieval import Retrieval
from degla_ray.evaluation.report import summary_table
from degla_ray.evaluation.summary import (
    ARTIFACTS,
    FOLDER_TAG,
    PREPARED_RETRIEVAL,
    STAGE,
    SUMMARY,
    Summary,
    read_summary,
    summarise,
)
from degla_ray.model.build import LoadedModel, build
from degla_ray.schema import CAPTIONS, NEGATIVES
from degla_ray.shards import StageFolder, Storage, read_complete

PREPARED = "prepared"
NAMED_MISSING = 5  # pictures named on the console; all are in summary.json

console = Console()


def evaluate(config: EvaluateConfig) -> Summary:
    """Scores `config.model` and writes the evaluation folder.

    Raises:
        SettingError: a benchmark that these folders do not have; a model that does not load.
        DataError: a folder of another kind, broken test sets, no progress.
    """
    benchmarks, folders, inputs = _benchmarks(config)
    loaded = _load_model(config)
    label = config.label or loaded.name
    identity = {
        **inputs,
        "model": encoding.model_identity(loaded),
        "benchmarks": sorted(b.name for b in benchmarks),
        "bootstrap_samples": config.bootstrap_samples,
    }
    folder = StageFolder(config.output, STAGE, identity, num_shards=1)
    if folder.complete:
        return _finished(folder.storage, label)

    ray_setup.start(config.ray)
    keys = {key for b in benchmarks for key in b.image_keys()}
    texts = {text for b in benchmarks for text in b.texts()}
    pool = encoding.Pool(
        num_actors=config.num_actors,
        cpus_per_actor=config.cpus_per_actor,
        use_gpu=config.use_gpu,
        batch_size=config.batch_size,
        stall_seconds=60 * config.stall_minutes,
    )
    console.print(f"{label}: encoding {len(keys):,} pictures and {len(texts):,} texts", markup=False)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("batches", total=None)
        encoded = encoding.encode(
            loaded,
            folders,
            keys,
            texts,
            pool,
            lambda done, total: progress.update(task, completed=done, total=total),
        )
    scored = [benchmark.score(encoded.features) for benchmark in benchmarks]
    summary = summarise(
        label=label,
        model={
            "name": config.model.name,
            "source": loaded.source,
            "identity": identity["model"],
            "folder": Storage(config.model.name).uri if Storage(config.model.name).exists() else None,
        },
        inputs=inputs,
        fingerprint=folder.fingerprint,
        benchmarks=benchmarks,
        scored=scored,
        missing_images=encoded.missing,
        bootstrap_samples=config.bootstrap_samples,
    )
    folder.write_part("scores", 0, pa.concat_tables([s.scores for s in scored]))
    folder.storage.write_json(summary.to_json(), SUMMARY)
    _track(config, summary, identity)
    n, missing = sum(s.n for s in summary.subsets), sum(s.missing for s in summary.subsets)
    folder.write_receipt(0, {"items": n + missing, "scored": n, "missing": missing})
    folder.finish()
    _print(summary)
    return summary


def _benchmarks(config: EvaluateConfig) -> tuple[list[Benchmark], dict[str, str], dict[str, Any]]:
    """The benchmarks asked for, the image folder of each source, and the identity of the inputs."""
    benchmarks: list[Benchmark] = []
    folders: dict[str, str] = {}
    inputs: dict[str, Any] = {"suite": None, "prepared": None, "negatives": None, "split": None}
    if config.suite is not None:
        benchmarks += suite.load(config.suite)
        folders[suite.SOURCE] = config.suite
        inputs["suite"] = suite.identity(config.suite)
    if config.prepared is not None:
        storage, manifest = read_complete(config.prepared, "prepare")
        captions = _split(storage, config)
        benchmarks.append(Retrieval(PREPARED_RETRIEVAL, captions, PREPARED))
        folders[PREPARED] = config.prepared
        inputs |= {"prepared": manifest["fingerprint"], "split": config.split}
        if config.negatives is not None:
            made, manifest = read_complete(config.negatives, "negatives")
            table = made.read_dataset("negatives", NEGATIVES)
            benchmarks.append(own_negatives(captions, table, PREPARED, config.negatives))
            inputs["negatives"] = manifest["fingerprint"]
    return _chosen(benchmarks, config.benchmarks), folders, inputs


def _split(storage: Storage, config: EvaluateConfig) -> pa.Table:
    captions = storage.read_dataset("captions", CAPTIONS)
    own = captions.filter(pc.equal(captions["split"], config.split))
    if not len(own):
        found = sorted(set(captions["split"].to_pylist()))
        raise SettingError("split", config.split, f"a split of {config.prepared}: {', '.join(found)}")
    return own


def _chosen(benchmarks: Sequence[Benchmark], names: Sequence[str]) -> list[Benchmark]:
    if list(names) == ["all"]:
        return list(benchmarks)
    known = {b.name: b for b in benchmarks}
    for name in names:
        if name not in known:
            raise SettingError("benchmarks", name, f"all, or some of {', '.join(known)}")
    if not names:
        raise SettingError("benchmarks", list(names), f"all, or some of {', '.join(known)}")
    return [known[name] for name in dict.fromkeys(names)]


def _load_model(config: EvaluateConfig) -> LoadedModel:
    import torch

    torch.manual_seed(0)  # random weights, where asked for, are the same in every call
    return build(config.model)


def _finished(storage: Storage, label: str) -> Summary:
    summary = read_summary(storage)
    if summary.label != label:  # a label decides nothing but a table's heading
        summary = dataclasses.replace(summary, label=label)
        storage.write_json(summary.to_json(), SUMMARY)
    console.print(f"{label}: already evaluated in {storage.uri}")
    return summary


def _track(config: EvaluateConfig, summary: Summary, identity: dict[str, Any]) -> None:
    run_id = tracking.find_or_create_run(
        config.tracking,
        name=f"evaluate {summary.label}",
        fingerprint=summary.fingerprint,
        params={"evaluate": config, "identity": identity},
        tags={
            "degla.stage": STAGE,
            "degla.label": summary.label,
            FOLDER_TAG: Storage(config.output).uri,
            "degla.partial": str(summary.partial).lower(),
        },
    )
    tracking.log_metrics(config.tracking, run_id, summary.metrics())
    if "://" not in config.output:  # on other filesystems the tag says where the folder is
        root = Path(config.output)
        tracking.log_artifacts(config.tracking, run_id, root / SUMMARY, ARTIFACTS)
        tracking.log_artifacts(config.tracking, run_id, root / "scores", f"{ARTIFACTS}/scores")
    tracking.finish(config.tracking, run_id)


def _print(summary: Summary) -> None:
    console.print(summary_table(summary))
    n, missing = sum(s.n for s in summary.subsets), sum(s.missing for s in summary.subsets)
    console.print(f"items in {n + missing:,} = scored {n:,} + missing {missing:,}")
    if summary.missing_images:
        console.print(f"[bold red]partial[/]: {len(summary.missing_images):,} pictures could not be read:")
        for name, reason in list(summary.missing_images.items())[:NAMED_MISSING]:
            console.print(f"  {name}: {reason}", markup=False)
