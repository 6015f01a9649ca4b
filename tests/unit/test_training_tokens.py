"""Captions beyond the context length, and negatives that a model cannot tell from their caption."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow as pa
import pytest
from tiny_models import write_config

from degla_ray.config import ModelConfig
from degla_ray.loader.samples import Samples, Texts
from degla_ray.loader.tokens import Counts, tokenise
from degla_ray.model.build import build_tokenizer

LONG = "a red square and " * 30


def samples_of(negatives: dict[str, list[str]]) -> Samples:
    """Caption -> its negatives; the images do not matter here."""
    counts = [len(texts) for texts in negatives.values()]
    ids = pa.array([f"s{n}" for n in range(len(negatives))], pa.large_string())
    return Samples(
        folder="",
        parts=(),
        sample_id=ids,
        caption=pa.array(list(negatives), pa.large_string()),
        image=np.arange(len(negatives)),
        image_id=ids,
        part_I=np.zeros(len(negatives), np.int32),
        offset_I=np.zeros(len(negatives), np.int64),
        length_I=np.zeros(len(negatives), np.int64),
        crc32_I=np.zeros(len(negatives), np.int64),
        negative=pa.array([text for texts in negatives.values() for text in texts], pa.large_string()),
        first_negative=np.cumsum([0, *counts]),
        neighbour=np.empty((len(negatives), 0), np.int64),
        row_of=np.arange(len(negatives)),
        first_row=np.arange(len(negatives) + 1),
        short_side=32,
    )


@pytest.fixture(params=["clip-77", "clip-16", "own-32"])
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """CLIP's at two context lengths, and a small lower-casing one through transformers."""
    if request.param == "own-32":
        return build_tokenizer(ModelConfig(name=write_config(tmp_path / "model")))
    return open_clip.SimpleTokenizer(context_length=int(request.param.removeprefix("clip-")))


def test_tokenise_negatives_with_the_tokens_of_caption_or_another_are_found(tokenizer: Any) -> None:
    samples = samples_of(
        {
            "a cat": ["a dog", "A Cat", "a dog ", "a DOG", "a cat."],
            LONG: [LONG + "a dog", "a dog " + LONG, "a dog " + LONG + "a cat"],
            "a bird": [],
            "a dog": ["a cat"],  # another caption's text is no fault
        }
    )
    found = tokenise(samples, tokenizer, 0, 4)
    assert found.fault_G.tolist() == [0, 1, 2, 2, 0, 1, 0, 2, 0]
    assert found.cut == 1
    assert found.captions.context == tokenizer.context_length
    part = tokenise(samples, tokenizer, 1, 3)
    assert part.fault_G.tolist() == [1, 0, 2]


def test_tokenise_caption_of_just_the_context_length_is_not_cut(tokenizer: Any) -> None:
    """A start and an end token are the tokenizer's; `a` is one token to all of them."""
    fits = tokenizer.context_length - 2
    for words, cut in ((1, 0), (fits - 1, 0), (fits, 0), (fits + 1, 1), (fits + 2, 1), (3 * fits, 1)):
        assert tokenise(samples_of({" ".join(["a"] * words): []}), tokenizer, 0, 1).cut == cut, words


def test_counts_say_what_is_cut_and_what_is_dropped() -> None:
    counts = Counts(
        length=77, captions=2000, captions_cut=12, negatives=399, same_as_caption=91, duplicate_negative=3
    )
    assert counts.describe() == (
        "12 of 2,000 captions are cut at 77 tokens; 94 of 399 negatives dropped: 91 have their caption's "
        "tokens, 3 those of another negative (rejects/)"
    )


def test_texts_any_selection_gives_the_tokenizers_tokens(tokenizer: Any) -> None:
    texts = ["a cat", LONG, "", "a dog on a mat!", "a"]
    found = tokenise(samples_of({"a bird": texts, "two birds": ["a fish"]}), tokenizer, 0, 2)
    all_texts = Texts.joined([found.captions, found.negatives])
    expected = np.asarray(tokenizer(["a bird", "two birds", *texts, "a fish"]))
    for which in ([0], [3, 3, 1], [7, 2, 0, 5], list(range(8))):
        padded = all_texts.take(np.array(which)).padded()
        length = padded.shape[1]
        assert (padded == expected[which][:, :length]).all()
        assert (expected[which][:, length:] == all_texts.padding).all()
