"""Summary of an evaluation: accuracies of subsets and named averages, with intervals. Pure functions.

An average is never silently taken over an incomplete set: it has no value if a member has no result, and is
marked partial if a member lost items to unreadable images.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from degla_ray.errors import DataError
from degla_ray.evaluation.benchmarks import suite
from degla_ray.evaluation.benchmarks.aro import ARO, ARO_MEMBERS
from degla_ray.evaluation.benchmarks.base import Benchmark, Scored
from degla_ray.evaluation.benchmarks.negatives import NAME as NEGATIVES
from degla_ray.evaluation.benchmarks.zero_shot import ZERO_SHOT_ELEVEN
from degla_ray.evaluation.statistics import Mean, interval, mean_of
from degla_ray.model.source import RANDOM
from degla_ray.stage import absolute_from, read_complete
from degla_ray.storage import Storage, relative_to

STAGE = "evaluate"
SUMMARY = "summary.json"
ARTIFACTS = "evaluation"  # artifact folder of an evaluation's MLflow run
DECISION = ["benchmark", "subset", "image", "group", "correct"]  # columns of SCORES that a mean needs
PREPARED_RETRIEVAL = "prepared_retrieval"
COMPOSITION, SCENES_ZERO_SHOT = "composition", "zero_shot"  # averages over the scenes
ZERO_SHOT = "zero_shot_eleven"  # average over torchvision's eleven sets


@dataclass(frozen=True, kw_only=True)
class Score:
    """Accuracy of one subset, or a named average."""

    name: str
    """`benchmark/subset`, or the name of the average."""
    value: float | None
    """Accuracy, 0 to 1; None if no item was scored or the average lacks a member."""
    low: float | None
    """Lower end of the 95 % interval."""
    high: float | None
    """Upper end of the 95 % interval."""
    n: int
    """Items scored."""
    missing: int
    """Items left out because their image could not be read."""
    chance: float | None = None
    """Accuracy of random guessing; None for averages and for subsets without such a number."""
    protocol: str = ""
    """Decision rule and protocol in a few words."""
    of: tuple[str, ...] = ()
    """Subsets that the average is computed from."""
    weights: tuple[float, ...] = ()
    """Weight of each of these subsets in the average; the weights sum to 1."""

    @property
    def partial(self) -> bool:
        return self.missing > 0


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Contents of `summary.json`."""

    label: str
    """Name of the model in tables."""
    model: Mapping[str, Any]
    """`name`, `source`, `identity` (hash of weights, preprocessing and tokenizer), `precision` and `folder`
    (null without one)."""
    inputs: Mapping[str, Any]
    """Identity of the test sets: suite, prepared folder, negatives folder, split and published benchmarks."""
    fingerprint: str
    """Fingerprint of the evaluation folder."""
    sources: Mapping[str, Any] = field(default_factory=dict)
    """Image sources, for reports that show images: source name -> `images.source_spec`."""
    partial: bool = False
    """Whether any item is missing."""
    subsets: tuple[Score, ...] = ()
    averages: tuple[Score, ...] = ()
    missing_images: Mapping[str, str] = field(default_factory=dict)
    """Image -> reason why it could not be read."""
    truncated: Mapping[str, int] = field(default_factory=dict)
    """Benchmark -> number of its texts that exceed the model's context length and were truncated."""

    def score(self, name: str) -> Score | None:
        """Return the subset or average of that name, or None."""
        return next((s for s in (*self.averages, *self.subsets) if s.name == name), None)

    @property
    def headline(self) -> str:
        """Name of the score to show alone: composition, else the first average, else the first subset.

        Raises:
            DataError: no score has a value.
        """
        metrics = self.metrics()
        for name in (COMPOSITION, *(s.name for s in self.averages), *metrics):
            if name in metrics:
                return name
        raise DataError(f"evaluation of {self.label}", "no score", "images that can be read")

    def metrics(self) -> dict[str, float]:
        """Return name -> value of every score that has a value."""
        return {s.name: s.value for s in (*self.subsets, *self.averages) if s.value is not None}

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Summary:
        fields = dict(value)
        for name in ("subsets", "averages"):
            fields[name] = tuple(
                Score(**{**s, "of": tuple(s["of"]), "weights": tuple(s["weights"])}) for s in fields[name]
            )
        return cls(**fields)


def card_scores(folders: Sequence[str], model: str) -> dict[str, dict[str, Any]]:
    """Return name -> value, ends of the interval and items of every score, for a model card.

    Args:
        folders: finished evaluations.
        model: identity of the model that they must be of.

    Raises:
        DataError: a folder has no evaluation, or one of another model.
    """
    scores: dict[str, dict[str, Any]] = {}
    for folder in folders:
        summary = read_summary(read_complete(folder, STAGE)[0])
        if summary.model["identity"] != model:
            raise DataError(folder, f"an evaluation of {summary.label}", "one of the exported model")
        for score in (*summary.averages, *summary.subsets):
            if score.value is not None:
                ends = {"low": score.low, "high": score.high}
                scores[score.name] = {"value": score.value, **ends, "items": score.n}
    return scores


