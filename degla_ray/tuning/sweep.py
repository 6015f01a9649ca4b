"""Ray Tune sweep over training settings: `tune(config)`, run by `jobs/tune.py`.

A trial is a Ray Train run followed by an evaluation. The trial's own actor takes only 0.01 CPU (Ray refuses
0), because drivers could otherwise hold every CPU and no trial would start. Trials are never stopped early,
because early stopping frees a trial's workers only if Ray's dashboard runs. Both stages find their finished
output by its fingerprint, so an interrupted sweep that is restarted repeats only the unfinished trial.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ray import tune as ray_tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.search.basic_variant import BasicVariantGenerator
from rich.console import Console
from rich.table import Table

from degla_ray import ray_setup, resources, shared_paths, tracking
from degla_ray.config import (
    EvaluateConfig,
    ModelConfig,
    ObjectiveConfig,
    TrackingConfig,
    TrainConfig,
    TuneConfig,
    evaluation_of,
)
from degla_ray.devices import resolve_precision
from degla_ray.errors import DataError, DeglaError, SettingError, one_line
from degla_ray.evaluation import paths
from degla_ray.evaluation.run import evaluate
from degla_ray.evaluation.summary import SCENES_ZERO_SHOT, ZERO_SHOT, Summary
from degla_ray.identity import canonical, fingerprint
from degla_ray.lease import Lease, LeaseHeld
from degla_ray.masking import masked
from degla_ray.model.source import check_model, find_model
from degla_ray.number_formats import percent
from degla_ray.storage import Storage
from degla_ray.tracking_store import or_told, sqlite_path
from degla_ray.training import ray_train
from degla_ray.training.run_identity import absolute, run_identity
from degla_ray.training.trainer import train

TRIAL_CPUS = 0.01
NOT_IN_IDENTITY = (
    *("train", "space", "max_concurrent_trials", "max_zero_shot_loss"),
    *("num_actors", "batch_size", "compute"),
)
"""Settings of a sweep that do not determine its trials' scores, or that count in another form."""
TURN_S = 2.0
"""Seconds between attempts of a trial that waits for an identical one."""
RESULTS = "trials.json"
ResultT = TypeVar("ResultT")

