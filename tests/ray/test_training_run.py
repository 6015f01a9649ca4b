"""Whole training runs on a local Ray: several workers, resume, refusals and output files."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import re
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from mlflow import MlflowClient

from degla_ray.config import (
    DataConfig,
    ObjectiveConfig,
    OptimizerConfig,
    TrackingConfig,
    TrainComputeConfig,
    TrainConfig,
)
from degla_ray.errors import DeglaError, SettingError
from degla_ray.identity import fingerprint
from degla_ray.model import load
from degla_ray.schema import REJECTS
from degla_ray.storage import Storage
from degla_ray.training.checkpoint_folders import complete
from degla_ray.training.run_identity import run_identity
from degla_ray.training.trainer import TrainResult, train
from tests.training_inputs import MODEL, read_trace, train_config, write_inputs

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("training"))


@pytest.fixture(scope="module")
def tracking(folder: Path) -> TrackingConfig:
    return TrackingConfig(uri=f"sqlite:///{folder}/mlflow.db", experiment="training")


@pytest.fixture(scope="module")
def reference(folder: Path, tracking: TrackingConfig, ray_cluster: None) -> TrainResult:
    """40 steps on one worker."""
    return train(train_config(folder, tracking=tracking))


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("bf16", 3e-2)])
def test_train_on_a_gpu_gives_the_losses_of_the_cpu(
    folder: Path, reference: TrainResult, precision: Literal["fp32", "bf16"], tolerance: float
) -> None:
    compute = TrainComputeConfig(use_gpu=True, precision=precision)
    on_gpu = train(train_config(folder, name=precision, compute=compute))
    pairs = zip(read_trace(on_gpu.trace_path), read_trace(reference.trace_path), strict=True)
    for one, other in pairs:
        assert one["loss"] == pytest.approx(other["loss"], rel=tolerance), one["step"]


def assert_same_trace(left: TrainResult, right: TrainResult, tolerance: float) -> None:
    ours, theirs = read_trace(left.trace_path), read_trace(right.trace_path)
    assert [row["step"] for row in ours] == [row["step"] for row in theirs] == list(range(1, 41))
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        assert one == pytest.approx(other, abs=tolerance, rel=tolerance), one["step"]


def test_train_two_workers_give_one_workers_losses(folder: Path, reference: TrainResult) -> None:
    two = train(train_config(folder, name="two", num_workers=2))
    assert_same_trace(two, reference, 1e-5)


def test_train_trace_holds_every_term_and_the_loss_is_their_sum(reference: TrainResult) -> None:
    objective = ObjectiveConfig()
    for row in read_trace(reference.trace_path):
        parts = row["base"] + objective.lambda_igc * row["igc"] + objective.lambda_tgc * row["tgc"]
        assert row["loss"] == pytest.approx(parts + objective.lambda_distill * row["distill"], rel=1e-5)
        assert {"lr", "logit_scale"} < row.keys()
    assert row["distill"] > 0.0


def test_train_last_checkpoints_are_kept(reference: TrainResult) -> None:
    assert list(complete(Storage(reference.run_folder))) == [30, 40]


def test_train_exports_are_the_last_checkpoints_models(reference: TrainResult) -> None:
    saved = Path(reference.run_folder) / "checkpoint_000000040"
    for export, file in ((reference.export_student, "student"), (reference.export_teacher, "teacher")):
        assert export is not None
        weights = safetensors.torch.load_file(saved / f"{file}.safetensors")
        exported = load(export).model.state_dict()
        assert exported.keys() == weights.keys()
        assert all(torch.equal(exported[name], weights[name]) for name in weights)
    student, teacher = (
        load(e or "").model.state_dict() for e in (reference.export_student, reference.export_teacher)
    )
    assert any(not torch.equal(student[name], teacher[name]) for name in student)


def test_train_run_in_mlflow_has_curves_params_and_files(
    reference: TrainResult, tracking: TrackingConfig
) -> None:
    client = MlflowClient(tracking.uri)
    run = client.get_run(reference.mlflow_run_id or "")
    curve = client.get_metric_history(run.info.run_id, "train/loss")
    trace = {row["step"]: row["loss"] for row in read_trace(reference.trace_path)}
    assert {point.step: point.value for point in curve} == trace
    assert run.info.status == "FINISHED"
    assert run.data.params["optimizer.lr"] == "0.001"
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == {"config.json", "trace.jsonl"}


def test_train_finished_run_again_does_nothing(
    folder: Path, tracking: TrackingConfig, reference: TrainResult
) -> None:
    before = {p: p.stat().st_mtime_ns for p in Path(reference.run_folder).rglob("*")}
    assert train(train_config(folder, tracking=tracking)) == reference
    assert {p: p.stat().st_mtime_ns for p in Path(reference.run_folder).rglob("*")} == before


def test_train_finished_run_that_was_moved_names_its_new_place(
    tmp_path: Path, folder: Path, tracking: TrackingConfig, reference: TrainResult
) -> None:
    shutil.copytree(Path(reference.run_folder).parent, tmp_path / "runs")
    moved = train(dataclasses.replace(train_config(folder, tracking=tracking), output=str(tmp_path / "runs")))
    assert moved.steps == reference.steps
    for place in (moved.run_folder, moved.export_student, moved.export_teacher, moved.trace_path):
        assert Path(place or "").is_relative_to(tmp_path)
        assert Path(place or "").exists()


def test_train_resume_never_refuses_an_existing_run(folder: Path, reference: TrainResult) -> None:
    with pytest.raises(SettingError, match=r"resume: found 'never'.*exists"):
        train(train_config(folder, resume="never"))


def test_train_continued_by_another_driver_is_as_if_nothing_was(
    folder: Path, tmp_path: Path, reference: TrainResult
) -> None:
    """As after a kill of the whole job at step 40 that left the last checkpoint half written."""
    run = tmp_path / "runs" / Path(reference.run_folder).name
    shutil.copytree(reference.run_folder, run)
    for made in ("export_student", "export_teacher"):
        shutil.rmtree(run / made)
    (run / "result.json").unlink()
    (run / "checkpoint_000000040" / "complete.json").unlink()
    again = train(train_config(folder, output=str(tmp_path / "runs")))
    assert again.run_folder == str(run)
    assert read_trace(again.trace_path) == read_trace(reference.trace_path)
    for name in ("student", "teacher", "optimizer"):
        one, other = (
            safetensors.torch.load_file(f"{r.run_folder}/checkpoint_000000040/{name}.safetensors")
            for r in (reference, again)
        )
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.slow  # what two workers give, and a run that continues, are held above
@pytest.mark.parametrize("objective", ["degla", "ceclip"])
def test_train_killed_worker_continues_after_its_last_checkpoint(
    objective: str, folder: Path, reference: TrainResult
) -> None:
    """SIGKILL of one of two workers: Ray Train starts both again, and the losses are as if nothing was.

    CE-CLIP carries its margins from step to step. The workers' rows are two micro-batches.
    """
    settings = {"objective": ObjectiveConfig(name=objective)}  # type: ignore[arg-type]
    if objective != "degla":
        reference = train(train_config(folder, name=objective, **settings))
    config = train_config(folder, name="killed-worker", num_workers=2, micro_batch_size=4, **settings)
    name = f"{config.name}-{fingerprint(run_identity(config))}"
    killed: list[int] = []
    stop = threading.Event()

    def kill_one() -> None:
        while not stop.is_set() and not killed:
            if Path(config.output, name, "checkpoint_000000010", "complete.json").exists():
                pid = worker_pids()[-1]
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
            time.sleep(0.005)

    killer = threading.Thread(target=kill_one)
    killer.start()
    try:
        result = train(config)
    finally:
        stop.set()
        killer.join()
    assert killed
    assert_same_trace(result, reference, 1e-5)


@pytest.mark.slow  # tests/unit/test_training_stalled.py holds what is told
@pytest.mark.parametrize("stopped", [0, 1])
def test_train_stopped_worker_is_named_with_its_step_and_the_run_continues(
    stopped: int, folder: Path, reference: TrainResult, capfd: pytest.CaptureFixture[str]
) -> None:
    """SIGSTOP: the process is there and does nothing, so the other waits for its gradients."""
    config = train_config(folder, name=f"stopped-{stopped}", num_workers=2, stall_minutes=0.1)
    run = Path(config.output, f"{config.name}-{fingerprint(run_identity(config))}")
    pids: list[int] = []

    def stop_one() -> None:
        while not (run / "checkpoint_000000010" / "complete.json").exists():
            time.sleep(0.005)
        pids.append(worker_pids()[stopped])
        os.kill(pids[0], signal.SIGSTOP)

    threading.Thread(target=stop_one, daemon=True).start()
    result = train(config)
    printed = " ".join(capfd.readouterr().out.split())
    worker = rf"worker \d \(host [\d.]+, pid {pids[0]}\)"
    found = re.search(rf"no step for \d+ s: {worker} was last heard after step (\d+); worker", printed)
    assert found, printed
    assert int(found[1]) <= 40  # of its last beat, up to two seconds earlier
    assert re.search(r"waits in step \d+.*; continues from step \d0 \(\d more tr", printed), printed
    assert not Path(f"/proc/{pids[0]}").exists()
    assert_same_trace(result, reference, 1e-5)


def worker_pids() -> list[int]:
    """Processes of Ray Train workers below this one: their title begins with the actor's class."""
    found = []
    for status in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if status.read_bytes().startswith(b"ray::RayTrainWorker") and descends(int(status.parent.name)):
                found.append(int(status.parent.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return sorted(found)


def descends(pid: int) -> bool:
    while pid > 1:
        if pid == os.getpid():
            return True
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return False


@pytest.mark.slow  # test_job_submit_train_two_steps_… holds the rule
def test_train_plain_clip_needs_no_negatives_and_has_no_teacher(folder: Path) -> None:
    config = train_config(
        folder,
        name="clip",
        data=DataConfig(prepared=str(folder / "prepared"), decode_tasks=1),
        objective=ObjectiveConfig(name="clip"),
        optimizer=OptimizerConfig(lr=1e-3, warmup_steps=5, clip_grad_norm=1.0),
        compute=TrainComputeConfig(precision="bf16"),
        max_steps=5,
    )
    result = train(config)
    assert result.export_teacher is None
    assert set(read_trace(result.trace_path)[0]) == {"step", "loss", "base", "logit_scale", "lr"}


@pytest.mark.slow  # test_image_that_does_not_decode_is_named holds the rule
def test_train_image_that_does_not_decode_ends_the_run_and_is_named(tmp_path: Path) -> None:
    folder = write_inputs(tmp_path, images=8, broken="img0006")
    with pytest.raises(DeglaError, match=r"image 'img0006' in .*UnidentifiedImageError"):
        train(train_config(folder))


@pytest.mark.slow  # test_tune_trials_… holds the rule
def test_train_loss_that_is_not_finite_names_the_rate(folder: Path) -> None:
    config = train_config(folder, name="wild", optimizer=OptimizerConfig(lr=1e30, warmup_steps=0))
    with pytest.raises(DeglaError, match=r"optimizer\.lr: found 1e\+30; .* loss of step \d+ is not finite"):
        train(config)


@pytest.mark.slow  # the step that is skipped, below, holds what a skip is
@pytest.mark.parametrize("steps", [40, 10])
def test_train_fp16_that_skips_every_step_ends_with_the_step_and_the_terms(folder: Path, steps: int) -> None:
    """Gradients that are infinite at any scale. A run of ten steps ends before 25 are skipped."""
    config = train_config(
        folder,
        name=f"skips-{steps}",
        compute=TrainComputeConfig(precision="fp16"),
        objective=ObjectiveConfig(lambda_igc=1e30),
        max_steps=steps,
    )
    found = r"precision: found 'fp16'; .* the last \d+ steps up to step \d+ were skipped.*\(loss .*igc .*\)"
    with pytest.raises(DeglaError, match=found):
        train(config)


@pytest.mark.slow  # test_freeze_unreached_… holds the rule
def test_train_coca_on_two_workers_freezes_its_decoder_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_inputs(tmp_path, images=8)
    model = copy.deepcopy(MODEL)
    model["vision_cfg"] |= {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True}
    model["text_cfg"] |= {"embed_cls": True, "output_tokens": True, "context_length": 15}
    model["multimodal_cfg"] = {**MODEL["text_cfg"], "attn_pooler_heads": 2}
    (folder / "model.json").write_text(json.dumps(model | {"custom_text": True}))
    one, two = (
        train(train_config(folder, name=f"coca-{n}", num_workers=n, max_steps=3, global_batch_size=8))
        for n in (1, 2)
    )
    for ours, theirs in zip(read_trace(one.trace_path), read_trace(two.trace_path), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5, rel=1e-5)
    out = capsys.readouterr().out
    assert re.search(r"coca-2-\w+: 2 CPU workers, fp32$", out, re.MULTILINE)
    told = r"coca-2-\w+: \d+ parameters that the loss does not reach are frozen: text_decoder \(\d+\)"
    assert re.search(told, out)
    start, end = (
        safetensors.torch.load_file(f"{two.run_folder}/checkpoint_000000003/{file}.safetensors")
        for file in ("teacher", "student")
    )
    # open_clip leaves some of a random decoder's weights as the memory was, which may be NaN
    same = {n for n in start if torch.allclose(start[n], end[n], rtol=0, atol=0, equal_nan=True)}
    assert {name for name in start if name.startswith("text_decoder.")} <= same
    assert "visual.conv1.weight" not in same


@pytest.fixture(scope="module")
def skipped(
    tmp_path_factory: pytest.TempPathFactory, ray_cluster: None
) -> tuple[TrainConfig, TrainResult, int]:
    """One step that the scaler skips, on captions of which half are longer than the model's 16 tokens.

    The scaler begins at 65,536, where a loss times 1e4 overflows. Returned with the number of negatives of
    the long captions, which differ from them behind the cut only.
    """
    folder = write_inputs(tmp_path_factory.mktemp("skipped"), images=8, num_shards=1)
    for name, column in (("prepared/captions", "caption"), ("negatives/negatives", "negative")):
        [part] = (folder / name).iterdir()
        rows = pq.read_table(part).to_pylist()
        for row in rows:
            if row["sample_id"].endswith("#1"):
                row[column] = "a very " * 8 + row[column]
        pq.write_table(pa.Table.from_pylist(rows, pq.read_schema(part)), part)
    of_cut_captions = sum(row["sample_id"].endswith("#1") for row in rows)  # of the negatives, read last
    assert of_cut_captions
    config = train_config(
        folder,
        name="fp16",
        compute=TrainComputeConfig(precision="fp16"),
        objective=ObjectiveConfig(lambda_igc=1e4),
        max_steps=1,
        tracking=TrackingConfig(uri=f"sqlite:///{folder}/mlflow.db"),
    )
    return config, train(config), of_cut_captions


def test_train_negatives_with_their_captions_tokens_are_dropped_and_counted(
    skipped: tuple[TrainConfig, TrainResult, int],
) -> None:
    config, result, of_cut_captions = skipped
    run = Storage(result.run_folder)
    counts = run.read_json("tokens.json")
    rejects = run.read_dataset("rejects", REJECTS).to_pylist()
    assert counts["captions"] == 16
    assert counts["captions_cut"] == 8
    assert counts["same_as_caption"] == of_cut_captions
    assert {(r["stage"], r["reason"]) for r in rejects} == {("train", "same_as_caption")}
    assert len(rejects) == counts["same_as_caption"] + counts["duplicate_negative"]
    metrics = MlflowClient(config.tracking.uri).get_run(result.mlflow_run_id or "").data.metrics
    assert metrics["tokens/same_as_caption"] == counts["same_as_caption"]


def test_train_too_few_cpus_says_how_many_workers_fit(folder: Path) -> None:
    config = train_config(folder, name="crowd", num_workers=8)
    with pytest.raises(SettingError, match=r"num_workers: found 8; expected at most 4: .* cluster's 8"):
        train(config)


def test_train_unknown_model_is_told_of(folder: Path) -> None:
    config = train_config(folder, name="unknown")
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, name="ViT-B-99"))
    with pytest.raises(DeglaError, match=r"model\.name: found 'ViT-B-99'.*did you mean ViT-B"):
        train(config)


def test_train_step_that_fp16_skips_moves_neither_weights_nor_teacher_nor_schedule(
    skipped: tuple[TrainConfig, TrainResult, int],
) -> None:
    saved = Path(skipped[1].run_folder) / "checkpoint_000000001"
    state = json.loads((saved / "state.json").read_text())
    assert (state["step"], state["optimizer_steps"], state["samples"]) == (1, 0, 16)
    assert state["scaler"]["scale"] == 32768.0
    student, teacher = (
        safetensors.torch.load_file(saved / f"{w}.safetensors") for w in ("student", "teacher")
    )
    assert all(torch.equal(student[name], teacher[name]) for name in student)
