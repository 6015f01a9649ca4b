"""The published benchmarks end to end: generated files and (slow) the official ones with stand-in images."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from degla_ray.config import EvaluateConfig, ModelConfig, PublishedConfig, TrackingConfig
from degla_ray.errors import DataError, FingerprintMismatch, SettingError
from degla_ray.evaluation.benchmarks import published
from degla_ray.evaluation.run import evaluate
from degla_ray.evaluation.summary import Summary
from degla_ray.schema import ITEMS, SCORES
from degla_ray.storage import Storage
from tests.evaluation_suite import write_model_config
from tests.published_files import write_json

pytestmark = pytest.mark.usefixtures("ray_cluster")
OFF = TrackingConfig(enabled=False)
SUGARCREPE = ("replace_obj", "replace_att", "replace_rel", "swap_obj", "swap_att", "add_obj", "add_att")


def stand_in(path: Path) -> None:
    """An image that hangs on the file's name alone."""
    seed = int.from_bytes(hashlib.blake2b(path.name.encode(), digest_size=8).digest(), "big")
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).resize((48, 48), Image.Resampling.NEAREST).save(path)


def write_data(folder: Path) -> Path:
    """Twelve items of each SugarCrepe subset and of COCO-Order, which share images; VG-Relation's boxes."""
    captions = [f"a red dog number {i} sits on a small table near a tall man" for i in range(12)]
    for subset in SUGARCREPE:
        items = {
            str(2 * i): {
                "filename": f"{i:012d}.jpg",
                "caption": caption,
                "negative_caption": caption.replace("dog", subset) if i else caption,  # the first is a tie
            }
            for i, caption in enumerate(captions)
        }
        write_json(folder / "annotations" / "sugarcrepe", f"{subset}.json", items)
    order = [{"image": f"val2014/{i}.png", "caption": [c]} for i, c in enumerate(captions)]
    write_json(folder / "annotations" / "order", "coco_karpathy_test.json", order)
    relations: list[dict[str, Any]] = [
        {
            "image_path": "1.png",
            "bbox_x": 4 * i,
            "bbox_y": 0,
            "bbox_w": 8,
            "bbox_h": 30,
            "true_caption": f"the dog is {name} the man {i}",
            "false_caption": f"the man is {name} the dog {i}",
            "relation_name": name,
        }
        for i, name in enumerate(["on"] * 4 + ["riding"] * 4 + ["beside"] * 2)
    ]
    write_json(folder / "annotations" / "aro", "visual_genome_relation.json", relations)
    write_json(folder / "annotations" / "aro", "symmetric_relations.json", ["beside"])
    for i in range(12):
        stand_in(folder / "images" / "coco_val2017" / f"{i:012d}.jpg")
        stand_in(folder / "images" / "coco_val2014" / f"{i}.png")
    stand_in(folder / "images" / "vg" / "1.png")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    write_model_config(folder / "tiny.json")
    return write_data(folder)


def config_of(data: Path, output: Path, **changes: Any) -> EvaluateConfig:
    config = EvaluateConfig(
        model=ModelConfig(name=str(data / "tiny.json"), random_init=True),
        output=str(output),
        published=PublishedConfig(data=str(data)),
        num_actors=1,
        bootstrap_samples=50,
        tracking=OFF,
    )
    return dataclasses.replace(config, **changes)


@pytest.fixture(scope="module")
def whole(data: Path, ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Summary, Path]:
    """Everything is scored once for the module, with a cache of features."""
    folder = tmp_path_factory.mktemp("whole")
    return evaluate(config_of(data, folder / "out", cache=str(folder / "cache"))), folder / "out"


def test_published_all_that_there_are_files_of_are_scored(whole: tuple[Summary, Path]) -> None:
    summary, output = whole
    expected = {f"sugarcrepe/{subset}": 12 for subset in SUGARCREPE}
    expected |= {"coco_order/order": 12, "vg_relation/relations": 8, "vg_relation/symmetric": 2}
    found = {s.name: s.n for s in summary.subsets if not s.name.startswith("coco_retrieval")}
    assert found == expected
    assert not summary.partial
    assert {"sugarcrepe", "sugarcrepe_replace", "sugarcrepe_swap", "sugarcrepe_add"} <= {
        a.name for a in summary.averages
    }
    assert all(s.protocol for s in summary.subsets)
    storage = Storage(str(output))
    items, scores = (
        {
            (r["benchmark"], r["subset"], r["item_id"]): r
            for r in storage.read_dataset(name, schema).to_pylist()
        }
        for name, schema in (("items", ITEMS), ("scores", SCORES))
    )
    assert {key for key in scores if not key[1].endswith(("_r5", "_r10"))} == items.keys()
    ties = [r for r in scores.values() if r["benchmark"] == "sugarcrepe" and r["item_id"] == "0"]
    assert len(ties) == 7
    assert not any(r["correct"] for r in ties), "a tie is wrong"


def test_published_mean_over_relations_is_not_the_mean_over_items(whole: tuple[Summary, Path]) -> None:
    summary, output = whole
    rows = Storage(str(output)).read_dataset("scores", SCORES).to_pylist()
    own = [r for r in rows if (r["benchmark"], r["subset"]) == ("vg_relation", "relations")]
    by_relation: dict[str, list[bool]] = {}
    for row in own:
        by_relation.setdefault(row["item_id"].partition("/")[0], []).append(row["correct"])
    assert set(by_relation) == {"on", "riding"}
    score = summary.score("vg_relation/relations")
    assert score is not None
    assert score.value == pytest.approx(np.mean([np.mean(x) for x in by_relation.values()]))


