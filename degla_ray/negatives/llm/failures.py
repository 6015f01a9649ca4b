"""What engines and servers said instead of answers: when to stop asking, what is printed, what helps."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from degla_ray.config import NegativesConfig
from degla_ray.errors import DeglaError
from degla_ray.negatives.llm.ledger import Row, State
from degla_ray.negatives.llm.quality import HTTP
from degla_ray.schema import REJECTS, Kind, RejectReason
from degla_ray.storage import Storage

FAILURES = (RejectReason.TIMEOUT, RejectReason.ENGINE_ERROR, RejectReason.REASONING_ONLY)
"""Reasons that have their cause in the settings or the server, not in a caption."""

NO_ACCIDENT = 16
"""Refusals in a row that do not come of a few captions which a server will not read."""

_FIELD = re.compile(
    r"(?:parameters?|arguments?|fields?|value):? *['\"`](\w+)['\"`]|['\"`](\w+)['\"`] is not", re.I
)
_BY_STATUS = {
    401: "set the environment variable that openai.key_variable names to a key of this server",
    402: "the account has nothing left",
    403: "the key that openai.key_variable names may not do this",
    404: "openai.model and openai.base_url (which mostly ends in /v1) must be the server's own",
    413: "ask with fewer examples (generation.shots)",
    429: "ask for less at a time (openai.concurrency), or repeat more often (openai.max_retries)",
}
_AGAIN = "; then the same command with --generation.retry_failed true asks for these again"


class Refused(DeglaError):
    """The server refuses whatever it is asked."""


class NothingAccepted(DeglaError):
    """A finished run without a single negative."""


class Refusals:
    """Holds back rows for as long as a server refuses every question with one and the same status 4xx.

    Rows that are held back are not in the ledger: once the cause is mended they are asked again.

    Args:
        engine: whose rows they are; what rules filled in says nothing of the server.
        block: questions that are asked together; so many refusals in a row are enough.
    """

    def __init__(self, engine: str, block: int) -> None:
        self._engine, self._enough = engine, max(NO_ACCIDENT, block)
        self._held: list[Row] = []

    def passed(self, rows: Sequence[Row]) -> list[Row]:
        """The rows to be kept: with these, those that were held back, or none.

        Raises:
            Refused: there are enough.
        """
        self._held += rows
        if self._one_refusal() is None:
            return self.release()
        if len(self._refused()) >= self._enough:
            self.stop()
        return []

    def release(self) -> list[Row]:
        """The rows that are held back, to be kept after all."""
        held, self._held = self._held, []
        return held

    def stop(self) -> None:
        """Raises Refused if every question that is held back was refused."""
        status = self._one_refusal()
        if status is None:
            return
        refused = self._refused()
        said = Counter(row["text"] for row in refused).most_common(1)[0][0]
        found = f"the server refused all of {len(refused)} questions with {status}: {said}"
        helps = remedy(refused[0]["reason"], status, said).removesuffix(_AGAIN)
        raise Refused(f"{found}; {helps}. Nothing of these is kept; the same command asks again")

    def _refused(self) -> list[Row]:
        return [row for row in self._held if row["state"] == State.ERROR]

    def _one_refusal(self) -> str | None:
        """The status that every question held back was refused with; none where one was not, or none is."""
        said = {
            row["detail"] if row["state"] == State.ERROR else ""
            for row in self._held
            if row["state"] != State.NOT_APPLICABLE and row["engine"] == self._engine
        }
        (status,) = said if len(said) == 1 else ("",)
        return status if status.startswith(f"{HTTP}4") else None


def remedy(reason: str, detail: str, said: str) -> str:
    """What helps against a failure, as a part of a sentence."""
    status = int(detail.removeprefix(HTTP)) if detail.startswith(HTTP) else 0
    if reason == RejectReason.REASONING_ONLY:
        return (
            "raise generation.max_tokens, or turn thinking off: --openai.extra_body '{chat_template_kwargs: "
            "{enable_thinking: false}}', --vllm.chat_template_kwargs '{enable_thinking: false}'"
            " (other settings want another output folder)"
        )
    if reason == RejectReason.TIMEOUT:
        return f"raise generation.timeout_s, or ask for less at a time (openai.concurrency){_AGAIN}"
    if status in (400, 422):
        return _other_fields(said)
    if status in _BY_STATUS:
        again = _AGAIN if status in (401, 402, 403, 429) else ""
        return _BY_STATUS[status] + again
    if "no completion" in said:
        return f"is openai.base_url (mostly ending in /v1) the address of the API? If it is, wait{_AGAIN}"
    return f"the server's or the engine's own log says more{_AGAIN}"


def _other_fields(said: str) -> str:
    """The setting that gives a request other fields than those a server refused."""
    if re.search(r"too (?:large|long|many)|context length|maximum|exceed", said, re.I):
        return "lower generation.max_tokens or generation.shots, or serve the model with a longer context"
    if "max_completion_tokens" in said:
        return "give --openai.extra_body '{max_completion_tokens: 64}'"
    found = _FIELD.search(said)
    name = (found[1] or found[2]) if found else "FIELD"
    return f"--openai.extra_body '{{{name}: null}}' leaves a field out, '{{FIELD: VALUE}}' sets one"


def tell_failures(storage: Storage, counts: Mapping[str, int]) -> str:
    """`tell` for a finished folder."""
    number = sum(n for name, n in counts.items() if name.rpartition(".")[2] in FAILURES)
    if not number:
        return ""
    rejects = storage.read_dataset("rejects", REJECTS, ["reason", "detail", "text"])
    return tell(row for batch in rejects.to_batches(max_chunksize=10_000) for row in batch.to_pylist())


def tell(rows: Iterable[Row]) -> str:
    """Prints the commonest failures among rows with what helps; returns the commonest, or nothing."""
    failed = Counter((r["reason"], r["detail"], r["text"]) for r in rows if r["reason"] in FAILURES)
    by_cause: Counter[tuple[str, str]] = Counter()
    said: dict[tuple[str, str], str] = {}
    for (reason, detail, text), n in failed.most_common():
        by_cause[(reason, detail)] += n
        said.setdefault((reason, detail), text)
    lines = []
    for (reason, detail), n in by_cause.most_common(3):
        text = " ".join(said[(reason, detail)].split())[:200]
        name = f"{reason} ({detail})" if detail.startswith(HTTP) else reason
        lines.append(f"{n} {name}, e.g. {text!r}: {remedy(reason, detail, text)}")
        print(f"failed: {lines[-1]}")
    return lines[0] if lines else ""


def require_accepted(config: NegativesConfig, counts: Mapping[str, int], commonest: str) -> None:
    """Raises NothingAccepted where an engine was asked and no negative came of it."""
    kinds = [kind.value for kind in Kind]
    asked = sum(
        counts.get(f"attempts.{kind}.{state}", 0) for kind in kinds for state in ("ok", "rejected", "error")
    )
    if not asked or any(counts.get(f"rows.{kind}") for kind in kinds):
        return
    reasons: Counter[str] = Counter()
    for name, n in counts.items():
        if name.startswith("rejects."):
            reasons[name.rpartition(".")[2]] += n
    told = commonest or ", ".join(f"{reason} {n}" for reason, n in reasons.most_common(3))
    raise NothingAccepted(
        f"nothing was accepted of {asked} answers: {told} (all of them: {config.output}/rejects)"
    )
