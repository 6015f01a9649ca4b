"""List the stages, and run one: what `degla STAGE …` and `python jobs/STAGE.py …` call.

`degla train --name first …` and `python jobs/train.py --name first …` are the same command; `ray job submit`
uses the second. A stage's imports are inside its function: `--help` answers in half a second, where torch,
Ray and MLflow take ten.
"""

from __future__ import annotations

import difflib
import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from degla_ray import ray_setup
from degla_ray.cli import EXIT_USER_ERROR, run
from degla_ray.config import (
    JOBS,
    ChainConfig,
    CompareConfig,
    EvaluateConfig,
    ExportConfig,
    ExportDeglaJsonConfig,
    ExportNegclipTsvConfig,
    FetchConfig,
    InterpolateConfig,
    NegativesConfig,
    NeighboursConfig,
    PrepareConfig,
    PretrainScenesConfig,
    RunsConfig,
    TrainConfig,
    TuneConfig,
)
from degla_ray.dry_run import without_flag
from degla_ray.plans import dry_run, help_lines


def _prepare(config: PrepareConfig) -> None:
    from degla_ray.next_command import after_prepare
    from degla_ray.reporting.examples import captions_shown
    from degla_ray.sources.prepare import prepare

    prepare(config)
    _print(captions_shown(config.output))
    _next(after_prepare(config))


def _negatives(config: NegativesConfig) -> None:
    from degla_ray.negatives.pipeline import generate
    from degla_ray.next_command import after_negatives
    from degla_ray.reporting.examples import negatives_shown
    from degla_ray.reporting.generation import publish
    from degla_ray.stage import is_complete

    generate(config, publish)
    if is_complete(config.output):  # an estimate, or a run whose hours are used up, is not
        _print(negatives_shown(config.prepared, config.output))
        _next(after_negatives(config))


def _train(config: TrainConfig) -> None:
    from degla_ray.next_command import after_train
    from degla_ray.reporting.examples import training_shown
    from degla_ray.run_list import page
    from degla_ray.training.trainer import train

    result = train(config)
    _print(training_shown(result))
    print(f"student: {result.export_student}")
    if result.export_teacher is not None:
        print(f"teacher: {result.export_teacher}")
    _print(page(config.tracking))
    _next(after_train(config, result))


def _evaluate(config: EvaluateConfig) -> None:
    from rich.console import Console

    from degla_ray.evaluation.run import evaluate
    from degla_ray.next_command import after_evaluate
    from degla_ray.reporting.tables import summary_tables

    summary = evaluate(config)
    for table in summary_tables(summary):
        Console().print(table)
    _next(after_evaluate(config, summary))


def _compare(config: CompareConfig) -> None:
    from degla_ray.reporting.compare import compare
    from degla_ray.run_list import page

    compare(config)
    _print(page(config.tracking))


def _interpolate(config: InterpolateConfig) -> None:
    from degla_ray.tuning.interpolation import sweep

    sweep(config)


def _export(config: ExportConfig) -> None:
    from degla_ray import registry
    from degla_ray.encoding.encode import model_identity
    from degla_ray.evaluation.summary import card_scores
    from degla_ray.model.build import build_with_weights
    from degla_ray.model.export import export, export_huggingface, export_metadata
    from degla_ray.model.pyfunc import save_pyfunc
    from degla_ray.model.source import SourceKind, find_model

    write = {"open_clip": export, "huggingface": export_huggingface, "mlflow": save_pyfunc}[config.format]
    trained_in = None if config.register is None else registry.trained_in(config.tracking, config.model.name)
    loaded = build_with_weights(config.model)
    scores = card_scores(config.evaluations, model_identity(loaded))
    own = config.model.pretrained is None and not loaded.is_random
    source = find_model(config.model.name)
    made = export_metadata(source.where) if own and source.kind is SourceKind.FOLDER else {}
    write(loaded, config.output, made | ({"scores": scores} if scores else {}))
    print(f"{config.format}{' of RANDOM WEIGHTS' if loaded.is_random else ''}: {config.output}")
    if config.register is not None and trained_in is not None:
        score = f"eval/{config.champion_by}"
        done = registry.register(config.tracking, trained_in, config.output, config.register, score)
        print(f"registered: {done}")


