"""Estimate of a full run's cost from real requests for a few captions: `--generation.estimate 200`."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console
from rich.table import Table

from degla_ray.negatives.llm.engines import COMPLETERS, Actors
from degla_ray.negatives.llm.failures import Refusals, tell
from degla_ray.negatives.llm.generation import GenerationJob, ask, block_size, question
from degla_ray.negatives.llm.ledger import Row, text_key
from degla_ray.negatives.llm.pool import engine_pool


def estimate(job: GenerationJob, captions: Sequence[str]) -> None:
    """Send one attempt for a sample of captions and print the estimate for all; write no files.

    The rate is that of one engine, without its start. The expected number of attempts per negative follows
    from the accepted share p: 1 + (1-p) + (1-p)^2 + …, up to `generation.attempts` terms.
    """
    wanted = job.config.generation.estimate
    texts = {text_key(caption): caption for caption in captions}
    sample = sorted(texts)[:wanted]  # keys are hashes, so the first ones are a random sample
    questions = [question(job.config.seed, texts[key], kind.value) for kind in job.kinds for key in sample]
    rows: list[Row] = []
    actors = COMPLETERS[job.config.engine].actors(job.config, job.prompts)
    with engine_pool(replace(actors, min_size=1, max_size=1), job.config.generation.stall_s) as engines:
        started = time.monotonic()
        refusals = Refusals(job.config.engine, block_size(job.config))
        for block in ask(job, engines, questions, None):
            rows += refusals.passed(block)
        refusals.stop()
        rows += refusals.release()
        rate = _answers(rows) / (time.monotonic() - started)
    tell(rows)
    _print(job, actors, rows, rate, texts=len(texts), asked=len(sample))


def _answers(rows: Sequence[Row]) -> int:
    return sum(row["state"] != "not_applicable" for row in rows)


def _print(
    job: GenerationJob, actors: Actors, rows: Sequence[Row], rate: float, *, texts: int, asked: int
) -> None:
    config = job.config
    attempts = config.generation.attempts * config.per_kind
    table = Table(title=f"{texts:,} different captions, from {asked:,} of them")
    for heading in ("kind", "can have it", "accepted", "attempts each", "answers", "negatives", "tokens"):
        table.add_column(heading, justify="left" if heading == "kind" else "right")
    total: Counter[str] = Counter()
    for kind in job.kinds:
        counts = _expected([row for row in rows if row["kind"] == kind], texts, attempts, config.per_kind)
        total.update({name: round(value) for name, value in counts.items()})
        table.add_row(
            kind.value,
            f"{counts['can'] / texts:.0%}",
            f"{counts['share']:.0%}",
            f"{counts['each']:.1f}",
            *(f"{counts[name]:,.0f}" for name in ("answers", "negatives", "tokens")),
        )
    Console().print(table)
    engine_hours = total["answers"] / max(rate, 1e-9) / 3600
    gpu_hours = engine_hours * max(1, actors.gpus)
    hours, price = engine_hours / actors.max_size, config.generation.price_per_gpu_hour
    print(
        f"{total['negatives']:,} negatives from {total['answers']:,} answers of {total['tokens']:,} tokens; "
        f"at {rate:,.1f} answers/s an engine {hours:,.2f} hours on {actors.max_size}, "
        f"{gpu_hours:,.2f} GPU (or engine) hours, cost {gpu_hours * price:,.2f}"
    )


def _expected(rows: Sequence[Row], texts: int, attempts: int, per_kind: int) -> dict[str, float]:
    """Return one kind's estimates for all captions.

    Keys: `can` (captions to which the kind is applicable), `share` (accepted per answer), `each` (attempts
    per caption), `answers`, `negatives` and `tokens` (totals).
    """
    answers = [row for row in rows if row["state"] != "not_applicable"]
    can = texts * len(answers) / max(1, len(rows))
    share = sum(row["state"] == "ok" for row in answers) / max(1, len(answers))
    each = _expected_attempts(share, attempts, per_kind)
    tokens = sum(row["prompt_tokens"] + row["completion_tokens"] for row in answers) / max(1, len(answers))
    return {
        "can": can,
        "share": share,
        "each": each,
        "answers": can * each,
        "negatives": can * share * each,
        "tokens": can * each * tokens,
    }


def _expected_attempts(share: float, attempts: int, per_kind: int) -> float:
    """Return the mean number of attempts until `per_kind` answers are accepted or `attempts` are made."""
    missing = {per_kind: 1.0}  # negatives still wanted -> probability
    mean = 0.0
    for _ in range(attempts):
        asking = {wanted: p for wanted, p in missing.items() if wanted}
        mean += sum(asking.values())
        missing = {0: missing.get(0, 0.0)}
        for wanted, p in asking.items():
            missing[wanted - 1] = missing.get(wanted - 1, 0.0) + p * share
            missing[wanted] = missing.get(wanted, 0.0) + p * (1 - share)
    return mean
