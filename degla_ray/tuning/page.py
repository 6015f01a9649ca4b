"""A sweep's page: its front, parallel coordinates, importance and slices of settings, the trials' curves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from degla_ray.evaluation.summary import read_evaluation
from degla_ray.number_formats import percent, percent_interval
from degla_ray.reporting.charts import (
    CHOSEN,
    Chart,
    Spec,
    colour_by,
    draw,
    legend_toggle,
    shape_by,
    tooltip,
    zoom,
)
from degla_ray.reporting.pages import render_page
from degla_ray.tuning.console import headings, outcome, remark, shown, value_shown
from degla_ray.tuning.ledger import Trial
from degla_ray.tuning.rule import Rule, Verdict, front

Bounds = Mapping[int, tuple[float, float]]
"""Trial -> interval of its first objective, 0 to 1."""
STATES = ("base", "best", "on the front", "dominated", "stopped early")
ORDERS = 20.0
"""Ratio of a setting's largest to its smallest value above which its axis is logarithmic."""


def sweep_page(
    name: str, rule: Rule, found: Verdict, importance: Mapping[str, Mapping[str, float]], bounds: Bounds
) -> str:
    """Return the page as one HTML file.

    Args:
        name: of the sweep.
        rule: the sweep's rule.
        found: its trials and the pick.
        importance: objective -> setting -> share of variance; empty leaves the chart out.
        bounds: intervals of the first objective.
    """
    names = sorted(found.trials[0].settings)
    rows = [["base", *("" for _ in names), *(percent(rule.base[n]) for n in rule.names), "", ""]]
    for trial in found.trials:
        values = [value_shown(trial.settings[n]) for n in names]
        scores = [percent(trial.scores.get(n)) for n in rule.names]
        interval = percent_interval(*bounds.get(trial.number, (None, None)))
        rows.append([trial.name, *values, *scores, interval, remark(trial, rule, found)])
    return render_page(
        "sweep.html",
        [draw(chart) for chart in _charts(rule, found, importance, bounds)],
        name=name,
        lines=found.lines,
        headings=["", *headings(names), *(f"{n}, %" for n in rule.names), "interval", ""],
        rows=rows,
    )


def interval_bounds(rule: Rule, trials: Sequence[Trial]) -> dict[int, tuple[float, float]]:
    """Return the interval of each finished trial's first objective, or the range of its seeds."""
    name, found = rule.objectives[0], {}
    for trial in (t for t in trials if t.state == "finished"):
        scores = [s for run in trial.runs if (s := read_evaluation(run.evaluation)[1].score(name))]
        ends = [(s.low, s.high) for s in scores] if len(scores) == 1 else [(s.value, s.value) for s in scores]
        known = [(low, high) for low, high in ends if low is not None and high is not None]
        if known:
            found[trial.number] = (min(low for low, _ in known), max(high for _, high in known))
    return found


def _charts(
    rule: Rule, found: Verdict, importance: Mapping[str, Mapping[str, float]], bounds: Bounds
) -> Iterator[Chart]:
    rows = _rows(rule, found, bounds)
    finished = [t for t in found.trials if t.state == "finished"]
    names = [name for name in finished[0].settings if len({str(t.settings[name]) for t in finished}) > 1]
    if len(rule.names) > 1:
        yield _front(rule, rows)
    yield _parallel(rule, finished, names)
    for objective, shares in importance.items():
        yield _importance(objective, shares)
    for name in names:
        yield _slice(rule, name, finished, rows)
    if any(t.curve for t in found.trials):
        yield _curves(rule, found, {row["trial"]: row["state"] for row in rows})


