"""Images above Pillow's own limit: used where `prepare` let them in, named elsewhere."""

from __future__ import annotations

import base64
import io
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from degla_ray.config import DataConfig
from degla_ray.evaluation import pictures
from degla_ray.evaluation.encode import _decode, eval_transform
from degla_ray.evaluation.pictures import FilePictures, ParquetPictures
from degla_ray.evaluation.thumbnails import SIZE, thumbnails
from degla_ray.schema import IMAGES
from degla_ray.sources.images import CheckedImage, check_and_convert
from degla_ray.training.decode import BatchReader, BatchSpec
from degla_ray.training.order import BatchOrder
from degla_ray.training.samples import load_samples
from tests.training_inputs import write_inputs

WIDTH, HEIGHT = 20_000, 9_000  # 180 million pixels; Pillow refuses 179 million
GREY = 77


@pytest.fixture(scope="module")
def large() -> bytes:
    file = io.BytesIO()
    Image.new("L", (WIDTH, HEIGHT), GREY).save(file, "PNG", compress_level=1)
    return file.getvalue()


@pytest.fixture(scope="module")
def folder(large: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared data whose one image `prepare` would keep under a higher `max_image_pixels`."""
    folder = write_inputs(tmp_path_factory.mktemp("large"), pictures=1, num_shards=1)
    kept = check_and_convert(large, WIDTH * HEIGHT, None)
    assert isinstance(kept, CheckedImage), kept
    row = {"image_id": "img0000", "image": kept.data, "width": kept.width, "height": kept.height}
    (part,) = (folder / "prepared" / "images").glob("*.parquet")
    pq.write_table(pa.Table.from_pylist([row], IMAGES), part)
    return folder


@pytest.fixture(autouse=True)
def _limit_stays_as_it_was():
    before = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield
    assert before == Image.MAX_IMAGE_PIXELS


def test_pixel_limit_prepared_image_is_trained_on(folder: Path) -> None:
    data = DataConfig(prepared=str(folder / "prepared"), negatives=str(folder / "negatives"))
    spec = BatchSpec(
        order=BatchOrder(seed=5, num_rows=2, batch_size=1),
        rank=0,
        world_size=1,
        negatives=0,
        size=(8, 8),
        interpolation="bicubic",
        crop_scale_min=1.0,  # more than half of it: crops are held to the limit too
        tokenizer=lambda texts: np.zeros((len(texts), 4), np.int64),
    )
    batch = BatchReader(load_samples(data, with_negatives=False), spec).read(0)
    assert (batch["images"] == GREY).all()


def test_pixel_limit_prepared_image_is_encoded_and_shown(folder: Path) -> None:
    source = ParquetPictures(str(folder / "prepared"))
    (batch,), absent = source.batches({"img0000"}, 4)
    (picture,) = source.read(batch)
    assert absent == {}
    assert isinstance(picture, pictures.Picture)
    transform = eval_transform({"size": 8, "mean": (0, 0, 0), "std": (1, 1, 1)})
    np.testing.assert_allclose(_decode(picture, transform), GREY / 255, atol=1e-3)
    (uri,) = thumbnails(["s:img0000"], [{"s": pictures.spec(source)}]).values()
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as small:
        assert small.size == (SIZE, SIZE * HEIGHT // WIDTH)


@pytest.mark.parametrize("part", ["", "#0,0,4,4"])
def test_pixel_limit_file_that_was_not_prepared_keeps_pillows(
    large: bytes, tmp_path: Path, part: str
) -> None:
    (tmp_path / "bomb.png").write_bytes(large)
    source = FilePictures(str(tmp_path))
    (batch,), _ = source.batches({f"bomb.png{part}"}, 4)
    (picture,) = source.read(batch)
    assert isinstance(picture, pictures.Picture)
    with pytest.raises(Image.DecompressionBombError, match="180000000 pixels"):
        picture.open()
    assert thumbnails([f"s:bomb.png{part}"], [{"s": pictures.spec(source)}]) == {}
