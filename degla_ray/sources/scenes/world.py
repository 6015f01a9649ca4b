"""Define and sample scenes: two to four coloured shapes on a plain background.

Captions, foils and the truth check all derive from a `Scene`. Lengths are fractions of the image's side;
y points down. Sampling a scene takes about 0.1 ms.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from degla_ray.config import ScenesConfig


class Sort(StrEnum):
    """Sorts of an object's attributes other than its shape."""

    SIZE = "size"
    TEXTURE = "texture"
    COLOUR = "colour"


class Relation(StrEnum):
    LEFT = "left"
    RIGHT = "right"
    ABOVE = "above"
    BELOW = "below"

    @property
    def opposite(self) -> Relation:
        return _OPPOSITE[self]


_OPPOSITE = {
    Relation.LEFT: Relation.RIGHT,
    Relation.RIGHT: Relation.LEFT,
    Relation.ABOVE: Relation.BELOW,
    Relation.BELOW: Relation.ABOVE,
}

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "diamond", "heart")
VALUES: dict[Sort, tuple[str, ...]] = {
    Sort.SIZE: ("small", "large"),
    Sort.TEXTURE: ("solid", "striped", "dotted"),
    Sort.COLOUR: ("red", "yellow", "green", "blue", "purple", "pink", "black", "white"),
}
CLASSES = tuple(f"{colour} {shape}" for colour in VALUES[Sort.COLOUR] for shape in SHAPES)

HOLDS_FROM = 0.15  # minimum difference along its axis for a relation to be true
FAILS_UP_TO = 0.05  # maximum difference for it to be false; in between it can be judged either way
_STATED_FROM = 0.22  # minimum difference along its axis for a caption to state a relation
_DOMINANT_BY = 0.10  # minimum by which that difference exceeds the one along the other axis

_RADII = {"small": (0.136, 0.146), "large": (0.208, 0.222)}
_TEXTURE_WEIGHTS = (0.4, 0.3, 0.3)
_SHARES = 0.35  # probability that an object shares its shape or colour with an earlier one
_GAP = 0.03  # minimum distance between the objects' bounding circles, and between them and the edge
_GROUND = (145, 196)  # range of a background channel (0 to 255), in contrast to both white and black
_GROUND_DRIFT = 18  # difference between the two ends of the background


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneObject:
    """One object: centre `x`, `y` and `radius` of its bounding circle, as fractions of the image's side."""

    shape: str
    colour: str
    size: str
    texture: str
    x: float
    y: float
    radius: float

    def value(self, sort: Sort) -> str:
        return str(getattr(self, sort.value))


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """Objects on a background whose colour runs from `ground[0]` at the top to `ground[1]` at the bottom."""

    objects: tuple[SceneObject, ...]
    ground: tuple[tuple[int, int, int], tuple[int, int, int]]


def scene_rng(seed: int, stream: str, index: int) -> np.random.Generator:
    """Return a scene's random generator; `stream` ("train", "val", "tests" …) keeps sets independent."""
    key = int.from_bytes(hashlib.blake2b(stream.encode(), digest_size=8).digest(), "big")
    return np.random.default_rng([seed, key, index])


def sample_scene(rng: np.random.Generator, config: ScenesConfig, num_objects: int | None = None) -> Scene:
    """Return a scene of `num_objects` objects; None draws between `min_objects` and `max_objects`.

    No two objects share both shape and colour, none overlap, and each is in at least one relation that a
    caption may state.
    """
    count = num_objects or int(rng.integers(config.min_objects, config.max_objects + 1))
    while True:
        kinds = _kinds(rng, count)
        sizes = [VALUES[Sort.SIZE][int(i)] for i in rng.integers(2, size=count)]
        radii = [round(float(rng.uniform(*_RADII[size])), 4) for size in sizes]
        textures = rng.choice(len(_TEXTURE_WEIGHTS), size=count, p=_TEXTURE_WEIGHTS)
        places = _places(rng, radii)
        if places is None:
            continue
        objects = tuple(
            SceneObject(
                shape=shape,
                colour=colour,
                size=sizes[i],
                texture=VALUES[Sort.TEXTURE][int(textures[i])],
                x=places[i][0],
                y=places[i][1],
                radius=radii[i],
            )
            for i, (shape, colour) in enumerate(kinds)
        )
        related = {i for a, _, b in stated_relations(objects) for i in (a, b)}
        if count == 1 or len(related) == count:
            return Scene(objects=objects, ground=_ground(rng))


