#!/usr/bin/env python
"""Measure a GPU: training step, feed, evaluation and generation; write docs/gpu.md.

    make bench-gpu

The table of steps is the trainer's own step on one GPU, in as few micro-batches as fit its memory. The other
parts are benchmarks of this folder, called by their command lines, with their output. One that fails is noted
with its last lines, and the others still run. `--device cpu` runs the same code at tiny sizes and writes
nothing unless `--output` is given.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from benchmarks.train_step import Benchmark, K, trainer_step

REPO = Path(__file__).resolve().parents[1]
VLLM_PYTHON = REPO / ".venv-vllm" / "bin" / "python"
WARM_UP, TIMED, LIMIT_S = 5, 20, 3600
STEPS = "steps"


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What is measured on a kind of device."""

    models: tuple[str, ...]
    batches: tuple[int, ...]
    precision: str
    warm_up: int
    timed: int
    commands: dict[str, list[str]]
    """Name of a part -> arguments to python."""


def on_gpu(language_model: str) -> Sizes:
    """Return the sizes of a GPU's report."""
    decoders = str(max(1, len(os.sched_getaffinity(0)) - 2))
    answers = ["--answers", "2048", "--transformers_answers", "64", "--model", language_model]
    return Sizes(
        models=("ViT-B-32-quickgelu", "ViT-L-14-quickgelu"),
        batches=(32, 256, 1024),
        precision="bf16",
        warm_up=WARM_UP,
        timed=TIMED,
        commands={
            "step_trace": ["benchmarks/step_trace.py"],
            "train_step": [
                *("benchmarks/train_step.py", "--device", "cuda", "--precision", "bf16"),
                *("--batch", "32", "--steps", "20"),
            ],
            "data_wait": [
                *("benchmarks/data_wait.py", "--images", "4096", "--batch", "256", "--steps", "40"),
                *("--processes", decoders),
            ],
            "encode": ["benchmarks/encode.py", "--images", "8192"],
            "evaluate": ["benchmarks/evaluate.py", "--items", "7511"],
            "generation": ["benchmarks/generation.py", *answers, "--python", str(VLLM_PYTHON)],
        },
    )


