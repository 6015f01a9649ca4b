"""The protocol `Engine`: what generation needs to know about a language model."""

from __future__ import annotations

from typing import Any, Protocol

from degla_ray.config import NegativesConfig
from degla_ray.negatives.llm.pool import EnginePool
from degla_ray.negatives.llm.prompting import Prompts


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
    def concurrency(self) -> int | None:
        """Maximum number of requests answered at the same time; None if the engine queues them itself."""
        ...

    def identity(self) -> dict[str, Any]:
        """Return the engine's own settings that determine its answers, for the folder's fingerprint."""
        ...

    def check_settings(self) -> None:
        """Raise SettingError if the engine cannot start; called before Ray starts and anything is written."""
        ...

    def check_resources(self) -> None:
        """Raise SettingError if the running Ray cluster lacks the engine's CPUs or GPUs."""
        ...

    def pool(self, prompts: Prompts) -> EnginePool:
        """Return the actors to start; they answer requests with these prompts."""
        ...


def actor_arguments(config: NegativesConfig, prompts: Prompts) -> dict[str, Any]:
    """Return the constructor arguments shared by the actors of all engines."""
    heads = {"+".join(kind.value for kind in kinds): prompt.messages() for kinds, prompt in prompts.items()}
    return {"heads": heads, "joint": config.generation.prompting == "joint"}


def sampling_arguments(config: NegativesConfig) -> dict[str, Any]:
    """Return the sampling settings, as vLLM and OpenAI's API name them."""
    return {name: getattr(config.generation, name) for name in ("temperature", "top_p", "max_tokens")}
