"""Charts of a comparison: composition against retention, accuracies of each benchmark, loss curves."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from degla_ray.evaluation.benchmarks.classification import TOP1
from degla_ray.evaluation.benchmarks.zero_shot import PREFIX, ZERO_SHOT_ELEVEN
from degla_ray.evaluation.comparison import SCENES_FAMILY, ZERO_SHOT_FAMILY, Comparison, title
from degla_ray.evaluation.summary import ZERO_SHOT, Score
from degla_ray.number_formats import points
from degla_ray.reporting.charts import (
    CHOSEN,
    NOT_SIGNIFICANT,
    SOFT,
    Chart,
    colour_by,
    legend_toggle,
    shape_by,
    tooltip,
    zoom,
)
from degla_ray.reporting.published_rows import published_points
from degla_ray.reporting.texts import interval_text, p_text, value_text
from degla_ray.reporting.verdicts import chance_of, verdict_of

COMPOSITION = ("sugarcrepe", "valse", "aro")  # members of the composition axis
NOT_DRAWN = ("scenes_zeroshot", "scenes_retrieval")  # shown in the first plot or in the tables
MOST_ROWS = 30  # subsets of one chart
ROW, GAP = 12, 8  # pixels of a model's line in a chart of accuracies, and between two subsets
CURVE_POINTS = 60  # of a drawn curve, fewer than two for each window of its running mean
SMOOTHED_STEPS = 1 / 40  # fraction of a run's logged steps that one point of its curve averages
TERMS = ("loss", "base", "igc", "tgc", "distill")
Axis = tuple[str, tuple[str, ...]]  # label, names of the scores that are averaged
Curve = Mapping[str, Sequence[float]]  # column of a training trace -> values; includes `step`


def retention_plot(comparison: Comparison) -> Chart | None:
    """Chart composition against retention, with intervals; None if no model has both.

    The chart uses the project's own scenes if a model has both scores there. Otherwise it uses published
    benchmarks, averages all compared models over the same ones, and adds the published models that have both.
    """
    axes_of = _scenes_axes(comparison) or _published_axes(comparison)
    if axes_of is None:
        return None
    (x_label, x_names), (y_label, y_names) = axes_of
    placed = []
    for model, label in enumerate(comparison.labels):
        x, y = (_mean([comparison.cell(model, n).score for n in names]) for names in (x_names, y_names))
        if x and y:
            placed.append({"model": label, **_coordinate("x", x), **_coordinate("y", y)})
    if not placed:
        return None
    published = [
        {"model": p.model, "x": round(p.x, 1), "y": round(p.y, 1), "protocol": p.protocol or "published"}
        for p in published_points(x_names, y_names)
    ]
    scale = {"zero": False, "padding": 24}
    x_axis = {"field": "x", "type": "quantitative", "title": textwrap.wrap(x_label, 60), "scale": scale}
    y_axis = {"field": "y", "type": "quantitative", "title": textwrap.wrap(y_label, 40), "scale": scale}
    place = {"x": x_axis, "y": y_axis}
    ours = _model_layers(comparison.labels, placed, place)
    others = _published_layers(published, place)
    note = " Published models are grey; hollow where their zero-shot scores are int_logits." if others else ""
    return Chart(
        heading="Composition against retention",
        description=f"Upwards: {y_label}. To the right: {x_label}. One point for each model, with 95 % "
        f"intervals; dotted lines through the first model.{note}",
        spec={"height": 330, "data": {"values": placed}, "layer": [*others, *ours]},
    )


def _model_layers(
    labels: Sequence[str], placed: Sequence[Mapping[str, Any]], place: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Return the layers of the compared models' points, intervals and names."""
    colour = {"color": colour_by("model", labels, legend={"values": [row["model"] for row in placed]})}
    lines = {"type": "rule", "strokeDash": [2, 3], "color": SOFT, "opacity": 0.6}
    first = {"mark": lines, "data": {"values": placed[:1]}}
    told = tooltip(("model", "model"), ("x_said", "retention, %"), ("y_said", "composition, %"))
    name = {"type": "text", "align": "left", "dx": 9, "dy": -9, "fontWeight": "bold", "limit": 140}
    across = {"x": {**place["x"], "field": "x_low"}, "x2": {"field": "x_high"}}
    upwards = {"y": {**place["y"], "field": "y_low"}, "y2": {"field": "y_high"}}
    return [
        {**first, "encoding": {"x": place["x"]}},
        {**first, "encoding": {"y": place["y"]}},
        {
            "params": [legend_toggle("model"), zoom("x", "y")],
            "mark": {"type": "point", "filled": True, "size": 110, "opacity": 1},
            "encoding": {
                **place,
                **colour,
                "shape": shape_by("model", labels),
                "opacity": CHOSEN,
                "tooltip": told,
            },
        },
        {"mark": "rule", "encoding": {**place, **across, **colour, "opacity": CHOSEN}},
        {"mark": "rule", "encoding": {**place, **upwards, **colour, "opacity": CHOSEN}},
        {"mark": name, "encoding": {**place, "text": {"field": "model"}, "opacity": CHOSEN}},
    ]


