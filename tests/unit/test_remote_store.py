"""A store that fails for a while costs time and nothing else; a user's mistake is told at once."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from benchmarks.slow_store import Store, slow_store
from degla_ray import remote_store
from degla_ray.config import ModelConfig
from degla_ray.errors import DataError
from degla_ray.remote_store import StoreError, StoreSilent
from degla_ray.storage import Storage
from degla_ray.training.run_identity import model_identity

TABLE = pa.table({"row": range(100), "image": [b"x" * 1000] * 100})
IN_CLIENT = 3  # tries of pyarrow's own client


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with slow_store() as running:
        yield running


@pytest.fixture
def folder(store: Store) -> Storage:
    folder = Storage(f"{store.uri}/{uuid.uuid4().hex}")
    folder.write_bytes(b"old", "file")
    folder.write_table(TABLE, "images", "part.parquet", row_group_rows=16)
    return folder


def test_remote_store_small_file_is_one_request_to_write_and_two_to_read(
    store: Store, folder: Storage
) -> None:
    store.delay(0.04)
    before = store.requests()
    folder.write_json({"step": 1}, "progress.json")
    assert store.requests() - before == 1
    assert folder.read_json("progress.json") == {"step": 1}
    assert store.requests() - before == 3
    store.delay(0)


def read_at(folder: Storage) -> object:
    return folder.open_file("file").read_at(2, 1)


def through_pyarrow(folder: Storage) -> object:
    with folder.filesystem.open_output_stream(folder.path("other")) as stream:
        stream.write(b"other")
    return folder.read_bytes("other")


def written(folder: Storage) -> object:
    folder.write_bytes(b"new", "file")
    return folder.read_bytes("file")


def deleted(folder: Storage) -> object:
    folder.delete_file("file")
    folder.delete_folder("images")
    return folder.names_below()


@pytest.mark.parametrize(
    ("act", "expected", "how"),
    [
        (lambda folder: folder.read_bytes("file"), b"old", "503"),
        (lambda folder: folder.read_bytes("file"), b"old", "reset"),
        (read_at, b"ld", "503"),
        (lambda folder: folder.open_parquet("images", "part.parquet").read(), TABLE, "503"),
        (lambda folder: folder.names(), ["file"], "503"),
        (written, b"new", "503"),
        (written, b"new", "reset"),
        (through_pyarrow, b"other", "503"),
        (deleted, [], "503"),
    ],
)
def test_remote_store_every_operation_survives_a_failing_store(
    act: Callable[[Storage], object], expected: object, how: str, store: Store, folder: Storage
) -> None:
    store.fail(IN_CLIENT, how)
    assert act(folder) == expected


def test_remote_store_error_in_place_of_data_is_not_data(store: Store, folder: Storage) -> None:
    """The status comes after the file was found, and its body is as long as the data."""
    content = b"Service Unavailable"
    folder.write_bytes(content.upper(), "receipt")
    file = folder.open_file("receipt")
    store.fail(IN_CLIENT + 1)
    assert file.read_at(len(content), 0) == content.upper()


def outage(seconds: float, store: Store, folder: Storage) -> list[bytes]:
    """Cut every connection for some seconds, and read by four threads meanwhile."""
    found: list[bytes] = []
    readers = [threading.Thread(target=lambda: found.append(folder.read_bytes("file"))) for _ in range(4)]
    store.fail(10**6, "reset")
    for reader in readers:
        reader.start()
    time.sleep(seconds)
    store.fail(0)
    for reader in readers:
        reader.join()
    return found


def check_outage(seconds: float, store: Store, folder: Storage, printed: pytest.CaptureFixture[str]) -> None:
    assert outage(seconds, store, folder) == [b"old"] * 4
    first, last = printed.readouterr().err.splitlines()
    assert first.startswith("store: s3://bucket does not answer (NETWORK_CONNECTION during HeadObject")
    assert "; tries again until " in first
    assert last.startswith("store: s3://bucket answers again, after ")


def test_remote_store_outage_is_said_once(
    store: Store, folder: Storage, capsys: pytest.CaptureFixture[str]
) -> None:
    check_outage(4, store, folder, capsys)


@pytest.mark.slow
def test_remote_store_outage_of_30_s_loses_nothing(
    store: Store, folder: Storage, capsys: pytest.CaptureFixture[str]
) -> None:
    check_outage(30, store, folder, capsys)


def test_remote_store_that_stays_away_ends_the_wait(
    store: Store, folder: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_store, "OUTAGE_S", 2.0)
    store.fail(10**6)
    with pytest.raises(StoreSilent, match=r"s3://bucket: found no answer for .* \(.*503"):
        folder.read_bytes("file")
    store.fail(0)
    assert folder.read_bytes("file") == b"old"


@pytest.mark.parametrize("act", [written, read_at, deleted, lambda folder: folder.names()])
def test_remote_store_refusal_names_the_credentials_and_is_not_retried(
    act: Callable[[Storage], object], store: Store, folder: Storage
) -> None:
    before = store.requests()
    store.fail(10**6, "403")
    with pytest.raises(
        StoreError, match=r"s3://bucket: .*ACCESS_DENIED.*expected credentials.*AWS_ACCESS_KEY_ID"
    ):
        act(folder)
    store.fail(0)
    assert store.requests() - before == 1


def test_remote_store_bucket_that_is_not_there_is_refused_at_once(store: Store) -> None:
    before = store.requests()
    with pytest.raises(StoreError, match=f"s3://no-bucket: .*a bucket that exists at .*{store.url}"):
        Storage("s3://no-bucket/folder").write_bytes(b"", "file")
    assert store.requests() - before == 1


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://no-such-host.invalid"])
def test_remote_store_wrong_address_is_refused_within_seconds(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    monkeypatch.setattr(remote_store, "FIRST_ANSWER_S", 1.0)
    with pytest.raises(StoreSilent, match=f"s3://elsewhere-.*no answer .*AWS_ENDPOINT_URL={url}"):
        Storage(f"s3://elsewhere-{len(url)}/folder").exists("file")


def test_storage_uri_with_a_query_is_refused_and_names_the_variable() -> None:
    with pytest.raises(DataError, match="AWS_ENDPOINT_URL"):
        Storage("s3://bucket/folder?endpoint_override=127.0.0.1:9000")


def broken() -> Iterator[bytes]:
    yield b"first piece"
    raise ValueError("the source ends here")


@pytest.mark.parametrize("is_local", [True, False])
def test_storage_write_that_ends_in_an_error_leaves_the_old_file(
    is_local: bool, folder: Storage, tmp_path: Path
) -> None:
    place = Storage(str(tmp_path)) if is_local else folder
    place.write_bytes(b"old", "file")
    before = place.names_below()
    with pytest.raises(ValueError, match="ends here"):
        place.write_chunks(broken(), "file")
    assert place.read_bytes("file") == b"old"
    assert place.names_below() == before


@pytest.mark.parametrize("name", ["weights", "weights/model.safetensors"])
def test_model_identity_of_new_weights_at_the_old_place_in_a_store_is_another(
    name: str, folder: Storage
) -> None:
    config = ModelConfig(name="ViT-B-32", pretrained=f"{folder.uri}/{name}")
    folder.write_bytes(b"one", "weights", "model.safetensors")
    first = model_identity(config)
    folder.write_bytes(b"two", "weights", "model.safetensors")
    assert model_identity(config) != first
    folder.write_bytes(b"one", "weights", "model.safetensors")
    assert model_identity(config) == first
