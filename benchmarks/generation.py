#!/usr/bin/env python
"""Measure the generation of negatives by a language model: the whole of it, or all but the model.

    make install-vllm
    python benchmarks/generation.py --answers 384
    python benchmarks/generation.py --scripted 20000

The first compares the pipeline with plain `vllm.LLM.generate` and with transformers' `generate`: the same
prompts (captions of scenes, all five kinds), sampling and model, one after the other. The result is answers
per second once the engine is ready. The pipeline's time includes questions, quality checks and the ledger's
rows. transformers answers fewer prompts, in batches of 8 padded on the left.

The second runs the job with an engine that answers at once, and tells what the driver needs for an answer.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]
BATCH = 8
ENGINE = {
    "dtype": "bfloat16",
    "max_model_len": 2048,
    "enforce_eager": True,
    "enable_prefix_caching": True,
    "enable_chunked_prefill": False,  # vLLM 0.32 on a CPU: see degla_ray/negatives/llm/engines/vllm_engine.py
    "max_num_batched_tokens": 4096,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--answers", type=int, default=384, help="prompts (default: %(default)s)")
    parser.add_argument(
        "--transformers_answers", type=int, default=48, help="prompts for transformers (default: %(default)s)"
    )
    parser.add_argument("--model", default="models/smollm2-135m", help="folder (default: %(default)s)")
    parser.add_argument(
        "--python", default=".venv-vllm/bin/python", help="vLLM's interpreter (default: %(default)s)"
    )
    parser.add_argument(
        "--scripted", type=int, help="(caption, kind) pairs for an engine that answers at once"
    )
    parser.add_argument("--prompting", default="slots", help="with --scripted (default: %(default)s)")
    parser.add_argument("--role", choices=["vllm", "transformers"], help=argparse.SUPPRESS)
    parser.add_argument("--prompts", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:  # runs in vLLM's interpreter, where degla_ray is not installed
        prompts = json.loads(options.prompts.read_text(encoding="utf-8"))
        answer = bare_vllm if options.role == "vllm" else bare_transformers
        print(json.dumps(answer(options.model, prompts)))
        return
    if options.scripted:
        scripted(options.scripted, options.prompting)
        return
    compare(options)


def scripted(pairs: int, prompting: str) -> None:
    """Print the answers per second, the driver's CPU time per answer and its memory."""
    import psutil

    from degla_ray import ray_setup
    from degla_ray.config import GenerationConfig, NegativesConfig, RayConfig, TrackingConfig
    from degla_ray.negatives.pipeline import generate

    with tempfile.TemporaryDirectory() as folder:
        write_prepared(f"{folder}/prepared", pairs // 5)
        asked: Any = {"prompting": prompting}
        config = NegativesConfig(
            prepared=f"{folder}/prepared",
            output=f"{folder}/out",
            engine="scripted",
            per_kind=1,
            generation=GenerationConfig(**asked),
            tracking=TrackingConfig(enabled=False),
        )
        ray_setup.start(RayConfig())
        resident, over = list[float](), threading.Event()

        def watch() -> None:
            while not over.wait(1.0):
                resident.append(psutil.Process().memory_info().rss / 1e6)

        watching = threading.Thread(target=watch)
        watching.start()
        started, used = time.monotonic(), time.process_time()
        try:
            counts = generate(config)
        finally:
            over.set()
            ray_setup.stop()
        wall_s, driver_s = time.monotonic() - started, time.process_time() - used
    watching.join()
    states = ("ok", "rejected", "error")
    answers = sum(n for name, n in counts.items() if name.startswith("attempts.") and name.endswith(states))
    print(
        f"{answers:,} answers in {wall_s:.0f} s with the engine's start: {answers / wall_s:,.0f} answers/s; "
        f"driver {1000 * driver_s / answers:.3f} ms of CPU an answer; "
        f"{resident[len(resident) // 3]:.0f} MB after a third, {resident[-1]:.0f} MB at the end"
    )


def write_prepared(folder: str, captions: int) -> None:
    """Write a finished folder of stage `prepare` with distinct captions and no images."""
    import pyarrow as pa

    from degla_ray.schema import CAPTIONS
    from degla_ray.stage import StageFolder

    words = (
        ["small", "large", "young", "old"],
        ["brown", "black", "white", "grey", "red"],
        ["dog", "cat", "horse", "cow", "sheep", "goat", "bird", "bear", "zebra", "giraffe"],
        ["chases", "watches", "follows", "stands behind"],
        ["blue", "green", "yellow", "orange", "pink"],
        ["car", "bus", "truck", "boat", "bicycle", "train", "van", "tractor", "bench", "chair"],
    )
    texts = [
        "A {} {} {} {} a {} {}.".format(*chosen)
        for chosen in itertools.islice(itertools.product(*words), 0, None, max(1, 40_000 // captions))
    ][:captions]
    rows = [(f"s{i}", f"i{i}", text, "train") for i, text in enumerate(texts)]
    stage = StageFolder(folder, "prepare", {}, 1)
    columns = dict(zip(CAPTIONS.names, zip(*rows, strict=True), strict=True))
    stage.write_part("captions", 0, pa.table({k: list(v) for k, v in columns.items()}, schema=CAPTIONS))
    stage.write_receipt(0, {"captions_out": len(rows)})
    stage.finish()


def compare(options: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table

    from degla_ray.negatives.llm.prompting import load_prompts
    from degla_ray.schema import Kind

    requests = make_requests(options.answers)
    prompts = load_prompts(list(Kind), 12, seed=0)
    heads = {kind.value: prompt.messages() for (kind,), prompt in prompts.items()}
    chats = [
        {"turns": [*heads[q["kind"]], {"role": "user", "content": q["caption"]}], "seed": q["seed"]}
        for q in requests
    ]
    rates = {
        "pipeline": pipeline(options, requests, prompts),
        "vllm.LLM.generate": in_vllms_interpreter(options, "vllm", chats),
        f"transformers generate, batch {BATCH}": in_vllms_interpreter(
            options, "transformers", chats[:: max(1, len(chats) // options.transformers_answers)]
        ),
    }
    table = Table(title=f"{Path(options.model).name}, {len(requests)} prompts")
    table.add_column("")
    for heading in ("answers/s", "pipeline is"):
        table.add_column(heading, justify="right")
    for name, rate in rates.items():
        table.add_row(name, f"{rate:.2f}", f"{rates['pipeline'] / rate:.2f} x")
    Console().print(table)


def make_requests(number: int) -> list[dict[str, Any]]:
    """Return requests by kind, for captions of scenes to which all kinds are applicable."""
    from degla_ray.negatives.llm.answers import QualityChecks
    from degla_ray.negatives.llm.sending import request
    from degla_ray.schema import Kind

    kinds, checks = list(Kind), QualityChecks("vllm", "benchmark")
    wanted, captions = -(-number // len(kinds)), list(dict.fromkeys(scene_captions(8 * number)))
    captions = [c for c in captions if all(checks.applicable(c, kind) for kind in kinds)][:wanted]
    return [request(0, caption, kind.value) for kind in kinds for caption in captions][:number]


def scene_captions(number: int) -> list[str]:
    from degla_ray.config import ScenesConfig
    from degla_ray.sources.base import Record
    from degla_ray.sources.scenes.source import ScenesSource

    scenes = ScenesConfig(num_images=max(1, number // 3), num_validation_images=0, test_items=0)
    records = (r for r in ScenesSource(scenes).records() if isinstance(r, Record))
    return [caption.caption for record in records for caption in record.captions]


def pipeline(options: argparse.Namespace, requests: list[dict[str, Any]], prompts: Any) -> float:
    """Return answers per second once the engine is ready; the start of the other stages is included."""
    from degla_ray import ray_setup
    from degla_ray.config import GenerationConfig, NegativesConfig, RayConfig, VLLMConfig
    from degla_ray.negatives.llm.engines import ENGINES
    from degla_ray.negatives.llm.prompting import prompt_sha
    from degla_ray.negatives.llm.sending import GenerationJob, sender

    config = NegativesConfig(
        prepared="",
        output="",
        engine="vllm",
        vllm=VLLMConfig(model=options.model, python=options.python, enforce_eager=True),
        generation=GenerationConfig(attempts=1),
    )
    ray_setup.start(RayConfig())
    job = GenerationJob(
        config=config, engine=ENGINES["vllm"](config), prompts=prompts, prompt_sha=prompt_sha(prompts)
    )
    try:
        with (
            job.engine.pool(prompts).started(config.generation.stall_s) as engines,
            sender(job, engines, None) as sends,
        ):
            started = time.monotonic()
            answers = sum(len(rows) for rows in sends.answers_to(job, requests))
            return answers / (time.monotonic() - started)
    finally:
        ray_setup.stop()


def in_vllms_interpreter(options: argparse.Namespace, role: str, chats: list[dict[str, Any]]) -> float:
    with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file:
        json.dump(chats, file)
        file.flush()
        command = [options.python, __file__, "--role", role, "--model", options.model, "--prompts", file.name]
        done = subprocess.run(command, cwd=REPO, stdout=subprocess.PIPE, text=True, check=True)
    return float(json.loads(done.stdout.strip().splitlines()[-1]))


def bare_vllm(model: str, chats: list[dict[str, Any]]) -> float:
    import os

    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    from vllm import LLM, SamplingParams

    engine = LLM(model=model, **ENGINE)
    tokens = _tokens(model, chats)
    params = [SamplingParams(**_sampling(), seed=chat["seed"], stop=["\n"]) for chat in chats]
    started = time.monotonic()
    engine.generate([{"prompt_token_ids": t} for t in tokens], params, use_tqdm=False)
    return len(chats) / (time.monotonic() - started)


def bare_transformers(model: str, chats: list[dict[str, Any]]) -> float:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left", trust_remote_code=False)
    network = AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.bfloat16, trust_remote_code=False
    ).eval()
    tokens = _tokens(model, chats)
    started = time.monotonic()
    for start in range(0, len(tokens), BATCH):
        batch = tokenizer.pad({"input_ids": tokens[start : start + BATCH]}, return_tensors="pt")
        torch.manual_seed(chats[start]["seed"])
        sampling = _sampling()
        network.generate(
            **batch,
            do_sample=True,
            temperature=sampling["temperature"],
            top_p=sampling["top_p"],
            max_new_tokens=sampling["max_tokens"],
            stop_strings=["\n"],
            tokenizer=tokenizer,
        )
    return len(tokens) / (time.monotonic() - started)


def _sampling() -> dict[str, Any]:
    return {"temperature": 0.7, "top_p": 0.95, "max_tokens": 64}


def _tokens(model: str, chats: list[dict[str, Any]]) -> list[list[int]]:
    import runpy

    from transformers import AutoTokenizer

    # loaded from its path, as this interpreter has no degla_ray
    actor = runpy.run_path(str(REPO / "degla_ray" / "negatives" / "llm" / "engines" / "vllm_actor.py"))
    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    return [actor["prompt_tokens"](tokenizer, chat["turns"], {}) for chat in chats]


if __name__ == "__main__":
    main()
