"""The recipes of the paper: what the real parser reads from them are the published settings."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import TypeVar

import pytest

from degla_ray.cli import parse
from degla_ray.config import JOBS, ChainConfig, EvaluateConfig, NegativesConfig, PrepareConfig, TrainConfig
from degla_ray.config.chains import Stages
from degla_ray.errors import DeglaError
from degla_ray.schema import Kind

ConfigT = TypeVar("ConfigT")
RECIPES = ("coco_vit_b32", "cc3m")
TRAINED = ("clip", "negclip", "ceclip", "degla")


@pytest.fixture(params=RECIPES)
def recipe(request: pytest.FixtureRequest, repo: Path) -> Path:
    return repo / "jobs" / "configs" / request.param


def read(config_class: type[ConfigT], folder: Path, name: str) -> ConfigT:
    return parse(config_class, "", ["--config", str(folder / f"{name}.yaml")])


def chain_of(folder: Path) -> Stages:
    return read(ChainConfig, folder, "chain").stages()


def named_for(file: Path) -> str:
    """Return the job that takes a file, as the job `train` says if it refuses it."""
    try:
        parse(TrainConfig, "", ["--config", str(file)])
    except DeglaError as error:
        return re.findall(r"python jobs/(\w+)\.py --config", str(error))[0]
    return "train"


def test_config_file_of_another_job_is_refused_with_the_job_that_takes_it(repo: Path) -> None:
    files = [f for f in (repo / "jobs" / "configs").rglob("*.yaml") if f.parent.name != "ablations"]
    jobs = {file: named_for(file) for file in files}
    assert {"train", "chain", "tune"} <= set(jobs.values())
    for file, job in jobs.items():
        parse(JOBS[job], "", ["--config", str(file)])


def test_recipe_files_say_the_command_that_runs_them(recipe: Path) -> None:
    files = {path.stem for path in recipe.glob("*.yaml")}
    assert files == {"prepare", "negatives", *TRAINED, "evaluate", "chain"}
    for name in files:
        job = "train" if name in TRAINED else name
        command = f"python jobs/{job}.py --config jobs/configs/{recipe.name}/{name}.yaml"
        assert command in (recipe / f"{name}.yaml").read_text(), name
        assert dataclasses.is_dataclass(read(JOBS[job], recipe, name))


@pytest.mark.parametrize("name", TRAINED)
def test_recipe_trains_with_the_published_settings(recipe: Path, name: str) -> None:
    config = read(TrainConfig, recipe, name)
    assert (config.model.name, config.model.pretrained) == ("ViT-B-32-quickgelu", "openai")
    assert config.objective.name == config.name == name
    assert (config.global_batch_size, config.seed, config.data.crop_scale_min) == (256, 42, 0.9)
    optimizer = config.optimizer
    assert (optimizer.lr, optimizer.beta1, optimizer.beta2, optimizer.eps) == (1e-6, 0.9, 0.98, 1e-6)
    assert (optimizer.weight_decay, optimizer.warmup_steps, optimizer.clip_grad_norm) == (0.1, 50, None)
    adapt = config.adapt
    assert (adapt.freeze, adapt.lora_rank, adapt.layer_decay) == ("none", 0, 1.0)
    assert config.compute.use_gpu
    assert config.compute.precision != "fp32"


def test_recipe_of_coco_takes_five_epochs_and_cc3m_as_many_samples(repo: Path) -> None:
    coco, cc3m = (read(TrainConfig, repo / "jobs" / "configs" / name, "degla") for name in RECIPES)
    assert (coco.epochs, coco.max_steps) == (5.0, None)
    captions = 414_113  # of COCO train2014
    assert cc3m.max_steps == -(-5 * captions // 256)


def test_recipe_objectives_have_the_published_weights(recipe: Path) -> None:
    degla = read(TrainConfig, recipe, "degla")
    weights = degla.objective
    assert (weights.lambda_igc, weights.lambda_tgc, weights.lambda_distill) == (0.1, 0.1, 0.005 * 256)
    assert (weights.num_negatives, weights.tgc_scale, weights.tgc_negatives) == (4, 10.0, "own")
    assert (weights.distill_reduction, weights.focal_gamma, weights.label_smoothing) == ("mean", 0.0, 0.0)
    teacher = degla.teacher
    assert (teacher.kind, teacher.decay, teacher.reference_batch) == ("ema", 0.9996, 256)
    ceclip = read(TrainConfig, recipe, "ceclip").objective
    assert (ceclip.num_negatives, ceclip.lambda_cmr, ceclip.lambda_imc) == (4, 0.2, 0.3)
    assert (ceclip.cmr_threshold_max, ceclip.imc_target) == (10.0, "paper")
    assert read(TrainConfig, recipe, "negclip").objective.num_negatives == 1
    assert read(TrainConfig, recipe, "clip").objective.num_negatives == 0


def test_recipe_negatives_are_the_released_ones_or_five_kinds_by_llama(repo: Path) -> None:
    coco, cc3m = (read(NegativesConfig, repo / "jobs" / "configs" / name, "negatives") for name in RECIPES)
    assert coco.engine == "given"
    prepared = read(PrepareConfig, repo / "jobs" / "configs" / "coco_vit_b32", "prepare")
    assert (prepared.source, prepared.degla_json.min_negatives, prepared.short_side) == (
        "degla_json",
        4,
        None,
    )
    assert (cc3m.engine, cc3m.vllm.model) == ("vllm", "meta-llama/Llama-3.1-8B-Instruct")
    assert (set(cc3m.kinds), cc3m.per_kind) == (set(Kind), 1)


def test_recipe_evaluates_with_the_protocols_of_the_papers_tables(recipe: Path) -> None:
    published = read(EvaluateConfig, recipe, "evaluate").published
    assert (published.swap_obj_items, published.valse_votes, published.aro_average) == (245, 2, "macro")
    assert published.zero_shot_scores == "int_logits"


def test_recipe_chain_is_what_the_files_of_its_stages_say(recipe: Path) -> None:
    """In the same folders, so that a chain continues what the stages began, and the reverse."""
    stages = chain_of(recipe)
    prepare = read(PrepareConfig, recipe, "prepare")
    assert dataclasses.replace(stages.prepare, scenes=prepare.scenes) == prepare  # a chain seeds its scenes
    assert stages.negatives == read(NegativesConfig, recipe, "negatives")
    assert stages.fine_tune == {name: read(TrainConfig, recipe, name) for name in TRAINED}
    alone = read(EvaluateConfig, recipe, "evaluate")
    differs = {"model": alone.model, "output": alone.output, "label": alone.label}
    assert dataclasses.replace(stages.evaluate, **differs) == alone
    assert (alone.prepared, alone.negatives) == (None, None)  # split: null
    assert alone.model.name.startswith(f"{stages.fine_tune['degla'].output}/degla-latest/")