def _runs(config: RunsConfig) -> None:
    from rich.console import Console

    from degla_ray.reporting.runs import runs_table
    from degla_ray.run_list import newest, page

    Console().print(runs_table(newest(config.tracking, config.stages, config.limit)))
    _print(page(config.tracking))


def _tune(config: TuneConfig) -> None:
    from degla_ray.run_list import page
    from degla_ray.tuning.sweep import tune

    tune(config)
    _print(page(config.train.tracking))


def _chain(config: ChainConfig) -> None:
    from degla_ray.chain import run_chain
    from degla_ray.run_list import page

    run_chain(config)
    _print(page(config.tracking))


def _neighbours(config: NeighboursConfig) -> None:
    from degla_ray.encoding.neighbours import find_neighbours

    find_neighbours(config)


def _fetch_benchmarks(config: FetchConfig) -> None:
    from degla_ray.evaluation.downloads.fetch import fetch_benchmarks
    from degla_ray.next_command import after_fetch

    if not fetch_benchmarks(config):
        sys.exit(1)
    _next(after_fetch(config))


def _export_degla_json(config: ExportDeglaJsonConfig) -> None:
    from degla_ray.sources.export_degla_json import export_degla_json

    export_degla_json(config)


def _export_negclip_tsv(config: ExportNegclipTsvConfig) -> None:
    from degla_ray.sources.export_negclip_tsv import export_negclip_tsv

    export_negclip_tsv(config)


def _pretrain_scenes(config: PretrainScenesConfig) -> None:
    from degla_ray.pretrain_scenes import pretrain_scenes

    print(f"model: {pretrain_scenes(config)}")


@dataclass(frozen=True, kw_only=True)
class Command:
    """One stage on the command line.

    Attributes:
        run: does the work, given the stage's config.
        summary: one line for `--help`.
        first: settings that `--help` explains; the others are listed by group.
    """

    run: Callable[[Any], object]
    summary: str
    first: tuple[str, ...] = ()


