"""A dry run says what a stage would do and writes nothing; a wrong setting is one line and exit status 2."""

from __future__ import annotations

import contextlib
import io
import shutil
from pathlib import Path

import pytest

from degla_ray.commands import COMMANDS, main
from degla_ray.config import DryRunConfig, Flickr8kConfig
from degla_ray.dry_run import Plan, Rate, show, without_flag
from degla_ray.errors import SettingError
from degla_ray.plans import PLANS
from degla_ray.sources.plan import plan as plan_prepare
from tests.fixtures_sources import prepare_config, write_flickr8k


def files_in(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*")}


def fails(stage: str, *words: str) -> str:
    """Run a stage that exits with status 2; return what it says."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), pytest.raises(SystemExit) as stopped:
        main(stage, list(words))
    assert stopped.value.code == 2
    return said.getvalue()


def options_of(source: Flickr8kConfig) -> list[str]:
    splits = ", ".join(f"{split}: {file}" for split, file in source.captions.items())
    return [
        "--source",
        "flickr8k",
        "--flickr8k.images",
        source.images,
        "--flickr8k.captions",
        f"{{{splits}}}",
    ]


def test_dry_run_of_prepare_counts_and_weighs_the_images_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_flickr8k(tmp_path / "data", images=6, captions=2)
    before = files_in(tmp_path)
    main("prepare", [*options_of(source), "--output", str(tmp_path / "out"), "--dry_run"])
    assert files_in(tmp_path) == before
    said = capsys.readouterr().out
    assert "6 images; 12 captions in all" in said
    assert "nothing was written" in said

    plan = plan_prepare(prepare_config(source, tmp_path / "out"))
    images = (tmp_path / "data" / "Images").iterdir()
    assert plan.size == sum(path.stat().st_size for path in images)
    assert (plan.amount, dict(plan.captions)) == (6, {"train": 10, "val": 2})
    assert plan.rate is not None


def test_dry_run_of_prepare_names_an_image_that_would_be_rejected(tmp_path: Path) -> None:
    source = write_flickr8k(tmp_path / "data")
    (tmp_path / "data" / "Images" / "p2.jpg").write_bytes(b"")
    [note] = plan_prepare(prepare_config(source, tmp_path / "out")).notes
    assert note.startswith("1 of them would be rejected")
    assert "p2.jpg" in note


@pytest.mark.parametrize(
    ("stage", "words", "told"),
    [
        (
            "prepare",
            ["--source", "csv", "--csv.images", "no/such", "--output", "x"],
            "csv.images: found 'no/such'",
        ),
        ("negatives", ["--prepared", "no/such", "--output", "x"], "no/such: found no manifest"),
        ("train", ["--name", "a", "--data.prepared", "no/such", "--objective.name", "clip"], "model.name"),
        (
            "evaluate",
            ["--model.name", "scenes-base", "--prepared", "no/such", "--output", "x"],
            "no/such: found",
        ),
        ("evaluate", ["--model.name", "scenes-bas", "--prepared", "x", "--output", "y"], "model.name: found"),
        ("compare", ["--evaluations", "a", "b"], "--dry_run: found 'compare'; expected a stage that has one"),
    ],
)
def test_dry_run_with_something_wrong_is_one_line(
    stage: str, words: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = fails(stage, *words, "--dry_run")
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert told in said
    assert files_in(tmp_path) == {}


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("--dry_run.samples_per_s=fast", "dry_run.samples_per_s: expected one of float"),
        ("--dry_run.sample_per_s=3", "did you mean --samples_per_s"),
        ("--dry_run.price_per_gpu_hour=-1", "price_per_gpu_hour: found -1.0; expected more than 0"),
    ],
)
def test_dry_run_option_that_is_none_is_named(word: str, told: str, tmp_path: Path) -> None:
    options = options_of(write_flickr8k(tmp_path / "data"))
    assert told in fails("prepare", *options, "--output", str(tmp_path / "out"), word)


def test_dry_run_words_are_taken_out_of_the_command_line() -> None:
    words = [
        "--name",
        "a",
        "--dry_run",
        "--dry_run.samples_per_s",
        "3",
        "--epochs=2",
        "--dry_run.items_per_s=4",
    ]
    assert without_flag(words) == (["--name", "a", "--epochs=2"], {"samples_per_s": "3", "items_per_s": "4"})
    assert without_flag(["--name", "--dry_runs"]) == (["--name", "--dry_runs"], None)


def test_dry_run_hours_and_cost_follow_from_the_speed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rate = Rate(per_second=500, origin="given")
    known = Plan(stage="train a", output=str(tmp_path), amount=7.2e6, rate=rate, workers=2, gpus=1, size=1e9)
    assert (known.hours, known.gpu_hours) == (2.0, 4.0)
    unknown = Plan(stage="train b", output=str(tmp_path), amount=1, gpus=1, option="samples_per_s")
    done = Plan(stage="prepare", output=str(tmp_path))
    assert (unknown.hours, unknown.gpu_hours, done.hours) == (None, None, 0.0)

    show([done, known], DryRunConfig(price_per_gpu_hour=3.0))
    *_, total = (line for line in capsys.readouterr().out.splitlines() if "all" in line and "2.00" in line)
    assert "4.00" in total
    assert "12.00" in total
    show([known, unknown], DryRunConfig())
    said = capsys.readouterr().out
    assert "cost" not in said.partition("room:")[0]
    assert "hours of train b: unknown; --dry_run.samples_per_s N gives them" in said


def test_dry_run_refuses_what_the_disk_has_no_room_for(tmp_path: Path) -> None:
    """Stages that share a disk are added up."""
    free = shutil.disk_usage(tmp_path).free
    plans = [
        Plan(stage=stage, output=str(tmp_path / stage / "x"), amount=1, size=0.6 * free)
        for stage in ("a", "b")
    ]
    show(plans[:1], DryRunConfig())
    with pytest.raises(SettingError, match=r"output: found .*; expected a disk with room for"):
        show(plans, DryRunConfig())


def test_dry_run_refuses_an_output_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingError, match=r"output: .* a folder that can be written"):
        show([Plan(stage="a", output=str(tmp_path / "file" / "x"), amount=1)], DryRunConfig())


def test_dry_run_is_in_the_help_of_the_stages_that_have_it(capsys: pytest.CaptureFixture[str]) -> None:
    for stage in COMMANDS:
        with pytest.raises(SystemExit):
            main(stage, ["--help"])
        assert ("--dry_run" in capsys.readouterr().out) == (stage in PLANS)
