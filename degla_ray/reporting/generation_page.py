"""The report on negatives as one HTML page: what came of each kind, what gives it away, and samples.

It shows the content of `report.json`, so a folder's page can be written again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from degla_ray.number_formats import percent
from degla_ray.reporting.charts import (
    CHOSEN,
    DOWN,
    LINE,
    NOT_SIGNIFICANT,
    SOFT,
    UP,
    Chart,
    colour_by,
    draw,
    legend_toggle,
    tooltip,
)
from degla_ray.reporting.pages import render_page

BLIND_WARNING = 0.6
"""Text-only accuracy above which a kind is warned about."""
BLIND = (
    "Blind (text-only) accuracy is how often a classifier that sees no image tells the caption from its "
    "negative. At 50 % the texts give nothing away. The higher it is, the more a model can learn from the "
    "wording alone, without looking at the image."
)
_STATES = {
    "ok": "with negatives",
    "rejected": "all rejected",
    "error": "failed",
    "not_applicable": "not applicable",
}
Content = Mapping[str, Any]  # of report.json: generation.Report as a dictionary, and its totals


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A negative to show.

    Attributes:
        image: its image as a data URI; None if it cannot be read.
    """

    caption: str
    negative: str
    image: str | None


def generation_page(report: Content, samples: Mapping[str, Sequence[Sample]]) -> str:
    """Return the report as one page without external resources.

    Args:
        report: content of `report.json`.
        samples: negatives to show by kind.
    """
    charts = [_states_chart(report), *_blind_chart(report), *_length_charts(report)]
    return render_page(
        "generation.html",
        [draw(chart) for chart in charts],
        report=report,
        totals={name: value for name, value in report["totals"].items() if "/" not in name},
        samples=samples,
        states=_STATES,
        warnings=blind_warnings(report),
        blind=BLIND,
    )


def blind_warnings(report: Content) -> list[str]:
    """Return a sentence on each kind that can be told without its image."""
    found = []
    for kind, row in report["kinds"].items():
        accuracy = row["text_only_accuracy"]
        if accuracy is not None and accuracy > BLIND_WARNING:
            found.append(
                f"{kind}: a classifier that sees no image is right in {percent(accuracy, digits=0)} %. "
                "Training on this kind also teaches its wording."
            )
    return found


def _states_chart(report: Content) -> Chart:
    rows = [
        {"kind": kind, "state": _STATES[state], "captions": count, "said": f"{count:,}", "order": number}
        for kind, row in report["kinds"].items()
        for number, (state, count) in enumerate(row["captions"].items())
        if state in _STATES
    ]
    encoding = {
        "y": {"field": "kind", "type": "nominal", "sort": None, "title": None},
        "x": {"field": "captions", "type": "quantitative", "title": "captions"},
        "color": {
            "field": "state",
            "type": "nominal",
            "scale": {"domain": [*_STATES.values()], "range": [UP, NOT_SIGNIFICANT, DOWN, LINE]},
        },
        "order": {"field": "order"},
        "tooltip": tooltip(("kind", "kind"), ("state", "captions"), ("said", "number")),
        "opacity": {"condition": {"param": "chosen", "value": 1}, "value": 0.15},
    }
    return Chart(
        heading="Captions by state",
        description="Captions of each kind: with negatives, with rejected candidates only, failed, or not "
        "applicable.",
        spec={
            "height": {"step": 26},
            "data": {"values": rows},
            "params": [legend_toggle("state")],
            "mark": {"type": "bar", "height": {"band": 0.75}},
            "encoding": encoding,
        },
    )


def _blind_chart(report: Content) -> list[Chart]:
    """Return the chart of text-only accuracies, unless none is known."""
    known = {kind: row["text_only_accuracy"] for kind, row in report["kinds"].items()}
    rows = [
        {"kind": kind, "accuracy": 100 * value, "said": percent(value), "alarm": value > BLIND_WARNING}
        for kind, value in known.items()
        if value is not None
    ]
    if not rows:
        return []
    title = "blind accuracy, %"
    x = {"field": "accuracy", "type": "quantitative", "title": title, "scale": {"domain": [40, 100]}}
    guessing = {
        "data": {"values": [{"accuracy": 50}]},
        "mark": {"type": "rule", "strokeDash": [4, 3], "color": SOFT},
        "encoding": {"x": x},
    }
    kinds = {
        "data": {"values": rows},
        "mark": {"type": "point", "filled": True, "size": 110, "opacity": 1},
        "encoding": {
            "y": {"field": "kind", "type": "nominal", "sort": None, "title": None, "axis": {"grid": True}},
            "x": x,
            "color": {"condition": {"test": "datum.alarm", "value": DOWN}, "value": UP},
            "tooltip": tooltip(("kind", "kind"), ("said", title)),
        },
    }
    return [
        Chart(
            heading="Blind accuracy",
            description="Accuracy of a text-only classifier by kind; the line is guessing, 50 %. "
            f"Red: above {percent(BLIND_WARNING, digits=0)} %.",
            spec={"height": {"step": 26}, "layer": [guessing, kinds]},
        )
    ]


def _length_charts(report: Content) -> list[Chart]:
    """Return one chart of lengths for each kind that has negatives."""
    return [_lengths(report, kind, row) for kind, row in report["kinds"].items() if row["words"]]


def _lengths(report: Content, kind: str, row: Mapping[str, Any]) -> Chart:
    rows: list[dict[str, Any]] = []
    for texts, counts in (("captions", report["caption_words"]), ("negatives", row["words"])):
        known = {int(words): number for words, number in counts.items()}  # JSON's keys are texts
        for words in range(min(known), max(known) + 1):
            share = known.get(words, 0) / sum(known.values())
            rows.append({"texts": texts, "words": words, "share": 100 * share, "said": f"{percent(share)} %"})
    place = {
        "x": {"field": "words", "type": "quantitative", "title": "words", "axis": {"tickMinStep": 1}},
        "y": {"field": "share", "type": "quantitative", "title": "share, %"},
        "color": colour_by("texts", ["captions", "negatives"], legend={"symbolType": "stroke"}),
    }
    told = tooltip(("texts", "texts"), ("words", "words"), ("said", "share"))
    return Chart(
        heading=f"Lengths: {kind}",
        description=f"Lengths in words of all captions and of the negatives of kind {kind}, as shares of "
        "each.",
        spec={
            "height": 150,
            "data": {"values": rows},
            "layer": [
                {
                    "params": [legend_toggle("texts")],
                    "mark": {"type": "line", "interpolate": "step"},
                    "encoding": {**place, "opacity": CHOSEN},
                },
                {
                    "mark": {"type": "point", "opacity": 0, "size": 80, "aria": False},
                    "encoding": {**place, "tooltip": told},
                },
            ],
        },
    )
