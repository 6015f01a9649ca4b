"""Quality checks: a model's answer becomes a negative, or a reject with the name of the failed check.

`read_answer` checks the form. Small models add labels and quotes, which are removed; they also omit the final
full stop, which is restored if the caption has one: otherwise the ending alone would distinguish negatives
from captions. Then follow all checks of the rule engine's candidates (checks.py), and whether the edit is the
requested one. This file does not import Ray. An answer takes 2 ms, most of it in the tagger.
"""

from __future__ import annotations

import contextlib
import json
import re
import unicodedata
from typing import Any, NamedTuple

from degla_ray.language.tagging import Sentence, Tag
from degla_ray.masking import masked
from degla_ray.negatives.checks import Candidate, Language, first_failure, statements
from degla_ray.negatives.llm.engines.vllm_actor import after_thought
from degla_ray.negatives.llm.ledger import Row, State
from degla_ray.negatives.llm.slots import Slot, Slots
from degla_ray.negatives.plausibility import CaptionModels
from degla_ray.negatives.rules import RuleEngine
from degla_ray.negatives.selection import EditRequest, no_veto, select
from degla_ray.schema import ATTEMPTS, Kind, RejectReason

HTTP = "HTTP "
"""Prefix of a reject's detail when the server returned an error status."""

_NEEDS: dict[Kind, tuple[Tag, int]] = {
    Kind.SWAP_NOUNS: (Tag.NOUN, 2),
    Kind.SWAP_ADJECTIVES: (Tag.ADJ, 2),
    Kind.REPLACE_NOUNS: (Tag.NOUN, 1),
    Kind.REPLACE_ADJECTIVES: (Tag.ADJ, 1),
    Kind.RESHUFFLE: (Tag.NOUN, 2),
}
"""Word class and number of such words that a caption needs for a kind to be applicable."""

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
_STRING = re.compile(r'("(?:[^"\\]|\\.)*")(\s*:)?', re.S)
_QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "«": "»"}
_END = ".!?"

_NO_COST = {"prompt_tokens": 0, "completion_tokens": 0, "cached_tokens": 0, "seconds": 0.0}

MORE_WORDS = 4
"""An answer may have 1.5 times the caption's words plus this number."""


