"""Plots of the report as SVG: composition against retention, bars of each benchmark, loss curves."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from degla_ray.evaluation.benchmarks.classification import TOP1
from degla_ray.evaluation.benchmarks.zero_shot import PREFIX, ZERO_SHOT_ELEVEN
from degla_ray.evaluation.comparison import SCENES_FAMILY, ZERO_SHOT_FAMILY, Comparison, title
from degla_ray.evaluation.summary import ZERO_SHOT, Score
from degla_ray.reporting.published_rows import published_points

# Okabe & Ito's colours, which colour-blind readers can distinguish; the base is grey.
COLOURS = ("#7f7f7f", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
GREY = "#8a8a8a"  # published models
COMPOSITION = ("sugarcrepe", "valse", "aro")  # members of the composition axis
NOT_DRAWN = ("scenes_zeroshot", "scenes_retrieval")  # shown in the first plot or in the tables
MOST_BARS, TICK = 14, 12
SMOOTHED_STEPS = 1 / 40  # fraction of a run's logged steps that one point of its curve averages
Axis = tuple[str, tuple[str, ...]]  # label, names of the scores that are averaged
Curve = Mapping[str, Sequence[float]]  # column of a training trace -> values; includes `step`


def retention_plot(comparison: Comparison) -> str | None:
    """Plot composition against retention, with intervals; None if no model has both.

    The plot uses the project's own scenes if a model has both scores there. Otherwise it uses published
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
            placed.append((model, label, x, y))
    if not placed:
        return None
    with _figure(6.4, 4.4) as (figure, svg):
        axes = figure.subplots()
        published = published_points(x_names, y_names)
        for point in published:
            cut = point.protocol.startswith("int_logits")
            axes.plot(point.x, point.y, "o", color=GREY, markersize=5, fillstyle="none" if cut else "full")
            axes.annotate(
                _literal(point.model), (point.x, point.y), (6, -9), textcoords="offset points",
                color=GREY, fontsize=8,
            )  # fmt: skip
        for model, label, x, y in placed:
            colour = COLOURS[model % len(COLOURS)]
            (x_low, x_high), (y_low, y_high) = _reach(x), _reach(y)
            axes.errorbar(
                _in_percent(x), _in_percent(y), xerr=[[x_low], [x_high]], yerr=[[y_low], [y_high]], fmt="o",
                color=colour, ecolor=colour, elinewidth=1, capsize=3, markersize=8,
            )  # fmt: skip
            axes.annotate(
                _literal(label), (_in_percent(x), _in_percent(y)), (8, 7), textcoords="offset points",
                color=colour, fontweight="bold",
            )  # fmt: skip
        base = placed[0]
        axes.axvline(_in_percent(base[2]), color="#bbbbbb", linestyle=":", linewidth=1, zorder=0)
        axes.axhline(_in_percent(base[3]), color="#bbbbbb", linestyle=":", linewidth=1, zorder=0)
        note = "\ngrey: published; hollow where its zero-shot scores are int_logits" if published else ""
        axes.set_xlabel(textwrap.fill(x_label, 80) + note)
        axes.set_ylabel(textwrap.fill(y_label, 50))
        axes.margins(x=0.25, y=0.2)
        _tidy(axes)
    return svg[0]


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


def accuracy_bars(comparison: Comparison) -> dict[str, str]:
    """Return heading -> bar plot of accuracies by model with intervals, one per benchmark or family.

    Benchmarks with a single subset share a plot; one with more than MOST_BARS subsets is shown in the tables
    only.
    """
    drawn: dict[str, list[tuple[str, str]]] = {}  # heading -> (name, label) of its bars
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
    if len(alone) > 1:  # a single bar would say no more than the table
        drawn["Accuracy: other benchmarks"] = alone
    return {h: _bars(comparison, dict(named)) for h, named in drawn.items() if 0 < len(named) <= MOST_BARS}


def _other_set(name: str) -> bool:
    """Return whether the name is the top-1 accuracy of a set other than the eleven."""
    benchmark, _, subset = name.partition("/")
    return subset == TOP1 and benchmark not in {n.partition("/")[0] for n in ZERO_SHOT_ELEVEN}


