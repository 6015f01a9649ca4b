"""What a report prints of a difference and what it tests are one thing, whatever kind of score it is."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from degla_ray.encoding.features import FeatureTable
from degla_ray.evaluation.benchmarks.aro import ARO
from degla_ray.evaluation.benchmarks.base import Rule, Scored, ScoredItems, scores_table
from degla_ray.evaluation.benchmarks.choice import Choice, ChoiceProtocol
from degla_ray.evaluation.benchmarks.sugarcrepe import AVERAGES, SUGARCREPE
from degla_ray.evaluation.benchmarks.valse import AVERAGES as VALSE_AVERAGES
from degla_ray.evaluation.benchmarks.zero_shot import ZERO_SHOT_ELEVEN
from degla_ray.evaluation.comparison import Comparison, means_of, set_side_by_side
from degla_ray.evaluation.summary import ZERO_SHOT, Summary, summarise
from degla_ray.reporting.comparison_page import comparison_page
from degla_ray.reporting.markdown import markdown
from degla_ray.reporting.tables import console_tables
from degla_ray.schema import CHOICE_ITEMS

Counts = Mapping[str, tuple[int, int]]  # subset -> items that the first model has right, the second


class Fixed:
    """A benchmark of which only the names matter."""

    protocol = ""

    def __init__(self, name: str, subsets: Sequence[str], averages: Mapping[str, Sequence[str]]) -> None:
        self.name, self.subsets, self.averages = name, tuple(subsets), averages

    def chance(self, subset: str) -> float | None:
        return 0.5


def compared(tables: Sequence[tuple[Fixed, Sequence[pa.Table]]]) -> Comparison:
    """The models side by side; of each benchmark one SCORES table a model."""
    benchmarks = [benchmark for benchmark, _ in tables]
    summaries, means = [], []
    for model in range(len(tables[0][1])):
        scores = [own[model] for _, own in tables]
        base = Summary(
            label=f"m{model}", model={"name": "m", "identity": "0"}, inputs={"suite": "s"}, fingerprint=""
        )
        scored = [Scored(scores=table, missing={}) for table in scores]
        summaries.append(summarise(base, benchmarks, scored, {}, bootstrap_samples=200))  # type: ignore[arg-type]
        means.append(means_of(pa.concat_tables(scores)))
    return set_side_by_side(summaries, means)


def drawn(fixed: Fixed, grouped: Sequence[str] = (), models: int = 3) -> tuple[Fixed, list[pa.Table]]:
    """Subsets of unequal size over common images, some in uneven groups; each model has its skills."""
    rng = np.random.default_rng(len(fixed.name))
    rows = [(s, i) for k, s in enumerate(fixed.subsets) for i in range(60 + 90 * (k % 3))]
    subsets = [s for s, _ in rows]
    images = [f"{i % 40}" for _, i in rows]
    groups = [f"g{min(i % 9, 4)}" if s in grouped else None for s, i in rows]
    ids, shown = [str(i) for _, i in rows], np.ones((len(rows), 2))
    tables = []
    for _ in range(models):
        skill = {s: rng.uniform(0.4, 0.8) for s in fixed.subsets}
        right = rng.random(len(rows)) < [skill[s] for s in subsets]
        tables.append(
            scores_table(
                fixed.name, ScoredItems(subsets=subsets, ids=ids, images=images, groups=groups), shown, right
            )
        )
    return fixed, tables


def every_kind() -> Comparison:
    zero_shot = [name.split("/") for name in ZERO_SHOT_ELEVEN]
    return compared(
        [
            drawn(Fixed(SUGARCREPE, AVERAGES["sugarcrepe"], AVERAGES)),
            drawn(Fixed("valse", VALSE_AVERAGES["valse"], VALSE_AVERAGES)),
            drawn(Fixed("vg_relation", ["relations"], {}), ["relations"]),
            drawn(Fixed("vg_attribution", ["pairs"], {}), ["pairs"]),
            drawn(Fixed("coco_order", ["order"], {})),
            drawn(Fixed("flickr30k_order", ["order"], {})),
            *(drawn(Fixed(name, [subset], {}), ["mean_per_class"]) for name, subset in zero_shot),
            drawn(Fixed("scenes_retrieval", ["i2t_r1", "t2i_r1"], {})),
        ]
    )


def test_comparison_tests_the_difference_that_it_prints_of_every_kind_of_score() -> None:
    comparison = every_kind()
    names = {*AVERAGES, *VALSE_AVERAGES, ARO, ZERO_SHOT, "retrieval", "vg_relation/relations"}
    assert names <= set(comparison.names)
    for model in (1, 2):
        for name in comparison.names:
            cell = comparison.cell(model, name)
            assert cell.test is not None, name
            assert cell.delta is not None
            assert cell.test.value == pytest.approx(cell.delta, abs=1e-12), name
            assert cell.test.low < cell.delta < cell.test.high
            assert cell.corrected_p is not None
            assert cell.corrected_p >= cell.test.p_value
            if cell.stars:  # whatever is starred has an interval on the side of its sign
                assert min(cell.test.low * cell.delta, cell.test.high * cell.delta) > 0


def uneven() -> Comparison:
    """The mean gains 3.0 points; of the items 8 are won and 40 lost."""
    fixed = Fixed(SUGARCREPE, ["small", "large"], {SUGARCREPE: ["small", "large"]})
    counts: Counts = {"small": (50, 58), "large": (1000, 960)}
    ids = {subset: [f"{subset}{i}" for i in range(2 * first)] for subset, (first, _) in counts.items()}
    tables = [
        pa.concat_tables(
            scores_table(
                SUGARCREPE, ScoredItems(subsets=[s] * len(own), ids=own, images=own), np.ones((len(own), 2)),
                np.arange(len(own)) < counts[s][model],
            )
            for s, own in ids.items()
        )
        for model in (0, 1)
    ]  # fmt: skip
    return compared([(fixed, tables)])


def test_comparison_stars_and_colours_have_the_sign_of_the_average_printed() -> None:
    comparison = uneven()
    cell = comparison.cell(1, SUGARCREPE)
    assert cell.delta == pytest.approx(0.03)
    assert (cell.stars, cell.trend) == ("*", "up")
    large = comparison.cell(1, "sugarcrepe/large")
    assert large.delta == pytest.approx(-0.02)
    assert (large.stars, large.trend) == ("***", "down")


def test_comparison_corrects_for_the_comparisons_of_a_table_and_the_note_counts_them() -> None:
    comparison = every_kind()
    for names in (comparison.averages, *(group.names for group in comparison.groups)):
        cells = [comparison.cell(model, name) for model in (1, 2) for name in names]
        assert comparison.comparisons(names) == len(cells)
        least = min(cells, key=lambda cell: cell.test.p_value)  # type: ignore[union-attr]
        assert least.test is not None
        assert least.corrected_p is not None
        assert least.corrected_p >= min(1.0, len(cells) * least.test.p_value)
    console = Console(width=200, record=True)
    with console.capture() as capture:
        console.print(*console_tables(comparison, 200))
    pages = {
        "html": comparison_page(comparison, [], {}, {}),
        "md": markdown(comparison, [], {}),
        "console": capture.get(),
    }
    expected = {22, 2 * len(comparison.averages), *(2 * len(g.names) for g in comparison.groups)}
    for kind, page in pages.items():
        text = re.sub(r"\s+", " ", page)
        assert {int(n) for n in re.findall(r"(\d+) comparisons with m0", text)} == expected, kind
        assert "Holm-corrected" in text, kind


def test_comparison_difference_without_a_star_has_no_colour() -> None:
    comparison = every_kind()
    cells = [comparison.cell(model, name) for model in (1, 2) for name in comparison.names]
    assert {bool(cell.stars) for cell in cells} == {True, False}
    assert all(bool(cell.trend) == bool(cell.stars) for cell in cells)
    page = comparison_page(comparison, [], {}, {})
    shown = re.findall(r'class="delta (\w*)" title="[^"]*">([^<]*)<', page)
    assert shown
    assert all(bool(colour) == ("*" in text) for colour, text in shown)


def test_comparison_averages_of_other_subsets_are_not_subtracted() -> None:
    few = drawn(Fixed("negatives", ["reshuffle", "swap_nouns"], {}), models=1)
    more = drawn(Fixed("negatives", ["reshuffle"], {}), models=1)
    sides = [compared([one]) for one in (few, more)]
    means = [means_of(table) for _, (table,) in (few, more)]
    comparison = set_side_by_side([side.summaries[0] for side in sides], means)
    assert comparison.cell(1, "negatives").delta is None
    assert comparison.cell(1, "negatives/reshuffle").delta is not None


def test_choice_items_of_one_image_s_parts_have_one_image_in_their_scores() -> None:
    rows = [
        ("b", "s", f"{i}", f"vg:{i % 2}.jpg#{i},2,30,40", ["a", "b"])  # two crops of each of two images
        for i in range(4)
    ]
    items = pa.Table.from_pylist([dict(zip(CHOICE_ITEMS.names, r, strict=True)) for r in rows], CHOICE_ITEMS)
    benchmark = Choice("b", items, ChoiceProtocol(rule=Rule.STRICT))
    row_of = {key: i for i, key in enumerate(sorted(benchmark.image_keys()))}
    features = FeatureTable(
        img_ND=np.eye(4, dtype=np.float32),
        txt_MD=np.eye(4, dtype=np.float32),
        image_row=row_of,
        text_row={"a": 0, "b": 1},
    )
    assert benchmark.score(features).scores["image"].to_pylist() == ["vg:0.jpg", "vg:1.jpg"] * 2
