"""List the runs of an MLflow store, and say where its page shows them."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from degla_ray.config import TrackingConfig
from degla_ray.errors import SettingError
from degla_ray.masking import masked
from degla_ray.tracking import FOLDER_TAG, STAGE_TAG, experiment_id, open_client
from degla_ray.tracking_store import ServerSilent, is_server, sqlite_path


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunEntry:
    """A run as `degla runs` lists it; `metrics` has the latest value of each."""

    name: str
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
    store = None if path is not None and not path.exists() else open_client(config)
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
    uri = masked(config.uri)
    try:
        number = experiment_id(open_client(config), config)
    except ServerSilent:
        return [f"runs:   {uri}, which does not answer now"]
    view = f"#/experiments/{number}?workflowType=machine_learning"
    if is_server(uri):
        return [f"runs:   {uri.rstrip('/')}/{view}"]
    program = Path(sys.executable).with_name("mlflow")
    shown = program.relative_to(Path.cwd()) if program.is_relative_to(Path.cwd()) else program
    return [
        f"runs:   {shown} ui --backend-store-uri {shlex.quote(uri)}",
        f"        then open http://127.0.0.1:5000/{view}",
    ]
