"""`latest` in place of a run's folder: the newest finished run, on a disk and in a store."""

from __future__ import annotations

import time

import pytest

from degla_ray.cli import parse
from degla_ray.config import CompareConfig, InterpolateConfig, TrainConfig, TuneConfig
from degla_ray.errors import SettingError
from degla_ray.storage import Storage
from degla_ray.training.latest import latest, with_latest


@pytest.fixture(params=["disk", "s3"])
def runs(request: pytest.FixtureRequest, tmp_path: object) -> str:
    """A folder with three finished runs, of which photos-0b is the newest, and an unfinished newer one."""
    folder = str(tmp_path) if request.param == "disk" else request.getfixturevalue("s3_bucket")
    for name in ("photos-0a", "photos-big-0c", "photos-0b"):
        Storage(folder).write_json({}, name, "result.json")
        Storage(folder).write_bytes(b"", name, "export_student", "weights")
        time.sleep(1.1 if request.param == "s3" else 0.01)  # a store's times are whole seconds
    Storage(folder).write_json({}, "photos-0d", "config.json")
    return f"{folder}/"


def test_latest_is_the_newest_finished_run(runs: str, capsys: pytest.CaptureFixture[str]) -> None:
    Storage(runs).write_json({}, "other-0e", "result.json")
    assert latest(f"{runs}latest/export_student", "model.name") == f"{runs}other-0e/export_student"
    assert capsys.readouterr().out == f"latest: {runs}other-0e\n"


def test_latest_of_a_name_passes_over_other_names(runs: str) -> None:
    Storage(runs).write_json({}, "other-0e", "result.json")
    assert latest(f"{runs}photos-latest", "model.name") == f"{runs}photos-0b"
    assert latest(f"{runs}photos-big-latest", "model.name") == f"{runs}photos-big-0c"


def test_latest_without_a_finished_run_is_an_error_that_names_the_setting(tmp_path: object) -> None:
    Storage(f"{tmp_path}").write_json({}, "photos-0d", "config.json")
    for place in (f"{tmp_path}/latest/export_student", f"{tmp_path}/none/latest"):
        with pytest.raises(SettingError, match=r"^second: .* finished run in .* contains none"):
            latest(place, "second")
    with pytest.raises(SettingError, match="a finished run named 'cats' in"):
        latest(f"{tmp_path}/cats-latest", "second")


def test_latest_a_folder_of_that_name_and_other_names_are_left_as_they_are(tmp_path: object) -> None:
    (folder := Storage(f"{tmp_path}")).write_bytes(b"", "latest", "file")
    kept = (f"{folder.uri}/latest", "hf-hub:org/clip-latest", "latest", "ViT-B-32", f"{folder.uri}/latest-1")
    for place in kept:
        assert latest(place, "model.name") == place


def test_latest_is_replaced_in_every_setting_that_names_a_run(tmp_path: object) -> None:
    Storage(f"{tmp_path}").write_json({}, "a-0b", "result.json")
    Storage(f"{tmp_path}").write_json(
        {"stage": "evaluate", "fingerprint": "f", "made_from": {}, "complete": True},
        "e",
        "x",
        "manifest.json",
    )
    run, told = f"{tmp_path}/a-0b", f"{tmp_path}/latest"
    train = ["--name", "latest", "--data.prepared", "runs/latest", "--objective.name", "clip"]
    trained = with_latest(parse(TrainConfig, "", [*train, "--model.name", told]))
    assert trained.model.name == run
    assert (trained.name, trained.data.prepared) == ("latest", "runs/latest")
    words = [
        "--suite",
        "s",
        "--train.name",
        "x",
        "--train.data.prepared",
        "p",
        "--train.objective.name",
        "clip",
    ]
    tuned = with_latest(parse(TuneConfig, "", [*words, "--train.model.name", told]))
    assert tuned.train.model.name == run
    line = with_latest(parse(InterpolateConfig, "", ["--first", told, "--second", told, "--suite", "s"]))
    assert (line.first, line.second) == (run, run)
    both = ["--evaluations", "base", f"{tmp_path}/e/latest"]
    assert with_latest(parse(CompareConfig, "", both)).evaluations == ["base", f"{tmp_path}/e/x"]
