"""Engine `scripted`: a simulated language model for tests, whose answers depend on caption, kind and seed.

About 65 of 100 requests get the rule engine's answer; the others get typical failures of language models, so
that everything around a model can be tested in seconds.
"""

from __future__ import annotations

import json
import random
from typing import Any

from degla_ray.config import NegativesConfig
from degla_ray.negatives.llm.engines.base import actor_arguments, pipeline_need
from degla_ray.negatives.llm.engines.vllm_actor import BLANK, AsyncActor
from degla_ray.negatives.llm.pool import EnginePool
from degla_ray.negatives.llm.prompting import Prompts
from degla_ray.negatives.rules import RuleEngine
from degla_ray.negatives.selection import EditRequest, no_veto, select
from degla_ray.resources import Need
from degla_ray.schema import Kind

ACTOR_CPUS = 0.5
BAD = {
    "empty": {"text": "  "},
    "copy": {},
    "refusal": {"text": "I'm sorry, but I cannot help with that."},
    "markup": {"text": "**A man** on a horse"},
    "endless": {"text": "A man and a man and a man and a", "finish_reason": "length"},
    "late": {"error": "timeout", "text": "no answer within 1 s"},
    "broken": {"error": "engine_error", "text": "ValueError: made up"},
}


class ScriptedEngine:
    """Engine that needs neither a model nor a server."""

    model = "scripted"
    concurrency = 256

    def __init__(self, config: NegativesConfig) -> None:
        self._config = config

    def identity(self) -> dict[str, Any]:
        return {}

    def check_settings(self) -> None:
        """Accept all settings."""

    def needs(self) -> list[Need]:
        return [pipeline_need(self._config, {"CPU": ACTOR_CPUS})]

    def pool(self, prompts: Prompts) -> EnginePool:
        arguments = actor_arguments(self._config, prompts)
        return EnginePool(actor=ScriptedActor, arguments=arguments, resources={"num_cpus": ACTOR_CPUS})


class ScriptedActor(AsyncActor):
    """Actor that answers immediately."""

    def __init__(self, *, heads: dict[str, list[dict[str, str]]], joint: bool) -> None:
        super().__init__(heads=heads, joint=joint)
        self._rules = RuleEngine()

    async def complete(
        self, turns: list[dict[str, str]], seed: int, kinds: list[str], slot: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        rng, caption = random.Random(seed), turns[-1]["content"]
        asked = {"finish_reason": "stop", "prompt_tokens": 100, "completion_tokens": 12, "seconds": 0.01}
        if rng.random() < 0.35:
            return BLANK | {"text": caption} | asked | BAD[rng.choice(sorted(BAD))]
        if slot is not None:
            return (
                BLANK | asked | {"text": json.dumps(rng.choices(slot["options"] or ["dog"], k=slot["count"]))}
            )
        texts = {kind: self._rewritten(caption, Kind(kind), seed) for kind in kinds}
        return BLANK | asked | {"text": json.dumps(texts) if self._joint else texts[kinds[0]]}

    def _rewritten(self, caption: str, kind: Kind, seed: int) -> str:
        request = EditRequest(caption=caption, limit=1, seed=str(seed))
        accepted = select(self._rules, [request], [kind], [no_veto])[0].accepted[kind]
        return accepted[0] if accepted else caption
