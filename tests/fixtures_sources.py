"""Images and data set folders that the tests of the sources make for themselves."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from degla_ray.config import (
    CocoConfig,
    DeglaJsonConfig,
    Flickr8kConfig,
    NegclipTsvConfig,
    ParquetConfig,
    PrepareConfig,
    WebdatasetConfig,
)
from degla_ray.sources.base import Source, Unit, rejects_table
from degla_ray.sources.prepare import Listing, list_rows


def noise(width: int = 40, height: int = 30, seed: int = 0) -> Image.Image:
    """A smooth image that compresses little and survives JPEG."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def encode(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decode(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def write_flickr8k(folder: Path, images: int = 6, captions: int = 2) -> Flickr8kConfig:
    """A good data set: images p0.jpg ..., of which the last is in split val."""
    (folder / "Images").mkdir(parents=True)
    lines: dict[str, list[str]] = {"train": ["image,caption"], "val": ["image,caption"]}
    for index in range(images):
        (folder / "Images" / f"p{index}.jpg").write_bytes(encode(noise(seed=index), quality=90))
        split = "val" if index == images - 1 else "train"
        lines[split] += [f"p{index}.jpg,A dog runs , number {index} take {j} ." for j in range(captions)]
    for split, rows in lines.items():
        (folder / f"{split}.txt").write_text("\n".join(rows) + "\n")
    return Flickr8kConfig(
        images=str(folder / "Images"),
        captions={split: str(folder / f"{split}.txt") for split in lines},
    )


def write_coco(folder: Path, year: str = "2014", number: int = 5) -> CocoConfig:
    """A good data set of the official form with two captions an image: ids 100.. in train, 200.. in val."""
    annotations = {}
    for split, first in (("train", 100), ("val", 200)):
        subset = f"{split}{year}"
        (folder / subset).mkdir(parents=True)
        images, captions = [], []
        for image_id in range(first, first + number):
            name = f"COCO_{subset}_{image_id:012d}.jpg" if year == "2014" else f"{image_id:012d}.jpg"
            (folder / subset / name).write_bytes(encode(noise(seed=image_id)))
            images.append({"id": image_id, "file_name": name, "width": 40, "height": 30})
            captions += [
                {"id": image_id * 10 + j, "image_id": image_id, "caption": f"A cat on chair {image_id} {j}."}
                for j in range(2)
            ]
        path = folder / f"captions_{subset}.json"
        path.write_text(json.dumps({"images": images, "annotations": captions, "licenses": []}))
        annotations[split] = str(path)
    return CocoConfig(images=str(folder), annotations=annotations)


def karpathy_entry(image_id: int, split: str, subset: str = "val2014", **changes: Any) -> dict[str, Any]:
    raw = [f"A bird on a wire {image_id} {j}." for j in range(2)]
    entry = {
        "filepath": subset,
        "filename": f"COCO_{subset}_{image_id:012d}.jpg",
        "imgid": image_id - 100,
        "cocoid": image_id,
        "split": split,
        "sentids": [image_id * 10, image_id * 10 + 1],
        "sentences": [{"raw": text, "sentid": image_id * 10 + j, "tokens": []} for j, text in enumerate(raw)],
    }
    return {**entry, **changes}


def write_karpathy(folder: Path, entries: list[dict[str, Any]], year: str = "2014") -> CocoConfig:
    """Karpathy's file over `entries`, with the images of those whose names stay inside."""
    for entry in entries:
        subset = str(entry["filepath"]).replace("2014", year)
        name = entry["filename"] if year == "2014" else f"{entry['cocoid']:012d}.jpg"
        target = folder / subset / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(encode(noise(seed=entry["cocoid"])))
    path = folder / "dataset_coco.json"
    path.write_text(json.dumps({"images": entries, "dataset": "coco"}))
    return CocoConfig(images=str(folder), karpathy=str(path))


def write_parquet(path: Path, rows: list[dict[str, Any]], group_rows: int = 2, **types: pa.DataType) -> Path:
    """One Parquet file; `types` are those of columns that Arrow could not tell from the rows."""
    guessed = pa.Table.from_pylist(rows)
    schema = pa.schema([pa.field(f.name, types.get(f.name, f.type)) for f in guessed.schema])
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, row_group_size=group_rows)
    return path


