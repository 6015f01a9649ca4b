"""Export captions and negatives as NegCLIP's training file, for training code that reads it.

Run by `jobs/export_negclip_tsv.py`. NegCLIP's code opens `filepath` unchanged. For every row it draws
one element of `neg_caption` and one of `neg_image`, so it also needs `neighbours`. All texts are held in
memory: about 1 GB for 414,000 captions with ten negatives.
"""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Iterable

from degla_ray.config import ExportNegclipTsvConfig
from degla_ray.errors import DataError, SettingError
from degla_ray.schema import NEIGHBOURS
from degla_ray.sources.coco import coco_number
from degla_ray.sources.export_degla_json import dealt, read_pair, too_few, write_file
from degla_ray.sources.listing import IMAGE_SUFFIXES
from degla_ray.stage import read_complete

HEADER = ("", "title", "filepath", "neg_caption", "neg_image")  # the first column is pandas' index


def export_negclip_tsv(config: ExportNegclipTsvConfig) -> dict[str, int]:
    """Write the file and return the counts captions, written and left_out.

    Raises:
        SettingError: the split does not exist, `output` is not a file name, or `filepath` does not name image
            files.
        DataError: the folders are unfinished or do not belong together, or no caption has enough negatives.
    """
    captions, negatives = read_pair(config.prepared, config.negatives, config.split)
    given = dealt(captions, negatives, config.seed)
    rows = [row for row in captions.to_pylist() if len(given[row["sample_id"]]) >= config.min_negatives]
    near = _neighbours(config)
    if near is not None:
        images = _images_with_neighbours({row["image_id"] for row in rows}, near)
        rows = [row for row in rows if row["image_id"] in images]
    if not rows:
        raise too_few(config.negatives, config.min_negatives)
    rows.sort(key=lambda row: (row["image_id"], row["sample_id"]))
    rows_of: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        rows_of.setdefault(row["image_id"], []).append(number)

    file = io.StringIO()
    writer = csv.writer(file, delimiter="\t", lineterminator="\n")
    writer.writerow(HEADER)
    for number, row in enumerate(rows):
        image_id, sample_id = row["image_id"], row["sample_id"]
        beside = [rows_of[name] for name in (near or {}).get(image_id, []) if name in rows_of]
        rng = random.Random(f"{config.seed} {sample_id}")
        neg_image = [rng.choice(numbers) for numbers in beside]
        path = filepath(config.filepath, image_id)
        writer.writerow([number, row["caption"], path, repr(given[sample_id]), repr(neg_image)])
    write_file(file.getvalue(), config.output, "a TSV file")

    counts = {"captions": captions.num_rows, "written": len(rows), "left_out": captions.num_rows - len(rows)}
    why = f"fewer than {config.min_negatives} negatives" + (", or no neighbour" if near is not None else "")
    accounts = f"written {counts['written']} + left out {counts['left_out']} ({why})"
    print(f"captions in {counts['captions']} = {accounts}")
    if near is None:
        print(
            "note: neg_image is empty, and NegCLIP's own training code draws from it; --neighbours fills it"
        )
    return counts


def filepath(pattern: str, image_id: str) -> str:
    """Return the path of an image file, made from the setting `filepath` and the image's id.

    Raises:
        SettingError: the pattern cannot be filled in, or the result is not the name of an image file.
    """
    number = coco_number(image_id)
    try:
        path = pattern.format(image_id=image_id, **({} if number is None else {"number": number}))
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        expected = f"a path with {{image_id}}, or {{number}} for COCO's images ({image_id!r}: {error!r})"
        raise SettingError("filepath", pattern, expected) from error
    if not path.lower().endswith(IMAGE_SUFFIXES):
        expected = "the path of an image file, e.g. train2014/COCO_train2014_{number:012d}.jpg"
        raise SettingError("filepath", path, f"{expected} (image {image_id!r})")
    return path


def _neighbours(config: ExportNegclipTsvConfig) -> dict[str, list[str]] | None:
    """Return each image's neighbours, nearest first; None if `neighbours` is not set."""
    if config.neighbours is None:
        return None
    storage, about = read_complete(config.neighbours, "neighbours")
    _, about_prepared = read_complete(config.prepared, "prepare")
    identity = about["made_from"]["identity"]
    if (identity["prepared"], identity["split"]) != (about_prepared["fingerprint"], config.split):
        expected = f"those of {config.prepared}, split {config.split!r}"
        raise DataError(config.neighbours, "neighbours of another folder or split", expected)
    table = storage.read_dataset("neighbours", NEIGHBOURS)
    return dict(zip(table["image_id"].to_pylist(), table["neighbours"].to_pylist(), strict=True))


def _images_with_neighbours(images: Iterable[str], near: dict[str, list[str]]) -> set[str]:
    """Return the largest subset of `images` in which every image has a neighbour."""
    kept = set(images)
    while lonely := {image for image in kept if kept.isdisjoint(near.get(image, []))}:
        kept -= lonely
    return kept
