"""The pages as files: what each must contain whatever shows it. test_reporting_browser.py looks at them."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path

import pytest
from report_pages import LABELS, comparison_report, generation_report, sweep_report
from test_evaluation_compare import Page

MOST_BYTES = 1_500_000
MADE = {"comparison": comparison_report, "generation": generation_report, "sweep": sweep_report}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in MADE.items()}


@pytest.mark.parametrize("name", MADE)
def test_page_loads_nothing_and_runs_its_own_script_only(name: str, pages: dict[str, Path]) -> None:
    source = pages[name].read_text()
    assert len(source) < MOST_BYTES
    page = Page(source)
    assert all(str(reference).startswith("data:image/") for reference in page.references)
    policy = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', source)
    scripts = re.findall(r'<script type="module">(.*?)</script>', source, re.DOTALL)
    assert len(policy) == len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert "default-src &#39;none&#39;" in policy[0]
    assert f"&#39;sha256-{digest}&#39;".replace("+", "&#43;") in policy[0].replace("+", "&#43;")


@pytest.mark.parametrize("name", MADE)
def test_page_charts_are_drawn_and_their_hover_values_are_data(name: str, pages: dict[str, Path]) -> None:
    source = pages[name].read_text()
    (data,) = re.findall(r'<script type="application/json" id="charts">(.*?)</script>', source, re.DOTALL)
    specs = json.loads(data)
    stills = re.findall(r'<div class="chart"[^>]*>(<svg.*?</svg>)</div>', source, re.DOTALL)
    assert len(specs) == len(stills) > 2
    assert all(spec["description"] and '"tooltip"' in json.dumps(spec) for spec in specs)
    assert all("<path" in still and "<text" in still for still in stills)
    ids = [found for still in stills for found in re.findall(r'\bid="([^"]+)"', still)]
    assert len(ids) == len(set(ids)), "a clip path of another chart would cut this one"


def test_comparison_page_has_a_column_for_each_model_and_exact_p_in_its_text(pages: dict[str, Path]) -> None:
    page = Page(pages["comparison"].read_text())
    assert all(page.text.count(label) > 5 for label in LABELS)
    assert re.search(r"p = 0\.\d+", page.text)
    for heading in ("Settings that differ", "Settings that are equal", "samples/s at the end", "chance"):
        assert heading in page.text
    assert "mark" in page.tags


def test_comparison_page_opens_the_pair_that_matters_only(pages: dict[str, Path]) -> None:
    source = pages["comparison"].read_text()
    opened = re.findall(r"<details open><summary>([^<]*)", source)
    assert [summary.partition(":")[0] for summary in opened] == ["base against tuned"]
    closed = re.findall(r"<details><summary[^>]*>([^<]*)", source)
    assert any("plain" in summary for summary in closed)


def test_comparison_page_shows_the_wrong_choice_of_each_form(pages: dict[str, Path]) -> None:
    content = json.loads((pages["comparison"].parent / "comparison.json").read_text())
    items = [item for model in content for item in model["disagreements"]]
    subsets = {item["subset"]: item for item in items}
    assert {"top1", "i2t_r1", "t2i_r1", "swap_obj"} <= set(subsets)
    assert re.fullmatch(r"class \d of zeroshot_dtd", subsets["top1"]["candidates"][1])
    assert re.fullmatch(r"caption \d+ \d", subsets["i2t_r1"]["candidates"][1])
    shown = subsets["t2i_r1"]["candidate_images"]
    assert all(key.startswith("coco_val2017:") for key in shown)
    assert shown[0] != shown[1]
    source = pages["comparison"].read_text()
    assert source.count("✗ chosen by ") == len(items)
    assert source.count("✓ true") >= len(items)


def test_generation_page_of_rules_warns_of_the_kind_that_is_told_blind(pages: dict[str, Path]) -> None:
    page = Page(pages["generation"].read_text())
    text = " ".join(page.text.split())
    assert "Negatives by rules" in text
    assert "replace_nouns: a classifier that sees no image is right in 87 %" in text
    assert "swap_nouns: a classifier" not in text
    assert "cost" not in text
    assert page.tags.count("img") == 6
