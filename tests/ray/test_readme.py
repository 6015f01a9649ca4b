"""README's six commands for own data, run in order as they are printed, on forty images."""

from __future__ import annotations

import csv
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fixtures_sources import encode, noise

pytestmark = pytest.mark.usefixtures("ray_cluster")
PUBLISHED = "--model.name ViT-B-32-quickgelu --model.pretrained openai"
SMALL = "--model.name scenes-base"
FEWER = {
    "prepare": "--num_shards 2",
    "negatives": "--num_shards 2",
    "train": "--max_steps 2 --global_batch_size 4 --optimizer.warmup_steps 1",
    "evaluate": "--num_actors 1 --bootstrap_samples 20",
    "compare": "",
}


def commands(readme: str) -> list[str]:
    """Return the lines of the first block of commands under "Your own data"."""
    section = readme.partition("## Your own data\n")[2]
    block = re.search(r"```sh\n(.*?)```", section, re.DOTALL)
    assert block
    return block[1].replace("\\\n", " ").splitlines()


def write_photos(folder: Path) -> None:
    """Write images and the tables that the commands name."""
    (folder / "images").mkdir(parents=True)
    tables: dict[str, list[tuple[str, str]]] = {"captions": [], "train": [], "val": []}
    for i in range(40):
        (folder / "images" / f"{i}.jpg").write_bytes(encode(noise(seed=i)))
        dog, ball = ("black", "brown", "white")[i % 3], ("red", "blue")[i % 2]
        row = (f"{i}.jpg", f"a {dog} dog with a {ball} ball near a small child, number {i}")
        for split in ("captions", "val" if i % 4 == 0 else "train"):
            tables[split].append(row)
    for split, rows in tables.items():
        with (folder / f"{split}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("image", "caption"), *rows])


def test_readme_commands_for_own_data_run_in_order(
    repo: Path,
    tmp_path: Path,
    run_stage: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_photos(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    printed = commands((repo / "README.md").read_text())
    stages = []
    for line in printed:
        program, stage, *options = shlex.split(line.replace(PUBLISHED, SMALL).replace("DIR/", "photos/"))
        assert program == "degla"
        [run, *_] = [*tmp_path.glob("runs/train/photos-*"), Path("RUN")]
        options = [word.replace("/RUN/", f"/{run.name}/") for word in options]
        assert run_stage(stage, *options, *shlex.split(FEWER[stage])) == 0, capsys.readouterr().err
        stages.append(stage)
    assert stages == ["prepare", "negatives", "evaluate", "train", "evaluate", "compare"]
    assert sum(PUBLISHED in line for line in printed) == 2
    report = (tmp_path / "runs" / "compare" / "report.html").read_text()
    assert {"base", "photos"} <= set(re.findall(r"\w+", report))
