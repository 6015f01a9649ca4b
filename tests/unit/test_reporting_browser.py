"""The pages in headless Chromium: both colour schemes, a desk and a phone, without scripts, on paper.

Screenshots stay in the test's folder (`--basetemp DIR` names it). test_reporting_pages.py holds what can be
told without a browser.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report_pages import LABELS, comparison_report, generation_report, sweep_report

playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH (apt-get install chromium)"),
]
# Without its services, Chromium asks nobody for anything.
OPTIONS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
WIDTHS = {"desk": 1440, "phone": 390}
A4 = 703  # CSS pixels between margins of 12 mm
MADE = {"comparison": comparison_report, "generation": generation_report, "sweep": sweep_report}
CLIPPED = """() => [...document.querySelectorAll(".chart svg")].flatMap(svg => {
  const outside = (inner, outer) => inner.left < outer.left - 2 || inner.right > outer.right + 2
    || inner.top < outer.top - 2 || inner.bottom > outer.bottom + 2;
  const own = svg.getBoundingClientRect(), column = svg.closest("figure").getBoundingClientRect();
  const texts = [...svg.querySelectorAll("text")].filter(t => outside(t.getBoundingClientRect(), own));
  return [...(outside(own, column) ? ["chart"] : []), ...texts.map(t => t.textContent)];
})"""
LEAST_CONTRAST = 4.5  # WCAG AA
CONTRAST = """() => {
  const channel = v => { v /= 255; return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; };
  const parts = c => c.match(/[\\d.]+/g).map(Number);
  const light = c => { const [r, g, b] = parts(c).map(channel); return .2126 * r + .7152 * g + .0722 * b; };
  const behind = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
    if (parts(c)[3] !== 0) return c; } };
  return [...document.querySelectorAll("p, th, td, h2, summary, small, span, mark, .chart text")].filter(
    e => e.checkVisibility() && e.textContent.trim()).map(e => {
      const style = getComputedStyle(e), colour = e instanceof SVGElement ? style.fill : style.color;
      const [a, b] = [light(colour), light(behind(e.parentElement))].sort((x, y) => y - x);
      return [(a + .05) / (b + .05), e.textContent.trim().slice(0, 40)];
    }).sort((x, y) => x[0] - y[0])[0]; }"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in MADE.items()}


def opened(browser: Any, page: Path, **context: Any) -> tuple[Any, list[str]]:
    """The page, and whatever it complained of or asked for."""
    shown = browser.new_context(**context).new_page()
    complaints: list[str] = []
    shown.on("console", lambda message: complaints.append(message.text))
    shown.on("pageerror", lambda error: complaints.append(str(error)))
    shown.on("request", lambda r: None if r.url.startswith(("file:", "data:")) else complaints.append(r.url))
    shown.goto(page.as_uri())
    if context.get("java_script_enabled", True) and shown.locator(".chart").count():
        shown.wait_for_function("document.querySelectorAll('.chart:not([data-live])').length === 0")
    return shown, complaints


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("device", WIDTHS)
@pytest.mark.parametrize("name", MADE)
def test_page_fits_is_legible_and_keeps_to_itself(
    name: str, device: str, scheme: str, browser: Any, pages: dict[str, Path]
) -> None:
    size = {"width": WIDTHS[device], "height": 900}
    page, complaints = opened(browser, pages[name], viewport=size, color_scheme=scheme)
    page.screenshot(path=pages[name].with_name(f"{device}-{scheme}.png"), full_page=True)
    assert complaints == []
    wide = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert wide[0] <= wide[1]
    clipped = page.evaluate(CLIPPED)
    assert clipped == []
    least, text = page.evaluate(CONTRAST)
    assert least >= LEAST_CONTRAST, text
    images = page.evaluate(
        "[...document.querySelectorAll('.item img, .sample img')].filter(e => e.checkVisibility())"
        ".map(e => e.getBoundingClientRect().width)"
    )
    assert all(width >= 160 for width in images)
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (dark == "rgb(255, 255, 255)") == (scheme == "light")
    page.context.close()


@pytest.mark.parametrize("name", MADE)
def test_page_values_show_on_hover_and_the_legend_singles_out(
    name: str, browser: Any, pages: dict[str, Path]
) -> None:
    page, _ = opened(browser, pages[name], viewport={"width": 1440, "height": 900})
    chart = page.locator(".chart").nth(0)
    marks = chart.locator("g.mark-symbol.role-mark path, g.mark-rect.role-mark path")
    assert marks.count() >= 3
    marks.last.hover(force=True)
    tip = page.locator(".tip")
    tip.wait_for(state="visible")
    assert re.search(r"\d", tip.inner_text())
    assert any(word in tip.inner_text() for word in (*LABELS, "swap_nouns", "replace_nouns", "trial"))
    before = marks.last.get_attribute("opacity")
    chart.locator("g.role-legend-symbol path").first.click(force=True)
    page.wait_for_timeout(200)
    assert marks.last.get_attribute("opacity") != before
    page.context.close()


