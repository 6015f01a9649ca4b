"""The sweep's pure parts: spaces, settings, the rule, the search, the ledger."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from degla_ray.cli import from_settings
from degla_ray.config import DataConfig, Keep, ModelConfig, ObjectiveConfig, TrainConfig, TuneConfig
from degla_ray.errors import DataError, DeglaError, SettingError
from degla_ray.evaluation.summary import Score, Summary
from degla_ray.storage import Storage
from degla_ray.tuning import search
from degla_ray.tuning.console import duration, headings
from degla_ray.tuning.ledger import Ledger, Run, Trial
from degla_ray.tuning.page import sweep_page
from degla_ray.tuning.rule import Rule, Verdict, front, ranking, verdict
from degla_ray.tuning.space import Space, check_space, load_space, with_settings
from degla_ray.tuning.sweep import best_yaml, distinct

SPACES = Path(__file__).parents[2] / "tune_spaces"
TRAIN = TrainConfig(
    name="x", data=DataConfig(prepared="p", negatives="n"), model=ModelConfig(name="scenes-base")
)
BOTH = ("composition", "zero_shot")


def _config(**settings: Any) -> TuneConfig:
    return TuneConfig(train=TRAIN, suite="s", **settings)


def _trial(number: int, composition: float, zero_shot: float, **rest: Any) -> Trial:
    scores = {"composition": composition, "zero_shot": zero_shot}
    return Trial(number=number, settings={}, **{"state": "finished", "scores": scores} | rest)


def _rule(keep: str | None = "zero_shot >= base - 2", objectives: tuple[str, ...] = BOTH) -> Rule:
    condition = None if keep is None else Keep.parse(keep)
    return Rule(objectives=objectives, keep=condition, base={"composition": 0.64, "zero_shot": 0.977})


def _first(rule: Rule, *trials: Trial) -> int:
    return ranking(rule, trials)[0].number


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


@pytest.mark.parametrize(
    ("text", "points", "below_base"),
    [
        ("a/b >= base - 2", 2, True),
        ("a/b>=base-0.5", 0.5, True),
        ("a/b >= base", 0, True),
        ("a/b >= 90", 90, False),
    ],
)
def test_keep_is_read_as_written(text: str, points: float, below_base: bool) -> None:
    assert Keep.parse(text) == Keep(score="a/b", points=points, below_base=below_base)
    assert Keep.parse(str(Keep.parse(text))) == Keep.parse(text)


@pytest.mark.parametrize("text", ["0.02", "a > 3", "a >= base 2", "a >= - 2", "a >= base -", ">= 3", "a >="])
def test_keep_of_another_form_is_refused_with_the_right_one(text: str) -> None:
    with pytest.raises(SettingError, match=r"keep: found .*SCORE >= base - POINTS"):
        _config(keep=text)


def test_pick_is_the_highest_among_those_that_keep() -> None:
    trials = [_trial(1, 0.70, 0.97), _trial(2, 0.80, 0.957), _trial(3, 0.95, 0.9569)]
    assert _first(_rule(), *trials) == 2
    assert _first(_rule("zero_shot >= base - 5"), *trials) == 3
    assert _first(_rule(None), *trials) == 3


def test_pick_with_a_tie_goes_to_the_other_objective_whatever_the_order() -> None:
    better, dominated = _trial(1, 0.634, 0.95), _trial(2, 0.591, 0.95)
    for objectives in (BOTH, BOTH[::-1], ("zero_shot",)):
        for trials in ((better, dominated), (dominated, better)):
            rule = dataclasses.replace(_rule(objectives=objectives), keep=Keep.parse("composition >= 0"))
            assert _first(rule, *trials) == 1


@pytest.mark.parametrize("keep", ["zero_shot >= base - 2", "zero_shot >= 99", None])
def test_pick_is_never_dominated(keep: str | None) -> None:
    grid = [_trial(10 * i + j, 0.5 + 0.05 * i, 0.8 + 0.05 * j) for i in range(4) for j in range(4)]
    for left_out in range(len(grid)):
        trials = grid[:left_out] + grid[left_out + 1 :]
        best = ranking(_rule(keep), trials)[0]
        assert not any(
            t.scores != best.scores and all(t.scores[n] >= best.scores[n] for n in BOTH) for t in trials
        )


def test_no_trial_keeps_the_condition_is_said_and_none_is_best() -> None:
    found = verdict(_rule(), [_trial(1, 0.591, 0.95), _trial(2, 0.634, 0.95)], "unread")
    assert found.best is None
    assert found.closest is not None
    assert found.closest.number == 2
    assert found.lines[-1] == "no trial keeps zero_shot >= base - 2 (95.7 %); closest: trial 2, 95.0 %"


def test_ranking_puts_stopped_and_failed_trials_after_finished_ones() -> None:
    failed = Trial(number=1, settings={}, state="failed", error="lost")
    stopped = _trial(2, 0.99, 0.99, state="stopped")
    assert [t.number for t in ranking(_rule(), [failed, stopped, _trial(3, 0.1, 0.1)])] == [3, 2, 1]


def test_verdict_without_a_finished_trial_names_the_reasons() -> None:
    failed = [Trial(number=n, settings={}, state="failed", error="no space left") for n in (1, 2)]
    with pytest.raises(DeglaError, match="none of 2 trials finished: no space left"):
        verdict(_rule(), failed, "unread")


def _summary(averages: dict[str, float], subsets: dict[str, float]) -> Summary:
    def scores(values: dict[str, float]) -> tuple[Score, ...]:
        return tuple(
            Score(name=name, value=value, low=None, high=None, n=9, missing=0)
            for name, value in values.items()
        )

    made = {"label": "base", "model": {}, "inputs": {}, "fingerprint": "f"}
    return Summary(averages=scores(averages), subsets=scores(subsets), **made)


@pytest.mark.parametrize(
    ("averages", "subsets", "objectives", "kept"),
    [
        ({"retrieval": 0.4, "composition": 0.5, "zero_shot": 0.9}, {}, BOTH, "zero_shot"),
        (
            {"sugarcrepe": 0.7, "zero_shot_eleven": 0.5},
            {"cifar10/top1": 0.6},
            ("sugarcrepe", "zero_shot_eleven"),
            "zero_shot_eleven",
        ),
        ({"sugarcrepe": 0.7}, {"sugarcrepe/swap_obj": 0.7}, ("sugarcrepe",), None),
        ({}, {"nlvr/pairs": 0.5, "cifar10/top1": 0.6}, ("nlvr/pairs",), None),
        ({"zero_shot": 0.9}, {}, ("zero_shot",), "zero_shot"),
    ],
)
def test_rule_follows_from_the_test_sets_unless_it_is_given(
    averages: dict[str, float], subsets: dict[str, float], objectives: tuple[str, ...], kept: str | None
) -> None:
    base = _summary(averages, subsets)
    rule = Rule.of(_config(), base)
    assert rule.objectives == objectives
    assert (rule.keep and rule.keep.score) == kept
    last = list(averages | subsets)[-1]
    given = Rule.of(_config(objectives=[last], keep=f"{last} >= 10"), base)
    assert given.names == (last,)


def test_rule_of_a_score_that_is_not_measured_is_refused() -> None:
    base = _summary({"composition": 0.5}, {"scenes/shape": 0.5})
    with pytest.raises(SettingError, match=r"objectives: found 'compositon'.*composition"):
        Rule.of(_config(objectives=["compositon"]), base)
    with pytest.raises(SettingError, match=r"keep: found 'zero_shot'"):
        Rule.of(_config(keep="zero_shot >= base"), base)
    with pytest.raises(DataError, match="no score"):
        Rule.of(_config(), _summary({}, {}))


@pytest.mark.parametrize("file", sorted(SPACES.glob("*.py")), ids=lambda file: file.stem)
def test_load_space_committed_ones_fit_job_train_and_optuna(file: Path, tmp_path: Path) -> None:
    space = load_space(str(file))
    train = with_settings(TRAIN, space.settings)
    check_space(space, train)
    how = "grid" if "--search grid" in file.read_text() else "tpe"
    config = _config(search=how, num_trials=5)
    ledger = Ledger(Storage(str(tmp_path)))
    drawn, _ = search.searcher(config, space, BOTH, ledger)
    points = [drawn.suggest(str(number)) for number in range(search.trials_left(config, space, ledger))]
    assert len({repr(point) for point in points}) == len(points)
    for point in points:
        assert with_settings(train, point).name == "x"


@pytest.mark.parametrize("how", ["random", "tpe", "nsga2"])
def test_search_goes_on_with_what_is_unfinished_and_does_not_draw_again(how: str, tmp_path: Path) -> None:
    space, ledger = load_space(str(SPACES / "loss_weights.py")), Ledger(Storage(str(tmp_path)))
    config = _config(num_trials=4, search=how)
    drawn, _ = search.searcher(config, space, BOTH, ledger)
    first = [drawn.suggest(str(number)) for number in range(2)]
    numbers = [ledger.begin(settings) for settings in first]
    done = dataclasses.replace(_trial(numbers[0], 0.6, 0.9), settings=first[0])
    ledger.write(done)
    again = Ledger(Storage(str(tmp_path)))
    assert again.trials[numbers[0]] == done
    drawn, _ = search.searcher(config, space, BOTH, again)
    resumed = [drawn.suggest(str(number)) for number in range(search.trials_left(config, space, again))]
    assert len(resumed) == 3
    assert resumed[0] == first[1]
    assert first[0] not in resumed
    assert again.begin(first[1]) == numbers[1]
    assert again.begin(first[0]) not in numbers


def test_search_by_grid_tries_what_is_left_of_it(tmp_path: Path) -> None:
    space, ledger = load_space(str(SPACES / "ablation.py")), Ledger(Storage(str(tmp_path)))
    config = _config(search="grid", num_trials=1)
    assert search.trials_left(config, space, ledger) == 12
    point = {"objective.name": "clip", "seed": 1}
    ledger.write(dataclasses.replace(_trial(1, 0.6, 0.9), settings=point))
    assert point not in search.points_left(config, space, ledger)
    assert search.trials_left(config, space, ledger) == 11
    continuous = load_space(str(SPACES / "loss_weights.py"))
    with pytest.raises(SettingError, match="lambda_igc"):
        continuous.combinations()


def test_search_is_informed_by_an_earlier_sweep_of_the_same_space(tmp_path: Path) -> None:
    space, earlier = load_space(str(SPACES / "loss_weights.py")), Ledger(Storage(str(tmp_path / "a")))
    inside = {"objective.lambda_igc": 1.0, "objective.lambda_tgc": 0.1, "objective.lambda_distill": 1.0}
    for number, settings in enumerate([inside, inside | {"objective.lambda_tgc": 9.0}, {"seed": 1}]):
        earlier.write(dataclasses.replace(_trial(number, 0.6, 0.9), settings=settings))
    config = _config(warm_start=[str(tmp_path / "a")])
    _, informed = search.searcher(config, space, BOTH, Ledger(Storage(str(tmp_path / "b"))))
    assert informed == 1  # one point is outside the space, one is of another


def test_asha_stops_the_worse_half_also_of_trials_before_a_restart(tmp_path: Path) -> None:
    ledger = Ledger(Storage(str(tmp_path)))
    for number, score in enumerate([0.5, 0.6, 0.7]):
        ledger.write(_trial(number, score, 0.9, curve=[(10, {"composition": score})]))
    scheduler = search.asha(_config(asha_every_steps=10), BOTH, ledger)
    assert scheduler is not None
    decided = []
    for score in (0.55, 0.65):
        new: Any = SimpleNamespace(trial_id=str(score))
        scheduler.on_trial_add(None, new)
        decided.append(scheduler.on_trial_result(None, new, {"step": 10, "objective_1": score}))
    assert decided == ["STOP", "CONTINUE"]
    assert search.asha(_config(), BOTH, ledger) is None


def test_ledger_moved_with_its_runs_stays_valid(tmp_path: Path) -> None:
    runs = [Run(folder=str(tmp_path / "a/run"), evaluation=str(tmp_path / "a/sweep/run"))]
    Ledger(Storage(str(tmp_path / "a/sweep"))).write(_trial(1, 0.6, 0.9, runs=runs))
    (tmp_path / "a").rename(tmp_path / "b")
    [run] = Ledger(Storage(str(tmp_path / "b/sweep"))).trials[1].runs
    assert run == Run(folder=str(tmp_path / "b/run"), evaluation=str(tmp_path / "b/sweep/run"))


def test_best_yaml_is_the_config_of_the_pick_without_secrets() -> None:
    train = with_settings(TRAIN, {"objective.lambda_igc": 0.5, "tracking.uri": "https://me:secret@host"})
    found = verdict(_rule(), [_trial(1, 0.5, 0.5)], "unread")
    text = best_yaml(train, found)
    assert "secret" not in text
    read = from_settings(TrainConfig, yaml.safe_load(text), "best")
    assert read == with_settings(train, {"tracking.uri": TRAIN.tracking.uri})


def _many() -> list[Trial]:
    """Twelve trials whose composition follows from one of two settings."""
    return [
        Trial(
            number=n,
            settings={"objective.lambda_igc": 0.2 * 1.4**n, "data.kinds": [None, ["reshuffle"]][n % 2]},
            state="stopped" if n == 11 else "finished",
            scores={"composition": 0.5 + 0.01 * n, "zero_shot": 0.99 - 0.001 * (n % 5)},
            curve=[(10, {"composition": 0.5})],
        )
        for n in range(1, 13)
    ]


def _space(folder: Path) -> Space:
    file = folder / "space.py"
    domains = (
        '{"objective.lambda_igc": tune.loguniform(0.1, 20), "data.kinds": tune.choice([None, ["reshuffle"]])}'
    )
    file.write_text(f"from ray import tune\n\ndef space():\n    return {domains}, {{}}\n")
    return load_space(str(file))


def test_importance_is_of_the_setting_that_matters(tmp_path: Path) -> None:
    trials = _many()
    shares = search.importance(_space(tmp_path), trials, BOTH)
    assert shares["composition"]["objective.lambda_igc"] > 0.9
    assert search.importance(_space(tmp_path), trials[:5], BOTH) == {}


def test_page_shows_every_trial_and_the_front(tmp_path: Path) -> None:
    rule = _rule()
    trials = _many()
    found = Verdict(trials=tuple(trials), best=trials[9], closest=None, lines=("<b>best</b>",))
    bounds = {t.number: (0.4, 0.8) for t in trials if t.state == "finished"}
    shares = search.importance(_space(tmp_path), trials, BOTH)
    page = sweep_page("x", rule, found, shares, bounds)
    assert "&lt;b&gt;best&lt;/b&gt;" in page
    rows = re.findall(r'<th scope="row">(base|trial \d+)</th>', page)
    assert rows == ["base", *(t.name for t in trials)]
    headings = re.findall(r"<figcaption[^>]*>([^<]+)<", page)
    assert headings == [
        *("Front", "Settings and scores", "What composition depends on", "What zero_shot depends on"),
        *("composition over lambda_igc", "composition over kinds", "composition during training"),
    ]
    assert front(rule, trials) == {10, 12}


def test_distinct_trials_of_equal_settings_are_one() -> None:
    one, other = _trial(1, 0.6, 0.9), _trial(2, 0.7, 0.9)
    same = [dataclasses.replace(t, settings={"seed": s}) for t, s in ((one, 1), (other, 2), (one, 1))]
    assert distinct(same) == same[:2]


def test_load_space_of_another_form_is_refused(tmp_path: Path) -> None:
    files = {
        "empty": ("spaces = {}", "function `space`"),
        "dict": ("def space():\n    return {}", "two dicts"),
        "nothing": ("def space():\n    return {}, {}", "at least one domain"),
        "value": ("def space():\n    return {'seed': 3}, {}", "seed"),
    }
    paths = {tmp_path / "absent.py": "absent.py", tmp_path: "space"}
    for name, (text, named) in files.items():
        file = tmp_path / f"{name}.py"
        file.write_text(text)
        paths[file] = named
    for path, named in paths.items():
        with pytest.raises(SettingError) as caught:
            load_space(str(path))
        assert named in str(caught.value)


def test_headings_tell_settings_apart() -> None:
    assert headings(["objective.lambda_igc", "optimizer.lr"]) == ["lambda_igc", "lr"]
    assert headings(["a.scale", "b.scale", "c"]) == ["a.scale", "b.scale", "c"]


def test_duration_is_short() -> None:
    assert [duration(s) for s in (40, 720, 4200)] == ["40 s", "12 min", "1 h 10 min"]
