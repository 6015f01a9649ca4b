"""Torchvision's eleven zero-shot sets, with published class names and templates.

Each set is loaded as a benchmark `zeroshot_NAME` and the source of its images, which has the same name.

The class names and templates are OpenAI's. If OpenAI's names differ from torchvision's (Pets, Flowers,
Caltech101), they are read from the package clip_benchmark and matched with torchvision's. ImageNet's come
with open_clip. The other seven sets use torchvision's names with spaces, as CLIP_benchmark does (which keeps
the underscores in CIFAR-100's). Nothing is downloaded here; `jobs/fetch_benchmarks.py` does that. Only index
files are read, no images; SUN397 has no index, so its 108,754 images are found by listing its folders.
"""

from __future__ import annotations

import functools
import importlib.util
import io
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image

from degla_ray.encoding.images import FileImages, ImageBatch, ImageSource, StoredImage
from degla_ray.errors import DataError, SettingError, one_line
from degla_ray.evaluation.benchmarks.base import Benchmark
from degla_ray.evaluation.benchmarks.classification import (
    MEAN_PER_CLASS,
    TOP1,
    TOP5,
    Classification,
    ClassPrompts,
    ClassProtocol,
    Scores,
)
from degla_ray.schema import CLASS_ITEMS

PREFIX = "zeroshot_"
METRICS = (TOP1, TOP5, MEAN_PER_CLASS)
WHOLE = "the whole set: there is no official split"


@dataclass(frozen=True, kw_only=True)
class TorchvisionSet:
    """One of the eleven sets.

    Attributes:
        loader: class in torchvision.datasets.
        needs: paths below the root, checked before torchvision is called: even if it finds nothing,
            torchvision creates folders and unpacks ImageNet's archives.
        classes: number of classes.
        official: subset that papers report.
        options: arguments of the loader that select the test split.
        folder: the loader's root, relative to ours.
        prompts: key in clip_benchmark's files; None if open_clip provides the prompts.
        reworded: number of class names in the prompts that may share no word with torchvision's.
        separators: characters that replace a space in torchvision's names.
        note: protocol details to append.
    """

    loader: str
    needs: tuple[str, ...]
    classes: int
    official: str = TOP1
    options: Mapping[str, Any] = field(default_factory=dict)
    folder: str = ""
    prompts: str | None = None
    reworded: int = 0
    separators: str = "_"
    note: str = ""


_TEST = {"split": "test"}
SETS = {
    "cifar10": TorchvisionSet(
        loader="CIFAR10",
        needs=("cifar-10-batches-py",),
        classes=10,
        options={"train": False},
        prompts="cifar10",
    ),
    "cifar100": TorchvisionSet(
        loader="CIFAR100",
        needs=("cifar-100-python",),
        classes=100,
        options={"train": False},
        prompts="cifar100",
    ),
    "food101": TorchvisionSet(
        loader="Food101", needs=("food-101",), classes=101, options=_TEST, prompts="food101"
    ),
    "pets": TorchvisionSet(
        loader="OxfordIIITPet",
        needs=("oxford-iiit-pet",),
        classes=37,
        official=MEAN_PER_CLASS,
        options=_TEST,
        prompts="pets",
    ),
    "flowers102": TorchvisionSet(
        loader="Flowers102",
        needs=("flowers-102",),
        classes=102,
        official=MEAN_PER_CLASS,
        options=_TEST,
        prompts="flowers",
        reworded=1,  # "ball moss" is called "air plant"
    ),
    "sun397": TorchvisionSet(
        loader="SUN397",
        needs=("SUN397",),
        classes=397,
        prompts="sun397",
        separators="_/",  # t/temple/east_asia; FGVC-Aircraft's F/A-18 keeps its slash
        note=WHOLE,
    ),
    "stanford_cars": TorchvisionSet(
        loader="StanfordCars", needs=("stanford_cars",), classes=196, options=_TEST, prompts="cars"
    ),
    "dtd": TorchvisionSet(
        loader="DTD",
        needs=("dtd",),
        classes=47,
        options={**_TEST, "partition": 1},
        prompts="dtd",
        note="partition 1",
    ),
    "caltech101": TorchvisionSet(
        loader="Caltech101",
        needs=("caltech101/101_ObjectCategories",),
        classes=101,
        official=MEAN_PER_CLASS,
        prompts="caltech101",
        note=f"{WHOLE}; 101 classes, without background",
    ),
    "fgvc_aircraft": TorchvisionSet(
        loader="FGVCAircraft",
        needs=("fgvc-aircraft-2013b",),
        classes=100,
        official=MEAN_PER_CLASS,
        options=_TEST,
        prompts="fgvc_aircraft",
    ),
    "imagenet": TorchvisionSet(
        loader="ImageNet",
        needs=("imagenet/meta.bin", "imagenet/val"),
        classes=1000,
        options={"split": "val"},
        folder="imagenet",
        reworded=100,  # 68 with torchvision.models' list; 842 if OpenAI's list were shifted by one
    ),
}
ZERO_SHOT_ELEVEN = tuple(f"{PREFIX}{name}/{spec.official}" for name, spec in SETS.items())
"""The official subset of each set: the members of the average over all eleven."""


