"""Hard-negative images: found by a model, and trained on by NegCLIP on one and on two workers."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from degla_ray.config import DataConfig, ModelConfig, NeighboursConfig, ObjectiveConfig, TrainConfig
from degla_ray.encoding.neighbours import find_neighbours, nearest_rows
from degla_ray.errors import SettingError
from degla_ray.loader.decode import BatchReader, BatchSpec, with_hard_negatives
from degla_ray.loader.image_files import CacheSpec
from degla_ray.loader.order import BatchOrder
from degla_ray.loader.samples import Texts, load_samples
from degla_ray.loader.tokens import tokenise
from degla_ray.model import encode_image
from degla_ray.model.build import build
from degla_ray.model.preprocess import eval_transform
from degla_ray.schema import IMAGES, NEIGHBOURS
from degla_ray.stage import read_complete
from degla_ray.training.trainer import train
from tests.training_inputs import read_trace, train_config, write_inputs

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Path:
    folder = write_inputs(tmp_path_factory.mktemp("neighbours"))
    find_neighbours(neighbours_config(folder))
    return folder


def neighbours_config(folder: Path, **settings: object) -> NeighboursConfig:
    defaults = {
        "prepared": str(folder / "prepared"),
        "output": str(folder / "neighbours"),
        "model": ModelConfig(name="scenes-base"),
        "batch_size": 7,
    }
    return NeighboursConfig(**(defaults | settings))  # type: ignore[arg-type]


def data_config(folder: Path) -> DataConfig:
    return DataConfig(
        prepared=str(folder / "prepared"),
        negatives=str(folder / "negatives"),
        neighbours=str(folder / "neighbours"),
        decode_tasks=1,
    )


@torch.no_grad()
def test_neighbours_are_the_nearest_other_images_in_the_models_eyes(folder: Path) -> None:
    prepared, _ = read_complete(str(folder / "prepared"), "prepare")
    images = prepared.read_dataset("images", IMAGES).sort_by("image_id").to_pylist()
    loaded = build(ModelConfig(name="scenes-base"))
    transform = eval_transform(loaded.preprocess_cfg)
    pixels = torch.stack([transform(Image.open(io.BytesIO(row["image"]))) for row in images])
    features = encode_image(loaded.model.eval(), pixels)
    similarity = features @ features.T - 9 * torch.eye(len(images))
    written, _ = read_complete(str(folder / "neighbours"), "neighbours")
    found = {
        row["image_id"]: row["neighbours"]
        for row in written.read_dataset("neighbours", NEIGHBOURS).to_pylist()
    }
    place = {row["image_id"]: i for i, row in enumerate(images)}
    assert found.keys() == place.keys()
    for image_id, near in found.items():
        scores = similarity[place[image_id]]
        best = scores.topk(3).values.tolist()
        assert [scores[place[other]].item() for other in near] == pytest.approx(best, abs=1e-5)
        assert image_id not in near


def test_neighbours_again_does_nothing_and_other_settings_are_refused(folder: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in (folder / "neighbours").rglob("*")}
    assert find_neighbours(neighbours_config(folder))["written"] == 30
    assert {p: p.stat().st_mtime_ns for p in (folder / "neighbours").rglob("*")} == before
    with pytest.raises(SettingError, match=r"split: found 'train'; expected a split of more than 40 images"):
        find_neighbours(neighbours_config(folder, count=40))


def test_nearest_rows_in_blocks_equal_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(0).normal(size=(23, 5)).astype(np.float32)
    whole = nearest_rows(rows, 4)
    expected = np.argsort(-(rows @ rows.T - 1e9 * np.eye(23)), axis=1)[:, :4]
    assert (whole == expected).all()
    monkeypatch.setattr("degla_ray.encoding.neighbours._BLOCK", 6)
    assert (nearest_rows(rows, 4) == whole).all()


def test_batch_with_hard_negatives_has_a_neighbour_of_each_row_behind_them(folder: Path) -> None:
    samples = load_samples(data_config(folder), with_negatives=True)
    spec = BatchSpec(
        order=BatchOrder(seed=0, num_rows=len(samples), batch_size=8),
        rank=0,
        world_size=1,
        negatives=1,
        size=(32, 32),
        interpolation="bicubic",
        cache=CacheSpec(folder="", max_bytes=0, whole_parts=False),
        crop_scale_min=1.0,
    )
    tokenizer = build(ModelConfig(name=str(folder / "model.json"), random_init=True)).tokenizer
    found = tokenise(samples, tokenizer, 0, len(samples))
    samples = dataclasses.replace(samples, texts=Texts.joined([found.captions, found.negatives]))
    reader, seen = BatchReader(samples, spec), set()
    for step in range(6):
        batch = reader.read(step)
        (tokens_XL,) = batch.texts
        assert len(batch.images_BHWC) == len(batch.mask_BK) == 16
        visits = with_hard_negatives(spec.order.batch(step), samples, seed=0)
        tokens = tokenizer(samples.caption.take(pa.array(visits.row_B)).to_pylist())
        assert (tokens_XL[:16] == tokens.numpy()).all()
        own, behind = samples.image[visits.row_B].reshape(2, 8)
        for one, other in zip(own, behind, strict=True):
            near = samples.neighbour[one].tolist()
            assert other in near
            seen.add(near.index(other))
    assert seen == {0, 1, 2}


@pytest.mark.slow  # test_batch_with_hard_negatives_… holds what a batch is
def test_train_negclip_with_hard_negatives_is_the_same_on_two_workers(folder: Path) -> None:
    settings = {"objective": ObjectiveConfig(name="negclip"), "data": data_config(folder), "max_steps": 8}
    one, two = (train(train_config(folder, name=f"hard-{n}", num_workers=n, **settings)) for n in (1, 2))
    traces = [read_trace(run.trace_path) for run in (one, two)]
    for left, right in zip(*traces, strict=True):
        assert left == pytest.approx(right, rel=1e-5, abs=1e-5)
    plain = train_config(folder, name="plain", **settings | {"data": train_config(folder).data})
    # 32 images stand beside each other, not 16: the first loss is near log 32, the other near log 16
    assert traces[0][0]["loss"] > read_trace(train(plain).trace_path)[0]["loss"] + 0.3


def test_train_hard_negatives_for_another_objective_are_refused(folder: Path) -> None:
    with pytest.raises(SettingError, match=r"data\.neighbours.*'degla' takes no hard-negative images"):
        TrainConfig(name="x", data=data_config(folder), model=ModelConfig(name="scenes-base"))
