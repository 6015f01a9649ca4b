"""Turn the names in an annotation file into records: find the images and check the captions.

Every source with images as files in a folder uses this module. The folder is listed once (one system call per
few hundred names); only names missing from the listing are looked up individually.
Links directly in the folder, such as a linked train2014, are the user's own and are followed; deeper links
are followed only if they stay inside the folder.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import posixpath
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from degla_ray.errors import DataError, SettingError
from degla_ray.identity import canonical
from degla_ray.schema import RejectReason
from degla_ray.sources.base import Caption, Note, Record, Refusal, Reject, Source, Unit, check_caption
from degla_ray.sources.files import some
from degla_ray.storage import Storage

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".avif")


class NamedCaption(NamedTuple):
    """A caption as given in an annotation file. `where` is file and line, or file and index."""

    sample_id: str
    value: object
    split: str
    where: str
    given: tuple[str, ...] = ()


@dataclass(kw_only=True, slots=True)
class NamedImage:
    """An image as given in an annotation file.

    Attributes:
        names: candidate file names below the image folder, the file's own name first.
        where: file and line, or file and index, of the first mention.
        captions_lost: number of its captions already rejected.
    """

    image_id: str
    names: tuple[str, ...]
    where: str
    captions: list[NamedCaption] = field(default_factory=list)
    captions_lost: int = 0


class Finder(Protocol):
    """Lookup of an image by its names: returns a locator for `Source.read_image`, or a Refusal."""

    def find(self, names: Sequence[str]) -> str | Refusal: ...

    def notes(self) -> Iterator[Note]:
        """Yield the messages to print after all images have been looked up."""


class Located:
    """Finder for images whose location was read with the captions: the name is already the locator.

    Args:
        missing: reason for refusing an empty name.
    """

    def __init__(self, missing: str = "there is no image with the captions") -> None:
        self._missing = missing

    def find(self, names: Sequence[str]) -> str | Refusal:
        return names[0] or Refusal(RejectReason.MISSING_IMAGE, self._missing)

    def notes(self) -> Iterator[Note]:
        yield from ()


class ImageFolder:
    """The folder of a source's images, on any filesystem that pyarrow opens.

    Args:
        uri: the folder.
        setting: dotted name of the setting, for messages.
        follow_links: whether links below the folder's first level may lead out of it.

    Raises:
        SettingError: the folder does not exist; names `setting`.
    """

    def __init__(self, uri: str, setting: str, follow_links: bool = False) -> None:
        if not uri:
            raise SettingError(setting, uri, "the folder of the images")
        self._storage = Storage(uri)
        if not self._storage.is_folder():
            raise SettingError(setting, uri, "an existing folder of images")
        self._follow_links = follow_links
        # Prefixes of absolute paths inside the folder.
        self._roots = {self._storage.uri.rstrip("/"), self._storage.path().rstrip("/")}
        if self._storage.is_local:
            self._roots.add(os.path.realpath(self._storage.path()))

    def read(self, locator: str) -> bytes:
        return self._storage.read_image(locator)

    def relative(self, name: str) -> str | None:
        """Return `name` normalised and relative to the folder, or None if it leaves the folder."""
        plain = posixpath.normpath(name) if name.startswith("/") else name
        for root in self._roots:
            if plain.startswith(f"{root}/"):
                return normalise(plain[len(root) + 1 :])
        return normalise(name)

    def list(self) -> FolderListing:
        return FolderListing(self, self._storage, self._follow_links)


class FolderListing:
    """A snapshot of the names of all files below an image folder."""

    def __init__(self, folder: ImageFolder, storage: Storage, follow_links: bool) -> None:
        self._folder, self._follow_links = folder, follow_links
        self._local = storage.is_local
        self._root = os.path.realpath(storage.path()) if self._local else storage.path()
        self._targets = _link_targets(self._root) if self._local else {}
        self.files = set(_walk(self._root, self._targets) if self._local else storage.names_below())
        self._found: set[str] = set()

    def images(self) -> list[str]:
        """Return the files with an image suffix, sorted."""
        return sorted(n for n in self.files if n.lower().endswith(IMAGE_SUFFIXES))

    def find(self, names: Sequence[str]) -> str | Refusal:
        """Return the first of `names` that exists, relative to the folder, or why none can be used.

        Only the first name is checked for leaving the folder; the others are our own variants.
        """
        if self._folder.relative(names[0]) is None:
            return Refusal(RejectReason.OUTSIDE_FOLDER, f"{names[0]!r} does not stay in the image folder")
        inside = [n for n in map(self._folder.relative, names) if n is not None]
        for name in inside:
            if name in self.files:
                self._found.add(name)
                return name
        for name in inside if self._local else ():
            path = os.path.join(self._root, name)
            if os.path.isfile(path):  # reached through a symbolic link
                real = os.path.realpath(path)
                if self._follow_links or any(_below(real, top) for top in self._tops):
                    return name
                detail = f"{name!r} is a link to {real!r}, out of the image folder (follow_links follows it)"
                return Refusal(RejectReason.OUTSIDE_FOLDER, detail)
        hint = self._alike.get(_loosely(inside[0]))
        detail = f"no file {inside[0]!r} in the image folder" + (f", but {hint!r}" if hint else "")
        return Refusal(RejectReason.MISSING_IMAGE, detail)

    def notes(self) -> Iterator[Note]:
        """Yield a message about files without a caption, such as images of another split."""
        if left := sorted(self.files - self._found):
            yield Note(text=f"in the image folder, named by no caption: {some(left)}")

    @property
    def _tops(self) -> list[str]:
        return [self._root, *self._targets.values()]

    @functools.cached_property
    def _alike(self) -> dict[str, str]:
        return {_loosely(name): name for name in sorted(self.files)}


class AnnotatedFolder(Source):
    """Base class of sources with one annotation file per split and images in a folder.

    Args:
        config: the source's settings, with `images`.
        setting: dotted name of the setting that holds the files, e.g. `flickr8k.captions`.
        files: annotation file of each split.
        expected: description of a valid file for errors, e.g. `a TSV file`.
        follow_links: see ImageFolder.

    Raises:
        SettingError: a folder or file named in the settings does not exist.
    """

    # The folder may hold the images of all splits while the caption files cover one.
    spare = frozenset({RejectReason.IMAGE_WITHOUT_CAPTION})

    def __init__(
        self, config: Any, setting: str, files: Mapping[str, str], expected: str, follow_links: bool
    ) -> None:
        self._config, self._setting, self._files = config, setting, files
        self._folder = ImageFolder(config.images, f"{setting.partition('.')[0]}.images", follow_links)
        if not files:
            raise SettingError(setting, {}, f"{expected} for each split, e.g. {{train: FILE}}")
        for split, path in files.items():
            require_annotations(path, f"{setting}.{split}")

    def identity(self) -> dict[str, Any]:
        hashes = {split: sha256(self._file(split)) for split in self._files}
        return {"settings": canonical(self._config), "sha256": hashes}

    def read_image(self, locator: str) -> bytes:
        return self._folder.read(locator)

    def _file(self, split: str) -> bytes:
        return read_annotations(self._files[split], f"{self._setting}.{split}")


def normalise(name: str) -> str | None:
    """Return `name` normalised and relative to the image folder, or None if it leaves the folder."""
    if name.startswith(("/", "\\")) or "://" in name or name[1:3] in (":/", ":\\"):
        return None
    plain = posixpath.normpath(name)
    return None if plain in (".", "..") or plain.startswith("../") else plain


def to_rows(images: Iterable[NamedImage], finder: Finder) -> Iterator[Record | Reject | Note]:
    """Yield one Record or image Reject per named image, and one Reject per caption outside the Records.

    An image belongs to the split that names it first. Its captions in other splits are rejected, so that no
    image is used for both training and evaluation.
    """
    seen: set[str] = set()
    for image in images:
        found = finder.find(image.names)
        good: list[Caption] = []
        for caption in image.captions:
            checked = check_caption(caption.value)
            if caption.sample_id in seen:
                checked = Refusal(RejectReason.DUPLICATE_ID, f"sample id {caption.sample_id!r} again")
            elif caption.split != image.captions[0].split:
                detail = f"image {image.image_id!r} is already in split {image.captions[0].split!r}"
                checked = Refusal(RejectReason.DUPLICATE_ID, detail)
            elif isinstance(found, Refusal) and not isinstance(checked, Refusal):
                checked = Refusal(RejectReason.CAPTION_WITHOUT_IMAGE, f"its image: {found.detail}")
            seen.add(caption.sample_id)
            if isinstance(checked, Refusal):
                yield reject_caption(caption, checked, image.image_id)
            else:
                good.append(Caption(caption.sample_id, checked, caption.split, caption.given))
        if not isinstance(found, Refusal) and good:
            yield Record(image.image_id, found, tuple(good))
            continue
        why = found if isinstance(found, Refusal) else _no_caption(len(image.captions) + image.captions_lost)
        yield Reject(
            unit=Unit.IMAGE,
            row_id=image.image_id,
            reason=why.reason,
            detail=f"{image.where}: {why.detail}",
            text=image.names[0],
            image_id=image.image_id,
        )
    yield from finder.notes()


def reject_caption(caption: NamedCaption, why: Refusal, image_id: str = "") -> Reject:
    return Reject(
        unit=Unit.CAPTION,
        row_id=caption.sample_id or caption.where,
        reason=why.reason,
        detail=f"{caption.where}: {why.detail}",
        text=caption.value if isinstance(caption.value, str) else repr(caption.value),
        image_id=image_id,
    )


def require_annotations(uri: str, setting: str) -> None:
    """Raise SettingError, naming `setting`, if the file does not exist."""
    _locate(uri, setting)


def read_annotations(uri: str, setting: str) -> bytes:
    """Return the bytes of an annotation file.

    Raises:
        SettingError: the file does not exist; names `setting`.
    """
    storage, name = _locate(uri, setting)
    return storage.read_bytes(name)


def load_json(data: bytes, path: str) -> Any:
    """Parse an annotation file.

    Raises:
        DataError: it is not valid JSON; states line and column.
    """
    try:
        return json.loads(data)
    except json.JSONDecodeError as error:
        where = f"{path}:{error.lineno}:{error.colno} (character {error.pos})"
        raise DataError(where, f"broken JSON ({error.msg})", "a whole JSON file") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, too many digits, too deeply nested
        raise DataError(
            path, f"unreadable JSON ({type(error).__name__}: {error})", "a whole JSON file"
        ) from error


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _locate(uri: str, setting: str) -> tuple[Storage, str]:
    folder, slash, name = uri.rpartition("/")
    storage = Storage(folder + slash if slash else ".")
    if not name or not storage.is_file(name):
        raise SettingError(setting, uri, "an existing annotation file")
    return storage, name


def _no_caption(captions: int) -> Refusal:
    detail = f"all of its {captions} captions were rejected" if captions else "no caption names it"
    return Refusal(RejectReason.IMAGE_WITHOUT_CAPTION, detail)


def _walk(root: str, targets: Mapping[str, str]) -> Iterator[str]:
    """Yield the files below `root`, following only the links directly in it."""
    pending = ["", *(name for name, real in targets.items() if os.path.isdir(real))]
    while pending:
        folder = pending.pop()
        with os.scandir(os.path.join(root, folder)) as entries:
            for entry in entries:
                name = f"{folder}/{entry.name}" if folder else entry.name
                if entry.is_dir(follow_symlinks=False):
                    pending.append(name)
                elif entry.is_file(follow_symlinks=False) or os.path.isfile(targets.get(name, "")):
                    yield name


def _link_targets(root: str) -> dict[str, str]:
    """Return the targets of the links directly in a folder.

    Broken links are left out, and so are links to a folder that contains `root`, which would admit everything
    in that folder.
    """
    with os.scandir(root) as entries:
        links = {entry.name: os.path.realpath(entry.path) for entry in entries if entry.is_symlink()}
    return {name: real for name, real in links.items() if os.path.exists(real) and not _below(root, real)}


def _below(path: str, top: str) -> bool:
    return os.path.commonpath([path, top]) == top


def _loosely(name: str) -> str:
    """Return a name in a form for lenient comparison: lower case, accents normalised."""
    return unicodedata.normalize("NFC", name).casefold()
