"""Catalogue of the files that benchmarks need and where to get them: the package's own or a similar YAML
file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import yaml

from degla_ray.cli import from_settings
from degla_ray.errors import DataError, SettingError

CATALOGUE = Path(__file__).with_name("catalogue.yaml")
ANNOTATIONS = "annotations"


@dataclass(frozen=True, kw_only=True)
class CatalogueItem:
    """An entry of the catalogue, with exactly one of `url`, `torchvision` and `form`."""

    name: str
    """Unique name."""
    benchmarks: list[str]
    """Benchmarks and groups of benchmarks that need it."""
    to: str
    """Path below the output folder of the file, or of the folder to unpack to."""
    licence: str
    """Licence of the data."""
    url: str | None = None
    """Address of the download."""
    torchvision: str | None = None
    """Class of torchvision.datasets that downloads it."""
    form: str | None = None
    """Page on which to request or download it manually."""
    by_hand: str = ""
    """Instructions for the manual download, in one sentence."""
    bytes: int | None = None
    """Size of the downloaded file."""
    sha256: str | None = None
    """SHA-256 of the downloaded file, published or otherwise known."""
    md5: str | None = None
    """MD5 of the downloaded file."""
    sha1: str | None = None
    """SHA-1 of the downloaded file."""
    unpack: Literal["none", "zip", "tar"] = "none"
    """Archive format."""
    strip: str = ""
    """Folder inside the archive whose members are extracted."""
    extract: str | None = None
    """`python_list:VARIABLE`: the file is Python or a notebook, and only this list is kept, as JSON."""

    def __post_init__(self) -> None:
        if sum(each is not None for each in (self.url, self.torchvision, self.form)) != 1:
            raise SettingError("url", self.url, "one of `url`, `torchvision` and `form`")
        if self.form is not None and not self.by_hand:
            raise SettingError("by_hand", self.by_hand, "instructions for the page `form`")
        path = PurePosixPath(self.to)
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise SettingError("to", self.to, "a path below the output folder")
        if self.extract is not None and not self.extract.startswith("python_list:"):
            raise SettingError("extract", self.extract, "python_list:VARIABLE")

    @property
    def checksums(self) -> dict[str, str]:
        found = {"sha256": self.sha256, "md5": self.md5, "sha1": self.sha1}
        return {kind: value for kind, value in found.items() if value is not None}


def read_catalogue(path: Path) -> list[CatalogueItem]:
    """Read the items of a catalogue.

    Raises:
        DataError: a missing file, invalid YAML, or two items of the same name.
        SettingError: an invalid item.
    """
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))["items"]
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise DataError(
            str(path), error, "a YAML file with `items`, in the format of degla_ray's own catalogue"
        ) from error
    items = [
        from_settings(CatalogueItem, entry, f"{path.name}: items[{i}]") for i, entry in enumerate(entries)
    ]
    names = [item.name for item in items]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(str(path), f"two items called {twice}", "one of each name")
    return items


def needed_items(
    items: Sequence[CatalogueItem], benchmarks: Sequence[str], images: bool
) -> list[CatalogueItem]:
    """Return the items that some benchmarks need.

    Raises:
        SettingError: an unknown benchmark.
    """
    names = sorted({name for item in items for name in item.benchmarks})
    if unknown := sorted(set(benchmarks) - {"all", *names}):
        raise SettingError("benchmarks", unknown, f"all, or some of {', '.join(names)}")
    wanted = set(names if "all" in benchmarks else benchmarks)
    return [
        item
        for item in items
        if wanted & set(item.benchmarks) and (images or PurePosixPath(item.to).parts[0] == ANNOTATIONS)
    ]
