"""Plausibility: the n-gram model, the folds, the balance of a set, and what may stand in a word's place."""

from __future__ import annotations

import math
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from degla_ray.config import NegativesConfig
from degla_ray.errors import SettingError
from degla_ray.language.ngrams import ORDER, NGrams
from degla_ray.negatives.balancing import write_balanced, write_scores
from degla_ray.negatives.blind import describe_blind, preview
from degla_ray.negatives.captions import CaptionShards
from degla_ray.negatives.plausibility import (
    FOLDS,
    TARGET,
    Balance,
    CaptionModels,
    Chooser,
    fold_of,
    plausibility,
)
from degla_ray.negatives.rules import RuleEngine
from degla_ray.negatives.selection import ORDER as KINDS
from degla_ray.negatives.selection import EditRequest, no_veto, select
from degla_ray.negatives.shard import ShardTask, write_shard
from degla_ray.schema import CAPTIONS as CAPTION_ROWS
from degla_ray.schema import NEGATIVES, REJECTS, Kind, RejectReason, with_large_text
from degla_ray.stage import StageFolder

CAPTIONS = [
    "A brown dog runs through the green grass.",
    "A white dog runs on the sand.",
    "A black cat sleeps on a red sofa.",
    "A man in a red shirt watches a woman in a blue dress.",
    "Two boys play soccer in the green grass.",
    "A woman in a white hat holds a black umbrella.",
    "A brown horse jumps over a white fence.",
]


@pytest.fixture(scope="module")
def table() -> pa.Table:
    """Captions that differ in their adjective, animal and place."""
    texts = [
        f"A {adjective} {animal} runs on the {place}."
        for adjective in ("brown", "white", "black", "small")
        for animal in ("dog", "cat", "horse", "cow", "bird")
        for place in ("sand", "grass", "snow")
    ]
    random.Random(0).shuffle(texts)
    rows = [
        {"sample_id": f"s{i}", "image_id": f"i{i}", "caption": text, "split": "train"}
        for i, text in enumerate(texts)
    ]
    return pa.Table.from_pylist(rows, schema=with_large_text(CAPTION_ROWS))


def witten_bell(texts: list[str], text: str) -> float:
    """Return the mean log-probability a word, counted in plain Python."""
    rows = [["<"] * (ORDER - 1) + t.lower().rstrip(".").split() + [">"] for t in texts]
    counts = Counter(
        tuple(row[i - n : i + 1]) for row in rows for i in range(ORDER - 1, len(row)) for n in range(ORDER)
    )
    words = {w for row in rows for w in row} - {"<", ">"}

    def chance(history: tuple[str, ...], word: str) -> float:
        lower = chance(history[1:], word) if history else 1 / (len(words) + 2)
        after = [n for gram, n in counts.items() if gram[:-1] == history]
        return (counts[(*history, word)] + len(after) * lower) / (sum(after) + len(after)) if after else lower

    row = ["<"] * (ORDER - 1) + text.lower().rstrip(".").split() + [">"]
    logs = [math.log(chance(tuple(row[i - 3 : i]), row[i])) for i in range(ORDER - 1, len(row))]
    return sum(logs) / len(logs)


@pytest.mark.parametrize("text", [CAPTIONS[0], "A brown cat sleeps on the grass.", "Quite unheard of.", ""])
def test_ngrams_score_is_interpolated_witten_bell(text: str) -> None:
    assert NGrams(CAPTIONS).score(["a dog", text])[1] == pytest.approx(witten_bell(CAPTIONS, text))


def test_ngrams_association_tells_usual_pairs_from_unusual_ones() -> None:
    model = NGrams(["a brown dog", "a green field"] * 50)
    assert model.association("brown", "dog") > 1 > 0.5 > model.association("green", "dog")
    assert model.association("purple", "dog") == 1


def test_caption_models_neither_selector_nor_judge_read_the_captions_of_their_fold() -> None:
    folds = [i % FOLDS for i in range(len(CAPTIONS))]
    for fold in range(FOLDS):
        changed = ["something else" if f == fold else c for c, f in zip(CAPTIONS, folds, strict=True)]
        for choose in (CaptionModels.selector, CaptionModels.judge):
            one, two = (choose(CaptionModels(c, folds), fold).score(CAPTIONS) for c in (CAPTIONS, changed))
            assert np.array_equal(one, two)
    only = CaptionModels(CAPTIONS, folds)
    assert only.selector(0) is only.judge(2)


