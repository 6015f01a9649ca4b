"""Failures of engines and servers: when a run stops, what is printed, and which setting helps."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from degla_ray.config import NegativesConfig
from degla_ray.errors import DeglaError
from degla_ray.negatives.llm.answers import HTTP
from degla_ray.negatives.llm.ledger import Row, State
from degla_ray.schema import REJECTS, Kind, RejectReason
from degla_ray.storage import Storage

FAILURES = (RejectReason.TIMEOUT, RejectReason.ENGINE_ERROR, RejectReason.REASONING_ONLY)
"""Reasons whose cause is the settings or the server, not a caption."""

NO_ACCIDENT = 16
"""Consecutive refusals that are too many to be explained by a few captions that a server rejects."""

_FIELD = re.compile(
    r"(?:parameters?|arguments?|fields?|value):? *['\"`](\w+)['\"`]|['\"`](\w+)['\"`] is not", re.I
)
_BY_STATUS = {
    401: "set the environment variable that openai.key_variable names to a key of this server",
    402: "the account has no credit left",
    403: "the key that openai.key_variable names does not permit this request",
    404: "check openai.model and openai.base_url (which usually ends in /v1)",
    413: "use fewer examples per prompt (generation.shots)",
    429: "send fewer requests at a time (openai.concurrency), or retry more often (openai.max_retries)",
}
_AGAIN = "; then run the same command with --generation.retry_failed true to retry these"


class Refused(DeglaError):
    """Error: the server refuses every request."""


class NothingAccepted(DeglaError):
    """Error: a finished run accepted no negative."""


class Refusals:
    """Buffer that holds rows back while a server refuses every request with the same 4xx status.

    Rows held back are not written to the ledger, so their requests are repeated once the cause is fixed.

    Args:
        engine: engine whose rows count; rows filled in by rules say nothing about the server.
        block: requests per block; the run stops after so many consecutive refusals (at least 16).
    """

    def __init__(self, engine: str, block: int) -> None:
        self._engine, self._enough = engine, max(NO_ACCIDENT, block)
        self._held: list[Row] = []

    def passed(self, rows: Sequence[Row]) -> list[Row]:
        """Add `rows` and return all rows that can be kept; [] while they are held back.

        Raises:
            Refused: enough requests in succession were refused.
        """
        self._held += rows
        if self._one_refusal() is None:
            return self.release()
        if len(self._refused()) >= self._enough:
            self.stop()
        return []

    def release(self) -> list[Row]:
        """Return the rows held back and hold none back any longer."""
        held, self._held = self._held, []
        return held

    def stop(self) -> None:
        """Raise Refused if every request held back was refused."""
        status = self._one_refusal()
        if status is None:
            return
        refused = self._refused()
        said = Counter(row["text"] for row in refused).most_common(1)[0][0]
        found = f"the server refused all of {len(refused)} requests with {status}: {said}"
        helps = remedy(refused[0]["reason"], status, said).removesuffix(_AGAIN)
        raise Refused(f"{found}; {helps}. None of these is stored; run the same command to retry")

    def _refused(self) -> list[Row]:
        return [row for row in self._held if row["state"] == State.ERROR]

    def _one_refusal(self) -> str | None:
        """Return the status with which all requests held back were refused; None if they differ."""
        said = {
            row["detail"] if row["state"] == State.ERROR else ""
            for row in self._held
            if row["state"] != State.NOT_APPLICABLE and row["engine"] == self._engine
        }
        (status,) = said if len(said) == 1 else ("",)
        return status if status.startswith(f"{HTTP}4") else None


def remedy(reason: str, detail: str, said: str) -> str:
    """Return advice against a failure, as part of a sentence."""
    status = int(detail.removeprefix(HTTP)) if detail.startswith(HTTP) else 0
    if reason == RejectReason.REASONING_ONLY:
        return (
            "raise generation.max_tokens, or turn thinking off: --openai.extra_body '{chat_template_kwargs: "
            "{enable_thinking: false}}', --vllm.chat_template_kwargs '{enable_thinking: false}'"
            " (changed settings require another output folder)"
        )
    if reason == RejectReason.TIMEOUT:
        return f"raise generation.timeout_s, or send fewer requests at a time (openai.concurrency){_AGAIN}"
    if status in (400, 422):
        return _other_fields(said)
    if status in _BY_STATUS:
        again = _AGAIN if status in (401, 402, 403, 429) else ""
        return _BY_STATUS[status] + again
    if "no completion" in said:
        return f"check openai.base_url (usually ending in /v1); if it is right, wait{_AGAIN}"
    return f"see the server's or the engine's own log{_AGAIN}"


def _other_fields(said: str) -> str:
    """Return the setting that removes or changes the request field that a server refused."""
    if re.search(r"too (?:large|long|many)|context length|maximum|exceed", said, re.I):
        return "lower generation.max_tokens or generation.shots, or serve the model with a longer context"
    if "max_completion_tokens" in said:
        return "give --openai.extra_body '{max_completion_tokens: 64}'"
    found = _FIELD.search(said)
    name = (found[1] or found[2]) if found else "FIELD"
    return f"--openai.extra_body '{{{name}: null}}' leaves a field out, '{{FIELD: VALUE}}' sets one"


def tell_failures(storage: Storage, counts: Mapping[str, int]) -> str:
    """Print the most common failures of a finished folder, as `tell` does."""
    number = sum(n for name, n in counts.items() if name.rpartition(".")[2] in FAILURES)
    if not number:
        return ""
    rejects = storage.read_dataset("rejects", REJECTS, ["reason", "detail", "text"])
    return tell(row for batch in rejects.to_batches(max_chunksize=10_000) for row in batch.to_pylist())


def tell(rows: Iterable[Row]) -> str:
    """Print the three most common failures among rows, with advice; return the first line, or ""."""
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
    """Raise NothingAccepted if requests were sent and no negative was accepted."""
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
        f"nothing was accepted of {asked} answers: {told} (full list: {config.output}/rejects)"
    )
