"""The driver of a training run: plan it, run it on Ray Train, publish its result.

A run's folder is `<output>/<name>-<fingerprint>`. `train` with the same settings resumes a run however it
ended, and returns at once if it is finished (`run_identity.py` says which settings count).
"""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import ray

import degla_ray
from degla_ray import ray_setup, resources, shared_paths, tracking
from degla_ray.commit import commit
from degla_ray.config import TrainConfig
from degla_ray.errors import SettingError
from degla_ray.identity import canonical, fingerprint
from degla_ray.lease import Lease
from degla_ray.loader import tokens
from degla_ray.loader.order import BatchOrder
from degla_ray.loader.samples import Samples, load_samples
from degla_ray.model.source import check_model, starts_random
from degla_ray.stage import read_complete
from degla_ray.storage import Storage
from degla_ray.tracking_store import or_told
from degla_ray.training import checkpoint_folders, ray_train, sanity, trace, validation
from degla_ray.training.job import (
    CONFIG,
    ERROR,
    EXPORT_STUDENT,
    EXPORT_TEACHER,
    PROGRESS,
    RECOVERY,
    TRACE,
    Job,
    schedule,
)
from degla_ray.training.profiler import file_name
from degla_ray.training.progress import Monitor
from degla_ray.training.run_identity import absolute, run_folder, run_identity, run_name, with_precision

RESULT = "result.json"
_LIBRARIES = ("torch", "open_clip_torch", "ray", "numpy", "pillow", "pyarrow")


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """The outputs of a finished run.

    Attributes:
        run_folder: URI of the run's folder.
        export_student: URI of a folder that `degla_ray.model.load` opens.
        export_teacher: the same for the EMA teacher; None if there is no EMA teacher.
        steps: steps of the run.
        mlflow_run_id: None if tracking is off.
        trace_path: URI of the loss trace, JSON lines.
    """

    run_folder: str
    export_student: str
    export_teacher: str | None
    steps: int
    mlflow_run_id: str | None
    trace_path: str


def train(config: TrainConfig, *, parent_run_id: str | None = None) -> TrainResult:
    """Train or resume a run and return its result; a finished run with the same settings is not repeated.

    Args:
        config: the run's config.
        parent_run_id: MLflow run of the chain or sweep that this run belongs to.

    Raises:
        SettingError: a setting cannot work, the run exists although `resume` is `never`, there are too few
            CPUs, or the loss is not finite.
        DataError: an input cannot be used.
        LeaseHeld: another driver trains in this folder.
    """
    check_model(config.model)
    config = with_precision(absolute(config))
    identity = run_identity(config)
    name, run = run_name(config, identity), Storage(run_folder(config, identity))
    if config.resume == "never" and run.exists(CONFIG):
        raise SettingError("resume", "never", f"auto, or another name: {run.uri} exists")
    if not run.exists(RESULT):
        with Lease(run):
            if not run.exists(RESULT):  # the previous owner may just have finished it
                plan = _plan(config, identity, run, name)
                return _publish(plan, _run(plan, parent_run_id))
    print(f"{name}: already finished")
    return read_result(run)


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """Everything that is decided before anything is trained.

    Attributes:
        config: the run's config, with absolute paths.
        identity: what determines the result, as JSON.
        run: the run's folder.
        name: the name of that folder.
        samples: samples of the split, with all their negatives.
        order: order of the global batches.
        total_steps: steps of the whole run.
        resumed_step: step of the checkpoint from which the run resumes; 0 at the start.
    """

    config: TrainConfig
    identity: dict[str, Any]
    run: Storage
    name: str
    samples: Samples
    order: BatchOrder
    total_steps: int
    resumed_step: int

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.identity)

    @property
    def start(self) -> str:
        """The weights that training starts from."""
        model = self.config.model
        return "random" if starts_random(model) else model.pretrained or model.name


def _plan(config: TrainConfig, identity: dict[str, Any], run: Storage, name: str) -> RunPlan:
    """Check settings and inputs, prepare the run's folder, and print what will be done."""
    tracking.require(config.tracking)
    validation.check(config)
    samples = load_samples(config.data, with_negatives=config.objective.num_negatives > 0)
    order, total_steps = schedule(config, len(samples), samples.part_rows)
    if config.profile.range and config.profile.range[1] > total_steps:
        raise SettingError(
            "profile.steps", config.profile.steps, f"steps of the run, which has {total_steps}"
        )
    ray_setup.start(config.ray)
    resources.require(config.ray, ray_train.needs(config))
    driver_only = ["data.negatives", "data.neighbours"]
    shared_paths.require_shared(config, {"output": config.output}, driver_only=driver_only)
    described = {"fingerprint": fingerprint(identity), "identity": identity, "config": canonical(config)}
    run.write_json(described | {"commit": commit()}, CONFIG)
    plan = RunPlan(
        config=config,
        identity=identity,
        run=run,
        name=name,
        samples=samples,
        order=order,
        total_steps=total_steps,
        resumed_step=_tidy(run, name),
    )
    _announce(plan)
    return plan


def _tidy(run: Storage, name: str) -> int:
    """Remove what a killed run left; return the step of the latest checkpoint, 0 if there is none."""
    step = checkpoint_folders.tidy(run)
    for left in (ERROR, PROGRESS, RECOVERY):
        run.delete_file(left)
    for lost in validation.tidy(run, set(checkpoint_folders.complete(run))):
        print(f"{name}: the validation of step {lost} is lost, because its checkpoint no longer exists")
    return step or 0