def _bars(comparison: Comparison, named: Mapping[str, str]) -> str:
    """Draw one bar plot; `named` maps scores to the labels below their bars."""
    models = len(comparison.labels)
    width, at = 0.8 / models, np.arange(len(named))
    with _figure(max(6.4, 1.05 * len(named)), 4.0) as (figure, svg):
        axes = figure.subplots()
        for model, label in enumerate(comparison.labels):
            scores = [comparison.cell(model, name).score for name in named]
            heights = [_in_percent(s) for s in scores]
            reach = np.array([_reach(s) for s in scores]).T
            error = {"elinewidth": 1, "ecolor": "#333333", "capsize": 2}
            axes.bar(
                at + (model - (models - 1) / 2) * width, heights, width * 0.92, yerr=reach, error_kw=error,
                color=COLOURS[model % len(COLOURS)], label=_literal(label),
            )  # fmt: skip
        for place, name in zip(at, named, strict=True):
            chance = next((s.chance for s in (m.score(name) for m in comparison.summaries) if s), None)
            if chance is not None:
                axes.hlines(
                    100 * chance, place - 0.45, place + 0.45, color="#111111", linestyle="--", linewidth=1
                )
        axes.set_xticks(at, [_broken(label) for label in named.values()])
        axes.set_ylabel("accuracy, %   (dashed: guessing)")
        axes.set_ylim(0, 105)
        axes.legend(frameon=False, ncols=min(models, 4), loc="lower center", bbox_to_anchor=(0.5, 1.0))
        _tidy(axes, grid="y")
    return svg[0]


def _broken(label: str) -> str:
    """Return a tick's label broken after `/`, `_` and `-` into lines of at most TICK letters."""
    lines = [""]
    for part in re.findall(r"[^/_-]+[/_-]*|[/_-]+", _literal(label)):
        if lines[-1] and len(lines[-1]) + len(part) > TICK:
            lines.append("")
        lines[-1] += part
    return "\n".join(line.rstrip("_/") for line in lines)


def loss_curves(curves: Mapping[str, Curve], labels: Sequence[str]) -> str | None:
    """Plot one panel per loss term and one line per training run (label -> trace); None without traces."""
    terms = [
        t
        for t in ("loss", "base", "igc", "tgc", "distill")
        if any(len(c.get(t, ())) for c in curves.values())
    ]
    if not terms:
        return None
    columns = min(3, len(terms))
    rows = -(-len(terms) // columns)
    with _figure(3.4 * columns, 2.7 * rows) as (figure, svg):
        panels = list(figure.subplots(rows, columns, squeeze=False).flat)
        for axes in panels[len(terms) :]:
            axes.set_visible(False)
        for axes, term in zip(panels, terms, strict=False):
            for label, curve in curves.items():
                if len(curve.get(term, ())):
                    step, value = _smooth(np.asarray(curve["step"], float), np.asarray(curve[term], float))
                    axes.plot(
                        step,
                        value,
                        color=COLOURS[labels.index(label) % len(COLOURS)],
                        label=_literal(label),
                        linewidth=1.4,
                    )
            axes.set_title(term, fontsize=10, loc="left")
            axes.set_xlabel("step")
            axes.legend(frameon=False, fontsize=8)
            _tidy(axes)
    return svg[0]


@contextmanager
def _figure(width: float, height: float) -> Iterator[tuple[Figure, list[str]]]:
    """Yield a figure of that size in inches, and a list that contains its SVG once the block ends.

    The same input gives the same bytes: ids derive from the size, and no date is written.
    """
    svg: list[str] = []
    style = {"svg.hashsalt": f"{width}x{height}", "font.size": 9, "font.family": "DejaVu Sans"}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, svg
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    svg.append(text[text.index("<svg") :])


def _literal(label: str) -> str:
    """Return a label that Matplotlib shows unchanged.

    A `$` would start a formula, and a leading `_` would hide the label from the legend.
    """
    text = label.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def _in_percent(score: Score | None) -> float:
    return 100 * score.value if score is not None and score.value is not None else float("nan")


def _reach(score: Score | None) -> tuple[float, float]:
    """Return the lengths of the interval below and above the value, in percentage points."""
    if score is None or score.value is None or score.low is None or score.high is None:
        return 0.0, 0.0
    return max(0.0, 100 * (score.value - score.low)), max(0.0, 100 * (score.high - score.value))


def _smooth(step: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the running mean over a window of SMOOTHED_STEPS, of finite values only."""
    keep = np.isfinite(value)
    step, value = step[keep], value[keep]
    window = max(1, int(len(value) * SMOOTHED_STEPS))
    kernel = np.ones(window) / window
    return np.convolve(step, kernel, "valid"), np.convolve(value, kernel, "valid")


def _tidy(axes: Axes, grid: str = "both") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color="#eeeeee", linewidth=0.8)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
