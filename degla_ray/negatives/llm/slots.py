"""Slots: a language model fills one part of a caption, and decoding is guided to what may stand there.

The rule engine's candidates that pass the checks, cut to the part in which they differ from the caption, are
the options of a question: words for a replacement, rewritten clauses for an exchange. The model's likelihood
selects among them, and the edit is grammatical whatever the model. Where the word lists know no replacement,
any word may be answered and the whole caption is checked. A question takes 1 ms. Does not import Ray.
"""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from degla_ray.language.edits import substituted
from degla_ray.language.lexicon import article
from degla_ray.language.phrases import noun_phrases
from degla_ray.language.tagging import Sentence
from degla_ray.negatives.checks import Candidate, first_failure, normal_form
from degla_ray.negatives.rules import RuleEngine
from degla_ray.negatives.selection import EditRequest
from degla_ray.schema import Kind

SLOTS_VERSION = 1
"""Part of a negatives folder's identity; raise it whenever the questions change."""

ALTERNATIVES = 3
"""Answers wanted for a question: the next one counts where one is a duplicate or fails a check."""

WORDS = (Kind.REPLACE_NOUNS, Kind.REPLACE_ADJECTIVES)
"""Kinds that replace a single word; the others rewrite a clause."""

_SWAPS = (Kind.SWAP_NOUNS, Kind.SWAP_ADJECTIVES)
_MOST_WORDS, _MOST_CLAUSES = 24, 6
_PIECE = re.compile(r"[^\W_]+(?:[-'’][^\W_]+)*|\s+|.", re.S)


@dataclass(frozen=True, kw_only=True)
class Slot:
    """The part of a caption to fill.

    Attributes:
        before, part, after: the caption in three pieces.
        options: texts that may take the part's place; () allows any word.
        count: number of answers wanted.
    """

    before: str
    part: str
    after: str
    options: tuple[str, ...]
    count: int

    @property
    def question(self) -> str:
        return f"{self.before}[{self.part}]{self.after}"

    def filled(self, text: str) -> str:
        """Return the caption with `text` as its part, after the article that fits it."""
        words = self.before.split(" ")
        if not self.options and len(words) > 1 and words[-2].lower() in ("a", "an"):
            fitting = article(text)
            words[-2] = fitting.capitalize() if words[-2][0].isupper() else fitting
        return " ".join(words) + text + self.after

    def to_json(self) -> str:
        """Return the slot as a column of a request; engines read its question, options and count."""
        return json.dumps(asdict(self) | {"question": self.question})

    @classmethod
    def from_json(cls, column: str) -> Slot:
        fields = json.loads(column)
        del fields["question"]
        return cls(**fields | {"options": tuple(fields["options"])})


def slot_between(caption: str, texts: Sequence[str], count: int = ALTERNATIVES) -> Slot:
    """Return the slot from the first to the last word in which any of the texts differs from the caption."""
    pieces = [_PIECE.findall(text) for text in (caption, *texts)]
    head = _shared(pieces)
    tail = _shared([each[head:][::-1] for each in pieces])
    before, after = pieces[0][:head], pieces[0][len(pieces[0]) - tail :]
    parts = ["".join(each[head : len(each) - tail]) for each in pieces]
    return Slot(
        before="".join(before),
        part=parts[0],
        after="".join(after),
        options=tuple(parts[1:]),
        count=min(count, len(texts)),
    )


def _shared(texts: Sequence[Sequence[str]]) -> int:
    """Return the number of pieces with which all texts begin."""
    differs = (len(set(pieces)) > 1 for pieces in zip(*texts, strict=False))
    return next((i for i, other in enumerate(differs) if other), min(map(len, texts)))


class Slots:
    """Maker of questions.

    Args:
        rules: supplies the candidates, from the words of its vocabulary.
    """

    def __init__(self, rules: RuleEngine) -> None:
        self._rules = rules

    def slot(self, caption: str, kind: Kind, seed: int, fold: int = 0) -> Slot | None:
        """Return the slot of a question; None if the caption has no place for an edit of this kind.

        Args:
            caption: the caption.
            kind: the requested edit.
            seed: selects the word to replace and the candidates.
            fold: fold of the caption's image.
        """
        sentence = self._rules.read(caption)
        most = _MOST_WORDS if kind in WORDS else _MOST_CLAUSES
        request = EditRequest(caption=caption, limit=most, seed=str(seed), fold=fold)
        texts = self._candidates(sentence, request, kind)
        if not texts:
            return self._any_word(sentence, kind, seed)
        if kind in WORDS:  # candidates for one and the same word
            ends = [len(slot_between(sentence.text, [text]).after) for text in texts]
            texts = [text for text, end in zip(texts, ends, strict=True) if end == ends[0]]
        return slot_between(sentence.text, texts)

    def _candidates(self, sentence: Sentence, request: EditRequest, kind: Kind) -> list[str]:
        """Return grammatical candidates of the rule engine that pass the checks.

        For a reshuffle, those that only swap two words give way to others: a swap may be asked for as well.
        """
        most = request.limit
        [proposals] = self._rules.propose([request], kind)
        own, swaps = dict[str, str](), dict[str, str]()
        for proposal in itertools.islice((p for p in proposals if not p.scrambled), 2 * most):
            text = proposal.sentence.text
            if len(own) < most and self._passes(sentence, proposal.sentence, kind):
                swap = kind is Kind.RESHUFFLE and any(
                    self._passes(sentence, proposal.sentence, other) for other in _SWAPS
                )
                (swaps if swap else own)[normal_form(text)] = text
        return list((own or swaps).values())

    def _passes(self, caption: Sentence, negative: Sentence, kind: Kind) -> bool:
        candidate = Candidate(caption=caption, negative=negative, accepted=frozenset(), kind=kind)
        return first_failure(candidate, self._rules.language) is None

    def _any_word(self, sentence: Sentence, kind: Kind, seed: int) -> Slot | None:
        """Return a slot for any word in the place of a noun or adjective that the word lists lack."""
        lexicon = self._rules.language.lexicon
        tokens = sentence.tokens
        phrases = [p for p in noun_phrases(sentence, self._rules.language.grammar, lexicon) if p.usable]
        places = {
            Kind.REPLACE_NOUNS: [p.head for p in phrases if lexicon.noun(tokens[p.head].lemma) is None],
            Kind.REPLACE_ADJECTIVES: [
                i for p in phrases for i in p.adjectives if not lexicon.lists_adjective(tokens[i].lemma)
            ],
        }.get(kind)
        if not places:
            return None
        place = random.Random(f"{seed} {kind.value}").choice(places)
        blank = substituted(sentence, {place: replace(tokens[place], text="_")}).text
        return replace(slot_between(sentence.text, [blank]), options=(), count=ALTERNATIVES)
