"""MLflow tracking: runs are identified by fingerprint and folder, never by a global "active run".

A run carries the tags `degla.fingerprint` and `degla.folder`. A restarted job or a resumed training with the
same fingerprint and folder gets the same run, so a crash leaves no duplicate, and two folders with the same
settings have two runs. If tracking is off, `find_or_create_run` returns None, and every other function does
nothing when given that None. Importing MLflow takes about 2 s, so it is imported on first use.

MLflow holds a copy of what is in the folders, so a server that is down costs no result: `require` refuses it
before anything is computed, later calls wait for it, and `or_told` says what it never took.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import re
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import degla_ray
from degla_ray.config import TrackingConfig
from degla_ray.errors import DataError, SettingError
from degla_ray.identity import canonical, flatten
from degla_ray.masking import masked, masked_values
from degla_ray.storage import Storage
from degla_ray.tracking_store import SETTING, first_line, is_server, open_store, or_told, probe, sqlite_path

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


def require(config: TrackingConfig) -> None:
    """Refuse a server that does not answer, before anything is computed.

    Raises:
        SettingError: it does not answer, it refuses these credentials, or its experiment was deleted.
    """
    if not config.enabled or not is_server(config.uri):
        return  # a file is opened when it is written
    probe(config.uri)
    from mlflow.exceptions import MlflowException

    try:
        experiment_id(open_client(config), config)
    except MlflowException as error:
        expected = (
            f"an MLflow server that takes requests ({first_line(error)}); MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, hold its credentials"
        )
        raise SettingError(SETTING, masked(config.uri), expected) from error


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
        ServerSilent: its server did not answer for minutes.
    """
    if not config.enabled:
        return None
    client = open_client(config)
    experiment = experiment_id(client, config)
    parent = {PARENT_TAG: parent_run_id} if parent_run_id else {}
    query = " and ".join(
        f"tags.`{key}` = '{value}'" for key, value in {FINGERPRINT_TAG: fingerprint, **parent}.items()
    )
    place = _cut(masked(folder), TAG_LENGTH)
    # the oldest, so that two processes that raced agree on one run
    candidates = client.search_runs([experiment], query, order_by=["attributes.start_time ASC"])
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
        run = client.create_run(experiment, run_name=masked(name), tags=own)
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
        if run_id is not None:
            _end(config, run_id, "KILLED" if stopped else "FAILED")
        raise
    with or_told(f"the end of run {name} is"):
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
    client = open_client(config)
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
    return max((m.step for m in open_client(config).get_metric_history(run_id, metric)), default=0)


def set_tags(config: TrackingConfig, run_id: str | None, tags: Mapping[str, str]) -> None:
    """Set tags of a run, overwriting existing values."""
    if run_id is None:
        return
    from mlflow.entities import RunTag

    batch = [RunTag(_legal_name(key), _cut(masked(value), TAG_LENGTH)) for key, value in tags.items()]
    client = open_client(config)
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
    open_client(config).log_inputs(run_id, [DatasetInput(dataset=dataset, tags=tags)])


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
        open_client(config).log_artifacts(run_id, temporary, artifact_path)


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
    open_client(config).log_text(run_id, content, f"{name}.json")
    known = json.loads(run_tags(config, run_id).get(TABLES_TAG, "[]"))
    entry = {"path": f"{name}.json", "type": "table"}
    set_tags(config, run_id, {TABLES_TAG: json.dumps([*(e for e in known if e != entry), entry])})


def finish(config: TrackingConfig, run_id: str | None, status: str = "FINISHED") -> None:
    """End a run with a status: `FINISHED`, `FAILED` or `KILLED`."""
    if run_id is not None:
        open_client(config).set_terminated(run_id, status)


def run_that_trained(config: TrackingConfig, export: str) -> str | None:
    """Return the newest training run that wrote the exported folder; None if tracking is off or has none."""
    if not config.enabled:
        return None
    client = open_client(config)
    place = _cut(masked(Storage(export.rstrip("/")).uri.rpartition("/")[0]), TAG_LENGTH)
    quote = '"' if "'" in place else "'"
    found = client.search_runs(
        [experiment_id(client, config)],
        f"tags.`{FOLDER_TAG}` = {quote}{place}{quote} and tags.`{STAGE_TAG}` = 'train'",
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
        return dict(open_client(config).get_run(run_id).data.tags)
    except MlflowException as error:
        raise DataError(config.uri, f"no run {run_id!r}", "the id of a run in this MLflow store") from error


def download_artifacts(config: TrackingConfig, run_id: str, path: str, target: str | Path) -> Path:
    """Download artifact folder `path` of a run into `target` and return the local folder."""
    Path(target).mkdir(parents=True, exist_ok=True)
    return Path(open_client(config).download_artifacts(run_id, path, str(target)))


def _end(config: TrackingConfig, run_id: str, status: str) -> None:
    """End a run and the child runs that are still running; a server that is down is asked only once.

    A job that is being stopped has seconds for it, and the error that ended a job must not be replaced.
    """
    from mlflow.exceptions import MlflowException

    client = open_store(config.uri, patient=False)
    with contextlib.suppress(MlflowException):
        client.set_terminated(run_id, status)
        query = f"tags.`{PARENT_TAG}` = '{run_id}' and attributes.status = 'RUNNING'"
        for child in client.search_runs([client.get_run(run_id).info.experiment_id], query):
            client.set_terminated(child.info.run_id, "KILLED")


def _origin() -> dict[str, str]:
    """Return the tags from which MLflow shows user, program and git commit, and this package's version."""
    from mlflow.tracking.context.registry import resolve_tags

    return {
        **{key: masked(value) for key, value in resolve_tags().items()},
        "degla.version": degla_ray.__version__,
    }


def open_client(config: TrackingConfig) -> MlflowClient:
    """Return MLflow's client of the store.

    Raises:
        SettingError: the store cannot be opened.
    """
    return open_store(config.uri)


def experiment_id(client: MlflowClient, config: TrackingConfig) -> str:
    """Return the id of the experiment, which is created if it does not exist."""
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
