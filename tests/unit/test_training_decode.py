"""Local batches: a function of the step, cut out of the global batch, cropped as torchvision does."""

from __future__ import annotations

import dataclasses
import io
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import RandomResizedCrop

from degla_ray.config import DataConfig
from degla_ray.errors import DataError
from degla_ray.loader.decode import BatchReader, BatchSpec, crop_box, cropped
from degla_ray.loader.image_files import CacheSpec, ImageFiles
from degla_ray.loader.order import BatchOrder
from degla_ray.loader.samples import Samples, Texts, load_samples
from degla_ray.loader.tokens import tokenise
from degla_ray.model.packing import TextEnd
from tests.training_inputs import write_inputs

CACHE = CacheSpec(folder="unused: the data is local", max_bytes=0, whole_parts=False)


def letters(texts: list[str], context_length: int = 60) -> torch.Tensor:
    """A tokenizer without a model: character codes, padded to 60."""
    rows = [[ord(c) for c in text[:context_length]] for text in texts]
    padded = [row + [0] * (context_length - len(row)) for row in rows]
    return torch.tensor(padded, dtype=torch.int64).reshape(-1, context_length)


class LastLetter(TextEnd):
    """The end of a text of `letters`, which has no end token."""

    def __init__(self) -> None:
        super().__init__(token=None)

    def find(self, tokens_XL: np.ndarray) -> np.ndarray:
        return (tokens_XL != 0).sum(axis=1) - 1


def text_of(tokens_L: np.ndarray) -> str:
    return "".join(chr(c) for c in tokens_L if c)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    folder = write_inputs(tmp_path_factory.mktemp("inputs"))
    config = DataConfig(prepared=str(folder / "prepared"), negatives=str(folder / "negatives"))
    return with_texts(load_samples(config, with_negatives=True))


def with_texts(samples: Samples) -> Samples:
    found = tokenise(samples, letters, 0, len(samples))
    return dataclasses.replace(samples, texts=Texts.joined([found.captions, found.negatives]))


@pytest.fixture
def spec(samples: Samples) -> BatchSpec:
    return BatchSpec(
        order=BatchOrder(seed=5, num_rows=len(samples), batch_size=16),
        rank=0,
        world_size=1,
        negatives=4,
        size=(24, 24),
        interpolation="bicubic",
        cache=CACHE,
        crop_scale_min=0.5,
    )


