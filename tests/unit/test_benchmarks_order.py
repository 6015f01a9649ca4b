"""COCO-Order and Flickr30k-Order: the official rule, shuffles that hang on the caption alone, the cache."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from degla_ray.errors import DataError
from degla_ray.evaluation.benchmarks.aro import ARO_MEMBERS
from degla_ray.evaluation.benchmarks.order import CaptionSet, load_order, load_retrieval
from degla_ray.evaluation.benchmarks.shuffles import WAYS, pre_caption, shuffled
from degla_ray.storage import Storage
from tests.published_files import annotations, decisions, similarity, tied_features, write_json

CAPTIONS = [
    "A man with a red helmet on a small moped on a dirt road. ",
    "Two bigger dogs, a fire hydrant and a (blue) car: in front of New York's tennis court!",
    "Dog",
    "A cat.",
    'A "very"  old\tman  ~ eats *one* apple; he is #1 ' + "of the many men " * 10,
]


def write_order(folder: Path, images: int = 30) -> Storage:
    coco = [
        {"image": f"val2014/COCO_val2014_{i:012d}.jpg", "caption": [f"{i} {c}" for c in CAPTIONS]}
        for i in range(images)
    ]
    write_json(folder, "order/coco_karpathy_test.json", coco)
    flickr = [{"image": f"flickr30k-images/{i}.jpg", "caption": CAPTIONS} for i in range(2)]
    write_json(folder, "order/flickr30k_karpathy_test.json", flickr)
    return Storage(str(folder))


def official_pre_caption(caption: str, max_words: int = 30) -> str:
    """The steps of ARO's `pre_caption`, one by one."""
    for mark in '.!"()*#:;~':
        caption = caption.lower().replace(mark, " ")
    caption = re.sub(r"\s{2,}", " ", caption)
    while caption.endswith("\n"):
        caption = caption[:-1]
    caption = caption.strip(" ")
    words = caption.split(" ")
    return " ".join(words[:max_words]) if len(words) > max_words else caption


@pytest.mark.parametrize("caption", [*CAPTIONS, "a\tb", "A.b!c", " x \n", "one\n", "é É ß"])
def test_pre_caption_equals_the_official_steps(caption: str) -> None:
    assert pre_caption(caption) == official_pre_caption(caption)
    assert len(pre_caption(caption).split(" ")) <= 30


@pytest.mark.parametrize("seed", range(3))
def test_order_decisions_equal_the_first_argmax(tmp_path: Path, seed: int) -> None:
    benchmark = load_order(write_order(tmp_path), CaptionSet.COCO)
    assert f"{benchmark.name}/{benchmark.subsets[0]}" == ARO_MEMBERS[2]
    features = tied_features(benchmark, seed)
    items = list(benchmark.shown())
    scores = np.array([[similarity(features, i.images[0], text) for text in i.texts] for i in items])
    preds = np.argmax(scores, axis=-1)
    ids = [
        f"COCO_val2014_{image:012d}.jpg/{number}" for image in range(30) for number in range(len(CAPTIONS))
    ]
    assert [i.item_id for i in items] == ids
    expected = {("order", item.item_id): bool(pred == 0) for item, pred in zip(items, preds, strict=True)}
    assert decisions(benchmark.score(features)) == expected
    tied_and_right = (scores[:, 0] == scores[:, 1:].max(axis=1)).sum()
    assert tied_and_right > 20
    assert 20 < sum(expected.values()) < len(expected)


def test_order_texts_are_the_caption_and_four_shuffles_as_shown(tmp_path: Path) -> None:
    benchmark = load_order(write_order(tmp_path), CaptionSet.FLICKR30K)
    items = list(benchmark.shown())
    assert benchmark.name == "flickr30k_order"
    assert benchmark.image_keys() == {"flickr30k:flickr30k-images/0.jpg", "flickr30k:flickr30k-images/1.jpg"}
    for item, caption in zip(items, CAPTIONS * 2, strict=True):
        texts = [caption, *shuffled(caption, 0)]
        assert item.texts == tuple(official_pre_caption(text) for text in texts)
    assert items[2].texts == ("dog",) * 5  # nothing to shuffle: a tie, and correct
    assert benchmark.chance("order") == pytest.approx(1 / 5)


