"""Ray Tune sweep over training settings: `tune(config)`, run by `jobs/tune.py`.

The starting model is evaluated first; its scores say which objectives there are. A sweep that was killed goes
on with the same command: finished trials are not repeated (`ledger.py`), and an interrupted one resumes from
its training's checkpoint. Budgets, objectives and the condition may change between two calls.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import yaml
from ray import tune as ray_tune

from degla_ray import ray_setup, resources, shared_paths, tracking
from degla_ray.config import TrainConfig, TuneConfig
from degla_ray.devices import resolve_precision
from degla_ray.errors import SettingError
from degla_ray.evaluation import paths
from degla_ray.evaluation.run import evaluate
from degla_ray.identity import canonical, fingerprint
from degla_ray.lease import Lease
from degla_ray.masking import masked
from degla_ray.model.source import check_model
from degla_ray.storage import Storage
from degla_ray.tracking_store import or_told, sqlite_path
from degla_ray.training import ray_train
from degla_ray.training.run_identity import absolute, run_identity
from degla_ray.tuning import search
from degla_ray.tuning.console import Progress, say, show
from degla_ray.tuning.ledger import TRIALS, Ledger, Trial
from degla_ray.tuning.page import interval_bounds, sweep_page
from degla_ray.tuning.rule import Rule, Verdict, verdict
from degla_ray.tuning.space import Space, check_space, load_space, with_settings
from degla_ray.tuning.trial import TRIAL_CPUS, DeglaTrial, Work, evaluation, training

IN_IDENTITY = ("suite", "prepared", "negatives", "split", "published", "benchmarks", "seeds")
"""Settings of a sweep, beside `train` and the space, that determine its trials' scores."""
RESULTS, RESULT, BEST, PAGE = "trials.json", "result.json", "best.yaml", "sweep.html"


def tune(config: TuneConfig) -> Verdict:
    """Run the sweep, and print its table and the best trial.

    Returns:
        The trials and the pick.

    Raises:
        SettingError: the space does not fit job `train`, a score is not measured, or the cluster has too few
            CPUs.
        DeglaError: no trial finished.
        LeaseHeld: another driver is running this sweep.
    """
    output = config.train.output
    if "://" in output and masked(output) != output:
        expected = "a URI without a key, because Ray Tune writes it to the store; AWS_ACCESS_KEY_ID and "
        raise SettingError("train.output", masked(output), f"{expected}AWS_SECRET_ACCESS_KEY hold it")
    config, space = prepared(config)
    tracking.require(config.train.tracking)
    sweep = Storage(sweep_folder(config, space))
    ray_setup.start(config.train.ray)
    resources.require(config.train.ray, needs(config))
    shared_paths.require_shared(config, _shared_by_trials(config.train))
    track = config.train.tracking
    tracked = tracking.running(
        track,
        f"sweep-{config.train.name}",
        sweep.uri.rpartition("-")[2],
        sweep.uri,
        params=canonical(config),
        tags={tracking.STAGE_TAG: "tune"},
    )
    with Lease(sweep), tracked as parent:
        base = f"{sweep.uri}/base"
        rule = Rule.of(config, evaluate(evaluation(config, config.train.model, base, "base")))
        work = Work(config=config, sweep=sweep, objectives=rule.objectives, parent=parent)
        trials = distinct(_run(work, space, rule))
        found = verdict(rule, trials, base)
        show(f"{len(trials)} trials of {config.train.name}", rule, found)
        importance = search.importance(space, trials, rule.objectives)
        page = sweep_page(config.train.name, rule, found, importance, interval_bounds(rule, trials))
        sweep.write_bytes(page.encode(), PAGE)
        _write(work, rule, found)
    return found


def prepared(config: TuneConfig) -> tuple[TuneConfig, Space]:
    """Return the config as trials use it, and the space; both are checked.

    Raises:
        SettingError: the space does not fit job `train`, the model has no weights, or a folder of
            `warm_start` is no sweep's.
    """
    space = load_space(config.space)
    train = with_settings(config.train, space.settings)
    check_model(train.model, "train.model", needs_weights=True)  # it is evaluated as the base
    check_space(space, train)
    for folder in config.warm_start:
        if not Storage(folder).names(TRIALS):
            raise SettingError("warm_start", folder, "the folder of a sweep, which has trials/")
    config = dataclasses.replace(paths.absolute(config), train=absolute(train))
    if config.search == "grid":
        space.combinations()
    return config, space


def sweep_folder(config: TuneConfig, space: Space) -> str:
    """Return the URI of a sweep's folder, named after everything that determines its trials' scores."""
    shared = {name: getattr(config, name) for name in IN_IDENTITY}
    precision = resolve_precision(config.compute, config.train.ray)
    identity = {"precision": precision, "train": run_identity(config.train), "space": space.text}
    return f"{config.train.output}/sweep-{config.train.name}-{fingerprint(canonical(shared) | identity)}"


