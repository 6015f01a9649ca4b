"""Write the test sets next to prepared scenes: composition, word order, zero-shot, retrieval.

`test_items` scenes, separate from the training scenes, give one item to every choice subset and one caption
to retrieval. Zero-shot uses the same number of images of single objects. 300 of each take about 2 s.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from degla_ray.config import ScenesConfig
from degla_ray.schema import CAPTIONS, CHOICE_ITEMS, CLASS_ITEMS, IMAGES, SCENE_GRAPHS
from degla_ray.sources.scenes.captions import describe, describe_fully
from degla_ray.sources.scenes.foils import FoilKind, pair
from degla_ray.sources.scenes.order import order_texts
from degla_ray.sources.scenes.render import render
from degla_ray.sources.scenes.truth import is_true
from degla_ray.sources.scenes.world import (
    CLASSES,
    Scene,
    SceneObject,
    sample_scene,
    scene_rng,
    scene_to_json,
)
from degla_ray.stage import part_name
from degla_ray.storage import ROW_GROUP_ROWS, Storage

COMPOSITION, ORDER, ZERO_SHOT = "scenes", "scenes_order", "scenes_zeroshot"
ZERO_SHOT_TEMPLATES = (
    "a {}",
    "a picture of a {}.",
    "there is a {}.",
    "an image of a {}.",
    "you can see a {}.",
)
_FOLDER, _PART = "tests", part_name(0, 1)
_CAPTION_TRIES = 40


@dataclass(frozen=True, kw_only=True)
class _Tested:
    """A scene with an item for every choice subset."""

    scene: Scene
    choices: dict[str, list[str]]  # subset -> texts, the true one first
    caption: str  # a complete description


def write_test_sets(storage: Storage, config: ScenesConfig) -> dict[str, int]:
    """Write `tests/` into the prepared folder `storage`; write nothing if `test_items` is 0.

    In addition to the data that evaluation reads, the folder holds `tests/graphs/`, the scenes themselves.

    Returns:
        Rows written: images, choices, classification, retrieval.
    """
    if config.test_items == 0:
        return {}
    scenes: dict[str, Scene] = {}
    choices: list[dict[str, Any]] = []
    captions: list[dict[str, Any]] = []
    for i, tested in enumerate(_tested_scenes(config)):
        image_id = f"test-{i:06d}"
        scenes[image_id] = tested.scene
        for subset, texts in tested.choices.items():
            benchmark = ORDER if subset == "order" else COMPOSITION
            row = {"benchmark": benchmark, "subset": subset, "item_id": f"{subset}-{i:06d}"}
            choices.append({**row, "image_id": image_id, "texts": texts})
        sample = {"sample_id": f"{image_id}#0", "image_id": image_id, "split": "test"}
        captions.append({**sample, "caption": tested.caption})
    classified: list[dict[str, Any]] = []
    for i, (scene, label) in enumerate(_single_objects(config)):
        image_id = f"single-{i:06d}"
        scenes[image_id] = scene
        row = {"benchmark": ZERO_SHOT, "item_id": f"class-{i:06d}"}
        classified.append({**row, "image_id": image_id, "label": label})

    choices.sort(key=lambda row: (row["benchmark"], row["subset"], row["item_id"]))
    size = config.image_size
    image_rows = [
        {"image_id": image_id, "image": render(scene, size), "width": size, "height": size}
        for image_id, scene in scenes.items()
    ]
    graphs = [{"image_id": image_id, "graph": scene_to_json(scene)} for image_id, scene in scenes.items()]
    images = pa.Table.from_pylist(image_rows, schema=IMAGES)
    storage.write_table(images, _FOLDER, "images", _PART, row_group_rows=ROW_GROUP_ROWS)
    storage.write_table(pa.Table.from_pylist(graphs, schema=SCENE_GRAPHS), _FOLDER, "graphs", _PART)
    storage.write_table(pa.Table.from_pylist(choices, schema=CHOICE_ITEMS), _FOLDER, "choices", _PART)
    storage.write_table(
        pa.Table.from_pylist(classified, schema=CLASS_ITEMS), _FOLDER, "classification", _PART
    )
    described = {ZERO_SHOT: {"classes": list(CLASSES), "templates": list(ZERO_SHOT_TEMPLATES)}}
    storage.write_json(described, _FOLDER, "classification", "classes.json")
    storage.write_table(pa.Table.from_pylist(captions, schema=CAPTIONS), _FOLDER, "retrieval", _PART)
    return {
        "images": len(image_rows),
        "choices": len(choices),
        "classification": len(classified),
        "retrieval": len(captions),
    }


def _tested_scenes(config: ScenesConfig) -> Iterator[_Tested]:
    """Yield `test_items` scenes with an item of every kind; no scene fits another's retrieval caption."""
    least = max(2, config.min_objects)
    counts = range(least, max(least, config.max_objects) + 1)
    taken: list[frozenset[tuple[str, ...]]] = []
    index = 0
    while len(taken) < config.test_items:
        rng = scene_rng(config.seed, "tests", index)
        index += 1
        scene = sample_scene(rng, config, num_objects=int(rng.choice(counts)))
        kinds = frozenset(_kind(thing) for thing in scene.objects)
        if any(kinds <= other or other <= kinds for other in taken):
            continue
        tested = _items(scene, rng)
        if tested is not None:
            taken.append(kinds)
            yield tested


def _kind(thing: SceneObject) -> tuple[str, ...]:
    return thing.shape, thing.colour, thing.size, thing.texture


def _items(scene: Scene, rng: np.random.Generator) -> _Tested | None:
    choices: dict[str, list[str]] = {}
    for kind in FoilKind:
        texts = pair(kind, scene, rng)
        if texts is None:
            return None
        choices[kind.value] = list(texts)
    for _ in range(_CAPTION_TRIES):
        caption = describe(scene, rng, mentions=2).text
        shuffled = order_texts(caption, rng, lambda text: is_true(text, scene) is not True)
        if shuffled is not None:
            choices["order"] = shuffled
            return _Tested(scene=scene, choices=choices, caption=describe_fully(scene, rng).text)
    return None


def _single_objects(config: ScenesConfig) -> Iterator[tuple[Scene, int]]:
    """Yield images of one object with their labels; class frequencies differ by at most one."""
    for index in range(config.test_items):
        rng = scene_rng(config.seed, "zero-shot", index)
        turn, place = divmod(index, len(CLASSES))
        label = int(scene_rng(config.seed, "labels", turn).permutation(len(CLASSES))[place])
        colour, shape = CLASSES[label].split(" ")
        scene = sample_scene(rng, config, num_objects=1)
        yield replace(scene, objects=(replace(scene.objects[0], colour=colour, shape=shape),)), label
