"""Score one model on every requested benchmark: `evaluate(config)`, run by `jobs/evaluate.py`.

Writes `scores/part-*.parquet` (one row per item), `summary.json` and the manifest. The folder's identity is
everything that the result depends on (the content of the model's weights, the precision, the test sets, the
benchmarks). A rerun therefore does nothing, and a different model in the same folder is an error. The scenes
tests take seconds on 2 cores.
"""

from __future__ import annotations

import dataclasses
import importlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console

from degla_ray import ray_setup, resources, shared_paths, tracking
from degla_ray.config import EvaluateConfig
from degla_ray.devices import Precision, resolve_precision
from degla_ray.encoding import encode as encoding
from degla_ray.encoding import images
from degla_ray.encoding.feature_cache import FeatureCache
from degla_ray.encoding.images import ImageSource, ParquetImages
from degla_ray.encoding.needs import Encoded, Needs
from degla_ray.encoding.pool import Pool
from degla_ray.encoding.start import load_beside_ray
from degla_ray.errors import SettingError
from degla_ray.evaluation import mlflow_run
from degla_ray.evaluation.benchmarks import published, suite
from degla_ray.evaluation.benchmarks.base import Benchmark, Scored
from degla_ray.evaluation.benchmarks.negatives import own_negatives
from degla_ray.evaluation.benchmarks.retrieval import Retrieval
from degla_ray.evaluation.summary import (
    PREPARED_RETRIEVAL,
    STAGE,
    Summary,
    has_random_weights,
    read_summary,
    summarise,
    write_summary,
)
from degla_ray.lease import owned
from degla_ray.model.source import SourceKind, check_model, find_model
from degla_ray.progress_bars import ProgressBars
from degla_ray.schema import CAPTIONS, ITEMS, NEGATIVES
from degla_ray.stage import StageFolder, is_complete, read_complete
from degla_ray.storage import Storage

if TYPE_CHECKING:
    from degla_ray.model.loaded import LoadedModel

PREPARED = "prepared"
OWN_CACHE = "features"  # in the output folder; deleted when the evaluation ends
INTERVALS = 2  # version of the interval method; a folder written with another version is not continued
NAMED_MISSING = 5  # unreadable images listed on the console; summary.json lists all of them

console = Console()


def evaluate(
    config: EvaluateConfig, loaded: LoadedModel | None = None, *, parent_run_id: str | None = None
) -> Summary:
    """Score `config.model` and write the evaluation folder.

    Args:
        config: settings of the evaluation.
        loaded: the model itself if it exists in memory only; `config.model.name` is then just a label.
        parent_run_id: MLflow run that this evaluation belongs to, unless the model's training run is known.

    Returns:
        The summary, as written to `summary.json`.

    Raises:
        SettingError: a benchmark that the given folders do not contain, or a model that does not load.
        DataError: a folder written by another job, broken test sets, or no progress.
        LeaseHeld: another driver is writing to the folder.
    """
    if loaded is not None:  # the training run that owns the model already holds the parent folder's lease
        return _evaluate(config, _tests(config), loaded, None, parent_run_id)
    check_model(config.model, needs_weights=True)
    tests = _tests(config)
    with owned(config.output):
        if is_complete(config.output):  # which needs no Ray
            loaded = _load_model(config)
        else:
            loaded = load_beside_ray(
                lambda: _load_model(config), config.ray, config.compute, config.num_actors
            )
        return _evaluate(config, tests, loaded, _folder_of(config), parent_run_id)