def _published_layers(rows: Sequence[Mapping[str, Any]], place: Mapping[str, Any]) -> list[dict[str, Any]]:
    if not rows:
        return []
    cut = "indexof(datum.protocol, 'int_logits') === 0"
    point = {"type": "point", "size": 40, "stroke": NOT_SIGNIFICANT, "fill": NOT_SIGNIFICANT}
    filled = {"fillOpacity": {"condition": {"test": cut, "value": 0}, "value": 1}}
    text = {"type": "text", "align": "left", "dx": 6, "dy": 9, "color": SOFT, "fontSize": 10}
    told = tooltip(("model", "published"), ("protocol", "protocol"), ("x", "retention"), ("y", "composition"))
    return [
        {"data": {"values": rows}, "mark": point, "encoding": {**place, **filled, "tooltip": told}},
        {"data": {"values": rows}, "mark": text, "encoding": {**place, "text": {"field": "model"}}},
    ]


def _scenes_axes(comparison: Comparison) -> tuple[Axis, Axis] | None:
    names = ("zero_shot", "composition")
    if not any(all(_known(comparison, model, n) for n in names) for model in range(len(comparison.labels))):
        return None
    return ("zero-shot accuracy, % (kept)", names[:1]), ("composition, % (gained)", names[1:])


def _published_axes(comparison: Comparison) -> tuple[Axis, Axis] | None:
    """Return the retention axis (the first of four that all models have) and the composition axis (those of
    the three benchmarks that all models have); None if either is missing."""
    composition = _all_have(comparison, COMPOSITION)
    sets = _all_have(comparison, ZERO_SHOT_ELEVEN)
    kept: list[Axis] = [
        ("zero-shot accuracy, mean of 11 sets, % (kept)", _all_have(comparison, (ZERO_SHOT,))),
        (f"zero-shot accuracy, mean of {', '.join(_set_name(n) for n in sets)}, % (kept)", sets),
        ("zero-shot accuracy, % (kept)", _all_have(comparison, ("zero_shot",))),
        ("retrieval R@1, % (kept)", _all_have(comparison, ("retrieval",))),
    ]
    x = next((axis for axis in kept if axis[1]), None)
    if not composition or x is None:
        return None
    of = " and ".join(title(name) for name in composition)
    return x, (f"composition: {'mean of ' if len(composition) > 1 else ''}{of}, % (gained)", composition)


def _set_name(name: str) -> str:
    return name.partition("/")[0].removeprefix(PREFIX)


def _all_have(comparison: Comparison, names: Sequence[str]) -> tuple[str, ...]:
    models = range(len(comparison.labels))
    return tuple(name for name in names if all(_known(comparison, model, name) for model in models))


def _known(comparison: Comparison, model: int, name: str) -> bool:
    cell = comparison.cells.get((model, name))
    return cell is not None and cell.score is not None and cell.score.value is not None


def _mean(scores: Sequence[Score | None]) -> Score | None:
    """Return the mean of scores over different items, or None if a value is missing.

    Its interval ends are the root of the sum of the members' squared distances, divided by their number.
    """
    values = [score.value for score in scores if score is not None and score.value is not None]
    if len(values) != len(scores) or not values:
        return None
    below, above = np.sqrt(np.square([_reach(s) for s in scores]).sum(axis=0)) / 100 / len(values)
    mean = float(np.mean(values))
    return Score(name="", value=mean, low=mean - below, high=mean + above, n=0, missing=0)