def _members(benchmarks: Sequence[Benchmark]) -> dict[str, tuple[str, ...]]:
    """Return average -> its members, for the averages that the given benchmarks allow.

    An average is the unweighted mean of its members, which are subsets or averages that precede it.
    """
    names = {b.name: b for b in benchmarks}
    members: dict[str, tuple[str, ...]] = {}
    if "scenes" in names or "scenes_order" in names:
        members[COMPOSITION] = (*(f"scenes/{s}" for s in suite.SCENES_SUBSETS), "scenes_order/order")
    if "scenes_zeroshot" in names:
        members[SCENES_ZERO_SHOT] = ("scenes_zeroshot/top1",)
    for retrieval in (suite.RETRIEVAL, PREPARED_RETRIEVAL):  # the first one that was run counts
        if retrieval in names:
            members["retrieval"] = (f"{retrieval}/i2t_r1", f"{retrieval}/t2i_r1")
            break
    if NEGATIVES in names:
        members["negatives"] = tuple(f"{NEGATIVES}/{kind}" for kind in names[NEGATIVES].subsets)
    for average, of in {ARO: ARO_MEMBERS, ZERO_SHOT: ZERO_SHOT_ELEVEN}.items():
        if {member.partition("/")[0] for member in of} <= names.keys():
            members[average] = tuple(of)
    for benchmark in benchmarks:
        own = benchmark.averages
        for name, parts in own.items():
            members[name] = tuple(part if part in own else f"{benchmark.name}/{part}" for part in parts)
    return members


def summarise(
    base: Summary,
    benchmarks: Sequence[Benchmark],
    scored: Sequence[Scored],
    missing_images: Mapping[str, str],
    bootstrap_samples: int,
    truncated: Mapping[str, int] | None = None,
) -> Summary:
    """Return `base` with every subset's accuracy, the named averages and all intervals."""
    subsets: dict[str, Score] = {}
    means: dict[str, Mean] = {}
    for benchmark, result in zip(benchmarks, scored, strict=True):
        for subset in benchmark.subsets:
            name, rows = f"{benchmark.name}/{subset}", _rows(result.scores, subset)
            value = low = high = None
            if len(rows):
                means[name] = mean_of_rows(rows)
                value = means[name].value
                low, high = interval([means[name]], [1.0], bootstrap_samples, name)
            subsets[name] = Score(
                name=name,
                value=value,
                low=low,
                high=high,
                n=len(rows),
                missing=result.missing.get(subset, 0),
                chance=benchmark.chance(subset),
                protocol=benchmark.protocol,
            )
    averages: dict[str, Score] = {}
    for name, of in _members(benchmarks).items():
        averages[name] = _average(name, of, subsets | averages, means, bootstrap_samples)
    return dataclasses.replace(
        base,
        partial=any(s.partial for s in subsets.values()),
        subsets=tuple(subsets.values()),
        averages=tuple(averages.values()),
        missing_images=missing_images,
        truncated={name: count for name, count in (truncated or {}).items() if count},
    )


def _average(
    name: str, of: tuple[str, ...], scores: Mapping[str, Score], means: Mapping[str, Mean], samples: int
) -> Score:
    present = [scores[m] for m in of if m in scores]
    n, missing = sum(s.n for s in present), sum(s.missing for s in present)
    weight: dict[str, float] = {}
    for m in of:
        own = scores[m] if m in scores and scores[m].of else None
        for subset, share in zip(own.of, own.weights, strict=True) if own else [(m, 1.0)]:
            weight[subset] = weight.get(subset, 0.0) + share / len(of)
    value = low = high = None
    if all(subset in means for subset in weight):
        value = float(np.mean([s.value for s in present]))
        low, high = interval([means[subset] for subset in weight], [*weight.values()], samples, name)
    return Score(
        name=name,
        value=value,
        low=low,
        high=high,
        n=n,
        missing=missing,
        of=tuple(weight),
        weights=tuple(weight.values()),
    )


def _rows(scores: pa.Table, subset: str) -> pa.Table:
    """Return the rows of one subset of a SCORES table, without the candidates' scores (200 MB for
    ImageNet)."""
    return scores.select(DECISION).filter(pc.equal(scores["subset"], subset))


def mean_of_rows(rows: pa.Table) -> Mean:
    """Return the mean of one subset's rows: at least one row, with the columns DECISION."""
    groups = None if rows["group"].null_count else rows["group"].to_pylist()
    return mean_of(rows["correct"].to_pylist(), rows["image"].to_pylist(), groups)


def write_summary(storage: Storage, summary: Summary) -> None:
    """Write `summary.json`, with paths of nearby folders relative to the evaluation folder."""
    value = summary.to_json()
    near = {name: relative_to(storage.uri, value[name]) for name in ("model", "sources")}
    storage.write_json(value | near, SUMMARY)


def read_summary(storage: Storage, folder: str | None = None) -> Summary:
    """Read the summary of an evaluation folder, or of a copy of one among MLflow's artifacts.

    Args:
        storage: folder that contains the file.
        folder: URI of the original evaluation folder; None means `storage`.

    Raises:
        DataError: the file is missing or cannot be read.
    """
    where, expected = storage.path(SUMMARY), "the summary that `jobs/evaluate.py` wrote"
    try:
        value = storage.read_json(SUMMARY)
        near = {name: absolute_from(folder or storage.uri, value[name]) for name in ("model", "sources")}
        return Summary.from_json(value | near)
    except (KeyError, TypeError, FileNotFoundError) as error:
        raise DataError(where, f"no readable summary ({error})", expected) from error


def read_evaluation(uri: str) -> tuple[Storage, Summary]:
    """Open a finished evaluation folder.

    Returns:
        The folder and its summary.

    Raises:
        DataError: the folder was written by another job, or is unfinished or broken.
    """
    storage, _ = read_complete(uri, STAGE)
    return storage, read_summary(storage)


def has_random_weights(summary: Summary) -> bool:
    """Return whether the model was untrained, which an evaluation allows only with `model.random_init`."""
    return summary.model.get("source") == RANDOM
