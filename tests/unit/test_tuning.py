"""The sweep's pure parts: spaces, settings, the rule."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from degla_ray.config import DataConfig, ModelConfig, ObjectiveConfig, TrainConfig
from degla_ray.errors import DataError, DeglaError, SettingError
from degla_ray.evaluation.summary import Score, Summary
from degla_ray.tuning.sweep import (
    Measures,
    Trial,
    best_trial,
    distinct,
    headings,
    load_space,
    with_settings,
)

TRAIN = TrainConfig(
    name="x", data=DataConfig(prepared="p", negatives="n"), model=ModelConfig(name="scenes-base")
)


def _trial(composition: float | None, zero_shot: float | None, **rest: object) -> Trial:
    return Trial(settings={}, composition=composition, zero_shot=zero_shot, **rest)


def test_with_settings_dotted_names_replace_only_those() -> None:
    changed = with_settings(TRAIN, {"objective.lambda_igc": 0.5, "seed": 7})
    assert changed.objective == ObjectiveConfig(lambda_igc=0.5)
    assert changed.seed == 7
    assert with_settings(changed, {"objective.lambda_igc": 0.1, "seed": 42}) == TRAIN


@pytest.mark.parametrize(
    "name", ["objective.lambda_xyz", "objektive.lambda_igc", "seed.deeper", "data.prepared.x"]
)
def test_with_settings_unknown_name_is_refused(name: str) -> None:
    with pytest.raises(SettingError) as caught:
        with_settings(TRAIN, {name: 1})
    assert name in str(caught.value)


def test_with_settings_impossible_value_is_refused() -> None:
    with pytest.raises(SettingError, match="negatives_per_caption"):
        with_settings(TRAIN, {"objective.negatives_per_caption": -1})


def test_best_trial_highest_composition_among_those_that_keep_zero_shot() -> None:
    trials = [_trial(0.70, 0.90), _trial(0.80, 0.88), _trial(0.95, 0.879), _trial(None, None, error="lost")]
    assert best_trial(trials, base_zero_shot=0.90, max_loss=0.02) is trials[1]
    assert best_trial(trials, base_zero_shot=0.90, max_loss=0.05) is trials[2]


def test_best_trial_none_keeps_zero_shot_the_highest_zero_shot() -> None:
    trials = [_trial(0.70, 0.60), _trial(0.60, 0.70), _trial(0.95, 0.50)]
    assert best_trial(trials, base_zero_shot=0.90, max_loss=0.02) is trials[1]


def test_best_trial_without_zero_shot_is_the_highest_of_all() -> None:
    trials = [_trial(0.70, None), _trial(0.80, None), _trial(None, None, error="lost")]
    assert best_trial(trials, base_zero_shot=None, max_loss=0.02) is trials[1]


def _summary(averages: dict[str, float], subsets: dict[str, float]) -> Summary:
    def scores(values: dict[str, float]) -> tuple[Score, ...]:
        return tuple(
            Score(name=name, value=value, low=None, high=None, n=9, missing=0)
            for name, value in values.items()
        )

    made = {"label": "base", "model": {}, "inputs": {}, "fingerprint": "f"}
    return Summary(averages=scores(averages), subsets=scores(subsets), **made)


@pytest.mark.parametrize(
    ("averages", "subsets", "raised", "kept"),
    [
        ({"retrieval": 0.4, "composition": 0.5, "zero_shot": 0.9}, {}, "composition", "zero_shot"),
        (
            {"sugarcrepe": 0.7, "zero_shot_eleven": 0.5},
            {"cifar10/top1": 0.6},
            "sugarcrepe",
            "zero_shot_eleven",
        ),
        ({"sugarcrepe": 0.7}, {"sugarcrepe/swap_obj": 0.7}, "sugarcrepe", None),
        ({}, {"nlvr/pairs": 0.5, "cifar10/top1": 0.6}, "nlvr/pairs", None),
    ],
)
def test_measures_follow_from_the_test_sets(
    averages: dict[str, float], subsets: dict[str, float], raised: str, kept: str | None
) -> None:
    assert Measures.of(_summary(averages, subsets)) == Measures(raised=raised, kept=kept)


def test_measures_without_any_score_is_refused() -> None:
    with pytest.raises(DataError, match="no score"):
        Measures.of(_summary({}, {}))


def test_best_trial_no_result_names_the_reasons() -> None:
    with pytest.raises(DeglaError, match="none of 2 trials succeeded: no space left"):
        best_trial([_trial(None, None, error="no space left")] * 2, 0.9, 0.02)


def test_distinct_trials_of_one_run_are_one() -> None:
    one, other = _trial(0.6, 0.9), _trial(0.7, 0.9)
    same = [replace(trial, run_folder=f) for trial, f in ((one, "a"), (other, "b"), (one, "a"))]
    assert distinct(same) == same[:2]


def test_load_space_committed_ones_fit_job_train() -> None:
    spaces = sorted((Path(__file__).parents[2] / "tune_spaces").glob("*.py"))
    assert spaces
    for file in spaces:
        space = load_space(str(file))
        drawn = {name: domain.sample() for name, domain in space.items()}
        changed = with_settings(TRAIN, drawn)
        assert changed != TRAIN
        assert all(domain.is_valid(drawn[name]) for name, domain in space.items())


def test_load_space_missing_file_or_function_is_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty.py"
    empty.write_text("spaces = {}\n")
    for path, named in (
        (tmp_path / "absent.py", "absent.py"),
        (tmp_path, "space"),
        (empty, "function `space`"),
    ):
        with pytest.raises(SettingError) as caught:
            load_space(str(path))
        assert named in str(caught.value)


def test_headings_are_narrow_and_tell_settings_apart():
    assert headings(["objective.lambda_igc", "optimizer.lr"]) == ["lambda_\nigc", "lr"]
    assert headings(["a.scale", "b.scale", "c"]) == ["a.\nscale", "b.\nscale", "c"]
