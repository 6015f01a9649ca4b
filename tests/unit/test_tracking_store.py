"""degla_ray.tracking against a real sqlite store."""

from __future__ import annotations

import base64
import contextlib
import os
import subprocess
import sys
import threading
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from degla_ray import remote_store, tracking
from degla_ray.config import EvaluateConfig, ModelConfig, TrackingConfig
from degla_ray.errors import DataError, SettingError
from degla_ray.storage import Storage


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TrackingConfig:
    """One store for the module (making it takes seconds); tests differ by fingerprint."""
    folder = tmp_path_factory.mktemp("store")
    return TrackingConfig(uri=f"sqlite:///{folder}/deep/er/mlflow.db", experiment="tests")


def client_of(store: TrackingConfig) -> MlflowClient:
    return MlflowClient(tracking_uri=store.uri)


def test_tracking_new_store_makes_its_folder_and_keeps_artifacts_beside_it(store: TrackingConfig) -> None:
    run_id = tracking.find_or_create_run(store, "one", "fp-new", "folder", {"a": 1})
    assert run_id is not None
    folder = Path(store.uri.removeprefix("sqlite:///")).parent
    assert (folder / "mlflow.db").is_file()
    (folder / "x.txt").write_text("hello")
    tracking.log_files(store, run_id, Storage(str(folder)), ["x.txt"], "texts")
    assert (folder / "mlartifacts" / run_id / "artifacts" / "texts" / "x.txt").read_text() == "hello"
    copy = tracking.download_artifacts(store, run_id, "texts", folder / "copy")
    assert (copy / "x.txt").read_text() == "hello"


def test_tracking_same_fingerprint_after_restart_finds_the_same_run(store: TrackingConfig) -> None:
    first = tracking.find_or_create_run(store, "two", "fp-same", "folder", {"a": 1}, {"label": "x"})
    tracking.finish(store, first, "FAILED")
    second = tracking.find_or_create_run(store, "two", "fp-same", "folder", {"a": 1, "b": 2}, {"label": "y"})
    assert second == first
    run = client_of(store).get_run(str(first))
    assert run.info.status == "RUNNING"
    assert run.data.params == {"a": "1", "b": "2"}
    assert run.data.tags["label"] == "y"
    assert tracking.find_or_create_run(store, "two", "fp-other", "folder", {}) != first


def test_tracking_two_folders_of_the_same_settings_are_two_runs(store: TrackingConfig) -> None:
    one, two = (tracking.find_or_create_run(store, "n", "fp-folders", f"runs/it's {n}", {}) for n in (1, 2))
    assert one != two
    assert tracking.find_or_create_run(store, "n", "fp-folders", "runs/it's 1", {}) == one