TAGGED = [  # every word by its own tag, as ARO takes them: n, a or another
    "A/- group/n of/- people/n in/- front/n of/- a/- red/a bus/n ./-",
    "Two/- bigger/a dogs/n ,/- a/- fire/n hydrant/n and/- a/- (/- blue/a )/- car/n :/- on/- top/n of/- it/-",
    "a/- couple/n of/- men/n to/- the/- left/a side/n of/- someone/n 's/- tennis/n court/n ./-",
    "boys/n in/- t/- -/- shirts/n and/- a/- pile/n of/- books/n",
    "a/- man/n does/- n't/- cross/- the/- bridge/n",
]


@pytest.mark.parametrize("tagged", TAGGED)
def test_shuffles_move_only_what_they_may(tagged: str) -> None:
    words, tags = zip(*(word.rsplit("/", 1) for word in tagged.split()), strict=True)
    caption = re.sub(r" (?=[.,:)]|'s|n't)| (?=-)|(?<=-) |(?<=\() ", "", " ".join(words))
    whole = " ".join(words).replace("t - shirt", "t-shirt").split()
    found = [[text.split(" ") for text in shuffled(caption, seed)] for seed in range(60)]
    for content, others, trigrams, within in found:
        assert Counter(content) == Counter(others) == Counter(words)
        assert Counter(trigrams) == Counter(within) == Counter(whole)
        for i, word in enumerate(words):
            assert (others if tags[i] != "-" else content)[i] == word
        for tag in "na":
            own = [i for i, t in enumerate(tags) if t == tag]
            assert Counter(content[i] for i in own) == Counter(words[i] for i in own)
        assert [sorted(within[i : i + 3]) for i in range(0, len(whole), 3)] == [
            sorted(whole[i : i + 3]) for i in range(0, len(whole), 3)
        ]
        assert all(" ".join(whole[i : i + 3]) in " ".join(trigrams) for i in range(0, len(whole), 3))
    for tag, way in (("n", 0), ("-", 1)):  # each of them does move
        for i in (i for i, t in enumerate(tags) if t == tag):
            assert tags.count(tag) < 2 or {shuffles[way][i] for shuffles in found} - {words[i]}


def test_shuffles_hang_on_caption_and_seed_not_on_the_order_of_calls() -> None:
    forth = [shuffled(caption, 1) for caption in CAPTIONS]
    back = [shuffled(caption, 1) for caption in reversed(CAPTIONS)]
    assert forth == back[::-1]
    assert forth[0] != shuffled(CAPTIONS[0], 2)
    assert forth[0][0] == "A man with a red road on a small moped on a helmet dirt ."  # pinned


def test_order_cache_is_written_once_named_by_its_hash_and_read_again(tmp_path: Path) -> None:
    storage, folder = write_order(tmp_path), tmp_path / "cache"
    cache = Storage(str(folder))
    made = load_order(storage, CaptionSet.COCO, cache=cache)
    (file,) = folder.iterdir()
    match = re.fullmatch(r"coco_order-([0-9a-f]{16})\.parquet", file.name)
    assert match is not None
    assert made.protocol == f"first of the best; shuffles {match[1]}"
    plain = load_order(storage, CaptionSet.COCO)
    assert (plain.protocol, list(plain.shown())) == (made.protocol, list(made.shown()))

    rows = pq.read_table(file).to_pylist()
    rows[0]["texts"][1] = "from the cache"
    cache.write_table(type(pq.read_table(file)).from_pylist(rows, schema=pq.read_schema(file)), file.name)
    again = load_order(storage, CaptionSet.COCO, cache=cache)
    assert next(again.shown()).texts[1] == "from the cache"

    load_order(storage, CaptionSet.COCO, cache=cache, seed=1)
    write_order(tmp_path, images=3)
    assert len(list(load_order(storage, CaptionSet.COCO, cache=cache).shown())) == 15
    assert len(list(folder.iterdir())) == 3  # another seed, other annotations

    for path in folder.iterdir():
        path.write_bytes(b"not parquet")
    with pytest.raises(DataError, match=r"coco_order-.*a broken file.*delete the file to compute them again"):
        load_order(storage, CaptionSet.COCO, cache=cache)


