"""A language model for tests: answers that follow from the question's seed alone, many of them bad.

Of a hundred questions some 65 are answered as the rule engine would; the others get what language models
give now and then, so that everything around a model can be tried in seconds.
"""

from __future__ import annotations

import random
from typing import Any

from degla_ray.negatives.proposals import Request, no_veto, select
from degla_ray.negatives.rules import RuleEngine
from degla_ray.negatives.vllm_actor import BLANK
from degla_ray.schema import Kind

BAD = {
    "empty": {"text": "  "},
    "copy": {},
    "refusal": {"text": "I'm sorry, but I cannot help with that."},
    "markup": {"text": "**A man** on a horse"},
    "endless": {"text": "A man and a man and a man and a", "finish_reason": "length"},
    "late": {"error": "timeout", "text": "no answer within 1 s"},
    "broken": {"error": "engine_error", "text": "ValueError: made up"},
}


class ScriptedActor:
    """Answers at once."""

    def __init__(self) -> None:
        self._rules = RuleEngine()

    def ready(self) -> None:
        """Returns once the actor has started."""

    def answer(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch with the columns of `BLANK`."""
        columns = ("caption", "kind", "seed", "applicable")
        answers = [self._answer(*values) for values in zip(*(batch[c] for c in columns), strict=True)]
        return {**batch, **{name: [a[name] for a in answers] for name in BLANK}}

    def _answer(self, caption: str, kind: str, seed: int, applicable: bool) -> dict[str, Any]:
        if not applicable:
            return dict(BLANK)
        rng = random.Random(int(seed))
        asked = {"finish_reason": "stop", "prompt_tokens": 100, "completion_tokens": 12, "seconds": 0.01}
        if rng.random() < 0.35:
            return BLANK | {"text": str(caption)} | asked | BAD[rng.choice(sorted(BAD))]
        request = Request(caption=str(caption), limit=1, seed=str(seed))
        accepted = select(self._rules, [request], [Kind(kind)], [no_veto])[0].accepted[Kind(kind)]
        return BLANK | asked | {"text": accepted[0] if accepted else str(caption)}
