"""What MLflow is told of an evaluation: its own run, and the scores in the run that trained the model.

A score has one name wherever it is logged: `eval/composition`, `eval/scenes/swap_obj`; `eval_teacher/…` in
the training run, for its exported teacher. So MLflow compares models by their training runs, which have the
settings, the curves and the scores. Evaluated on several test sets, a training run shows the latest value of
a name; the evaluations' own runs, its children, keep theirs.
"""

from __future__ import annotations

from typing import Any

from degla_ray import tracking
from degla_ray.config import EvaluateConfig
from degla_ray.evaluation.summary import ARTIFACTS, STAGE, SUMMARY, Summary
from degla_ray.number_formats import percent, percent_interval
from degla_ray.storage import Storage
from degla_ray.tracking_store import or_told

STUDENT = "eval"
PREFIXES = {"export_student": STUDENT, "export_teacher": "eval_teacher"}
"""Folder of an exported model in its training run -> prefix of its scores in MLflow."""


def metrics(summary: Summary, prefix: str = STUDENT) -> dict[str, float]:
    """Return the scores as MLflow metrics, 0 to 1."""
    return {f"{prefix}/{name}": value for name, value in summary.metrics().items()}


def log(
    config: EvaluateConfig, summary: Summary, identity: dict[str, Any], parent_run_id: str | None
) -> None:
    """Log an evaluation that ended; a server that is down is told of, and ends nothing.

    Args:
        config: its settings.
        summary: its scores.
        identity: identity of its folder.
        parent_run_id: run to which a model without a training run belongs; None for none.
    """
    with or_told(f"the scores of {summary.label} are"):
        _log(config, summary, identity, parent_run_id)


def _log(
    config: EvaluateConfig, summary: Summary, identity: dict[str, Any], parent_run_id: str | None
) -> None:
    storage = Storage(config.output)
    folder = summary.model.get("folder") or ""
    prefix = PREFIXES.get(folder.rstrip("/").rpartition("/")[2])
    trained_in = None if prefix is None else tracking.run_that_trained(config.tracking, folder)
    run = tracking.running(
        config.tracking,
        name=f"evaluate {summary.label}",
        fingerprint=summary.fingerprint,
        folder=storage.uri,
        params={"evaluate": config, "identity": identity},
        tags={
            tracking.STAGE_TAG: STAGE,
            "degla.label": summary.label,
            "degla.partial": str(summary.partial).lower(),
            "degla.weights": str(summary.model["source"]),
            tracking.NOTE_TAG: note(summary),
        },
        parent_run_id=trained_in or parent_run_id,
    )
    with run as run_id:
        for name in ("prepared", "negatives"):
            if digest := summary.inputs.get(name):
                tracking.log_dataset(
                    config.tracking, run_id, name, digest, str(getattr(config, name)), "evaluation"
                )
        tracking.log_metrics(config.tracking, run_id, metrics(summary))
        parts = [f"{dataset}/{name}" for dataset in ("scores", "items") for name in storage.names(dataset)]
        tracking.log_files(config.tracking, run_id, storage, [SUMMARY, *parts], ARTIFACTS)
    if trained_in is not None and prefix is not None:
        step = tracking.last_step(config.tracking, trained_in, "train/loss")
        tracking.log_metrics(config.tracking, trained_in, metrics(summary, prefix), step)
        if prefix == STUDENT:
            tracking.set_tags(config.tracking, trained_in, {tracking.NOTE_TAG: note(summary)})


def note(summary: Summary) -> str:
    """Return the scores as a Markdown table, which MLflow shows above a run."""
    rows = [
        f"| {score.name} | {percent(score.value, partial=score.partial)} "
        f"| {percent_interval(score.low, score.high)} | {percent(score.chance)} | {score.n:,} |"
        for score in (*summary.averages, *summary.subsets)
        if score.value is not None
    ]
    heading = f"Scores of {summary.label} in percent, with 95 % intervals"
    return "\n".join(
        [f"{heading}.\n", "| score | % | interval | chance | items |", "|---|---|---|---|---|", *rows]
    )
