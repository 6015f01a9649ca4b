"""vLLM itself, with SmolLM2-135M: through Ray Data, with its engine killed, and as a server.

Needs `make install-vllm`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import ray

from degla_ray.config import (
    GenerationConfig,
    NegativesConfig,
    OpenAIConfig,
    PrepareConfig,
    ScenesConfig,
    TrackingConfig,
    VLLMConfig,
)
from degla_ray.errors import DeglaError, SettingError
from degla_ray.negatives.llm import sending
from degla_ray.negatives.llm.failures import NothingAccepted
from degla_ray.negatives.pipeline import generate
from degla_ray.schema import ATTEMPTS, Kind
from degla_ray.sources.prepare import prepare
from degla_ray.stage import read_complete
from degla_ray.storage import Storage

REPO = Path(__file__).resolve().parents[2]
PYTHON, MODEL = REPO / ".venv-vllm" / "bin" / "python", REPO / "models" / "smollm2-135m"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.usefixtures("ray_cluster"),
    pytest.mark.skipif(
        not (PYTHON.exists() and MODEL.is_dir()), reason="no .venv-vllm and models/: run `make install-vllm`"
    ),
]
KINDS = [Kind.SWAP_NOUNS, Kind.REPLACE_ADJECTIVES]


@pytest.fixture(scope="module")
def config(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> NegativesConfig:
    folder = tmp_path_factory.mktemp("vllm")
    scenes = ScenesConfig(num_images=4, num_validation_images=0, test_items=0)
    prepare(PrepareConfig(source="scenes", output=str(folder / "scenes"), scenes=scenes, num_shards=1))
    return NegativesConfig(
        prepared=str(folder / "scenes"),
        output=str(folder / "out"),
        engine="vllm",
        kinds=KINDS,
        per_kind=1,
        num_shards=1,
        vllm=VLLMConfig(model=str(MODEL), python=str(PYTHON), enforce_eager=True),
        generation=GenerationConfig(attempts=2),
        tracking=TrackingConfig(enabled=False),
    )


def generate_of_a_weak_model(config: NegativesConfig) -> None:
    """`generate`; a model of this size may write nothing for twelve captions that passes."""
    with contextlib.suppress(NothingAccepted):
        generate(config)


def answers(output: str) -> list[dict[str, object]]:
    rows = Storage(output).read_dataset("attempts", ATTEMPTS).to_pylist()
    return [row for row in rows if row["state"] != "not_applicable"]


def check_answers(config: NegativesConfig) -> None:
    rows = answers(config.output)
    assert len(rows) >= 12
    assert {row["state"] for row in rows} <= {"ok", "rejected"}, [
        r["text"] for r in rows if r["state"] == "error"
    ]
    assert all(row["prompt_tokens"] > 200 and row["completion_tokens"] >= 1 for row in rows)
    _, manifest = read_complete(config.output, "negatives")
    for kind in KINDS:
        states = (
            manifest["counts"].get(f"captions.{kind}.{s}", 0) for s in ("ok", "rejected", "not_applicable")
        )
        assert sum(states) == 12


def test_generate_vllm_answers_counts_tokens_and_caches_what_prompts_share(config: NegativesConfig) -> None:
    generate_of_a_weak_model(config)
    check_answers(config)
    rows = answers(config.output)
    assert sum(row["cached_tokens"] for row in rows) > 0.5 * sum(row["prompt_tokens"] for row in rows)


@pytest.mark.gpu
def test_generate_vllm_one_engine_on_a_gpu(config: NegativesConfig, tmp_path: Path) -> None:
    """The CUDA build of vLLM in .venv-vllm, with CUDA graphs, which the tests above leave out."""
    assert ray.cluster_resources()["GPU"] >= 1
    on_gpu = replace(config, output=str(tmp_path / "out"), vllm=replace(config.vllm, enforce_eager=False))
    generate_of_a_weak_model(on_gpu)
    check_answers(on_gpu)


def test_generate_vllm_joint_answers_have_every_kind(config: NegativesConfig, tmp_path: Path) -> None:
    joint = replace(
        config, output=str(tmp_path / "out"), generation=GenerationConfig(attempts=1, prompting="joint")
    )
    generate_of_a_weak_model(joint)
    rows = answers(joint.output)
    assert len(rows) >= 12
    whole = [row for row in rows if row["reason"] not in ("cut_off", "markup")]
    assert len(whole) > len(rows) / 2
    assert not any("{" in str(row["text"]) for row in whole), "the object's texts, not the object"


def test_generate_vllm_engine_killed_is_replaced_and_nothing_is_lost(
    config: NegativesConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "BLOCK", 3)
    config = replace(config, output=str(tmp_path / "out"))
    killed: list[int] = []
    watcher = threading.Thread(target=kill_engine_core, args=(tmp_path / "out" / "ledger", killed))
    watcher.start()
    generate_of_a_weak_model(config)
    watcher.join()
    assert killed
    check_answers(config)


def kill_engine_core(ledger: Path, killed: list[int], deadline_s: float = 300.0) -> None:
    """Kill the process that runs vLLM (a child of its actor) after its first answers."""
    end = time.monotonic() + deadline_s
    while time.monotonic() < end and not killed:
        if not list(ledger.glob("*.parquet")):
            time.sleep(0.02)
            continue
        for process in psutil.Process().children(recursive=True):
            try:
                if "VLLM::EngineCore" in " ".join(process.cmdline()):
                    process.send_signal(signal.SIGKILL)
                    killed.append(process.pid)
                    return
            except psutil.NoSuchProcess:
                continue


@pytest.fixture
def server() -> Iterator[str]:
    """A vLLM server on this machine; its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(PYTHON), "-m", "vllm.entrypoints.openai.api_server", "--model", str(MODEL)]
    command += ["--served-model-name", "small", "--host", "127.0.0.1", "--port", str(port), "--enforce-eager"]
    command += ["--dtype", "bfloat16", "--max-model-len", "2048", "--no-enable-chunked-prefill"]
    command += ["--max-num-batched-tokens", "4096"]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"VLLM_CPU_KVCACHE_SPACE": "1"}
    process = subprocess.Popen(
        command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 300
        while not _is_up(f"{address}/health"):
            assert process.poll() is None, "the server ended"
            assert time.monotonic() < deadline, "the server did not start within 300 s"
            time.sleep(1)
        yield f"{address}/v1"
    finally:
        family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
        for each in family:
            with contextlib.suppress(psutil.NoSuchProcess):  # gone with one that was killed before it
                each.send_signal(signal.SIGKILL)
        process.wait()


def _is_up(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def test_generate_openai_server_gives_answers_and_what_it_refuses_is_an_error(
    config: NegativesConfig, server: str, tmp_path: Path
) -> None:
    there = replace(
        config,
        engine="openai",
        output=str(tmp_path / "there"),
        openai=OpenAIConfig(base_url=server, model="small"),
    )
    generate_of_a_weak_model(there)
    check_answers(there)
    unknown = replace(
        there, output=str(tmp_path / "wrong"), openai=OpenAIConfig(base_url=server, model="no such model")
    )
    with pytest.raises(SettingError, match=r"openai\.model: found 'no such model'; expected one of small"):
        generate(unknown)
    refused = replace(
        there, output=str(tmp_path / "refused"), generation=GenerationConfig(attempts=1, max_tokens=4000)
    )
    with pytest.raises(
        DeglaError, match=r"the server refused all of \d+ requests with HTTP 400: .*max_tokens"
    ):
        generate(refused)
