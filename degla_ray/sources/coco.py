"""COCO captions from the official captions_*.json (2014, 2017) or Karpathy's dataset_coco.json.

Both give the same ids (COCO's image number and annotation id), and images are found under their 2014 or
2017 name, whichever is in the folder. Karpathy's `restval` counts as training data, as is customary.
The driver reads the whole JSON file into memory: about 1 GB for the 2014 train captions.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from typing import Any

from degla_ray.config import CocoConfig
from degla_ray.errors import DataError, SettingError
from degla_ray.identity import canonical
from degla_ray.schema import RejectReason
from degla_ray.sources.base import Note, Record, Refusal, Reject, RowsRead, Source, Unit
from degla_ray.sources.listing import (
    ImageFolder,
    NamedCaption,
    NamedImage,
    load_json,
    read_annotations,
    reject_caption,
    require_annotations,
    sha256,
    to_rows,
)

_COCO_NAME = re.compile(r"(?:COCO_(?:train|val|test)2014_)?([0-9]{12})\.jpg")
_PLAIN_NUMBER = re.compile(r"0|[1-9][0-9]{0,11}")
_YEAR_FOLDER = re.compile(r"(train|val|test)(2014|2017)")
SPLIT_ALIASES = {"restval": "train"}


class CocoSource(Source):
    """COCO captions; image_id is COCO's image number and sample_id its annotation id, both as text.

    Raises:
        SettingError: a folder or file named in the settings does not exist, or both formats are given.
    """

    spare = frozenset({RejectReason.IMAGE_WITHOUT_CAPTION})

    def __init__(self, config: CocoConfig, follow_links: bool = False) -> None:
        self._config = config
        self._folder = ImageFolder(config.images, "coco.images", follow_links)
        if config.karpathy is not None and config.annotations:
            raise SettingError("coco.annotations", dict(config.annotations), "nothing beside coco.karpathy")
        if config.karpathy is None and not config.annotations:
            raise SettingError("coco.annotations", {}, "captions_*.json of each split, or coco.karpathy")
        self._files = (
            {"coco.karpathy": config.karpathy}
            if config.karpathy is not None
            else {f"coco.annotations.{split}": path for split, path in config.annotations.items()}
        )
        for setting, path in self._files.items():
            require_annotations(path, setting)

    def identity(self) -> dict[str, Any]:
        hashes = {setting: sha256(read_annotations(path, setting)) for setting, path in self._files.items()}
        return {"settings": canonical(self._config), "sha256": hashes}

    def records(self) -> Iterator[Record | Reject | RowsRead | Note]:
        images: dict[str, NamedImage] = {}
        for setting, path in self._files.items():
            content = load_json(read_annotations(path, setting), path)
            if self._config.karpathy is None:
                yield from _official(content, path, setting.rpartition(".")[2], images)
            else:
                yield from _karpathy(content, path, images)
        yield from to_rows(images.values(), self._folder.list())

    def read_image(self, locator: str) -> bytes:
        return self._folder.read(locator)


def coco_number(image_id: str) -> int | None:
    """Return COCO's image number from an id that is the number or ends in a COCO file name; else None."""
    name = posixpath.basename(image_id)
    if match := _COCO_NAME.fullmatch(name if name.endswith(".jpg") else f"{name}.jpg"):
        return int(match[1])
    return int(image_id) if _PLAIN_NUMBER.fullmatch(image_id) else None


def file_names(file_name: str, folder: str) -> tuple[str, ...]:
    """Return candidate paths of an image below the image folder: its given name first, then COCO's others."""
    base = posixpath.basename(file_name)
    names = [file_name, f"{folder}/{file_name}"] if folder else [file_name]
    names.append(base)
    if match := _COCO_NAME.fullmatch(base):
        number = match[1]
        for subset in ("train", "val", "test"):
            old, new = f"COCO_{subset}2014_{number}.jpg", f"{number}.jpg"
            names += [f"{subset}2014/{old}", f"{subset}2017/{new}", old, new]
    return tuple(dict.fromkeys(names))


