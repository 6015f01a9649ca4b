"""Ray as every job starts it, and errors on their way home from its workers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.data
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer

from degla_ray import ray_setup
from degla_ray.cli import user_error
from degla_ray.config import RayConfig
from degla_ray.errors import DataError, FingerprintMismatch, SettingError

pytestmark = pytest.mark.usefixtures("ray_cluster")


@ray.remote
def _worker_environment() -> dict[str, str]:
    import torch

    return dict(os.environ) | {"torch_threads": str(torch.get_num_threads())}


@ray.remote
def _mismatch() -> None:
    raise FingerprintMismatch("folder", {"a.b": (1, 2)})


@ray.remote
def _mismatch_of_a_task() -> None:
    ray.get(_mismatch.remote())


def _bad_setting(batch: Any) -> Any:
    raise SettingError("a.b", 1, "2")


def _bad_data(arguments: dict[str, Any]) -> None:
    raise DataError("file", "x", "y")


def test_ray_setup_workers_keep_memory_and_have_a_thread_for_each_cpu() -> None:
    one, two = ray.get([_worker_environment.remote(), _worker_environment.options(num_cpus=2).remote()])
    for name, value in ray_setup.WORKER_ENV.items():
        assert one[name] == value
        assert name not in os.environ
    assert (one["torch_threads"], two["torch_threads"]) == ("1", "2")


def test_ray_setup_local_cluster_wants_a_token() -> None:
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert len(os.environ["RAY_AUTH_TOKEN"]) >= 32


def test_ray_setup_local_folder_is_closed_to_others() -> None:
    """Ray opens its own folder (0777), so the one around it must be closed."""
    folder = Path(ray._private.worker.global_worker.node.get_temp_dir_path())
    assert folder.parent.name.startswith("degla-")
    assert folder.parent.stat().st_mode & 0o777 == 0o700


def test_ray_setup_start_again_keeps_the_cluster() -> None:
    before = ray.get_runtime_context().gcs_address
    ray_setup.start(RayConfig())
    assert ray.get_runtime_context().gcs_address == before
    assert ray.cluster_resources()["CPU"] == 8


def test_ray_setup_address_for_job_submission_is_refused() -> None:
    with pytest.raises(SettingError, match="http:// is for"):
        ray_setup.start(RayConfig(address="http://127.0.0.1:8265"))


def test_user_error_from_a_task_and_a_task_of_a_task_is_found() -> None:
    for task in (_mismatch, _mismatch_of_a_task):
        with pytest.raises(ray.exceptions.RayTaskError) as caught:
            ray.get(task.remote())
        found = user_error(caught.value)
        assert type(found) is FingerprintMismatch
        assert found.fields == {"a.b": (1, 2)}
        assert str(found).startswith("folder: found the output of another configuration")


def test_user_error_from_ray_data_is_found() -> None:
    with pytest.raises(Exception) as caught:
        ray.data.range(3).map_batches(_bad_setting).materialize()
    found = user_error(caught.value)
    assert type(found) is SettingError
    assert str(found).splitlines()[0] == "a.b: found 1; expected 2"


@pytest.mark.slow  # test_user_error_of_a_worker_group_is_found holds the rule
def test_user_error_from_ray_train_is_found(tmp_path: Any) -> None:
    trainer = TorchTrainer(
        _bad_data,
        train_loop_config={},
        scaling_config=ScalingConfig(num_workers=1),
        run_config=ray.train.RunConfig(name="fails", storage_path=str(tmp_path)),
    )
    with pytest.raises(Exception) as caught:
        trainer.fit()
    found = user_error(caught.value)
    assert type(found) is DataError
    assert found.where == "file"
