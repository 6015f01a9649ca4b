"""Report on several evaluations: `compare(config)`, run by `jobs/compare.py`.

Writes `report.html` (self-contained), `report.md`, `plots/*.svg`, `comparison.json`, `scores.csv` and
`tables.tex` (for a paper), prints the tables, and logs the files as one MLflow run; the scores are metrics
of the models' own runs. The items on which a model and the first one disagree most are shown with their
images, if these can still be read. Every call writes a new report, which takes a few seconds, mostly for
imports.
"""

from __future__ import annotations

import dataclasses
import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console

from degla_ray import tracking
from degla_ray.config import CompareConfig, ModelConfig, TrackingConfig, evaluation_of
from degla_ray.errors import DataError, SettingError
from degla_ray.evaluation.comparison import Comparison, Means, means_of, set_side_by_side
from degla_ray.evaluation.summary import ARTIFACTS, DECISION, STAGE, Summary, read_evaluation, read_summary
from degla_ray.identity import fingerprint
from degla_ray.lease import Lease
from degla_ray.masking import masked
from degla_ray.model.source import check_model
from degla_ray.number_formats import MISSING
from degla_ray.reporting import plots
from degla_ray.reporting.charts import Chart, draw
from degla_ray.reporting.comparison_page import comparison_page
from degla_ray.reporting.curves import training_curve
from degla_ray.reporting.disagreements import most_disagreed
from degla_ray.reporting.markdown import markdown
from degla_ray.reporting.paper_tables import csv_table, latex_tables
from degla_ray.reporting.provenance import model_folder
from degla_ray.reporting.tables import console_tables
from degla_ray.reporting.texts import Disagreements, footnotes
from degla_ray.reporting.thumbnails import thumbnails
from degla_ray.reporting.verdicts import findings
from degla_ray.schema import SCORES
from degla_ray.stage import MANIFEST
from degla_ray.storage import Storage, relative_to
from degla_ray.tracking_store import or_told

RUN_ID = re.compile(r"[0-9a-f]{32}")
PAGE = "report.html"
DISAGREEMENTS = 20  # items shown for each model compared with the first
EXPECTED = "a folder written by `jobs/evaluate.py`, the id of its MLflow run, or, with test sets, a model"

console = Console()


@dataclass(frozen=True, kw_only=True)
class _Evaluation:
    folder: Storage
    summary: Summary
    means: Means


def compare(config: CompareConfig) -> str:
    """Write and log the report.

    Returns:
        URI of the report's folder.

    Raises:
        SettingError: nothing to compare.
        DataError: an entry that is not an evaluation.
        LeaseHeld: another driver is writing to the folder.
    """
    if not config.evaluations:
        raise SettingError("evaluations", config.evaluations, f"at least one: {EXPECTED}")
    for entry in config.evaluations:
        if config.has_tests and _is_model(entry):
            check_model(ModelConfig(name=entry), needs_weights=True)  # check all before evaluating any
    tracking.require(config.tracking)
    output = Storage(config.output)
    with Lease(output):
        return _compare(config, output)


def _compare(config: CompareConfig, output: Storage) -> str:
    found = [_read_evaluation(entry, config) for entry in config.evaluations]
    comparison = set_side_by_side([e.summary for e in found], [e.means for e in found])
    drawn = [draw(chart) for chart in _charts(comparison)]
    disagreements = {
        model: most_disagreed(found[0].folder, evaluation.folder, DISAGREEMENTS)
        for model, evaluation in enumerate(found)
        if model and comparison.same_inputs[model]
    }
    items = [item for items in disagreements.values() for item in items]
    shown = {key for item in items for key in (*item.images, *item.candidate_images) if key is not None}
    images = thumbnails(shown, [e.summary.sources for e in found])
    for old in output.names("plots"):
        if old.endswith(".svg"):  # an earlier report may have had more plots
            output.delete_file("plots", old)
    files = {f"plots/{chart.file_name}": chart.file for chart in drawn}
    texts = {
        **files,
        "report.md": markdown(comparison, list(files), disagreements),
        "comparison.json": json.dumps(_as_json(comparison, disagreements, output.uri), indent=2),
        "scores.csv": csv_table(comparison),
        "tables.tex": latex_tables(comparison),
    }
    pages = {PAGE: comparison_page(comparison, drawn, disagreements, images)}  # masked already
    for name, text in ({name: masked(text) for name, text in texts.items()} | pages).items():
        output.write_bytes(text.encode(), name)
    for table in console_tables(comparison, console.width):
        console.print(table)
    for line in (*(f.sentence for f in findings(comparison)), "", *footnotes(comparison)):
        console.print(line, markup=False, highlight=False)
    _track(config, comparison, disagreements, output, [*texts, *pages])
    console.print(f"report: {output.uri}/{PAGE}", markup=False, soft_wrap=True)
    return output.uri


def _read_evaluation(entry: str, config: CompareConfig) -> _Evaluation:
    """Return the evaluation behind an entry: a folder, an MLflow run, or a model, which is evaluated now."""
    storage = Storage(entry)
    if RUN_ID.fullmatch(entry) and not storage.exists(MANIFEST):
        return _of_run(entry, config.tracking, Storage(config.output))
    if not _is_model(entry):
        return _of_folder(entry)
    if not config.has_tests:
        raise DataError(
            entry, "a folder without manifest.json" if storage.exists() else "no such folder", EXPECTED
        )
    from degla_ray.evaluation.run import evaluate  # imports torch, which takes 5 s; other entries skip that

    name = re.sub(r"\W+", "-", entry).strip("-")[-80:]
    folder = f"{config.output}/evaluations/{name}"
    evaluate(
        evaluation_of(
            config,
            model=ModelConfig(name=entry),
            output=folder,
            tracking=config.tracking,
            ray=config.ray,
        )
    )
    return _of_folder(folder)