def _evaluate(
    config: EvaluateConfig,
    tests: Tests,
    loaded: LoadedModel,
    model_folder: str | None,
    parent_run_id: str | None,
) -> Summary:
    label = config.label or loaded.name
    precision = resolve_precision(config.compute, config.ray)
    identity = {
        **tests.inputs,
        "model": encoding.model_identity(loaded),
        "precision": precision,
        "benchmarks": sorted(b.name for b in tests.benchmarks),
        "bootstrap_samples": config.bootstrap_samples,
        "intervals": INTERVALS,
    }
    folder = StageFolder(config.output, STAGE, identity, num_shards=len(tests.benchmarks))
    if folder.complete:
        return _finished(folder.storage, label)

    tracking.require(config.tracking)
    ray_setup.start(config.ray)
    summary = Summary(
        label=label,
        model={
            "name": config.model.name,
            "source": loaded.source,
            "identity": identity["model"],
            "precision": precision,
            "folder": model_folder,
        },
        inputs=tests.inputs,
        fingerprint=folder.fingerprint,
        sources={name: images.source_spec(source) for name, source in tests.sources.items()},
    )
    if config.tracking.enabled:  # takes 3 s, which this process has while the actors encode
        threading.Thread(target=importlib.import_module, args=("mlflow",), daemon=True).start()
    summary = _score_all(config, tests, loaded, folder, summary)
    mlflow_run.log(config, summary, identity, parent_run_id)
    for number, benchmark in enumerate(tests.benchmarks):
        own = [s for s in summary.subsets if s.name.startswith(f"{benchmark.name}/")]
        n, lost = sum(s.n for s in own), sum(s.missing for s in own)
        folder.write_receipt(number, {"items": n + lost, "scored": n, "missing": lost})
    folder.finish()
    if config.cache is None:
        folder.storage.delete_folder(OWN_CACHE)
    _print_counts(summary)
    return summary


def _score_all(
    config: EvaluateConfig, tests: Tests, loaded: LoadedModel, folder: StageFolder, summary: Summary
) -> Summary:
    """Encode and score all benchmarks, write each one's scores and items, and return the whole summary."""
    own_cache = f"{config.output.rstrip('/')}/{OWN_CACHE}"
    precision = summary.model["precision"]
    cache = FeatureCache(config.cache or own_cache, f"{summary.model['identity']}-{precision}")
    scored: dict[int, Scored] = {}
    missing: dict[str, str] = {}
    truncated: dict[str, int] = {}
    for number, encoded in _encoded(config, tests, loaded, cache, precision):
        benchmark = tests.benchmarks[number]
        scored[number] = benchmark.score(encoded.features)
        folder.write_part("scores", number, scored[number].scores)
        folder.write_part("items", number, _items(benchmark))
        missing |= encoded.missing
        truncated[benchmark.name] = len(encoded.truncated)
        summary = summarise(
            summary,
            [tests.benchmarks[n] for n in sorted(scored)],
            [scored[n] for n in sorted(scored)],
            missing,
            config.bootstrap_samples,
            truncated,
        )
        write_summary(folder.storage, summary)  # covers the benchmarks scored so far
    return summary


def check_tests(config: EvaluateConfig, *, keep: bool = True) -> Tests:
    """Return what `evaluate` would score on, or raise what it would raise; nothing is encoded.

    Args:
        config: settings of the evaluation.
        keep: whether to keep the shuffles of the order benchmarks; nothing else is written.
    """
    return _tests(config, keep)


@dataclass(frozen=True, kw_only=True)
class Tests:
    """The benchmarks to score a model on.

    Attributes:
        sources: source name -> where its images are stored.
        inputs: identity of the test sets.
    """

    benchmarks: list[Benchmark]
    sources: dict[str, ImageSource]
    inputs: dict[str, Any]


def _encoded(
    config: EvaluateConfig, tests: Tests, loaded: LoadedModel, cache: FeatureCache, precision: Precision
) -> Iterator[tuple[int, Encoded]]:
    """Yield each benchmark's number and features, showing one progress bar per benchmark."""
    needs = [Needs(keys=b.image_keys(), texts=b.texts()) for b in tests.benchmarks]
    pool = Pool(
        num_actors=config.num_actors,
        cpus_per_actor=config.compute.cpus,
        use_gpu=config.compute.use_gpu,
        batch_size=config.batch_size,
        precision=precision,
        stall_seconds=60 * config.stall_minutes,
    )
    resources.require(config.ray, [pool.need()])
    # The model travels through Ray's object store; captions and negatives are read here.
    shared_paths.require_shared(config, {}, driver_only=["model.name", "model.pretrained", "negatives"])
    with ProgressBars("images and texts", console) as bars:
        for benchmark in tests.benchmarks:  # show all from the start, although the first ones come first
            bars.update(benchmark.name, 0, None)
        yield from encoding.encode(
            loaded,
            tests.sources,
            needs,
            pool,
            cache,
            lambda number, done, total: bars.update(tests.benchmarks[number].name, done, total),
        )


