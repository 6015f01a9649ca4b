"""MLflow tracking: runs are identified by fingerprint and folder, never by a global "active run".

A run carries the tags `degla.fingerprint` and `degla.folder`. A restarted job or a resumed training with the
same fingerprint and folder gets the same run, so a crash leaves no duplicate, and two folders with the same
settings have two runs. If tracking is off, `find_or_create_run` returns None, and every other function does
nothing when given that None. Importing MLflow takes about 2 s, so it is imported on first use.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import os
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit, urlunsplit

import degla_ray
from degla_ray.config import TrackingConfig
from degla_ray.errors import DataError, SettingError
from degla_ray.identity import canonical, flatten
from degla_ray.masking import masked, masked_values
from degla_ray.storage import Storage

if TYPE_CHECKING:
    from mlflow import MlflowClient

FINGERPRINT_TAG = "degla.fingerprint"
FOLDER_TAG = "degla.folder"  # URI of the folder that the run writes
STAGE_TAG = "degla.stage"
PARENT_TAG = "mlflow.parentRunId"
NOTE_TAG = "mlflow.note.content"  # Markdown above the run
TABLES_TAG = "mlflow.loggedArtifacts"  # where its UI looks for tables
METRICS_PER_CALL = 1000  # MLflow's own limits (mlflow.utils.validation)
ENTRIES_PER_CALL = 100
PARAM_LENGTH = 6000
TAG_LENGTH = 8000
NAME_LENGTH = 250


def resolved(config: TrackingConfig) -> TrackingConfig:
    """Return the config with an absolute SQLite path, for a process with another working directory."""
    path = sqlite_path(config.uri)
    return config if path is None else dataclasses.replace(config, uri=f"sqlite:///{path}")


def find_or_create_run(
    config: TrackingConfig,
    name: str,
    fingerprint: str,
    folder: str,
    params: Mapping[str, Any],
    tags: Mapping[str, str] | None = None,
    parent_run_id: str | None = None,
) -> str | None:
    """Resume the run of this fingerprint and folder, or create it, and return its id.

    Args:
        config: where to log.
        name: name of a new run, shown in MLflow.
        fingerprint: fingerprint of the settings; with `folder` and `parent_run_id` it identifies the run.
        folder: URI of the folder that the run writes.
        params: any nested config; logged under dotted names, truncated to MLflow's limits.
        tags: further tags; also set on an existing run.
        parent_run_id: run that this run belongs to, such as a sweep's.

    Returns:
        The run id; None if tracking is off.

    Raises:
        SettingError: the store cannot be opened, or the experiment was deleted.
    """
    if not config.enabled:
        return None
    client = _client(config)
    experiment_id = _experiment(client, config)
    parent = {PARENT_TAG: parent_run_id} if parent_run_id else {}
    query = " and ".join(
        f"tags.`{key}` = '{value}'" for key, value in {FINGERPRINT_TAG: fingerprint, **parent}.items()
    )
    place = _cut(masked(folder), TAG_LENGTH)
    # the oldest, so that two processes that raced agree on one run
    candidates = client.search_runs([experiment_id], query, order_by=["attributes.start_time ASC"])
    found = [
        run
        for run in candidates
        if (run.data.tags.get(FOLDER_TAG), run.data.tags.get(PARENT_TAG)) == (place, parent_run_id)
    ]
    if found:
        run = found[0]
        client.update_run(run.info.run_id, status="RUNNING")
    else:
        own = {FINGERPRINT_TAG: fingerprint, FOLDER_TAG: place, **parent, **_origin()}
        run = client.create_run(experiment_id, run_name=masked(name), tags=own)
    run_id: str = run.info.run_id
    _log_params(client, run_id, params, known=set(run.data.params))
    set_tags(config, run_id, tags or {})
    return run_id


@contextlib.contextmanager
def running(
    config: TrackingConfig,
    name: str,
    fingerprint: str,
    folder: str,
    params: Mapping[str, Any],
    tags: Mapping[str, str] | None = None,
    parent_run_id: str | None = None,
) -> Iterator[str | None]:
    """Find or create a run, and end it as FINISHED, KILLED (if the job was stopped) or FAILED.

    If it does not finish, child runs that are still running end as KILLED too: a sweep's trials are killed
    without a chance to end their own runs.
    """
    run_id = find_or_create_run(config, name, fingerprint, folder, params, tags, parent_run_id)
    try:
        yield run_id
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt | SystemExit)
        finish(config, run_id, "KILLED" if stopped else "FAILED")
        for child in _running_below(config, run_id):
            finish(config, child, "KILLED")
        raise
    finish(config, run_id)


def log_metrics(
    config: TrackingConfig, run_id: str | None, metrics: Mapping[str, float], step: int | None = None
) -> None:
    """Log one value per name, except NaN and infinities, which no store plots.

    Args:
        config: where to log.
        run_id: the run.
        metrics: name -> value.
        step: step of a curve; None for a single result, which is not logged again if unchanged.
    """
    if run_id is None:
        return
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    client = _client(config)
    known = client.get_run(run_id).data.metrics if step is None else {}
    batch = [
        Metric(legal, float(value), now, step or 0)
        for legal, value in ((_legal_name(name), value) for name, value in metrics.items())
        if math.isfinite(value) and known.get(legal) != float(value)
    ]
    for start in range(0, len(batch), METRICS_PER_CALL):
        client.log_batch(run_id, metrics=batch[start : start + METRICS_PER_CALL])


def last_step(config: TrackingConfig, run_id: str | None, metric: str) -> int:
    """Return the last step at which a run has a value of `metric`; 0 if it has none."""
    if run_id is None:
        return 0
    return max((m.step for m in _client(config).get_metric_history(run_id, metric)), default=0)


def set_tags(config: TrackingConfig, run_id: str | None, tags: Mapping[str, str]) -> None:
    """Set tags of a run, overwriting existing values."""
    if run_id is None:
        return
    from mlflow.entities import RunTag

    batch = [RunTag(_legal_name(key), _cut(masked(value), TAG_LENGTH)) for key, value in tags.items()]
    client = _client(config)
    for start in range(0, len(batch), ENTRIES_PER_CALL):
        client.log_batch(run_id, tags=batch[start : start + ENTRIES_PER_CALL])


def log_dataset(
    config: TrackingConfig, run_id: str | None, name: str, digest: str, source: str, context: str
) -> None:
    """Record a dataset as an input of a run, so that MLflow shows which runs made and used it.

    Args:
        config: where to log.
        run_id: the run.
        name: name shown in MLflow.
        digest: fingerprint of the folder.
        source: URI of the folder.
        context: `training`, or `output` of the run that made it.
    """
    if run_id is None:
        return
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(
        name=name,
        digest=digest,
        source_type="folder",
        source=json.dumps({"uri": masked(source)}),
        schema=None,
    )
    tags = [InputTag("mlflow.data.context", context)]
    _client(config).log_inputs(run_id, [DatasetInput(dataset=dataset, tags=tags)])


def log_files(
    config: TrackingConfig,
    run_id: str | None,
    storage: Storage,
    names: Iterable[str],
    artifact_path: str | None = None,
) -> None:
    """Upload files of a folder on any filesystem, under their names in it."""
    if run_id is None:
        return
    with tempfile.TemporaryDirectory(prefix="degla-") as temporary:
        for name in names:
            copy = Path(temporary, name)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(storage.read_bytes(name))
        _client(config).log_artifacts(run_id, temporary, artifact_path)


def log_table(
    config: TrackingConfig, run_id: str | None, name: str, columns: Mapping[str, Sequence[object]]
) -> None:
    """Upload columns of equal length as `NAME.json`, a table that MLflow's UI shows and `load_table` reads.

    Replaces a table of that name, unlike MLflow's own function, which appends.
    """
    if run_id is None:
        return
    rows = [list(row) for row in zip(*columns.values(), strict=True)]
    content = json.dumps(masked_values({"columns": list(columns), "data": rows}))
    _client(config).log_text(run_id, content, f"{name}.json")
    known = json.loads(run_tags(config, run_id).get(TABLES_TAG, "[]"))
    entry = {"path": f"{name}.json", "type": "table"}
    set_tags(config, run_id, {TABLES_TAG: json.dumps([*(e for e in known if e != entry), entry])})


def finish(config: TrackingConfig, run_id: str | None, status: str = "FINISHED") -> None:
    """End a run with a status: `FINISHED`, `FAILED` or `KILLED`."""
    if run_id is not None:
        _client(config).set_terminated(run_id, status)


def run_of_folder(config: TrackingConfig, folder: str, stage: str) -> str | None:
    """Return the newest run of a stage that wrote `folder`, a URI; None if tracking is off or has none."""
    if not config.enabled:
        return None
    client = _client(config)
    place = _cut(masked(folder), TAG_LENGTH)
    quote = '"' if "'" in place else "'"
    found = client.search_runs(
        [_experiment(client, config)],
        f"tags.`{FOLDER_TAG}` = {quote}{place}{quote} and tags.`{STAGE_TAG}` = '{stage}'",
        order_by=["attributes.start_time DESC"],
        max_results=1,
    )
    return str(found[0].info.run_id) if found else None


def run_tags(config: TrackingConfig, run_id: str) -> dict[str, str]:
    """Return all tags of a run.

    Raises:
        DataError: the store has no such run.
    """
    from mlflow.exceptions import MlflowException

    try:
        return dict(_client(config).get_run(run_id).data.tags)
    except MlflowException as error:
        raise DataError(config.uri, f"no run {run_id!r}", "the id of a run in this MLflow store") from error


def download_artifacts(config: TrackingConfig, run_id: str, path: str, target: str | Path) -> Path:
    """Download artifact folder `path` of a run into `target` and return the local folder."""
    Path(target).mkdir(parents=True, exist_ok=True)
    return Path(_client(config).download_artifacts(run_id, path, str(target)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunEntry:
    """A run as `degla runs` lists it; `metrics` has the latest value of each."""

    name: str
    stage: str
    status: str
    started: datetime
    folder: str
    metrics: Mapping[str, float]


def newest(config: TrackingConfig, stages: Sequence[str], limit: int) -> list[RunEntry]:
    """Return the newest runs of some stages, newest first.

    Raises:
        SettingError: there is no such store or experiment; none is created.
    """
    path = sqlite_path(config.uri)
    store = None if path is not None and not path.exists() else _client(config)
    experiment = store and store.get_experiment_by_name(config.experiment)
    if store is None or experiment is None:
        found = f"{config.uri}, experiment {config.experiment}"
        raise SettingError("tracking", found, "an MLflow store with this experiment")
    runs = []
    for stage in stages:  # MLflow's queries have no "or"
        query = f"tags.`{STAGE_TAG}` = '{stage}'"
        runs += store.search_runs(
            [experiment.experiment_id], query, order_by=["attributes.start_time DESC"], max_results=limit
        )
    runs.sort(key=lambda run: run.info.start_time, reverse=True)
    return [
        RunEntry(
            name=run.info.run_name,
            stage=run.data.tags[STAGE_TAG],
            status=run.info.status,
            started=datetime.fromtimestamp(run.info.start_time / 1000),
            folder=run.data.tags.get(FOLDER_TAG, ""),
            metrics=run.data.metrics,
        )
        for run in runs[:limit]
    ]


def page(config: TrackingConfig) -> list[str]:
    """Return the lines that say how to see the runs: the program to start unless a server runs, and a page.

    The page is the experiment's table of runs: MLflow's start page shows traces, of which there are none.
    """
    if not config.enabled:
        return []
    number = _experiment(_client(config), config)
    view = f"#/experiments/{number}?workflowType=machine_learning"
    uri = masked(config.uri)
    if uri.startswith("http"):
        return [f"runs:   {uri.rstrip('/')}/{view}"]
    program = Path(sys.executable).with_name("mlflow")
    shown = program.relative_to(Path.cwd()) if program.is_relative_to(Path.cwd()) else program
    return [
        f"runs:   {shown} ui --backend-store-uri {shlex.quote(uri)}",
        f"        then open http://127.0.0.1:5000/{view}",
    ]


def _running_below(config: TrackingConfig, run_id: str | None) -> list[str]:
    """Return the ids of a run's child runs that are still running."""
    if run_id is None:
        return []
    client = _client(config)
    query = f"tags.`{PARENT_TAG}` = '{run_id}' and attributes.status = 'RUNNING'"
    found = client.search_runs([client.get_run(run_id).info.experiment_id], query)
    return [run.info.run_id for run in found]


