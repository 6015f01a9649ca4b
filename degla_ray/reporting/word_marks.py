"""Words in which two texts differ, so that a reader of a page need not search for them."""

from __future__ import annotations

import re
from difflib import SequenceMatcher

ALIKE = 0.5  # share of common words below which nothing is marked, because nearly everything differs


def marked(text: str, other: str) -> list[tuple[str, bool]]:
    """Return the text in runs, each with whether `other` lacks it there.

    Words are compared without case and punctuation. The runs joined are the text itself.
    """
    parts = re.split(r"(\s+)", text)  # words at even places, the space after each behind it
    words, others = ([_bare(word) for word in re.split(r"\s+", of)] for of in (text, other))
    matcher = SequenceMatcher(None, words, others, autojunk=False)
    if matcher.ratio() < ALIKE:
        return [(text, False)]
    differs = [True] * len(words)
    for block in matcher.get_matching_blocks():
        differs[block.a : block.a + block.size] = [False] * block.size
    runs: list[tuple[str, bool]] = []
    for place, part in enumerate(parts):
        # the space between two marked words is marked with them
        marks = differs[place // 2] and (place % 2 == 0 or differs[place // 2 + 1])
        if runs and runs[-1][1] == marks:
            runs[-1] = (runs[-1][0] + part, marks)
        else:
            runs.append((part, marks))
    return [(run, marks and bool(run)) for run, marks in runs]


def _bare(word: str) -> str:
    return word.strip(".,;:!?\"'()").casefold()
