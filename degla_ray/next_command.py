"""The command that a job ends with: `next:   degla train --name …`, which runs as it is printed.

Each function reads what its job wrote and returns a stage and its options. Folders and models are named as
they are, so a newcomer can go from `prepare` to a comparison by copying one line after the other; batch and
warm-up are fitted to data too small for the published settings.
"""

from __future__ import annotations

import dataclasses
import json
import math
import posixpath
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc

from degla_ray.config import (
    EvaluateConfig,
    FetchConfig,
    ModelConfig,
    NegativesConfig,
    OptimizerConfig,
    PrepareConfig,
    TrainConfig,
)
from degla_ray.evaluation.summary import STAGE, Summary, read_summary
from degla_ray.model.source import SCENES_BASE
from degla_ray.schema import CAPTIONS
from degla_ray.stage import MANIFEST, is_complete, read_complete
from degla_ray.storage import Storage
from degla_ray.training.job import EXPORT_STUDENT

if TYPE_CHECKING:
    from degla_ray.training.trainer import TrainResult

CLIP = ("--model.name", "ViT-B-32-quickgelu", "--model.pretrained", "openai")
SCENES = ("--model.name", SCENES_BASE, "--optimizer.lr", "0.002")  # the demo's model and rate
SMALL_LR = "1e-5"  # the published 1e-6 is for thousands of steps
MIN_STEPS = 200  # with fewer of the default batch, the warm-up is a quarter of the run or more
BATCHES = 20  # per epoch, for data that small


def after_prepare(config: PrepareConfig) -> list[str]:
    folder = config.output.rstrip("/")
    return ["negatives", "--prepared", folder, "--output", f"{folder}-negatives"]


def after_negatives(config: NegativesConfig) -> list[str]:
    """Return the command that trains on the negatives: the demo's model for scenes, else OpenAI's CLIP."""
    storage, manifest = read_complete(config.prepared, "prepare")
    captions = storage.read_dataset("captions", CAPTIONS, ["split"])["split"]
    count = pc.sum(pc.equal(captions, "train")).as_py() or 0
    is_scenes = manifest["made_from"]["identity"].get("source") == "scenes"
    fitted = _fitted(count)
    if fitted and not is_scenes:
        fitted += ["--optimizer.lr", SMALL_LR]
    name = posixpath.basename(config.prepared.rstrip("/"))
    data = ["--data.prepared", config.prepared, "--data.negatives", config.output]
    return ["train", "--name", name, *data, *(SCENES if is_scenes else CLIP), *fitted]


def after_train(config: TrainConfig, result: TrainResult) -> list[str]:
    """Return the command that evaluates the student on the test sets of its data, or on split `val`."""
    name = posixpath.basename(result.run_folder)
    words = ["evaluate", "--model.name", _short(result.export_student)]
    prepared = config.data.prepared.rstrip("/")
    if Storage(prepared).exists("tests"):
        words += ["--suite", f"{prepared}/tests"]
    else:
        words += ["--prepared", prepared]
        if config.data.negatives is not None:
            words += ["--negatives", config.data.negatives]
        captions = Storage(prepared).read_dataset("captions", CAPTIONS, ["split"])["split"]
        if not pc.any(pc.equal(captions, "val")).as_py():
            words += ["--split", config.data.split]
    beside = posixpath.dirname(config.output.rstrip("/"))
    return [*words, "--output", posixpath.join(beside, "evaluate", name)]