def write_huggingface(folder: Path, images: int = 6) -> ParquetConfig:
    """Write Parquet files in the layout of Hugging Face: three images each, with a list of two captions."""
    rows = [
        {
            "image": {"bytes": encode(noise(seed=i)), "path": f"p{i}.jpg"},
            "caption": [f"A dog runs , number {i} take {j} ." for j in range(2)],
            "split": "val" if i == images - 1 else "train",
        }
        for i in range(images)
    ]
    for first in range(0, images, 3):
        write_parquet(folder / f"data-{first:05d}.parquet", rows[first : first + 3])
    return ParquetConfig(files={"all": [str(folder)]}, split_column="split")


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    """A plain tar file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def write_webdataset(folder: Path, shards: int = 2, samples: int = 3) -> WebdatasetConfig:
    """Write shards that each number their keys from the start; the last is in split val."""
    for shard in range(shards):
        files: dict[str, bytes] = {}
        for i in range(samples):
            files[f"{i:04d}.jpg"] = encode(noise(seed=100 * shard + i))
            files[f"{i:04d}.txt"] = f"A dog runs , shard {shard} number {i} .\n".encode()
            files[f"{i:04d}.json"] = json.dumps({"texts": [f"One {i}.", f"Two {i}."], "url": "x"}).encode()
        write_tar(folder / f"shard-{shard:03d}.tar", files)
    train = f"{folder}/shard-{{000..{shards - 2:03d}}}.tar"
    return WebdatasetConfig(
        shards={"train": [train], "val": [str(folder / f"shard-{shards - 1:03d}.tar")]},
    )


def degla_entry(image_id: int, number: int = 0, negatives: int = 4) -> dict[str, Any]:
    return {
        "image_id": image_id,
        "original": f"A cat on chair {image_id} {number}.",
        "enhanced": [f"A chair on cat {image_id} {number} {k}." for k in range(negatives)],
    }


def write_coco_images(folder: Path, image_ids: list[int], subset: str = "train2014") -> None:
    (folder / subset).mkdir(parents=True, exist_ok=True)
    for image_id in image_ids:
        name = f"COCO_{subset}_{image_id:012d}.jpg"
        (folder / subset / name).write_bytes(encode(noise(seed=image_id)))


def write_degla_json(folder: Path, entries: list[Any], images: list[int]) -> DeglaJsonConfig:
    """DeGLA's released file over `entries`, with images of these numbers."""
    write_coco_images(folder, images)
    path = folder / "released.json"
    path.write_text(json.dumps(entries, indent=1))
    return DeglaJsonConfig(images=str(folder), annotations={"train": str(path)})


def negclip_row(image_id: int, number: int = 0) -> list[str]:
    """title, filepath, neg_caption, neg_image."""
    negatives = [f"A mirror's sink {image_id} {number}.", f"Two sinks {image_id} {number} ."]
    path = f"coco/val2014/COCO_val2014_{image_id:012d}.jpg"
    return [f"There are two mirrors {image_id} {number}.", path, repr(negatives), "[2, 0, 1]"]


def write_negclip(folder: Path, rows: list[list[str]], images: list[int]) -> NegclipTsvConfig:
    """NegCLIP's file over `rows`, with images of these numbers."""
    write_coco_images(folder, images, "val2014")
    path = folder / "neg_clip.tsv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(["", "title", "filepath", "neg_caption", "neg_image"])
        writer.writerows([str(index), *row] for index, row in enumerate(rows))
    return NegclipTsvConfig(images=str(folder), annotations={"train": str(path)})


def list_balanced(source: Source, limit: int | None = None) -> Listing:
    """The listing, its records as a list, after checking that no row went missing in it."""
    listing = list_rows(source, limit)
    listing = dataclasses.replace(listing, records=list(listing.records))  # type: ignore[arg-type]
    images, captions = (sum(r.unit is u for r in listing.rejects) for u in (Unit.IMAGE, Unit.CAPTION))
    assert listing.images_in == len(listing.records) + images
    assert listing.captions_in == sum(len(r.captions) for r in listing.records) + captions
    assert rejects_table(listing.rejects).num_rows == len(listing.rejects)
    samples = [c.sample_id for r in listing.records for c in r.captions]
    assert len(set(samples)) == len(samples)
    return listing


def rejected(listing: Listing, unit: Unit) -> list[tuple[str, str]]:
    """(row_id, reason) of each reject."""
    return [(r.row_id, r.reason.value) for r in listing.rejects if r.unit is unit]


SourceConfig = (
    Flickr8kConfig | CocoConfig | ParquetConfig | WebdatasetConfig | DeglaJsonConfig | NegclipTsvConfig
)
_NAMES = {
    Flickr8kConfig: "flickr8k",
    CocoConfig: "coco",
    ParquetConfig: "parquet",
    WebdatasetConfig: "webdataset",
    DeglaJsonConfig: "degla_json",
    NegclipTsvConfig: "negclip_tsv",
}


def prepare_config(source: SourceConfig, output: Path, **settings: Any) -> PrepareConfig:
    """Return settings of `prepare` with 4 shards and no limit on rejects, unless overridden."""
    settings = {"num_shards": 4, "max_reject_fraction": 1.0, **settings}
    name = _NAMES[type(source)]
    return PrepareConfig(source=name, output=str(output), **{name: source}, **settings)  # type: ignore[arg-type]


def contents(folder: Path, *below: str) -> dict[str, str]:
    """Hash of every file below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for name in below or (".",)
        for path in sorted((folder / name).rglob("*"))
        if path.is_file()
    }
