"""A comparison as one self-contained HTML page."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from degla_ray.evaluation.comparison import Comparison
from degla_ray.reporting.among_published import among_published
from degla_ray.reporting.pages import render_page
from degla_ray.reporting.texts import (
    DISAGREEMENTS,
    Disagreements,
    comparisons_text,
    findings,
    footnotes,
    label_suffixes,
)


def comparison_page(
    comparison: Comparison,
    plots: Mapping[str, str],
    disagreements: Disagreements,
    images: Mapping[str, str],
) -> str:
    """Return the report as one HTML page without external resources.

    Args:
        comparison: the comparison to show.
        plots: heading -> inline SVG.
        disagreements: disagreements of each model but the first.
        images: `SOURCE:ID` -> data URI; an image without one is shown by its key.
    """
    return render_page(
        "comparison.html",
        comparison=comparison,
        note=functools.partial(comparisons_text, comparison),
        findings=findings(comparison),
        footnotes=footnotes(comparison),
        published=among_published(comparison),
        plots=plots,
        suffixes=label_suffixes(comparison),
        models=list(enumerate(comparison.labels)),
        disagreements=disagreements,
        disagreements_note=DISAGREEMENTS,
        images=images,
    )