def needs(config: TuneConfig) -> list[resources.Need]:
    """Return what all concurrent trials reserve: if they held every CPU, they would wait for ever to
    decode."""
    trial = [
        bundle
        for need in ray_train.needs(training(config, {}))
        for _ in range(need.count)
        for bundle in need.unit
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


def _run(work: Work, space: Space, rule: Rule) -> list[Trial]:
    """Run the trials that are left, and return all of the sweep."""
    config, ledger = work.config, Ledger(work.sweep)
    left = search.trials_left(config, space, ledger)
    if not left:
        return list(ledger.trials.values())
    searcher, informed = search.searcher(config, space, rule.objectives, ledger)
    progress = Progress(ledger, rule, left, config.max_concurrent_trials, config.train.name)
    budget = search.Budget(config, progress.seconds, progress.interrupt)
    _announce(work, rule, ledger, left, informed)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a failed trial is told in a line
    tuner = ray_tune.Tuner(
        # Passed as parameters, they stay in memory. Tune writes the class itself to disk, which would
        # include any password in its closure.
        ray_tune.with_resources(ray_tune.with_parameters(DeglaTrial, work=work), {"cpu": TRIAL_CPUS}),
        tune_config=ray_tune.TuneConfig(
            num_samples=left,
            search_alg=searcher,
            scheduler=search.asha(config, rule.objectives, ledger),
            max_concurrent_trials=config.max_concurrent_trials,
            trial_name_creator=progress.name,
            trial_dirname_creator=progress.name,
            reuse_actors=True,
        ),
        run_config=ray_tune.RunConfig(
            name="tune",
            storage_path=work.sweep.path(),
            # its own client gives up after six seconds
            storage_filesystem=None if work.sweep.is_local else work.sweep.filesystem,
            verbose=0,
            callbacks=[progress],
            stop=budget,
            # A trial's state is in its training's checkpoints.
            checkpoint_config=ray_tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )
    try:
        tuner.fit()
    except SystemExit:  # the job was told to end
        progress.interrupt()
        raise
    if budget.spent:
        say(f"{budget.spent} is spent; the same command with more goes on with the unfinished trials")
    return list(ledger.trials.values())


def _announce(work: Work, rule: Rule, ledger: Ledger, left: int, informed: int) -> None:
    """Print what is searched, by what, and what is known already."""
    config = work.config
    by = {"tpe": "Optuna's TPE", "nsga2": "Optuna's NSGA-II", "random": "random draws", "grid": "a grid"}
    stops = f", ASHA every {config.asha_every_steps} steps" if config.asha_every_steps else ""
    say(f"sweep {config.train.name}: {left} trials by {by[config.search]}{stops}; {work.sweep.uri}")
    say(f"rule: {rule.describe()}")
    if ledger.trials:
        say(f"goes on: {len(ledger.over)} trials are over; {len(ledger.unfinished)} unfinished come first")
    if config.warm_start:
        say(f"warm start: {informed} trials of {', '.join(config.warm_start)}")


def distinct(trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials without repetitions: finished trials of equal settings are the same runs."""
    first: dict[str, Trial] = {}
    for trial in trials:
        first.setdefault(fingerprint([trial.settings, trial.state]), trial)
    return list(first.values())


def _write(work: Work, rule: Rule, found: Verdict) -> None:
    """Write and track the trials, the pick and its config, and print where they are."""
    sweep, track, pick = work.sweep, work.config.train.tracking, found.best or found.closest
    assert pick is not None  # a sweep without any finished trial has no verdict
    sweep.write_json([dataclasses.asdict(trial) for trial in found.trials], RESULTS)
    result = {
        "rule": rule.describe(),
        "objectives": rule.objectives,
        "said": found.lines,
        "best": found.best and found.best.number,
        "base": {name: rule.base[name] for name in rule.names},
        "over_base": found.over_base,
        "over_runner_up": found.over_runner_up,
    }
    sweep.write_json(canonical(result), RESULT)
    files = [RESULTS, RESULT, PAGE]
    say(f"page:   {sweep.path(PAGE)}")
    if found.best is not None:
        text = best_yaml(with_settings(work.config.train, found.best.settings), found)
        sweep.write_bytes(text.encode(), BEST)
        files.append(BEST)
        say(f"config: {sweep.path(BEST)}")
        say(f"next:   degla train --config {sweep.path(BEST)}")
    scores = {f"best/{name}": pick.scores[name] for name in rule.names} if found.best else {}
    scores |= {f"base/{name}": rule.base[name] for name in rule.names}
    tags = {"best_run": pick.runs[0].run_id or "", "best_folder": pick.runs[0].folder} if found.best else {}
    with or_told("the best trial is"):
        tracking.log_metrics(track, work.parent, scores)
        tracking.set_tags(track, work.parent, tags | {"verdict": "; ".join(found.lines)})
        tracking.log_files(track, work.parent, sweep, files)


def best_yaml(config: TrainConfig, found: Verdict) -> str:
    """Return the settings of job `train` that differ from its defaults, as YAML; secrets are left out."""
    comments = "".join(f"# {line}\n" for line in found.lines)
    return comments + yaml.safe_dump(_changed(config), sort_keys=False, allow_unicode=True)


def _changed(config: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value, default = getattr(config, field.name), field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if value == default or (isinstance(value, str) and masked(value) != value):
            continue
        if dataclasses.is_dataclass(value):
            inner = _changed(value)
            if inner:
                settings[field.name] = inner
        else:
            settings[field.name] = canonical(value)
    return settings
