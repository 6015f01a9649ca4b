"""One shard without Ray: ledger, same bytes, captions generated once, truth of scenes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from degla_ray.config import NegativesConfig, ScenesConfig
from degla_ray.errors import DataError
from degla_ray.negatives.captions import CaptionShards, ImageCaption
from degla_ray.negatives.pipeline import generate
from degla_ray.negatives.rules import RuleEngine
from degla_ray.negatives.selection import ORDER, EditRequest, Proposal
from degla_ray.negatives.shard import ShardTask, vocabulary, write_shard
from degla_ray.schema import NEGATIVES, REJECTS, Kind, RejectReason
from degla_ray.sources.scenes.captions import captions as scene_captions
from degla_ray.sources.scenes.truth import is_true
from degla_ray.sources.scenes.world import sample_scene, scene_rng, scene_to_json
from degla_ray.stage import StageFolder, shard_of


class CountingEngine(RuleEngine):
    """The rules, counting the captions that they are asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def propose(self, requests: Sequence[EditRequest], kind: Kind) -> Iterable[Iterable[Proposal]]:
        self.asked += [request.caption for request in requests]
        return super().propose(requests, kind)


@cache
def engine() -> RuleEngine:
    return RuleEngine()


def task(folder: Path, per_kind: int = 2) -> ShardTask:
    stage = StageFolder(str(folder), "negatives", {"test": 1}, 1)
    return ShardTask(folder=stage, kinds=ORDER, per_kind=per_kind, seed=0)


def caption(sample_id: str, text: str, *siblings: str, graph: str | None = None) -> ImageCaption:
    return ImageCaption(sample_id=sample_id, text=text, siblings=siblings, graph=graph)


def tables(folder: Path) -> tuple[pa.Table, pa.Table]:
    storage = StageFolder(str(folder), "negatives", {"test": 1}, 1).storage
    return storage.read_dataset("negatives", NEGATIVES), storage.read_dataset("rejects", REJECTS)


CAPTIONS = [
    caption("a", "A red circle is left of a blue square."),
    caption("b", "a man and a woman"),
    caption("c", "two brown dogs chase a cat through the snow"),
    caption("d", "hello"),
]


def test_write_shard_every_caption_ends_in_one_state_of_each_kind(tmp_path: Path) -> None:
    counts = write_shard(task(tmp_path), engine(), 0, CAPTIONS)
    rows, rejects = tables(tmp_path)
    assert counts["captions"] == 4
    for kind in Kind:
        states = {s: counts.get(f"captions.{kind}.{s}", 0) for s in ("ok", "rejected", "not_applicable")}
        assert sum(states.values()) == 4
        mine = rows.filter(pa.compute.equal(rows["kind"], kind.value))
        assert counts.get(f"rows.{kind}", 0) == mine.num_rows
        assert states["ok"] == len(set(mine["sample_id"].to_pylist()))
    assert counts["captions.swap_nouns.rejected"] == 1  # the man and the woman
    assert sum(n for name, n in counts.items() if name.startswith("rejects.")) == rejects.num_rows
    assert set(rejects["stage"].to_pylist()) == {"negatives"}
    keys = list(zip(*(rows[c].to_pylist() for c in ("sample_id", "kind", "negative")), strict=True))
    assert len(set(keys)) == len(keys) > 10
    assert set(rows["engine"].to_pylist()) == {"rules"}
    assert set(rows["prompt_sha"].to_pylist()) == {engine().prompt_sha}


def test_write_shard_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    contents = []
    for name in ("one", "two"):
        write_shard(task(tmp_path / name), RuleEngine(), 0, CAPTIONS)
        contents.append({p.name: p.read_bytes() for p in sorted((tmp_path / name).glob("*/*.parquet"))})
        assert len(list((tmp_path / name).glob("*/*.parquet"))) == 2
    assert contents[0] == contents[1]


