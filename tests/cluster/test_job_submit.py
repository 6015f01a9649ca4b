"""The jobs run unchanged through `ray job submit --working-dir . -- python jobs/...` on a Ray head."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient
from ray_head import Head

from degla_ray.schema import CAPTIONS, IMAGES, NEGATIVES
from degla_ray.stage import read_complete

pytestmark = pytest.mark.timeout(900)

TINY_SCENES = ("--scenes.num_images=24", "--scenes.num_validation_images=8", "--scenes.test_items=4")


@pytest.fixture(scope="module")
def prepared(ray_head: Head, repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("job") / "prepared"
    options = ["--source=scenes", f"--output={folder}", "--num_shards=2", *TINY_SCENES]
    done = ray_head.submit(repo, "jobs/prepare.py", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout
    return folder


@pytest.fixture(scope="module")
def negatives(ray_head: Head, repo: Path, prepared: Path) -> Path:
    folder = prepared.parent / "negatives"
    options = [f"--prepared={prepared}", f"--output={folder}", "--num_shards=2", "--tracking.enabled=false"]
    done = ray_head.submit(repo, "jobs/negatives.py", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout
    return folder


def test_job_submit_prepare_writes_the_folder_through_the_head(prepared: Path) -> None:
    storage, _ = read_complete(str(prepared), "prepare")
    images = storage.read_dataset("images", IMAGES)
    captions = storage.read_dataset("captions", CAPTIONS)
    assert images.num_rows == 32
    assert set(captions["image_id"].to_pylist()) == set(images["image_id"].to_pylist())


@pytest.mark.slow
def test_job_submit_negatives_writes_rows_of_the_prepared_captions(prepared: Path, negatives: Path) -> None:
    samples = read_complete(str(prepared), "prepare")[0].read_dataset("captions", CAPTIONS)["sample_id"]
    storage, _ = read_complete(str(negatives), "negatives")
    rows = storage.read_dataset("negatives", NEGATIVES)
    assert rows.num_rows > 0
    assert set(rows["sample_id"].to_pylist()) <= set(samples.to_pylist())


@pytest.mark.slow  # README's commands train; what a submission adds, the tests of prepare and of paths hold
def test_job_submit_train_two_steps_exports_a_model(ray_head: Head, repo: Path, prepared: Path) -> None:
    output = prepared.parent / "train"
    done = ray_head.submit(
        repo,
        "jobs/train.py",
        "--name=submitted",
        f"--data.prepared={prepared}",
        "--objective.name=clip",
        f"--output={output}",
        f"--tracking.uri=sqlite:///{prepared.parent}/mlflow.db",
        "--model.name=scenes-tiny",
        "--global_batch_size=8",
        "--max_steps=2",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    [result] = output.glob("submitted-*/result.json")
    made = json.loads(result.read_text())
    assert made["steps"] == 2
    assert (result.parent / made["export_student"] / "open_clip_model.safetensors").stat().st_size > 0
    assert made["export_teacher"] is None, "plain CLIP has none, and needs no negatives"


@pytest.mark.slow  # test_job_submit_relative_output_… holds the rule
def test_job_submit_wrong_setting_fails_with_its_one_line(ray_head: Head, repo: Path, tmp_path: Path) -> None:
    done = ray_head.submit(
        repo,
        "jobs/negatives.py",
        f"--prepared={tmp_path}/absent",
        f"--output={tmp_path}/out",
        "--tracking.enabled=false",
    )
    assert done.returncode != 0
    assert "error: " in done.stdout
    assert f"{tmp_path}/absent" in done.stdout
    assert "Traceback" not in done.stdout


@pytest.mark.slow  # test_lease_is_given_back_on_sigterm_… and test_tracking_run_never_stays_running hold it
def test_job_submit_stopped_training_leaves_no_run_running_and_no_lease(
    ray_head: Head, repo: Path, prepared: Path, negatives: Path, tmp_path: Path
) -> None:
    store = f"sqlite:///{tmp_path}/mlflow.db"
    options = [f"--data.prepared={prepared}", f"--data.negatives={negatives}", f"--output={tmp_path}/train"]
    options += [f"--tracking.uri={store}", "--name=stopped", "--global_batch_size=4", "--max_steps=100000"]
    options += ["--model.name=scenes-tiny"]
    ray_head.start(repo, "to-be-stopped", "jobs/train.py", *options)
    ray_head.wait_for("to-be-stopped", lambda: bool(list(tmp_path.glob("train/*/progress.json"))), 120)
    assert list(tmp_path.glob("train/*/lease-*.json"))
    ray_head.stop("to-be-stopped")
    client = MlflowClient(store)
    [run] = client.search_runs([client.get_experiment_by_name("degla-ray").experiment_id])
    assert run.info.status == "KILLED"
    assert not list(tmp_path.glob("train/*/lease-*.json"))


def test_job_submit_relative_output_is_refused_at_once(ray_head: Head, repo: Path) -> None:
    done = ray_head.submit(repo, "jobs/prepare.py", "--source=scenes", "--output=runs/scenes")
    assert done.returncode != 0
    assert "error: output: found 'runs/scenes'; expected an absolute path" in done.stdout
    assert "Traceback" not in done.stdout
