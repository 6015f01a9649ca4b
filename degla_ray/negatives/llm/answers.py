"""Parse a language model's answer into a caption, or the reason why it is unusable. No Ray, no model.

Only the form is checked here; checks.py decides whether the negative is false of the image. Small models add
labels and quotes, which are removed. They also omit the final full stop, which is restored if the caption has
one: otherwise the ending alone would distinguish negatives from captions.
"""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

from degla_ray.negatives.llm.vllm_actor import after_thought
from degla_ray.schema import RejectReason

_LABEL = re.compile(r"^(?:rewritten|rewrite|negative|caption|answer|output|new caption|result)\s*:\s*", re.I)
_MARKUP = re.compile(r"[*#`<>{}\[\]|\\_~^=]|https?:|&\w+;|\s-\s-|^\s*(?:-|\d+[.)])\s")
_COMMENTARY = re.compile(
    r"^(?:i|i'm|i’m|sorry|sure|certainly|of course|okay|here is|here's|here are|note|as an|unfortunately"
    r"|please|this (?:caption|sentence)|the (?:caption|sentence|rewritten|original|answer))\b"
    r"|\b(?:caption|rewrit\w*|rephras\w*|language model|reworded|original sentence|cannot (?:help|assist))\b"
    r"|\((?:note|original|swapped|replaced|changed)|:$",
    re.I,
)
_NEXT_SENTENCE = re.compile(r"[.!?][\"'”’)]*\s+\w")
_WORD = re.compile(r"[^\W_]+", re.UNICODE)
_QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "«": "»"}
_END = ".!?"

MORE_WORDS = 4
"""An answer may have 1.5 times the caption's words plus this number."""


class Unusable(NamedTuple):
    """Reason why an answer is not usable as a caption."""

    reason: RejectReason
    detail: str


def read_answer(answer: str, caption: str, *, cut_off: bool) -> str | Unusable:
    """Return the caption in an answer, or the reason why it is unusable.

    Args:
        answer: the model's text; the first line after any reasoning is the caption.
        caption: the caption that the model was asked to rewrite.
        cut_off: whether the answer reached its token limit, so that its last line is incomplete.
    """
    said = after_thought(answer)
    if said is None:
        return Unusable(RejectReason.REASONING_ONLY, "a thought and no answer")
    lines = [line for line in said.splitlines() if line.strip()]
    if not lines:
        return Unusable(RejectReason.NO_TEXT, "no text")
    if cut_off and len(lines) == 1:
        return Unusable(RejectReason.CUT_OFF, "the answer reached its token limit")
    text = _with_the_captions_apostrophe(" ".join(_bare(lines[0]).split()), caption)
    for reason, found in (
        (RejectReason.NO_TEXT, not _WORD.search(text)),
        (RejectReason.NON_PRINTABLE, not text.isprintable() or "�" in text),
        (RejectReason.MARKUP, _MARKUP.search(text) and not _MARKUP.search(caption)),
        (RejectReason.COMMENTARY, _COMMENTARY.search(text) and not _COMMENTARY.search(caption)),
        (RejectReason.COMMENTARY, text.endswith("?") and not caption.endswith("?")),
        (RejectReason.SEVERAL_SENTENCES, _sentences(text) > _sentences(caption)),
        (RejectReason.WRONG_LANGUAGE, any(_is_foreign(c) for c in text if c not in caption)),
        (RejectReason.GIVE_AWAY, any(_is_mark(c) for c in text if c not in caption)),
        (RejectReason.GIVE_AWAY, _new_capitals(text, caption) > _new_capitals(caption, text)),
        (RejectReason.TOO_LONG, _words(text) > 1.5 * _words(caption) + MORE_WORDS),
    ):
        if found:
            return Unusable(reason, "the answer's form")
    return _ended_like(text, caption)


def _bare(line: str) -> str:
    """Return the line without its label and the quotes that enclose it."""
    text = _LABEL.sub("", line.strip()).strip()
    if len(text) > 2 and _QUOTES.get(text[0]) == text[-1]:
        text = text[1:-1].strip()
    return text


def _sentences(text: str) -> int:
    return 1 + len(_NEXT_SENTENCE.findall(text))


def _words(text: str) -> int:
    return len(_WORD.findall(text))


def _is_foreign(letter: str) -> bool:
    """Return whether a letter is not Latin (é and the like are)."""
    return letter.isalpha() and not unicodedata.name(letter, "").startswith("LATIN")


def _is_mark(character: str) -> bool:
    """Return whether a character is foreign to a plain sentence: emoji, dash, bracket, symbol, ligature."""
    plain = character.isalpha() or character in "0123456789 ,.!?'-"
    return not plain or unicodedata.normalize("NFKC", character) != character


def _new_capitals(text: str, other: str) -> int:
    """Return the number of capitalised words after the first that the other text does not contain as such."""
    known = set(_WORD.findall(other))
    return sum(word != word.lower() and word not in known for word in _WORD.findall(text)[1:])


def _with_the_captions_apostrophe(text: str, caption: str) -> str:
    return text if "’" in caption else text.replace("’", "'")


def _ended_like(text: str, caption: str) -> str:
    """Return the text with the caption's final punctuation mark and the case of its first letter."""
    mark = caption[-1] if caption[-1] in _END else ""
    text = text.rstrip(_END + " ,;") + mark
    if caption[0].islower() and text[:2].istitle():
        return text[0].lower() + text[1:]
    return text[0].upper() + text[1:] if caption[0].isupper() else text
