"""Stage `negatives`: turn captions into negative captions and rejects, written in shards by Ray Data.

Each pending shard is one row of a Ray dataset and one call to an actor that holds the engine, because an
engine is slow to load (the rules' tagger 2 s, a language model minutes) and fast to use. All captions are
stored once per node in Ray's object store. A rerun writes only shards without a receipt; on a finished folder
it compares fingerprints and returns within a second, without starting Ray.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pyarrow as pa
from rich.console import Console
from rich.table import Table

from degla_ray import ray_setup, resources, shared_paths, tracking
from degla_ray.config import NegativesConfig
from degla_ray.errors import DataError
from degla_ray.language.identify import ENGLISH, describe, sample, survey
from degla_ray.lease import Lease, owned
from degla_ray.negatives.balancing import CANDIDATES, write_balanced, write_scores
from degla_ray.negatives.blind import describe_blind, preview
from degla_ray.negatives.captions import CaptionShards, values
from degla_ray.negatives.checks import CHECKS_VERSION
from degla_ray.negatives.given import read_given, write_given
from degla_ray.negatives.llm.engines import ENGINES
from degla_ray.negatives.llm.engines.base import Engine
from degla_ray.negatives.llm.failures import require_accepted, tell_failures
from degla_ray.negatives.llm.generation import generate_pending, reopen
from degla_ray.negatives.llm.progress import estimate
from degla_ray.negatives.llm.prompting import Prompts, load_prompts, prompt_sha
from degla_ray.negatives.llm.sending import GenerationJob
from degla_ray.negatives.llm.slots import SLOTS_VERSION
from degla_ray.negatives.plausibility import MIN_CAPTIONS, PLAUSIBILITY_VERSION, CaptionModels, fold_of
from degla_ray.negatives.progress_line import ProgressLine
from degla_ray.negatives.rules import RuleEngine
from degla_ray.negatives.selection import ORDER
from degla_ray.negatives.shard import STAGE, ShardTask, vocabulary, write_shard
from degla_ray.schema import CAPTIONS, GIVEN_KIND, SCENE_GRAPHS, Kind
from degla_ray.stage import MANIFEST, StageFolder, derived_shards, is_complete, read_complete
from degla_ray.storage import Storage

CAPTIONS_PER_SHARD = 20_000
"""Captions of a shard if `num_shards` is null: one window of a language model's driver."""
CAPTIONS_PER_ACTOR = 4000
"""Captions per additional actor: loading an actor costs as much as processing about 1,000 captions."""
EDITORS = {"rules": RuleEngine}
"""Engines that edit captions, by name; each implements the protocol `CaptionEditor` and takes the dataset's
vocabulary and, with `plausibility: ngram`, its n-gram models."""

PLAUSIBLE = (Kind.SWAP_ADJECTIVES, Kind.REPLACE_NOUNS, Kind.REPLACE_ADJECTIVES)
"""Default kinds of negatives that are selected by plausibility; docs/negatives.md has the figures."""

STATES = {
    "negatives": "rows.{}",
    "captions with": "captions.{}.ok",
    "rejected": "captions.{}.rejected",
    "n/a": "captions.{}.not_applicable",
    "failed": "captions.{}.error",
}
"""Headings on the console and the counts of a kind: its negatives, and all captions by state."""
TRUTHS = {"true": "truth.{}.true", "false": "truth.{}.false", "not parseable": "truth.{}.not_parseable"}
"""Headings and counts of a kind's candidates that passed the text checks, by their truth of a scene."""

Publish = Callable[[NegativesConfig, StageFolder, str], None]
"""Reports a finished folder; the last argument is the language model's name, empty for rules."""


def generate(config: NegativesConfig, publish: Publish | None = None) -> dict[str, int]:
    """Write `negatives/` and `rejects/` to `config.output`.

    Args:
        config: the settings.
        publish: called once the negatives are complete, unless they were copied from the source.

    Returns:
        The manifest's counts: captions, rows.<kind>, captions.<kind>.<ok|rejected|not_applicable> and
        rejects.<kind>.<reason>. For scenes also truth.<kind>.<true|false|not_parseable> of the candidates
        that passed the text checks; those that are true of their scene are then rejected too.

    Raises:
        DataError: `config.prepared` is not a finished folder of stage `prepare`, or the counts do not add up.
        FingerprintMismatch: the output folder was made with other settings or other input.
        LeaseHeld: another driver is writing the output folder.
    """
    if config.plausibility_preview is not None:  # writes nothing
        preview(config, kinds_of(config), *_read(read_complete(config.prepared, "prepare")[0]))
        return {}
    if config.generation.estimate is not None:  # writes nothing
        return _generate(config, publish)
    lease = Lease(Storage(config.output)) if config.generation.retry_failed else owned(config.output)
    with lease:
        return _generate(config, publish)