def _items(benchmark: Benchmark) -> pa.Table:
    rows = (
        {"benchmark": benchmark.name, **{name: getattr(shown, name) for name in ITEMS.names[1:]}}
        for shown in benchmark.shown()
    )
    return pa.Table.from_pylist(list(rows), schema=ITEMS)


def _tests(config: EvaluateConfig, keep: bool = True) -> Tests:
    """Return the requested benchmarks, their image sources and the identity of the inputs."""
    benchmarks: list[Benchmark] = []
    sources: dict[str, ImageSource] = {}
    inputs: dict[str, Any] = {"suite": None, "prepared": None, "negatives": None, "split": None}
    if config.suite is not None:
        benchmarks += suite.load_suite(config.suite)
        sources[suite.SOURCE] = ParquetImages(Storage(config.suite).uri)
        inputs["suite"] = suite.suite_identity(config.suite)
    if config.prepared is not None:
        storage, manifest = read_complete(config.prepared, "prepare")
        captions = _split(storage, config)
        benchmarks.append(Retrieval(PREPARED_RETRIEVAL, captions, PREPARED))
        sources[PREPARED] = ParquetImages(Storage(config.prepared).uri)
        inputs |= {"prepared": manifest["fingerprint"], "split": config.split}
        if config.negatives is not None:
            made, manifest = read_complete(config.negatives, "negatives")
            table = made.read_dataset("negatives", NEGATIVES, ["sample_id", "kind", "negative"])
            benchmarks.append(own_negatives(captions, table, PREPARED, config.negatives))
            inputs["negatives"] = manifest["fingerprint"]
    if config.published.given:
        found = published.load_published(config.published, config.benchmarks, keep=keep)
        benchmarks += found.benchmarks
        sources |= found.sources
        inputs["published"] = {name: found.identity[name] for name in sorted(found.identity)}
        if found.absent:
            console.print(
                f"skipped, files missing: {', '.join(found.absent)} (jobs/fetch_benchmarks.py gets them)",
                markup=False,
            )
    return Tests(benchmarks=_chosen(benchmarks, config.benchmarks), sources=sources, inputs=inputs)


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
    return [known[name] for name in dict.fromkeys(names)]


def _load_model(config: EvaluateConfig) -> LoadedModel:
    import torch  # with open_clip, 6 s

    from degla_ray.model.build import build_with_weights

    torch.manual_seed(0)  # random weights, if requested, are the same in every call
    return build_with_weights(config.model)


def _folder_of(config: EvaluateConfig) -> str | None:
    source = find_model(config.model.name)
    return source.where if source.kind in (SourceKind.FOLDER, SourceKind.CONFIG) else None


def _finished(storage: Storage, label: str) -> Summary:
    summary = read_summary(storage)
    if summary.label != label:  # the label is only a table heading, so it may change
        summary = dataclasses.replace(summary, label=label)
        write_summary(storage, summary)
    console.print(f"{label}: already evaluated in {storage.uri}", markup=False, soft_wrap=True)
    return summary


def _print_counts(summary: Summary) -> None:
    if has_random_weights(summary):
        console.print("[bold red]random weights[/]: nothing was loaded, because model.random_init is set")
    n, missing = sum(s.n for s in summary.subsets), sum(s.missing for s in summary.subsets)
    told = f"{summary.label}: items in {n + missing:,} = scored {n:,} + missing {missing:,}"
    console.print(told, markup=False, highlight=False, soft_wrap=True)
    if summary.missing_images:
        console.print(f"[bold red]partial[/]: {len(summary.missing_images):,} images could not be read:")
        for name, reason in list(summary.missing_images.items())[:NAMED_MISSING]:
            console.print(f"  {name}: {reason}", markup=False)
    for name, count in summary.truncated.items():
        console.print(f"{name}: {count:,} texts are longer than the model reads; truncated", markup=False)