def _official(
    content: Any, path: str, split: str, images: dict[str, NamedImage]
) -> Iterator[Reject | RowsRead]:
    entries, annotations = _list_of(content, "images", path), _list_of(content, "annotations", path)
    yield RowsRead(images=len(entries), captions=len(annotations))
    name = posixpath.basename(path)
    year = _YEAR_FOLDER.search(name)
    here: set[str] = set()
    for index, entry in enumerate(entries):
        where = f"{name} images[{index}]"
        image_id, file_name = _identifier(entry, "id"), _text(entry, "file_name")
        if image_id is None or file_name is None:
            yield _reject_image(where, "", RejectReason.MALFORMED_ROW, "no usable id or file_name", entry)
        elif image_id in images:
            detail = f"image {image_id!r} again, first in {images[image_id].where}"
            yield _reject_image(where, image_id, RejectReason.DUPLICATE_ID, detail, entry)
            here.add(image_id)
        else:
            names = file_names(file_name, year[0] if year else "")
            images[image_id] = NamedImage(image_id=image_id, names=names, where=where)
            here.add(image_id)
    for index, entry in enumerate(annotations):
        where = f"{name} annotations[{index}]"
        sample_id, image_id = _identifier(entry, "id"), _identifier(entry, "image_id")
        if sample_id is None or image_id is None:
            row = NamedCaption("", entry, split, where)
            yield reject_caption(row, Refusal(RejectReason.MALFORMED_ROW, "no usable id or image_id"))
            continue
        row = NamedCaption(sample_id, entry.get("caption"), split, where)
        if image_id in here:
            images[image_id].captions.append(row)
        else:
            detail = f"no image {image_id!r} in {name}"
            yield reject_caption(row, Refusal(RejectReason.CAPTION_WITHOUT_IMAGE, detail), image_id)


def _karpathy(content: Any, path: str, images: dict[str, NamedImage]) -> Iterator[Reject | RowsRead]:
    entries = _list_of(content, "images", path)
    name = posixpath.basename(path)
    captions = 0
    for index, entry in enumerate(entries):
        where = f"{name} images[{index}]"
        sentences = entry.get("sentences") if isinstance(entry, dict) else None
        sentences = sentences if isinstance(sentences, list) else []
        captions += len(sentences)
        image_id = _identifier(entry, "cocoid") or _identifier(entry, "imgid")
        file_name, split = _text(entry, "filename"), _text(entry, "split")
        why = _refuse(image_id, file_name, split, images)
        if why is not None:
            yield _reject_image(where, image_id or "", why.reason, why.detail, entry)
            for number, sentence in enumerate(sentences):
                row = _sentence(sentence, image_id or where, number, split or "", where)
                lost = Refusal(RejectReason.CAPTION_WITHOUT_IMAGE, f"its image: {why.detail}")
                yield reject_caption(row, lost, image_id or "")
            continue
        assert image_id is not None and file_name is not None and split is not None  # noqa: PT018 (else refused)
        folder = _text(entry, "filepath") or ""
        named = posixpath.join(folder, file_name)
        image = NamedImage(image_id=image_id, names=file_names(named, ""), where=where)
        split = SPLIT_ALIASES.get(split, split)
        image.captions = [_sentence(s, image_id, i, split, where) for i, s in enumerate(sentences)]
        images[image_id] = image
    yield RowsRead(images=len(entries), captions=captions)


def _refuse(
    image_id: str | None, file_name: str | None, split: str | None, images: dict[str, NamedImage]
) -> Refusal | None:
    if not (image_id and file_name and split):
        return Refusal(RejectReason.MALFORMED_ROW, "no usable cocoid, filename or split")
    if image_id in images:
        return Refusal(
            RejectReason.DUPLICATE_ID, f"image {image_id!r} again, first in {images[image_id].where}"
        )
    return None


def _sentence(sentence: Any, image_id: str, number: int, split: str, where: str) -> NamedCaption:
    value = sentence.get("raw") if isinstance(sentence, dict) else sentence
    sample_id = _identifier(sentence, "sentid") or f"{image_id}#{number}"
    return NamedCaption(sample_id, value, split, f"{where}.sentences[{number}]")


def _list_of(content: Any, key: str, path: str) -> list[Any]:
    if not isinstance(content, dict) or not isinstance(content.get(key), list):
        found = sorted(content)[:8] if isinstance(content, dict) else type(content).__name__
        raise DataError(path, f"no list {key!r} ({found})", "captions in COCO's or Karpathy's format")
    return list(content[key])


def _identifier(entry: Any, key: str) -> str | None:
    """Return an id as text; None if it is missing or is neither an integer nor text."""
    value = entry.get(key) if isinstance(entry, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    text = str(value)
    return text if text and text.isprintable() else None


def _text(entry: Any, key: str) -> str | None:
    value = entry.get(key) if isinstance(entry, dict) else None
    return value if isinstance(value, str) and value else None


def _reject_image(where: str, image_id: str, reason: RejectReason, detail: str, entry: Any) -> Reject:
    return Reject(
        unit=Unit.IMAGE,
        row_id=image_id or where,
        reason=reason,
        detail=f"{where}: {detail}",
        text=str(entry.get("file_name", entry.get("filename", entry)) if isinstance(entry, dict) else entry),
        image_id=image_id,
    )