def _generate(config: NegativesConfig, publish: Publish | None) -> dict[str, int]:
    source, manifest = read_complete(config.prepared, "prepare")
    kinds = kinds_of(config)
    prompts = prompts_of(config)
    engine = engine_of(config)
    again = engine is not None and config.generation.retry_failed
    if again or not is_complete(config.output):
        # Checked before the folder is created: settings fixed after an error must not conflict with it.
        if engine is not None:
            engine.check_settings()
        if config.generation.estimate is None and publish is not None and config.engine != GIVEN_KIND:
            tracking.require(config.tracking)
    if engine is not None and config.generation.estimate is not None:
        ray_setup.start(config.ray)
        resources.require(config.ray, engine.needs())
        estimate(_job(config, engine, prompts), _read(source)[0]["caption"].to_pylist())
        return {}
    folder = _open_folder(config, manifest)
    if again:
        reopen(folder, config.generation.retry_reasons)
    if folder.complete:
        print(f"{config.output} is finished: nothing to do")
        _report(folder.manifest["counts"])
        _check_accepted(config, folder, folder.manifest["counts"])
        return dict(folder.manifest["counts"])
    if folder.pending():
        captions, graphs = _read(source)
        places = pa.array(sample(len(captions)), pa.int64())
        languages = survey(captions["caption"].take(places).to_pylist())
        print(describe(languages))
        if config.engine != GIVEN_KIND:
            ray_setup.start(config.ray)
        if config.engine in EDITORS:
            english = languages.get(ENGLISH, 0.0) >= 0.5
            task = ShardTask(
                folder=folder, kinds=kinds, per_kind=config.per_kind, seed=config.seed, english=english
            )
            write = _write_plausible if _is_scored(config, captions) else _write_by_edits
            write(config, task, captions, graphs)
        elif config.engine == GIVEN_KIND:
            write_given(folder, captions, read_given(source))
        elif engine is not None:
            resources.require(config.ray, engine.needs())
            shared_paths.require_shared(config, {}, driver_only=["prepared"])  # this process writes
            models = _models(captions) if _is_scored(config, captions) else None
            if not generate_pending(_job(config, engine, prompts), folder, captions, graphs, models):
                print("stopped: generation.max_gpu_hours are used up; run the same command again to continue")
                return folder.counts()
            if models is not None:
                write_scores(folder, captions, models)
    counts = folder.counts()
    _report(counts, published=publish is not None and engine is not None)
    _check_ledger(config, counts)
    counts = folder.finish()
    if publish is not None and config.engine != GIVEN_KIND:
        publish(config, folder, engine.model if engine is not None else "")
    _check_accepted(config, folder, counts)
    return counts


def _open_folder(config: NegativesConfig, prepared: Mapping[str, Any]) -> StageFolder:
    """Open the output folder, given the manifest of the captions' folder."""
    num_shards = config.num_shards
    if num_shards is None and not Storage(config.output).exists(MANIFEST):
        captions = prepared["counts"].get("captions_out", 0)
        num_shards = derived_shards(captions, CAPTIONS_PER_SHARD)
        print(f"num_shards: {num_shards} for {captions:,} captions")
    return StageFolder(config.output, STAGE, identity_of(config, prepared["fingerprint"]), num_shards)


def _check_accepted(config: NegativesConfig, folder: StageFolder, counts: Mapping[str, int]) -> None:
    """Report the failures among a language model's requests, and raise if nothing usable came of them."""
    if config.engine in ENGINES:
        require_accepted(config, counts, tell_failures(folder.storage, counts))


def kinds_of(config: NegativesConfig) -> tuple[Kind, ...]:
    """Return the kinds to write, in their order; none if the source's negatives are copied."""
    if config.engine == GIVEN_KIND:
        return ()
    selected = config.engine in EDITORS and config.plausibility == "ngram"
    kinds = config.kinds or (PLAUSIBLE if selected else ORDER)
    return tuple(kind for kind in ORDER if kind in kinds)


