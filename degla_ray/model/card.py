"""The card beside an exported model: `README.md` with the metadata that Hugging Face's hub reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from degla_ray.number_formats import percent, percent_interval

README_FILE = "README.md"
_LIMITS = """\
## Limits

For research on what CLIP models make of word order, attributes and relations, with English captions. The
model inherits the biases of its first weights and of its data, and a score says nothing about images of
another kind. Not for decisions about people, for identifying or watching them, or as the only filter of
content.

## Licence

This folder names none. The licences of the first weights and of the training data hold for the model too;
data sets such as Flickr8k allow research only.
"""


def card(opening: str, library: str, source: str, made: Mapping[str, Any]) -> str:
    """Return a model card in Markdown with Hugging Face's metadata.

    Args:
        opening: heading and lines that open the folder.
        library: `library_name` of the metadata, `open_clip` or `transformers`.
        source: where the weights come from.
        made: further metadata of `degla.json`: `objective`, `steps`, `data`, `scores` …
    """
    scores = {
        name: score if isinstance(score, Mapping) else {"value": score}
        for name, score in made.get("scores", {}).items()
    }
    data = ModelCardData(
        language="en",
        license="other",
        library_name=library,
        pipeline_tag="zero-shot-image-classification",
        tags=["clip", "compositionality"],
        model_name=str(made.get("run", "clip")),
        eval_results=[_result(name, score["value"]) for name, score in scores.items()] or None,
    )
    parts = [
        f"---\n{data.to_yaml()}\n---",
        opening.rstrip(),
        _how_made(source, made),
        _LIMITS,
        _scores(scores),
    ]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def _result(name: str, value: float) -> EvalResult:
    return EvalResult(
        task_type="zero-shot-image-classification",
        dataset_type=name,  # results of one type lose their names
        dataset_name=name,
        metric_type="accuracy",
        metric_value=round(value, 4),
    )


def _how_made(source: str, made: Mapping[str, Any]) -> str:
    objective = made.get("objective")
    if isinstance(objective, Mapping):
        weights = ", ".join(f"{k} {v}" for k, v in objective.items() if k.startswith("lambda_"))
        objective = f"{objective['name']} ({weights})"
    facts = {
        "weights": source,
        "objective": objective,
        "steps": made.get("steps"),
        "data": made.get("data"),
        "run": made.get("run") and f"{made['run']}, fingerprint {made.get('fingerprint', 'unknown')}",
        "exported": made.get("weights"),
        "interpolated": made.get("interpolated") and f"{made['interpolated']}, alpha {made.get('alpha')}",
    }
    rows = [f"- {name}: {fact}" for name, fact in facts.items() if fact is not None]
    return "\n".join(["## How it was made", "", *rows, "", "`degla.json` has the rest."])


def _scores(scores: Mapping[str, Mapping[str, Any]]) -> str:
    if not scores:
        return "## Scores\n\nNone here: `degla export --evaluations FOLDER` writes those of an evaluation."
    rows = []
    for name, score in scores.items():
        interval = percent_interval(score.get("low"), score.get("high"))
        rows.append(f"| {name} | {percent(score['value'])} | {interval} | {score.get('items', '')} |")
    head = ["## Scores", "", "In percent, with 95 % intervals.", ""]
    return "\n".join([*head, "| score | % | interval | items |", "|---|---|---|---|", *rows])
