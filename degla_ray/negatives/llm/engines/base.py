"""The protocol `Engine`: what generation needs to know about a language model."""

from __future__ import annotations

from typing import Any, Protocol

from degla_ray.config import NegativesConfig
from degla_ray.negatives.llm.pool import EnginePool
from degla_ray.negatives.llm.prompting import Prompts
from degla_ray.resources import Bundle, Need


class Engine(Protocol):
    """A language model and the Ray actors that run it.

    Args:
        config: settings of the job.
    """

    def __init__(self, config: NegativesConfig) -> None: ...

    @property
    def model(self) -> str:
        """Name of the model, as written to the rows."""
        ...

    @property
    def concurrency(self) -> int:
        """Maximum number of requests that one engine answers at the same time."""
        ...

    def identity(self) -> dict[str, Any]:
        """Return the engine's own settings that determine its answers, for the folder's fingerprint."""
        ...

    def check_settings(self) -> None:
        """Raise SettingError if the engine cannot start; called before Ray starts and anything is written."""
        ...

    def needs(self) -> list[Need]:
        """Return what the engines and the pipeline around them reserve; Ray must be running."""
        ...

    def pool(self, prompts: Prompts) -> EnginePool:
        """Return the actors to start; they answer requests with these prompts."""
        ...


WORKER: Bundle = {"CPU": 0.5}
"""What a process with the stages before and after the engines reserves (sending.py); one is enough."""


def pipeline_need(config: NegativesConfig, *engine: Bundle) -> Need:
    """Return the need of a worker, and of one engine of an engine that runs a single one."""
    return Need(setting="ray.num_cpus", value=config.ray.num_cpus, unit=[WORKER, *engine])


def actor_arguments(config: NegativesConfig, prompts: Prompts) -> dict[str, Any]:
    """Return the constructor arguments shared by the actors of all engines."""
    heads = {"+".join(kind.value for kind in kinds): prompt.messages() for kinds, prompt in prompts.items()}
    return {"heads": heads, "joint": config.generation.prompting == "joint"}


def sampling_arguments(config: NegativesConfig) -> dict[str, Any]:
    """Return the sampling settings, as vLLM and OpenAI's API name them."""
    return {name: getattr(config.generation, name) for name in ("temperature", "top_p", "max_tokens")}
