"""Which captions the rules read: English ones, and what is said of the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from degla_ray.language.identify import describe, is_english, survey
from degla_ray.negatives.captions import ImageCaption
from degla_ray.negatives.rules import RuleEngine
from degla_ray.negatives.shard import ShardTask, write_shard
from degla_ray.schema import NEGATIVES, REJECTS, Kind
from degla_ray.stage import StageFolder

ENGLISH = ["A man in a red shirt rides a brown horse.", "two dogs run through tall grass with a ball"]
OTHERS = [
    "Ein Mann fährt mit einem roten Fahrrad auf der Straße",
    "Un homme avec un chapeau noir et une chemise blanche",
    "een man op een fiets naast een rode auto",
    "犬が草の上を走る",
]


def test_languages_each_caption_is_told_by_itself() -> None:
    assert all(is_english(caption, True) for caption in ENGLISH)
    assert not any(is_english(caption, True) for caption in OTHERS)


def test_languages_doubtful_caption_is_what_its_source_is() -> None:
    assert is_english("Hund am Strand", source_is_english=True)
    assert not is_english("Hund am Strand", source_is_english=False)


def test_languages_survey_says_what_a_foreign_source_means() -> None:
    assert describe(survey(ENGLISH)) == "language of the captions: en 100%"
    assert "captions in other languages get no negatives" in describe(survey(OTHERS))


@pytest.mark.parametrize("english", [True, False])
def test_write_shard_caption_of_another_language_is_a_reject_and_not_applicable(
    tmp_path: Path, english: bool
) -> None:
    folder = StageFolder(str(tmp_path), "negatives", {}, 1)
    kinds = (Kind.REPLACE_NOUNS, Kind.RESHUFFLE)
    task = ShardTask(folder=folder, kinds=kinds, per_kind=1, seed=0, english=english)
    captions = [
        ImageCaption(sample_id=f"{i}", text=text, siblings=(), graph=None)
        for i, text in enumerate([ENGLISH[0], *OTHERS])
    ]
    counts = write_shard(task, RuleEngine(), 0, captions)
    assert counts["rejects.caption.wrong_language"] == len(OTHERS)
    for kind in kinds:
        assert counts[f"captions.{kind}.not_applicable"] == len(OTHERS)
        assert counts[f"captions.{kind}.ok"] == 1
    rows = folder.storage.read_dataset("negatives", NEGATIVES)
    assert set(rows["sample_id"].to_pylist()) == {"0"}
    rejects = folder.storage.read_dataset("rejects", REJECTS).to_pylist()
    told = [row for row in rejects if row["reason"] == "wrong_language"]
    assert [row["text"] for row in told] == OTHERS
    assert told[0]["detail"].startswith("de, probability")
