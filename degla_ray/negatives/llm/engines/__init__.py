"""Language models by the name in `--engine`. To add one, implement `Engine` (base.py) in a new file and add a
row here."""

from __future__ import annotations

from degla_ray.negatives.llm.engines.base import Engine
from degla_ray.negatives.llm.engines.openai_engine import OpenAIEngine
from degla_ray.negatives.llm.engines.scripted_engine import ScriptedEngine
from degla_ray.negatives.llm.engines.vllm_engine import VLLMEngine

ENGINES: dict[str, type[Engine]] = {
    "vllm": VLLMEngine,
    "openai": OpenAIEngine,
    "scripted": ScriptedEngine,
}
