"""Captions and negatives as DeGLA's released JSON, and back again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from degla_ray.config import DeglaJsonConfig, ExportDeglaJsonConfig
from degla_ray.errors import DataError, SettingError
from degla_ray.schema import CAPTIONS, NEGATIVES, Kind
from degla_ray.sources.coco import coco_number
from degla_ray.sources.degla_json import DeglaJsonSource
from degla_ray.sources.export_degla_json import deal, export_degla_json, released_entries
from degla_ray.stage import StageFolder
from tests.fixtures_sources import list_balanced, write_coco_images

REPO = Path(__file__).resolve().parents[2]


def captions(*rows: tuple[str, str, str, str]) -> pa.Table:
    """Rows of sample_id, image_id, caption, split."""
    return pa.Table.from_pylist([dict(zip(CAPTIONS.names, row, strict=True)) for row in rows], CAPTIONS)


def negatives(counts: dict[str, int]) -> pa.Table:
    """So many negatives of each sample, the last first."""
    rows = [
        {"sample_id": sample_id, "kind": "swap_nouns", "negative": f"Wrong {sample_id} {k}."}
        | {"engine": "rules", "model": "", "prompt_sha": "", "attempt": 0}
        for sample_id, count in counts.items()
        for k in reversed(range(count))
    ]
    return pa.Table.from_pylist(rows, NEGATIVES)


def write_folders(folder: Path, table: pa.Table, wrong: pa.Table, **settings: Any) -> ExportDeglaJsonConfig:
    """Finished folders of both stages, as the jobs leave them."""
    prepared = StageFolder(str(folder / "prepared"), "prepare", {"made": "by hand"}, 1)
    prepared.write_part("captions", 0, table)
    made = StageFolder(str(folder / "negatives"), "negatives", {"prepared": prepared.fingerprint}, 1)
    made.write_part("negatives", 0, wrong)
    for stage in (prepared, made):
        stage.write_receipt(0, {})
        stage.finish()
    paths = {name: str(folder / name) for name in ("prepared", "negatives")}
    return ExportDeglaJsonConfig(**{**paths, "output": str(folder / "out" / "released.json"), **settings})


def small(folder: Path, **settings: Any) -> ExportDeglaJsonConfig:
    table = captions(
        ("100#1", "100", "A cat.", "train"),
        ("100#0", "100", "A dog, „quoted“.", "train"),
        ("9#0", "9", "A bird.", "train"),
        ("7#0", "7", "A fish.", "val"),
    )
    return write_folders(folder, table, negatives({"100#0": 5, "100#1": 4, "9#0": 3, "7#0": 5}), **settings)


def test_export_writes_what_the_source_reads_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = small(tmp_path)
    counts = export_degla_json(config)
    assert counts == {"captions": 3, "written": 2, "left_out": 1}
    line = "captions in 3 = written 2 + left out 1 (fewer than 4 negatives)"
    assert capsys.readouterr().out.splitlines() == [line]
    entries = json.loads(Path(config.output).read_text())
    plain = [{**entry, "enhanced": sorted(entry["enhanced"])} for entry in entries]
    assert plain == [
        {
            "image_id": 100,
            "original": "A dog, „quoted“.",
            "enhanced": [f"Wrong 100#0 {k}." for k in range(5)],
        },
        {"image_id": 100, "original": "A cat.", "enhanced": [f"Wrong 100#1 {k}." for k in range(4)]},
    ]
    write_coco_images(tmp_path / "coco", [100])
    source = DeglaJsonSource(
        DeglaJsonConfig(images=str(tmp_path / "coco"), annotations={"train": config.output})
    )
    listing = list_balanced(source)
    assert listing.rejects == []
    (record,) = listing.records
    assert [(c.caption, list(c.given)) for c in record.captions] == [
        (entry["original"], entry["enhanced"]) for entry in entries
    ]


def test_export_deals_kinds_in_turn_so_that_the_first_four_are_spread(tmp_path: Path) -> None:
    kinds = [kind.value for kind in Kind]
    by_kind = {kind: [f"{kind} {i}" for i in range(3)] for kind in kinds}
    first = [[text.split()[0] for text in deal(by_kind, f"0 {i}")[:4]] for i in range(500)]
    assert all(len(set(four)) == 4 for four in first)
    shares = Counter(kind for four in first for kind in four)
    assert all(0.17 < shares[kind] / 2000 < 0.23 for kind in kinds)
    assert deal(by_kind, "0 a") == deal(dict(reversed(by_kind.items())), "0 a") != deal(by_kind, "1 a")
    assert sorted(deal(by_kind, "0 a")) == sorted(text for texts in by_kind.values() for text in texts)
    assert deal({"a": ["x"], "b": ["y", "z"]}, "0")[2] in ("y", "z")


def test_export_takes_fewer_negatives_and_another_split_where_asked(tmp_path: Path) -> None:
    assert export_degla_json(small(tmp_path, min_negatives=1))["written"] == 3
    (tmp_path / "b").mkdir()
    assert export_degla_json(small(tmp_path / "b", split="val"))["captions"] == 1


@pytest.mark.parametrize(
    ("image_id", "number"),
    [
        ("9", 9),
        ("0", 0),
        ("184613", 184613),
        ("COCO_val2014_000000184613.jpg", 184613),
        ("coco/val2014/COCO_val2014_000000184613.jpg", 184613),
        ("train2017/000000000009.jpg", 9),
        ("train/00000/000000000009", 9),
        ("train/00000/COCO_train2014_000000000009", 9),
        ("p0.jpg", None),
        ("train/00000/9", None),
        ("000123", None),
        ("COCO_train2014_9.jpg", None),
        ("scenes-train-000000000009", None),
        ("١٢", None),
        ("", None),
    ],
)
def test_coco_number_is_found_in_ids_of_every_source(image_id: str, number: int | None) -> None:
    assert coco_number(image_id) == number


def test_export_image_without_a_coco_number_is_an_error_that_names_it(tmp_path: Path) -> None:
    config = write_folders(tmp_path, captions(("p#0", "p0.jpg", "A.", "train")), negatives({"p#0": 4}))
    with pytest.raises(DataError, match=r"prepared: found image 'p0\.jpg', which has no COCO number; "):
        export_degla_json(config)
    assert not Path(config.output).exists()


def test_export_two_images_of_one_number_are_an_error() -> None:
    table = captions(("a", "9", "A.", "train"), ("b", "val2014/COCO_val2014_000000000009.jpg", "B.", "train"))
    with pytest.raises(DataError, match="both COCO's 9; expected each image once"):
        released_entries(table, negatives({"a": 4, "b": 4}), 4, "prepared")


def test_export_negatives_of_another_folder_are_refused(tmp_path: Path) -> None:
    config = small(tmp_path)
    other = StageFolder(str(tmp_path / "other"), "prepare", {"made": "otherwise"}, 1)
    other.write_receipt(0, {})
    other.finish()
    settings = {"prepared": str(tmp_path / "other"), "negatives": config.negatives, "output": config.output}
    with pytest.raises(DataError, match="the negatives of another prepared folder"):
        export_degla_json(ExportDeglaJsonConfig(**settings))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"split": "test"}, SettingError, r"split: found 'test'; expected one of \['train', 'val'\]"),
        ({"min_negatives": 9}, DataError, "no caption with 9 negatives"),
        ({"output": ""}, SettingError, "output: "),
        ({"output": "{tmp}"}, SettingError, "output: .*the name of a JSON file"),
        ({"output": "{tmp}/"}, SettingError, "output: .*the name of a JSON file"),
        ({"prepared": "{tmp}/nowhere"}, DataError, r"no manifest\.json"),
    ],
)
def test_export_that_cannot_work_says_why(
    tmp_path: Path, settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    settings = {k: v.format(tmp=tmp_path) if isinstance(v, str) else v for k, v in settings.items()}
    with pytest.raises(error, match=message):
        export_degla_json(small(tmp_path, **settings))
    with pytest.raises(SettingError, match="min_negatives"):
        ExportDeglaJsonConfig(prepared="p", negatives="n", output="o", min_negatives=0)


def test_export_job_prints_its_accounts(tmp_path: Path) -> None:
    config = small(tmp_path)
    command = [sys.executable, "jobs/export_degla_json.py", "--prepared", config.prepared]
    command += ["--negatives", config.negatives, "--output", config.output]
    env = {**os.environ, "PYTHONPATH": str(REPO)}
    done = subprocess.run(command, cwd=REPO, env=env, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "captions in 3 = written 2 + left out 1 (fewer than 4 negatives)\n"