def after_evaluate(config: EvaluateConfig, summary: Summary) -> list[str]:
    """Return the command that compares with the model before training, or that evaluates that model first."""
    own, beside = config.output.rstrip("/"), posixpath.dirname(config.output.rstrip("/"))
    others = list(_evaluations(beside or ".", summary.inputs))
    start = _start_of(config.model.name)
    if start is None:  # a model to start from: compare the newest model trained from it
        trained = [(folder, _start_of(s.model["name"])) for folder, s in others]
        later = [folder for folder, base in trained if base is not None and _is(base, summary)]
        return _compare(beside, own, *later[-1:])
    bases = [folder for folder, s in others if _is(start, s)]
    if bases:
        return _compare(beside, bases[-1], own)
    model = ["--model.name", _short(start.name)]
    if start.pretrained is not None:
        model += ["--model.pretrained", _short(start.pretrained)]
    if start.random_init:
        model += ["--model.random_init", "true"]
    name = Path(start.name).name if "/" in start.name else start.name
    output = posixpath.join(beside, f"{name}-{summary.fingerprint[:8]}")
    return ["evaluate", *model, *_options(config, without=("model", "output", "label")), "--output", output]


def after_fetch(config: FetchConfig) -> list[str]:
    return ["evaluate", *CLIP, "--published.data", config.output, "--output", "runs/evaluate/clip"]


def _fitted(captions: int) -> list[str]:
    """Return batch size and warm-up for a split too small for the defaults, or nothing."""
    fields = {field.name: field.default for field in dataclasses.fields(TrainConfig)}
    batch, epochs = int(str(fields["global_batch_size"])), float(str(fields["epochs"]))
    if epochs * captions / batch >= MIN_STEPS:
        return []
    size = max(8, min(batch, 2 ** int(math.log2(max(1, captions / BATCHES)))))
    steps = math.ceil(epochs * captions / size)
    warmup = min(OptimizerConfig().warmup_steps, max(1, steps // 10))
    return ["--global_batch_size", str(size), "--optimizer.warmup_steps", str(warmup)]


def _compare(beside: str, *evaluations: str) -> list[str]:
    output = posixpath.join(posixpath.dirname(beside), "compare")
    return ["compare", "--evaluations", *evaluations, "--output", output]


def _start_of(model: str) -> ModelConfig | None:
    """Return the model that an exported student was trained from; None if it is no run's export."""
    from degla_ray.training.job import CONFIG  # imports Ray, which `prepare` may not need

    folder, _, name = model.rstrip("/").rpartition("/")
    if name != EXPORT_STUDENT or not Storage(folder).exists(CONFIG):
        return None
    found = Storage(folder).read_json(CONFIG)["config"]["model"]
    return ModelConfig(**{key: found[key] for key in ("name", "pretrained", "random_init")})


def _is(start: ModelConfig, evaluated: Summary) -> bool:
    return start.name in (evaluated.model["name"], evaluated.model["folder"])


def _evaluations(parent: str, inputs: Any) -> Iterator[tuple[str, Summary]]:
    """Yield the finished evaluations in a folder that are on the same test sets, oldest first."""
    found = []
    storage = Storage(parent)
    for name in storage.folders():
        folder = Storage(f"{parent}/{name}")
        if folder.exists(MANIFEST) and is_complete(folder.uri):
            found.append((storage.modified(name, MANIFEST), name))
    for _, name in sorted(found):
        folder = Storage(f"{parent}/{name}")
        if folder.read_json(MANIFEST)["stage"] == STAGE and (s := read_summary(folder)).inputs == inputs:
            yield posixpath.join(parent, name), s


def _options(config: Any, prefix: str = "", without: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield the command-line options that set what differs from the defaults."""
    for field in dataclasses.fields(config):
        value, default = getattr(config, field.name), field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if field.name in without or value == default:
            continue
        if dataclasses.is_dataclass(value):
            yield from _options(value, f"{prefix}{field.name}.")
        else:
            yield f"--{prefix}{field.name}"
            yield value if isinstance(value, str) else json.dumps(value)


def _short(path: str) -> str:
    """Return a path below the working directory relative to it."""
    try:
        here = f"{Path.cwd()}/"
    except FileNotFoundError:  # Ray may remove a submitted job's folder while the job ends
        return path
    return path.removeprefix(here) if path.startswith(here) else path
