"""Benchmarks' files from a server on this machine: whole, resumed, refused; and the shipped catalogue."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import pytest
import torchvision.datasets
import yaml
from rich.console import Console

from degla_ray.config import FetchConfig
from degla_ray.errors import DataError, DeglaError, SettingError
from degla_ray.evaluation.downloads.catalogue import CATALOGUE, CatalogueItem, needed_items, read_catalogue
from degla_ray.evaluation.downloads.download import CHUNK, RETRY
from degla_ray.evaluation.downloads.fetch import RECORD, fetch_benchmarks
from degla_ray.evaluation.downloads.unpack import python_list, unpack_archive

BODY = bytes(range(256)) * 4096  # 1 MiB
HALFWAY = 4 * CHUNK

ZEROSHOT = (
    *("cifar10", "cifar100", "food101", "pets", "flowers102", "sun397"),
    *("stanford_cars", "dtd", "caltech101", "fgvc_aircraft", "imagenet"),
)


@dataclass
class Site:
    """What the server has, how it behaves, and what was asked of it."""

    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    etag: str | None = '"one"'
    drop_after: list[int] = field(default_factory=list)
    """Bytes after which the next answers break off."""
    refusals: list[int] = field(default_factory=list)
    """Status of the next answers."""
    content_type: str = "application/octet-stream"
    headers: dict[str, str | None] = field(default_factory=dict)
    """Further headers of a whole file; None leaves one out."""
    requests: list[tuple[str, str | None, int]] = field(default_factory=list)
    """Path, Range, and bytes of the body that were sent."""
    address: str = ""

    @property
    def sent(self) -> int:
        return sum(count for _, _, count in self.requests)


class _Handler(BaseHTTPRequestHandler):
    site: Site

    def do_GET(self) -> None:
        site, asked = self.site, self.headers.get("Range")
        if site.refusals:
            self.send_response(site.refusals.pop(0))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = site.files.get(self.path)
        if body is None:
            self.send_error(404)
            return
        start = 0
        if asked and site.ranges and self.headers.get("If-Range", site.etag) == site.etag:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        if start and start >= len(body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if site.etag:
            self.send_header("ETag", site.etag)
        headers = {"Content-Type": site.content_type, "Content-Length": str(len(body) - start)}
        for name, value in (headers | site.headers).items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        rest = body[start:]
        if site.drop_after:
            rest = rest[: site.drop_after.pop(0)]
        site.requests.append((self.path, asked, len(rest)))
        self.wfile.write(rest)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"site": made}))
    made.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield made
    server.shutdown()
    thread.join()
    server.server_close()


@dataclass
class Job:
    """The job on a catalogue of a test's own."""

    folder: Path
    site: Site

    @property
    def output(self) -> Path:
        return self.folder / "out"

    @property
    def record(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.output / RECORD).read_text())
        return found

    def run(self, *items: dict[str, Any], **settings: Any) -> tuple[bool, str]:
        """Whether none failed, and what was printed."""
        catalogue = self.folder / "catalogue.yaml"
        entries = [
            {"benchmarks": ["b"], "licence": "MIT", "to": f"annotations/{item['name']}", **item}
            for item in items
        ]
        catalogue.write_text(yaml.safe_dump({"items": entries}))
        console = Console(file=io.StringIO(), width=200)
        config = FetchConfig(output=str(self.output), catalogue=str(catalogue), **settings)
        ok = fetch_benchmarks(config, console)
        assert isinstance(console.file, io.StringIO)
        return ok, console.file.getvalue()

    def url(self, name: str, body: bytes | None = None) -> str:
        if body is not None:
            self.site.files[f"/{name}"] = body
        return f"{self.site.address}/{name}"


