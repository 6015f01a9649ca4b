"""Stage `prepare` of rendered scenes: same seed, same bytes, and nothing but true captions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from degla_ray.config import PrepareConfig, ScenesConfig
from degla_ray.errors import FingerprintMismatch
from degla_ray.schema import CAPTIONS, IMAGES, SCENE_GRAPHS
from degla_ray.sources.prepare import prepare
from degla_ray.sources.scenes.truth import is_true
from degla_ray.sources.scenes.world import scene_from_json
from degla_ray.stage import read_complete
from tests.fixtures_sources import contents, decode

pytestmark = pytest.mark.usefixtures("ray_cluster")


def settings(output: Path, seed: int = 0) -> PrepareConfig:
    scenes = ScenesConfig(
        num_images=30, num_validation_images=6, captions_per_image=2, image_size=48, test_items=3, seed=seed
    )
    return PrepareConfig(source="scenes", scenes=scenes, output=str(output), num_shards=3)


@pytest.fixture(scope="module")
def prepared(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("scenes") / "out"
    prepare(settings(output))
    return output


def test_prepare_scenes_writes_images_captions_and_graphs_of_one_size(prepared: Path) -> None:
    storage, manifest = read_complete(str(prepared), "prepare")
    images = storage.read_dataset("images", IMAGES).to_pylist()
    captions = storage.read_dataset("captions", CAPTIONS).to_pylist()
    graphs = storage.read_dataset("graphs", SCENE_GRAPHS)
    assert [manifest["counts"][f"{u}s_out"] for u in ("image", "caption")] == [36, 72]
    assert [row["image_id"] for row in images] == graphs["image_id"].to_pylist()
    assert {(decode(row["image"]).size, row["width"]) for row in images} == {((48, 48), 48)}
    assert {row["image_id"] for row in captions} == {row["image_id"] for row in images}
    assert sum(row["split"] == "val" for row in captions) == 12
    assert "scenes-train-000029#1" in {row["sample_id"] for row in captions}
    assert len({row["image"] for row in images}) == 36


def test_prepare_scenes_captions_are_true_of_their_graphs(prepared: Path) -> None:
    storage, _ = read_complete(str(prepared), "prepare")
    rows = storage.read_dataset("graphs", SCENE_GRAPHS).to_pylist()
    scenes = {row["image_id"]: scene_from_json(row["graph"]) for row in rows}
    captions = storage.read_dataset("captions", CAPTIONS).to_pylist()
    assert len(captions) == 72
    assert [c["caption"] for c in captions if is_true(c["caption"], scenes[c["image_id"]]) is not True] == []


def test_prepare_scenes_same_seed_gives_same_bytes_and_another_seed_others(
    prepared: Path, tmp_path: Path
) -> None:
    prepare(settings(tmp_path / "again"))
    assert contents(tmp_path / "again") == contents(prepared)
    prepare(settings(tmp_path / "other", seed=1))
    same, other = contents(prepared, "images", "tests"), contents(tmp_path / "other", "images", "tests")
    assert same.keys() == other.keys()
    assert [name for name in same if name.startswith("images") and same[name] == other[name]] == []
    with pytest.raises(FingerprintMismatch, match=r"identity\.scenes\.settings\.seed: 0 there, 1 asked"):
        prepare(settings(prepared, seed=1))


def test_prepare_scenes_killed_while_writing_its_tests_writes_them_again(
    prepared: Path, tmp_path: Path
) -> None:
    prepare(settings(tmp_path / "out"))
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    (tmp_path / "out" / "manifest.json").write_text(json.dumps({**manifest, "complete": False, "counts": {}}))
    (tmp_path / "out" / "tests" / "complete.json").unlink()
    (part,) = (tmp_path / "out" / "tests" / "choices").iterdir()
    part.unlink()
    prepare(settings(tmp_path / "out"))
    assert contents(tmp_path / "out") == contents(prepared)
