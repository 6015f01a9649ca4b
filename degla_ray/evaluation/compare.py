"""Several evaluations in one report: `compare(config)`, run by `jobs/compare.py`.

Writes `report.md`, `report.html` (self-contained), `plots/*.svg` and `comparison.json`, prints the tables,
and logs them as one MLflow run. Made anew at each call: it takes a few seconds, most of them imports.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from degla_ray import tracking
from degla_ray.config import CompareConfig, EvaluateConfig, ModelConfig, TrackingConfig
from degla_ray.errors import DataError, SettingError
from degla_ray.evaluation import plots, report
from degla_ray.evaluation.comparison import Comparison, Decisions, decisions_of, set_side_by_side
from degla_ray.evaluation.curves import training_curve
from degla_ray.evaluation.summary import ARTIFACTS, FOLDER_TAG, Summary, read_evaluation, read_summary
from degla_ray.schema import SCORES
from degla_ray.shards import MANIFEST, Storage, fingerprint

RUN_ID = re.compile(r"[0-9a-f]{32}")
EXPECTED = "a folder that `jobs/evaluate.py` wrote, the id of its MLflow run, or, with `suite` set, a model"

console = Console()


@dataclass(frozen=True, kw_only=True)
class _Evaluation:
    summary: Summary
    decisions: Decisions


def compare(config: CompareConfig) -> Path:
    """Writes and logs the report; returns its folder.

    Raises:
        SettingError: nothing to compare.
        DataError: an entry that is no evaluation.
    """
    if not config.evaluations:
        raise SettingError("evaluations", config.evaluations, f"at least one: {EXPECTED}")
    output = Path(config.output)
    found = [_read(entry, config) for entry in config.evaluations]
    comparison = set_side_by_side([e.summary for e in found], [e.decisions for e in found])
    drawn = _plots(comparison)
    (output / "plots").mkdir(parents=True, exist_ok=True)
    for old in (output / "plots").glob("*.svg"):  # of an earlier report with more plots
        old.unlink()
    files = {_file_name(heading): svg for heading, svg in drawn.items()}
    for name, svg in files.items():
        (output / name).write_text(svg, encoding="utf-8")
    (output / "report.md").write_text(report.markdown(comparison, list(files)), encoding="utf-8")
    (output / "report.html").write_text(report.html(comparison, drawn), encoding="utf-8")
    (output / "comparison.json").write_text(json.dumps(_as_json(comparison), indent=2), encoding="utf-8")
    for table in report.console_tables(comparison, console.width):
        console.print(table)
    for line in (*report.findings(comparison), "", *report.footnotes(comparison)):
        console.print(line, markup=False, highlight=False)
    _track(config, comparison, output)
    console.print(f"report: {output / 'report.html'}", markup=False, soft_wrap=True)
    return output


def _read(entry: str, config: CompareConfig) -> _Evaluation:
    """The evaluation that an entry names: its folder, its MLflow run, or a model to evaluate now."""
    storage = Storage(entry)
    if storage.exists(MANIFEST):
        return _of_folder(entry)
    if RUN_ID.fullmatch(entry):
        return _of_run(entry, config.tracking, Path(config.output))
    if config.suite is None:
        raise DataError(
            entry, "a folder without manifest.json" if storage.exists() else "no such folder", EXPECTED
        )
    from degla_ray.evaluation.run import evaluate  # imports torch: 5 s that other entries do not need

    name = re.sub(r"\W+", "-", entry).strip("-")[-80:]
    folder = f"{config.output}/evaluations/{name}"
    evaluate(
        EvaluateConfig(
            model=ModelConfig(name=entry),
            output=folder,
            suite=config.suite,
            tracking=config.tracking,
            ray=config.ray,
        )
    )
    return _of_folder(folder)


def _of_folder(uri: str) -> _Evaluation:
    storage, summary = read_evaluation(uri)
    return _Evaluation(summary=summary, decisions=decisions_of(storage.read_dataset("scores", SCORES)))


def _of_run(run_id: str, config: TrackingConfig, output: Path) -> _Evaluation:
    """From the folder that the run's tag names if it still holds that evaluation, else from its artifacts."""
    tags = tracking.run_tags(config, run_id)
    folder = tags.get(FOLDER_TAG)
    if folder is None:
        raise DataError(
            f"MLflow run {run_id}", f"a run of stage {tags.get('degla.stage')!r}", "one of `jobs/evaluate.py`"
        )
    storage = Storage(folder)
    if (
        storage.exists(MANIFEST)
        and storage.read_json(MANIFEST).get("fingerprint") == tags[tracking.FINGERPRINT_TAG]
    ):
        return _of_folder(folder)
    copy = Storage(
        str(tracking.download_artifacts(config, run_id, ARTIFACTS, output / "downloaded" / run_id))
    )
    return _Evaluation(
        summary=read_summary(copy), decisions=decisions_of(copy.read_dataset("scores", SCORES))
    )


def _plots(comparison: Comparison) -> dict[str, str]:
    """Heading -> SVG of every plot that has something to show."""
    curves = {}
    for label, summary in zip(comparison.labels, comparison.summaries, strict=True):
        folder = summary.model.get("folder")
        curve = training_curve(folder) if folder else None
        if curve is not None:
            curves[label] = curve
    drawn = {
        "Composition against retention": plots.retention(comparison),
        "Accuracy by kind": plots.bars(comparison),
        "Training losses": plots.losses(curves, comparison.labels),
    }
    return {heading: svg for heading, svg in drawn.items() if svg is not None}


def _file_name(heading: str) -> str:
    return f"plots/{heading.lower().replace(' ', '_')}.svg"


def _as_json(comparison: Comparison) -> list[dict[str, object]]:
    """One entry a model, for other programs."""
    return [
        {
            "label": label,
            "model": dict(summary.model),
            "inputs": dict(summary.inputs),
            "same_inputs_as_first": comparison.same_inputs[model],
            "results": {
                name: dataclasses.asdict(comparison.cell(model, name))
                for name in (*comparison.averages, *comparison.subsets)
            },
        }
        for model, (label, summary) in enumerate(zip(comparison.labels, comparison.summaries, strict=True))
    ]


def _track(config: CompareConfig, comparison: Comparison, output: Path) -> None:
    identity = [
        [label, s.fingerprint] for label, s in zip(comparison.labels, comparison.summaries, strict=True)
    ]
    run_id = tracking.find_or_create_run(
        config.tracking,
        name="compare " + " · ".join(comparison.labels),
        fingerprint=fingerprint({"stage": "compare", "evaluations": identity}),
        params={"compare": config},
        tags={"degla.stage": "compare", "degla.folder": str(output.absolute())},
    )
    tracking.log_metrics(config.tracking, run_id, _metrics(comparison, range(len(comparison.labels))))
    for name in ("report.html", "report.md", "comparison.json", "plots"):
        tracking.log_artifacts(config.tracking, run_id, output / name, "plots" if name == "plots" else None)
    tracking.finish(config.tracking, run_id)


def _metrics(comparison: Comparison, models: Sequence[int]) -> dict[str, float]:
    """`LABEL/composition` … and, for all but the first, `LABEL/composition_delta`."""
    metrics: dict[str, float] = {}
    for model in models:
        for name in comparison.averages:
            cell, key = comparison.cell(model, name), f"{comparison.labels[model]}/{name}"
            if cell.score is not None and cell.score.value is not None:
                metrics[key] = cell.score.value
            if cell.delta is not None:
                metrics[f"{key}_delta"] = cell.delta
    return metrics