@pytest.fixture
def job(tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.setattr(
        "degla_ray.evaluation.downloads.download.RETRY", RETRY.new(backoff_factor=0.001, total=3)
    )
    return Job(tmp_path, site)


@pytest.fixture(scope="module")
def shipped() -> list[CatalogueItem]:
    return read_catalogue(CATALOGUE)


def _zip(members: dict[str, bytes]) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        for name, body in members.items():
            archive.writestr(name, body)
    return written.getvalue()


def _no_rests(output: Path) -> bool:
    return not [path for path in output.rglob("*") if path.suffix in (".part", ".download", ".unpacking")]


def test_fetch_file_fresh_is_present_and_recorded(job: Job) -> None:
    sha256 = hashlib.sha256(BODY).hexdigest()
    ok, printed = job.run({"name": "a.json", "url": job.url("a", BODY), "bytes": len(BODY), "sha256": sha256})
    assert ok
    assert (job.output / "annotations/a.json").read_bytes() == BODY
    assert job.record["a.json"].items() >= {"bytes": len(BODY), "sha256": sha256, "url": job.url("a")}.items()
    assert "fetched" in printed
    assert "1.0 MB" in printed
    assert _no_rests(job.output)


def test_fetch_again_asks_nothing(job: Job) -> None:
    item = {"name": "a.json", "url": job.url("a", BODY)}
    job.run(item)
    ok, printed = job.run(item)
    assert ok
    assert len(job.site.requests) == 1
    assert " present " in printed


def test_fetch_dropped_connection_goes_on_where_it_broke(job: Job) -> None:
    job.site.drop_after = [HALFWAY]
    ok, _ = job.run({"name": "a", "url": job.url("a", BODY), "sha256": hashlib.sha256(BODY).hexdigest()})
    assert ok
    assert [asked for _, asked, _ in job.site.requests] == [None, "bytes=262144-"]
    assert job.site.sent == len(BODY)


def test_fetch_second_run_goes_on_where_the_first_stopped(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("degla_ray.evaluation.downloads.download.RETRY", RETRY.new(total=0))
    job.site.drop_after = [HALFWAY]
    item = {"name": "a", "url": job.url("a", BODY)}
    ok, printed = job.run(item)
    assert not ok
    assert "262144 of 1048576 bytes received" in printed
    assert not (job.output / "annotations/a").exists()
    assert job.run(item)[0]
    assert (job.output / "annotations/a").read_bytes() == BODY
    assert job.site.requests[-1][1:] == ("bytes=262144-", len(BODY) - HALFWAY)
    assert job.site.sent == len(BODY)


def test_fetch_file_that_changed_between_two_runs_starts_again(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("degla_ray.evaluation.downloads.download.RETRY", RETRY.new(total=0))
    job.site.drop_after = [HALFWAY]
    item = {"name": "a", "url": job.url("a", BODY)}
    assert not job.run(item)[0]
    new = BODY[::-1]
    job.url("a", new)
    job.site.etag = '"two"'
    assert job.run(item)[0]
    assert (job.output / "annotations/a").read_bytes() == new


def test_fetch_server_without_ranges_starts_again(job: Job) -> None:
    job.site.ranges = False
    job.site.drop_after = [HALFWAY]
    ok, _ = job.run({"name": "a", "url": job.url("a", BODY)})
    assert ok
    assert (job.output / "annotations/a").read_bytes() == BODY
    assert job.site.sent == HALFWAY + len(BODY)


@pytest.mark.parametrize(("there", "sent"), [(len(BODY), 0), (len(BODY) + 5, len(BODY))])
def test_fetch_part_as_long_as_the_file_or_longer(job: Job, there: int, sent: int) -> None:
    (job.output / "annotations").mkdir(parents=True)
    (job.output / "annotations/a.part").write_bytes((BODY + b"12345")[:there])
    assert job.run({"name": "a", "url": job.url("a", BODY)})[0]
    assert (job.output / "annotations/a").read_bytes() == BODY
    assert job.site.sent == sent


def test_fetch_busy_server_is_asked_again(job: Job) -> None:
    job.site.refusals = [503, 429]
    assert job.run({"name": "a", "url": job.url("a", BODY)})[0]


@pytest.mark.parametrize("kind", ["sha256", "md5", "sha1"])
def test_fetch_wrong_checksum_names_file_found_and_expected(job: Job, kind: str) -> None:
    ok, printed = job.run({"name": "a", "url": job.url("a", BODY), kind: "0" * 32})
    assert not ok
    for part in ("annotations/a", f"{kind} {hashlib.new(kind, BODY).hexdigest()}", f"{kind} {'0' * 32}"):
        assert part in printed
    assert list((job.output / "annotations").iterdir()) == []


def test_fetch_wrong_size_is_refused_before_a_byte_is_kept(job: Job) -> None:
    ok, printed = job.run({"name": "a", "url": job.url("a", BODY), "bytes": 17})
    assert not ok
    assert "found 1048576 bytes; expected 17 bytes" in printed
    assert list((job.output / "annotations").iterdir()) == []


def test_fetch_web_page_is_not_taken_for_the_file(job: Job) -> None:
    job.site.content_type = "text/html; charset=utf-8"
    ok, printed = job.run({"name": "a", "url": job.url("a", b"<html>log in</html>")})
    assert not ok
    assert "found a web page" in printed


def test_fetch_without_room_on_the_disk_is_refused(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 1_500_000})
    monkeypatch.setattr("degla_ray.evaluation.downloads.download.shutil.disk_usage", lambda path: usage)
    assert job.run({"name": "a", "url": job.url("a", BODY)})[0]
    archive = {"name": "b", "url": job.url("b", BODY), "unpack": "zip"}  # needs room for what it holds too
    ok, printed = job.run(archive)
    assert not ok
    assert "found 1500000 bytes free; expected 2097152 bytes" in printed


@pytest.mark.parametrize(
    "headers",
    [{"Content-Length": None}, {"Content-Encoding": "gzip"}],
    ids=["of_no_stated_size", "compressed_on_the_way"],
)
def test_fetch_more_bytes_than_stated_or_than_the_bound_are_refused_and_not_kept(
    job: Job, monkeypatch: pytest.MonkeyPatch, headers: dict[str, str | None]
) -> None:
    monkeypatch.setattr("degla_ray.evaluation.downloads.download.MAX_BYTES", CHUNK)
    job.site.headers = headers
    body = gzip.compress(bytes(4 * CHUNK)) if "Content-Encoding" in headers else BODY
    ok, printed = job.run({"name": "a", "url": job.url("a", body)})
    assert not ok
    most = len(body) if "Content-Encoding" in headers else CHUNK
    assert f"expected at most {most}" in printed
    assert not list((job.output / "annotations").iterdir())


def test_fetch_file_of_no_published_checksum_that_changed_is_noticed(job: Job) -> None:
    item = {"name": "a", "url": job.url("a", BODY)}
    _, printed = job.run(item)
    assert f"no checksum is published; SHA-256 {hashlib.sha256(BODY).hexdigest()} recorded" in printed
    (job.output / "annotations/a").unlink()
    job.url("a", b"another")
    ok, printed = job.run(item)
    assert not ok
    assert hashlib.sha256(b"another").hexdigest() in printed
    assert "delete a in fetched.json" in printed
    assert not (job.output / "annotations/a").exists()


def test_fetch_file_that_was_edited_here_is_noticed(job: Job) -> None:
    item = {"name": "a", "url": job.url("a", BODY)}
    job.run(item)
    (job.output / "annotations/a").write_bytes(b"edited")
    ok, printed = job.run(item)
    assert not ok
    assert "delete the file to fetch it again" in printed


def test_fetch_zip_is_unpacked_without_its_folder(job: Job) -> None:
    body = _zip({"val2017/1.jpg": b"one", "val2017/2.jpg": b"two", "__MACOSX/1.jpg": b"x", "README": b"x"})
    item = {
        "name": "coco",
        "to": "images/coco",
        "url": job.url("z", body),
        "unpack": "zip",
        "strip": "val2017",
    }
    assert job.run(item)[0]
    assert {path.name: path.read_bytes() for path in (job.output / "images/coco").iterdir()} == {
        "1.jpg": b"one",
        "2.jpg": b"two",
    }
    assert _no_rests(job.output)
    assert job.run(item)[0]
    assert len(job.site.requests) == 1


def test_fetch_archive_that_is_there_is_unpacked_without_asking(job: Job) -> None:
    (job.output / "images").mkdir(parents=True)
    (job.output / "images/coco.download").write_bytes(_zip({"a.jpg": b"a"}))
    (job.output / "images/coco.unpacking").mkdir()
    (job.output / "images/coco.unpacking/half.jpg").write_bytes(b"h")
    item = {"name": "coco", "to": "images/coco", "url": job.url("z", b"not asked for"), "unpack": "zip"}
    assert job.run(item)[0]
    assert [path.name for path in (job.output / "images/coco").iterdir()] == ["a.jpg"]
    assert not job.site.requests


@pytest.mark.parametrize(
    "name", ["../evil.jpg", "/etc/evil.jpg", "val/../../evil.jpg", "val\\..\\evil", "C:evil"]
)
def test_fetch_zip_with_a_member_outside_is_refused(job: Job, name: str) -> None:
    body = _zip({"val/1.jpg": b"one", name: b"evil"})
    item = {"name": "z", "to": "images/z", "url": job.url("z", body), "unpack": "zip", "strip": "val"}
    ok, printed = job.run(item)
    assert not ok
    assert "expected members inside the archive's own folder" in printed
    assert not (job.output / "images/z").exists()
    assert not list(job.folder.rglob("*evil*"))


def test_fetch_zip_without_the_folder_says_so(job: Job) -> None:
    body = _zip({"other/1.jpg": b"one"})
    item = {"name": "z", "to": "images/z", "url": job.url("z", body), "unpack": "zip", "strip": "val"}
    ok, printed = job.run(item)
    assert not ok
    assert "no file below 'val'" in printed


def _tar(path: Path, *members: tuple[str, bytes, str]) -> Path:
    """Write a tar of members (name, type, target of a link); a plain file contains `one`."""
    with tarfile.open(path, "w:gz") as archive:
        for name, kind, target in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            member.size = 3 if kind == tarfile.REGTYPE else 0
            archive.addfile(member, io.BytesIO(b"one"))
    return path


def test_unpack_tar_strips_and_takes_plain_files_only(tmp_path: Path) -> None:
    """A link to a folder does not lead the file after it outside either."""
    (tmp_path / "elsewhere").mkdir()
    path = _tar(
        tmp_path / "t.tar.gz",
        ("val/1.jpg", tarfile.REGTYPE, ""),
        ("val/passwd", tarfile.SYMTYPE, "/etc/passwd"),
        ("val/hard", tarfile.LNKTYPE, "/etc/passwd"),
        ("val/null", tarfile.CHRTYPE, ""),
        ("val/disk", tarfile.BLKTYPE, ""),
        ("val/pipe", tarfile.FIFOTYPE, ""),
        ("val/folder", tarfile.SYMTYPE, str(tmp_path / "elsewhere")),
        ("val/folder/2.jpg", tarfile.REGTYPE, ""),
    )
    unpack_archive(path, "tar", tmp_path / "out", "val")
    assert sorted(path.name for path in (tmp_path / "out").rglob("*") if path.is_file()) == ["1.jpg", "2.jpg"]
    assert not (tmp_path / "out" / "folder").is_symlink()
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("name", ["/etc/evil", "../evil", "val/../../evil"])
def test_unpack_tar_with_a_member_outside_is_refused(tmp_path: Path, name: str) -> None:
    path = _tar(tmp_path / "t.tar.gz", ("val/1.jpg", tarfile.REGTYPE, ""), (name, tarfile.REGTYPE, ""))
    with pytest.raises(DataError, match="expected members inside the archive's own folder"):
        unpack_archive(path, "tar", tmp_path / "out", "val")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("members", [1, 600], ids=["one_large", "many_small"])
def test_unpack_archive_of_far_more_bytes_than_its_own_is_refused_before_any(
    tmp_path: Path, kind: Literal["zip", "tar"], members: int
) -> None:
    path, total = tmp_path / "bomb", 30_000_000
    body = bytes(total // members)
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for number in range(members):
                archive.writestr(f"{number}.jpg", body)
    else:
        with tarfile.open(path, "w:gz") as tar:
            for number in range(members):
                member = tarfile.TarInfo(f"{number}.jpg")
                member.size = len(body)
                tar.addfile(member, io.BytesIO(body))
    bound = 100 * path.stat().st_size
    assert bound < total
    with pytest.raises(DataError, match=f"expected at most {bound} bytes, 100 times the archive's own"):
        unpack_archive(path, kind, tmp_path / "out", "")
    assert not list(tmp_path.rglob("*.jpg"))


def test_unpack_what_is_no_archive_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "z").write_bytes(b"no archive")
    for kind in ("zip", "tar"):
        with pytest.raises(DataError, match=r"expected a (zip|tar) archive"):
            unpack_archive(tmp_path / "z", kind, tmp_path / "out", "")
    assert not (tmp_path / "out").exists()


SOURCE = (
    "import nothing_that_exists\n\ndef f():\n    symmetric = ['near', 'next to']\n    other = list('ab')\n"
)


def test_fetch_python_list_keeps_only_the_list(job: Job) -> None:
    item = {"name": "a.json", "url": job.url("a.py", SOURCE.encode()), "extract": "python_list:symmetric"}
    assert job.run(item)[0]
    assert json.loads((job.output / "annotations/a.json").read_text()) == ["near", "next to"]
    assert _no_rests(job.output)
    assert job.run(item)[0]
    assert len(job.site.requests) == 1


def test_python_list_in_a_notebook_with_shell_commands_is_found(tmp_path: Path) -> None:
    cells = [
        ("code", ["!pip install x\n"]),
        ("markdown", ["symmetric = ['no']"]),
        ("code", SOURCE.splitlines(True)),
    ]
    notebook = {"cells": [{"cell_type": kind, "source": lines} for kind, lines in cells]}
    (tmp_path / "n.ipynb").write_text(json.dumps(notebook))
    assert python_list(tmp_path / "n.ipynb", "symmetric") == ["near", "next to"]


@pytest.mark.parametrize("variable", ["other", "absent"])
def test_python_list_that_would_have_to_be_run_is_refused(tmp_path: Path, variable: str) -> None:
    (tmp_path / "a.py").write_text(SOURCE)
    with pytest.raises(DataError, match=f"no list `{variable}`"):
        python_list(tmp_path / "a.py", variable)


def test_fetch_one_failure_does_not_stop_the_others(job: Job) -> None:
    ok, printed = job.run(
        {"name": "a", "url": job.url("absent")},
        {"name": "b", "url": "http://127.0.0.1:1/unreachable"},
        {"name": "c", "url": job.url("c", BODY)},
    )
    assert not ok
    assert "a: failed: " in printed
    assert "HTTP 404" in printed
    assert "b: failed: " in printed
    assert (job.output / "annotations/c").exists()


def test_fetch_form_is_listed_and_not_tried(job: Job) -> None:
    item = {"name": "w", "to": "images/w", "form": job.url("form", BODY), "by_hand": "Fill in the form."}
    ok, printed = job.run(item)
    assert ok
    assert f"w: by hand: Fill in the form. {job.url('form')}" in printed
    assert not job.site.requests
    (job.output / "images/w").mkdir(parents=True)
    assert " by hand " in job.run(item)[1]
    (job.output / "images/w/1.png").write_bytes(b"1")
    assert " present " in job.run(item)[1]


def test_fetch_without_images_takes_annotations_only(job: Job) -> None:
    items = [
        {"name": "a", "url": job.url("a", BODY)},
        {"name": "i", "to": "images/i", "url": job.url("i", BODY)},
    ]
    assert job.run(*items, images=False)[0]
    assert (job.output / "annotations/a").exists()
    assert not (job.output / "images").exists()


class _FakeDataset:
    """A torchvision dataset whose first download stops halfway."""

    calls = 0

    def __init__(self, root: Path, download: bool = False) -> None:
        assert download
        type(self).calls += 1
        assert not (root / "fake").exists(), "torchvision would take a half for the whole"
        (root / "fake").mkdir()
        (root / "fake.tar.gz").write_bytes(b"")
        if self.calls == 1:
            raise RuntimeError("the site is down")


def test_fetch_torchvision_set_is_moved_when_it_is_whole(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", _FakeDataset)
    item = {"name": "cifar10", "to": "zeroshot/fake", "torchvision": "CIFAR10"}
    ok, printed = job.run(item)
    assert not ok
    assert "the site is down" in printed
    assert not (job.output / "zeroshot/fake").exists()
    ok, _ = job.run(item)
    assert ok
    assert [path.name for path in (job.output / "zeroshot").iterdir()] == ["fake"]


def test_select_unknown_benchmark_names_those_there_are(shipped: list[CatalogueItem]) -> None:
    with pytest.raises(SettingError, match=r"sugarcrepes.*expected all, or some of .*sugarcrepe"):
        needed_items(shipped, ["sugarcrepes"], images=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"to": "../a"}, "a path below the output folder"),
        ({"to": "/a"}, "a path below the output folder"),
        ({"form": "http://x", "by_hand": "Ask."}, "one of `url`"),
        ({"url": None}, "one of `url`"),
        ({"extract": "exec:a"}, "python_list:VARIABLE"),
        ({"sha": "00"}, "no such setting"),
    ],
)
def test_catalogue_entry_that_cannot_be_is_refused(job: Job, change: dict[str, Any], message: str) -> None:
    with pytest.raises(DeglaError, match=message):
        job.run({"name": "a", "url": job.url("a", BODY), **change})


