"""Render the HTML pages: one Jinja environment, so that every page escapes text and formats numbers alike.

A page is one file that loads nothing: its policy forbids every address and every script but the one of
`charts.py`, which is named by its hash.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup, escape

from degla_ray.evaluation.comparison import title
from degla_ray.masking import masked
from degla_ray.number_formats import percent, points
from degla_ray.reporting.charts import DrawnChart, script
from degla_ray.reporting.disagreements import Disagreement
from degla_ray.reporting.texts import interval_text, margin_text, p_text, test_text, value_text
from degla_ray.reporting.word_marks import marked

TEMPLATES = Path(__file__).parent / "templates"
SCRIPT_MARK = "page script"
Runs = list[tuple[str, bool]]


def render_page(template: str, charts: Sequence[DrawnChart], **values: object) -> str:
    """Return the page of a template in `templates/` that extends `base.html`, without external resources.

    Args:
        template: file name.
        charts: what the template's `figures(charts)` shows.
        values: further variables of the template; a variable that is missing is an error.
    """
    page = (
        _environment()
        .get_template(template)
        .render(
            charts=charts,
            specs=[chart.vega for chart in charts],
            policy=_policy(),
            script_mark=SCRIPT_MARK,
            **values,
        )
    )
    # After masking, which reads programs as texts; the last mark is ours, whatever the texts contain.
    before, _, after = masked(page).rpartition(SCRIPT_MARK)
    return before + script() + after


@functools.cache
def _policy() -> str:
    digest = base64.b64encode(hashlib.sha256(script().encode()).digest()).decode()
    # Vega compiles its expressions, hence unsafe-eval; texts of others never become expressions.
    scripts = f"script-src 'sha256-{digest}' 'unsafe-eval'"
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; {scripts}"


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=select_autoescape(),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "beside": _beside,
        "breakable": _breakable,
        "candidates": _candidates,
        "thousands": "{:,}".format,
        "interval": interval_text,
        "margin": margin_text,
        "marked": marked,
        "p": p_text,
        "percent": percent,
        "points": points,
        "test": test_text,
        "title": title,
        "value_text": value_text,
    }
    return environment


def _breakable(name: str) -> Markup:
    """Return a name that may be broken after `/`, `_` and `.` where a column is narrow."""
    return Markup(re.sub(r"([/_.])", r"\1<wbr>", str(escape(name))))


def _candidates(item: Disagreement) -> list[Runs]:
    """Return the candidates' texts with marks: the true one against the chosen wrong one, others against the
    true one."""
    true = item.true.index(True)
    return [
        [(name, False)]
        if item.candidate_images[number]
        else marked(name, item.candidates[item.chosen if item.true[number] else true])
        for number, name in enumerate(item.candidates)
    ]


def _beside(item: Disagreement) -> list[Runs]:
    """Return the texts that are not candidates; of two, the words in which they differ are marked."""
    if len(item.texts) == 2:
        return [marked(item.texts[0], item.texts[1]), marked(item.texts[1], item.texts[0])]
    return [[(text, False)] for text in item.texts]
