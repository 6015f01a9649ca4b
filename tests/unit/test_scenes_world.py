"""Scenes as they are drawn by lot and rendered."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from degla_ray.config import ScenesConfig
from degla_ray.sources.scenes.captions import captions
from degla_ray.sources.scenes.render import _RGB, render
from degla_ray.sources.scenes.world import (
    SHAPES,
    VALUES,
    Relation,
    Scene,
    SceneObject,
    Sort,
    difference,
    sample_scene,
    scene_from_json,
    scene_rng,
    scene_to_json,
    stated_relations,
)

GROUND = ((165, 170, 172), (175, 170, 160))
_BYTES = """
import hashlib
from degla_ray.config import ScenesConfig
from degla_ray.sources.scenes.captions import captions
from degla_ray.sources.scenes.foils import FoilKind, pair
from degla_ray.sources.scenes.render import render
from degla_ray.sources.scenes.world import sample_scene, scene_rng, scene_to_json
digest = hashlib.sha256()
for i in range(20):
    rng = scene_rng(7, "train", i)
    scene = sample_scene(rng, ScenesConfig(max_objects=4))
    digest.update(repr((scene_to_json(scene), captions(scene, rng, 3))).encode() + render(scene, 64))
    digest.update(repr([pair(kind, scene, rng) for kind in FoilKind]).encode())