def engine_of(config: NegativesConfig) -> Engine | None:
    """Return the language model that writes the negatives; None for other engines."""
    return ENGINES[config.engine](config) if config.engine in ENGINES else None


def prompts_of(config: NegativesConfig) -> Prompts:
    """Return the prompts for a language model; empty for other engines."""
    if config.engine not in ENGINES:
        return {}
    asked = config.generation
    return load_prompts(kinds_of(config), asked.shots, config.seed, prompting=asked.prompting)


def identity_of(config: NegativesConfig, prepared: str) -> dict[str, Any]:
    """Return everything that determines the output; `prepared` is the fingerprint of the captions' folder."""
    return {
        "prepared": prepared,
        "engine": {"name": config.engine, **_engine_identity(config, prompts_of(config))},
        "checks": CHECKS_VERSION,
        "kinds": kinds_of(config),
        "per_kind": config.per_kind,
        "seed": config.seed,
        **_selection_identity(config),
    }


def _selection_identity(config: NegativesConfig) -> dict[str, Any]:
    """Return what determines which edits are kept; empty for engines whose negatives are not selected."""
    if config.engine not in EDITORS or config.plausibility == "none":
        return {}
    return {
        "plausibility": config.plausibility,
        "plausibility_window": config.plausibility_window,
        "plausibility_version": PLAUSIBILITY_VERSION,
    }


def _job(config: NegativesConfig, engine: Engine, prompts: Prompts) -> GenerationJob:
    return GenerationJob(config=config, engine=engine, prompts=prompts, prompt_sha=prompt_sha(prompts))


def _engine_identity(config: NegativesConfig, prompts: Prompts) -> dict[str, Any]:
    """Return what determines an engine's output apart from the settings shared by all engines."""
    if config.engine == GIVEN_KIND:
        return {}
    if config.engine in EDITORS:
        return EDITORS[config.engine].identity()
    asked = config.generation
    decides = ("prompting", "shots", "temperature", "top_p", "max_tokens", "attempts", "fill_with_rules")
    return {
        **ENGINES[config.engine](config).identity(),
        **{name: getattr(asked, name) for name in decides},
        **({"slots": [SLOTS_VERSION, config.plausibility]} if asked.prompting == "slots" else {}),
        "prompt_sha": prompt_sha(prompts),
        "words": RuleEngine.identity(),  # word lists of the checks, and of the rules used to fill in
    }


def _read(source: Storage) -> tuple[pa.Table, dict[str, str]]:
    """Return the captions, and the scene graph of each image that has one."""
    captions = source.read_dataset("captions", CAPTIONS, ["sample_id", "image_id", "caption"])
    if not source.names("graphs"):
        return captions, {}
    graphs = source.read_dataset("graphs", SCENE_GRAPHS)
    columns = (graphs[name].to_pylist() for name in ("image_id", "graph"))
    return captions, dict(zip(*columns, strict=True))


def _is_scored(config: NegativesConfig, captions: pa.Table) -> bool:
    """Return whether negatives are scored, and say so if there are too few captions for it."""
    if config.plausibility == "none":
        return False
    if len(captions) < MIN_CAPTIONS:
        print(
            f"plausibility none: an n-gram model needs {MIN_CAPTIONS:,} captions, these are {len(captions):,}"
        )
    return len(captions) >= MIN_CAPTIONS


def _write_plausible(
    config: NegativesConfig, task: ShardTask, captions: pa.Table, graphs: dict[str, str]
) -> None:
    """Write candidates with their scores, then the negatives that are left when the set is balanced."""
    models, folder = _models(captions), task.folder
    identity = folder.manifest["made_from"]["identity"]
    candidates = StageFolder(f"{config.output}/{CANDIDATES}", STAGE, identity, folder.num_shards)
    if candidates.pending():
        _write_by_edits(config, replace(task, folder=candidates), captions, graphs, models)
    write_balanced(candidates, folder, config.plausibility_window)
    describe_blind(candidates, folder, captions, models, config.seed)
    folder.storage.delete_folder(CANDIDATES)


def _models(captions: pa.Table) -> CaptionModels:
    started = time.monotonic()
    folds = [fold_of(image) for image in values(captions["image_id"])]
    models = CaptionModels(list(values(captions["caption"])), folds)
    print(f"n-gram models of {len(captions):,} captions in {time.monotonic() - started:.0f} s")
    return models