def test_balance_keeps_as_many_likelier_as_less_likely_in_every_shard_order() -> None:
    scores = np.random.default_rng(0).normal(-0.2, 0.3, 20_000)
    keys = [str(i) for i in range(len(scores))]
    balance = Balance.of({"k": scores})
    keep = balance.keeps("k", scores, keys)
    kept = scores[keep]
    assert abs(np.mean(kept > TARGET) - 0.5) < 0.02
    assert np.array_equal(balance.keeps("k", scores[::-1], keys[::-1]), keep[::-1])
    close = Balance.of({"k": scores}, window=0.1).keeps("k", scores, keys, window=0.1)
    assert 0 < close.sum() < keep.sum()
    assert np.abs(scores[close] - TARGET).max() <= 0.1


def test_select_with_a_chooser_takes_a_candidate_near_its_caption(table: pa.Table) -> None:
    texts = table["caption"].to_pylist()
    models = CaptionModels(texts, [fold_of(image) for image in table["image_id"].to_pylist()])
    engine, caption = RuleEngine(None, models), "A brown dog runs on the sand."
    request = EditRequest(caption=caption, limit=100, seed="0")
    every = select(engine, [request], [Kind.REPLACE_NOUNS], [no_veto], Chooser(models))[0]
    texts = every.accepted[Kind.REPLACE_NOUNS]
    score = plausibility(models.selector(0), [caption] * len(texts), texts)
    assert len(texts) > 3
    assert abs(score[0] - TARGET) <= np.min(np.abs(score - TARGET)) + 0.02
    assert [every.plausibility[text] for text in texts] == pytest.approx(score.tolist())


def test_chooser_avoids_words_that_were_only_put_in_before() -> None:
    chooser = Chooser(CaptionModels(CAPTIONS, [0] * len(CAPTIONS)))
    scores = {"a cow runs": TARGET, "a pig runs": TARGET + 0.01}
    assert chooser.order("k", "a dog runs", scores)[0] == "a cow runs"
    for _ in range(5):
        chooser.add("k", "a dog runs", "a cow runs", TARGET)
    assert chooser.order("k", "a dog runs", scores)[0] == "a pig runs"
    assert chooser.order("other", "a dog runs", scores)[0] == "a cow runs"


@pytest.mark.parametrize(
    ("caption", "kind", "expected"),
    [
        ("A dog sits in a field.", Kind.SWAP_NOUNS, set()),  # "a field sits in a dog"
        ("A dog sits in a field.", Kind.RESHUFFLE, set()),
        ("A man watches a woman.", Kind.SWAP_NOUNS, {"A woman watches a man."}),
        ("A man watches two women.", Kind.SWAP_NOUNS, set()),
        ("A tall man watches two women.", Kind.RESHUFFLE, {"Two women watch a tall man."}),
    ],
)
def test_rules_with_models_exchange_only_things_of_one_sort(
    caption: str, kind: Kind, expected: set[str]
) -> None:
    models = CaptionModels(CAPTIONS, [0] * len(CAPTIONS))
    request = EditRequest(caption=caption, limit=5, seed="0")
    found = select(RuleEngine(None, models), [request], [kind], [no_veto], Chooser(models))[0]
    assert set(found.accepted[kind]) == expected


def test_rules_with_models_replace_nouns_by_those_of_the_same_context() -> None:
    texts = ["a dog sits on a sofa", "a cat sits on a red car", "a dog runs in a small park"] * 100
    models = CaptionModels(texts * FOLDS, sorted([*range(FOLDS)] * len(texts)))
    request = EditRequest(caption="A bird sits on a bench.", limit=50, seed="0")
    found = select(RuleEngine(None, models), [request], [Kind.REPLACE_NOUNS], [no_veto], Chooser(models))[0]
    negatives = set(found.accepted[Kind.REPLACE_NOUNS])
    assert {"A dog sits on a bench.", "A cat sits on a bench.", "A bird sits on a sofa."} <= negatives
    assert "A horse sits on a bench." not in negatives  # no caption has it