print(digest.hexdigest())
"""


def draw(seed: int, count: int | None = None, **settings_: int) -> Scene:
    return sample_scene(scene_rng(seed, "train", 0), ScenesConfig(**settings_), count)


def pixels(scene: Scene, size: int = 64) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(render(scene, size)))).astype(int)


def single(shape: str = "circle", colour: str = "red", size: str = "large", texture: str = "solid") -> Scene:
    radius = 0.21 if size == "large" else 0.14
    thing = SceneObject(shape=shape, colour=colour, size=size, texture=texture, x=0.5, y=0.5, radius=radius)
    return Scene(objects=(thing,), ground=GROUND)


@given(seed=st.integers(0, 10**6), count=st.integers(2, 4))
@settings(max_examples=150, deadline=None)
def test_sample_scene_objects_are_apart_inside_and_each_in_a_stated_relation(seed: int, count: int) -> None:
    objects = draw(seed, count).objects
    assert len(objects) == count
    assert len({(o.shape, o.colour) for o in objects}) == count
    for i, a in enumerate(objects):
        assert a.radius < a.x < 1 - a.radius
        assert a.radius < a.y < 1 - a.radius
        for b in objects[:i]:
            assert np.hypot(a.x - b.x, a.y - b.y) > a.radius + b.radius
    stated = stated_relations(objects)
    assert {i for i, _, _ in stated} == set(range(count))
    for i, relation, j in stated:
        assert (j, relation.opposite, i) in stated
        across, down = abs(objects[i].x - objects[j].x), abs(objects[i].y - objects[j].y)
        assert (across > down) == (relation in (Relation.LEFT, Relation.RIGHT))
        assert difference(objects[i], relation, objects[j]) == max(across, down) > 0.2


def test_sample_scene_draws_every_value_and_number_of_objects() -> None:
    scenes = [draw(seed, min_objects=1, max_objects=4) for seed in range(400)]
    objects = [thing for scene in scenes for thing in scene.objects]
    assert {len(scene.objects) for scene in scenes} == {1, 2, 3, 4}
    assert {thing.shape for thing in objects} == set(SHAPES)
    for sort in Sort:
        assert {thing.value(sort) for thing in objects} == set(VALUES[sort])
    shared = [s for s in scenes if len(s.objects) == 2 and s.objects[0].shape == s.objects[1].shape]
    assert shared, "two objects of one shape never met"


@pytest.mark.parametrize("seed", range(5))
def test_scene_json_round_trip_is_exact(seed: int) -> None:
    scene = draw(seed)
    assert scene_from_json(scene_to_json(scene)) == scene
    assert scene_to_json(scene_from_json(scene_to_json(scene))) == scene_to_json(scene)


def test_scene_rng_streams_and_numbers_give_different_scenes() -> None:
    config = ScenesConfig()
    keys = [(0, "train", 0), (0, "train", 1), (0, "tests", 0), (1, "train", 0)]
    assert len({scene_to_json(sample_scene(scene_rng(*key), config)) for key in keys}) == len(keys)


def test_scenes_same_seed_same_bytes_in_another_process(
    repo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    env = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": str(repo)}
    done = subprocess.run(
        [sys.executable, "-c", _BYTES], env=env, capture_output=True, text=True, timeout=200, check=True
    )
    exec(_BYTES, {})
    assert capsys.readouterr().out == done.stdout != ""


def test_scenes_and_captions_golden_hash() -> None:
    """Another hash means other data from the same settings: the committed base was trained on these."""
    digest = hashlib.sha256()
    for i in range(50):
        rng = scene_rng(0, "train", i)
        scene = sample_scene(rng, ScenesConfig(max_objects=4))
        digest.update(repr((scene_to_json(scene), captions(scene, rng, 3))).encode())
    assert digest.hexdigest()[:16] == "d4b067d740ba0491"


@pytest.mark.parametrize("size", [32, 64, 112])
def test_render_is_an_rgb_png_of_the_asked_size_and_repeatable(size: int) -> None:
    scene = draw(3)
    data = render(scene, size)
    image = Image.open(io.BytesIO(data))
    assert (image.format, image.mode, image.size) == ("PNG", "RGB", (size, size))
    assert render(scene, size) == data


@pytest.mark.parametrize("size", VALUES[Sort.SIZE])
@pytest.mark.parametrize("texture", VALUES[Sort.TEXTURE])
def test_render_own_colour_outweighs_every_other_colour(size: str, texture: str) -> None:
    names = list(_RGB)
    palette = np.array([_RGB[name] for name in names])
    empty = pixels(Scene(objects=(), ground=GROUND))
    for colour in VALUES[Sort.COLOUR]:
        for shape in SHAPES:
            seen = pixels(single(shape, colour, size, texture))
            inside = seen[np.abs(seen - empty).max(axis=2) > 60]
            nearest = np.linalg.norm(inside[:, None] - palette[None], axis=2).argmin(axis=1)
            share = np.bincount(nearest, minlength=len(names)) / len(nearest)
            assert names[int(share.argmax())] == colour, (shape, colour, dict(zip(names, share, strict=True)))


@pytest.mark.parametrize("size", VALUES[Sort.SIZE])
def test_render_textures_and_shapes_can_be_told_apart_at_64_pixels(size: str) -> None:
    for colour in VALUES[Sort.COLOUR]:
        for shape in SHAPES:
            looks = [pixels(single(shape, colour, size, texture)) for texture in VALUES[Sort.TEXTURE]]
            for i, a in enumerate(looks):
                for b in looks[:i]:  # pixels that differ by more than a third of the whole range
                    assert (np.abs(a - b).max(axis=2) > 85).sum() >= 12, (shape, colour)
    shapes = [pixels(single(shape, "black", size)) for shape in SHAPES]
    for i, a in enumerate(shapes):
        for b in shapes[:i]:
            assert (np.abs(a - b).max(axis=2) > 85).sum() >= 25


def test_render_sizes_differ_clearly_and_objects_lie_where_the_scene_says() -> None:
    empty = pixels(Scene(objects=(), ground=GROUND))
    areas = {}
    for size in VALUES[Sort.SIZE]:
        scene = single("circle", "black", size)
        scene = replace(scene, objects=(replace(scene.objects[0], x=0.3, y=0.7),))
        rows, columns = np.nonzero(np.abs(pixels(scene) - empty).max(axis=2) > 40)
        areas[size] = len(rows)
        assert abs((columns.mean() + 0.5) / 64 - 0.3) < 0.02
        assert abs((rows.mean() + 0.5) / 64 - 0.7) < 0.02
    assert areas["large"] > 1.8 * areas["small"]
