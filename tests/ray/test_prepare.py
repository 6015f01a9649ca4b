"""Stage `prepare` on a local Ray: real files in, Parquet out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from degla_ray.config import CocoConfig, Flickr8kConfig
from degla_ray.errors import DataError, FingerprintMismatch, TooManyRejects
from degla_ray.schema import CAPTIONS, GIVEN, IMAGES, REJECTS
from degla_ray.sources.prepare import prepare
from degla_ray.stage import read_complete, shard_of
from tests.fixtures_sources import (
    SourceConfig,
    contents,
    decode,
    degla_entry,
    encode,
    karpathy_entry,
    negclip_row,
    noise,
    prepare_config,
    write_coco,
    write_degla_json,
    write_flickr8k,
    write_huggingface,
    write_karpathy,
    write_negclip,
    write_parquet,
    write_webdataset,
)

pytestmark = pytest.mark.usefixtures("ray_cluster")
REPO = Path(__file__).resolve().parents[2]


def read(output: Path) -> dict[str, pa.Table]:
    storage, manifest = read_complete(str(output), "prepare")
    tables = {
        name: storage.read_dataset(name, schema)
        for name, schema in (("images", IMAGES), ("captions", CAPTIONS), ("rejects", REJECTS))
    }
    check_accounts(tables, manifest["counts"])
    return tables


def check_accounts(tables: dict[str, pa.Table], counts: dict[str, int]) -> None:
    """Rows in = rows out + rejects, by what lies on disk; ids unique; captions beside their images."""
    for unit in ("image", "caption"):
        kinds = tables["rejects"]["kind"].to_pylist()
        assert counts[f"{unit}s_out"] == tables[f"{unit}s"].num_rows
        assert counts[f"{unit}s_rejected"] == kinds.count(unit)
        assert counts[f"{unit}s_in"] == tables[f"{unit}s"].num_rows + kinds.count(unit)
    images = tables["images"]["image_id"].to_pylist()
    samples = tables["captions"]["sample_id"].to_pylist()
    assert len(set(images)) == len(images)
    assert len(set(samples)) == len(samples)
    assert set(tables["captions"]["image_id"].to_pylist()) == set(images)


def reasons(tables: dict[str, pa.Table]) -> set[tuple[str, str]]:
    return set(
        zip(tables["rejects"]["sample_id"].to_pylist(), tables["rejects"]["reason"].to_pylist(), strict=True)
    )


def add_image(config: Flickr8kConfig, name: str, data: bytes) -> None:
    """An image with one caption in split train."""
    (Path(config.images) / name).write_bytes(data)
    with open(config.captions["train"], "a") as file:
        file.write(f"{name},A caption of {name} .\n")


def test_prepare_flickr8k_writes_each_image_once_with_its_very_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_flickr8k(tmp_path / "data", images=40, captions=5)
    counts = prepare(prepare_config(config, tmp_path / "out"))
    tables = read(tmp_path / "out")
    assert (counts["images_out"], counts["captions_out"]) == (40, 200)
    for row in tables["images"].to_pylist():
        assert row["image"] == (Path(config.images) / row["image_id"]).read_bytes()
        assert (row["width"], row["height"]) == (40, 30)
    printed = capsys.readouterr().out
    assert "images: 40 in = 40 out + 0 rejects" in printed
    assert "captions: 200 in = 200 out + 0 rejects" in printed
    assert "splits: train 39 images, val 1 images" in printed


def test_prepare_puts_images_and_their_captions_into_the_shard_of_the_image(tmp_path: Path) -> None:
    prepare(prepare_config(write_flickr8k(tmp_path / "data", images=20), tmp_path / "out", num_shards=3))
    storage, _ = read_complete(str(tmp_path / "out"), "prepare")
    for dataset in ("images", "captions"):
        for shard, name in enumerate(storage.names(dataset)):
            with storage.open_parquet(dataset, name) as file:
                for image_id in file.read(columns=["image_id"])["image_id"].to_pylist():
                    assert shard_of(image_id, 3) == shard


def test_prepare_bad_images_become_rejects_with_their_captions(tmp_path: Path) -> None:
    config = write_flickr8k(tmp_path / "data")
    two = {"save_all": True, "append_images": [noise(seed=9)]}
    bad = {
        "empty.jpg": (b"", "zero_byte"),
        "text.jpg": (b"this is no image", "unreadable"),
        "cut.jpg": (encode(noise())[:-200], "truncated"),
        "moving.gif": (encode(noise(), "GIF", **two), "animated"),
        "moving.png": (encode(noise(), "PNG", **two), "animated"),
        "moving.webp": (encode(noise(), "WEBP", **two), "animated"),
        "large.png": (encode(Image.new("1", (300, 300)), "PNG"), "oversized"),
    }
    for name, (data, _) in bad.items():
        add_image(config, name, data)
    converted = {
        "cmyk.jpg": encode(noise().convert("CMYK")),
        "palette.png": encode(noise().quantize(8), "PNG"),
        "alpha.png": encode(noise().convert("RGBA"), "PNG"),
        "deep.png": encode(Image.new("I;16", (9, 9), 40_000), "PNG"),
    }
    for name, data in converted.items():
        add_image(config, name, data)
    prepare(prepare_config(config, tmp_path / "out", max_image_pixels=80_000))
    tables = read(tmp_path / "out")
    expected = {(name, reason) for name, (_, reason) in bad.items()}
    assert reasons(tables) == expected | {(f"{name}#0", "caption_without_image") for name in bad}
    stored = {row["image_id"]: decode(row["image"]) for row in tables["images"].to_pylist()}
    assert set(converted) < set(stored)
    assert {stored[name].mode for name in converted} == {"RGB"}


def test_prepare_rows_rejected_by_the_driver_lie_in_shard_0(tmp_path: Path) -> None:
    config = write_flickr8k(tmp_path / "data")
    with open(config.captions["train"], "a") as file:
        file.write("p0.jpg,\nbroken\ngone.jpg,A ghost .\n../p.jpg,Outside .\n")
    (Path(config.images) / "mute.png").write_bytes(encode(noise(), "PNG"))
    prepare(prepare_config(config, tmp_path / "out"))
    assert reasons(read(tmp_path / "out")) == {
        ("p0.jpg#2", "empty_caption"),
        ("train.txt:13", "malformed_row"),
        ("gone.jpg", "missing_image"),
        ("gone.jpg#0", "caption_without_image"),
        ("../p.jpg", "outside_folder"),
        ("../p.jpg#0", "caption_without_image"),
        ("mute.png", "image_without_caption"),
    }
    storage, _ = read_complete(str(tmp_path / "out"), "prepare")
    with storage.open_parquet("rejects", "part-00000-of-00004.parquet") as file:
        assert file.metadata.num_rows == 7


def test_prepare_file_that_cannot_be_read_is_rejected(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root reads every file")
    config = write_flickr8k(tmp_path / "data")
    (Path(config.images) / "p0.jpg").chmod(0)
    prepare(prepare_config(config, tmp_path / "out"))
    assert ("p0.jpg", "unreadable") in reasons(read(tmp_path / "out"))


@pytest.mark.parametrize("make", [write_flickr8k, write_coco, write_huggingface, write_webdataset])
def test_prepare_same_settings_give_the_same_bytes(
    tmp_path: Path, make: Callable[[Path], SourceConfig]
) -> None:
    config = make(tmp_path / "data")
    for name in ("one", "two"):
        prepare(prepare_config(config, tmp_path / name, short_side=20))
    one = contents(tmp_path / "one")
    assert one == contents(tmp_path / "two")
    assert len(one) == 1 + 5 * 4  # a manifest; a receipt, images, index, captions and rejects per shard


def test_prepare_resumed_redoes_only_shards_without_a_receipt(tmp_path: Path) -> None:
    config = write_flickr8k(tmp_path / "data", images=30)
    add_image(config, "empty.jpg", b"")
    settings = prepare_config(config, tmp_path / "out")
    counts = prepare(settings)
    whole = contents(tmp_path / "out")
    # As after a kill: two receipts and the finish are missing, one part is half written.
    for shard in (0, 2):
        (tmp_path / "out" / "receipts" / f"{shard:05d}.json").unlink()
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    (tmp_path / "out" / "manifest.json").write_text(json.dumps({**manifest, "complete": False, "counts": {}}))
    (tmp_path / "out" / "images" / "part-00002-of-00004.parquet").unlink()
    (tmp_path / "out" / "images" / "part-00002-of-00004.parquet.tmp-abc").write_bytes(b"half")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("part-*.parquet")}
    assert prepare(settings) == counts
    assert contents(tmp_path / "out") == whole
    changed = {path.name[5:10] for path, when in before.items() if path.stat().st_mtime_ns != when}
    assert changed == {"00000", "00002"}


def test_prepare_finished_folder_is_left_alone_within_a_second_and_without_ray(tmp_path: Path) -> None:
    config = write_flickr8k(tmp_path / "data")
    prepare(prepare_config(config, tmp_path / "out"))
    before = contents(tmp_path / "out")
    script = (
        "import sys, time; from degla_ray.config import *; from degla_ray.sources.prepare import prepare\n"
        f"config = PrepareConfig(source='flickr8k', output={str(tmp_path / 'out')!r}, num_shards=4,"
        f" max_reject_fraction=0.5,"
        f" flickr8k=Flickr8kConfig(images={config.images!r}, captions={config.captions!r}))\n"
        "start = time.monotonic(); prepare(config)\n"
        "assert 'ray' not in sys.modules; assert time.monotonic() - start < 1"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=REPO, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "finished: nothing to do" in done.stdout
    assert "images: 6 in = 6 out + 0 rejects" in done.stdout
    assert contents(tmp_path / "out") == before


def test_prepare_accounts_that_do_not_balance_are_an_error(tmp_path: Path) -> None:
    config = prepare_config(write_flickr8k(tmp_path / "data"), tmp_path / "out")
    prepare(config)
    for name, change in (
        ("manifest.json", {"complete": False}),
        ("receipts/00001.json", {"captions_out": 99}),
    ):
        path = tmp_path / "out" / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DataError, match=r"12 captions in, 1[0-9][0-9] out and 0 rejected"):
        prepare(config)
    assert not json.loads((tmp_path / "out" / "manifest.json").read_text())["complete"]


def test_prepare_other_settings_in_the_same_folder_are_refused_with_the_difference(tmp_path: Path) -> None:
    config = write_flickr8k(tmp_path / "data")
    prepare(prepare_config(config, tmp_path / "out"))
    before = contents(tmp_path / "out")
    with pytest.raises(FingerprintMismatch, match=r"identity\.short_side: None there, 16 asked"):
        prepare(prepare_config(config, tmp_path / "out", short_side=16))
    with open(config.captions["val"], "a") as file:
        file.write("p5.jpg,One more .\n")
    with pytest.raises(FingerprintMismatch, match=r"identity\.flickr8k\.sha256\.val"):
        prepare(prepare_config(config, tmp_path / "out"))
    assert contents(tmp_path / "out") == before


def test_prepare_too_many_listed_rejects_stop_before_anything_is_written(tmp_path: Path) -> None:
    config = write_flickr8k(tmp_path / "data", images=10, captions=2)
    with open(config.captions["train"], "a") as file:
        file.write("gone.jpg,A ghost .\n" * 3 + "broken\n" * 2)
    with pytest.raises(TooManyRejects) as caught:
        prepare(prepare_config(config, tmp_path / "out", max_reject_fraction=0.15))
    message = str(caught.value)
    assert "6 of 36 rows rejected, 16.7%" in message  # an image, three captions of it, two broken lines
    assert (
        message.index("caption_without_image 3")
        < message.index("malformed_row 2")
        < message.index("missing_image 1")
    )
    assert "at most 15.0% (max_reject_fraction)" in message
    assert not (tmp_path / "out").exists()
    assert prepare(prepare_config(config, tmp_path / "out", max_reject_fraction=0.17))["images_out"] == 10


def test_prepare_too_many_bad_images_stop_and_a_higher_limit_continues(tmp_path: Path) -> None:
    config = write_flickr8k(tmp_path / "data", images=10, captions=1)
    for index in range(5):
        add_image(config, f"empty{index}.jpg", b"")
    with pytest.raises(TooManyRejects, match=r"zero_byte \d, e\.g\. empty\d\.jpg: the file is empty"):
        prepare(prepare_config(config, tmp_path / "out", max_reject_fraction=0.05))
    assert prepare(prepare_config(config, tmp_path / "out", max_reject_fraction=0.4))["images_rejected"] == 5
    read(tmp_path / "out")


def test_prepare_images_of_a_split_that_was_not_asked_for_do_not_stop_it(tmp_path: Path) -> None:
    config = write_flickr8k(tmp_path / "data", images=10)
    only = Flickr8kConfig(images=config.images, captions={"val": config.captions["val"]})
    counts = prepare(prepare_config(only, tmp_path / "out", max_reject_fraction=0.0))
    assert counts["images_in"] == 10
    assert counts["rejected.image.image_without_caption"] == 9
    assert read(tmp_path / "out")["images"].num_rows == 1


def test_prepare_csv_without_a_split_holds_out_images_with_all_their_captions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_flickr8k(tmp_path / "data", images=40)
    only = Flickr8kConfig(images=data.images, captions={"train": data.captions["train"]})
    counts = prepare(prepare_config(only, tmp_path / "out", max_reject_fraction=0.5, val_fraction=0.3))
    captions = read(tmp_path / "out")["captions"]
    images: dict[str, set[str]] = {"train": set(), "val": set()}
    for split, image in zip(captions["split"].to_pylist(), captions["image_id"].to_pylist(), strict=True):
        images[split].add(image)
    assert not images["train"] & images["val"]
    found = {split: len(each) for split, each in images.items()}
    assert found == {split: counts[f"images_out.{split}"] for split in found}
    assert f"splits: train {found['train']} images, val {found['val']} images" in capsys.readouterr().out


def test_prepare_coco_and_karpathy_give_the_same_rows(tmp_path: Path) -> None:
    official = write_coco(tmp_path / "official")
    entries = [karpathy_entry(i, "restval", "train2014") for i in range(100, 105)]
    for entry in entries:
        for j, sentence in enumerate(entry["sentences"]):
            sentence["raw"] = f"A cat on chair {entry['cocoid']} {j}."
    karpathy = write_karpathy(tmp_path / "karpathy", entries)
    train = CocoConfig(images=official.images, annotations={"train": official.annotations["train"]})
    prepare(prepare_config(train, tmp_path / "a"))
    prepare(prepare_config(karpathy, tmp_path / "b"))
    a, b = read(tmp_path / "a"), read(tmp_path / "b")
    assert a["images"].equals(b["images"])
    assert a["captions"].equals(b["captions"])
    assert a["captions"].num_rows == 10


def test_prepare_parquet_stores_the_very_bytes_and_rejects_rows_without_any(tmp_path: Path) -> None:
    config = write_huggingface(tmp_path / "data", images=30)
    bad = [
        {"image": {"bytes": cell, "path": "x.jpg"}, "caption": ["A."], "split": "train"}
        for cell in (None, b"")
    ]
    write_parquet(tmp_path / "data" / "z.parquet", bad)
    prepare(prepare_config(config, tmp_path / "out"))
    tables = read(tmp_path / "out")
    stored = {row["image_id"]: row["image"] for row in tables["images"].to_pylist()}
    for part in sorted((tmp_path / "out" / "images").iterdir()):
        ids = pq.read_table(part)["image_id"].to_pylist()
        assert ids == sorted(ids), "in the order of the source"
    assert not (tmp_path / "out" / "unpacked").exists()
    assert stored == {f"all-{i // 3:05d}-{i % 3:07d}": encode(noise(seed=i)) for i in range(30)}
    assert tables["captions"].num_rows == 60
    assert {r for r in reasons(tables) if not r[0].endswith("#0")} == {
        ("all-00010-0000000", "missing_image"),
        ("all-00010-0000001", "zero_byte"),
    }
    assert prepare(prepare_config(config, tmp_path / "out"))["images_out"] == 30


def test_prepare_webdataset_stores_the_very_bytes_and_uses_a_cut_shard_up_to_there(tmp_path: Path) -> None:
    config = write_webdataset(tmp_path / "data", shards=3, samples=6)
    path = tmp_path / "data" / "shard-001.tar"
    path.write_bytes(path.read_bytes()[: path.read_bytes().index(b"0004.jpg")])
    prepare(prepare_config(config, tmp_path / "out"))
    tables = read(tmp_path / "out")
    stored = {row["image_id"]: row["image"] for row in tables["images"].to_pylist()}
    assert stored == {
        f"{split}/shard-00{shard}/000{i}": encode(noise(seed=100 * shard + i))
        for shard, split, samples in ((0, "train", 6), (1, "train", 4), (2, "val", 6))
        for i in range(samples)
    }
    lost = [f"shard-001.tar:14336#{i}" for i in range(2)]  # the split's whole shard has 6, this one 4
    assert reasons(tables) == {(row, why) for row in lost for why in ("truncated", "caption_without_image")}
    assert prepare(prepare_config(config, tmp_path / "out"))["images_out"] == 16


def test_prepare_negatives_that_come_with_captions_lie_beside_them(tmp_path: Path) -> None:
    entries = [degla_entry(image_id, number) for image_id in range(1, 9) for number in range(2)]
    released = write_degla_json(tmp_path / "released", entries, list(range(1, 9)))
    (tmp_path / "released/train2014/COCO_train2014_000000000003.jpg").write_bytes(b"broken")
    prepare(prepare_config(released, tmp_path / "a"))
    read(tmp_path / "a")
    given = read_complete(str(tmp_path / "a"), "prepare")[0].read_dataset("given", GIVEN).to_pylist()
    expected = {
        (f"{entry['image_id']}#{i % 2}", "given", text)
        for i, entry in enumerate(entries)
        for text in entry["enhanced"]
        if entry["image_id"] != 3
    }
    assert {(row["sample_id"], row["kind"], row["negative"]) for row in given} == expected
    assert len(given) == 7 * 2 * 4

    negclip = write_negclip(tmp_path / "negclip", [negclip_row(i) for i in range(1, 9)], list(range(1, 9)))
    prepare(prepare_config(negclip, tmp_path / "b"))
    captions = set(read(tmp_path / "b")["captions"]["sample_id"].to_pylist())
    given = read_complete(str(tmp_path / "b"), "prepare")[0].read_dataset("given", GIVEN).to_pylist()
    assert len(given) == 16
    assert {row["sample_id"] for row in given} == captions


def test_prepare_short_side_is_kept_to(tmp_path: Path) -> None:
    config = write_flickr8k(tmp_path / "data")
    add_image(config, "tall.jpg", encode(noise(60, 400)))
    add_image(config, "small.png", encode(noise(8, 9), "PNG"))
    prepare(prepare_config(config, tmp_path / "out", short_side=16))
    rows = {row["image_id"]: row for row in read(tmp_path / "out")["images"].to_pylist()}
    sizes = {name: (row["width"], row["height"]) for name, row in rows.items()}
    assert (sizes["p0.jpg"], sizes["tall.jpg"], sizes["small.png"]) == ((21, 16), (16, 107), (8, 9))
    assert all(decode(row["image"]).size == sizes[name] for name, row in rows.items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--flickr8k.images", "nowhere"], "flickr8k.images: found 'nowhere'"),
        (["--flickr8k.captions", "{train: nowhere.txt}"], "flickr8k.captions.train: found 'nowhere.txt'"),
        (["--limit", "0"], "limit: found 0; expected at least 1, or null"),
        (["--output", ""], "output: found ''"),
    ],
)
def test_prepare_job_wrong_setting_is_one_line_and_exit_2(
    tmp_path: Path,
    options: list[str],
    message: str,
    run_stage: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = write_flickr8k(tmp_path / "data")
    captions = "{" + ", ".join(f"{split}: {path}" for split, path in config.captions.items()) + "}"
    given = ["--source", "flickr8k", "--output", tmp_path / "out"]
    given += ["--flickr8k.images", config.images, "--flickr8k.captions", captions]
    assert run_stage("prepare", *given, *options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: " + message)
    assert not (tmp_path / "out").exists()


def test_prepare_real_flickr8k_of_50_images(real_data: Path, tmp_path: Path) -> None:
    folder = (real_data / "flickr8k").resolve()
    captions = {split: str(folder / f"captions_{split}.txt") for split in ("train", "val")}
    config = Flickr8kConfig(images=str(folder / "Images"), captions=captions)
    counts = prepare(prepare_config(config, tmp_path / "out", limit=50, max_reject_fraction=0.0))
    tables = read(tmp_path / "out")
    assert (counts["images_in"], counts["captions_in"], counts["images_rejected"]) == (50, 250, 0)
    splits = tables["captions"]["split"].to_pylist()
    assert (splits.count("train"), splits.count("val")) == (215, 35)
    row = tables["images"].to_pylist()[0]
    assert row["image"] == (folder / "Images" / row["image_id"]).read_bytes()