console = Console()


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Outcome of a trial.

    Attributes:
        settings: dotted train setting -> drawn value.
        composition: the score to raise (`Measures.raised`), 0 to 1; None if the trial failed.
        zero_shot: the score to keep (`Measures.kept`), 0 to 1; None if the trial failed, or none is kept.
        run_id: MLflow run; None if tracking is off.
        run_folder: folder of the training run.
        error: reason of the failure; None if the trial succeeded.
    """

    settings: Mapping[str, Any]
    composition: float | None = None
    zero_shot: float | None = None
    run_id: str | None = None
    run_folder: str | None = None
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Measures:
    """Names of the two scores by which trials are compared.

    Attributes:
        raised: the highest wins; see `Summary.headline`.
        kept: zero-shot accuracy, of which a trial may lose only a little; None if no test set measures it.
    """

    raised: str
    kept: str | None

    @classmethod
    def of(cls, summary: Summary) -> Measures:
        """Return the measures that an evaluation of the starting model allows."""
        metrics = summary.metrics()
        names = (name for name in (SCENES_ZERO_SHOT, ZERO_SHOT) if name in metrics)
        return cls(raised=summary.headline, kept=next(names, None))


def tune(config: TuneConfig) -> Trial:
    """Run the sweep, and print its table and the best trial.

    Returns:
        The best trial.

    Raises:
        SettingError: the space does not fit job `train`, or the cluster has too few CPUs.
        DeglaError: every trial failed.
        LeaseHeld: another driver is running this sweep.
    """
    space = checked_space(config)
    output = config.train.output
    if "://" in output and masked(output) != output:
        expected = "a URI without a key, because Ray Tune writes it to the store; AWS_ACCESS_KEY_ID and "
        raise SettingError("train.output", masked(output), f"{expected}AWS_SECRET_ACCESS_KEY hold it")
    tracking.require(config.train.tracking)
    config = _absolute(config)
    identity = fingerprint({**_identity(config), "space": Path(config.space).read_text(encoding="utf-8")})
    sweep = Storage(f"{config.train.output}/sweep-{config.train.name}-{identity}")
    ray_setup.start(config.train.ray)
    resources.require(config.train.ray, needs(config))
    shared_paths.require_shared(config, _shared_by_trials(config.train))
    track = config.train.tracking
    tracked = tracking.running(
        track,
        f"sweep-{config.train.name}",
        identity,
        sweep.uri,
        params=canonical(config),
        tags={"stage": "tune"},
    )
    with Lease(sweep), tracked as parent:
        base = evaluate(evaluation(config, config.train.model, f"{sweep.uri}/base", "base"))
        measures = Measures.of(base)
        trials = distinct(_run_trials(config, space, sweep, parent, measures))
        best = best_trial(trials, _accuracy(base, measures.kept), config.max_zero_shot_loss)
        _report(config, sweep, parent, base, trials, best)
    return best


def checked_space(config: TuneConfig) -> dict[str, Any]:
    """Return the search space after checking it, and the model that the trials start from.

    Raises:
        SettingError: the space does not fit job `train`, or the model has no weights.
    """
    space = load_space(config.space)
    check_model(config.train.model, "train.model", needs_weights=True)  # it is evaluated as the base
    with_settings(config.train, {name: _values(domain)[0] for name, domain in space.items()})
    for name, domain in space.items():
        for value in _values(domain):  # check every listed value, not only the first
            if name == "model.name":
                find_model(value)
            elif name == "objective.name":
                ObjectiveConfig(name=value)
    return space


def needs(config: TuneConfig) -> list[resources.Need]:
    """Return what all concurrent trials reserve: if they held every CPU, they would wait for ever to
    decode."""
    trial = [
        bundle for need in ray_train.needs(config.train) for _ in range(need.count) for bundle in need.unit
    ]
    at_once = config.max_concurrent_trials
    return [
        resources.Need(
            setting="max_concurrent_trials",
            value=at_once,
            unit=[{"CPU": TRIAL_CPUS}, *trial],
            count=at_once,
            wanted=at_once,
        )
    ]


def _shared_by_trials(config: TrainConfig) -> dict[str, str]:
    """Return the folders that trials on several nodes share: the output, and that of a store in a file."""
    store = sqlite_path(config.tracking.uri) if config.tracking.enabled else None
    folders = {"train.output": config.output}
    return folders if store is None else folders | {"train.tracking.uri": str(store.parent)}


def load_space(path: str) -> dict[str, Any]:
    """Return the search space that a file's `space()` defines: dotted train setting -> Ray Tune domain or
    value.

    Raises:
        SettingError: a missing file, or a file without that function.
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
    """Return a domain's listed values; for a continuous domain, one sample in a list."""
    if isinstance(domain, Mapping) and "grid_search" in domain:
        return list(domain["grid_search"])
    if hasattr(domain, "categories"):
        return list(domain.categories)
    return [domain.sample() if hasattr(domain, "sample") else domain]


def with_settings(config: TrainConfig, settings: Mapping[str, Any]) -> TrainConfig:
    """Return `config` with some settings replaced, named as on the command line of job `train`.

    Raises:
        SettingError: an unknown setting or an invalid value.
    """
    for name, value in settings.items():
        config = _replaced(config, name, name.split("."), value)
    return config


def _replaced(config: Any, name: str, path: Sequence[str], value: Any) -> Any:
    known = (
        {field.name for field in dataclasses.fields(config)} if dataclasses.is_dataclass(config) else set()
    )
    if path[0] not in known:
        raise SettingError("space", name, f"a setting of job train; {config!r:.60} has no such setting")
    inner = _replaced(getattr(config, path[0]), name, path[1:], value) if len(path) > 1 else value
    return dataclasses.replace(config, **{path[0]: inner})


