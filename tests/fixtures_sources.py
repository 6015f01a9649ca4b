"""Pictures and data set folders that the tests of the sources make for themselves."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from degla_ray.config import CocoConfig, Flickr8kConfig, PrepareConfig


def noise(width: int = 40, height: int = 30, seed: int = 0) -> Image.Image:
    """A smooth picture that compresses little and survives JPEG."""
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
    """A good data set: pictures p0.jpg ..., of which the last is in split val."""
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
    """Karpathy's file over `entries`, with the pictures of those whose names stay inside."""
    for entry in entries:
        subset = str(entry["filepath"]).replace("2014", year)
        name = entry["filename"] if year == "2014" else f"{entry['cocoid']:012d}.jpg"
        target = folder / subset / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(encode(noise(seed=entry["cocoid"])))
    path = folder / "dataset_coco.json"
    path.write_text(json.dumps({"images": entries, "dataset": "coco"}))
    return CocoConfig(images=str(folder), karpathy=str(path))


def prepare_config(source: Flickr8kConfig | CocoConfig, output: Path, **settings: Any) -> PrepareConfig:
    """Settings of `prepare` with 4 shards and any number of rejects allowed, unless told otherwise."""
    settings = {"num_shards": 4, "max_reject_fraction": 1.0, **settings}
    if isinstance(source, Flickr8kConfig):
        return PrepareConfig(source="flickr8k", flickr8k=source, output=str(output), **settings)
    return PrepareConfig(source="coco", coco=source, output=str(output), **settings)


def contents(folder: Path, *below: str) -> dict[str, str]:
    """Hash of every file below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for name in below or (".",)
        for path in sorted((folder / name).rglob("*"))
        if path.is_file()
    }
