"""Turn captions into tagged tokens: HanTa's English tagger with corrections for captions.

HanTa (a second-order HMM over morphemes, with the model in the package) tags about 1,800 captions a second on
one core and downloads nothing. Corrections come from `grammar.yaml`: fixed phrases ("to the left of") become
one token, as do listed multiword nouns and noun + noun ("fire hydrant", "tennis court").
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache, lru_cache
from importlib.metadata import version
from typing import Any

from degla_ray.language.grammar import Grammar, load_grammar
from degla_ray.language.lexicon import Lexicon, Number, load_lexicon, plural, singular

MODEL_FILE = "morphmodel_en.pgz"  # inside the HanTa package

# 's is a token of its own; other hyphens and apostrophes stay inside their word (t-shirt, don't).
# So is a placeholder for a name, as data sets write it: <PERSON>, <person_1>, [NAME], {LOCATION}.
_PLACEHOLDER = re.compile(r"<[A-Za-z]\w*>|\[[A-Z][A-Z0-9_]+\]|\{[A-Z][A-Z0-9_]+\}")
_TOKEN = re.compile(_PLACEHOLDER.pattern + r"|[^\W_]+(?:[-'’](?!s\b)[^\W_]+)*|['’]s\b|[^\w\s]|_", re.UNICODE)


class Tag(StrEnum):
    NOUN = "NOUN"
    NAME = "NAME"
    ADJ = "ADJ"
    VERB = "VERB"
    DET = "DET"
    NUM = "NUM"
    PREP = "PREP"
    ADV = "ADV"
    CONJ = "CONJ"
    PRON = "PRON"
    POSS = "POSS"
    MEASURE = "MEASURE"
    PUNCT = "PUNCT"
    OTHER = "OTHER"


_CLASSES = {
    "NN": Tag.NOUN, "NP": Tag.NAME, "AJ": Tag.ADJ, "VV": Tag.VERB, "VB": Tag.VERB, "VH": Tag.VERB,
    "VD": Tag.VERB, "VM": Tag.VERB, "AT": Tag.DET, "DT": Tag.DET, "DP": Tag.DET, "CR": Tag.NUM,
    "PR": Tag.PREP, "AV": Tag.ADV, "CJ": Tag.CONJ, "PN": Tag.PRON, "EX": Tag.PRON, "PO": Tag.POSS,
    "PU": Tag.PUNCT,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Token:
    """A word, a fixed phrase or a compound noun.

    Attributes:
        text: as written; a sentence's first word is in lower case unless it is a name.
        lemma: base form in lower case; for nouns, the singular.
        tag: word class.
        detail: HanTa's own tag (CLAWS 5), e.g. VVZ.
        number: number of a noun, else None.
        space: white space before it.
        start, end: span in the original string.
        sure: for nouns, whether the tagger knows no other class of the word or the lexicon lists it.
    """

    text: str
    lemma: str
    tag: Tag
    detail: str
    number: Number | None
    space: str
    start: int
    end: int
    sure: bool


@dataclass(frozen=True, slots=True, eq=False)  # compared and hashed by identity, as caches rely on it
class Sentence:
    """A caption as tokens.

    Attributes:
        tokens: in order.
        capital: whether the first letter is a capital although the word is not a name.
        tail: white space after the last token.
    """

    tokens: tuple[Token, ...]
    capital: bool
    tail: str = ""

    @property
    def text(self) -> str:
        joined = "".join(t.space + t.text for t in self.tokens) + self.tail
        if not self.capital:
            return joined
        first = next(i for i, letter in enumerate(joined) if letter.isalnum())
        return joined[:first] + joined[first].upper() + joined[first + 1 :]


def plain(caption: str) -> str:
    """Return a caption with HTML entities resolved and accents composed; its words are unchanged."""
    return unicodedata.normalize("NFC", html.unescape(html.unescape(caption)))


def is_placeholder(text: str) -> bool:
    """Return whether a token is a placeholder for a name that was removed from the caption."""
    return _PLACEHOLDER.fullmatch(text) is not None


class Tagger:
    """Converter of captions to sentences; deterministic, but not thread-safe."""

    def __init__(self, grammar: Grammar | None = None, lexicon: Lexicon | None = None) -> None:
        from HanTa.HanoverTagger import HanoverTagger  # costs 0.2 s and 60 MB, so it is imported here

        self.grammar = grammar or load_grammar()
        self.lexicon = lexicon or load_lexicon()
        self._hanta: Any = HanoverTagger(MODEL_FILE)
        # Cached, because HanTa analyses a word missing from its list at every occurrence.
        self._hanta.analyze_forward = lru_cache(maxsize=50_000)(self._hanta.analyze_forward)
        phrases = {**self.lexicon.multiwords(), **self.grammar.phrases}
        self._phrases: dict[str, list[tuple[tuple[str, ...], Tag]]] = {}
        for words, tag in sorted(phrases.items(), key=lambda item: -len(item[0])):
            if len(words) > 1:
                self._phrases.setdefault(words[0], []).append((words, Tag(tag)))
        self._single = {words[0]: Tag(tag) for words, tag in self.grammar.phrases.items() if len(words) == 1}
        self.analyse = lru_cache(maxsize=20_000)(self._analyse)
        self._is_verb_form = lru_cache(maxsize=50_000)(self._can_be_verb)
        self._is_sure = lru_cache(maxsize=50_000)(self._only_noun)

    def own_tags(self, words: Sequence[str]) -> list[str]:
        """Return HanTa's tag (CLAWS 5) for each word of a caption, before corrections."""
        return [str(tag) for tag in self._hanta.tag_sent(list(words), taglevel=0)] if words else []

    def _analyse(self, caption: str) -> Sentence:
        caption = plain(caption)
        matches = list(_TOKEN.finditer(caption))
        if not matches:
            return Sentence((), capital=False, tail=caption)
        details = self._hanta.tag_sent([m.group() for m in matches], taglevel=0)
        tokens: list[Token] = []
        end = 0
        for match, detail in zip(matches, details, strict=True):
            tokens.append(self._token(match.group(), detail, caption[end : match.start()], match.start()))
            end = match.end()
        word = next((i for i, t in enumerate(tokens) if t.text[0].isalnum() or is_placeholder(t.text)), 0)
        first = tokens[word]
        capital = (
            first.text[0].isupper() and first.text[1:] == first.text[1:].lower() and first.tag is not Tag.NAME
        )
        if capital:
            tokens[word] = replace(first, text=first.text[0].lower() + first.text[1:])
        tokens = self._join_compounds(self._correct(self._join_phrases(tokens)))
        return Sentence(tuple(tokens), capital=capital, tail=caption[end:])

    def _token(self, text: str, detail: str, space: str, start: int) -> Token:
        lower = text.lower()
        tag = Tag(
            self.grammar.tags.get(lower) or self._single.get(lower) or _CLASSES.get(detail[:2], Tag.OTHER)
        )
        if detail in ("AJC", "AJS"):  # comparatives and superlatives are neither exchanged nor replaced
            tag = Tag.OTHER
        if lower in ("'s", "’s"):
            tag = Tag.VERB if detail.startswith("V") else Tag.POSS
        elif is_placeholder(text):
            return Token(text, lower, Tag.NAME, detail, None, space, start, start + len(text), sure=False)
        elif not text[0].isalnum():
            tag = Tag.PUNCT
        elif tag is Tag.ADJ and self._is_participle(lower):
            tag, detail = Tag.VERB, "VVG" if lower.endswith("ing") else "VVN"
        token = Token(text, lower, tag, detail, None, space, start, start + len(text), sure=False)
        if tag is Tag.NOUN or (tag is Tag.NAME and self.lexicon.lists_noun(text)):
            return self._as_noun(token)
        return replace(token, lemma=_verb_lemma(lower)) if tag is Tag.VERB else token

    def _as_noun(self, token: Token) -> Token:
        lower = token.text.lower()
        known = self.lexicon.noun(lower)
        if known is None:
            number = Number.PLURAL if token.detail == "NN2" else Number.SINGULAR
        else:
            number = known[1]
            if number is Number.SINGULAR and token.detail == "NN2" and plural(lower) == lower:  # sheep
                number = Number.PLURAL
        if known is not None:
            prefix, space, _ = ("", "", "") if self.lexicon.lists_noun(lower) else lower.rpartition(" ")
            lemma = prefix + space + known[0].word
        else:
            lemma = singular(lower) if number is Number.PLURAL else lower
        sure = known is not None or self._is_sure(lower)
        return replace(token, tag=Tag.NOUN, lemma=lemma, number=number, sure=sure)

    def _only_noun(self, word: str) -> bool:
        classes = {tag[:2] for tag, _ in self._hanta.tag_word(word, cutoff=4)}
        return classes == {"NN"} and len(word) > 2 and word.isalpha()

    def _is_participle(self, word: str) -> bool:
        """Return whether an "adjective" is a verb form: a standing man, a parked car."""
        ends = word.endswith(("ing", "ed", "en"))
        return ends and not self.lexicon.lists_adjective(word) and self._is_verb_form(word)

    def _can_be_verb(self, word: str) -> bool:
        return any(tag.startswith("VV") for tag, _ in self._hanta.tag_word(word, cutoff=12))

    def _join_phrases(self, tokens: list[Token]) -> list[Token]:
        joined: list[Token] = []
        i = 0
        while i < len(tokens):
            length, tag = self._phrase_at(tokens, i)
            joined.append(self._join(tokens[i : i + length], tag) if length > 1 else tokens[i])
            i += length
        return joined

    def _phrase_at(self, tokens: Sequence[Token], i: int) -> tuple[int, Tag]:
        for words, tag in self._phrases.get(tokens[i].text.lower(), ()):
            span = tokens[i : i + len(words)]
            if len(span) == len(words) and all(t.text.lower() == w for t, w in zip(span, words, strict=True)):
                return len(words), tag
        return 1, tokens[i].tag

    def _join(self, span: Sequence[Token], tag: Tag) -> Token:
        text = "".join(t.space + t.text for t in span)[len(span[0].space) :]
        lower = " ".join(t.text.lower() for t in span)
        last = span[-1]
        token = Token(text, lower, tag, last.detail, None, span[0].space, span[0].start, last.end, sure=True)
        return self._as_noun(token) if tag is Tag.NOUN else token

    def _correct(self, tokens: list[Token]) -> list[Token]:
        """Correct single tags by their neighbours; later tokens see earlier corrections."""
        for i, token in enumerate(tokens):
            before = tokens[i - 1] if i else None
            after = tokens[i + 1] if i + 1 < len(tokens) else None
            if self._is_adjective(before, token, after):
                tokens[i] = replace(token, tag=Tag.ADJ, number=None, lemma=token.text.lower())
            elif self._is_noun(before, token, after):
                tokens[i] = self._as_noun(token)
            elif before is not None and self._is_verb(before, token, after):
                detail = "VVG" if token.text.lower().endswith("ing") else "VVZ"
                lemma = _verb_lemma(token.text.lower())
                tokens[i] = replace(token, tag=Tag.VERB, detail=detail, number=None, lemma=lemma)
        return tokens

    def _is_adjective(self, before: Token | None, token: Token, after: Token | None) -> bool:
        """Return whether a listed adjective that has another tag is used as an adjective: a brick wall."""
        entry = None if token.tag is Tag.ADJ else self.lexicon.adjective(token.text)
        if entry is None:
            return False
        if after is None or after.tag not in (Tag.NOUN, Tag.ADJ):
            return before is not None and before.lemma == "be" and entry.group == "colours"
        substance = entry.group in ("colours", "materials")  # just as often nouns
        return substance or (_opens(before) and not self.lexicon.lists_noun(token.text))

    def _is_noun(self, before: Token | None, token: Token, after: Token | None) -> bool:
        """Return whether a listed noun that has another tag is used as a noun: the surf, a young male."""
        return (
            token.tag in (Tag.VERB, Tag.ADJ, Tag.ADV, Tag.OTHER)
            and before is not None
            and _opens(before)
            and (after is None or after.tag not in (Tag.NOUN, Tag.ADJ))
            and self.lexicon.lists_noun(token.text)
            and token.text.lower() not in self.grammar.tags
        )

    def _is_verb(self, before: Token, token: Token, after: Token | None) -> bool:
        """Return whether a "noun" after a noun is a verb: a boy skateboards down a street, a dog running."""
        if token.tag is not Tag.NOUN or before.tag is not Tag.NOUN:
            return False
        word = token.text.lower()
        known = self.lexicon.noun(before.text)
        living = known is not None and known[0].group in ("adults", "children", "roles", "animals")
        if word.endswith("ing"):
            ends = after is None or after.tag is not Tag.NOUN
            return living and ends and not self.lexicon.lists_noun(word)
        if token.number is not Number.PLURAL or before.number is not Number.SINGULAR:
            return False
        return living and (word in self.grammar.verbs_after_subject or self._can_be_verb(word))

    def _join_compounds(self, tokens: list[Token]) -> list[Token]:
        """Join noun + noun into one noun with the number of the last word."""
        joined: list[Token] = []
        for token in tokens:
            last = joined[-1] if joined else None
            if (
                last is not None
                and last.tag is token.tag is Tag.NOUN
                and token.sure
                and (last.number is Number.SINGULAR or last.lemma in self.lexicon.plural_only)
            ):
                joined[-1] = self._join((last, token), Tag.NOUN)
            else:
                joined.append(token)
        return joined


def _opens(before: Token | None) -> bool:
    """Return whether a noun phrase may continue after `before`."""
    return before is None or before.tag in (Tag.DET, Tag.NUM, Tag.ADJ, Tag.MEASURE)


@lru_cache(maxsize=50_000)
def _verb_lemma(word: str) -> str:
    import lemminflect  # takes 0.5 s, so it is imported only if captions are analysed

    return str(lemminflect.getLemma(word, "VERB")[0])


def tagger_name() -> str:
    return f"HanTa {version('HanTa')} {MODEL_FILE}"


@cache
def load_tagger() -> Tagger:
    """Return the tagger of this process."""
    return Tagger()
