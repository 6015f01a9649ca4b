"""The rule engine, which needs no language model: edits of tagged captions, one function per kind.

Every rule yields grammatical candidates, best first, in an order determined by the request's seed. A caption
that cannot have a kind (one noun, no adjective) yields nothing. About 1 ms per caption for all five kinds.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import combinations, pairwise, zip_longest

from degla_ray.language.edits import counts, exchanged, moved, substituted, with_noun
from degla_ray.language.grammar import words_sha
from degla_ray.language.lexicon import Behaviour, Entry, Number
from degla_ray.language.mentions import Mentioned
from degla_ray.language.phrases import NounPhrase, is_coordinated, noun_phrases
from degla_ray.language.tagging import Sentence, Tag, Token, is_placeholder, load_tagger, tagger_name
from degla_ray.negatives.checks import Language, broken_bonds, statements
from degla_ray.negatives.fitting import adjective_fits, keeps_sort, noun_fits, same_form, same_sort
from degla_ray.negatives.plausibility import CaptionModels
from degla_ray.negatives.selection import EditRequest, Proposal, no_veto, select
from degla_ray.schema import Kind

RULES_VERSION = 3
"""Part of a negatives folder's identity; raise it whenever a rule's output changes."""

SCRAMBLES = 18
"""Maximum number of scrambled word orders tried per caption."""


class RuleEngine:
    """Generates negatives by rule; implements the protocol `CaptionEditor`.

    Args:
        vocabulary: words of the dataset; a replacement that no caption uses would be a text-only clue. None
            allows the whole lexicon.
        models: n-gram models of the dataset. With them, only things of one sort change places, whole
            phrases instead of scrambled words, and adjectives must fit their nouns.
    """

    name = "rules"

    def __init__(self, vocabulary: frozenset[str] | None = None, models: CaptionModels | None = None) -> None:
        self._vocabulary = vocabulary
        self._models = models
        self._tagger = load_tagger()
        self.language = Language(grammar=self._tagger.grammar, lexicon=self._tagger.lexicon)
        self.model = tagger_name()
        self.prompt_sha = words_sha()
        self._rules: dict[Kind, Callable[[Sentence, EditRequest, random.Random], Iterator[Proposal]]] = {
            Kind.SWAP_NOUNS: self._swap_nouns,
            Kind.SWAP_ADJECTIVES: self._swap_adjectives,
            Kind.REPLACE_NOUNS: self._replace_nouns,
            Kind.REPLACE_ADJECTIVES: self._replace_adjectives,
            Kind.RESHUFFLE: self._reshuffle,
        }

    @staticmethod
    def identity() -> dict[str, str]:
        return {"rules": str(RULES_VERSION), "model": tagger_name(), "prompt_sha": words_sha()}

    def read(self, caption: str) -> Sentence:
        return self._tagger.analyse(caption)

    def propose(self, requests: Sequence[EditRequest], kind: Kind) -> Iterable[Iterable[Proposal]]:
        for request in requests:
            rng = random.Random(f"{request.seed} {kind.value}")
            yield self._rules[kind](self.read(request.caption), request, rng)

    def negatives(self, caption: str, kind: Kind, limit: int, seed: int) -> list[str]:
        """Return at most `limit` checked negatives of one kind for one caption."""
        request = EditRequest(caption=caption, limit=limit, seed=str(seed))
        return select(self, [request], [kind], [no_veto])[0].accepted[kind]

    def _phrases(self, sentence: Sentence) -> list[NounPhrase]:
        return [p for p in noun_phrases(sentence, self.language.grammar, self.language.lexicon) if p.usable]

    # --- swaps

    def _swap_nouns(self, sentence: Sentence, request: EditRequest, rng: random.Random) -> Iterator[Proposal]:
        for first, second in self._pairs(sentence, rng):
            if self._models is not None and not (
                same_sort(sentence, first, second, self.language.lexicon)
                and same_form(sentence, first, second)
            ):
                continue
            edited = self._nouns_swapped(sentence, first, second)
            if edited is not None:
                yield Proposal(sentence=edited)

    def _nouns_swapped(self, sentence: Sentence, first: NounPhrase, second: NounPhrase) -> Sentence | None:
        """Swap two nouns; each takes the grammatical number of its new place, if it has a form for it."""
        a, b = sentence.tokens[first.head], sentence.tokens[second.head]
        lexicon = self.language.lexicon
        if a.lemma == b.lemma or a.number is None or b.number is None:
            return None
        masses = [lexicon.behaviour(t.lemma) is Behaviour.MASS for t in (a, b)]
        if masses[0] != masses[1]:
            return self._determined_nouns_swapped(sentence, first, second)
        to_a, to_b = with_noun(a, lexicon, b.lemma, a.number), with_noun(b, lexicon, a.lemma, b.number)
        if to_a is None or to_b is None:
            return None
        return substituted(sentence, {first.head: to_a, second.head: to_b})

    def _determined_nouns_swapped(
        self, sentence: Sentence, first: NounPhrase, second: NounPhrase
    ) -> Sentence | None:
        """Swap two nouns; one that is not counted keeps its own determiner ("a dog" against "the snow")."""
        tokens = sentence.tokens
        a, b = tokens[first.head], tokens[second.head]
        if not (a.number is b.number is Number.SINGULAR):
            return None
        determiners = [_only_determiner(sentence, phrase) for phrase in (first, second)]
        if determiners[0] is None or determiners[1] is None:
            return None
        changes = {first.head: b, second.head: a}
        changes[determiners[0]], changes[determiners[1]] = tokens[determiners[1]], tokens[determiners[0]]
        return substituted(sentence, changes)

    def _swap_adjectives(
        self, sentence: Sentence, request: EditRequest, rng: random.Random
    ) -> Iterator[Proposal]:
        same_field: list[tuple[int, int]] = []
        other: list[tuple[int, int]] = []
        for first, second in self._pairs(sentence, rng):
            for i in first.adjectives:
                for j in second.adjectives:
                    fit = self._adjectives_fit(sentence, (first, i), (second, j))
                    if fit is not None and self._is_usual(sentence, request.fold, (first, j), (second, i)):
                        (same_field if fit else other).append((i, j))
        for i, j in same_field + (other if self._models is None else []):
            tokens = sentence.tokens
            yield Proposal(sentence=substituted(sentence, {i: tokens[j], j: tokens[i]}))

    def _adjectives_fit(
        self, sentence: Sentence, one: tuple[NounPhrase, int], two: tuple[NounPhrase, int]
    ) -> bool | None:
        """Return whether two adjectives may be swapped.

        True: they belong to one field. False: to two fields, but the result is surely false. None: no.
        """
        (first, i), (second, j) = one, two
        tokens, lexicon = sentence.tokens, self.language.lexicon
        others = [{tokens[k].lemma for k in p.adjectives if k != own} for p, own in (one, two)]
        if tokens[i].lemma == tokens[j].lemma or tokens[j].lemma in others[0] or tokens[i].lemma in others[1]:
            return None
        a, b = lexicon.adjective(tokens[i].lemma), lexicon.adjective(tokens[j].lemma)
        if a is not None and b is not None and a.group == b.group:
            return None if a.line == b.line else True
        # Two attributes that both things could have (a large circle, a red square) may hold when swapped.
        nouns = [self._entry(sentence, phrase) for phrase in (first, second)]
        if nouns[0] is None or nouns[1] is None or nouns[0].group == nouns[1].group:
            return None
        if lexicon.overlapping(*nouns) or not any(
            e is not None and lexicon.group(e).tells_apart for e in (a, b)
        ):
            return None
        for noun, new, beside in ((nouns[0], b, others[0]), (nouns[1], a, others[1])):
            fields = {e.group for lemma in beside if (e := lexicon.adjective(lemma))}
            if new is not None and new.group in fields:
                return None
            living = noun.group in ("adults", "children", "roles")
            if living and new is not None and new.line in lexicon.colours_of_people:
                return None  # "a white man" may be true
        return False

    def _is_usual(self, sentence: Sentence, fold: int, *placed: tuple[NounPhrase, int]) -> bool:
        """Return whether captions put these adjectives (by index) before the nouns of these phrases."""
        if self._models is None:
            return True
        model, tokens = self._models.selector(fold), sentence.tokens
        return all(adjective_fits(model, tokens[i].text, tokens[phrase.head]) for phrase, i in placed)

    # --- replacements

    def _replace_nouns(
        self, sentence: Sentence, request: EditRequest, rng: random.Random
    ) -> Iterator[Proposal]:
        grammar, lexicon = self.language.grammar, self.language.lexicon
        mentioned = Mentioned(lexicon, sentence, request.siblings)
        gendered = any(t.text.lower() in grammar.gendered for t in sentence.tokens)
        choices: list[Iterator[Proposal]] = []
        for phrase in self._phrases(sentence):
            entry = self._entry(sentence, phrase)
            if entry is None:
                continue
            words = lexicon.replacements(entry, self._vocabulary, every=self._models is not None)
            own, elsewhere = (rng.sample(w, len(w)) for w in words)
            if entry.group in ("adults", "children") and gendered:
                own = []
            if self._models is not None and not keeps_sort(entry, lexicon):
                elsewhere = []
            choices.append(self._nouns_put(sentence, phrase, mentioned, request.fold, own, elsewhere))
        rng.shuffle(choices)
        yield from _interleaved(choices)

    def _nouns_put(
        self, sentence: Sentence, phrase: NounPhrase, mentioned: Mentioned, fold: int, *fields: Sequence[str]
    ) -> Iterator[Proposal]:
        """Yield the sentence with other nouns in the phrase's place, from the first field that has any."""
        for field in fields:
            found = False
            for word in field:
                number = None if mentioned.noun(word) else self._number_for(sentence, phrase, word)
                new = number and with_noun(sentence.tokens[phrase.head], self.language.lexicon, word, number)
                if new and self._is_usual_noun(sentence, fold, phrase, new):
                    found = True
                    yield Proposal(sentence=substituted(sentence, {phrase.head: new}))
            if found:
                return

    def _is_usual_noun(self, sentence: Sentence, fold: int, phrase: NounPhrase, noun: Token) -> bool:
        """Return whether captions put a noun into such a place."""
        return self._models is None or noun_fits(self._models.selector(fold), sentence, phrase, noun)

    def _number_for(self, sentence: Sentence, phrase: NounPhrase, word: str) -> Number | None:
        """Return the number that `word` can take in the phrase's place; None if it does not fit there."""
        tokens, lexicon = sentence.tokens, self.language.lexicon
        head = tokens[phrase.head]
        old, new = lexicon.behaviour(head.lemma), lexicon.behaviour(word)
        before = [t for t in tokens[phrase.start : phrase.head] if t.tag in (Tag.DET, Tag.NUM, Tag.MEASURE)]
        if old is new or (old is Behaviour.PLURAL_ONLY and not any(map(counts, before))):
            return head.number
        if new is Behaviour.PLURAL_ONLY:
            return Number.PLURAL if head.number is Number.PLURAL and not any(map(counts, before)) else None
        if old is Behaviour.COUNT and new is Behaviour.MASS:
            fits = head.number is Number.SINGULAR and before and not any(map(counts, before))
            return Number.SINGULAR if fits else None
        # A mass noun becomes a counted one: "the snow" -> "the beach", but not if it is bare "snow".
        return Number.SINGULAR if old is Behaviour.MASS and any(t.tag is Tag.DET for t in before) else None

    def _replace_adjectives(
        self, sentence: Sentence, request: EditRequest, rng: random.Random
    ) -> Iterator[Proposal]:
        lexicon = self.language.lexicon
        mentioned = Mentioned(lexicon, sentence, request.siblings)
        choices: list[Iterator[Proposal]] = []
        for phrase in self._phrases(sentence):
            noun = self._entry(sentence, phrase)
            for i in phrase.adjectives:
                entry = lexicon.adjective(sentence.tokens[i].lemma, noun)
                if entry is not None:
                    words, _ = lexicon.replacements(entry, self._vocabulary, every=self._models is not None)
                    words = [w for w in words if not mentioned.adjective(w, noun)]
                    if self._models is not None:
                        model, head = self._models.selector(request.fold), sentence.tokens[phrase.head]
                        words = [w for w in words if adjective_fits(model, w, head)]
                    choices.append(self._adjectives_put(sentence, i, rng.sample(words, len(words))))
        rng.shuffle(choices)
        yield from _interleaved(choices)

    @staticmethod
    def _adjectives_put(sentence: Sentence, place: int, words: Iterable[str]) -> Iterator[Proposal]:
        for word in words:
            new = replace(sentence.tokens[place], text=word, lemma=word)
            yield Proposal(sentence=substituted(sentence, {place: new}))

    # --- order

    def _reshuffle(self, sentence: Sentence, request: EditRequest, rng: random.Random) -> Iterator[Proposal]:
        """Yield swaps of whole phrases across their relation and scrambled phrase orders, alternately."""
        pairs = self._pairs(sentence, rng)
        if self._models is not None:
            pairs = [pair for pair in pairs if same_sort(sentence, *pair, self.language.lexicon)]
        exchanges = (Proposal(sentence=exchanged(sentence, first, second)) for first, second in pairs)
        scrambles = self._scrambles(sentence, rng) if self._models is None else ()
        yield from _interleaved([exchanges, scrambles])

    def _scrambles(self, sentence: Sentence, rng: random.Random) -> Iterator[Proposal]:
        if len(statements(sentence, self.language)) <= 2:
            return  # one thing, or unordered things: word order carries no meaning
        phrases = self._phrases(sentence)
        nouns = [phrase.head for phrase in phrases]
        adjectives = [i for phrase in phrases for i in phrase.adjectives]
        units = self._units(sentence)
        found = []
        for n in range(SCRAMBLES):
            if n % 2 == 0 and len(nouns) > 2:
                shuffled = self._content_shuffled(sentence, nouns, adjectives, rng)
                if shuffled is not None:
                    yield Proposal(sentence=shuffled)
            else:
                order = (_trigrams_shuffled, _within_trigrams_shuffled)[n // 2 % 2](units, rng)
                if order != units:
                    found.append(moved(sentence, units, order))
        found.sort(key=lambda scrambled: -broken_bonds(sentence, scrambled, self.language))
        yield from (Proposal(sentence=scrambled, scrambled=True) for scrambled in found)

    def _units(self, sentence: Sentence) -> list[range]:
        """Return the token spans that move as one: noun phrases with their determiner, and other words.

        Things named in one breath ("salt and pepper") are one span. Punctuation and placeholders for names
        belong to none and stay where they are.
        """
        tokens = sentence.tokens
        phrases = noun_phrases(sentence, self.language.grammar, self.language.lexicon)
        ends = {phrase.start: phrase.end for phrase in phrases}
        for first, second in reversed([*pairwise(phrases)]):
            if is_coordinated(tokens[first.end : second.start], second):
                ends[first.start] = ends[second.start]
        units, i = [], 0
        while i < len(tokens):
            end = ends.get(i, i + 1)
            if tokens[i].tag is Tag.DET and end == i + 1 < len(tokens):
                end = ends.get(i + 1, i + 2)  # "his" or "the" before a word that is no noun
            if tokens[i].tag is not Tag.PUNCT and not is_placeholder(tokens[i].text):
                units.append(range(i, end))
            i = end
        return units

    def _content_shuffled(
        self, sentence: Sentence, nouns: Sequence[int], adjectives: Sequence[int], rng: random.Random
    ) -> Sentence | None:
        """Shuffle nouns among the nouns' places, in the number of the place, and adjectives among theirs.

        None where a noun does not have the number of its new place.
        """
        tokens = sentence.tokens
        changes = {
            slot: tokens[i]
            for slot, i in zip(adjectives, rng.sample(adjectives, len(adjectives)), strict=True)
        }
        for slot, i in zip(nouns, rng.sample(nouns, len(nouns)), strict=True):
            number = tokens[slot].number
            new = number and with_noun(tokens[i], self.language.lexicon, tokens[i].lemma, number)
            if not new:
                return None  # "a pants"
            changes[slot] = new
        return substituted(sentence, changes)

    def _pairs(self, sentence: Sentence, rng: random.Random) -> list[tuple[NounPhrase, NounPhrase]]:
        """Return pairs of usable phrases, neighbours first.

        Pairs whose exchange keeps or loses the meaning are left out: a thing and its material ("a garden of
        tulips"), and things listed together ("a black hat and coat", "its neck and wings").
        """
        pairs = []
        for first, second in _neighbours_first(self._phrases(sentence), rng):
            gap = sentence.tokens[first.end : second.start]
            if not is_coordinated(gap, second) and [t.lemma for t in gap] != ["of"]:
                pairs.append((first, second))
        return pairs

    def _entry(self, sentence: Sentence, phrase: NounPhrase) -> Entry | None:
        known = self.language.lexicon.noun(sentence.tokens[phrase.head].lemma)
        return known[0] if known is not None else None


def _only_determiner(sentence: Sentence, phrase: NounPhrase) -> int | None:
    """Return the index of the phrase's determiner, if it starts with one and has no other."""
    found = [
        i
        for i in range(phrase.start, phrase.head)
        if sentence.tokens[i].tag in (Tag.DET, Tag.NUM, Tag.MEASURE)
    ]
    return found[0] if found == [phrase.start] and sentence.tokens[phrase.start].tag is Tag.DET else None


def _neighbours_first(
    phrases: Sequence[NounPhrase], rng: random.Random
) -> list[tuple[NounPhrase, NounPhrase]]:
    """Return all pairs in random order, those joined by a single relation first."""
    pairs = list(combinations(range(len(phrases)), 2))
    rng.shuffle(pairs)
    pairs.sort(key=lambda pair: pair[1] - pair[0] > 1)
    return [(phrases[i], phrases[j]) for i, j in pairs]


def _interleaved(choices: Iterable[Iterable[Proposal]]) -> Iterator[Proposal]:
    """Yield the first item of each, then the second of each, and so on."""
    for row in zip_longest(*choices):
        yield from (proposal for proposal in row if proposal is not None)


def _trigrams_shuffled(units: Sequence[range], rng: random.Random) -> list[range]:
    groups = [units[i : i + 3] for i in range(0, len(units), 3)]
    return [i for group in rng.sample(groups, len(groups)) for i in group]


def _within_trigrams_shuffled(units: Sequence[range], rng: random.Random) -> list[range]:
    groups = [units[i : i + 3] for i in range(0, len(units), 3)]
    return [i for group in groups for i in rng.sample(group, len(group))]