def _rows(rule: Rule, found: Verdict, bounds: Bounds) -> list[dict[str, Any]]:
    """Return what the charts show of each trial with scores, and of the starting model."""
    on_front = front(rule, found.trials)
    rows = [_row("base", "base", "the starting model", rule.base, rule)]
    for trial in found.trials:
        if trial.state not in ("finished", "stopped") or not trial.scores:
            continue
        state = "on the front" if trial.number in on_front else "dominated"
        if found.best is not None and trial.number == found.best.number:
            state = "best"
        if trial.state == "stopped":
            state = "stopped early"
        row = _row(trial.name, state, shown(trial.settings), trial.scores, rule)
        low, high = bounds.get(trial.number, (None, None))
        rows.append(row | {"number": trial.number, "low": _percent(low), "high": _percent(high)})
    return rows


def _row(name: str, state: str, settings: str, scores: Mapping[str, float], rule: Rule) -> dict[str, Any]:
    values = {f"score{n}": _percent(scores.get(score)) for n, score in enumerate(rule.names)}
    said = ", ".join(f"{score} {percent(scores.get(score))} %" for score in rule.names)
    return {"trial": name, "state": state, "settings": settings, "said": said, **values}


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _axis(field: str, title: str, **more: Any) -> Spec:
    scale = {"zero": False} | more.pop("scale", {})
    return {"field": field, "type": "quantitative", "title": title, "scale": scale, **more}


def _about() -> list[Spec]:
    return tooltip(("trial", "trial"), ("said", "scores"), ("settings", "settings"), ("state", "state"))


def _front(rule: Rule, rows: Sequence[dict[str, Any]]) -> Chart:
    first, second = rule.names[:2]
    return Chart(
        heading="Front",
        description=f"Each trial's {first} against its {second}. No trial is better in one and not worse in "
        "the other than a trial on the front. Stopped trials show their latest validation.",
        spec={
            "height": 340,
            "data": {"values": list(rows)},
            "params": [legend_toggle("state"), zoom("x", "y")],
            "mark": {"type": "point", "filled": True, "size": 110},
            "encoding": {
                "x": _axis("score1", f"{second}, %", scale={"padding": 24}),
                "y": _axis("score0", f"{first}, %", scale={"padding": 24}),
                "color": colour_by("state", STATES),
                "shape": shape_by("state", STATES),
                "opacity": CHOSEN,
                "tooltip": _about(),
            },
        },
    )


def _parallel(rule: Rule, trials: Sequence[Trial], names: Sequence[str]) -> Chart:
    columns = {h: [t.settings[n] for t in trials] for h, n in zip(headings(names), names, strict=True)}
    columns |= {f"{n}, %": [100 * t.scores[n] for t in trials] for n in rule.names}
    heights = {heading: _heights(values) for heading, values in columns.items()}
    rows = [
        {
            "trial": trial.name,
            "column": heading,
            "height": heights[heading][place],
            "value": value_shown(values[place]),
            "score": 100 * trial.scores[rule.objectives[0]],
        }
        for place, trial in enumerate(trials)
        for heading, values in columns.items()
    ]
    score = {"field": "score", "type": "quantitative", "title": f"{rule.objectives[0]}, %"}
    angled = {"labelAngle": -25}
    return Chart(
        heading="Settings and scores",
        description="Each line is a finished trial; each column runs from its smallest value, below, to its "
        "largest.",
        spec={
            "height": 300,
            "data": {"values": rows},
            "mark": {"type": "line", "point": True, "opacity": 0.75},
            "encoding": {
                "x": {"field": "column", "type": "nominal", "sort": None, "title": None, "axis": angled},
                "y": {"field": "height", "type": "quantitative", "axis": None},
                "detail": {"field": "trial", "type": "nominal"},
                "color": {**score, "scale": {"scheme": "viridis", "zero": False}},
                "tooltip": tooltip(("trial", "trial"), ("column", "column"), ("value", "value")),
            },
        },
    )