def _kinds(rng: np.random.Generator, count: int) -> list[tuple[str, str]]:
    """Return (shape, colour) of each object."""
    shapes = [SHAPES[int(i)] for i in rng.permutation(len(SHAPES))[:count]]
    colours = [VALUES[Sort.COLOUR][int(i)] for i in rng.permutation(len(VALUES[Sort.COLOUR]))[:count]]
    for i in range(1, count):
        if rng.random() < _SHARES:
            shared = shapes if rng.random() < 0.5 else colours
            before = shared[i]
            shared[i] = shared[int(rng.integers(i))]
            if (shapes[i], colours[i]) in zip(shapes[:i], colours[:i], strict=True):
                shared[i] = before
    return list(zip(shapes, colours, strict=True))


def _places(rng: np.random.Generator, radii: list[float]) -> list[tuple[float, float]] | None:
    """Return a place for each circle so that none overlap, or None if sampling found none."""
    places: list[tuple[float, float]] = []
    for i, radius in enumerate(radii):
        edge = radius + _GAP
        for x, y in rng.uniform(edge, 1 - edge, size=(12, 2)).round(4).tolist():
            apart = ((x - a) ** 2 + (y - b) ** 2 > (radius + radii[j] + _GAP) ** 2
                     for j, (a, b) in enumerate(places))  # fmt: skip
            if all(apart):
                places.append((x, y))
                break
        if len(places) <= i:
            return None
    return places


def _ground(rng: np.random.Generator) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    level = int(rng.integers(_GROUND[0] + 12, _GROUND[1] - 12))
    first = [level + int(t) for t in rng.integers(-10, 11, size=3)]
    drift = int(rng.integers(-_GROUND_DRIFT, _GROUND_DRIFT + 1))
    second = [min(max(channel + drift, _GROUND[0]), _GROUND[1]) for channel in first]
    return (first[0], first[1], first[2]), (second[0], second[1], second[2])


def difference(a: SceneObject, relation: Relation, b: SceneObject) -> float:
    """Return how far `a` is from `b` in the relation's direction; negative if it is on the other side."""
    if relation is Relation.LEFT:
        return b.x - a.x
    if relation is Relation.RIGHT:
        return a.x - b.x
    return b.y - a.y if relation is Relation.ABOVE else a.y - b.y


def stated_relations(objects: tuple[SceneObject, ...]) -> list[tuple[int, Relation, int]]:
    """Return every (a, relation, b) that a caption may state: unambiguous, along the dominant axis."""
    stated = []
    for i, a in enumerate(objects):
        for j, b in enumerate(objects):
            across, down = abs(a.x - b.x), abs(a.y - b.y)
            if i != j and max(across, down) >= _STATED_FROM and abs(across - down) >= _DOMINANT_BY:
                pair = (Relation.LEFT, Relation.RIGHT) if across > down else (Relation.ABOVE, Relation.BELOW)
                stated.append((i, pair[0] if difference(a, pair[0], b) > 0 else pair[1], j))
    return stated


def scene_to_json(scene: Scene) -> str:
    return json.dumps(asdict(scene), sort_keys=True, separators=(",", ":"))


def scene_from_json(text: str) -> Scene:
    value: dict[str, Any] = json.loads(text)
    first, second = (tuple(int(c) for c in end) for end in value["ground"])
    return Scene(
        objects=tuple(SceneObject(**entry) for entry in value["objects"]),
        ground=((first[0], first[1], first[2]), (second[0], second[1], second[2])),
    )
