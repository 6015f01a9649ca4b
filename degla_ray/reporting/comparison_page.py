"""A comparison as one self-contained HTML page."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

from degla_ray.evaluation.comparison import Comparison
from degla_ray.reporting.among_published import among_published
from degla_ray.reporting.charts import DrawnChart
from degla_ray.reporting.pages import render_page
from degla_ray.reporting.provenance import provenance
from degla_ray.reporting.texts import (
    DISAGREEMENTS,
    Disagreements,
    comparisons_text,
    footnotes,
    label_suffixes,
)
from degla_ray.reporting.verdicts import chance_of, findings, made_of, pair_that_matters


def comparison_page(
    comparison: Comparison,
    charts: Sequence[DrawnChart],
    disagreements: Disagreements,
    images: Mapping[str, str],
) -> str:
    """Return the report as one HTML page without external resources.

    Args:
        comparison: the comparison to show.
        charts: its charts.
        disagreements: disagreements of each model but the first.
        images: `SOURCE:ID` -> data URI; an image without one is shown by its key.
    """
    return render_page(
        "comparison.html",
        charts,
        comparison=comparison,
        note=functools.partial(comparisons_text, comparison),
        chance=functools.partial(chance_of, comparison),
        made_of=functools.partial(made_of, comparison),
        findings=findings(comparison),
        footnotes=footnotes(comparison),
        published=among_published(comparison),
        suffixes=label_suffixes(comparison),
        models=list(enumerate(comparison.labels)),
        made=provenance(comparison),
        matters=pair_that_matters(comparison),
        disagreements=disagreements,
        disagreements_note=DISAGREEMENTS,
        images=images,
    )
