"""A newcomer who copies one `next:` line after the other gets from scenes to a comparison."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from degla_ray.commands import COMMANDS, main

pytestmark = [
    pytest.mark.usefixtures("ray_cluster"),
    pytest.mark.timeout(600),
    pytest.mark.slow,  # tests/unit/test_next_command.py reads every line with the job's own parser
]


def _said_next(out: str) -> list[str]:
    """The stage and the options of the printed line, as a shell would read them."""
    (line,) = (line for line in out.splitlines() if line.startswith("next:"))
    program, stage, *options = shlex.split(line.removeprefix("next:"))
    assert program == "degla"
    return [stage, *options]


def test_next_lines_lead_from_prepare_to_a_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["degla"])
    scenes = {"num_images": 24, "num_validation_images": 4, "captions_per_image": 1, "test_items": 8}
    words = ["prepare", "--source", "scenes", "--output", "runs/scenes"]
    words += [f"--scenes.{name}={value}" for name, value in scenes.items()]
    stages, said = [], []
    while words[0] != "compare":
        main(words[0], words[1:])
        stages.append(words[0])
        said.append(capsys.readouterr().out)
        words = _said_next(said[-1])
    assert stages == ["prepare", "negatives", "train", "evaluate", "evaluate"]
    assert set(stages) <= set(COMMANDS)
    assert said[0].count("e.g. ") == 2
    assert "replace_nouns " in said[1]
    assert "step 1: loss " in said[2]
    assert [part.count("Composition") for part in said[3:]] == [1, 1]  # scores are printed once
    base, trained = words[2:4]
    assert base.startswith("runs/evaluate/scenes-base-")
    assert trained.startswith("runs/evaluate/scenes-")
    main("compare", words[1:])
    report, *runs = capsys.readouterr().out.splitlines()[-3:]
    assert report == f"report: {tmp_path}/runs/compare/report.html"
    assert "mlflow ui --backend-store-uri sqlite:///" in runs[0]
    assert "/#/experiments/" in runs[1]
