"""Text-only accuracy: chance for swaps, 100 % for words that no caption uses, None for too few pairs."""

from __future__ import annotations

import random

from degla_ray.negatives.text_only import text_only_accuracy

ANIMALS = ["dog", "cat", "cow", "horse", "sheep", "goat", "duck", "fox", "bear", "deer", "mouse", "pig"]


def pairs(number: int, change):
    rng = random.Random(1)
    found = []
    for i in range(number):
        a, b = rng.sample(ANIMALS, 2)
        found.append((f"a {a} bites a {b} at {i} o'clock", change(a, b, i)))
    return found


def test_text_only_accuracy_of_swaps_is_chance():
    accuracy = text_only_accuracy(pairs(600, lambda a, b, i: f"a {b} bites a {a} at {i} o'clock"), seed=0)
    assert 0.42 < accuracy < 0.58


def test_text_only_accuracy_of_words_that_captions_never_use_is_total():
    accuracy = text_only_accuracy(pairs(600, lambda a, b, i: f"a {a} bites a quokka at {i} o'clock"), seed=0)
    assert accuracy > 0.98


def test_text_only_accuracy_of_few_pairs_is_none():
    assert text_only_accuracy(pairs(20, lambda a, b, i: f"{b} {a} {i}"), seed=0) is None
