"""Generation with a faulty language model on a local Ray: no request is lost or sent twice."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from degla_ray.config import GenerationConfig, NegativesConfig, PrepareConfig, ScenesConfig, TrackingConfig
from degla_ray.errors import DeglaError, FingerprintMismatch, SettingError
from degla_ray.negatives.llm.ledger import text_key
from degla_ray.negatives.pipeline import generate
from degla_ray.reporting.generation import publish
from degla_ray.schema import ATTEMPTS, CAPTIONS, NEGATIVES, REJECTS, SCENE_GRAPHS, Kind
from degla_ray.sources.prepare import prepare
from degla_ray.sources.scenes.truth import is_true
from degla_ray.sources.scenes.world import scene_from_json
from degla_ray.stage import read_complete
from degla_ray.storage import Storage

pytestmark = pytest.mark.usefixtures("ray_cluster")
STATES = ("ok", "rejected", "error", "not_applicable")


@pytest.fixture(scope="module")
def prepared(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("prepared") / "scenes")
    scenes = ScenesConfig(num_images=60, num_validation_images=0, test_items=0)
    prepare(PrepareConfig(source="scenes", output=folder, scenes=scenes, num_shards=2))
    return folder


def config_of(prepared: str, output: Path, **generation: Any) -> NegativesConfig:
    return NegativesConfig(
        prepared=prepared,
        output=str(output),
        engine="scripted",
        per_kind=1,
        num_shards=3,
        generation=GenerationConfig(attempts=2, **generation),
        tracking=TrackingConfig(enabled=False),
    )


@pytest.fixture(scope="module")
def finished(prepared: str, tmp_path_factory: pytest.TempPathFactory) -> NegativesConfig:
    folder = tmp_path_factory.mktemp("generated")
    config = config_of(prepared, folder / "out")
    generate(replace(config, tracking=TrackingConfig(uri=f"sqlite:///{folder}/mlflow.db")), publish)
    return config


def rows(output: str, dataset: str, schema: Any) -> list[dict[str, Any]]:
    """Return the rows without measured times."""
    found = Storage(output).read_dataset(dataset, schema).to_pylist()
    return [{k: v for k, v in row.items() if k != "seconds"} for row in found]


def everything(output: str) -> list[list[dict[str, Any]]]:
    datasets = {"negatives": NEGATIVES, "rejects": REJECTS, "attempts": ATTEMPTS}
    return [rows(output, dataset, schema) for dataset, schema in datasets.items()]


def test_generate_every_caption_and_kind_ends_in_one_state(finished: NegativesConfig) -> None:
    _, manifest = read_complete(finished.output, "negatives")
    counts = manifest["counts"]
    assert counts["captions"] == 180
    for kind in Kind:
        assert sum(counts.get(f"captions.{kind}.{state}", 0) for state in STATES) == 180
        assert counts[f"captions.{kind}.ok"] == counts[f"rows.{kind}"] > 0
    assert all(sum(counts.get(f"captions.{kind}.{state}", 0) for kind in Kind) for state in STATES)


def test_generate_negatives_are_false_of_their_images(finished: NegativesConfig) -> None:
    source, _ = read_complete(finished.prepared, "prepare")
    image_of = {r["sample_id"]: r["image_id"] for r in source.read_dataset("captions", CAPTIONS).to_pylist()}
    graphs = {r["image_id"]: r["graph"] for r in source.read_dataset("graphs", SCENE_GRAPHS).to_pylist()}
    for row in rows(finished.output, "negatives", NEGATIVES):
        assert is_true(row["negative"], scene_from_json(graphs[image_of[row["sample_id"]]])) is not True
        assert (row["engine"], row["model"]) == ("scripted", "scripted")
        assert len(row["prompt_sha"]) == 12


def test_generate_captions_that_read_alike_are_asked_for_once(finished: NegativesConfig) -> None:
    source, _ = read_complete(finished.prepared, "prepare")
    captions = source.read_dataset("captions", CAPTIONS)["caption"].to_pylist()
    keys = {text_key(caption) for caption in captions}
    assert len(keys) < len(captions)
    asked = Counter((r["key"], r["kind"], r["attempt"]) for r in rows(finished.output, "attempts", ATTEMPTS))
    assert {key for key, _, _ in asked} == keys
    assert set(asked.values()) == {1}


@pytest.mark.slow  # tests/unit/test_negatives_joint.py holds the rules
def test_generate_joint_asks_once_for_all_kinds_that_a_caption_lacks(prepared: str, tmp_path: Path) -> None:
    config = config_of(prepared, tmp_path / "joint", prompting="joint")
    counts = generate(config)
    for kind in Kind:
        assert sum(counts.get(f"captions.{kind}.{state}", 0) for state in STATES) == 180
        assert counts[f"captions.{kind}.ok"] > 0
    asked: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in rows(config.output, "attempts", ATTEMPTS):
        if row["state"] != "not_applicable":
            asked.setdefault((row["key"], row["attempt"]), []).append(row)
    assert {len(kinds) for kinds in asked.values()} > {1, 5}, "a second attempt is for what is lacking only"
    for request in asked.values():
        assert sum(row["prompt_tokens"] for row in request) == 100, "one request, whatever the kinds"
        assert sum(row["completion_tokens"] for row in request) == 12


@pytest.mark.slow  # tests/unit/test_negatives_slots.py holds the rules
def test_generate_slots_are_obeyed_and_false_of_their_images(prepared: str, tmp_path: Path) -> None:
    config = config_of(prepared, tmp_path / "slots", prompting="slots")
    counts = generate(config)
    for kind in Kind:
        assert sum(counts.get(f"captions.{kind}.{state}", 0) for state in STATES) == 180
    asked = [row for row in rows(config.output, "attempts", ATTEMPTS) if row["state"] != "not_applicable"]
    assert Counter(row["state"] for row in asked)["ok"] > 0.6 * len(asked)
    source, _ = read_complete(config.prepared, "prepare")
    image_of = {r["sample_id"]: r["image_id"] for r in source.read_dataset("captions", CAPTIONS).to_pylist()}
    graphs = {r["image_id"]: r["graph"] for r in source.read_dataset("graphs", SCENE_GRAPHS).to_pylist()}
    for row in rows(config.output, "negatives", NEGATIVES):
        assert is_true(row["negative"], scene_from_json(graphs[image_of[row["sample_id"]]])) is not True


def test_generate_rejects_tell_every_answer_that_failed(finished: NegativesConfig) -> None:
    reasons = Counter(r["reason"] for r in rows(finished.output, "rejects", REJECTS))
    wanted = {"no_text", "same_as_caption", "commentary", "markup", "cut_off", "timeout", "engine_error"}
    assert wanted <= set(reasons)


def test_generate_finished_folder_asks_nothing(
    finished: NegativesConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {p: p.stat().st_mtime_ns for p in Path(finished.output).rglob("*") if p.is_file()}
    generate(finished)
    assert "nothing to do" in capsys.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in Path(finished.output).rglob("*") if p.is_file()}


def test_generate_report_adds_up_and_mlflow_names_the_dataset(finished: NegativesConfig) -> None:
    storage, manifest = read_complete(finished.output, "negatives")
    report = storage.read_json("report.json")
    negatives = rows(finished.output, "negatives", NEGATIVES)
    assert report["totals"]["negatives"] == len(negatives)
    for kind, told in report["kinds"].items():
        assert sum(told["captions"].values()) == report["captions"] == 180
        assert told["negatives"] == sum(r["kind"] == kind for r in negatives)
        assert told["completion_tokens"] > 0
    page = storage.read_bytes("report.html").decode()
    assert page.count("<td>") > 100
    assert negatives[0]["engine"] in page

    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{Path(finished.output).parent}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("degla-ray").experiment_id])
    (dataset,) = run.inputs.dataset_inputs
    assert dataset.dataset.digest == manifest["fingerprint"]
    assert run.data.metrics["negatives"] == len(negatives)


def test_generate_estimate_writes_nothing_and_tells_what_all_would_take(
    finished: NegativesConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = replace(finished.generation, estimate=30, price_per_gpu_hour=2.0)
    generate(replace(finished, output=str(tmp_path / "out"), generation=asked))
    told = capsys.readouterr().out
    assert "from 30 of them" in told
    found = re.search(r"([\d,]+) negatives from ([\d,]+) answers", told)
    assert found
    expected = int(found[1].replace(",", ""))
    there = len(
        {(r["key"], r["kind"]) for r in rows(finished.output, "attempts", ATTEMPTS) if r["state"] == "ok"}
    )
    assert 0.6 * there < expected < 1.5 * there
    assert not (tmp_path / "out").exists()


def test_generate_vllm_without_its_interpreter_is_told_before_anything_is_written(
    finished: NegativesConfig, tmp_path: Path
) -> None:
    config = replace(finished, engine="vllm", output=str(tmp_path / "out"))
    with pytest.raises(SettingError, match=r"vllm\.python: .* expected an interpreter that has vLLM"):
        generate(config)
    missing = replace(config, vllm=replace(config.vllm, python="/nowhere/python"))
    with pytest.raises(SettingError, match=r"vllm\.python: .*make install-vllm"):
        generate(missing)
    assert not (tmp_path / "out").exists()


def test_generate_openai_without_a_server_is_told_before_anything_is_written(
    finished: NegativesConfig, tmp_path: Path
) -> None:
    config = replace(
        finished,
        engine="openai",
        output=str(tmp_path / "out"),
        openai=replace(finished.openai, base_url="http://127.0.0.1:9/v1"),
    )
    with pytest.raises(SettingError, match=r"openai\.model"):
        generate(config)
    with pytest.raises(SettingError, match=r"openai\.base_url: found 'http://127\.0\.0\.1:9/v1'"):
        generate(replace(config, openai=replace(config.openai, model="small")))
    assert not (tmp_path / "out").exists()


def test_generate_other_sampling_is_refused_by_name(finished: NegativesConfig) -> None:
    other = replace(finished, generation=replace(finished.generation, temperature=0.1))
    with pytest.raises(FingerprintMismatch, match=r"identity\.engine\.temperature: 0\.7 there, 0\.1 asked"):
        generate(other)


@pytest.mark.slow  # test_generate_stops_when_the_hours_are_used_up_… holds the rule
def test_generate_job_killed_twice_and_then_an_actor_goes_on_with_what_is_left(
    finished: NegativesConfig, tmp_path: Path, repo: Path
) -> None:
    """Every (caption, kind) ends exactly as in a run that nothing was killed in."""
    output = tmp_path / "out"
    command = [sys.executable, "jobs/negatives.py", "--prepared", finished.prepared, "--output", str(output)]
    command += ["--engine", "scripted", "--per_kind", "1", "--num_shards", "3", "--generation.attempts", "2"]
    command += ["--tracking.enabled", "false"]
    for _ in range(2):
        kill_once_the_ledger_grows(command, output, repo)
    assert not list(output.glob("receipts/*"))
    killed = threading.Thread(target=kill_an_engine)
    killed.start()
    generate(replace(finished, output=str(output)))
    killed.join()
    assert everything(str(output)) == everything(finished.output)


def kill_once_the_ledger_grows(command: list[str], output: Path, repo: Path) -> None:
    """Start a job, and kill it with its Ray once it has added to its ledger."""
    before = set(Storage(str(output)).names("ledger"))
    environment = {**os.environ, "PYTHONPATH": str(repo)}
    job = subprocess.Popen(command, cwd=repo, env=environment, start_new_session=True)
    try:
        deadline = time.monotonic() + 240
        while not set(Storage(str(output)).names("ledger")) - before:
            assert job.poll() is None, "the job ended before anything was in its ledger"
            assert time.monotonic() < deadline, "nothing in the ledger for 240 s"
            time.sleep(0.02)
    finally:
        family = [*psutil.Process(job.pid).children(recursive=True), psutil.Process(job.pid)]
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):  # gone with one that was killed before it
                process.send_signal(signal.SIGKILL)
        job.wait()


@pytest.mark.slow
def test_generate_with_an_actor_killed_gives_the_same(finished: NegativesConfig, tmp_path: Path) -> None:
    config = replace(finished, output=str(tmp_path / "out"))
    killed = threading.Thread(target=kill_an_engine)
    killed.start()
    generate(config)
    killed.join()
    assert everything(config.output) == everything(finished.output)


def kill_an_engine(deadline_s: float = 120.0) -> None:
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        for process in psutil.Process().children(recursive=True):
            try:
                if "ScriptedActor" in " ".join(process.cmdline()):
                    process.send_signal(signal.SIGKILL)
                    return
            except psutil.NoSuchProcess:
                continue
    raise AssertionError("no engine was ever seen")


@pytest.mark.slow
def test_generate_retry_failed_asks_for_the_errors_only(finished: NegativesConfig, tmp_path: Path) -> None:
    config = replace(finished, output=str(tmp_path / "out"))
    first = generate(config)
    again = generate(replace(config, generation=replace(config.generation, retry_failed=True)))
    errors = [sum(c.get(f"captions.{kind}.error", 0) for kind in Kind) for c in (first, again)]
    assert errors[0] > errors[1]
    attempts = {(r["key"], r["kind"]): 0 for r in rows(config.output, "attempts", ATTEMPTS)}
    states: dict[tuple[str, str], list[str]] = {entry: [] for entry in attempts}
    for row in rows(config.output, "attempts", ATTEMPTS):
        states[(row["key"], row["kind"])].append(row["state"])
    longer = [s for s in states.values() if len(s) > 2]
    assert longer
    assert all(s[1] == "error" for s in longer), "only what had ended in an error"


@pytest.mark.slow
def test_generate_fill_with_rules_says_whose_they_are(finished: NegativesConfig, tmp_path: Path) -> None:
    config = replace(
        finished,
        output=str(tmp_path / "out"),
        generation=replace(finished.generation, fill_with_rules=True),
    )
    counts = generate(config)
    engines = Counter(r["engine"] for r in rows(config.output, "negatives", NEGATIVES))
    assert engines["rules"] > 0 < engines["scripted"]
    assert engines.total() > len(rows(finished.output, "negatives", NEGATIVES))
    for kind in Kind:
        assert sum(counts.get(f"captions.{kind}.{state}", 0) for state in STATES) == 180


@pytest.mark.slow  # test_engine_pool_clock_… holds the count; other tests of this file go on with a folder
def test_generate_stops_when_the_hours_are_used_up_and_goes_on_later(
    finished: NegativesConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(finished, output=str(tmp_path / "out"))
    generate(replace(config, generation=replace(config.generation, max_gpu_hours=1e-9)))
    assert "max_gpu_hours are used up" in capsys.readouterr().out
    assert Storage(config.output).names("ledger"), "what was answered is kept"
    generate(config)
    assert everything(config.output) == everything(finished.output)


def test_generate_without_an_engine_gives_up_and_says_so(finished: NegativesConfig, tmp_path: Path) -> None:
    stuck = replace(
        finished,
        output=str(tmp_path / "out"),
        generation=replace(finished.generation, stall_s=0.01, timeout_s=0.005),
    )
    with pytest.raises(DeglaError, match=r"generation\.stall_s: 0 of 1 engines ready after 0\.01 s"):
        generate(stuck)
