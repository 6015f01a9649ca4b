"""Fetch the files of published benchmarks, as far as licences allow: run by `jobs/fetch_benchmarks.py`.

The catalogue says where each file comes from. `fetched.json` records size, SHA-256 and date of every fetched
file; a rerun skips these files, and detects a file without a published checksum that has changed since.
Archives are deleted once unpacked, so a rerun cannot verify images again (COCO's three: 21 GB).
"""

from __future__ import annotations

import datetime
import functools
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import requests
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from degla_ray.config import FetchConfig
from degla_ray.errors import DataError, SettingError, one_line
from degla_ray.evaluation.downloads.catalogue import CATALOGUE, CatalogueItem, needed_items, read_catalogue
from degla_ray.evaluation.downloads.download import OnBytes, RemoteFile, download, open_session, verify
from degla_ray.evaluation.downloads.unpack import python_list, unpack_archive
from degla_ray.progress_bars import BYTES, ProgressBars

RECORD = "fetched.json"


class FetchState(StrEnum):
    """Outcome of an item."""

    PRESENT = "present"
    FETCHED = "fetched"
    FAILED = "failed"
    BY_HAND = "by hand"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Row of an item in the final table."""

    item: CatalogueItem
    state: FetchState
    note: str = ""


@dataclass
class Fetcher:
    """Output folder and the records of what was fetched to it."""

    output: Path
    today: str
    records: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.session = open_session()
        path = self.output / RECORD
        if path.exists():
            try:
                self.records = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise DataError(str(path), error, "JSON as written by this job, or no such file") from error

    def fetch(self, item: CatalogueItem, on_bytes: OnBytes) -> Outcome:
        """Fetch an item unless it is present; an error becomes the item's outcome."""
        target = self.output / item.to
        try:
            if target.is_file() or (target.is_dir() and any(target.iterdir())):
                return Outcome(item=item, state=FetchState.PRESENT, note=self._check(item, target))
            if item.form is not None:
                return Outcome(item=item, state=FetchState.BY_HAND, note=f"{item.by_hand} {item.form}")
            target.parent.mkdir(parents=True, exist_ok=True)
            note = self._torchvision(item, target) if item.torchvision else self._url(item, target, on_bytes)
        except (DataError, OSError, requests.RequestException) as error:
            return Outcome(item=item, state=FetchState.FAILED, note=one_line(error))
        return Outcome(item=item, state=FetchState.FETCHED, note=note)

    def _check(self, item: CatalogueItem, target: Path) -> str:
        """Raise an error if a file was changed after it was fetched; return a note if it cannot be
        verified."""
        if target.is_dir() or item.form is not None or item.extract is not None:
            return ""
        known = self.records.get(item.name, {})
        expected = item.checksums or ({"sha256": known["sha256"]} if "sha256" in known else {})
        try:
            verify(target, expected, item.bytes)
        except DataError as error:
            right = f"{error.expected}; delete the file to fetch it again"
            raise DataError(error.where, error.found, right) from error
        return "" if expected else "not fetched by this job, and no checksum is published"

    def _url(self, item: CatalogueItem, target: Path, on_bytes: OnBytes) -> str:
        assert item.url is not None
        checksums, whole = item.checksums, item.unpack == "none" and item.extract is None
        source = target if whole else target.with_name(f"{target.name}.download")
        known = self.records.get(item.name, {})
        recorded = known.get("sha256") if known.get("url") == item.url else None
        if source.exists():  # an earlier run was interrupted while unpacking
            sha256 = verify(source, checksums, item.bytes)
        else:
            file = RemoteFile(
                url=item.url,
                checksums=checksums,
                size=item.bytes,
                room=1 if item.unpack == "none" else 2,  # the archive and what is unpacked from it
            )
            sha256 = download(self.session, file, source, on_bytes)
        size = source.stat().st_size
        if not checksums and recorded is not None and sha256 != recorded:
            source.unlink()
            raise DataError(
                item.url,
                f"sha256 {sha256}",
                f"{recorded}, as on {known['date']}; if the new one is right, delete {item.name} in {RECORD}",
            )
        try:
            if item.unpack != "none":
                unpack_archive(source, item.unpack, target, item.strip)
            elif item.extract is not None:
                values = python_list(source, item.extract.partition(":")[2])
                _write(target, json.dumps(values, indent=0))
        except DataError:
            source.unlink()
            raise
        self._record(item, {"url": item.url, "bytes": size, "sha256": sha256})
        if not whole:
            source.unlink()
        return "" if checksums else f"no checksum is published; SHA-256 {sha256} recorded"

    def _torchvision(self, item: CatalogueItem, target: Path) -> str:
        import torchvision.datasets  # takes 3 s, so only if needed

        root = target.with_name(f"{target.name}.download")
        shutil.rmtree(root / target.name, ignore_errors=True)  # torchvision takes a partial set for complete
        root.mkdir(parents=True, exist_ok=True)
        try:
            getattr(torchvision.datasets, str(item.torchvision))(root, download=True)
        except Exception as error:  # datasets raise many types, as does urllib
            raise DataError(f"torchvision {item.torchvision}", error, "a successful download") from error
        os.replace(root / target.name, target)
        shutil.rmtree(root)
        self._record(item, {"torchvision": item.torchvision})
        return ""

    def _record(self, item: CatalogueItem, what: Mapping[str, Any]) -> None:
        self.records[item.name] = {**what, "to": item.to, "date": self.today}
        _write(self.output / RECORD, json.dumps(self.records, indent=1, sort_keys=True) + "\n")


def _write(path: Path, text: str) -> None:
    new = path.with_name(f"{path.name}.part")
    new.write_text(text, encoding="utf-8")
    os.replace(new, path)


def fetch_benchmarks(config: FetchConfig, console: Console | None = None) -> bool:
    """Fetch the files of the requested benchmarks and print each item's outcome.

    Returns:
        Whether no item failed.
    """
    if "://" in config.output:
        raise SettingError("output", config.output, "a local folder, where downloads can resume")
    console = console or Console()
    catalogue = read_catalogue(Path(config.catalogue or CATALOGUE))
    items = needed_items(catalogue, config.benchmarks, images=config.images)
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    fetcher = Fetcher(output, datetime.date.today().isoformat())
    outcomes = []
    with ProgressBars(BYTES, console) as bars:
        for item in items:
            bars.update(item.name, 0, item.bytes)
            outcomes.append(fetcher.fetch(item, functools.partial(bars.update, item.name)))
            bars.remove(item.name)
    _show(console, outcomes, fetcher)
    return all(outcome.state != FetchState.FAILED for outcome in outcomes)


def _show(console: Console, outcomes: Sequence[Outcome], fetcher: Fetcher) -> None:
    table = Table("item", "state", "size", "licence")
    for outcome in outcomes:
        item = outcome.item
        size = fetcher.records.get(item.name, {}).get("bytes", item.bytes)
        table.add_row(
            escape(item.name), outcome.state, "" if size is None else decimal(size), escape(item.licence)
        )
    console.print(table)
    for outcome in outcomes:
        if outcome.note:
            line = f"{outcome.item.name}: {outcome.state}: {outcome.note}"
            console.print(line, markup=False, soft_wrap=True)
