"""What a run asks for and keeps: the same whatever the order of the answers, and whatever ends it."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from degla_ray.config import GenerationConfig, NegativesConfig
from degla_ray.negatives.captions import CaptionShards
from degla_ray.negatives.llm import generation
from degla_ray.negatives.llm.engines.scripted_engine import ScriptedEngine
from degla_ray.negatives.llm.generation import Run
from degla_ray.negatives.llm.ledger import text_key
from degla_ray.negatives.llm.pool import EngineClock, calls_at_a_time
from degla_ray.negatives.llm.progress import Progress
from degla_ray.negatives.llm.prompting import load_prompts
from degla_ray.negatives.llm.sending import GenerationJob, in_blocks, request
from degla_ray.schema import ATTEMPTS, Kind
from degla_ray.stage import StageFolder
from degla_ray.storage import Storage

KINDS = [Kind.SWAP_NOUNS, Kind.REPLACE_NOUNS, Kind.RESHUFFLE]
SHARDS = 6


def job_of(prompting: str = "per_kind", output: str = "") -> GenerationJob:
    asked: dict[str, Any] = {"prompting": prompting, "attempts": 3}
    config = NegativesConfig(
        prepared="", output=output, engine="scripted", per_kind=1, generation=GenerationConfig(**asked)
    )
    prompts = load_prompts(KINDS, 1, seed=0, prompting=prompting)
    return GenerationJob(config=config, engine=ScriptedEngine(config), prompts=prompts, prompt_sha="")


def captions() -> pa.Table:
    texts = [f"A dog sees {n} cats." for n in range(100)]
    columns = {"sample_id": [f"s{n}" for n in range(100)], "image_id": [f"i{n}" for n in range(100)]}
    return pa.table({**columns, "caption": texts, "key": [text_key(text) for text in texts]})


def answer(asked: dict[str, Any]) -> dict[str, Any]:
    """A row that depends on the request only; equal negatives of two kinds are frequent."""
    rng = random.Random(asked["seed"])
    state, reason = ("ok", "") if rng.random() < 0.6 else ("rejected", "markup")
    row = {name: asked[name] for name in ("key", "kind", "attempt")} | {"state": state, "reason": reason}
    row |= {
        "text": f"{asked['caption']} {rng.randrange(3)}",
        "detail": "",
        "engine": "scripted",
        "model": "m",
    }
    return row | dict.fromkeys(("prompt_tokens", "completion_tokens", "cached_tokens"), 1) | {"seconds": 0.1}


def run(folder: Path, order: int, most: int = 10**6) -> list[dict[str, Any]]:
    """Go on with a run until `most` blocks are answered, in a random order; return its rows."""
    job, stage = job_of(output=str(folder)), StageFolder(str(folder), "negatives", {"a": 1}, SHARDS)
    shards, rng = CaptionShards.of(captions(), {}, SHARDS, by="key"), random.Random(order)
    sent: list[list[dict[str, Any]]] = []
    with (
        Progress(job.config, 300, EngineClock(0)) as progress,
        Run(job, stage, shards, stage.pending(), progress) as asks,
    ):
        for _ in range(most):
            while len(sent) < 4 and (block := asks.next_block()):
                sent.append(block)
            if not sent:
                break
            asks.keep([answer(asked) for asked in sent.pop(rng.randrange(len(sent)))])
        assert progress.settled == 300 or most < 10**6
    if stage.pending():
        return []
    assert not Storage(str(folder)).names("ledger")
    return Storage(str(folder)).read_dataset("attempts", ATTEMPTS).to_pylist()


def test_run_asks_for_the_same_whatever_the_order_of_the_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "WINDOW", 40)  # several windows are open at a time
    first = run(tmp_path / "first", order=1)
    assert first == run(tmp_path / "second", order=2)
    asked = Counter((row["key"], row["kind"], row["attempt"]) for row in first)
    assert set(asked.values()) == {1}
    assert {row["reason"] for row in first} == {"", "markup", "duplicate_negative"}
    assert {attempt for _, _, attempt in asked} == {0, 1, 2}


def test_run_that_is_ended_again_and_again_comes_to_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "WINDOW", 40)
    whole = run(tmp_path / "whole", order=1)
    for order in range(20):
        if rows := run(tmp_path / "parts", order, most=3):
            assert order > 2
            assert rows == whole
            return
    raise AssertionError("it never came to an end")


@pytest.mark.parametrize(("prompting", "rows"), [("per_kind", 33), ("slots", 33), ("joint", 96)])
def test_in_blocks_holds_as_many_requests_in_every_way_of_prompting(prompting: str, rows: int) -> None:
    job = job_of(prompting)
    asked = [request(0, f"a dog sees {n} cats", kind.value) for n in range(70) for kind in KINDS]
    blocks = list(in_blocks(job, asked))
    assert [row for block in blocks for row in block] == asked
    assert {len(block) for block in blocks[:-1]} == {rows}, "32 requests, and the kinds of a caption together"
    assert calls_at_a_time(job.engine.concurrency, job.block) * job.block >= 1.25 * job.engine.concurrency