def best_trial(trials: Sequence[Trial], base_zero_shot: float | None, max_loss: float) -> Trial:
    """Return the trial with the highest composition among those that lose at most `max_loss` of zero-shot
    accuracy.

    If there is none, return the trial with the highest zero-shot accuracy.

    Args:
        trials: all trials of the sweep.
        base_zero_shot: accuracy of the starting model, 0 to 1; None if it is not measured.
        max_loss: largest loss of zero-shot accuracy relative to `base_zero_shot`, 0 to 1.

    Raises:
        DeglaError: every trial failed.
    """
    scored = [t for t in trials if t.composition is not None]
    if not scored:
        reasons = sorted({str(trial.error) for trial in trials})
        raise DeglaError(f"none of {len(trials)} trials succeeded: {'; '.join(reasons)}")
    # Accuracies are fractions of a few hundred items; rounding must not reject a loss of exactly max_loss.
    least = -1.0 if base_zero_shot is None else base_zero_shot - max_loss - 1e-9
    keeping = [t for t in scored if (t.zero_shot or 0) >= least]
    if keeping:
        return max(keeping, key=lambda t: t.composition or 0)
    return max(scored, key=lambda t: t.zero_shot or 0)


def _run_trials(
    config: TuneConfig, space: Mapping[str, Any], sweep: Storage, parent: str | None, measures: Measures
) -> list[Trial]:
    def trial(settings: dict[str, Any], *, config: TuneConfig, sweep: Storage, measures: Measures) -> None:
        drawn = with_settings(config.train, settings)
        result = _in_turn(lambda: train(drawn, callbacks=[TuneReportCallback()], parent_run_id=parent))
        model = ModelConfig(name=result.export_student)
        folder = f"{sweep.uri}/{Path(result.run_folder).name}"
        scoring = evaluation(config, model, folder, Path(result.run_folder).name)
        summary = _in_turn(lambda: evaluate(scoring))
        scores = {
            "composition": _accuracy(summary, measures.raised),
            "zero_shot": _accuracy(summary, measures.kept),
        }
        track = config.train.tracking
        evaluated = {f"eval/{k}": v for k, v in summary.metrics().items()}
        with or_told(f"the scores of {result.run_folder} are"):
            tracking.log_metrics(track, result.mlflow_run_id, evaluated)
        ray_tune.report({**scores, "run_id": result.mlflow_run_id, "run_folder": result.run_folder})

    tuner = ray_tune.Tuner(
        # Passed as parameters, they stay in memory. Tune writes the function itself to disk, which would
        # include any password in its closure.
        ray_tune.with_resources(
            ray_tune.with_parameters(trial, config=config, sweep=sweep, measures=measures),
            {"cpu": TRIAL_CPUS},
        ),
        param_space=dict(space),
        tune_config=ray_tune.TuneConfig(
            num_samples=config.num_trials,
            # With a custom generator, Ray ignores TuneConfig's max_concurrent_trials.
            search_alg=BasicVariantGenerator(
                max_concurrent=config.max_concurrent_trials, random_state=config.seed
            ),
        ),
        run_config=ray_tune.RunConfig(
            name="tune",
            storage_path=sweep.path(),
            # its own client gives up after six seconds
            storage_filesystem=None if sweep.is_local else sweep.filesystem,
            verbose=0,
        ),
    )
    trials = []
    for result in tuner.fit():
        metrics, error = result.metrics or {}, result.error
        failed = "composition" not in metrics
        trials.append(
            Trial(
                settings=result.config or {},
                composition=metrics.get("composition"),
                zero_shot=metrics.get("zero_shot"),
                run_id=metrics.get("run_id"),
                run_folder=metrics.get("run_folder"),
                error=(one_line(error) if error else "no result") if failed else None,
            )
        )
    return trials


def _in_turn(stage: Callable[[], ResultT]) -> ResultT:
    """Run a stage once no other driver holds its folder; of two equal trials, one finds the output
    finished."""
    while True:
        try:
            return stage()
        except LeaseHeld:
            time.sleep(TURN_S)


