"""Render the HTML pages: one Jinja environment, so that every page escapes text and formats numbers alike."""

from __future__ import annotations

import functools
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from degla_ray.evaluation.comparison import title
from degla_ray.number_formats import percent, points
from degla_ray.reporting.texts import interval_text, margin_text, test_text, value_text

TEMPLATES = Path(__file__).parent / "templates"


def render_page(template: str, **values: object) -> str:
    """Return the page of a template in `templates/`, as HTML without external resources.

    Args:
        template: file name.
        values: variables of the template; a variable that is missing is an error.
    """
    return _environment().get_template(template).render(**values)


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
        "thousands": "{:,}".format,
        "interval": interval_text,
        "margin": margin_text,
        "percent": percent,
        "points": points,
        "test": test_text,
        "title": title,
        "value_text": value_text,
    }
    return environment