def accuracy_plots(comparison: Comparison) -> list[Chart]:
    """Return a chart of accuracies by model with intervals for each benchmark or family.

    Benchmarks with a single subset share a chart; one with more than MOST_ROWS subsets is shown in the
    tables only.
    """
    drawn: dict[str, list[tuple[str, str]]] = {}  # heading -> (name, label) of its rows
    alone: list[tuple[str, str]] = []
    for group in comparison.groups:
        named = [(n, h) for n, h in zip(group.names, group.headings, strict=True) if "/" in n]
        if group.title == ZERO_SHOT_FAMILY:
            named = [(n, _set_name(n)) for n, _ in named if n in ZERO_SHOT_ELEVEN or _other_set(n)]
        named = [(n, h) for n, h in named if n.split("/")[0] not in NOT_DRAWN]
        if group.title in (SCENES_FAMILY, "negatives"):
            drawn.setdefault("Accuracy by kind", []).extend((n, n.split("/")[1]) for n, _ in named)
        elif len(named) == 1:
            alone += [(named[0][0], named[0][0])]
        elif named:
            drawn[f"Accuracy: {group.title}"] = named
    if len(alone) > 1:  # a single row would say no more than the table
        drawn["Accuracy: other benchmarks"] = alone
    return [_accuracies(comparison, h, named) for h, named in drawn.items() if 0 < len(named) <= MOST_ROWS]


def _other_set(name: str) -> bool:
    """Return whether the name is the top-1 accuracy of a set other than the eleven."""
    benchmark, _, subset = name.partition("/")
    return subset == TOP1 and benchmark not in {n.partition("/")[0] for n in ZERO_SHOT_ELEVEN}


def _accuracies(comparison: Comparison, heading: str, named: Sequence[tuple[str, str]]) -> Chart:
    """Draw one chart; `named` are scores and the labels of their rows."""
    labels, rows, guesses = comparison.labels, [], []
    for name, label in named:
        chance = chance_of(comparison, name)
        if chance is not None:
            guesses.append({"subset": label, "chance": 100 * chance, "said": f"{100 * chance:.1f}"})
        for model in range(len(labels)):
            row = _accuracy_row(comparison, model, name)
            if row is not None:
                rows.append({"subset": label, **row})
    x = {
        "field": "value",
        "type": "quantitative",
        "title": "accuracy, %",
        "scale": {"zero": False, "nice": True},
    }
    y = {
        "field": "subset",
        "type": "nominal",
        "sort": None,
        "title": None,
        "axis": {"grid": True, "ticks": False},
    }
    offset = {"yOffset": {"field": "model", "type": "nominal", "sort": [*labels]}}
    grey = {"condition": {"test": "datum.tone === 'grey'", "value": NOT_SIGNIFICANT}}
    colour = {"color": colour_by("model", labels, **grey), "opacity": CHOSEN}
    told = tooltip(
        *(("subset", "subset"), ("model", "model"), ("said", "accuracy, %"), ("interval", "95 % interval")),
        *(("difference", f"against {labels[0]}"), ("p", "corrected p"), ("verdict", "verdict")),
    )
    tick = {"type": "tick", "thickness": 2, "size": ROW * len(labels), "color": SOFT, "orient": "vertical"}
    layers = [
        {
            "data": {"values": guesses},
            "mark": tick,
            "encoding": {"y": y, "x": {**x, "field": "chance"}, "tooltip": tooltip(("said", "guessing, %"))},
        },
        {
            "params": [legend_toggle("model"), zoom("x")],
            "mark": {"type": "point", "filled": True, "size": 60, "opacity": 1},
            "encoding": {
                "y": y,
                **offset,
                "x": x,
                **colour,
                "shape": shape_by("model", labels),
                "tooltip": told,
            },
        },
        {
            "mark": "rule",
            "encoding": {"y": y, **offset, "x": {**x, "field": "low"}, "x2": {"field": "high"}, **colour},
        },
    ]
    return Chart(
        heading=heading,
        description=f"Accuracy in percent of {', '.join(labels)} on {', '.join(row for _, row in named)}, "
        "with 95 % intervals. Grey: no significant difference from the first model. Vertical line: guessing.",
        spec={
            "height": (ROW * len(labels) + GAP) * len(named),
            "data": {"values": rows},
            "layer": layers if guesses else layers[1:],
        },
    )


