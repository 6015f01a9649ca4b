"""The report's plots, as SVG text: composition against retention, bars of the subsets, loss curves."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from degla_ray.evaluation.comparison import Comparison
from degla_ray.evaluation.summary import Score

# Okabe & Ito's colours, told apart also by colour-blind readers; the base is grey.
COLOURS = ("#7f7f7f", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
SMOOTHED_STEPS = 1 / 40  # of a run's steps go into one point of its curve
Curve = Mapping[str, Sequence[float]]  # column of a training trace -> values; `step` among them


def retention(comparison: Comparison) -> str | None:
    """Composition against zero-shot, with intervals; none where no model has both."""
    placed = []
    for model, label in enumerate(comparison.labels):
        x, y = (comparison.summaries[model].score(name) for name in ("zero_shot", "composition"))
        if x and y and x.value is not None and y.value is not None:
            placed.append((model, label, x, y))
    if not placed:
        return None
    with _figure(6.4, 4.4) as (figure, svg):
        axes = figure.subplots()
        for model, label, x, y in placed:
            colour = COLOURS[model % len(COLOURS)]
            (x_low, x_high), (y_low, y_high) = _reach(x), _reach(y)
            axes.errorbar(
                _percent(x), _percent(y), xerr=[[x_low], [x_high]], yerr=[[y_low], [y_high]], fmt="o",
                color=colour, ecolor=colour, elinewidth=1, capsize=3, markersize=8,
            )  # fmt: skip
            axes.annotate(
                _plain(label), (_percent(x), _percent(y)), (8, 7), textcoords="offset points",
                color=colour, fontweight="bold",
            )  # fmt: skip
        base = placed[0]
        axes.axvline(_percent(base[2]), color="#bbbbbb", linestyle=":", linewidth=1, zorder=0)
        axes.axhline(_percent(base[3]), color="#bbbbbb", linestyle=":", linewidth=1, zorder=0)
        axes.set_xlabel("zero-shot accuracy, % (kept)")
        axes.set_ylabel("composition, % (gained)")
        axes.margins(x=0.25, y=0.2)
        _tidy(axes)
    return svg[0]


def bars(comparison: Comparison) -> str | None:
    """Accuracy of every choice subset (scenes, order, negatives) by model, with intervals."""
    names = [n for n in comparison.subsets if n.split("/")[0] in ("scenes", "scenes_order", "negatives")]
    if not names:
        return None
    models = len(comparison.labels)
    width, at = 0.8 / models, np.arange(len(names))
    with _figure(max(6.4, 1.05 * len(names)), 4.0) as (figure, svg):
        axes = figure.subplots()
        for model, label in enumerate(comparison.labels):
            scores = [comparison.cell(model, name).score for name in names]
            heights = [_percent(s) for s in scores]
            reach = np.array([_reach(s) for s in scores]).T
            error = {"elinewidth": 1, "ecolor": "#333333", "capsize": 2}
            axes.bar(
                at + (model - (models - 1) / 2) * width, heights, width * 0.92, yerr=reach, error_kw=error,
                color=COLOURS[model % len(COLOURS)], label=_plain(label),
            )  # fmt: skip
        for place, name in zip(at, names, strict=True):
            chance = next((s.chance for s in (m.score(name) for m in comparison.summaries) if s), None)
            if chance is not None:
                axes.hlines(
                    100 * chance, place - 0.45, place + 0.45, color="#111111", linestyle="--", linewidth=1
                )
        axes.set_xticks(at, [n.split("/")[1].replace("_", "\n", 1) for n in names])
        axes.set_ylabel("accuracy, %   (dashed: guessing)")
        axes.set_ylim(0, 105)
        axes.legend(frameon=False, ncols=min(models, 4), loc="lower center", bbox_to_anchor=(0.5, 1.0))
        _tidy(axes, grid="y")
    return svg[0]


def losses(curves: Mapping[str, Curve], labels: Sequence[str]) -> str | None:
    """One panel a loss term, one line a training run (label -> trace); none where there is no trace."""
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
                        label=_plain(label),
                        linewidth=1.4,
                    )
            axes.set_title(term, fontsize=10, loc="left")
            axes.set_xlabel("step")
            axes.legend(frameon=False, fontsize=8)
            _tidy(axes)
    return svg[0]


@contextmanager
def _figure(width: float, height: float) -> Iterator[tuple[Figure, list[str]]]:
    """A figure of that size in inches; its SVG stands in the list once the block ends.

    Same input, same bytes: ids come from the size and no date is written.
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


def _plain(label: str) -> str:
    """A label as it stands: `$` would start a formula, and a leading `_` would hide it from the legend."""
    text = label.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def _percent(score: Score | None) -> float:
    return 100 * score.value if score is not None and score.value is not None else float("nan")


def _reach(score: Score | None) -> tuple[float, float]:
    """Lengths of the interval below and above the value, in points."""
    if score is None or score.value is None or score.low is None or score.high is None:
        return 0.0, 0.0
    return max(0.0, 100 * (score.value - score.low)), max(0.0, 100 * (score.high - score.value))


def _smooth(step: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Running mean over SMOOTHED_STEPS of the run, finite values only."""
    keep = np.isfinite(value)
    step, value = step[keep], value[keep]
    window = max(1, int(len(value) * SMOOTHED_STEPS))
    kernel = np.ones(window) / window
    return np.convolve(step, kernel, "valid"), np.convolve(value, kernel, "valid")


def _tidy(axes: Axes, grid: str = "both") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color="#eeeeee", linewidth=0.8)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