def test_published_killed_evaluation_goes_on_with_the_features_it_has(
    data: Path, whole: tuple[Summary, Path], tmp_path: Path
) -> None:
    summary, output = whole
    cache = output.parent / "cache"
    cached = {p: p.stat().st_mtime_ns for p in cache.rglob("*.parquet")}
    assert cached
    again = evaluate(config_of(data, tmp_path / "out", cache=str(cache), benchmarks=["sugarcrepe"]))
    assert list(again.subsets) == [s for s in summary.subsets if s.name.startswith("sugarcrepe/")]
    assert cached == {p: p.stat().st_mtime_ns for p in cache.rglob("*.parquet")}


def test_published_missing_images_are_named_and_what_hangs_on_them_is_partial(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(data, tmp_path / "data")
    images = tmp_path / "data" / "images" / "coco_val2017"
    (images / f"{3:012d}.jpg").unlink()
    (images / f"{4:012d}.jpg").write_bytes(b"<html>not found</html>")
    shutil.rmtree(tmp_path / "data" / "images" / "vg")
    file = tmp_path / "data" / "annotations" / "sugarcrepe" / "add_att.json"
    file.write_text(file.read_text().replace("add_att", "very " * 80, 1))
    summary = evaluate(config_of(tmp_path / "data", tmp_path / "out"))
    assert summary.partial
    assert "no such file" in summary.missing_images[f"coco_val2017:{3:012d}.jpg"]
    assert "UnidentifiedImageError" in summary.missing_images[f"coco_val2017:{4:012d}.jpg"]
    swap, relation = summary.score("sugarcrepe/swap_obj"), summary.score("vg_relation/relations")
    average, order = summary.score("sugarcrepe"), summary.score("coco_order/order")
    assert swap is not None
    assert (swap.n, swap.missing) == (10, 2)
    assert relation is not None
    assert (relation.value, relation.missing) == (None, 8)
    assert average is not None
    assert average.partial
    assert order is not None
    assert not order.partial, "its images are all there"
    assert summary.truncated == {"sugarcrepe": 1}
    printed = capsys.readouterr().out
    assert "images could not be read" in printed
    assert "sugarcrepe: 1 texts are longer than the model reads" in printed


def test_published_wrong_requests_are_told_before_anything_is_encoded(data: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="benchmarks"):
        evaluate(config_of(data, tmp_path / "a", benchmarks=["sugarcrap"]))
    with pytest.raises(DataError, match="winoground"):
        evaluate(config_of(data, tmp_path / "b", benchmarks=["winoground"]))
    shutil.copytree(data, tmp_path / "data")
    broken = tmp_path / "data" / "annotations" / "sugarcrepe" / "swap_obj.json"
    broken.write_text(broken.read_text()[:300])
    with pytest.raises(DataError, match=r"swap_obj\.json.*line 1"):
        evaluate(config_of(tmp_path / "data", tmp_path / "c"))


def test_published_other_protocol_in_the_same_folder_is_refused(
    data: Path, whole: tuple[Summary, Path]
) -> None:
    config = config_of(data, whole[1])
    micro = dataclasses.replace(config, published=PublishedConfig(data=str(data), aro_average="micro"))
    with pytest.raises(FingerprintMismatch, match=r"published\.vg_relation"):
        evaluate(micro)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_published_official_files_are_scored_whole(real_data: Path, data: Path, tmp_path: Path) -> None:
    """Every item of the official annotation files, with a stand-in for each image that they name."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "annotations").symlink_to(real_data / "annotations")
    config = config_of(data, tmp_path / "out", num_actors=2, batch_size=256)
    config = dataclasses.replace(config, published=PublishedConfig(data=str(tmp_path / "data")))
    for benchmark in published.load_published(config.published, ["all"]).benchmarks:
        for key in benchmark.image_keys():
            collection, _, path = key.partition(":")
            target = tmp_path / "data" / "images" / collection / path
            if not target.exists():
                stand_in(target)
    summary = evaluate(config)
    assert not summary.partial
    items: dict[str, int] = {}
    for score in summary.subsets:
        benchmark = score.name.partition("/")[0]
        items[benchmark] = items.get(benchmark, 0) + score.n
    assert items["sugarcrepe"] == 7_511
    assert items["sugarcrepe_pp"] == 2 * 4_757
    assert items["valse"] == 7_702
    assert items["coco_order"] == 25_010
    assert summary.truncated  # this model reads 24 tokens


@pytest.mark.slow
def test_published_real_images_with_the_project_s_own_model(real_data: Path, tmp_path: Path) -> None:
    """NLVR's scenes and CIFAR-10's photographs: all of them are read, and chance is what it knows of them."""
    config = EvaluateConfig(
        model=ModelConfig(name="scenes-base"),
        output=str(tmp_path / "out"),
        published=PublishedConfig(
            nlvr=str(real_data / "nlvr" / "dev"), class_folders=[str(real_data / "cifar10")]
        ),
        tracking=OFF,
    )
    summary = evaluate(config)
    assert not summary.partial
    pairs, top1 = summary.score("nlvr/pairs"), summary.score("zeroshot_folder_cifar10/top1")
    assert pairs is not None
    assert pairs.n == 5_004
    assert top1 is not None
    assert top1.n == 600
    assert pairs.low is not None
    assert pairs.value is not None
    assert pairs.low < pairs.value