@pytest.mark.parametrize("name", MADE)
def test_page_without_scripts_shows_every_chart_and_table(
    name: str, browser: Any, pages: dict[str, Path]
) -> None:
    page, _ = opened(browser, pages[name], java_script_enabled=False, viewport={"width": 1000, "height": 900})
    page.screenshot(path=pages[name].with_name("no-scripts.png"), full_page=True)
    assert page.locator(".chart").count() == page.locator(".chart svg").count() > 2
    for drawn in page.locator(".chart svg").all():
        assert drawn.bounding_box()["height"] > 50
    page.context.close()


def test_page_first_column_stays_while_a_table_scrolls_on_a_phone(
    browser: Any, pages: dict[str, Path]
) -> None:
    page, _ = opened(browser, pages["comparison"], viewport={"width": 390, "height": 900})
    table = page.locator("#group-1 + .scroll")
    table.evaluate("e => e.scrollLeft = 400")
    assert table.evaluate("e => e.scrollLeft") > 50
    first, box = table.locator("tbody th").first.bounding_box(), table.bounding_box()
    assert first["x"] == pytest.approx(box["x"], abs=1)
    assert first["width"] < 0.55 * box["width"]
    page.context.close()


@pytest.mark.parametrize("name", MADE)
def test_page_on_paper_clips_nothing_and_has_everything_opened(
    name: str, browser: Any, pages: dict[str, Path]
) -> None:
    page, _ = opened(browser, pages[name], viewport={"width": A4, "height": 1000}, color_scheme="dark")
    page.emulate_media(media="print")
    page.screenshot(path=pages[name].with_name("print.png"), full_page=True)
    clipped = page.evaluate(
        "[...document.querySelectorAll('table, svg')].filter(e => e.checkVisibility() &&"
        " e.getBoundingClientRect().right > document.documentElement.clientWidth + 1)"
        ".map(e => e.textContent.slice(0, 80))"
    )
    assert clipped == []
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    for closed in page.locator("details:not([open]) td").all()[:1]:
        assert closed.evaluate("e => e.checkVisibility({contentVisibilityAuto: true})")
        assert closed.bounding_box()["height"] > 0
    pdf = page.pdf(path=pages[name].with_name("print.pdf"), prefer_css_page_size=True)
    assert pdf.startswith(b"%PDF")
    page.context.close()


@pytest.mark.parametrize("name", MADE)
def test_page_parts_have_names_and_take_the_keyboard(name: str, browser: Any, pages: dict[str, Path]) -> None:
    page, _ = opened(browser, pages[name], viewport={"width": 390, "height": 900})
    named = page.evaluate(
        "[...document.querySelectorAll('[aria-labelledby]')].map(e => e.getAttribute('aria-labelledby')"
        ".split(' ').every(id => document.getElementById(id)?.textContent.trim()))"
    )
    assert len(named) > 5
    assert all(named)
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    assert page.locator("th:not([scope])").count() == 0
    assert page.locator("img:not([alt])").count() == 0
    page.keyboard.press("Tab")
    focused = page.evaluate("document.activeElement.className")
    assert "scroll" in focused
    page.evaluate(
        "[...document.querySelectorAll('.scroll')].find(e => e.scrollWidth > e.clientWidth).focus()"
    )
    page.keyboard.press("ArrowRight")
    page.wait_for_function("document.activeElement.scrollLeft > 0", timeout=5000)
    page.context.close()


def test_page_hostile_captions_run_nothing(tmp_path: Path, browser: Any, pages: dict[str, Path]) -> None:
    source = pages["comparison"].read_text()
    assert "<script>x</script>" not in source  # escaped …
    inserted = tmp_path / "inserted.html"  # … and were it not, the page's policy would forbid it
    hostile = "<script>window.ran = 1</script><img src=x onerror='window.ran = 1'>"
    inserted.write_text(source.replace("<h1>", f"<h1>{hostile}", 1))
    page, complaints = opened(browser, inserted)
    assert page.evaluate("window.ran") is None
    assert any("Content Security Policy" in complaint for complaint in complaints)
    page.context.close()