def test_order_cache_of_other_columns_is_refused(tmp_path: Path) -> None:
    storage, cache = write_order(tmp_path), Storage(str(tmp_path / "cache"))
    load_order(storage, CaptionSet.COCO, cache=cache)
    (name,) = cache.names()
    cache.write_table(pq.read_table(cache.path(name)).drop_columns(["texts"]), name)
    with pytest.raises(DataError, match=r"found columns \['benchmark', 'subset', 'item_id', 'image_id'\]"):
        load_order(storage, CaptionSet.COCO, cache=cache)


def test_retrieval_over_the_same_file_takes_captions_as_they_are(tmp_path: Path) -> None:
    storage = write_order(tmp_path)
    benchmark = load_retrieval(storage, CaptionSet.COCO)
    assert benchmark.name == "coco_retrieval"
    assert len(benchmark.image_keys()) == 30
    assert benchmark.image_keys() == load_order(storage, CaptionSet.COCO).image_keys()
    assert benchmark.texts() == {f"{i} {caption}" for i in range(30) for caption in CAPTIONS}
    shared = load_retrieval(storage, CaptionSet.FLICKR30K)
    features = tied_features(shared, 0)
    rows = decisions(shared.score(features))
    assert rows["i2t_r1", "flickr30k:flickr30k-images/0.jpg"]  # both images have all the captions
    assert all(rows.values())


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"image": "test2014/1.jpg", "caption": ["a"]}, "test.json, item 'test2014/1.jpg': found image"),
        ({"image": "val2014/1.jpg", "caption": []}, r"found caption \[\]; expected a list of captions"),
        ({"image": "val2014/1.jpg", "caption": ["a", " "]}, "none empty"),
        ({"image": "val2014/1.jpg", "caption": ["a", None]}, "none empty"),
        ({"image": "val2014/1.jpg", "caption": "a"}, "found caption 'a'; expected caption: a list"),
        ({"image": "val2014/0.jpg", "caption": ["a"]}, "found image 'val2014/0.jpg' a second time"),
        ({"image": "val2014/1.jpg", "caption": ["..."]}, "item '1.jpg/0': found texts .*none empty"),
    ],
)
def test_order_broken_item_is_refused_by_name(tmp_path: Path, item: dict[str, Any], message: str) -> None:
    good = {"image": "val2014/0.jpg", "caption": ["a cat"]}
    write_json(tmp_path, "order/coco_karpathy_test.json", [good, item])
    with pytest.raises(DataError, match=message):
        load_order(Storage(str(tmp_path)), CaptionSet.COCO)


def test_coco_retrieval_real_file_has_the_published_counts(real_data: Path) -> None:
    benchmark = load_retrieval(annotations(real_data), CaptionSet.COCO)
    assert (len(benchmark.image_keys()), len(benchmark.texts())) == (5000, 24_855)
    assert "coco_val2014:COCO_val2014_000000391895.jpg" in benchmark.image_keys()


@pytest.mark.slow  # tags 25,010 captions
def test_coco_order_real_file_has_the_published_counts(tmp_path: Path, real_data: Path) -> None:
    cache = Storage(str(tmp_path))
    benchmark = load_order(annotations(real_data), CaptionSet.COCO, cache=cache)
    items = list(benchmark.shown())
    assert len(items) == 25_010
    assert len(benchmark.image_keys()) == 5000
    assert all(len(item.texts) == 5 for item in items)
    same = Counter(
        way for item in items for way, text in zip(WAYS, item.texts[1:], strict=True) if text == item.texts[0]
    )
    assert {way: round(100 * same[way] / len(items)) for way in WAYS} == dict(
        zip(WAYS, (11, 1, 9, 0), strict=True)
    )
    assert list(load_order(annotations(real_data), CaptionSet.COCO, cache=cache).shown()) == items