COMMANDS: dict[str, Command] = {
    "prepare": Command(
        run=_prepare,
        summary="Read images and captions from a source into Parquet.",
        first=("source", "output", "limit", "short_side", "max_reject_fraction", "num_shards"),
    ),
    "negatives": Command(
        run=_negatives,
        summary="Write negative captions, by rule or by a language model.",
        first=(
            *("prepared", "output", "engine", "kinds", "per_kind", "vllm.model", "vllm.python"),
            *("openai.base_url", "openai.model", "generation.estimate"),
        ),
    ),
    "train": Command(
        run=_train,
        summary="Fine-tune a model; run again, it continues after its last checkpoint.",
        first=(
            *("name", "data.prepared", "data.negatives", "model.name", "model.pretrained", "objective.name"),
            *("global_batch_size", "epochs", "optimizer.lr", "num_workers", "compute.use_gpu"),
        ),
    ),
    "evaluate": Command(
        run=_evaluate,
        summary="Score a model on test sets and published benchmarks.",
        first=(
            *("model.name", "model.pretrained", "output", "published.data", "prepared", "negatives"),
            *("suite", "benchmarks", "label", "compute.use_gpu"),
        ),
    ),
    "compare": Command(
        run=_compare,
        summary="Compare evaluations in one report: differences, intervals, plots, examples.",
        first=("evaluations", "output", "suite", "published.data", "compute.use_gpu"),
    ),
    "interpolate": Command(
        run=_interpolate,
        summary="Evaluate models on the line between two (WiSE-FT).",
        first=("first", "second", "suite", "published.data", "alphas", "output"),
    ),
    "export": Command(
        run=_export,
        summary="Write a model for open_clip, Hugging Face or MLflow.",
        first=("model.name", "output", "format", "evaluations", "register"),
    ),
    "runs": Command(
        run=_runs,
        summary="List the runs that MLflow knows, with scores and folders.",
        first=("stages", "limit", "tracking.uri"),
    ),
    "tune": Command(
        run=_tune,
        summary="Sweep settings with Ray Tune; each trial is a training run.",
        first=(
            *("space", "suite", "published.data", "num_trials", "max_concurrent_trials", "train.name"),
            "train.data.prepared",
        ),
    ),
    "chain": Command(
        run=_chain,
        summary="Run every stage in order from one file; continue where it stopped.",
        first=(
            *("output", "seed", "prepare.source", "negatives.engine", "negatives.kinds", "base_model.name"),
            *("fine_tune.LABEL.objective.name", "fine_tune.LABEL.max_steps", "fine_tune.LABEL.optimizer.lr"),
            "evaluate.benchmarks",
        ),
    ),
    "neighbours": Command(
        run=_neighbours,
        summary="Find each image's nearest other images (NegCLIP's hard negatives).",
        first=("prepared", "output", "model.name", "count", "split"),
    ),
    "fetch_benchmarks": Command(
        run=_fetch_benchmarks,
        summary="Download and verify the files of published benchmarks.",
        first=("output", "benchmarks", "images"),
    ),
    "export_degla_json": Command(
        run=_export_degla_json,
        summary="Write captions and negatives as DeGLA's released JSON.",
        first=("prepared", "negatives", "output", "split"),
    ),
    "export_negclip_tsv": Command(
        run=_export_negclip_tsv,
        summary="Write captions and negatives as NegCLIP's training file.",
        first=("prepared", "negatives", "output", "filepath", "neighbours", "split"),
    ),
    "pretrain_scenes": Command(
        run=_pretrain_scenes,
        summary="Train the small base model that the demo starts from.",
        first=("output", "export", "max_steps", "seed"),
    ),
}
"""In the order in which a project uses them."""


def main(name: str, argv: list[str] | None = None) -> None:
    """Run one stage with the settings of a command line (default: sys.argv)."""
    command = COMMANDS[name]
    words = sys.argv[1:] if argv is None else argv
    if ray_setup.in_submitted_job():  # `ray job submit` quotes each word, so that no shell replaces $STORAGE
        words = [os.path.expandvars(word) for word in words]
    words, options = without_flag(words)

    def job(config: Any) -> None:
        from degla_ray.training.latest import with_latest

        config = with_latest(config)
        if options is None:
            command.run(config)
        else:
            dry_run(name, config, options)

    run(JOBS[name], job, command.summary + help_lines(name), words, command.first)


def degla(argv: list[str] | None = None) -> None:
    """Run the installed command `degla STAGE …` (default: sys.argv); without a stage, list them."""
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return
    name = words[0].replace("-", "_")
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS)
        hint = f"; did you mean {near[0]}?" if near else f"; expected one of {', '.join(COMMANDS)}"
        print(f"error: {words[0]}: no such stage{hint}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    sys.argv[0] = f"degla {name}"  # the program's name in messages
    main(name, words[1:])


def _overview() -> str:
    width = max(map(len, COMMANDS))
    stages = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: degla STAGE [--config FILE.yaml] [--SETTING VALUE ...]",
            "",
            "Teach a CLIP who does what to whom: negative captions, fine-tuning, evaluation, sweeps, on Ray.",
            "",
            "Stages, in the order in which a project uses them:",
            *stages,
            "",
            "degla STAGE --help shows the settings of a stage. `make demo` runs the chain on data it makes.",
        ]
    )


def _print(lines: list[str]) -> None:
    for line in lines:
        print(line)


def _next(words: list[str]) -> None:
    """Print the command that comes next, in the form in which this one was given, quoted for a shell."""
    stage, *options = words
    program = Path(sys.argv[0])
    is_file = program.suffix == ".py"
    said = ["python", str(program.with_name(f"{stage}.py"))] if is_file else ["degla", stage]
    print(f"next:   {shlex.join([*said, *options])}")