def _accuracy_row(comparison: Comparison, model: int, name: str) -> dict[str, Any] | None:
    cell = comparison.cell(model, name)
    score = cell.score
    if score is None or score.value is None:
        return None
    (below, above), value = _reach(score), 100 * score.value
    return {
        "model": comparison.labels[model],
        "value": round(value, 2),
        "low": round(value - below, 2),
        "high": round(value + above, 2),
        "tone": "grey" if model and not cell.stars else "",
        "said": value_text(score),
        "interval": interval_text(score),
        "difference": f"{points(cell.delta)}{cell.stars}",
        "p": p_text(cell),
        "verdict": str(verdict_of(cell) or "the base"),
    }


def loss_plots(curves: Mapping[str, Curve], labels: Sequence[str]) -> list[Chart]:
    """Return a chart for each loss term, with a line per training run (label -> trace)."""
    charts = []
    for term in TERMS:
        rows = []
        for label, curve in curves.items():
            if len(curve.get(term, ())):
                step, value = _smooth(np.asarray(curve["step"], float), np.asarray(curve[term], float))
                rows += [
                    {"model": label, "step": round(s, 1), "value": float(f"{v:.5g}")}
                    for s, v in zip(step.tolist(), value.tolist(), strict=True)
                ]
        if rows:
            charts.append(_losses(term, rows, [label for label in labels if label in curves], labels))
    return charts


def _losses(
    term: str, rows: Sequence[Mapping[str, Any]], trained: Sequence[str], labels: Sequence[str]
) -> Chart:
    name = "total" if term == "loss" else term
    colours = colour_by("model", labels)
    place = {
        "x": {"field": "step", "type": "quantitative"},
        "y": {"field": "value", "type": "quantitative", "title": None, "scale": {"zero": False}},
        "color": {**colours, "legend": {"values": [*trained], "symbolType": "stroke"}},
    }
    told = tooltip(("model", "model"), ("step", "step"), ("value", f"loss {name}"))
    lines = {
        "params": [legend_toggle("model"), zoom("x", "y")],
        "mark": {"type": "line", "strokeWidth": 1.6},
        "encoding": {**place, "opacity": CHOSEN},
    }
    under = {"type": "point", "size": 60, "opacity": 0, "aria": False}  # what the mouse finds
    return Chart(
        heading=f"Training loss: {name}",
        description=f"Loss {name} by training step of {', '.join(trained)}, as a running mean.",
        spec={
            "height": 170,
            "data": {"values": rows},
            "layer": [lines, {"mark": under, "encoding": {**place, "tooltip": told}}],
        },
    )


def _coordinate(axis: str, score: Score) -> dict[str, float | str]:
    """Return a score as the fields of one axis, in percent."""
    below, above = _reach(score)
    value = _in_percent(score)
    said = f"{value:.1f} [{value - below:.1f}–{value + above:.1f}]"
    ends = {f"{axis}_low": round(value - below, 2), f"{axis}_high": round(value + above, 2)}
    return {axis: round(value, 2), **ends, f"{axis}_said": said}


def _in_percent(score: Score) -> float:
    assert score.value is not None
    return 100 * score.value


def _reach(score: Score | None) -> tuple[float, float]:
    """Return the lengths of the interval below and above the value, in percentage points."""
    if score is None or score.value is None or score.low is None or score.high is None:
        return 0.0, 0.0
    return max(0.0, 100 * (score.value - score.low)), max(0.0, 100 * (score.high - score.value))


def _smooth(step: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return CURVE_POINTS of the running mean over a window of SMOOTHED_STEPS, of finite values only."""
    keep = np.isfinite(value)
    step, value = step[keep], value[keep]
    window = max(1, int(len(value) * SMOOTHED_STEPS))
    kernel = np.ones(window) / window
    step, value = np.convolve(step, kernel, "valid"), np.convolve(value, kernel, "valid")
    kept = np.unique(np.linspace(0, len(step) - 1, min(len(step), CURVE_POINTS)).round().astype(int))
    return step[kept], value[kept]