@pytest.mark.parametrize(
    ("error", "status"),
    [(None, "FINISHED"), (ValueError, "FAILED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "KILLED")],
)
def test_tracking_run_never_stays_running(
    error: type[BaseException] | None, status: str, store: TrackingConfig
) -> None:
    seen = []
    mark = f"fp-{status}-{error and error.__name__}"
    with (
        contextlib.suppress(ValueError, KeyboardInterrupt, SystemExit),
        tracking.running(store, "n", mark, "folder", {}) as run_id,
    ):
        seen.append(str(run_id))
        if error is not None:
            raise error
    assert client_of(store).get_run(seen[0]).info.status == status


def test_tracking_stopped_sweep_ends_its_trials(store: TrackingConfig) -> None:
    trials: list[str] = []
    with (
        contextlib.suppress(SystemExit),
        tracking.running(store, "sweep", "fp-stopped-sweep", "folder", {}) as parent,
    ):
        for number in range(2):
            child = tracking.find_or_create_run(
                store, "t", f"fp-t{number}", "folder", {}, parent_run_id=parent
            )
            trials.append(str(child))
        tracking.finish(store, trials[0])
        raise SystemExit(15)
    assert [client_of(store).get_run(t).info.status for t in trials] == ["FINISHED", "KILLED"]


def test_tracking_results_logged_again_are_there_once(store: TrackingConfig) -> None:
    run_id = tracking.find_or_create_run(store, "n", "fp-once", "folder", {})
    for value in (0.5, 0.5, 0.6):
        tracking.log_metrics(store, run_id, {"accuracy": value})
    history = client_of(store).get_metric_history(str(run_id), "accuracy")
    assert [m.value for m in history] == [0.5, 0.6]


def test_tracking_secret_of_a_setting_is_not_in_the_store(store: TrackingConfig) -> None:
    uri = "s3://KEY:hunter2secret@bucket/x"
    params = {"tracking": TrackingConfig(uri="http://me:hunter2secret@host"), "output": uri}
    run_id = tracking.find_or_create_run(store, f"of {uri}", "fp-secret", uri, params, {"place": uri})
    tracking.log_dataset(store, run_id, "d", "digest", uri, "training")
    assert tracking.find_or_create_run(store, "n", "fp-secret", uri, {}) == run_id
    assert b"hunter2secret" not in Path(store.uri.removeprefix("sqlite:///")).read_bytes()


def test_tracking_password_of_a_servers_address_is_not_in_mlflows_errors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is sent all the same."""
    for name in ("USERNAME", "PASSWORD"):
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", "before")
    monkeypatch.setattr(remote_store, "FIRST_ANSWER_S", 0.0)
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(base64.b64decode(self.headers["Authorization"].removeprefix("Basic ")))
            self.send_error(500, "broken")

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    uri = f"http://me:hunter2%2Fsecret@127.0.0.1:{server.server_port}"
    with pytest.raises(Exception) as raised:
        tracking.find_or_create_run(TrackingConfig(uri=uri), "n", "fp", "folder", {})
    server.shutdown()
    server.server_close()
    assert asked[0] == b"me:hunter2/secret"
    assert "hunter2" not in "".join(traceback.format_exception(raised.value))


def test_tracking_children_of_two_parents_are_two_runs(store: TrackingConfig) -> None:
    parents = [tracking.find_or_create_run(store, f"p{i}", f"fp-parent-{i}", "folder", {}) for i in range(2)]
    children = [
        tracking.find_or_create_run(store, "c", "fp-child", "folder", {}, parent_run_id=p) for p in parents
    ]
    again = tracking.find_or_create_run(store, "c", "fp-child", "folder", {}, parent_run_id=parents[1])
    assert children[0] != children[1]
    assert again == children[1]
    assert (
        tracking.find_or_create_run(store, "c", "fp-child", "folder", {}) not in children
    )  # a run of its own
    assert tracking.run_tags(store, str(again))[tracking.PARENT_TAG] == parents[1]


def test_tracking_metrics_beyond_one_batch_arrive_without_nan_and_inf(store: TrackingConfig) -> None:
    run_id = tracking.find_or_create_run(store, "many", "fp-many", "folder", {})
    values = {f"m/{i}": i / 7 for i in range(2301)} | {"bad/nan": float("nan"), "bad/inf": float("-inf")}
    tracking.log_metrics(store, run_id, values, step=5)
    tracking.log_metrics(store, run_id, {"m/0": 9.0}, step=6)
    logged = client_of(store).get_run(str(run_id)).data.metrics
    assert len(logged) == 2301
    assert logged["m/2300"] == 2300 / 7
    assert [(m.step, m.value) for m in client_of(store).get_metric_history(str(run_id), "m/0")] == [
        (5, 0.0),
        (6, 9.0),
    ]


def test_tracking_params_nested_long_and_illegal_are_logged_legally(store: TrackingConfig) -> None:
    config = EvaluateConfig(model=ModelConfig(name="scenes-base"), output="out", suite="s")
    params = {"evaluate": config, "long": "x" * 9000, "odd name?(μ)": 1, "up/../and/down": 2}
    params |= {f"p{i}": i for i in range(250)}
    run_id = tracking.find_or_create_run(store, "params", "fp-params", "folder", params)
    logged = client_of(store).get_run(str(run_id)).data.params
    assert logged["evaluate.model.name"] == "scenes-base"
    assert logged["p249"] == "249"
    assert logged["long"] == "x" * 5999 + "…"
    assert logged["up/and/down"] == "2"
    assert len(logged) == len(params) - 1 + len(tracking.flatten(tracking.canonical(config)))


def test_tracking_disabled_does_nothing_and_makes_no_store(tmp_path: Path) -> None:
    off = TrackingConfig(enabled=False, uri=f"sqlite:///{tmp_path}/none/mlflow.db")
    assert tracking.find_or_create_run(off, "x", "y", "folder", {}) is None
    tracking.log_metrics(off, None, {"a": 1.0})
    tracking.log_files(off, None, Storage(str(tmp_path)), ["x"])
    tracking.finish(off, None)
    assert list(tmp_path.iterdir()) == []


def test_tracking_unusable_store_is_one_line_naming_the_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for uri in (f"sqlite:///{tmp_path}/file/mlflow.db", "nonsense://host/x"):
        with pytest.raises(SettingError, match=r"tracking\.uri") as caught:
            tracking.find_or_create_run(TrackingConfig(uri=uri), "x", "y", "folder", {})
        assert "\n" not in str(caught.value)


def test_tracking_deleted_experiment_and_unknown_run_are_named(store: TrackingConfig) -> None:
    import dataclasses

    gone = dataclasses.replace(store, experiment="gone")
    tracking.find_or_create_run(gone, "x", "y", "folder", {})
    client = client_of(store)
    client.delete_experiment(client.get_experiment_by_name("gone").experiment_id)
    with pytest.raises(SettingError, match=r"tracking\.experiment"):
        tracking.find_or_create_run(gone, "x", "y", "folder", {})
    with pytest.raises(DataError, match="no run '0123abc'"):
        tracking.run_tags(store, "0123abc")


def test_tracking_relative_store_resolved_is_absolute_and_quiet(tmp_path: Path) -> None:
    code = (
        "from degla_ray import tracking; from degla_ray.config import TrackingConfig\n"
        "c = tracking.resolved(TrackingConfig())\n"
        "tracking.find_or_create_run(c, 'n', 'f', 'o', {}); print(c.uri)"
    )
    env = dict(os.environ, PYTHONPATH=str(Path(__file__).parents[2]))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert "alembic" not in done.stderr
    assert "INFO" not in done.stderr
    assert (tmp_path / "runs" / "mlflow.db").is_file()


@pytest.mark.slow
def test_tracking_new_store_that_five_processes_open_at_once_is_whole(tmp_path: Path) -> None:
    """Without the lock, the first of MLflow's migrations ends in an error, and the store stays broken."""
    code = (
        "import sys; from degla_ray import tracking; from degla_ray.config import TrackingConfig\n"
        "tracking.find_or_create_run(TrackingConfig(), 'n', sys.argv[1], 'folder', {'a': 1})"
    )
    env = dict(os.environ, PYTHONPATH=str(Path(__file__).parents[2]))
    jobs = [
        subprocess.Popen([sys.executable, "-c", code, str(n)], cwd=tmp_path, env=env, stderr=subprocess.PIPE)
        for n in range(5)
    ]
    errors = [job.communicate()[1].decode() for job in jobs]
    assert [job.returncode for job in jobs] == [0] * 5, errors
    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    [experiment] = client.search_experiments(filter_string="name = 'degla-ray'")
    assert len(client.search_runs([experiment.experiment_id])) == 5
