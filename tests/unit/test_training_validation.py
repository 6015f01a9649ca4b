"""Settings of the evaluation during training, and the files that say what became of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from degla_ray.config import (
    ComputeConfig,
    DataConfig,
    ModelConfig,
    ObjectiveConfig,
    PublishedConfig,
    ScoringConfig,
    TrainConfig,
    ValidationSettings,
    evaluation_of,
)
from degla_ray.errors import SettingError
from degla_ray.evaluation.paths import absolute
from degla_ray.storage import Storage
from degla_ray.training.ray_train import needs
from degla_ray.training.validation import Validation, read_all, request, set_logged, tidy


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"every_steps": 0, "suite": "s"}, "every_steps"),
        ({"every_steps": 5}, "suite"),
        ({"every_steps": 5, "suite": "s", "negatives": "n"}, "prepared"),
        ({"every_steps": 5, "suite": "s", "num_actors": 0}, "num_actors"),
        ({"every_steps": 5, "suite": "s", "timeout_minutes": 0.0}, "timeout_minutes"),
        ({"every_steps": 5, "suite": "s", "benchmarks": []}, "benchmarks"),
    ],
)
def test_validation_settings_impossible_combination_names_the_setting(
    settings: dict[str, Any], named: str
) -> None:
    with pytest.raises(SettingError, match=rf"^validation\.{named}: "):
        ValidationSettings(**settings)


def test_validation_settings_due_at_multiples_only_and_never_where_off() -> None:
    on = ValidationSettings(every_steps=3, suite="s")
    assert [step for step in range(10) if on.due(step)] == [3, 6, 9]
    assert not any(ValidationSettings(suite="s").due(step) for step in range(10))


def test_validation_evaluates_as_its_settings_say(tmp_path: Path) -> None:
    published = PublishedConfig(data="benchmarks", images={"coco": "images"}, class_folders=["classes"])
    compute = ComputeConfig(use_gpu=True, cpus=4.0, precision="bf16")
    settings = ValidationSettings(every_steps=5, published=published, compute=compute, batch_size=64)
    found = absolute(settings)
    evaluated = evaluation_of(found, model=ModelConfig(name="m"), output=str(tmp_path))
    for field in dataclasses.fields(ScoringConfig):
        assert getattr(evaluated, field.name) == getattr(found, field.name)
    assert (evaluated.compute, evaluated.batch_size, evaluated.num_actors) == (compute, 64, 1)
    here = Path.cwd()
    assert evaluated.published == PublishedConfig(
        data=str(here / "benchmarks"),
        images={"coco": str(here / "images")},
        class_folders=[str(here / "classes")],
    )


def test_train_cpus_count_workers_decoders_and_a_validation() -> None:
    data = DataConfig(prepared="p", decode_tasks=2)
    plain = TrainConfig(
        name="x",
        data=data,
        model=ModelConfig(name="scenes-base"),
        objective=ObjectiveConfig(name="clip"),
        num_workers=2,
    )
    [workers] = needs(plain)
    assert (workers.count, workers.total("CPU")) == (2, 1 + 2 * 1)
    validation = ValidationSettings(every_steps=5, suite="s", num_actors=3)
    also, of_validation = needs(dataclasses.replace(plain, validation=validation))
    assert also == workers
    assert of_validation.total("CPU") == 0.5 + 3
    validation = dataclasses.replace(validation, compute=ComputeConfig(cpus=2.0))
    assert needs(dataclasses.replace(plain, validation=validation))[1].total("CPU") == 0.5 + 3 * 2


def test_validation_that_is_done_is_not_asked_for_again(tmp_path: Path) -> None:
    run = Storage(str(tmp_path))
    for step in (20, 3):
        request(run, step)
    assert list(read_all(run)) == [Validation(step=s, state="waiting") for s in (3, 20)]
    done = Validation(step=3, state="done", metrics={"composition": 0.5}, headline="composition")
    set_logged(run, done)
    request(run, 3)
    assert list(read_all(run, without={20})) == [dataclasses.replace(done, logged=True)]
    assert done.describe() == "validation of step 3: composition 50.0%"


def test_validation_tidy_takes_back_what_waits_for_a_checkpoint_that_is_gone(tmp_path: Path) -> None:
    run = Storage(str(tmp_path))
    for step in (2, 4, 6):
        request(run, step)
    set_logged(run, Validation(step=2, state="done"))
    assert tidy(run, {6}) == [4]
    assert [(v.step, v.state) for v in read_all(run)] == [(2, "done"), (6, "waiting")]