def test_batch_of_two_workers_is_that_of_one(samples: Samples, spec: BatchSpec) -> None:
    whole = BatchReader(samples, spec).read(6)
    halves = [BatchReader(samples, dataclasses.replace(spec, rank=r, world_size=2)).read(6) for r in range(2)]
    for name in ("images_BHWC", "mask_BK"):
        assert np.concatenate([getattr(h, name) for h in halves]).tobytes() == getattr(whole, name).tobytes()
    pieces = BatchReader(samples, dataclasses.replace(spec, micro_batch_size=8)).read(6).texts
    assert [p.tobytes() for p in pieces] == [h.texts[0].tobytes() for h in halves]


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_batch_of_any_number_of_workers_is_computed_by_at_most_so_many_rows(
    samples: Samples, spec: BatchSpec, world_size: int
) -> None:
    """5 rows at once of 16 on one worker are 4 micro-batches, of 8 on one of two workers are 2."""
    own = dataclasses.replace(spec, world_size=world_size, micro_batch_size=5)
    pieces = [len(texts) // (1 + 4) for texts in BatchReader(samples, own).read(6).texts]
    assert max(pieces) <= 5
    assert sum(pieces) == 16 // world_size
    assert len(pieces) == -(-16 // world_size // 5)


def test_batch_captions_and_negatives_belong_together(samples: Samples, spec: BatchSpec) -> None:
    batch = BatchReader(samples, spec).read(2)
    (tokens_XL,) = batch.texts
    assert tokens_XL.shape == (16 * (1 + 4), 60)
    negatives_BKL = tokens_XL[16:].reshape(16, 4, 60)
    for i, row in enumerate(spec.order.batch(2).row_B):
        own = samples.negative[samples.first_negative[row] : samples.first_negative[row + 1]].to_pylist()
        drawn = [text_of(t) for t in negatives_BKL[i][batch.mask_BK[i]]]
        assert text_of(tokens_XL[i]) == samples.caption[int(row)].as_py()
        assert len(drawn) == min(4, len(own))
        assert set(drawn) <= set(own)


def test_batch_packed_texts_are_the_padded_ones(samples: Samples, spec: BatchSpec) -> None:
    padded = BatchReader(samples, spec).read(2)
    packed = BatchReader(samples, dataclasses.replace(spec, text_end=LastLetter())).read(2)
    (tokens_XL,), (text,) = padded.texts, packed.texts
    absent_X = np.concatenate([np.zeros(16, bool), ~packed.mask_BK.reshape(-1)])
    for x, (begin, end) in enumerate(itertools.pairwise(text.start_S[:-1].tolist())):
        expected = text_of(tokens_XL[x])
        assert text_of(text.token_T[begin:end]) == (expected[:1] if absent_X[x] else expected)


def test_batch_without_negatives_has_none(samples: Samples, spec: BatchSpec) -> None:
    batch = BatchReader(samples, dataclasses.replace(spec, negatives=0)).read(0)
    assert batch.mask_BK.shape == (16, 0)
    assert batch.texts[0].shape == (16, 60)


def test_batch_read_twice_or_after_others_same_bytes(samples: Samples, spec: BatchSpec) -> None:
    reader = BatchReader(samples, spec)
    first = reader.read(3)
    reader.read(0)
    again = reader.read(3)
    assert first.images_BHWC.tobytes() == again.images_BHWC.tobytes()
    assert first.texts[0].tobytes() == again.texts[0].tobytes()
    assert first.mask_BK.tobytes() == again.mask_BK.tobytes()


def test_batch_whole_image_where_crop_is_off(samples: Samples, spec: BatchSpec) -> None:
    """Square images with scale 1: only the ratio could cut, and then the fallback takes the middle."""
    batch = BatchReader(samples, dataclasses.replace(spec, crop_scale_min=1.0, size=(32, 32))).read(0)
    (data,) = ImageFiles(samples, CACHE).read([int(samples.image[spec.order.batch(0).row_B[0]])])
    opened = Image.open(io.BytesIO(data))
    assert np.abs(batch.images_BHWC[0].astype(int) - np.asarray(opened).astype(int)).mean() < 1.0


@pytest.mark.parametrize("crop", [(0, 0, 640, 480), (37, 21, 590, 455)])
def test_cropped_large_jpeg_is_decoded_smaller_and_hardly_differs(crop: tuple[int, int, int, int]) -> None:
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)).resize((640, 480))
    buffer = io.BytesIO()
    smooth.save(buffer, "JPEG", quality=90)
    found = cropped(buffer.getvalue(), lambda width, height: crop, (224, 224), Image.Resampling.BICUBIC)
    left, top, width, height = crop
    whole = Image.open(buffer).crop((left, top, left + width, top + height))
    expected = whole.resize((224, 224), Image.Resampling.BICUBIC)
    difference = np.abs(np.asarray(found).astype(int) - np.asarray(expected).astype(int))
    assert 0 < difference.mean() < 2.0


def test_cropped_image_of_the_size_that_is_needed_is_exact() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    for form in ("PNG", "JPEG"):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, form)
        found = cropped(buffer.getvalue(), lambda *_: (5, 6, 50, 40), (32, 32), Image.Resampling.BICUBIC)
        whole = Image.open(buffer).convert("RGB")
        expected = whole.resize((32, 32), Image.Resampling.BICUBIC, box=(5, 6, 55, 46))
        assert found.tobytes() == expected.tobytes()


def test_image_that_does_not_decode_is_named(tmp_path: Path, spec: BatchSpec) -> None:
    folder = write_inputs(tmp_path, broken="img0004")
    config = DataConfig(prepared=str(folder / "prepared"), negatives=str(folder / "negatives"))
    samples = with_texts(load_samples(config, with_negatives=True))
    epoch = dataclasses.replace(spec, order=dataclasses.replace(spec.order, batch_size=len(samples)))
    with pytest.raises(DataError, match=r"image 'img0004' in .*part-0000\d-of-00002"):
        BatchReader(samples, epoch).read(0)


@pytest.mark.parametrize(("width", "height"), [(64, 64), (640, 480), (20, 200), (300, 30)])
def test_crop_box_distribution_is_torchvisions(width: int, height: int) -> None:
    torch.manual_seed(0)
    theirs_transform = RandomResizedCrop(8, scale=(0.3, 1.0))
    blank = torch.zeros(3, height, width)
    theirs = [theirs_transform.make_params([blank]) for _ in range(3000)]
    theirs_boxes = np.array([[p["left"], p["top"], p["width"], p["height"]] for p in theirs])
    drawn = np.random.default_rng(0).random((3000, 22))
    ours = np.array([crop_box(width, height, u, 0.3) for u in drawn])
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, 0] + ours[:, 2] <= width).all()
    assert (ours[:, 1] + ours[:, 3] <= height).all()
    extent = np.array([width, height, width, height])
    assert np.abs((ours.mean(axis=0) - theirs_boxes.mean(axis=0)) / extent).max() < 0.02
    assert np.abs((ours.std(axis=0) - theirs_boxes.std(axis=0)) / extent).max() < 0.02
