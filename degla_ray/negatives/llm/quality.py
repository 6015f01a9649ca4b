"""The quality checks: a language model's answer becomes a negative, or a reject with the failed check's name.

The form is checked first (answers.py), then everything that is checked of the rule engine's candidates
(checks.py), and finally whether the edit is the requested one. This file does not import Ray. An answer takes
2 ms, most of it in the tagger.
"""

from __future__ import annotations

import random
from typing import Any

from degla_ray.language.tagging import Sentence, Tag
from degla_ray.negatives.checks import Candidate, Language, first_failure, statements
from degla_ray.negatives.llm.answers import Unusable, read_answer
from degla_ray.negatives.llm.ledger import Row, State
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


class Gate:
    """Quality checks of answers.

    Args:
        engine, model: names of the engine and model that wrote the answers.
        fill: the dataset's vocabulary; with it, the rule engine writes the negative when the last attempt
            fails. None: no negative is written then.
    """

    def __init__(self, engine: str, model: str, fill: frozenset[str] | None = None) -> None:
        self._rules = RuleEngine(fill)
        self._language: Language = self._rules.language
        self._written_by = {"engine": engine, "model": model}
        self._fills = fill is not None

    def applicable(self, caption: str, kind: Kind) -> bool:
        """Return whether the caption has enough words of the class that the kind swaps, replaces or moves."""
        tag, number = _NEEDS[kind]
        return sum(token.tag is tag for token in self._rules.read(caption).tokens) >= number

    def judge(self, answer: dict[str, Any]) -> list[Row]:
        """Return the ledger's rows for one answer: one row, or two if the rules filled in."""
        caption, kind = str(answer["caption"]), Kind(str(answer["kind"]))
        row = {name: answer[name] for name in ATTEMPTS.names if name in answer}
        row |= self._written_by | {"reason": "", "detail": ""}
        if not answer["applicable"]:
            return [row | {"state": State.NOT_APPLICABLE.value, "text": ""}]
        if answer["error"]:
            found = _failed(answer)
        else:
            found = self._verdict(caption, kind, str(answer["text"]), str(answer["finish_reason"]))
        rows = [row | found]
        if self._fills and answer["last"] and found["state"] != State.OK:
            rows += self._filled(row, caption, kind, int(answer["seed"]))
        return rows

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
        nothing = {"prompt_tokens": 0, "completion_tokens": 0, "cached_tokens": 0, "seconds": 0.0}
        return [row | written_by | nothing | {"state": State.OK.value, "text": text} for text in accepted]


def _failed(answer: dict[str, Any]) -> dict[str, str]:
    detail = f"{HTTP}{answer['status']}" if answer["status"] else ""
    said = {"reason": str(answer["error"]), "detail": detail, "text": str(answer["text"])}
    return {"state": State.ERROR.value, **said}


def _rejected(text: str, reason: RejectReason, detail: str) -> dict[str, str]:
    return {"state": State.REJECTED.value, "text": text, "reason": reason.value, "detail": detail}


def seed_of(run_seed: int, key: str, kind: str, attempt: int) -> int:
    """Return a request's 31-bit seed, which depends on the run's seed and the request, not on the order."""
    return random.Random(f"{run_seed} {key} {kind} {attempt}").getrandbits(31)