def present(root: str) -> list[str]:
    """Return the names of the eleven sets that exist below `root`."""
    return [name for name, spec in SETS.items() if _absent(os.path.expanduser(root), spec) is None]


def load_torchvision(
    root: str, names: Sequence[str], scores: Scores = "standard"
) -> list[tuple[Benchmark, ImageSource]]:
    """Load sets that torchvision reads, each with all METRICS.

    Args:
        root: local folder with the sets in torchvision's layout, ImageNet in `imagenet/`.
        names: keys of SETS.
        scores: which scores are decided on.

    Raises:
        SettingError: an unknown set.
        DataError: a set is missing or incomplete, its classes do not match their names, or the package
            clip_benchmark is missing.
    """
    unknown = [name for name in names if name not in SETS]
    if unknown:
        raise SettingError("zero-shot sets", unknown[0], f"some of {', '.join(SETS)}")
    return [_load_torchvision(_local(root), name, scores) for name in names]


def _load_torchvision(root: str, name: str, scores: Scores) -> tuple[Benchmark, ImageSource]:
    spec, where = SETS[name], f"{name} in {root}"
    dataset = _open(root, name)
    classes = _class_names(where, spec, dataset)
    files = _files(dataset)
    source: ImageSource
    if files is None:
        source = TorchvisionImages(root, name)
        images = [(str(i), label) for i, label in enumerate(dataset.targets)]
    else:
        source = FileImages(root)
        # sorted because SUN397's come in the filesystem's order
        images = sorted((Path(path).relative_to(root).as_posix(), int(label)) for path, label in files)
    prompts = ClassPrompts(classes=classes, templates=_templates(spec), unique_names=False)
    return labelled_images(name, images, prompts, where, scores, spec.note), source


def labelled_images(
    name: str,
    images: Sequence[tuple[str, int]],
    prompts: ClassPrompts,
    where: str,
    scores: Scores,
    note: str = "",
) -> Benchmark:
    """Build a benchmark with one item per image; the image's id is also the item's id.

    Args:
        name: name of the set, without PREFIX.
        images: id and label of each image.
        prompts: texts of the classes.
        where: origin of the classes, for error messages.
        scores: which scores are decided on.
        note: protocol details to append.
    """
    full = PREFIX + name
    ids, labels = [image_id for image_id, _ in images], [label for _, label in images]
    columns = [[full] * len(ids), ids, ids, labels]
    items = pa.Table.from_arrays(
        [pa.array(column, f.type) for column, f in zip(columns, CLASS_ITEMS, strict=True)], schema=CLASS_ITEMS
    )
    protocol = ClassProtocol(metrics=METRICS, scores=scores, note=note)
    return Classification(full, items, prompts, full, where, protocol)


def _local(root: str) -> str:
    if "://" in root:
        raise DataError(root, "a URI", "a local folder, because torchvision reads no URIs")
    return os.path.abspath(os.path.expanduser(root))


def _absent(root: str, spec: TorchvisionSet) -> str | None:
    """Return the first required path of a set that is missing, or None."""
    return next((need for need in spec.needs if not os.path.exists(os.path.join(root, need))), None)


@functools.lru_cache(maxsize=2)  # a task reads many batches of one set
def _open(root: str, name: str) -> Any:
    """Return torchvision's dataset.

    Raises:
        DataError: the dataset is missing, or torchvision cannot read it.
    """
    spec, where = SETS[name], f"{name} in {root}"
    expected = (
        f"torchvision's {spec.loader} dataset; "
        f"`jobs/fetch_benchmarks.py --benchmarks '[{PREFIX}{name}]'` downloads it or prints instructions"
    )
    absent = _absent(root, spec)
    if absent is not None:
        raise DataError(where, f"no {absent}", expected)
    import torchvision.datasets  # a second to import

    try:
        return getattr(torchvision.datasets, spec.loader)(os.path.join(root, spec.folder), **spec.options)
    except Exception as error:  # torchvision, scipy and pickle raise a dozen types over broken files
        raise DataError(where, one_line(error), expected) from error


def _files(dataset: Any) -> list[tuple[str, int]] | None:
    """Return the (path, label) of each image; None if torchvision stores the images as arrays."""
    if hasattr(dataset, "categories"):  # Caltech101
        folder = os.path.join(dataset.root, "101_ObjectCategories")
        return [
            (os.path.join(folder, dataset.categories[y], f"image_{i:04d}.jpg"), y)
            for i, y in zip(dataset.index, dataset.y, strict=True)
        ]
    for attribute in ("samples", "_samples"):  # ImageNet, StanfordCars
        if hasattr(dataset, attribute):
            return list(getattr(dataset, attribute))
    for attribute in ("_image_files", "_images"):  # Pets have the latter
        if hasattr(dataset, attribute):
            return list(zip(getattr(dataset, attribute), dataset._labels, strict=True))
    return None


