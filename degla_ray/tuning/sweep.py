"""Ray Tune over training: `tune(config)`, run by `jobs/tune.py`.

A trial is a Ray Train run followed by an evaluation; the trial's own actor takes 0.01 CPU (Ray refuses 0),
or drivers would hold every CPU and no trial would ever start. Trials end only when they are done: early
stopping frees a trial's workers only beside Ray's dashboard. Both stages find their finished output again
by its fingerprint, so a sweep that was killed and is started again redoes only the trial it was in.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray import tune as ray_tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.search.basic_variant import BasicVariantGenerator
from rich.console import Console
from rich.table import Table

from degla_ray import ray_setup, tracking
from degla_ray.config import (
    EvaluateConfig,
    ModelConfig,
    ObjectiveConfig,
    TrackingConfig,
    TrainConfig,
    TuneConfig,
)
from degla_ray.errors import DataError, DeglaError, SettingError
from degla_ray.evaluation.run import evaluate
from degla_ray.evaluation.summary import Summary
from degla_ray.identity import canonical, fingerprint
from degla_ray.lease import Lease, LeaseHeld
from degla_ray.model.source import check_model, find_model
from degla_ray.storage import Storage
from degla_ray.training.trainer import absolute, cpus, run_identity, train

TRIAL_CPUS = 0.01
TURN_S = 2.0
"""Seconds between two looks of a trial that waits for an equal one."""
COMPOSITION, ZERO_SHOT = "composition", "zero_shot"
RESULTS = "trials.json"
ResultT = TypeVar("ResultT")

console = Console()


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A trial's outcome.

    Attributes:
        settings: dotted train setting -> value drawn.
        composition: accuracy, 0 to 1; none where the trial failed.
        zero_shot: accuracy, 0 to 1; none where the trial failed.
        run_id: of MLflow; none where tracking is off.
        run_folder: of the training run.
        error: why it failed.
    """

    settings: Mapping[str, Any]
    composition: float | None = None
    zero_shot: float | None = None
    run_id: str | None = None
    run_folder: str | None = None
    error: str | None = None


def tune(config: TuneConfig) -> Trial:
    """Runs the sweep, prints its table and the best trial; returns that.

    Raises:
        SettingError: the space does not fit job `train`, or too few CPUs.
        DeglaError: no trial came to a result.
        LeaseHeld: another driver runs this sweep.
    """
    space = load_space(config.space)
    check_model(config.train.model, "train.model", needs_weights=True)  # it is evaluated as the base
    with_settings(config.train, {name: _values(domain)[0] for name, domain in space.items()})
    for name, domain in space.items():
        for value in _values(domain):  # of a list every value, not only the first
            if name == "model.name":
                find_model(value)
            elif name == "objective.name":
                ObjectiveConfig(name=value)
    config = _absolute(config)
    mark = fingerprint({**_identity(config), "space": Path(config.space).read_text(encoding="utf-8")})
    sweep = Storage(f"{config.train.output}/sweep-{config.train.name}-{mark}")
    ray_setup.start(config.train.ray)
    _require_cpus(config)
    track = config.train.tracking
    tracked = tracking.running(
        track, f"sweep-{config.train.name}", mark, sweep.uri, params=canonical(config), tags={"stage": "tune"}
    )
    with Lease(sweep), tracked as parent:
        base = evaluate(_evaluation(config, config.train.model, f"{sweep.uri}/base", "base"))
        trials = distinct(_run_trials(config, space, sweep, parent))
        best = best_trial(trials, _accuracy(base, ZERO_SHOT), config.max_zero_shot_loss)
        _report(config, sweep, parent, base, trials, best)
    return best