def on_cpu(folder: Path, language_model: str) -> Sizes:
    """Return sizes that show on a CPU whether the code runs."""
    return Sizes(
        models=(tiny_model(folder),),
        batches=(2, 4),
        precision="fp32",
        warm_up=1,
        timed=1,
        commands={
            "step_trace": ["benchmarks/step_trace.py", "--steps", "1"],
            "train_step": ["benchmarks/train_step.py", "--batch", "2", "--steps", "1"],
            "data_wait": [
                *("benchmarks/data_wait.py", "--images", "32", "--batch", "8", "--steps", "2"),
                *("--processes", "1"),
            ],
            "encode": ["benchmarks/encode.py", "--images", "128", "--rounds", "1"],
            "evaluate": ["benchmarks/evaluate.py", "--items", "24"],
            "generation": [
                *("benchmarks/generation.py", "--answers", "16", "--transformers_answers", "8"),
                *("--model", language_model, "--python", str(VLLM_PYTHON)),
            ],
        },
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="(default: %(default)s)")
    parser.add_argument("--only", nargs="+", help="parts to run (default: all)")
    parser.add_argument("--output", type=Path, help="Markdown file to write (on a GPU: docs/gpu.md)")
    parser.add_argument("--llm", default="models/smollm2-135m", help="model folder (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("no CUDA device: nothing is measured (--device cpu runs the same code at tiny sizes)")
    output = options.output or (REPO / "docs" / "gpu.md" if options.device == "cuda" else None)
    with tempfile.TemporaryDirectory() as folder:
        is_gpu = options.device == "cuda"
        sizes = on_gpu(options.llm) if is_gpu else on_cpu(Path(folder), options.llm)
        parts = [STEPS, *sizes.commands]
        if unknown := set(options.only or ()) - set(parts):
            parser.error(f"--only: found {', '.join(sorted(unknown))}; expected some of {', '.join(parts)}")
        text, failed = heading(options.device), []
        for name in options.only or parts:
            section = Section.of(name, sizes, options.device)
            text += section.text
            failed += [] if section.ran else [name]
            print(section.text, flush=True)
            if output is not None:
                output.write_text(text, encoding="utf-8")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def heading(device: str) -> str:
    """Return the report's head: card, driver, versions, date and command."""
    commit = printed(["git", "describe", "--always", "--dirty"])
    vllm = printed([str(VLLM_PYTHON), "-c", "from importlib.metadata import version; print(version('vllm'))"])
    rows = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "card": "none: run on a CPU at tiny sizes, to see whether it runs",
        "host": f"{len(os.sched_getaffinity(0))} cores",
        "commit": commit,
        "torch": torch.__version__,
        "vLLM": vllm,
    }
    if device == "cuda":
        card = torch.cuda.get_device_properties(0)
        rows["card"] = f"{torch.cuda.device_count()} × {card.name}, {card.total_memory / 2**30:.0f} GiB"
        driver = printed(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"])
        rows |= {"driver": driver, "CUDA": str(torch.version.cuda)}
    table = "".join(f"| {name} | {value} |\n" for name, value in rows.items())
    return f"# Measured on a GPU\n\nWritten by `make bench-gpu`.\n\n| | |\n|---|---|\n{table}"


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the report."""

    text: str
    ran: bool

    @classmethod
    def of(cls, name: str, sizes: Sizes, device: str) -> Section:
        """Run a part."""
        if name == STEPS:
            return cls(text=step_table(sizes, device), ran=True)
        return cls.of_command(name, sizes.commands[name])

    @classmethod
    def of_command(cls, name: str, arguments: list[str]) -> Section:
        """Run a benchmark by its command line."""
        if name == "generation" and not VLLM_PYTHON.exists():
            return cls(text=f"\n## {name}\n\nNot run: no vLLM in {VLLM_PYTHON.parents[1].name}.\n", ran=True)
        environment = {**os.environ, "COLUMNS": "110", "PYTHONPATH": str(REPO)}
        command = [sys.executable, *arguments]
        try:
            done = subprocess.run(
                command, cwd=REPO, env=environment, capture_output=True, text=True, timeout=LIMIT_S
            )
            status, shown = done.returncode, done.stdout if done.returncode == 0 else done.stderr
        except subprocess.TimeoutExpired:
            status, shown = 124, f"no end after {LIMIT_S} s"
        lines = shown.strip().splitlines()[-(60 if status == 0 else 5) :]
        note = "" if status == 0 else f"Failed with exit status {status}:\n\n"
        body = "\n".join(line.rstrip() for line in lines)
        shown_command = " ".join(["python", *arguments])
        return cls(
            text=f"\n## {name}\n\n    {shown_command}\n\n{note}```\n{body}\n```\n".replace(f"{REPO}/", ""),
            ran=status == 0,
        )


def step_table(sizes: Sizes, device: str) -> str:
    """Return the section of the trainer's step, a row per model and batch."""
    lines = [
        "\n## Training step\n",
        f"DeGLA, K = {K}, {sizes.precision}, teacher and optimizer included, on one device.",
        "The limit is the rate of a large matrix product of the same type; FLOPs of unused tokens and of the",
        "second forward pass of micro-batches do not count.\n",
        "| model | batch | micro-batches | ms | samples/s | of the limit | peak GiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for model in sizes.models:
        lines += [step_row(model, batch, sizes, device) for batch in sizes.batches]
    return "\n".join(lines) + "\n"


def step_row(model: str, batch: int, sizes: Sizes, device: str) -> str:
    """Measure a step in as few micro-batches as fit the device's memory."""
    name, micro_batches = Path(model).stem, 1
    while micro_batches <= batch:
        options = argparse.Namespace(
            model=model,
            batch=batch,
            micro_batches=micro_batches,
            steps=sizes.warm_up + sizes.timed,
            device=device,
            precision=sizes.precision,
        )
        try:
            free_memory(device)
            seconds, share = step_time(options, sizes)
            peak = f"{torch.cuda.max_memory_allocated() / 2**30:.1f}" if device == "cuda" else "–"
        except torch.OutOfMemoryError:
            micro_batches *= 2
            continue
        rate = f"{seconds * 1e3:.1f} | {batch / seconds:,.0f} | {share:.0%}"
        return f"| {name} | {batch} | {micro_batches} | {rate} | {peak} |"
    return f"| {name} | {batch} | does not fit | | | | |"


def free_memory(device: str) -> None:
    """Give back what the measurement before held, and count the peak anew."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def step_time(options: argparse.Namespace, sizes: Sizes) -> tuple[float, float]:
    """Return seconds a step, without waiting for the device between steps, and the share of the limit."""
    benchmark = Benchmark(options)
    loaded, work = benchmark.loaded(), benchmark.batch()
    limit_s = benchmark.useful_flops(loaded, work) / benchmark.matmul_flops_per_s()
    step = trainer_step(loaded.model, loaded.preprocess_cfg, options)
    for _ in range(sizes.warm_up):
        step(work.batch, seed=0)
    benchmark.synchronise()
    started = time.perf_counter()
    for _ in range(sizes.timed):
        step(work.batch, seed=0)
    benchmark.synchronise()
    seconds = (time.perf_counter() - started) / sizes.timed
    return seconds, limit_s / seconds


def tiny_model(folder: Path) -> str:
    """Write the config of a CLIP that takes 224 pixels and CLIP's tokens; return its path."""
    tower = {"layers": 2, "width": 16}
    config = {
        "embed_dim": 16,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 224, "patch_size": 112, "head_width": 16, **tower},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "heads": 1, **tower},
    }
    path = folder / "tiny.json"
    path.write_text(json.dumps(config))
    return str(path)


def printed(command: list[str]) -> str:
    """Return what a command prints, or that it is missing."""
    try:
        return subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


if __name__ == "__main__":
    main()