def _class_names(where: str, spec: TorchvisionSet, dataset: Any) -> list[str]:
    """Return the prompt's name of each of torchvision's classes, in the order of the labels."""
    theirs = dataset.categories if hasattr(dataset, "categories") else dataset.classes
    if len(theirs) != spec.classes:
        raise DataError(where, f"{len(theirs)} classes", f"{spec.classes}: the whole set")
    listed: Sequence[str] | None
    if spec.prompts is None:
        from open_clip import IMAGENET_CLASSNAMES

        listed = IMAGENET_CLASSNAMES
    else:
        listed = _labelled_clip_benchmark("en_classnames.json").get(spec.prompts)
    if listed is None:
        # Like CLIP_benchmark, use torchvision's names: they are the dataset's own, in the order of the
        # labels, and OpenAI's are the same words with spaces.
        return [re.sub(f"[{spec.separators}]", " ", name) for name in theirs]
    if spec.prompts == "caltech101":
        listed = listed[1:]  # without background, which torchvision leaves out
    if len(listed) != spec.classes:
        raise DataError(f"names of {spec.loader}", f"{len(listed)} of them", f"{spec.classes}")
    if spec.prompts == "pets":  # lists of Pets differ in their order (OpenAI's own does): match by name
        return _by_name(where, theirs, listed)
    return _by_position(where, theirs, listed, spec.reworded)


def _by_name(where: str, theirs: Sequence[str], listed: Sequence[str]) -> list[str]:
    """Return the listed name of each class, regardless of the list's order."""
    known = {" ".join(_words(name)): name for name in listed}
    strange = next((name for name in theirs if " ".join(_words(name)) not in known), None)
    if strange is not None:
        raise DataError(where, f"class {strange!r}", f"one of {', '.join(listed)}")
    return [known[" ".join(_words(name))] for name in theirs]


def _by_position(
    where: str, theirs: Sequence[str | tuple[str, ...]], listed: Sequence[str], reworded: int
) -> list[str]:
    """Return the list itself after checking that all but `reworded` names match the class at their position.

    A name matches if it shares the first four letters of a word: "car_side" is "side of a car", "Motorbikes"
    is "motorbike". ImageNet's classes are tuples of synonyms.
    """
    strange = []
    for place, (given, name) in enumerate(zip(theirs, listed, strict=True)):
        class_name = given if isinstance(given, str) else ", ".join(given)
        if not {word[:4] for word in _words(class_name)} & {word[:4] for word in _words(name)}:
            strange.append(f"class {class_name!r} in place {place}, where the names have {name!r}")
    if len(strange) > reworded:
        raise DataError(where, strange[0], f"the order of the names ({len(strange)} classes do not fit)")
    return list(listed)


def _words(name: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", name.lower())


def _templates(spec: TorchvisionSet) -> list[str]:
    if spec.prompts is None:
        from open_clip import OPENAI_IMAGENET_TEMPLATES

        return [template("{}") for template in OPENAI_IMAGENET_TEMPLATES]
    return with_braces(_labelled_clip_benchmark("en_zeroshot_classification_templates.json")[spec.prompts])


def with_braces(templates: Sequence[str]) -> list[str]:
    """Return templates with CLIP_benchmark's `{c}` replaced by `{}`."""
    return [template.replace("{c}", "{}") for template in templates]


def _labelled_clip_benchmark(file: str) -> dict[str, list[str]]:
    """Read a data file of clip_benchmark without importing the package, which would import all its
    dependencies."""
    found = importlib.util.find_spec("clip_benchmark")
    if found is None or not found.submodule_search_locations:
        raise DataError(
            "names of zero-shot classes", "no package clip_benchmark", "`pip install 'degla-ray[zeroshot]'`"
        )
    path = Path(found.submodule_search_locations[0], "datasets", file)
    content: dict[str, list[str]] = json.loads(path.read_text(encoding="utf-8"))
    return content


@dataclass(frozen=True)
class TorchvisionImages:
    """Images of a set that torchvision stores as arrays (CIFAR). An id is an index into the test split."""

    root: str
    name: str
    """Key of SETS."""

    def batches(self, wanted: set[str], size: int) -> tuple[list[ImageBatch], dict[str, str]]:
        ordered = sorted(wanted, key=lambda image_id: (len(image_id), image_id))
        return [ImageBatch(ids=ordered[i : i + size]) for i in range(0, len(ordered), size)], {}

    def read(self, batch: ImageBatch) -> list[StoredImage | Exception]:
        """Return the images encoded as PNG, which is lossless."""
        try:
            data = _open(self.root, self.name).data
        except DataError as error:
            return [error] * len(batch.ids)
        return [_png(data, image_id) for image_id in batch.ids]


def _png(data: Any, image_id: str) -> StoredImage | Exception:
    try:
        array = data[int(image_id)]
    except (IndexError, ValueError) as error:
        return error
    file = io.BytesIO()
    Image.fromarray(array).save(file, format="PNG", compress_level=1)
    return StoredImage(data=file.getvalue())
