"""Images above Pillow's own limit: used where `prepare` let them in, named elsewhere."""

from __future__ import annotations

import base64
import dataclasses
import io
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, UnidentifiedImageError

from degla_ray.config import DataConfig
from degla_ray.encoding import images
from degla_ray.encoding.images import FileImages, ParquetImages
from degla_ray.encoding.resize import resized
from degla_ray.loader.decode import BatchReader, BatchSpec, cropped
from degla_ray.loader.image_files import CacheSpec
from degla_ray.loader.order import BatchOrder
from degla_ray.loader.samples import Texts, load_samples
from degla_ray.loader.tokens import tokenise
from degla_ray.reporting.thumbnails import SIZE, thumbnails
from degla_ray.schema import IMAGES
from degla_ray.sources.base import Refusal
from degla_ray.sources.images import CheckedImage, check_and_convert
from degla_ray.sources.listing import ImageFolder
from degla_ray.sources.write_images import image_index
from tests.training_inputs import write_inputs

GREY = 77


def png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (width, height), GREY).save(file, "PNG", compress_level=1)
    return file.getvalue()


def write_prepared(folder: Path, width: int, height: int) -> Path:
    """Write prepared data whose one image `prepare` keeps under a `max_image_pixels` of its size."""
    write_inputs(folder, images=1, num_shards=1)
    kept = check_and_convert(png(width, height), width * height, None)
    assert isinstance(kept, CheckedImage), kept
    row = {"image_id": "img0000", "image": kept.data, "width": kept.width, "height": kept.height}
    (part,) = (folder / "prepared" / "images").glob("*.parquet")
    pq.write_table(pa.Table.from_pylist([row], IMAGES), part, compression="none", use_dictionary=["image_id"])
    pq.write_table(image_index(str(part)), folder / "prepared" / "image_index" / part.name)
    return folder


@pytest.fixture(autouse=True)
def _limit_stays_as_it_was() -> Iterator[None]:
    before = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield
    assert before == Image.MAX_IMAGE_PIXELS


@pytest.fixture
def lower_limit(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let Pillow refuse more than 200,000 pixels, so that an image above its limit is quick to decode."""
    with monkeypatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)
        yield
        assert Image.MAX_IMAGE_PIXELS == 100_000


@pytest.mark.usefixtures("lower_limit")
def test_pixel_limit_prepared_image_is_trained_on(tmp_path: Path) -> None:
    folder = write_prepared(tmp_path, 1600, 720)
    data = DataConfig(prepared=str(folder / "prepared"), negatives=str(folder / "negatives"))
    spec = BatchSpec(
        order=BatchOrder(seed=5, num_rows=2, batch_size=1),
        rank=0,
        world_size=1,
        negatives=0,
        size=(8, 8),
        interpolation="bicubic",
        cache=CacheSpec(folder="", max_bytes=0, whole_parts=False),
        crop_scale_min=1.0,  # more than half of it: crops are held to the limit too
    )
    samples = load_samples(data, with_negatives=False)
    found = tokenise(
        samples, lambda texts, context_length=4: np.ones((len(texts), context_length), int), 0, 2
    )
    samples = dataclasses.replace(samples, texts=Texts.joined([found.captions, found.negatives]))
    assert (BatchReader(samples, spec).read(0).images_BHWC == GREY).all()


@pytest.mark.usefixtures("lower_limit")
def test_pixel_limit_prepared_image_is_encoded_and_shown(tmp_path: Path) -> None:
    source = ParquetImages(str(write_prepared(tmp_path, 1600, 720) / "prepared"))
    (batch,), absent = source.batches({"img0000"}, 4)
    (image,) = source.read(batch)
    assert absent == {}
    assert isinstance(image, images.StoredImage)
    config = {"size": 8, "interpolation": "bicubic", "resize_mode": "shortest"}
    assert (resized(image.open(), config) == GREY).all()
    (uri,) = thumbnails(["s:img0000"], [{"s": images.source_spec(source)}]).values()
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as small:
        assert small.size == (SIZE, SIZE * 720 // 1600)


@pytest.mark.usefixtures("lower_limit")
@pytest.mark.parametrize("part", ["", "#0,0,4,4"])
def test_pixel_limit_file_that_was_not_prepared_keeps_pillows(tmp_path: Path, part: str) -> None:
    (tmp_path / "bomb.png").write_bytes(png(1000, 500))
    source = FileImages(str(tmp_path))
    (batch,), _ = source.batches({f"bomb.png{part}"}, 4)
    (image,) = source.read(batch)
    assert isinstance(image, images.StoredImage)
    with pytest.raises(Image.DecompressionBombError, match="500000 pixels"):
        image.open()
    assert thumbnails([f"s:bomb.png{part}"], [{"s": images.source_spec(source)}]) == {}


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"


def test_open_image_format_that_another_program_decodes_is_none(tmp_path: Path) -> None:
    """Pillow itself takes the file and would run Ghostscript on it."""
    with Image.open(io.BytesIO(EPS)) as opened:
        assert opened.format == "EPS"
    with pytest.raises(UnidentifiedImageError):
        images.StoredImage(data=EPS).open()
    with pytest.raises(UnidentifiedImageError):
        cropped(EPS, lambda width, height: (0, 0, width, height), (8, 8), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("/etc/hostname", "does not stay in the image folder"),
        ("../outside.png", "does not stay in the image folder"),
        ("a/../../outside.png", "does not stay in the image folder"),
        ("pipe.png", "no plain file"),
        ("null.png", "no plain file"),
        ("large.png", "expected at most 1000"),
        ("absent.png", "no such file"),
    ],
)
def test_file_images_id_of_an_annotation_file_reads_plain_files_of_its_folder_only(
    name: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("degla_ray.pixel_limit.MAX_FILE_BYTES", 1000)
    folder = tmp_path / "images"
    (folder / "a").mkdir(parents=True)
    small = png(4, 4)
    for place in (folder / "in.png", tmp_path / "outside.png"):
        place.write_bytes(small)
    os.mkfifo(folder / "pipe.png")
    (folder / "null.png").symlink_to("/dev/zero")
    (folder / "large.png").write_bytes(small + bytes(1000))
    source = FileImages(str(folder))
    error, read, region = source.read(images.ImageBatch(ids=[name, "a/../in.png", "in.png#0,0,2,2"]))
    assert why in str(error)
    assert isinstance(read, images.StoredImage)
    assert isinstance(region, images.StoredImage)
    assert read.data == region.data == small
    listed = ImageFolder(str(folder), "x.images").list().find([name])
    if why in ("no plain file", "does not stay in the image folder"):
        assert isinstance(listed, Refusal)
