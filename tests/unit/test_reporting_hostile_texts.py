"""Captions from anywhere stay text in a page and on a terminal."""

from __future__ import annotations

import re
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path

from degla_ray.reporting.examples import captions_shown
from degla_ray.reporting.generation import KindReport, Report
from degla_ray.reporting.generation_page import Sample, generation_page
from degla_ray.schema import CAPTIONS
from degla_ray.storage import Storage

HOSTILE = "</td><script>x()</script> <img src=x onerror=x()> \"a\" 'b' & | `c`\n\x1b[2Jerror: \u202egone"


class Cells(HTMLParser):
    """The tags of a page, and the texts of its table cells."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_generation_page_captions_and_names_are_shown_as_they_are_and_run_nothing() -> None:
    kind = KindReport(
        captions=dict.fromkeys(("ok", "rejected", "error", "not_applicable"), 1),
        negatives=1,
        answers=dict.fromkeys(("ok", "rejected", "error", "not_applicable"), 1),
        reasons={"markup": 1},
        prompt_tokens=1,
        completion_tokens=1,
        cached_tokens=0,
        words={3: 1},
        text_only_accuracy=None,
    )
    report = Report(
        engine="openai",
        model=HOSTILE,
        captions=1,
        seconds=1.0,
        timed_answers=1,
        timed_accepted=1,
        gpu_hours=0.0,
        cost=0.0,
        caption_words={3: 1},
        kinds={"swap_nouns": kind},
    )
    sample = Sample(caption=HOSTILE, negative=HOSTILE, image=None)
    content = asdict(report) | {"totals": report.metrics()}
    page = Cells(generation_page(content, {"swap_nouns": [sample]}))
    assert "img" not in page.tags
    assert page.tags.count("script") == 2  # our own: the charts' data, and the program
    assert [text.strip() for text in page.texts].count(HOSTILE) == 2


def test_captions_shown_on_a_terminal_are_one_line_without_control_characters(tmp_path: Path) -> None:
    row = {"sample_id": "1", "image_id": "i\x1b]0;t\x07", "caption": HOSTILE, "split": "train"}
    storage = Storage(str(tmp_path))
    storage.write_table(CAPTIONS.empty_table().from_pylist([row], CAPTIONS), "captions", "part.parquet")
    (line,) = captions_shown(str(tmp_path))
    assert line.isprintable()
    assert re.search(r"\\n\\x1b\[2Jerror: \\u202egone$", line)
