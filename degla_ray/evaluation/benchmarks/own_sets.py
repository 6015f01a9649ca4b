"""Custom zero-shot sets: one folder per class, or tar shards in CLIP_benchmark's format.

Each set is loaded as a benchmark and the source of its images. The name `zeroshot_folder_NAME` or
`zeroshot_webdataset_NAME` keeps it apart from a published set of the same name.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow.fs

from degla_ray.encoding.images import FileImages, ImageSource
from degla_ray.encoding.tar_images import TarImages, tar_names
from degla_ray.errors import DataError
from degla_ray.evaluation.benchmarks.base import Benchmark
from degla_ray.evaluation.benchmarks.classification import ClassPrompts, Scores
from degla_ray.evaluation.benchmarks.zero_shot import labelled_images, with_braces
from degla_ray.storage import Storage

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff")  # in class folders
TEMPLATE = "a photo of a {}."


def load_folder(uri: str, scores: Scores = "standard") -> tuple[Benchmark, ImageSource]:
    """Load a dataset with one folder per class, on any filesystem; classes are in the order of the folder
    names.

    Prompts use the folder's name with underscores replaced by spaces, unless the dataset contains
    `classes.json` ({folder: name}) or `classnames.txt` (one per line, in the order of the folders).
    `templates.txt` (one per line, with {} or {c}) replaces the template "a photo of a {}.".

    Raises:
        DataError: a missing folder, fewer than two classes, a class without images, or names that do not
            match the folders.
    """
    storage = Storage(uri)
    if not storage.is_folder():
        raise DataError(uri, "no such folder", "a folder with one folder per class")
    infos = storage.filesystem.get_file_info(pyarrow.fs.FileSelector(storage.path()))
    folders = sorted(i.base_name for i in infos if not i.is_file and not i.base_name.startswith("."))
    images: dict[str, list[str]] = {folder: [] for folder in folders}
    for path in storage.names_below():
        folder = path.partition("/")[0]
        if folder in images and _is_image(path):
            images[folder].append(path)
    if len(folders) < 2:
        raise DataError(uri, f"{len(folders)} folders in it", "at least two: one per class")
    empty = next((folder for folder in folders if not images[folder]), None)
    if empty is not None:
        raise DataError(storage.path(empty), "no images", f"at least one of *{', *'.join(IMAGES)}")
    labelled = [(path, label) for label, folder in enumerate(folders) for path in images[folder]]
    marked = next((path for path, _ in labelled if "#" in path), None)
    if marked is not None:
        raise DataError(storage.path(marked), "a # in its name", "no #, which marks a region of an image")
    classes, given = _folder_names(storage, folders)
    templates = with_braces(_lines(storage, "templates.txt") or [TEMPLATE])
    prompts = ClassPrompts(classes=classes, templates=templates, unique_names=not given)
    name = f"folder_{_base_name(storage.uri)}"
    return labelled_images(name, labelled, prompts, uri, scores), FileImages(uri)


def _is_image(path: str) -> bool:
    name = path.rpartition("/")[2]
    return name.lower().endswith(IMAGES) and not name.startswith(".")


def _folder_names(storage: Storage, folders: Sequence[str]) -> tuple[list[str], bool]:
    """Return the class names for prompts, and whether a file of the dataset provides them."""
    if storage.is_file("classes.json"):
        where, named = storage.path("classes.json"), storage.read_json("classes.json")
        if not isinstance(named, dict) or not all(isinstance(x, str) and x.strip() for x in named.values()):
            raise DataError(where, "other content", '{"FOLDER": "name", …}')
        differing = sorted(set(folders) ^ set(named))
        if differing:
            expected = "one name for each folder"
            found = "no name for" if differing[0] in folders else "a name for a missing folder,"
            raise DataError(where, f"{found} {differing[0]!r}", expected)
        return [named[folder] for folder in folders], True
    lines = _lines(storage, "classnames.txt")
    if lines is None:
        return [folder.replace("_", " ") for folder in folders], False
    if len(lines) != len(folders):
        where = storage.path("classnames.txt")
        raise DataError(where, f"{len(lines)} names", f"{len(folders)}, in the order of the folders")
    return lines, True


def _lines(storage: Storage, name: str) -> list[str] | None:
    """Return the stripped lines of a text file; None if the file does not exist.

    Raises:
        DataError: the file has no lines, or an empty one, which would be a class without a name.
    """
    if not storage.is_file(name):
        return None
    try:
        text = storage.read_bytes(name).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(storage.path(name), f"{error}", "UTF-8") from error
    lines = [line.strip() for line in text.rstrip().splitlines()]
    if not lines or not all(lines):
        raise DataError(storage.path(name), "an empty line" if lines else "no lines", "text on every line")
    return lines


def load_webdataset(uri: str, scores: Scores = "standard") -> tuple[Benchmark, ImageSource]:
    """Load tar shards in CLIP_benchmark's format, on any filesystem.

    A sample is an image and its class number: KEY.webp (or png, jpg) and KEY.cls. `classnames.txt` and
    `zeroshot_classification_templates.txt` are next to the shards or in the parent folder.

    Args:
        uri: folder of the shards, or the folder whose `test/` contains them.
        scores: which scores are decided on.

    Raises:
        DataError: no shards, fewer than nshards.txt says, a broken shard, an incomplete sample, a class
            number without a name, or missing names or templates.
    """
    shards = next((s for s in (Storage(uri), Storage(_below(uri, "test"))) if tar_names(s)), None)
    if shards is None:
        raise DataError(
            uri, "no *.tar in it or in its test/", "a dataset that clip_benchmark_export_wds wrote"
        )
    counted, found = _lines(shards, "nshards.txt"), tar_names(shards)
    if counted is not None and counted != [str(len(found))]:
        raise DataError(shards.uri, f"{len(found)} shards", f"{' '.join(counted)}, as nshards.txt says")
    home, classes = _beside_or_above(shards, "classnames.txt")
    _, templates = _beside_or_above(shards, "zeroshot_classification_templates.txt")
    source = TarImages(shards.uri)
    labelled = [(image_id, sample.label) for image_id, sample in source.samples.items()]
    prompts = ClassPrompts(classes=classes, templates=with_braces(templates), unique_names=False)
    return labelled_images(f"webdataset_{_base_name(home.uri)}", labelled, prompts, uri, scores), source


def _beside_or_above(shards: Storage, name: str) -> tuple[Storage, list[str]]:
    """Return the folder that contains a text file (the shards' or its parent), and the file's lines."""
    for storage in (shards, Storage(_above(shards.uri))):
        lines = _lines(storage, name)
        if lines is not None:
            return storage, lines
    raise DataError(shards.uri, f"no {name}", "one next to the shards or in the parent folder")


def _split(uri: str) -> tuple[str, str]:
    """Return a URI's path without a trailing slash, and its options."""
    path, mark, options = uri.partition("?") if "://" in uri else (uri, "", "")
    return path.rstrip("/"), mark + options


def _below(uri: str, name: str) -> str:
    path, options = _split(uri)
    return f"{path}/{name}{options}"


def _above(uri: str) -> str:
    path, options = _split(uri)
    return path.rpartition("/")[0] + options


def _base_name(uri: str) -> str:
    return _split(uri)[0].rpartition("/")[2]
