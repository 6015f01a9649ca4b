"""A text-only judge of negatives: finds what gives itself away, and nothing where there is nothing."""

from __future__ import annotations

import random

from degla_ray.negatives.blind import blind_accuracy

ANIMALS = ["dog", "cat", "cow", "horse", "sheep", "goat", "duck", "fox", "bear", "deer", "mouse", "pig"]


def pairs(number: int, change):
    rng = random.Random(1)
    found = []
    for i in range(number):
        a, b = rng.sample(ANIMALS, 2)
        found.append((f"a {a} bites a {b} at {i} o'clock", change(a, b, i)))
    return found


def test_blind_accuracy_of_swaps_is_chance():
    accuracy = blind_accuracy(pairs(600, lambda a, b, i: f"a {b} bites a {a} at {i} o'clock"), seed=0)
    assert 0.42 < accuracy < 0.58


def test_blind_accuracy_of_words_that_captions_never_use_is_total():
    accuracy = blind_accuracy(pairs(600, lambda a, b, i: f"a {a} bites a quokka at {i} o'clock"), seed=0)
    assert accuracy > 0.98


def test_blind_accuracy_of_few_pairs_is_not_told():
    assert blind_accuracy(pairs(20, lambda a, b, i: f"{b} {a} {i}"), seed=0) is None
