"""What draws the trials, what stops them, and what ends the sweep: Optuna through Ray Tune, ASHA, budgets.

Optuna also makes random draws and walks grids, so that every search knows the trials of an earlier call and
goes on where it ended. The study is in memory: it is made of the trials' files at each start.
"""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import optuna
from ray.tune import Stopper
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from degla_ray.config import TuneConfig
from degla_ray.errors import SettingError
from degla_ray.identity import canonical
from degla_ray.storage import Storage
from degla_ray.tuning.ledger import Ledger, Trial
from degla_ray.tuning.rule import objective_keys
from degla_ray.tuning.space import Space

STUDY = "sweep"
REDUCTION = 2
"""Each of ASHA's rungs lets one trial in REDUCTION go on, and is REDUCTION times as far as the one before."""
IMPORTANCE_TRIALS = 8
"""Finished trials without which a share of variance says nothing."""
RUNGS = 12
"""Rungs that ASHA may use: the last is far beyond any run's end."""


def points_left(config: TuneConfig, space: Space, ledger: Ledger) -> list[dict[str, Any]]:
    """Return the settings that are to be tried first: of unfinished trials, then what is left of a grid."""
    first = [dict(trial.settings) for trial in ledger.unfinished]
    if config.search != "grid":
        return first
    known = [canonical(trial.settings) for trial in ledger.trials.values()]
    return first + [point for point in space.combinations() if canonical(point) not in known]


def trials_left(config: TuneConfig, space: Space, ledger: Ledger) -> int:
    """Return the number of trials that this call runs, unless a budget ends it."""
    if config.search == "grid":
        return len(points_left(config, space, ledger))
    return max(0, config.num_trials - len(ledger.over))


def searcher(
    config: TuneConfig, space: Space, objectives: Sequence[str], ledger: Ledger
) -> tuple[OptunaSearch, int]:
    """Return what draws the trials, and how many trials of earlier sweeps inform it.

    Raises:
        SettingError: a domain that Optuna does not know.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    distributions = _distributions(space)
    storage = optuna.storages.InMemoryStorage()
    modes = ["max"] * len(objectives)
    study = optuna.create_study(storage=storage, study_name=STUDY, directions=["maximize"] * len(objectives))
    for trial in ledger.over:
        _tell(study, trial, objectives, distributions)
    earlier = [t for folder in config.warm_start for t in Ledger(Storage(folder)).over]
    told = sum(_tell(study, trial, objectives, distributions) for trial in earlier)
    for point in points_left(config, space, ledger):
        study.enqueue_trial(point)
    return (
        OptunaSearch(
            space=distributions,
            metric=objective_keys(objectives),
            mode=modes,
            sampler=_sampler(config, len(ledger.trials)),
            storage=storage,
            study_name=STUDY,
        ),
        told,
    )


def _sampler(config: TuneConfig, drawn: int) -> optuna.samplers.BaseSampler:
    """Return Optuna's sampler; after `drawn` trials, a restart must not draw the same ones again."""
    seed = config.seed + 1000 * drawn
    if config.search == "tpe":
        return optuna.samplers.TPESampler(seed=seed)
    if config.search == "nsga2":
        population = max(4, min(50, config.num_trials // 4))  # at least four generations
        return optuna.samplers.NSGAIISampler(population_size=population, seed=seed)
    return optuna.samplers.RandomSampler(seed=seed)  # a grid's points are all queued


def _distributions(space: Space) -> dict[str, Any]:
    warnings.filterwarnings("ignore", message="Choices for a categorical distribution")  # lists work too
    try:
        found: dict[str, Any] = OptunaSearch.convert_search_space(dict(space.domains))
    except ValueError as error:
        expected = f"tune.uniform, loguniform, quniform, randint, choice or grid_search ({error})"
        raise SettingError("space", "a domain that Optuna does not know", expected) from error
    return found


def _tell(
    study: optuna.Study, trial: Trial, objectives: Sequence[str], distributions: dict[str, Any]
) -> bool:
    """Add a trial to the study; return False if it is of another space or lacks an objective."""
    values = [trial.scores[name] for name in objectives if name in trial.scores]
    if trial.settings.keys() != distributions.keys() or len(values) < len(objectives):
        return False
    with contextlib.suppress(ValueError):  # a value outside the space
        params = dict(trial.settings)
        study.add_trial(optuna.create_trial(params=params, distributions=distributions, values=values))
        return True
    return False


def importance(
    space: Space, trials: Sequence[Trial], objectives: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Return objective -> setting -> share of the objective's variance that it explains (Optuna's fANOVA).

    Empty with fewer than IMPORTANCE_TRIALS finished trials, or if none of them differ.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    distributions = _distributions(space)
    study = optuna.create_study(directions=["maximize"] * len(objectives))
    told = sum(_tell(study, t, objectives, distributions) for t in trials if t.state == "finished")
    shares: dict[str, dict[str, float]] = {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    for number, name in enumerate(objectives if told >= IMPORTANCE_TRIALS else ()):
        with contextlib.suppress(RuntimeError):  # every trial has the same score
            found = optuna.importance.get_param_importances(
                study, evaluator=evaluator, target=partial(_value, number)
            )
            shares[name] = {setting: float(share) for setting, share in found.items()}
    return shares


def _value(number: int, trial: optuna.trial.FrozenTrial) -> float:
    return float(trial.values[number])


def asha(config: TuneConfig, objectives: Sequence[str], ledger: Ledger) -> ASHAScheduler | None:
    """Return what stops trials early, with the validations of earlier trials in it; None if nothing does."""
    every = config.asha_every_steps
    if every is None:
        return None
    metric = objective_keys(objectives)[0]
    scheduler = ASHAScheduler(
        time_attr="step",
        metric=metric,
        mode="max",
        grace_period=every,
        max_t=every * REDUCTION**RUNGS,
        reduction_factor=REDUCTION,
        stop_last_trials=False,
    )
    for trial in ledger.over:
        known: Any = SimpleNamespace(trial_id=trial.name)
        scheduler.on_trial_add(None, known)
        for step, scores in trial.curve:
            scheduler.on_trial_result(None, known, {"step": step, metric: scores[objectives[0]]})
    return scheduler


class Budget(Stopper):
    """Ends a sweep after `max_hours` of this call, or `max_gpu_hours` of all its trials.

    Tune writes it to disk, so it keeps the limits and not the config, which may contain a password.

    Args:
        config: of the sweep.
        trial_seconds: returns the seconds of all trials so far.
        interrupt: called once, when the budget is spent; ends the running trials.
    """

    def __init__(
        self, config: TuneConfig, trial_seconds: Callable[[], float], interrupt: Callable[[], None]
    ) -> None:
        self._hours, self._gpu_hours = config.max_hours, config.max_gpu_hours
        self._gpus = config.train.worker_counts[-1]
        self._trial_seconds, self._interrupt = trial_seconds, interrupt
        self._started = time.monotonic()
        self.spent = ""
        """The setting whose budget is spent; empty if none is."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Budget:
        """Return the object itself: Tune copies its settings, but there is one budget."""
        return self

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        if not self.spent and (spent := self._look()):
            self._interrupt()
            self.spent = spent
        return bool(self.spent)

    def _look(self) -> str:
        if self._hours is not None and time.monotonic() - self._started >= 3600 * self._hours:
            return f"max_hours {self._hours:g}"
        if self._gpu_hours is not None and self._trial_seconds() * self._gpus >= 3600 * self._gpu_hours:
            return f"max_gpu_hours {self._gpu_hours:g}"
        return ""
