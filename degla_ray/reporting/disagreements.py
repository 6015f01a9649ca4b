"""Items on which two models' decisions differ most. Pure, except that it reads one benchmark's rows at a
time.

An item's decision depends on its margin: the true candidate's score minus the best other candidate's. Each
model's margins are divided by their standard deviation over the benchmark's items that both models scored, so
that neither a model's nor a benchmark's scale decides. The items that exactly one model gets right are ranked
by the difference of these standardised margins. Scores of one benchmark for both models are in memory at a
time: 400 MB for ImageNet, 50,000 items of 1,000 classes.

A report shows as many items that the second model improved as it got worse, and takes them from every subset
in turn, because one large subset of easy gains would otherwise fill the list.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from degla_ray.evaluation.benchmarks.classification import MEAN_PER_CLASS, TOP1
from degla_ray.evaluation.benchmarks.two_positives import ITT
from degla_ray.schema import ITEMS, SCORES
from degla_ray.storage import Storage

CHUNK = 4096  # items whose margins are computed at once
_RANK = re.compile(r"(i2t|t2i)_r\d+")


class Form(Enum):
    """Meaning of an item's `candidate_scores`."""

    CHOICE = auto()
    """One score per candidate (text or image), the true one first."""
    CLASSES = auto()
    """One score per class. The true class is the highest-scoring one of a model that is correct; the name of
    the best wrong one is the row's `rival`."""
    BEST = auto()
    """Scores of the best true candidate and of the best wrong one, the row's `rival`."""
    TWO_POSITIVES = auto()
    """Scores of two true texts and a wrong one."""
    TWO_PAIRS = auto()
    """Scores of two texts with the first image, then with the second."""


@dataclass(frozen=True, kw_only=True)
class Disagreement:
    """One item that exactly one of two models gets right."""

    benchmark: str
    subset: str
    item_id: str
    images: tuple[str, ...]
    """`SOURCE:ID` of its images, the true one first."""
    texts: tuple[str, ...]
    """The item's texts that are not candidates."""
    candidates: tuple[str, ...]
    """Names of the candidates."""
    true: tuple[bool, ...]
    """Per candidate: whether it is true."""
    candidate_images: tuple[str | None, ...]
    """Per candidate: `SOURCE:ID` of the image that it is, None for a text."""
    scores: tuple[tuple[float | None, ...], tuple[float | None, ...]]
    """Per model: score of each candidate; None where its evaluation did not record it."""
    margins: tuple[float, float]
    """Per model: margin in standard deviations of the model's margins over the benchmark."""
    correct: tuple[bool, bool]

    @property
    def difference(self) -> float:
        return abs(self.margins[0] - self.margins[1])

    @property
    def improved(self) -> bool:
        """Whether the second model is the one that is right."""
        return self.correct[1]

    @property
    def chosen(self) -> int:
        """Number of the candidate that the wrong model chose: its highest-scoring wrong one."""
        scores = [-np.inf if score is None else score for score in self.scores[0 if self.improved else 1]]
        return max((n for n, true in enumerate(self.true) if not true), key=scores.__getitem__)


def most_disagreed(first: Storage, second: Storage, count: int) -> list[Disagreement]:
    """Return at most `count` items of two evaluation folders: improved ones, then those that got worse.

    What an item shows is read from the dataset `items` of the first folder, or of the second; a benchmark
    without items in either is left out.
    """
    found: list[Disagreement] = []
    for benchmark in sorted(_benchmarks(first) & _benchmarks(second)):
        items = next((rows for rows in (_rows(s, "items", benchmark) for s in (first, second)) if rows), None)
        if items is not None:
            scores = _rows(first, "scores", benchmark), _rows(second, "scores", benchmark)
            found += disagreements(*scores, items, count)
    return balanced(found, count)


