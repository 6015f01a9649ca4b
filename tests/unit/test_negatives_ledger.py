"""The ledger: what is settled stays settled, whatever is killed in between."""

from __future__ import annotations

import pytest

from degla_ray.negatives.llm.ledger import Ledger, State, StateRow, StateTable, may_retry, text_key
from degla_ray.schema import ATTEMPTS, Kind, RejectReason
from degla_ray.stage import StageFolder, shard_of

KINDS = (Kind.SWAP_NOUNS, Kind.RESHUFFLE)


def row(
    key="a", kind="swap_nouns", attempt=0, state="ok", text="a cat bites a dog", reason="", engine="vllm"
):
    numbers = {"prompt_tokens": 9, "completion_tokens": 3, "cached_tokens": 4, "seconds": 0.5}
    texts = {"detail": "", "engine": engine, "model": "small"}
    return {
        "key": key,
        "kind": kind,
        "attempt": attempt,
        "state": state,
        "text": text,
        "reason": reason,
    } | (texts | numbers)


@pytest.fixture
def states():
    return StateTable(["a", "b"], KINDS, per_kind=1, attempts=2)


def asked(states):
    return [(key, kind, attempt) for key in "ab" for kind, attempt, _, _ in states.next_round(key)]


def test_text_key_joins_captions_that_read_alike():
    assert text_key("A dog  runs.") == text_key("a dog runs") != text_key("A dog runs!")


def test_state_table_asks_for_every_kind_of_a_caption(states):
    assert asked(states) == [
        ("a", "swap_nouns", 0),
        ("a", "reshuffle", 0),
        ("b", "swap_nouns", 0),
        ("b", "reshuffle", 0),
    ]


def test_state_table_asks_again_until_accepted_or_no_attempt_is_left(states):
    states.add([row("a"), row("b", state="rejected", reason="same_as_caption")])
    assert asked(states) == [("a", "reshuffle", 0), ("b", "reshuffle", 0)], (
        "first attempts before second ones"
    )
    assert states.add([row(key, "reshuffle", text=f"{key} dog bites a cat") for key in "ab"]) == ["a", "b"]
    assert states.next_round("b") == [("swap_nouns", 1, True, 1)]
    assert states.add([row("b", attempt=1, state="error", reason="timeout")]) == ["b"]
    assert not states.finished
    assert asked(states) == []
    assert states.finished
    assert states.settled() == 4


def test_state_table_tells_a_caption_whose_last_request_is_answered(states):
    asked(states)
    assert states.add([row("a"), row("b", "reshuffle", state="rejected")]) == []
    assert states.add(
        [row("a", "reshuffle", state="rejected"), row("a", "reshuffle", text="a bone", engine="rules")]
    ) == ["a"]
    assert states.next_round("a") == []
    assert states.add([row("b")]) == ["b"]
    assert states.next_round("b") == [("reshuffle", 1, True, 1)]


def test_state_table_asks_no_more_where_the_kind_cannot_be(states):
    states.add([row(key, kind, state="not_applicable", text="") for key in "ab" for kind in KINDS])
    assert asked(states) == []


def test_state_table_wants_as_many_as_per_kind_says():
    states = StateTable(["a"], KINDS[:1], per_kind=2, attempts=2)
    assert states.next_round("a") == [("swap_nouns", 0, False, 2)]
    states.add([row()])
    assert states.next_round("a") == [("swap_nouns", 1, False, 1)]
    states.add([row(attempt=1, text="a dog bites a bone")])
    assert states.next_round("a") == []


@pytest.mark.parametrize("late_first", [False, True])
def test_state_table_keeps_the_earlier_kind_of_two_equal_negatives_whichever_came_first(late_first):
    states = StateTable(["a"], KINDS, per_kind=1, attempts=2)
    rows = [row(), row(kind="reshuffle", text="A cat bites the dog!")]
    states.add(reversed(rows) if late_first else rows)
    assert states.next_round("a") == [("reshuffle", 1, True, 1)]
    assert states.rows[("a", "reshuffle")].attempts[0]["reason"] == "duplicate_negative"
    assert states.rows[("a", "swap_nouns")].state() is State.OK


@pytest.mark.parametrize(
    ("rows", "reasons", "again"),
    [
        ([row(state="error", reason="timeout")], [], True),
        ([row(state="rejected", reason="markup")], [], False),
        ([row(state="rejected", reason="markup")], [RejectReason.MARKUP], True),
        ([row(state="rejected", reason="markup")], [RejectReason.SYNONYM], False),
        ([row(), row(attempt=1, state="error", reason="timeout")], [], False),
        ([row(state="not_applicable")], [], False),
    ],
)
def test_may_retry_errors_and_the_named_reasons(rows, reasons, again):
    assert may_retry(StateRow(allowed=1, attempts=rows), reasons) is again


def test_state_table_retry_allows_as_many_attempts_more(states):
    failed = [row("a", attempt=i, state="error", reason="engine_error") for i in range(2)]
    states.add(failed)
    others = [("b", "swap_nouns"), ("a", "reshuffle"), ("b", "reshuffle")]
    states.add([row(key, kind, text=f"{key} {kind}") for key, kind in others])
    assert asked(states) == []
    assert states.retry([]) == 1
    assert asked(states) == [("a", "swap_nouns", 2)]


def test_state_row_is_the_best_then_the_last():
    assert StateRow(allowed=2, attempts=[row(), row(state="error")]).state() is State.OK
    assert StateRow(allowed=2, attempts=[row(state="error"), row(state="rejected")]).state() is State.REJECTED


@pytest.fixture
def ledger(tmp_path):
    return Ledger(StageFolder(str(tmp_path / "out"), "negatives", {"a": 1}, 2))


def test_ledger_reads_back_what_was_appended_in_the_order_of_attempts(ledger):
    second, first = row(attempt=1, state="error", reason="timeout"), row(state="rejected", reason="markup")
    ledger.append([second])
    ledger.append([first])
    assert ledger.read([]) == [first, second]


def test_ledger_forgets_appended_rows_only_after_they_are_in_their_shard(ledger):
    ledger.append([row()])
    ledger.close({1: [row()]})
    assert ledger.read([1]) == [row()], "in both places, told once: killed before the files went"
    ledger.clear({1})
    assert ledger.read([0]) == []
    assert ledger.read([1]) == [row()]
    assert [row.state() for row in ledger.settled(1)] == [State.OK]


def test_ledger_keeps_appended_rows_of_shards_that_are_not_settled(ledger):
    elsewhere = next(key for key in map(str, range(99)) if shard_of(key, 2) != shard_of("a", 2))
    ledger.append([row(), row(elsewhere)])
    ledger.append([row(elsewhere, "reshuffle")])
    ledger.clear({shard_of("a", 2)})
    assert [r["key"] for r in ledger.read([])] == [elsewhere, elsewhere]


def test_ledger_rows_have_the_schemas_columns():
    assert set(row()) == set(ATTEMPTS.names)