def load_space(path: str) -> dict[str, Any]:
    """The search space that a file's `space()` returns: dotted train setting -> Ray Tune domain or value.

    Raises:
        SettingError: no such file, or no such function in it.
    """
    spec = importlib.util.spec_from_file_location("search_space", path)
    if spec is None or spec.loader is None or not Path(path).is_file():
        raise SettingError("space", path, "a Python file such as tune_spaces/loss_weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, "space", None)):
        raise SettingError("space", path, "a file that defines the function `space`")
    return dict(module.space())


def _values(domain: Any) -> list[Any]:
    """A domain's values where they are listed, else one of them, whatever way Ray Tune lets it be written."""
    if isinstance(domain, Mapping) and "grid_search" in domain:
        return list(domain["grid_search"])
    if hasattr(domain, "categories"):
        return list(domain.categories)
    return [domain.sample() if hasattr(domain, "sample") else domain]


def with_settings(config: TrainConfig, settings: Mapping[str, Any]) -> TrainConfig:
    """`config` with some of its settings replaced, named as on the command line of job `train`.

    Raises:
        SettingError: there is no such setting, or its value cannot work.
    """
    for name, value in settings.items():
        config = _replaced(config, name, name.split("."), value)
    return config


def _replaced(config: Any, name: str, path: Sequence[str], value: Any) -> Any:
    known = (
        {field.name for field in dataclasses.fields(config)} if dataclasses.is_dataclass(config) else set()
    )
    if path[0] not in known:
        raise SettingError("space", name, f"settings of job train; below {config!r:.60} there is none such")
    inner = _replaced(getattr(config, path[0]), name, path[1:], value) if len(path) > 1 else value
    return dataclasses.replace(config, **{path[0]: inner})


def best_trial(trials: Sequence[Trial], base_zero_shot: float, max_loss: float) -> Trial:
    """The rule: highest composition among the trials that keep zero-shot, else the one that keeps most of it.

    Args:
        trials: all of the sweep.
        base_zero_shot: accuracy of the model that they started from, 0 to 1.
        max_loss: zero-shot accuracy that a trial may lose against it, 0 to 1.

    Raises:
        DeglaError: none has a result.
    """
    scored = [t for t in trials if t.composition is not None and t.zero_shot is not None]
    if not scored:
        reasons = sorted({str(trial.error) for trial in trials})
        raise DeglaError(f"none of {len(trials)} trials came to a result: {'; '.join(reasons)}")
    # Accuracies are fractions of a few hundred items: a loss of exactly max_loss must not fail by rounding.
    keeping = [t for t in scored if base_zero_shot - (t.zero_shot or 0) <= max_loss + 1e-9]
    if keeping:
        return max(keeping, key=lambda t: t.composition or 0)
    return max(scored, key=lambda t: t.zero_shot or 0)


def _run_trials(
    config: TuneConfig, space: Mapping[str, Any], sweep: Storage, parent: str | None
) -> list[Trial]:
    def trial(settings: dict[str, Any], *, config: TuneConfig, sweep: Storage) -> None:
        drawn = with_settings(config.train, settings)
        result = _in_turn(lambda: train(drawn, callbacks=[TuneReportCallback()], parent_run_id=parent))
        model = ModelConfig(name=result.export_student)
        folder = f"{sweep.uri}/{Path(result.run_folder).name}"
        evaluation = _evaluation(config, model, folder, Path(result.run_folder).name)
        summary = _in_turn(lambda: evaluate(evaluation))
        scores = {COMPOSITION: _accuracy(summary, COMPOSITION), ZERO_SHOT: _accuracy(summary, ZERO_SHOT)}
        track = config.train.tracking
        tracking.log_metrics(
            track, result.mlflow_run_id, {f"eval/{k}": v for k, v in summary.metrics().items()}
        )
        ray_tune.report({**scores, "run_id": result.mlflow_run_id, "run_folder": result.run_folder})

    tuner = ray_tune.Tuner(
        # As parameters they stay in memory: Tune writes the function to disk, with any password in it.
        ray_tune.with_resources(
            ray_tune.with_parameters(trial, config=config, sweep=sweep), {"cpu": TRIAL_CPUS}
        ),
        param_space=dict(space),
        tune_config=ray_tune.TuneConfig(
            num_samples=config.num_trials,
            # Given beside a generator of its own, Ray ignores TuneConfig's max_concurrent_trials.
            search_alg=BasicVariantGenerator(
                max_concurrent=config.max_concurrent_trials, random_state=config.seed
            ),
        ),
        run_config=ray_tune.RunConfig(name="tune", storage_path=sweep.uri, verbose=0),
    )
    trials = []
    for result in tuner.fit():
        metrics, error = result.metrics or {}, result.error
        failed = COMPOSITION not in metrics
        trials.append(
            Trial(
                settings=result.config or {},
                composition=metrics.get(COMPOSITION),
                zero_shot=metrics.get(ZERO_SHOT),
                run_id=metrics.get("run_id"),
                run_folder=metrics.get("run_folder"),
                error=_reason(error) if failed else None,
            )
        )
    return trials


def _in_turn(stage: Callable[[], ResultT]) -> ResultT:
    """Runs a stage once no other driver writes its folder: of two equal trials, one finds it finished."""
    while True:
        try:
            return stage()
        except LeaseHeld:
            time.sleep(TURN_S)


def distinct(trials: Sequence[Trial]) -> list[Trial]:
    """The trials without those that drew the settings of an earlier one, and so are the same run."""
    first: dict[str, Trial] = {}
    for trial in trials:
        first.setdefault(trial.run_folder or fingerprint(dict(trial.settings)), trial)
    return list(first.values())


def _evaluation(config: TuneConfig, model: ModelConfig, output: str, label: str) -> EvaluateConfig:
    return EvaluateConfig(
        model=model,
        output=output,
        suite=config.suite,
        label=label,
        num_actors=config.evaluation_actors,
        tracking=TrackingConfig(enabled=False),  # a trial is one MLflow run: that of its training
        ray=config.train.ray,
    )


def _accuracy(summary: Summary, name: str) -> float:
    score = summary.score(name)
    if score is None or score.value is None:
        raise DataError("suite", f"no {name}", "test sets with compositions and classes, as scenes' own")
    return score.value


def _reason(error: Exception | None) -> str:
    """The last line that says something: Tune hands over a worker's whole traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if "degla_ray.errors." in line]
    return (named or lines or ["no result"])[-1]


def _identity(config: TuneConfig) -> dict[str, Any]:
    shared = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.name
        not in ("train", "space", "max_concurrent_trials", "max_zero_shot_loss", "evaluation_actors")
    }
    return {**canonical(shared), "train": run_identity(config.train)}


def _absolute(config: TuneConfig) -> TuneConfig:
    """Trials run in folders of their own: local paths are made absolute."""
    return dataclasses.replace(config, train=absolute(config.train), suite=Storage(config.suite).uri)


def _require_cpus(config: TuneConfig) -> None:
    """Trials that hold every CPU between them would each wait for ever for the decoders' share."""
    each = cpus(config.train) + TRIAL_CPUS
    there = ray.cluster_resources().get("CPU", 0.0)
    if config.max_concurrent_trials * each > there:
        raise SettingError(
            "max_concurrent_trials",
            config.max_concurrent_trials,
            f"at most {int(there / each)}: each takes {each:g} of the cluster's {there:g} CPUs",
        )


def _report(
    config: TuneConfig,
    sweep: Storage,
    parent: str | None,
    base: Summary,
    trials: Sequence[Trial],
    best: Trial,
) -> None:
    names = sorted(trials[0].settings)
    table = Table(title=f"{len(trials)} trials of {config.train.name}", title_justify="left")
    for column in ("", *headings(names), COMPOSITION, ZERO_SHOT, "MLflow run"):
        table.add_column(column)
    table.add_row(
        "base",
        *("" for _ in names),
        _percent(_accuracy(base, COMPOSITION)),
        _percent(_accuracy(base, ZERO_SHOT)),
    )
    for trial in trials:
        drawn = [
            f"{trial.settings[n]:.4g}" if isinstance(trial.settings[n], float) else str(trial.settings[n])
            for n in names
        ]
        mark = "best" if trial is best else ""
        table.add_row(
            mark,
            *drawn,
            _percent(trial.composition),
            _percent(trial.zero_shot),
            trial.error or (trial.run_id or "")[:8],
        )
    console.print(table)
    rule = f"highest composition of those that lose at most {100 * config.max_zero_shot_loss:g} points of"
    rule += " zero-shot against the base; if none does, highest zero-shot"
    console.print(f"best by: {rule}", highlight=False)
    for name in names:
        console.print(f"  --{name} {best.settings[name]}", highlight=False)
    track = config.train.tracking
    best_scores = {"best/composition": best.composition or 0.0, "best/zero_shot": best.zero_shot or 0.0}
    base_scores = {f"base/{name}": _accuracy(base, name) for name in (COMPOSITION, ZERO_SHOT)}
    tracking.log_metrics(track, parent, best_scores | base_scores)
    tracking.set_tags(track, parent, {"best_run": best.run_id or "", "best_folder": best.run_folder or ""})
    rows = [dataclasses.asdict(trial) for trial in trials]
    for row in rows:  # a moved or copied folder of runs names its own
        row["run_folder"] = row["run_folder"] and f"../{Path(row['run_folder']).name}"
    sweep.write_json(rows, RESULTS)
    tracking.log_files(track, parent, sweep, [RESULTS])


def headings(names: Sequence[str]) -> list[str]:
    """Of columns of dotted settings: the last word, the whole name where that is not unique; narrow."""
    last = [name.rpartition(".")[2] for name in names]
    short = [word if last.count(word) == 1 else name for name, word in zip(names, last, strict=True)]
    return [word.replace(".", ".\n").replace("_", "_\n") for word in short]


def _percent(accuracy: float | None) -> str:
    return "failed" if accuracy is None else f"{100 * accuracy:.1f} %"