def _heights(values: Sequence[Any]) -> list[float]:
    """Return where values stand on a column, 0 to 1; words in the order of their appearance."""
    numeric = all(isinstance(v, int | float) for v in values)
    places = (
        [float(v) for v in values]
        if numeric
        else [float(list(map(str, values)).index(str(v))) for v in values]
    )
    if numeric and _spans_orders(places):
        places = [math.log(v) for v in places]
    low, span = min(places), (max(places) - min(places)) or 1.0
    return [(v - low) / span for v in places]


def _spans_orders(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) / min(values) > ORDERS


def _importance(objective: str, shares: Mapping[str, float]) -> Chart:
    rows = [
        {"setting": heading, "share": 100 * share, "said": f"{percent(share)} %"}
        for heading, share in zip(headings(list(shares)), shares.values(), strict=True)
    ]
    return Chart(
        heading=f"What {objective} depends on",
        description="Share of the variance over the finished trials that a setting explains (fANOVA): a "
        "rough guide with few trials.",
        spec={
            "height": {"step": 28},
            "data": {"values": rows},
            "mark": "bar",
            "encoding": {
                "y": {"field": "setting", "type": "nominal", "sort": None, "title": None},
                "x": {"field": "share", "type": "quantitative", "title": "share of variance, %"},
                "tooltip": tooltip(("setting", "setting"), ("said", "share")),
            },
        },
    )


def _slice(rule: Rule, name: str, trials: Sequence[Trial], rows: Sequence[dict[str, Any]]) -> Chart:
    settings = {t.number: t.settings[name] for t in trials}
    data = [row | {"value": settings[row["number"]]} for row in rows if row.get("number") in settings]
    heading = headings([name])[0]
    numeric = all(isinstance(row["value"], int | float) for row in data)
    x: Spec = {"field": "value", "type": "nominal", "title": heading}
    if numeric:
        log = {"type": "log"} if _spans_orders([row["value"] for row in data]) else {}
        x = _axis("value", heading, scale=log)
    else:
        data = [row | {"value": str(row["value"])} for row in data]
    colour = colour_by("state", STATES, legend=None)
    return Chart(
        heading=f"{rule.objectives[0]} over {heading}",
        description="Finished trials with their intervals over test images; of several seeds, lowest to "
        "highest.",
        spec={
            "height": 240,
            "data": {"values": data},
            "layer": [
                {
                    "mark": {"type": "rule", "opacity": 0.5},
                    "encoding": {
                        "x": x,
                        "y": _axis("low", f"{rule.objectives[0]}, %"),
                        "y2": {"field": "high"},
                    },
                },
                {
                    "mark": {"type": "point", "filled": True, "size": 70},
                    "encoding": {
                        "x": x,
                        "y": _axis("score0", f"{rule.objectives[0]}, %"),
                        "color": colour,
                        "tooltip": _about(),
                    },
                },
            ],
        },
    )


def _curves(rule: Rule, found: Verdict, states: Mapping[str, str]) -> Chart:
    name = rule.objectives[0]
    rows = [
        {
            "trial": trial.name,
            "step": step,
            "score": 100 * scores[name],
            "state": states.get(trial.name, "dominated"),
            "said": f"{percent(scores[name])} %",
            "outcome": outcome(trial, rule),
        }
        for trial in found.trials
        for step, scores in trial.curve
        if name in scores
    ]
    return Chart(
        heading=f"{name} during training",
        description="Validations of each trial's first run; ASHA stopped a trial where its line ends early.",
        spec={
            "height": 300,
            "data": {"values": rows},
            "params": [legend_toggle("state")],
            "mark": {"type": "line", "point": True},
            "encoding": {
                "x": {"field": "step", "type": "quantitative", "title": "step"},
                "y": _axis("score", f"{name}, %"),
                "detail": {"field": "trial", "type": "nominal"},
                "color": colour_by("state", STATES),
                "opacity": CHOSEN,
                "tooltip": tooltip(
                    ("trial", "trial"), ("step", "step"), ("said", name), ("outcome", "outcome")
                ),
            },
        },
    )
