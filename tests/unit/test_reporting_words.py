"""What a report says in words: verdicts, what an average is made of, chance, marked words, settings."""

from __future__ import annotations

import csv
import functools
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_evaluation_comparison import every_kind, uneven

from degla_ray.evaluation.comparison import Cell
from degla_ray.reporting.paper_tables import COLUMNS, csv_table, latex_tables
from degla_ray.reporting.provenance import provenance
from degla_ray.reporting.verdicts import (
    Verdict,
    chance_of,
    findings,
    is_at_chance,
    made_of,
    pair_that_matters,
    verdict_of,
)
from degla_ray.reporting.word_marks import marked

whole = functools.cache(every_kind)  # 10,000 resamples of each difference

# verdicts


def test_verdicts_follow_the_stars_and_count_every_subset_once() -> None:
    comparison = whole()
    for model in (1, 2):
        (finding,) = [f for f in findings(comparison) if f.model == model]
        subsets = [name for name in comparison.names if "/" in name]
        assert sum(finding.subsets.values()) == len(subsets)
        for name in comparison.names:
            cell = comparison.cell(model, name)
            assert cell.delta is not None
            expected = Verdict.UNCHANGED
            if cell.stars:
                expected = Verdict.GAINED if cell.delta > 0 else Verdict.LOST
            assert verdict_of(cell) == expected
    assert {v for v, n in findings(comparison)[0].subsets.items() if n} >= {Verdict.GAINED, Verdict.LOST}
    assert verdict_of(comparison.cell(0, "valse")) is None


def test_verdict_of_other_test_sets_is_not_tested() -> None:
    score = whole().cell(1, "aro").score
    assert verdict_of(Cell(score=score, delta=0.2, test=None)) is Verdict.UNTESTED


def test_at_chance_is_an_interval_that_contains_guessing() -> None:
    comparison = whole()
    found = [f for finding in findings(comparison) for f in finding.at_chance]
    assert found
    for model in range(3):
        for name in comparison.names:
            score = comparison.cell(model, name).score
            assert score is not None
            assert score.low is not None
            assert score.high is not None
            assert is_at_chance(comparison, score) == (score.low <= 0.5 <= score.high)
    assert chance_of(comparison, "aro") == pytest.approx(0.5)


def test_made_of_names_members_and_their_weights_where_these_differ() -> None:
    comparison = whole()
    assert made_of(comparison, "aro") == (
        "mean of vg_relation/relations, vg_attribution/pairs, coco_order/order and flickr30k_order/order"
    )
    weighted = made_of(comparison, "sugarcrepe_swap")
    assert weighted == "mean of sugarcrepe/swap_obj and sugarcrepe/swap_att"
    assert made_of(comparison, "valse_phenomena").startswith("weighted mean of ")
    assert made_of(comparison, "sugarcrepe/swap_obj") == ""


def test_pair_that_matters_is_the_largest_significant_change_of_the_first_average() -> None:
    comparison = whole()
    cells = {model: comparison.cell(model, comparison.averages[0]) for model in (1, 2)}
    best = max(cells, key=lambda model: (bool(cells[model].stars), abs(cells[model].delta or 0)))
    assert pair_that_matters(comparison) == best
    assert pair_that_matters(uneven()) == 1


# marked words


@given(st.text("ab .\n", max_size=40), st.text("ab .\n", max_size=40))
def test_marked_runs_joined_are_the_text_and_equal_texts_have_no_mark(text: str, other: str) -> None:
    assert "".join(run for run, _ in marked(text, other)) == text
    assert not any(marks for _, marks in marked(text, text))


@pytest.mark.parametrize(
    ("text", "other", "words"),
    [
        ("a red circle left of a blue square", "a red circle right of a blue square", ["left"]),
        ("A dog, and a cat.", "a dog and a horse", ["cat."]),
        ("the cup of tea on a table", "the glass of tea on a table", ["cup"]),
        ("a bird", "two men in a boat on the sea", []),  # nearly everything differs
    ],
)
def test_marked_words_are_those_that_differ(text: str, other: str, words: list[str]) -> None:
    assert [run for run, marks in marked(text, other) if marks] == words