def _origin() -> dict[str, str]:
    """Return the tags from which MLflow shows user, program and git commit, and this package's version."""
    from mlflow.tracking.context.registry import resolve_tags

    return {
        **{key: masked(value) for key, value in resolve_tags().items()},
        "degla.version": degla_ray.__version__,
    }


def client(config: TrackingConfig) -> MlflowClient:
    """Return MLflow's client of the store.

    Raises:
        SettingError: the store cannot be opened.
    """
    return _client(config)


def _client(config: TrackingConfig) -> MlflowClient:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read by MLflow at import
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    for noisy in ("mlflow", "alembic"):  # a new sqlite store logs a line for each of its ~60 migrations
        logging.getLogger(noisy).setLevel(logging.WARNING)
    path = sqlite_path(config.uri)
    try:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        return MlflowClient(tracking_uri=_without_password(resolved(config).uri))
    except (OSError, MlflowException) as error:
        first_line = str(error).strip().splitlines()[0]
        raise SettingError(
            "tracking.uri", config.uri, f"an MLflow store that opens ({first_line})"
        ) from error


def _without_password(uri: str) -> str:
    """Return a server's address without user and password, which MLflow then takes from the environment.

    MLflow repeats the address in its errors, which a Ray worker logs.
    """
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or parts.username is None:
        return uri
    os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(parts.username)
    os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(parts.password or "")
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _experiment(client: MlflowClient, config: TrackingConfig) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(config.experiment)
    if found is None:
        path = sqlite_path(config.uri)
        location = None if path is None else (path.parent / "mlartifacts").as_uri()
        try:
            return str(client.create_experiment(config.experiment, artifact_location=location))
        except MlflowException:  # another process made it in between
            found = client.get_experiment_by_name(config.experiment)
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise SettingError("tracking.experiment", config.experiment, "an experiment that was not deleted")
    return str(found.experiment_id)