def _write_by_edits(
    config: NegativesConfig,
    task: ShardTask,
    captions: pa.Table,
    graphs: dict[str, str],
    models: CaptionModels | None = None,
) -> None:
    folder = task.folder
    pending = folder.pending()
    words = vocabulary(values(captions["caption"]))
    share = len(captions) * len(pending) / folder.num_shards
    wanted = min(len(pending), math.ceil(share / CAPTIONS_PER_ACTOR))
    editors = resources.tasks(config.ray, wanted)
    resources.require(config.ray, [editors])
    shared_paths.require_shared(config, {"output": config.output}, driver_only=["prepared"])
    started = time.monotonic()
    by_shard = CaptionShards.of(captions, graphs, folder.num_shards)
    rows = _run(config.engine, task, pending, (by_shard, words, models), resources.room(editors))
    with ProgressLine("negatives", len(pending), "shards") as line:
        for done, _ in enumerate(rows, start=1):
            if line.due or done == len(pending):
                elapsed = time.monotonic() - started
                line.show(done, left_s=elapsed * (len(pending) - done) / done)
    elapsed = time.monotonic() - started
    print(f"{share:,.0f} captions in {elapsed:.0f} s: {share / max(elapsed, 1e-9):,.0f} captions/s")


def _run(
    engine: str,
    task: ShardTask,
    pending: list[int],
    data: tuple[CaptionShards, frozenset[str], CaptionModels | None],
    actors: tuple[int, int],
) -> Iterator[dict[str, Any]]:
    import ray
    import ray.data

    dataset = ray.data.from_arrow([pa.table({"shard": [shard]}) for shard in pending])  # one shard per task
    yield from dataset.map(
        _ShardActor,
        fn_constructor_kwargs={"engine": engine, "task": task, "data": ray.put(data)},
        compute=ray.data.ActorPoolStrategy(min_size=actors[0], max_size=actors[1]),
    ).iter_rows()


class _ShardActor:
    """Actor that holds a caption editor and writes one shard per call."""

    def __init__(self, engine: str, task: ShardTask, data: Any) -> None:
        import ray

        task.folder.require_seen()
        self._captions, words, self._models = ray.get(data)
        self._task = task
        self._editor = EDITORS[engine](words, self._models)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        shard = int(row["shard"])
        write_shard(self._task, self._editor, shard, self._captions.captions_of(shard), self._models)
        return row


def _check_ledger(config: NegativesConfig, counts: dict[str, int]) -> None:
    """Raise DataError unless every caption is in exactly one state for each kind."""
    for kind in _kinds_of(counts):
        states = sum(n for name, n in counts.items() if name.startswith(f"captions.{kind}."))
        if states != counts["captions"]:
            found = f"{states} captions with a state for {kind}, of {counts['captions']}"
            raise DataError(config.output, found, "each once (a fault of this program)")


def _kinds_of(counts: Mapping[str, int]) -> list[str]:
    """Return the kinds that were written, according to their counts."""
    return [name.removeprefix("rows.") for name in counts if name.startswith("rows.")]


def _report(counts: Mapping[str, int], published: bool = False) -> None:
    """Print the numbers of each kind, unless a published report does, and the reasons of the rejects."""
    if not published:
        _print_table(f"Negatives of {counts.get('captions', 0):,} captions", STATES, counts)
    if any(name.startswith("truth.") for name in counts):
        _print_table("Truth of what passed the text checks (true: rejected)", TRUTHS, counts)
    reasons: Counter[str] = Counter()
    for name, count in counts.items():
        if name.startswith("rejects."):
            reasons[name.rpartition(".")[2]] += count
    print("rejects: " + (", ".join(f"{reason} {n:,}" for reason, n in reasons.most_common()) or "none"))


def _print_table(title: str, columns: Mapping[str, str], counts: Mapping[str, int]) -> None:
    """Print a row per kind."""
    table = Table(title=title)
    table.add_column("kind", no_wrap=True)
    for heading in columns:
        table.add_column(heading, justify="right")
    for kind in _kinds_of(counts):
        table.add_row(kind, *(f"{counts.get(name.format(kind), 0):,}" for name in columns.values()))
    Console().print(table)