def _is_model(entry: str) -> bool:
    """Return whether an entry is neither an evaluation folder nor a run."""
    return not RUN_ID.fullmatch(entry) and not Storage(entry).exists(MANIFEST)


def _of_folder(uri: str) -> _Evaluation:
    storage, summary = read_evaluation(uri)
    return _evaluation(storage, summary)


def _evaluation(folder: Storage, summary: Summary) -> _Evaluation:
    scores = folder.read_dataset("scores", SCORES, DECISION)
    return _Evaluation(folder=folder, summary=summary, means=means_of(scores))


def _of_run(run_id: str, config: TrackingConfig, output: Storage) -> _Evaluation:
    """Return a run's evaluation: from its tagged folder if unchanged there, otherwise from its artifacts."""
    tags = tracking.run_tags(config, run_id)
    stage = tags.get(tracking.STAGE_TAG)
    if stage != STAGE:
        raise DataError(f"MLflow run {run_id}", f"a run of stage {stage!r}", "a run of `jobs/evaluate.py`")
    folder = tags[tracking.FOLDER_TAG]
    storage = Storage(folder)
    if (
        storage.exists(MANIFEST)
        and storage.read_json(MANIFEST).get("fingerprint") == tags[tracking.FINGERPRINT_TAG]
    ):
        return _of_folder(folder)
    copy = Storage(f"{output.uri}/downloaded/{run_id}")
    with tempfile.TemporaryDirectory(prefix="degla-") as temporary:
        copy.upload(tracking.download_artifacts(config, run_id, ARTIFACTS, temporary))
    return _evaluation(copy, read_summary(copy, folder))


def _charts(comparison: Comparison) -> list[Chart]:
    """Return every chart that has data."""
    curves = {}
    for label, summary in zip(comparison.labels, comparison.summaries, strict=True):
        folder = model_folder(summary.model)
        curve = training_curve(folder) if folder else None
        if curve is not None:
            curves[label] = curve
    retention = plots.retention_plot(comparison)
    first = [retention] if retention is not None else []
    return [*first, *plots.accuracy_plots(comparison), *plots.loss_plots(curves, comparison.labels)]


def _as_json(comparison: Comparison, disagreements: Disagreements, output: str) -> list[dict[str, object]]:
    """Return one entry per model, for other programs.

    Disagreements are listed under the model that is compared with the first. Folders of models near `output`
    are given relative to it.
    """
    return [
        {
            "label": label,
            "model": relative_to(output, dict(summary.model)),
            "inputs": dict(summary.inputs),
            "same_inputs_as_first": comparison.same_inputs[model],
            "results": {name: dataclasses.asdict(comparison.cell(model, name)) for name in comparison.names},
            "disagreements": [
                {**dataclasses.asdict(item), "difference": item.difference}
                for item in disagreements.get(model, ())
            ],
        }
        for model, (label, summary) in enumerate(zip(comparison.labels, comparison.summaries, strict=True))
    ]


def _track(
    config: CompareConfig,
    comparison: Comparison,
    disagreements: Disagreements,
    output: Storage,
    files: Sequence[str],
) -> None:
    identity = [
        [label, s.fingerprint] for label, s in zip(comparison.labels, comparison.summaries, strict=True)
    ]
    run = tracking.running(
        config.tracking,
        name="compare " + " · ".join(comparison.labels),
        fingerprint=fingerprint({"stage": "compare", "evaluations": identity}),
        folder=output.uri,
        params={"compare": config},
        tags={tracking.STAGE_TAG: "compare"},
    )
    with or_told(f"the comparison of {len(comparison.labels)} models is"), run as run_id:
        tracking.log_files(config.tracking, run_id, output, files)
        table = _table(comparison.labels, disagreements)
        if table["benchmark"]:
            tracking.log_table(config.tracking, run_id, "disagreements", table)


def _table(labels: Sequence[str], disagreements: Disagreements) -> dict[str, list[object]]:
    """Return the columns of a table of all disagreements, one row per item."""
    rows = [(labels[model], item) for model, items in disagreements.items() for item in items]
    return {
        "base": [labels[0] for _ in rows],
        "model": [label for label, _ in rows],
        "benchmark": [item.benchmark for _, item in rows],
        "subset": [item.subset for _, item in rows],
        "item_id": [item.item_id for _, item in rows],
        "right": [labels[0] if item.correct[0] else label for label, item in rows],
        "difference": [item.difference for _, item in rows],
        "base_margin": [item.margins[0] for _, item in rows],
        "model_margin": [item.margins[1] for _, item in rows],
        "candidates": [" | ".join(item.candidates) for _, item in rows],
        "base_scores": [_listed(item.scores[0]) for _, item in rows],
        "model_scores": [_listed(item.scores[1]) for _, item in rows],
        "texts": [" | ".join(item.texts) for _, item in rows],
        "images": [" | ".join(item.images) for _, item in rows],
    }


def _listed(scores: Sequence[float | None]) -> str:
    return " | ".join(MISSING if score is None else f"{score:.4f}" for score in scores)