def test_catalogue_of_two_items_of_one_name_is_refused(job: Job) -> None:
    with pytest.raises(DataError, match="two items called"):
        job.run({"name": "a", "url": job.url("a", BODY)}, {"name": "a", "url": job.url("b", BODY)})


def test_catalogue_shipped_is_complete(shipped: list[CatalogueItem]) -> None:
    for item in shipped:
        assert item.licence, item.name
        assert item.benchmarks, item.name
        assert PurePosixPath(item.to).parts[0] in ("annotations", "images", "zeroshot", "nlvr"), item.name
        for address in (item.url, item.form):
            assert address is None or address.startswith(("https://", "http://")), item.name
        if item.url is not None and item.to.startswith("images/"):
            assert item.unpack != "none", item.name
        if item.torchvision is not None:
            assert item.torchvision in torchvision.datasets.__all__, item.name
    targets = [item.to for item in shipped]
    assert len(set(targets)) == len(targets)
    assert {name for item in shipped for name in item.benchmarks} == {
        *("sugarcrepe", "sugarcrepe_pp", "valse", "winoground", "nlvr"),
        *("aro", "vg_relation", "vg_attribution", "coco_order", "flickr30k_order"),
        *("retrieval", "coco_retrieval", "flickr30k_retrieval", "zeroshot"),
        *(f"zeroshot_{name}" for name in ZEROSHOT),
    }


def test_catalogue_shipped_checksums_have_the_right_length(shipped: list[CatalogueItem]) -> None:
    lengths = {"sha256": 64, "md5": 32, "sha1": 40}
    for item in shipped:
        for kind, value in item.checksums.items():
            assert len(value) == lengths[kind], item.name
            int(value, 16)