def distinct(trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials without repetitions: trials with equal settings are the same run."""
    first: dict[str, Trial] = {}
    for trial in trials:
        first.setdefault(trial.run_folder or fingerprint(dict(trial.settings)), trial)
    return list(first.values())


def evaluation(config: TuneConfig, model: ModelConfig, output: str, label: str) -> EvaluateConfig:
    return evaluation_of(
        config,
        model=model,
        output=output,
        label=label,
        tracking=TrackingConfig(enabled=False),  # a trial's only MLflow run is that of its training
        ray=config.train.ray,
    )


def _accuracy(summary: Summary, name: str | None) -> float | None:
    """Return a score's value; None for None.

    Raises:
        DataError: the evaluation has no such score.
    """
    if name is None:
        return None
    score = summary.score(name)
    if score is None or score.value is None:
        raise DataError(f"evaluation of {summary.label}", f"no {name}", "the scores of the starting model")
    return score.value


def _identity(config: TuneConfig) -> dict[str, Any]:
    shared = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.name not in NOT_IN_IDENTITY
    }
    precision = resolve_precision(config.compute, config.train.ray)
    return {**canonical(shared), "precision": precision, "train": run_identity(config.train)}


def _absolute(config: TuneConfig) -> TuneConfig:
    """Return the config with local paths made absolute, because trials run in folders of their own."""
    return dataclasses.replace(paths.absolute(config), train=absolute(config.train))


def _report(
    config: TuneConfig,
    sweep: Storage,
    parent: str | None,
    base: Summary,
    trials: Sequence[Trial],
    best: Trial,
) -> None:
    measures = Measures.of(base)
    kept = [] if measures.kept is None else [measures.kept]
    names = sorted(trials[0].settings)
    table = Table(title=f"{len(trials)} trials of {config.train.name}", title_justify="left")
    for column in ("", *headings(names), measures.raised, *kept, "MLflow run"):
        table.add_column(column)
    table.add_row(
        "base",
        *("" for _ in names),
        *(_accuracy_text(_accuracy(base, name)) for name in (measures.raised, *kept)),
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
            _accuracy_text(trial.composition),
            *(_accuracy_text(trial.zero_shot) for _ in kept),
            trial.error or (trial.run_id or "")[:8],
        )
    console.print(table)
    rule = f"highest {measures.raised}"
    if kept:
        rule += (
            f" among trials that lose at most {100 * config.max_zero_shot_loss:g} points of {measures.kept}"
        )
        rule += f" against the base; otherwise highest {measures.kept}"
    console.print(f"best by: {rule}", highlight=False)
    for name in names:
        console.print(f"  --{name} {best.settings[name]}", highlight=False)
    best_scores = {f"best/{measures.raised}": best.composition or 0.0}
    best_scores |= {f"best/{name}": best.zero_shot or 0.0 for name in kept}
    base_scores = {f"base/{name}": _accuracy(base, name) or 0.0 for name in (measures.raised, *kept)}
    rows = [dataclasses.asdict(trial) for trial in trials]
    for row in rows:  # relative paths, so that a moved or copied folder of runs stays valid
        row["run_folder"] = row["run_folder"] and f"../{Path(row['run_folder']).name}"
    sweep.write_json(rows, RESULTS)
    track = config.train.tracking
    found = {"best_run": best.run_id or "", "best_folder": best.run_folder or ""}
    with or_told("the best trial is"):
        tracking.log_metrics(track, parent, best_scores | base_scores)
        tracking.set_tags(track, parent, found)
        tracking.log_files(track, parent, sweep, [RESULTS])


def headings(names: Sequence[str]) -> list[str]:
    """Return narrow column headings of dotted settings: the last word, or the whole name if that is not
    unique."""
    last = [name.rpartition(".")[2] for name in names]
    short = [word if last.count(word) == 1 else name for name, word in zip(names, last, strict=True)]
    return [word.replace(".", ".\n").replace("_", "_\n") for word in short]


def _accuracy_text(accuracy: float | None) -> str:
    return "failed" if accuracy is None else f"{percent(accuracy)} %"
