"""Train `scenes-base`, the small model that the demo starts from: plain CLIP on scenes, from random weights.

    python jobs/pretrain_scenes.py --config jobs/configs/pretrain_scenes.yaml

The model is meant to have CLIP's weakness. It recognises shapes and colours (zero-shot, retrieval), but is
near chance if only relation or word order differs. There are two reasons. Most captions describe only part of
the scene, so they seldom require either. The image tower also averages over positions during training; the
exported model keeps the positions (model/towers.py).
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

from degla_ray import ray_setup
from degla_ray.config import (
    DataConfig,
    EvaluateConfig,
    ModelConfig,
    ObjectiveConfig,
    PrepareConfig,
    PretrainScenesConfig,
    TrainConfig,
)
from degla_ray.errors import SettingError
from degla_ray.evaluation.run import evaluate
from degla_ray.model.build import load
from degla_ray.model.export import export
from degla_ray.model.tokenizer import train_tokenizer
from degla_ray.model.towers import with_grid
from degla_ray.schema import CAPTIONS
from degla_ray.sources.prepare import prepare
from degla_ray.storage import Storage
from degla_ray.training.trainer import train

ARCHITECTURE = Path(__file__).parent / "model" / "configs" / "scenes-tiny.json"


def pretrain_scenes(config: PretrainScenesConfig) -> str:
    """Prepare, train, evaluate and export to `config.export`; return that folder.

    If repeated, a killed run continues, and a finished run only exports again, within seconds.
    """
    if "://" in config.output:
        raise SettingError("output", config.output, "a local folder: open_clip opens the architecture there")
    ray_setup.start(config.ray)
    prepared = f"{config.output}/prepared"
    prepare(PrepareConfig(source="scenes", output=prepared, scenes=config.scenes))
    result = train(
        TrainConfig(
            name="scenes-base",
            data=DataConfig(prepared=prepared, crop_scale_min=config.crop_scale_min),
            output=f"{config.output}/train",
            model=ModelConfig(name=_architecture(config, prepared), random_init=True),
            objective=ObjectiveConfig(name="clip"),
            optimizer=config.optimizer,
            tracking=config.tracking,
            global_batch_size=config.global_batch_size,
            max_steps=config.max_steps,
            seed=config.seed,
            num_workers=config.num_workers,
        )
    )
    summary = evaluate(
        EvaluateConfig(
            model=ModelConfig(name=result.export_student),
            output=f"{config.output}/evaluate",
            suite=f"{prepared}/tests",
            label="scenes-base",
            tracking=config.tracking,
        )
    )
    scores = {
        score.name: None if score.value is None else round(score.value, 4)
        for score in (*summary.averages, *summary.subsets)
    }
    made = {
        "command": "python jobs/pretrain_scenes.py --config jobs/configs/pretrain_scenes.yaml",
        "seed": config.seed,
        "objective": dataclasses.asdict(ObjectiveConfig(name="clip")),
        "scores": scores,
    }
    model = dataclasses.replace(with_grid(load(result.export_student)), source="random weights")
    export(model, config.export, made)
    return config.export


def _architecture(config: PretrainScenesConfig, prepared: str) -> str:
    """Return a copy of the architecture's JSON, next to a tokenizer trained on the training captions."""
    folder = Path(config.output) / "architecture"
    target = folder / ARCHITECTURE.name
    if not target.exists() or target.read_bytes() != ARCHITECTURE.read_bytes():
        captions = Storage(prepared).read_dataset("captions", CAPTIONS)["caption"].to_pylist()
        tokenizer = json.loads(ARCHITECTURE.read_text())["text_cfg"]["hf_tokenizer_name"]
        size = json.loads(ARCHITECTURE.read_text())["text_cfg"]["vocab_size"]
        train_tokenizer(captions, size, str(folder / tokenizer))
        shutil.copy(ARCHITECTURE, target)
    return str(target)