class QualityChecks:
    """Quality checks of answers.

    Args:
        engine, model: names of the engine and model that wrote the answers.
        words: the dataset's vocabulary, from which the rule engine and slots take words; None allows all.
        fills: whether the rule engine writes the negative if the last attempt fails.
        slots: whether requests are slots to fill (`generation.prompting: slots`).
        models: n-gram models by which the options of slots are limited; None does without.
    """

    def __init__(
        self,
        engine: str,
        model: str,
        *,
        words: frozenset[str] | None = None,
        fills: bool = False,
        slots: bool = False,
        models: CaptionModels | None = None,
    ) -> None:
        self._rules = RuleEngine(words, models)
        self._words, self._fills = words, fills
        self._slots = Slots(self._rules) if slots else None
        self._language: Language = self._rules.language
        self._written_by = {"engine": engine, "model": model}

    def applicable(self, caption: str, kind: Kind) -> bool:
        """Return whether the caption has enough words of the class that the kind swaps, replaces or moves."""
        tag, number = _NEEDS[kind]
        return sum(token.tag is tag for token in self._rules.read(caption).tokens) >= number

    def question(self, caption: str, kind: Kind, seed: int, fold: int = 0) -> dict[str, Any]:
        """Return the columns that say what to ask an engine: whether anything, and the slot to fill or ""."""
        if self._slots is None:
            return {"applicable": self.applicable(caption, kind), "slot": ""}
        slot = self._slots.slot(caption, kind, seed, fold)
        return {"applicable": slot is not None, "slot": "" if slot is None else slot.to_json()}

    def judge(self, answer: dict[str, Any]) -> list[Row]:
        """Return the ledger's rows for one answer: one row, or more if the rules filled in or a slot has
        several fillings that pass."""
        caption, kind = str(answer["caption"]), Kind(str(answer["kind"]))
        row = {name: answer[name] for name in ATTEMPTS.names if name in answer}
        row |= self._written_by | {"reason": "", "detail": ""}
        if not answer["applicable"]:
            return [row | {"state": State.NOT_APPLICABLE.value, "text": ""}]
        if answer["error"]:
            found = [_failed(answer)]
        elif answer["slot"]:
            found = self._fillings(caption, kind, answer)
        else:
            found = [self._verdict(caption, kind, str(answer["text"]), str(answer["finish_reason"]))]
        rows = [row | found[0], *(row | _NO_COST | more for more in found[1:])]
        if self._fills and answer["last"] and found[0]["state"] != State.OK:
            rows += self._filled(row, caption, kind, int(answer["seed"]))
        return rows

    def _fillings(self, caption: str, kind: Kind, answer: dict[str, Any]) -> list[dict[str, str]]:
        """Return the first `wanted` fillings of a slot that pass, or the reject of the first alternative."""
        slot, text = Slot.from_json(str(answer["slot"])), str(answer["text"])
        found = alternatives(text)
        if not found:
            read = read_answer(text, caption, cut_off=answer["finish_reason"] == "length")
            reason = read.reason if isinstance(read, Unusable) else RejectReason.NO_TEXT
            return [_rejected(text, reason, "the answer's form")]
        verdicts = [self._filling(caption, kind, slot, alternative) for alternative in found]
        passed = [verdict for verdict in verdicts if verdict["state"] == State.OK]
        return passed[: int(answer["wanted"])] or verdicts[:1]

    def _filling(self, caption: str, kind: Kind, slot: Slot, alternative: str) -> dict[str, str]:
        if alternative in slot.options:  # which passed the checks before it was offered
            return {"state": State.OK.value, "text": slot.filled(alternative)}
        if slot.options:
            return _rejected(alternative, RejectReason.WRONG_KIND, "none of the slot's options")
        text = slot.filled(alternative)
        known = self._words is None or self._words.issuperset(alternative.lower().split(" "))
        before, after = (self._rules.read(each).tokens for each in (caption, text))
        fits = [(t.number, t.sure) for t in before] == [(t.number, t.sure) for t in after]
        if not (known and fits):
            return _rejected(
                text, RejectReason.WRONG_KIND, "a word of another number, or that no caption has"
            )
        return self._verdict(caption, kind, text, "stop")

    def _verdict(self, caption: str, kind: Kind, answer: str, finish_reason: str) -> dict[str, str]:
        text = read_answer(answer, caption, cut_off=finish_reason == "length")
        if isinstance(text, Unusable):
            return _rejected(answer, text.reason, text.detail)
        before, after = self._rules.read(caption), self._rules.read(text)
        candidate = Candidate(
            caption=before,
            negative=after,
            accepted=frozenset(),
            kind=kind,
            scrambled=kind is Kind.RESHUFFLE and not self._same_frame(before, after),
        )
        if failure := first_failure(candidate, self._language):
            return _rejected(text, failure[1], f"check {failure[0]}")
        return {"state": State.OK.value, "text": text}

    def _same_frame(self, before: Sentence, after: Sentence) -> bool:
        """Return whether both sentences have the same relations in the same order, and so are comparable.

        Otherwise relations cannot be inferred from word order ("over the lazy dog jumps the fox"), and the
        answer is checked as a scrambled sentence.
        """
        frames = [[(s.relation, s.inner) for s in statements(x, self._language)] for x in (before, after)]
        return frames[0] == frames[1]

    def _filled(self, row: Row, caption: str, kind: Kind, seed: int) -> list[Row]:
        request = EditRequest(caption=caption, limit=1, seed=str(seed))
        accepted = select(self._rules, [request], [kind], [no_veto])[0].accepted[kind]
        written_by = {"engine": self._rules.name, "model": self._rules.model}
        return [row | written_by | _NO_COST | {"state": State.OK.value, "text": text} for text in accepted]


def _failed(answer: dict[str, Any]) -> dict[str, str]:
    detail = f"{HTTP}{answer['status']}" if answer["status"] else ""
    said = {"reason": str(answer["error"]), "detail": detail, "text": masked(str(answer["text"]))}
    return {"state": State.ERROR.value, **said}


def _rejected(text: str, reason: RejectReason, detail: str) -> dict[str, str]:
    # JSON can write half of a character, which no file can hold.
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return {"state": State.REJECTED.value, "text": text, "reason": reason.value, "detail": detail}


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


def alternatives(answer: str) -> list[str]:
    """Return the distinct complete strings of the JSON in an answer, in order, without an object's keys."""
    texts = []
    for string, key in _STRING.findall(after_thought(answer) or ""):
        with contextlib.suppress(json.JSONDecodeError):  # an escape that JSON does not know
            texts += [] if key else [json.loads(string, strict=False)]
    return list(dict.fromkeys(text for text in texts if text.strip()))


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