def _log_params(client: MlflowClient, run_id: str, params: Mapping[str, Any], known: set[str]) -> None:
    """Log the params that are not `known`: MLflow params cannot be overwritten."""
    from mlflow.entities import Param

    flat = {_legal_name(k): _cut(v, PARAM_LENGTH) for k, v in flatten(canonical(params)).items()}
    batch = [Param(key, value) for key, value in flat.items() if key not in known]
    for start in range(0, len(batch), ENTRIES_PER_CALL):
        client.log_batch(run_id, params=batch[start : start + ENTRIES_PER_CALL])


def _legal_name(name: str) -> str:
    """Return `name` in MLflow's alphabet; long names keep their distinguishing end."""
    cleaned = re.sub(r"[^\w\-. /:]", "_", name)
    cleaned = "/".join(part for part in cleaned.split("/") if part not in ("", ".", ".."))
    return cleaned[-NAME_LENGTH:].lstrip("/") or "_"


def _cut(value: object, length: int) -> str:
    text = str(value)
    return text if len(text) <= length else text[: length - 1] + "…"


def sqlite_path(uri: str) -> Path | None:
    """Return the absolute file path of a SQLite URI; None for any other store."""
    return (
        Path(uri.removeprefix("sqlite:///")).expanduser().absolute() if uri.startswith("sqlite:///") else None
    )
