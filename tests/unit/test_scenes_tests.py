"""The test sets of scenes: foils, word order, zero-shot, retrieval."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from degla_ray.config import ScenesConfig
from degla_ray.evaluation.benchmarks import suite
from degla_ray.schema import CAPTIONS, CHOICE_ITEMS, CLASS_ITEMS, IMAGES, SCENE_GRAPHS
from degla_ray.sources.scenes.captions import describe
from degla_ray.sources.scenes.foils import FoilKind, pair
from degla_ray.sources.scenes.order import normalise, order_texts, shuffles
from degla_ray.sources.scenes.render import render
from degla_ray.sources.scenes.tests import write_test_sets
from degla_ray.sources.scenes.truth import is_true, parse
from degla_ray.sources.scenes.wording import wording
from degla_ray.sources.scenes.world import (
    CLASSES,
    SHAPES,
    VALUES,
    Scene,
    sample_scene,
    scene_from_json,
    scene_rng,
)
from degla_ray.storage import Storage

ITEMS = 70
CONFIG = ScenesConfig(test_items=ITEMS, max_objects=4)
ADJECTIVES = {w for values in wording().words.values() for words in values.values() for w in words}


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    storage = Storage(str(tmp_path_factory.mktemp("prepared")))
    counts = write_test_sets(storage, CONFIG)
    assert counts == {
        "images": 2 * ITEMS, "choices": 8 * ITEMS, "classification": ITEMS, "retrieval": ITEMS
    }  # fmt: skip
    return storage


@pytest.fixture(scope="module")
def scenes(storage: Storage) -> dict[str, Scene]:
    rows = storage.read_dataset("tests/graphs", SCENE_GRAPHS).to_pylist()
    return {row["image_id"]: scene_from_json(row["graph"]) for row in rows}


def words(text: str) -> list[str]:
    return text.lower().replace(",", "").rstrip(".").split()


@pytest.mark.parametrize("kind", FoilKind)
@given(seed=st.integers(0, 10**6), count=st.integers(2, 4))
@settings(max_examples=40, deadline=None)
def test_pair_caption_is_true_and_foil_false(kind: FoilKind, seed: int, count: int) -> None:
    rng = scene_rng(seed, "tests", 0)
    scene = sample_scene(rng, ScenesConfig(), count)
    made = pair(kind, scene, rng)
    if made is None:  # two objects that share every attribute have none to exchange
        assert kind in (FoilKind.SWAP_ATT, FoilKind.SWAP_OBJ)
        return
    true, foil = made
    assert is_true(true, scene) is True
    assert is_true(foil, scene) is False
    assert true[0].isupper() == foil[0].isupper()
    assert true.endswith(".") == foil.endswith(".")
    before, after = Counter(words(true)), Counter(words(foil))
    gone, new = before - after, after - before
    match kind:
        case FoilKind.SWAP_OBJ | FoilKind.SWAP_ATT:
            swapped = {w for w, v in zip(words(true), words(foil), strict=True) if w != v}
            assert swapped <= (set(SHAPES) if kind is FoilKind.SWAP_OBJ else ADJECTIVES)
            assert len(swapped) == 2
        case FoilKind.REPLACE_OBJ:
            assert len(gone) == len(new) == 1
            assert set(gone) | set(new) <= set(SHAPES)
        case FoilKind.REPLACE_ATT:
            assert gone.total() == new.total() == 1
            assert set(gone) | set(new) <= ADJECTIVES
        case FoilKind.REPLACE_REL:
            assert not (set(gone) | set(new)) & (set(SHAPES) | ADJECTIVES)
        case FoilKind.ADD_OBJ:
            assert not gone
            (added,) = set(new) & set(SHAPES)
            assert added not in {thing.shape for thing in scene.objects}
        case FoilKind.ADD_ATT:
            assert not gone
            assert set(new) & ADJECTIVES
            assert set(new) - {"and"} <= ADJECTIVES


def test_write_test_sets_every_item_has_the_truth_it_claims(
    storage: Storage, scenes: dict[str, Scene]
) -> None:
    rows = storage.read_dataset("tests/choices", CHOICE_ITEMS).to_pylist()
    subsets = Counter((row["benchmark"], row["subset"]) for row in rows)
    wanted = {("scenes", kind.value): ITEMS for kind in FoilKind} | {("scenes_order", "order"): ITEMS}
    assert subsets == wanted
    for row in rows:
        scene = scenes[row["image_id"]]
        assert is_true(row["texts"][0], scene) is True, row
        if row["subset"] == "order":
            assert len(set(row["texts"])) == 5
            assert all(is_true(text, scene) is not True for text in row["texts"][1:]), row
        else:
            assert [is_true(text, scene) for text in row["texts"][1:]] == [False], row
    for kind in FoilKind:  # an item an image: items of a subset are independent of one another
        assert len({row["image_id"] for row in rows if row["subset"] == kind.value}) == ITEMS


def test_write_test_sets_swapped_objects_are_often_told_by_direction_alone(storage: Storage) -> None:
    rows = storage.read_dataset("tests/choices", CHOICE_ITEMS).to_pylist()
    swaps = [row["texts"][0] for row in rows if row["subset"] == FoilKind.SWAP_OBJ]
    bare = [text for text in swaps if not set(words(text)) & ADJECTIVES and parse(text)[0].relations]
    assert len(bare) > 0.3 * len(swaps)


def test_write_test_sets_images_show_their_scenes(storage: Storage, scenes: dict[str, Scene]) -> None:
    rows = storage.read_dataset("tests/images", IMAGES).to_pylist()
    assert {row["image_id"] for row in rows} == set(scenes)
    for row in rows:
        assert (row["width"], row["height"]) == (CONFIG.image_size,) * 2
        assert Image.open(io.BytesIO(row["image"])).size == (row["width"], row["height"])
        assert row["image"] == render(scenes[row["image_id"]], CONFIG.image_size)
    assert len({row["image"] for row in rows}) == len(rows)


def test_write_test_sets_zero_shot_labels_are_right_and_balanced(
    storage: Storage, scenes: dict[str, Scene]
) -> None:
    rows = storage.read_dataset("tests/classification", CLASS_ITEMS).to_pylist()
    described = storage.read_json("tests", "classification", "classes.json")["scenes_zeroshot"]
    assert described["classes"] == list(CLASSES)
    assert len(set(CLASSES)) == 64
    for row in rows:
        (thing,) = scenes[row["image_id"]].objects
        assert f"{thing.colour} {thing.shape}" == CLASSES[row["label"]]
        for template in described["templates"]:
            assert is_true(template.replace("{}", CLASSES[row["label"]]), scenes[row["image_id"]]) is True
            wrong = CLASSES[(row["label"] + 1) % 64]
            assert is_true(template.replace("{}", wrong), scenes[row["image_id"]]) is False
    labels = Counter(row["label"] for row in rows)
    assert len(labels) == 64
    assert max(labels.values()) - min(labels.values()) <= 1
    assert {s.objects[0].texture for i, s in scenes.items() if i.startswith("single")} == set(
        VALUES["texture"]  # type: ignore[index]  # a StrEnum's value is its key
    )


def test_write_test_sets_retrieval_captions_fit_one_image_each(
    storage: Storage, scenes: dict[str, Scene]
) -> None:
    rows = storage.read_dataset("tests/retrieval", CAPTIONS).to_pylist()
    assert len({row["sample_id"] for row in rows}) == ITEMS
    images = {row["image_id"] for row in rows}
    for row in rows:
        fits = [i for i in images if is_true(row["caption"], scenes[i]) is not False]
        assert fits == [row["image_id"]], row


def test_write_test_sets_suite_is_one_that_evaluation_loads(storage: Storage) -> None:
    benchmarks = suite.load_suite(storage.path("tests"))
    assert [b.name for b in benchmarks] == ["scenes", "scenes_order", "scenes_zeroshot", "scenes_retrieval"]


def test_write_test_sets_same_seed_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    def written(name: str, seed: int) -> dict[str, bytes]:
        config = ScenesConfig(test_items=5, seed=seed)
        write_test_sets(Storage(str(tmp_path / name)), config)
        root = tmp_path / name / "tests"
        return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}

    first = written("a", 1)
    assert written("b", 1) == first
    other = written("c", 2)
    assert other.keys() == first.keys()
    differing = {name for name in first if first[name] != other[name]}
    assert differing == {name for name in first if name.endswith(".parquet")}


@pytest.mark.parametrize(("least", "most"), [(1, 1), (4, 4)])
def test_write_test_sets_any_number_of_objects_works(tmp_path: Path, least: int, most: int) -> None:
    config = ScenesConfig(test_items=3, min_objects=least, max_objects=most)
    assert write_test_sets(Storage(str(tmp_path)), config)["choices"] == 24


def test_write_test_sets_no_items_writes_nothing(tmp_path: Path) -> None:
    assert write_test_sets(Storage(str(tmp_path)), ScenesConfig(test_items=0)) == {}
    assert list(tmp_path.iterdir()) == []


def test_normalise_follows_aro() -> None:
    assert normalise('A "Red" circle; is (left) of: a #square*~!.') == "a red circle is left of a square"
    assert normalise(" ".join(["word"] * 40)) == " ".join(["word"] * 30)
    assert normalise("a circle, a square") == "a circle, a square"


def test_shuffles_keep_what_each_kind_keeps() -> None:
    caption = "there is a small red circle to the left of a large blue square"
    tokens = caption.split()
    content = [i for i, w in enumerate(tokens) if w in ADJECTIVES or w in SHAPES]
    for seed in range(30):
        named, others, trigrams, within = (
            text.split() for text in shuffles(caption, np.random.default_rng(seed))
        )
        for result in (named, others, trigrams, within):
            assert Counter(result) == Counter(tokens)
        assert [named[i] for i in range(14) if i not in content] == [
            tokens[i] for i in range(14) if i not in content
        ]
        assert {named[i] for i in content if tokens[i] in SHAPES} == {"circle", "square"}
        assert [others[i] for i in content] == [tokens[i] for i in content]
        blocks = [tuple(tokens[i : i + 3]) for i in range(0, 14, 3)]
        joined = " ".join(trigrams)
        assert all(" ".join(block) in joined for block in blocks)
        assert [Counter(within[i : i + 3]) for i in range(0, 14, 3)] == [Counter(b) for b in blocks]


def test_order_texts_refuses_commas_and_what_is_still_true() -> None:
    rng = np.random.default_rng(0)
    assert order_texts("A circle, a star and a square.", rng, lambda text: True) is None
    assert order_texts("a circle is above a square", rng, lambda text: False) is None
    scene = sample_scene(scene_rng(1, "tests", 0), ScenesConfig(), 2)
    for seed in range(40):
        chance = np.random.default_rng(seed)
        texts = order_texts(describe(scene, chance, 2).text, chance, lambda t: is_true(t, scene) is not True)
        if texts is not None:
            assert is_true(texts[0], scene) is True
            assert all(is_true(text, scene) is not True for text in texts[1:])
