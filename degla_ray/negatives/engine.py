"""The engines by name. To add one, fill the protocol of proposals.py and enter it here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from degla_ray.negatives import rules
from degla_ray.negatives.proposals import Engine


@dataclass(frozen=True, kw_only=True)
class EngineKind:
    """How an engine is made.

    Attributes:
        identity: what decides its output beside the job's settings; cheap, for it is asked on every rerun.
        create: the engine, given the words of the dataset.
    """

    identity: Callable[[], dict[str, str]]
    create: Callable[[frozenset[str]], Engine]


ENGINES: dict[str, EngineKind] = {
    "rules": EngineKind(identity=rules.identity, create=rules.RuleEngine),
}
