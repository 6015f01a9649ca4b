#!/usr/bin/env python
"""Measure the precision of each quality check on candidates labelled by hand.

    python benchmarks/calibrate_checks.py --half held_out

tests/golden/negatives_calibration.jsonl contains negatives by SmolLM2-135M, Gemma 3 270M and the rules for
the project's own captions. Labels: `good` (the requested edit, readable, and false of the image),
`may_be_true` (means the same as the caption, or may also be true), `wrong_edit` (false, but another edit),
`broken` (not a caption). The half `tuned`, chosen by the caption's hash, was read while the checks were
developed; the half `held_out` was only counted.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from degla_ray.negatives.checks import Candidate, first_failure
from degla_ray.negatives.llm.answers import QualityChecks
from degla_ray.negatives.llm.engines.vllm_actor import BLANK
from degla_ray.negatives.llm.ledger import State
from degla_ray.negatives.rules import RuleEngine

FILE = Path(__file__).resolve().parents[1] / "tests" / "golden" / "negatives_calibration.jsonl"
TRUE_NEGATIVES = ("good", "wrong_edit")


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A labelled candidate, and the reason why the quality checks reject it (None if they accept it)."""

    source: str
    kind: str
    label: str
    caption: str
    text: str
    reason: str | None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--half", choices=["tuned", "held_out"], help="only this half")
    parser.add_argument("--errors", action="store_true", help="list the wrong verdicts")
    options = parser.parse_args()
    found = [j for half, j in judge_all() if options.half in (None, half)]
    console = Console()
    console.print(by_source(found))
    console.print(by_check(found))
    if options.errors:
        for j in found:
            if (j.reason is None) != (j.label == "good"):
                verdict = j.reason or "accepted"
                console.print(
                    f"{j.source} {j.kind} {j.label} {verdict}: {j.caption} -> {j.text}", markup=False
                )


def judge_all() -> list[tuple[str, Judged]]:
    """Return (half, candidate) for every line of the file."""
    checks, rules = QualityChecks("calibration", ""), RuleEngine()
    judged = []
    for line in FILE.read_text(encoding="utf-8").splitlines():
        row: dict[str, Any] = json.loads(line)
        reason = _by_rules(rules, row) if row["source"] == "rules" else _by_checks(checks, row)
        half = row.pop("half")
        row.pop("scrambled", None)
        judged.append((half, Judged(**row, reason=reason)))
    return judged


def _by_checks(checks: QualityChecks, row: dict[str, Any]) -> str | None:
    request = {"key": "", "attempt": 0, "seed": 0, "last": False, "applicable": True}
    (verdict,) = checks.judge(BLANK | row | request | {"finish_reason": "stop"})
    return None if verdict["state"] == State.OK else str(verdict["reason"])


def _by_rules(rules: RuleEngine, row: dict[str, Any]) -> str | None:
    candidate = Candidate(
        caption=rules.read(row["caption"]),
        negative=rules.read(row["text"]),
        accepted=frozenset(),
        scrambled=row["scrambled"],
    )
    failure = first_failure(candidate, rules.language)
    return None if failure is None else failure[1].value


def by_source(found: list[Judged]) -> Table:
    """Return a table of accepted candidates and their quality: one row per source and one for all."""
    table = Table(title=f"{len(found)} labelled candidates")
    for heading in ("source", "candidates", "good", "accepted", "accepted: true negatives", "good: rejected"):
        table.add_column(heading, justify="left" if heading == "source" else "right")
    for source in [*sorted({j.source for j in found}), "all"]:
        mine = [j for j in found if source in (j.source, "all")]
        good = [j for j in mine if j.label == "good"]
        accepted = [j for j in mine if j.reason is None]
        table.add_row(
            source,
            str(len(mine)),
            str(len(good)),
            str(len(accepted)),
            _share(sum(j.label in TRUE_NEGATIVES for j in accepted), len(accepted)),
            _share(sum(j.reason is not None for j in good), len(good)),
        )
    return table


def by_check(found: list[Judged]) -> Table:
    """Return a table of each reason's precision, the share of rejected candidates that are not good."""
    table = Table(title="by reason of rejection")
    for heading in ("reason", "rejected", "rightly", "may be true", "wrong edit", "broken", "good"):
        table.add_column(heading, justify="left" if heading == "reason" else "right")
    reasons = Counter(j.reason for j in found if j.reason is not None)
    for reason, number in reasons.most_common():
        labels = Counter(j.label for j in found if j.reason == reason)
        counts = [labels[name] for name in ("may_be_true", "wrong_edit", "broken", "good")]
        table.add_row(reason, str(number), _share(number - labels["good"], number), *map(str, counts))
    return table


def _share(part: int, whole: int) -> str:
    return f"{part}/{whole} = {100 * part / whole:.0f} %" if whole else "–"


if __name__ == "__main__":
    main()