def balanced(found: Sequence[Disagreement], count: int) -> list[Disagreement]:
    """Return at most half of `count` improved items, then as many that got worse; where one kind is rarer,
    the other fills its places. Each kind takes the largest difference of each subset, then the second
    largest, and so on."""
    drawn: list[list[Disagreement]] = []
    for improved in (True, False):
        place: dict[tuple[str, str], int] = defaultdict(int)
        ranked = []
        for item in sorted(found, key=lambda d: (-d.difference, d.benchmark, d.subset, d.item_id)):
            if item.improved == improved:
                subset = item.benchmark, item.subset
                ranked.append((place[subset], item))
                place[subset] += 1
        drawn.append([item for _, item in sorted(ranked, key=lambda pair: pair[0])])
    better, worse = drawn
    kept = max(count - count // 2, count - len(worse))
    return [*better[:kept], *worse[: count - min(kept, len(better))]]


def disagreements(first: pa.Table, second: pa.Table, items: pa.Table, count: int) -> list[Disagreement]:
    """Return at most `count` items of each subset of one benchmark and of each outcome, the largest
    difference first.

    Args:
        first, second: SCORES rows of two models.
        items: ITEMS rows; scores of subsets that do not occur in them are ignored.
        count: maximum number of items.
    """
    shown = pa.array(sorted(set(items["subset"].to_pylist())))
    one, other = (_Scores(table.filter(pc.is_in(table["subset"], shown))) for table in (first, second))
    common = [key for key in one.row if key in other.row]
    if not common:
        return []
    pair_N2 = np.array([(one.row[key], other.row[key]) for key in common])
    margin_N2 = _standardised_margins(common, one, other, pair_N2)
    differ_N = one.correct[pair_N2[:, 0]] != other.correct[pair_N2[:, 1]]
    differ_N &= np.isfinite(margin_N2).all(axis=1)
    gap_N = np.abs(margin_N2[:, 0] - margin_N2[:, 1])
    order: list[int] = []
    taken: dict[tuple[str, bool], int] = defaultdict(int)
    for n in sorted(np.flatnonzero(differ_N).tolist(), key=lambda n: (-gap_N[n], common[n])):
        outcome = common[n][0], bool(one.correct[pair_N2[n, 0]])
        taken[outcome] += 1
        if taken[outcome] <= count:
            order.append(n)
    what = _shown(items, [common[n] for n in order])
    benchmark = items["benchmark"][0].as_py()
    found = []
    for n in order:
        if common[n] not in what:
            continue
        (subset, item_id), (images, texts) = common[n], what[common[n]]
        first_row, second_row = pair_N2[n]
        candidates = _compared(subset, images, texts, (one, first_row), (other, second_row))
        found.append(
            Disagreement(
                benchmark=benchmark,
                subset=subset,
                item_id=item_id,
                images=images,
                texts=candidates.beside,
                candidates=candidates.names,
                true=candidates.true,
                candidate_images=candidates.images,
                scores=candidates.scores,
                margins=(float(margin_N2[n, 0]), float(margin_N2[n, 1])),
                correct=(bool(one.correct[first_row]), bool(other.correct[second_row])),
            )
        )
    return found


def _standardised_margins(
    common: Sequence[tuple[str, str]], one: _Scores, other: _Scores, pair_N2: np.ndarray
) -> np.ndarray:
    """Return both models' margins of the common items, in standard deviations; NaN where one is unknown."""
    margin_N2 = np.full(pair_N2.shape, np.nan)
    for form, size, number_n in _alike(common, one, other, pair_N2):
        scores = [s.matrix(pair_N2[number_n, i], size) for i, s in enumerate((one, other))]
        true_n = _true_class(one.correct[pair_N2[number_n, 0]], *scores) if form is Form.CLASSES else None
        for i, scores_nK in enumerate(scores):
            margin_N2[number_n, i] = margins(form, scores_nK, true_n)
        if form is Form.CLASSES:  # if neither model is correct, the true class is unknown
            neither_n = ~(one.correct[pair_N2[number_n, 0]] | other.correct[pair_N2[number_n, 1]])
            margin_N2[number_n[neither_n]] = np.nan
    known_N = np.isfinite(margin_N2).all(axis=1)
    if not known_N.any():
        return margin_N2
    deviation_2 = margin_N2[known_N].std(axis=0)
    return margin_N2 / np.where(deviation_2 > 0, deviation_2, 1.0)


@dataclass(frozen=True, kw_only=True)
class _Candidates:
    """Candidates of one item as a report shows them; see Disagreement."""

    names: tuple[str, ...]
    images: tuple[str | None, ...]
    beside: tuple[str, ...]
    true: tuple[bool, ...]
    scores: tuple[tuple[float | None, ...], tuple[float | None, ...]]


def _compared(
    subset: str,
    images: tuple[str, ...],
    texts: tuple[str, ...],
    first: tuple[_Scores, int],
    second: tuple[_Scores, int],
) -> _Candidates:
    """Return an item's candidates, given each model's scores and its row in them."""
    rows = tuple(scores.scores(row) for scores, row in (first, second))
    form = _form(subset, len(rows[0]))
    if form in (Form.CLASSES, Form.BEST):
        return _against_rival(subset, form, images, texts, (first, second))
    names, beside, shown = _candidates(form, images, texts, len(rows[0]))
    right = {Form.TWO_POSITIVES: (0, 1), Form.TWO_PAIRS: (0, 3)}.get(form, (0,))
    return _Candidates(
        names=names,
        images=shown,
        beside=beside,
        true=tuple(number in right for number in range(len(names))),
        scores=(tuple(rows[0].tolist()), tuple(rows[1].tolist())),
    )


def _against_rival(
    subset: str,
    form: Form,
    images: tuple[str, ...],
    texts: tuple[str, ...],
    models: tuple[tuple[_Scores, int], tuple[_Scores, int]],
) -> _Candidates:
    """Return the true candidate and the one that the wrong model chose.

    A folder written before `rival` was recorded has the scores of each model's own best wrong candidate.
    """
    rows = [scores.scores(row) for scores, row in models]
    rivals = [scores.rival[row] for scores, row in models]
    wrong = next(m for m, (scores, row) in enumerate(models) if not scores.correct[row])
    rival = rivals[wrong]
    scored: list[tuple[float | None, ...]]
    if form is Form.CLASSES:
        places = int(rows[1 - wrong].argmax()), int(rows[wrong].argmax())
        scored = [tuple(float(row[place]) for place in places) for row in rows]
        name, rival = texts[0], rival or "another class"
    else:
        same = [other == rival for other in rivals]
        scored = [
            (float(row[0]), float(row[1]) if known else None) for row, known in zip(rows, same, strict=True)
        ]
        found = images if subset.startswith("t2i") else texts
        name = found[0] if len(found) == 1 else f"the best of {len(found)} true ones"
    to_image = rival is not None and subset.startswith("t2i")
    return _Candidates(
        names=(name, rival or "best wrong candidate"),
        images=(images[0] if to_image and len(images) == 1 else None, rival if to_image else None),
        beside=() if texts == (name,) else texts,
        true=(True, False),
        scores=(scored[0], scored[1]),
    )


def margins(form: Form, scores_nK: np.ndarray, true_n: np.ndarray | None = None) -> np.ndarray:
    """Return the margin of each item, float64 [n]: negative if it is wrong, 0 on a tie.

    Args:
        form: meaning of the scores.
        scores_nK: float [n, K].
        true_n: true class of each item, for Form.CLASSES only.
    """
    s = scores_nK.astype(np.float64)
    if s.shape[1] < 2:
        return np.full(len(s), np.nan)  # no wrong candidate
    if form is Form.TWO_POSITIVES:
        return np.asarray(s[:, :2].min(axis=1) - s[:, 2])
    if form is Form.TWO_PAIRS:
        pairs = (s[:, 0] - s[:, 1], s[:, 3] - s[:, 2], s[:, 0] - s[:, 2], s[:, 3] - s[:, 1])
        return np.asarray(np.min(pairs, axis=0))
    if form is Form.CLASSES:
        assert true_n is not None
        true_n1 = true_n[:, None]
        true = np.take_along_axis(s, true_n1, axis=1)[:, 0]
        np.put_along_axis(s, true_n1, -np.inf, axis=1)
        return np.asarray(true - s.max(axis=1))
    return np.asarray(s[:, 0] - s[:, 1:].max(axis=1))


class _Scores:
    """SCORES rows by item."""

    def __init__(self, table: pa.Table) -> None:
        table = table.combine_chunks()
        keys = zip(table["subset"].to_pylist(), table["item_id"].to_pylist(), strict=True)
        self.row = {key: row for row, key in enumerate(keys)}
        self.correct = np.array(table["correct"].to_pylist(), dtype=bool)
        self.rival: list[str | None] = table["rival"].to_pylist()
        self.size = np.asarray(pc.list_value_length(table["candidate_scores"]).to_numpy(), dtype=np.int64)
        self._flat = np.asarray(pc.list_flatten(table["candidate_scores"]).to_numpy())
        self._start = np.concatenate([[0], np.cumsum(self.size)])

    def scores(self, row: int) -> np.ndarray:
        return self._flat[self._start[row] : self._start[row + 1]]

    def matrix(self, rows_n: np.ndarray, size: int) -> np.ndarray:
        """Return the scores of rows that have `size` of them, [n, size]."""
        return self._flat[self._start[rows_n][:, None] + np.arange(size)]


def _form(subset: str, size: int) -> Form:
    if subset == TOP1:
        return Form.CLASSES
    if subset.endswith(f"_{ITT}") and size == 3:
        return Form.TWO_POSITIVES
    if subset == "group" and size == 4:
        return Form.TWO_PAIRS
    return Form.BEST if subset == MEAN_PER_CLASS or _RANK.fullmatch(subset) else Form.CHOICE


def _alike(
    keys: Sequence[tuple[str, str]], one: _Scores, other: _Scores, pair_N2: np.ndarray
) -> Iterator[tuple[Form, int, np.ndarray]]:
    """Yield form, number of scores, and indices of the items that share both.

    Items with a different number of scores in the two models are left out.
    """
    subset_N = np.array([subset for subset, _ in keys])
    size_N = one.size[pair_N2[:, 0]]
    same_N = size_N == other.size[pair_N2[:, 1]]
    for subset in dict.fromkeys(subset_N.tolist()):
        for size in np.unique(size_N[same_N & (subset_N == subset)]).tolist():
            number_n = np.flatnonzero(same_N & (subset_N == subset) & (size_N == size))
            for start in range(0, len(number_n), CHUNK):
                yield _form(subset, size), size, number_n[start : start + CHUNK]


def _true_class(correct_n: np.ndarray, one_nK: np.ndarray, other_nK: np.ndarray) -> np.ndarray:
    """Return the class predicted by the model that is correct, the first if it is; the first of equal scores
    counts."""
    return np.where(correct_n, one_nK.argmax(axis=1), other_nK.argmax(axis=1))


def _candidates(
    form: Form, images: tuple[str, ...], texts: tuple[str, ...], size: int
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str | None, ...]]:
    """Return the names of an item's candidates, its other texts, and per candidate the image that it is."""
    none = (None,) * size
    if form is Form.TWO_PAIRS:
        pairs = "caption 1, image 1", "caption 2, image 1", "caption 1, image 2", "caption 2, image 2"
        return pairs, texts, none
    if len(texts) == size:
        return texts, (), none
    if len(images) == size:
        return tuple(f"image {number}" for number in range(1, size + 1)), texts, images
    return tuple(f"candidate {number}" for number in range(1, size + 1)), texts, none


def _shown(
    items: pa.Table, keys: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], tuple[tuple[str, ...], tuple[str, ...]]]:
    """Return the images and texts of some items."""
    ids = pa.array(sorted({item_id for _, item_id in keys}), pa.string())
    wanted = set(keys)
    return {
        (row["subset"], row["item_id"]): (tuple(row["images"]), tuple(row["texts"]))
        for row in items.filter(pc.is_in(items["item_id"], ids)).to_pylist()
        if (row["subset"], row["item_id"]) in wanted
    }


def _benchmarks(storage: Storage) -> set[str]:
    column = storage.read_dataset("scores", SCORES, ["benchmark"])["benchmark"]
    return set(pc.unique(column).to_pylist())


def _rows(storage: Storage, dataset: str, benchmark: str) -> pa.Table:
    """Return the rows of one benchmark; no rows if the dataset does not exist."""
    schema = {"scores": SCORES, "items": ITEMS}[dataset]
    parts = [storage.path(dataset, name) for name in storage.names(dataset) if name.endswith(".parquet")]
    if not parts:
        return schema.empty_table()
    table = pads.dataset(parts, schema=schema, filesystem=storage.filesystem)
    return table.to_table(filter=pads.field("benchmark") == benchmark)