def test_rules_with_models_replace_adjectives_by_those_that_fit() -> None:
    texts = ["a brown dog in green grass", "a black dog in dry grass"] * 100
    models = CaptionModels(texts * FOLDS, sorted([*range(FOLDS)] * len(texts)))
    request = EditRequest(caption="A brown dog runs.", limit=50, seed="0")
    negatives = select(
        RuleEngine(None, models), [request], [Kind.REPLACE_ADJECTIVES], [no_veto], Chooser(models)
    )[0]
    found = negatives.accepted[Kind.REPLACE_ADJECTIVES]
    assert "A black dog runs." in found
    assert "A green dog runs." not in found


def test_write_balanced_every_candidate_is_a_negative_or_guessable(table: pa.Table, tmp_path: Path) -> None:
    folds = [fold_of(image) for image in table["image_id"].to_pylist()]
    models = CaptionModels(table["caption"].to_pylist(), folds)
    candidates, folder = (StageFolder(str(tmp_path / name), "negatives", {}, 2) for name in ("c", "f"))
    task = ShardTask(folder=candidates, kinds=KINDS, per_kind=2, seed=0)
    by_shard = CaptionShards.of(table, {}, 2)
    for shard in range(2):
        write_shard(task, RuleEngine(None, models), shard, by_shard.captions_of(shard), models)
    write_balanced(candidates, folder, window=0.5)
    proposed = candidates.storage.read_dataset("negatives", NEGATIVES)
    rows = folder.storage.read_dataset("negatives", NEGATIVES)
    rejects = folder.storage.read_dataset("rejects", REJECTS).to_pylist()
    guessable = [r for r in rejects if r["reason"] == RejectReason.GUESSABLE]
    assert 0 < len(rows) < len(proposed)
    assert len(rows) + len(guessable) == len(proposed)
    assert np.abs(rows["plausibility"].to_numpy() - TARGET).max() <= 0.5 + 1e-6
    counts = folder.counts()
    for kind in KINDS:
        states = (counts.get(f"captions.{kind}.{state}", 0) for state in ("ok", "rejected", "not_applicable"))
        assert sum(states) == len(table)
        assert counts[f"rows.{kind}"] == rows["kind"].to_pylist().count(kind)
    assert sum(n for name, n in counts.items() if name.startswith("rejects.")) == len(rejects)
    describe_blind(candidates, folder, table, models, seed=0)
    told = folder.storage.read_json("blind.json")
    caption = dict(zip(*(table[c].to_pylist() for c in ("sample_id", "caption")), strict=True))
    judged = [
        plausibility(
            models.judge(fold_of("i" + row["sample_id"][1:])), [caption[row["sample_id"]]], [row["negative"]]
        )[0]
        for row in rows.to_pylist()
    ]
    expected = np.mean([(score < 0) + 0.5 * (score == 0) for score in judged])
    assert told["accuracy"]["all"]["ngram_after"] == pytest.approx(expected)
    assert {len(pairs) for pairs in told["examples"].values()} == {3}


def test_preview_a_wider_window_leaves_more(table: pa.Table, capsys: pytest.CaptureFixture[str]) -> None:
    config = NegativesConfig(prepared="", output="", plausibility_preview=100)
    preview(config, (Kind.REPLACE_NOUNS,), table, {})
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if "%" in line]
    left = [int(row[3]) for row in rows]
    assert len(left) == 6
    assert left == sorted(left)
    assert left[-1] > left[0]


def test_write_scores_fills_the_column_of_a_language_model(table: pa.Table, tmp_path: Path) -> None:
    texts = table["caption"].to_pylist()
    models = CaptionModels(texts, [fold_of(image) for image in table["image_id"].to_pylist()])
    folder = StageFolder(str(tmp_path), "negatives", {}, 1)
    row = {"kind": "reshuffle", "engine": "scripted", "model": "", "prompt_sha": "", "attempt": 0}
    made = [{**row, "sample_id": s, "negative": "A dog runs."} for s in table["sample_id"].to_pylist()]
    folder.write_part("negatives", 0, pa.Table.from_pylist(made, schema=NEGATIVES))
    write_scores(folder, table, models)
    written = folder.storage.read_dataset("negatives", NEGATIVES)
    model = models.selector(fold_of("i3"))
    expected = plausibility(model, [texts[3]], ["A dog runs."])
    assert written["plausibility"].to_pylist()[3] == pytest.approx(expected[0])


def test_config_plausibility_window_without_a_model_is_refused() -> None:
    with pytest.raises(SettingError, match="plausibility_window"):
        NegativesConfig(prepared="a", output="b", plausibility="none", plausibility_window=0.1)