def _announce(plan: RunPlan) -> None:
    config = plan.config
    resumes = f"; resumes after step {plan.resumed_step}" if plan.resumed_step else ""
    print(
        f"{plan.name}: {plan.total_steps} steps of {config.global_batch_size}, "
        f"{len(plan.samples)} captions{resumes}"
    )
    print(f"{plan.name}: {ray_train.describe(config)}")
    if steps := config.profile.range:
        over = steps[0] <= plan.resumed_step
        where = "no profile: they are over" if over else f"their profile: {plan.run.path(file_name(steps))}"
        print(f"{plan.name}: steps {steps[0]} to {steps[1]}: {where}")
    if plan.start == "random":
        print(f"{plan.name}: starts from random weights")
    _, prepared = read_complete(config.data.prepared, "prepare")
    for warning in (
        sanity.long_warmup(config, plan.total_steps),
        sanity.scenes_model_on_other_data(config.model, prepared),
    ):
        if warning:
            print(f"{plan.name}: {warning}")


def _run(plan: RunPlan, parent_run_id: str | None) -> str | None:
    """Train to the end, with progress on the console and in MLflow; return the MLflow run."""
    config, run = plan.config, plan.run
    samples, texts = tokens.tokenise_all(run, plan.samples, config.model)
    print(f"{plan.name}: {texts.describe()}")
    with _tracked(plan, parent_run_id) as run_id:
        _log_inputs(plan, run_id, texts)
        with Monitor(run, plan.name, plan.total_steps, config.tracking, run_id, plan.resumed_step):
            ray_train.fit(config, plan.name, _job(plan, samples), run)
        last = checkpoint_folders.folder_name(plan.total_steps)
        trace.finish(run, run.read_bytes(last, TRACE))
        # Only the small files: weights stay in the run's folder, which a tag of the MLflow run names.
        with or_told(f"{plan.name}: {CONFIG} and {TRACE} are"):
            tracking.log_files(config.tracking, run_id, run, (CONFIG, TRACE))
    return run_id


def _job(plan: RunPlan, samples: Samples) -> Job:
    return Job(
        config=plan.config,
        fingerprint=plan.fingerprint,
        run_folder=plan.run.uri,
        samples=ray.put(samples),
        order=plan.order,
        total_steps=plan.total_steps,
        versions={"degla_ray": degla_ray.__version__} | {lib: version(lib) for lib in _LIBRARIES},
        candidates=sanity.Candidates.of(samples, plan.config),
        short_side=samples.short_side,
        data=_data(plan),
    )


def _data(plan: RunPlan) -> str:
    """Return one line on the data, for the cards of the exported models."""
    _, prepared = read_complete(plan.config.data.prepared, "prepare")
    source, data = prepared["made_from"]["identity"].get("source"), plan.identity["data"]
    line = f"{len(plan.samples):,} captions of source {source}, fingerprint {data['prepared']}"
    return f"{line}, negatives {data['negatives']}" if "negatives" in data else line


def _tracked(plan: RunPlan, parent_run_id: str | None) -> contextlib.AbstractContextManager[str | None]:
    """Return the context in which the MLflow run is open."""
    return tracking.running(
        plan.config.tracking,
        plan.name,
        plan.fingerprint,
        plan.run.uri,
        params={**canonical(plan.config), "total_steps": plan.total_steps},
        tags={
            tracking.STAGE_TAG: "train",
            "degla.weights": plan.start,
            "degla.hardware": ray_train.describe(plan.config),
        },
        parent_run_id=parent_run_id,
    )


def _log_inputs(plan: RunPlan, run_id: str | None, texts: tokens.Counts) -> None:
    settings, data = plan.config.tracking, plan.config.data
    counts = {f"tokens/{name}": value for name, value in dataclasses.asdict(texts).items()}
    tracking.log_metrics(settings, run_id, counts)
    for name in ("prepared", "negatives"):
        if digest := plan.identity["data"].get(name):
            tracking.log_dataset(settings, run_id, name, digest, str(getattr(data, name)), "training")


def _publish(plan: RunPlan, run_id: str | None) -> TrainResult:
    """Write the run's result, which marks it as finished, and return it."""
    if not plan.run.exists(EXPORT_STUDENT):
        found = f"{plan.run.uri} without {EXPORT_STUDENT}, which the first worker wrote elsewhere"
        raise SettingError("output", found, shared_paths.shared())
    plan.run.write_json(
        {
            "export_student": EXPORT_STUDENT,
            "export_teacher": EXPORT_TEACHER if plan.run.exists(EXPORT_TEACHER) else None,
            "steps": plan.total_steps,
            "mlflow_run_id": run_id,
            "trace_path": TRACE,
        },
        RESULT,
    )
    return read_result(plan.run)


def read_result(run: Storage) -> TrainResult:
    """Return the result of a finished run. Its file holds relative paths, so the folder may be moved."""
    found = run.read_json(RESULT)
    for name in ("export_student", "export_teacher", "trace_path"):
        found[name] = found[name] and f"{run.uri}/{found[name]}"
    return TrainResult(run_folder=run.uri, **found)
