"""Charts of a page: described once in Vega-Lite, drawn as SVG here and made interactive by Vega in the page.

The SVG is readable without scripts, and in Markdown. Where scripts run, Vega replaces it by the same chart
with values on hover, a legend that singles out its entries, and zoom. Colours are CSS variables with a
fallback, so a chart follows the page's dark or light scheme. vl-convert brings Vega offline; it adds 0.5 MB
to a page and takes 0.1 s per chart.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import vl_convert

Spec = Mapping[str, Any]

INK, SOFT, LINE = "var(--ink, #1c2733)", "var(--soft, #5b6777)", "var(--line, #e2e8f0)"
NOT_SIGNIFICANT = "var(--grey, #8a8f98)"
UP, DOWN = "var(--good, #15803d)", "var(--bad, #b91c1c)"
# Okabe & Ito's colours, which colour-blind readers can distinguish; the first model, the base, is ink.
COLOURS = (
    *(INK, "var(--c1, #0072b2)", "var(--c2, #d55e00)", "var(--c3, #009e73)"),
    *("var(--c4, #cc79a7)", "var(--c5, #b8860b)", "var(--c6, #3a9bd1)", "var(--c7, #7d6bc4)"),
)
SHAPES = (
    *("diamond", "circle", "square", "triangle-up"),
    *("triangle-down", "cross", "triangle-left", "triangle-right"),
)
WIDTH = 620  # pixels of a chart outside a page; in a page it is as wide as its column
_FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, sans-serif'
_CONFIG: Spec = {
    "background": None,
    "font": _FONT,
    "view": {"stroke": None, "continuousWidth": WIDTH},
    "axis": {
        **{"labelColor": SOFT, "titleColor": SOFT, "gridColor": LINE, "domainColor": LINE},
        **{"tickColor": LINE, "labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal"},
        "labelLimit": 150,
    },
    "axisQuantitative": {"tickCount": 6, "labelOverlap": True, "labelSeparation": 8},
    "legend": {
        **{"labelColor": INK, "labelFontSize": 12, "labelLimit": 110, "orient": "top", "title": None},
        **{"titleColor": SOFT, "titleFontWeight": "normal", "titleFontSize": 12, "gradientLength": 120},
        # By the page's column, not by `width`, which shrinks after the legend's rows are laid out.
        "columns": {"expr": f"max(1, floor((containerSize()[0] || {WIDTH}) / 150))"},
    },
    "text": {"color": INK},
}
PAGE_SCRIPT = Path(__file__).parent / "templates" / "page.js"
_VARIABLE = re.compile(r"var\(--\w+, (#\w+)\)")


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart to draw.

    Attributes:
        heading: its title.
        description: what is drawn, in a sentence, for those who do not see it.
        spec: Vega-Lite, without a width, that contains its data.
    """

    heading: str
    description: str
    spec: Spec


@dataclass(frozen=True, kw_only=True)
class DrawnChart:
    """A chart in both forms.

    Attributes:
        heading, description: as in Chart.
        svg: for a page, with CSS variables as colours.
        vega: the interactive form, for `vega.parse`.
    """

    heading: str
    description: str
    svg: str
    vega: Spec

    @property
    def file(self) -> str:
        """The SVG as a file of its own, with the colours of the light scheme."""
        return _VARIABLE.sub(r"\1", self.svg)

    @property
    def file_name(self) -> str:
        return f"{re.sub(r'[^a-z0-9]+', '_', self.heading.lower()).strip('_')}.svg"


def draw(chart: Chart) -> DrawnChart:
    """Draw a chart; the same chart gives the same bytes."""
    spec = {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "description": chart.description,
        "width": "container",
        "autosize": {"type": "fit-x", "contains": "padding"},
        "config": _CONFIG,
        **chart.spec,
    }
    vega = vl_convert.vegalite_to_vega(spec)
    # Each SVG numbers its clip paths from 0, but a page has several.
    slug = hashlib.sha256(json.dumps(vega, sort_keys=True).encode()).hexdigest()[:8]
    svg = re.sub(r'(\bid="|url\(#)', rf"\g<1>{slug}-", vl_convert.vega_to_svg(vega))
    return DrawnChart(heading=chart.heading, description=chart.description, svg=svg, vega=vega)


@functools.cache
def script() -> str:
    """Return Vega together with `templates/page.js`, as one JavaScript module without imports."""
    source = f"https://cdn.jsdelivr.net/npm/vega@{vl_convert.get_vega_version()}/+esm.js"  # in vl-convert
    imports = f'import {{ View, parse }} from "{source}";\n'
    bundle: str = vl_convert.javascript_bundle(imports + PAGE_SCRIPT.read_text(encoding="utf-8"))
    return bundle.replace("</script", "<\\/script")


def colour_by(field: str, names: Sequence[str], **more: Any) -> Spec:
    """Return a colour channel that gives each name its colour, the first ink; `more` is added to it."""
    colours = [COLOURS[number % len(COLOURS)] for number in range(len(names))]
    return {"field": field, "type": "nominal", "scale": {"domain": [*names], "range": colours}, **more}


def shape_by(field: str, names: Sequence[str]) -> Spec:
    """Return a shape channel, so that names are told apart without colours."""
    shapes = [SHAPES[number % len(SHAPES)] for number in range(len(names))]
    return {"field": field, "type": "nominal", "scale": {"domain": [*names], "range": shapes}}


def tooltip(*fields: tuple[str, str]) -> list[Spec]:
    """Return a tooltip channel of (field, heading) that shows the fields as they are."""
    return [{"field": field, "type": "nominal", "title": heading} for field, heading in fields]


def legend_toggle(field: str) -> Spec:
    """Return a parameter `chosen`: clicks in the legend choose and drop entries of a field.

    It belongs to the first layer with a colour, from which Vega-Lite takes the legend of all layers.
    """
    select = {"type": "point", "fields": [field], "toggle": "true"}
    return {"name": "chosen", "select": select, "bind": "legend"}


CHOSEN: Spec = {"condition": {"param": "chosen", "value": 1}, "value": 0.1}
"""Opacity of marks by `legend_toggle`."""


def zoom(*channels: str) -> Spec:
    """Return a parameter that zooms and moves the axes of the given channels; a double click resets.

    Only a mouse drags, and only Shift + wheel zooms: fingers and a plain wheel scroll the page.
    """
    drag = "[pointerdown[event.pointerType === 'mouse'], window:pointerup] > window:pointermove!"
    select = {
        "type": "interval",
        "encodings": [*channels],
        "translate": drag,
        "zoom": "wheel![event.shiftKey]",
    }
    return {"name": "zoom", "select": select, "bind": "scales"}
