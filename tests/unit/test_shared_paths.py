"""What a node sees of a job's files, and the check of a worker that joined late."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from degla_ray.config import DataConfig, ModelConfig, ObjectiveConfig, TrainConfig
from degla_ray.errors import SettingError
from degla_ray.shared_paths import _local_paths, unseen_here
from degla_ray.stage import StageFolder
from degla_ray.storage import Storage


def test_unseen_names_what_another_disk_lacks(tmp_path: Path) -> None:
    """An empty folder under the same path is no shared folder."""
    (tmp_path / "a").mkdir()
    Storage(str(tmp_path / "b")).write_json({}, "token.json")
    tokens = {name: (str(tmp_path / name), "token.json") for name in ("a", "b", "absent")}
    inputs = {"model": str(tmp_path / "b"), "data": str(tmp_path / "c")}
    assert unseen_here(tokens, inputs) == ["data", "a", "absent"]


def test_settings_that_name_local_files_are_found_and_names_of_the_hub_are_not(tmp_path: Path) -> None:
    (tmp_path / "prepared").mkdir()
    config = TrainConfig(
        name="x",
        data=DataConfig(prepared=str(tmp_path / "prepared"), cache=str(tmp_path)),
        model=ModelConfig(name="openai/clip-vit-base-patch32", pretrained=str(tmp_path / "absent.pt")),
        objective=ObjectiveConfig(name="clip"),
        output=str(tmp_path),
    )
    assert dict(_local_paths(config)) == {"data.prepared": str(tmp_path / "prepared")}


def test_worker_that_does_not_see_its_drivers_folder_stops(tmp_path: Path) -> None:
    folder = StageFolder(str(tmp_path / "out"), "prepare", {}, num_shards=1)
    folder.require_seen()
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(SettingError, match=r"output: found '.*/out'; expected a folder that every node sees"):
        folder.require_seen()