def test_write_shard_identical_captions_are_generated_once_and_written_for_each(tmp_path: Path) -> None:
    counting = CountingEngine()
    twins = [caption(f"t{i}", "a dog bites a man") for i in range(5)]
    write_shard(task(tmp_path), counting, 0, twins)
    assert counting.asked == ["a dog bites a man"] * len(ORDER)
    rows, _ = tables(tmp_path)
    by_sample = {
        t.sample_id: [r["negative"] for r in rows.to_pylist() if r["sample_id"] == t.sample_id] for t in twins
    }
    assert by_sample["t0"]
    assert all(found == by_sample["t0"] for found in by_sample.values())


def test_write_shard_scenes_have_no_negative_that_is_true(tmp_path: Path) -> None:
    scenes, mine = {}, []
    for index in range(60):
        rng = scene_rng(0, "train", index)
        scene = sample_scene(rng, ScenesConfig())
        texts = scene_captions(scene, np.random.default_rng(index), 3)
        for n, text in enumerate(texts):
            siblings = tuple(sorted({t for t in texts if t != text}))
            scenes[f"{index}-{n}"] = scene
            mine.append(caption(f"{index}-{n}", text, *siblings, graph=scene_to_json(scene)))
    counts = write_shard(task(tmp_path), engine(), 0, mine)
    rows, rejects = tables(tmp_path)
    verdicts = [is_true(r["negative"], scenes[r["sample_id"]]) for r in rows.to_pylist()]
    assert verdicts.count(True) == 0
    assert verdicts.count(False) > 600
    judged = {t: sum(n for name, n in counts.items() if name.startswith("truth.") and name.endswith(t))
              for t in (".true", ".false", ".not_parseable")}  # fmt: skip
    assert judged[".false"] == verdicts.count(False)
    assert judged[".not_parseable"] == verdicts.count(None)
    assert judged[".true"] == rejects["reason"].to_pylist().count(RejectReason.TRUE_OF_IMAGE)
    # what the rules alone let through: the checks cannot see what a caption leaves unsaid
    assert judged[".true"] < 0.01 * len(verdicts)


def test_captions_of_all_shards_are_every_caption_once_with_its_siblings() -> None:
    table = pa.table(
        {
            "sample_id": [f"s{i}" for i in range(50)],
            "image_id": [f"i{i // 5}" for i in range(50)],
            "caption": [f"caption {i}" for i in range(50)],
        }
    )
    shards = CaptionShards.of(table, {"i3": "{}"}, 4)
    found = [c for shard in range(4) for c in shards.captions_of(shard)]
    assert sorted(c.sample_id for c in found) == sorted(table["sample_id"].to_pylist())
    one = next(c for c in found if c.sample_id == "s17")
    assert one.siblings == ("caption 15", "caption 16", "caption 18", "caption 19")
    assert one.graph == "{}"
    for shard in range(4):
        ids = [c.sample_id for c in shards.captions_of(shard)]
        assert ids == sorted(i for i in table["sample_id"].to_pylist() if shard_of(i, 4) == shard)
    assert CaptionShards.of(table.slice(0, 1), {}, 60).captions_of(shard_of("s0", 60) - 1) == []
    assert vocabulary(["A Dog, 3 cats!"]) == {"a", "dog", "cats"}


@pytest.mark.parametrize(("size", "most"), [(1, 1), (20, 3), (1000, 16)])
def test_windows_hold_every_shard_once_and_no_more_captions_than_asked(size: int, most: int) -> None:
    names = [f"s{i}" for i in range(100)]
    table = pa.table({"sample_id": names, "image_id": names, "caption": names})
    shards = CaptionShards.of(table, {}, 16)
    windows = list(shards.windows(range(16), size))
    assert [shard for window in windows for shard in window] == list(range(16))
    assert all(sum(len(shards.rows(s)) for s in window) <= size for window in windows if len(window) > 1)
    assert max(map(len, windows)) <= most
    assert len(windows) > 1 or size >= 100


def test_generate_without_a_prepared_folder_names_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a folder that `jobs/prepare\.py` finished"):
        generate(NegativesConfig(prepared=str(tmp_path / "none"), output=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()
