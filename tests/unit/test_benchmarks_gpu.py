"""`make bench-gpu`: the report's code at tiny sizes on the CPU, and what it says of what is missing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import gpu

FAILS = ["-c", "import sys; print('half a table'); sys.exit('no room')"]


@pytest.fixture
def report(tmp_path: Path) -> Path:
    return tmp_path / "gpu.md"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_bench_gpu_without_cuda_is_one_line_and_writes_nothing(report: Path) -> None:
    with pytest.raises(SystemExit, match=r"^no CUDA device: nothing is measured \(--device cpu .*\)$"):
        gpu.main(["--output", str(report)])
    assert not report.exists()


def test_bench_gpu_on_the_cpu_measures_every_step_of_its_table(report: Path) -> None:
    gpu.main(["--device", "cpu", "--only", "steps", "--output", str(report)])
    text = report.read_text()
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "tiny" in line
    ]
    assert [row[:3] for row in rows[-2:]] == [["tiny", "2", "1"], ["tiny", "4", "1"]]
    assert all(float(row[3]) > 0 and float(row[4].replace(",", "")) > 0 for row in rows[-2:])
    assert torch.__version__ in text
    assert "| card | none" in text


def test_bench_gpu_takes_more_micro_batches_until_the_step_fits(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    measured, tried = gpu.step_time, []

    def step_time(options: object, sizes: gpu.Sizes) -> tuple[float, float]:
        tried.append(options.micro_batches)  # type: ignore[attr-defined]
        if tried[-1] < 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return measured(options, sizes)  # type: ignore[arg-type]

    monkeypatch.setattr(gpu, "step_time", step_time)
    row = gpu.step_row(gpu.tiny_model(tmp_path), 4, gpu.on_cpu(tmp_path, ""), "cpu")
    assert tried == [1, 2]
    assert row.startswith("| tiny | 4 | 2 | ")


def test_bench_gpu_a_benchmark_that_fails_is_noted_with_its_last_line() -> None:
    failed = gpu.Section.of_command("data_wait", FAILS)
    assert not failed.ran
    assert "Failed with exit status 1:\n\n```\nno room\n```" in failed.text
    done = gpu.Section.of_command("data_wait", ["-c", "print('a table')"])
    assert done.ran
    assert "```\na table\n```" in done.text


@pytest.mark.parametrize(
    "name", ["step_trace", "train_step", "data_wait", "encode", "evaluate", "generation"]
)
def test_bench_gpu_gives_each_benchmark_options_that_it_has(name: str, tmp_path: Path, repo: Path) -> None:
    for sizes in (gpu.on_gpu("llm"), gpu.on_cpu(tmp_path, "llm")):
        script, *arguments = sizes.commands[name]
        if not (repo / script).exists():
            pytest.skip(f"no {script}")
        source = (repo / script).read_text()
        for option in (word for word in arguments if word.startswith("--")):
            assert f'"{option}"' in source
