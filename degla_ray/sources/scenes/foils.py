"""Generate foils of SugarCrepe's seven kinds: fluent captions that a single edit makes false.

Each pair is checked against the scene before it is returned. About 1,000 pairs a second.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum

import numpy as np

from degla_ray.sources.scenes.captions import describe, describe_relation, list_sentence
from degla_ray.sources.scenes.truth import is_true
from degla_ray.sources.scenes.wording import Mention, SceneSentence, pick, wording
from degla_ray.sources.scenes.world import SHAPES, VALUES, Relation, Scene, Sort

_ATTEMPTS = 60
_BARE_SWAPS = 0.5  # share of object swaps without adjectives, so that only the direction differs


class FoilKind(StrEnum):
    REPLACE_OBJ = "replace_obj"
    REPLACE_ATT = "replace_att"
    REPLACE_REL = "replace_rel"
    SWAP_OBJ = "swap_obj"
    SWAP_ATT = "swap_att"
    ADD_OBJ = "add_obj"
    ADD_ATT = "add_att"


def pair(kind: FoilKind, scene: Scene, rng: np.random.Generator) -> tuple[str, str] | None:
    """Return a caption that is true of the scene and a foil that is false, or None if sampling found none.

    Args:
        kind: kind of edit.
        scene: a scene with at least two objects.
        rng: determines caption and change.
    """
    for _ in range(_ATTEMPTS):
        made = _MAKERS[kind](scene, rng)
        if made is None or not _clear(made[0]) or not _clear(made[1]):
            continue
        true, foil = made[0].text, made[1].text
        if is_true(true, scene) is True and is_true(foil, scene) is False:
            return true, foil
    return None


def _clear(sentence: SceneSentence) -> bool:
    """Return whether every object is named differently and each "the circle" is unambiguous."""
    names = [mention.bare for mention in sentence.mentions]
    nouns = [mention.noun for mention in sentence.mentions]
    return len(set(names)) == len(names) and (len(sentence.relations) < 2 or len(set(nouns)) == len(nouns))


def _replace_obj(scene: Scene, rng: np.random.Generator) -> tuple[SceneSentence, SceneSentence] | None:
    sentence = describe(scene, rng)
    taken = {mention.noun for mention in sentence.mentions}
    noun = pick(rng, [shape for shape in SHAPES if shape not in taken])
    return sentence, _with(sentence, _any(sentence, rng), noun=noun)


def _replace_att(scene: Scene, rng: np.random.Generator) -> tuple[SceneSentence, SceneSentence] | None:
    sentence = describe(scene, rng)
    at = _any(sentence, rng)
    named = list(sentence.mentions[at].adjectives)
    if not named:
        return None
    sort = pick(rng, named)
    return sentence, _with(sentence, at, sort=sort, word=_word(sort, rng))


def _replace_rel(scene: Scene, rng: np.random.Generator) -> tuple[SceneSentence, SceneSentence] | None:
    sentence = describe(scene, rng, mentions=int(rng.integers(2, 4)))
    if not sentence.relations:
        return None
    at = int(rng.integers(len(sentence.relations)))
    a, relation, b, which = sentence.relations[at]
    other = relation.opposite if rng.random() < 0.7 else pick(rng, list(Relation))
    relations = list(sentence.relations)
    relations[at] = (a, other, b, which)
    return sentence, replace(sentence, relations=tuple(relations))


def _swap_obj(scene: Scene, rng: np.random.Generator) -> tuple[SceneSentence, SceneSentence] | None:
    if rng.random() < _BARE_SWAPS:
        sentence = describe_relation(scene, rng, details=())
    else:
        sentence = describe(scene, rng, mentions=int(rng.integers(2, 4)))
    a, b = _two(sentence, rng)
    nouns = sentence.mentions[a].noun, sentence.mentions[b].noun
    return sentence, _with(_with(sentence, a, noun=nouns[1]), b, noun=nouns[0])


def _swap_att(scene: Scene, rng: np.random.Generator) -> tuple[SceneSentence, SceneSentence] | None:
    sentence = describe(scene, rng, mentions=int(rng.integers(2, 4)))
    a, b = _two(sentence, rng)
    first, second = (sentence.mentions[i].adjectives for i in (a, b))
    shared = [sort for sort in Sort if sort in first and sort in second]
    if not shared:
        return None
    sort = pick(rng, shared)
    return sentence, _with(_with(sentence, a, sort=sort, word=second[sort]), b, sort=sort, word=first[sort])


def _add_obj(scene: Scene, rng: np.random.Generator) -> tuple[SceneSentence, SceneSentence] | None:
    sentence = describe(scene, rng, mentions=int(rng.integers(1, 3)))
    absent = [shape for shape in SHAPES if shape not in {thing.shape for thing in scene.objects}]
    sorts = pick(rng, sentence.mentions).adjectives
    added = Mention(noun=pick(rng, absent), adjectives={sort: _word(sort, rng) for sort in sorts})
    mentions = (*sentence.mentions, added)
    if not sentence.relations:
        if sentence.template not in ("{0}", *wording().phrases["list2"]):
            return None  # "the circle is red" cannot mention another object
        at = int(rng.integers(len(mentions)))
        longer = list_sentence((*sentence.mentions[:at], added, *sentence.mentions[at:]), rng)
        return sentence, replace(longer, opening=sentence.opening, formal=sentence.formal)
    if sentence.template.startswith("{0}") and sentence.template.endswith("{relation} {1}"):
        template = f"{sentence.template} and {{2}}"
        if sentence.template == "{0} {relation} {1}" and rng.random() < 0.5:
            template = "{0} and {2} {relation} {1}"
        return sentence, replace(sentence, template=template, mentions=mentions)
    return None


def _add_att(scene: Scene, rng: np.random.Generator) -> tuple[SceneSentence, SceneSentence] | None:
    sentence = describe(scene, rng)
    at = _any(sentence, rng)
    missing = [sort for sort in Sort if sort not in sentence.mentions[at].adjectives]
    if not missing or ("{adjectives" in sentence.template and len(missing) == 1):
        return None  # "the circle is small and striped and red" is clumsy
    sort = pick(rng, missing)
    return sentence, _with(sentence, at, sort=sort, word=_word(sort, rng))


_MAKERS: dict[
    FoilKind, Callable[[Scene, np.random.Generator], tuple[SceneSentence, SceneSentence] | None]
] = {
    FoilKind.REPLACE_OBJ: _replace_obj,
    FoilKind.REPLACE_ATT: _replace_att,
    FoilKind.REPLACE_REL: _replace_rel,
    FoilKind.SWAP_OBJ: _swap_obj,
    FoilKind.SWAP_ATT: _swap_att,
    FoilKind.ADD_OBJ: _add_obj,
    FoilKind.ADD_ATT: _add_att,
}


def _with(
    sentence: SceneSentence, at: int, noun: str | None = None, sort: Sort | None = None, word: str = ""
) -> SceneSentence:
    """Return `sentence` with the noun, or one adjective, of mention `at` replaced."""
    mention = sentence.mentions[at]
    adjectives = mention.adjectives if sort is None else {**mention.adjectives, sort: word}
    changed = Mention(noun=noun or mention.noun, adjectives=adjectives)
    return replace(sentence, mentions=(*sentence.mentions[:at], changed, *sentence.mentions[at + 1 :]))


def _any(sentence: SceneSentence, rng: np.random.Generator) -> int:
    return int(rng.integers(len(sentence.mentions)))


def _two(sentence: SceneSentence, rng: np.random.Generator) -> tuple[int, int]:
    first, second = rng.permutation(len(sentence.mentions))[:2].tolist()
    return first, second


def _word(sort: Sort, rng: np.random.Generator) -> str:
    return pick(rng, wording().words[sort][pick(rng, VALUES[sort])])