# for papers and programs


def test_csv_has_a_line_for_each_score_and_model_with_the_tested_numbers() -> None:
    comparison = whole()
    rows = list(csv.DictReader(io.StringIO(csv_table(comparison))))
    assert [(r["score"], r["model"]) for r in rows] == [
        (name, label) for name in comparison.names for label in comparison.labels
    ]
    assert tuple(rows[0]) == COLUMNS
    for row in rows:
        cell = comparison.cell(comparison.labels.index(row["model"]), row["score"])
        assert cell.score is not None
        assert float(row["value"]) == cell.score.value
        assert row["stars"] == cell.stars
        assert (row["corrected_p"] == "") == (cell.corrected_p is None)


def test_csv_label_that_a_spreadsheet_would_compute_is_a_text() -> None:
    comparison = uneven()
    hostile = replace(comparison, labels=("=1+1", "-cmd"))
    models = {row["model"] for row in csv.DictReader(io.StringIO(csv_table(hostile)))}
    assert models == {"'=1+1", "'-cmd"}


def test_latex_rows_have_as_many_cells_as_columns_and_no_open_character() -> None:
    comparison = whole()
    labels = ("a_b & c", "50 % $x$ {", r"[\input{x} ~^#")
    source = latex_tables(replace(comparison, labels=labels))
    assert source.count("\\begin{tabular}") == 1 + len(comparison.groups)
    assert "\\input" not in source
    assert "{}[" in source  # else an argument of the line break before
    for tabular in re.findall(r"\\begin\{tabular\}\{(.*?)\}(.*?)\\end\{tabular\}", source, re.DOTALL):
        columns, body = tabular
        lines = [line for line in body.splitlines() if line.endswith("\\\\")]
        assert len(lines) > 2
        for line in lines:
            assert len(re.findall(r"(?<!\\)&", line)) == len(columns) - 1, line
            assert len(re.findall(r"(?<!\\)\{", line)) == len(re.findall(r"(?<!\\)\}", line)), line


# how the models were made


def test_provenance_shows_differing_settings_first_and_a_model_from_elsewhere_as_dashes(
    tmp_path: Path,
) -> None:
    comparison = whole()
    folders: list[str | None] = [None]
    for label, weight in (("one", 0.1), ("two", 10.0)):
        run = tmp_path / label
        (run / "export_student").mkdir(parents=True)
        config = {
            "seed": 3,
            "global_batch_size": 64,
            "output": str(run),
            "objective": {"name": "degla", "lambda_igc": weight},
            "optimizer": {"lr": 0.002},
        }
        (run / "config.json").write_text(json.dumps({"config": config, "identity": {"precision": "fp32"}}))
        (run / "result.json").write_text(json.dumps({"steps": 500, "mlflow_run_id": None}))
        (run / "progress.json").write_text(json.dumps({"samples_per_s": 100.0}))
        folders.append(str(run / "export_student"))
    models = [
        replace(summary, model={**summary.model, "folder": folder})
        for summary, folder in zip(comparison.summaries, folders, strict=True)
    ]
    made = provenance(replace(comparison, summaries=tuple(models)))
    assert [(row.name, row.values) for row in made.differing] == [
        ("objective.lambda_igc", ("–", "0.1", "10.0"))
    ]
    assert {row.name for row in made.equal} == {
        "global_batch_size", "objective.name", "optimizer.lr", "seed"
    }  # fmt: skip
    facts = {row.name: row.values for row in made.facts}
    assert facts["samples seen"] == ("–", "32,000", "32,000")
    assert facts["training time at that speed"][1] == "5.3 min"
    assert facts["precision"][2] == "fp32"
    assert provenance(comparison).facts == ()
