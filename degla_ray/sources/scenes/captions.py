"""Generate true captions of a scene in natural wording; many describe only a part of it.

About 20,000 captions a second. The words are in templates.yaml.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from degla_ray.sources.scenes.wording import Mention, SceneSentence, pick, wording
from degla_ray.sources.scenes.world import Relation, Scene, SceneObject, Sort, stated_relations

_SOLID_IS_NAMED = 0.5  # people mention a pattern but seldom its absence
_ATTEMPTS = 20

# Attributes mentioned with an object; those listed more often are drawn more often.
_DETAILS: tuple[tuple[Sort, ...], ...] = (
    *[()] * 4,
    *[(Sort.COLOUR,)] * 8,
    *[(Sort.SIZE, Sort.COLOUR)] * 3,
    *[(Sort.TEXTURE, Sort.COLOUR)] * 3,
    *[(Sort.SIZE,)] * 2,
    *[(Sort.TEXTURE,)] * 2,
    (Sort.SIZE, Sort.TEXTURE),
    *[tuple(Sort)] * 3,
)
_EVERYTHING = tuple(Sort)


def captions(scene: Scene, rng: np.random.Generator, count: int) -> list[str]:
    """Return `count` captions, distinct if sampling finds enough of them."""
    found: list[str] = []
    for _ in range(count):
        for _ in range(_ATTEMPTS):
            text = describe(scene, rng).text
            if text not in found:
                break
        found.append(text)
    return found


def describe(scene: Scene, rng: np.random.Generator, mentions: int | None = None) -> SceneSentence:
    """Return a true sentence that names `mentions` objects; None draws one to four, mostly two."""
    available = len(scene.objects)
    if mentions is None:
        mentions = int(rng.choice([1, 2, 3, 4], p=[0.2, 0.55, 0.2, 0.05]))
    mentions = min(mentions, available)
    pairs = stated_relations(scene.objects)
    if mentions == 2 and pairs and rng.random() < 0.8:
        return describe_relation(scene, rng)
    if mentions == 3 and rng.random() < 0.65:
        sentence = describe_two_relations(scene, rng)
        if sentence is not None:
            return sentence
    order = [int(i) for i in rng.permutation(available)[:mentions]]
    named = mention_all(scene, order, rng)
    if mentions <= 2 and _predicable(scene, named) and rng.random() < 0.3:
        key = "one" if mentions == 1 else "two"
        return SceneSentence(template=pick(rng, wording().sentences[key]), mentions=named)
    return list_sentence(named, rng)


def describe_fully(scene: Scene, rng: np.random.Generator) -> SceneSentence:
    """Return a sentence with every object and every attribute."""
    count = len(scene.objects)
    if count == 2 and rng.random() < 0.7:
        return describe_relation(scene, rng, _EVERYTHING)
    if count == 3 and rng.random() < 0.5:
        sentence = describe_two_relations(scene, rng, _EVERYTHING)
        if sentence is not None:
            return sentence
    order = [int(i) for i in rng.permutation(count)]
    return list_sentence(mention_all(scene, order, rng, _EVERYTHING), rng)


def describe_relation(
    scene: Scene, rng: np.random.Generator, details: Sequence[Sort] | None = None
) -> SceneSentence:
    """Return a sentence with two objects and their spatial relation."""
    a, relation, b = pick(rng, stated_relations(scene.objects))
    named = mention_all(scene, (a, b), rng, details)
    w = wording()
    clear = all(len(fitting(scene, mention)) == 1 for mention in named)
    sides = _on_both_sides(scene.objects[a], relation, scene.objects[b])
    whole = rng.random() < 0.5
    templates = w.sentences["relation"] if whole else w.phrases["relation"]
    fit = [t for t in templates if (clear or "{the" not in t) and (sides or "{place" not in t)]
    template = pick(rng, fit)
    return SceneSentence(
        template=template,
        mentions=named,
        relations=((0, relation, 1, int(rng.integers(64))),),
        opening="{}" if whole else _opening(rng, template),
        formal=whole or rng.random() < 0.5,
    )


def describe_two_relations(
    scene: Scene, rng: np.random.Generator, details: Sequence[Sort] | None = None
) -> SceneSentence | None:
    """Return a sentence with three objects and two relations, or None if none can be stated."""
    pairs = stated_relations(scene.objects)
    a, relation, b = pick(rng, pairs)
    further = [(c, r, d) for c, r, d in pairs if d in (a, b) and c not in (a, b)]
    if not further:
        return None
    c, relation2, d = pick(rng, further)
    return SceneSentence(
        template=pick(rng, wording().sentences["two_relations"]),
        mentions=mention_all(scene, (a, b, c), rng, details),
        relations=(
            (0, relation, 1, int(rng.integers(64))),
            (2, relation2, (a, b).index(d), int(rng.integers(64))),
        ),
    )


def list_sentence(named: tuple[Mention, ...], rng: np.random.Generator) -> SceneSentence:
    template = "{0}" if len(named) == 1 else pick(rng, wording().phrases[f"list{len(named)}"])
    return SceneSentence(
        template=template, mentions=named, opening=_opening(rng, template), formal=rng.random() < 0.5
    )


def mention_all(
    scene: Scene, order: Sequence[int], rng: np.random.Generator, details: Sequence[Sort] | None = None
) -> tuple[Mention, ...]:
    """Return mentions of the objects in `order`, usually with the same sorts of attribute for each.

    With `details` None the sorts are drawn at random; otherwise all of `details` are named. Two objects of
    the same shape are always distinguished by colour.
    """
    shapes = [scene.objects[i].shape for i in order]
    common = pick(rng, _DETAILS)
    mentions = []
    for i in order:
        if details is None:
            sorts = common if rng.random() < 0.8 else pick(rng, _DETAILS)
        else:
            sorts = tuple(details)
        thing = scene.objects[i]
        if details is None and thing.texture == "solid" and rng.random() > _SOLID_IS_NAMED:
            sorts = tuple(sort for sort in sorts if sort is not Sort.TEXTURE)
        if shapes.count(thing.shape) > 1 and Sort.COLOUR not in sorts:
            sorts = (*sorts, Sort.COLOUR)
        words = wording().words
        adjectives = {sort: pick(rng, words[sort][thing.value(sort)]) for sort in sorts}
        mentions.append(Mention(noun=thing.shape, adjectives=adjectives))
    return tuple(mentions)


def fitting(scene: Scene, mention: Mention) -> list[SceneObject]:
    """Return the scene's objects that fit the mention."""
    words = wording().words
    return [
        thing
        for thing in scene.objects
        if thing.shape == mention.noun
        and all(word in words[sort][thing.value(sort)] for sort, word in mention.adjectives.items())
    ]


def _predicable(scene: Scene, named: tuple[Mention, ...]) -> bool:
    """Return whether each mention fits "the circle is red": one or two attributes and a unique shape."""
    shapes = [thing.shape for thing in scene.objects]
    return all(1 <= len(m.adjectives) <= 2 and shapes.count(m.noun) == 1 for m in named)


def _on_both_sides(a: SceneObject, relation: Relation, b: SceneObject) -> bool:
    """Return whether the objects are on opposite sides of the image's middle, as "on the left" requires."""
    if relation in (Relation.LEFT, Relation.RIGHT):
        return (a.x - 0.5) * (b.x - 0.5) < 0
    return (a.y - 0.5) * (b.y - 0.5) < 0


def _opening(rng: np.random.Generator, template: str) -> str:
    openings = wording().openings
    opening = pick(rng, openings)
    # "a circle on the left and a square on the right in the image" is not idiomatic English
    while "{place" in template and not opening.endswith("{}"):
        opening = pick(rng, openings)
    return opening
