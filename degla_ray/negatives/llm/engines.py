"""Engines by name. To add one that edits captions, implement the protocol in selection.py and register it in
ENGINES; to add a language model, write an actor like vllm_actor.py and register it in COMPLETERS.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from degla_ray.config import NegativesConfig
from degla_ray.negatives.llm import scripted_actor, vllm_actor
from degla_ray.negatives.llm.openai_actor import OpenAIActor
from degla_ray.negatives.llm.prompting import Prompts


@dataclass(frozen=True, kw_only=True)
class Actors:
    """Specification of an engine pool.

    Attributes:
        actor: actor class; its `answer` takes a batch of requests and returns it with the columns of
            `vllm_actor.BLANK`, its `ready` returns the actor's id and age.
        arguments: constructor arguments.
        resources: resources per actor, as arguments of Ray's `options`.
        min_size: number of engines that must be ready before the first request.
        max_size: number of engines to start.
        gpus: GPUs reserved per actor (0 counts as 1 when hours are summed).
    """

    actor: type
    arguments: dict[str, Any]
    resources: dict[str, Any] = field(default_factory=dict)
    min_size: int = 1
    max_size: int = 1
    gpus: int = 0


@dataclass(frozen=True, kw_only=True)
class CompleterKind:
    """Registry entry of a language-model engine.

    Attributes:
        model: returns the model's name in the rows.
        identity: returns the settings that determine its answers.
        actors: returns the specification of its pool.
    """

    model: Callable[[NegativesConfig], str]
    identity: Callable[[NegativesConfig], dict[str, Any]]
    actors: Callable[[NegativesConfig, Prompts], Actors]


def _asked(config: NegativesConfig, prompts: Prompts) -> dict[str, Any]:
    """Return the constructor arguments shared by all actors."""
    heads = {"+".join(kind.value for kind in kinds): prompt.messages() for kinds, prompt in prompts.items()}
    return {"heads": heads, "joint": config.generation.prompting == "joint"}


def _vllm(config: NegativesConfig, prompts: Prompts) -> Actors:
    import ray
    import ray.cloudpickle

    ray.cloudpickle.register_pickle_by_value(vllm_actor)  # vLLM's interpreter has no degla_ray
    vllm, asked = config.vllm, config.generation
    gpus = (
        vllm.tensor_parallel_size * vllm.pipeline_parallel_size if ray.cluster_resources().get("GPU") else 0
    )
    engine: dict[str, Any] = {
        "model": vllm.model if not Path(vllm.model).is_dir() else str(Path(vllm.model).resolve()),
        "tensor_parallel_size": vllm.tensor_parallel_size,
        "pipeline_parallel_size": vllm.pipeline_parallel_size,
        "quantization": vllm.quantization,
        "max_model_len": vllm.max_model_len,
        "enforce_eager": vllm.enforce_eager,
        "enable_prefix_caching": True,
    }
    environment = {"VLLM_LOGGING_LEVEL": "ERROR", "TQDM_DISABLE": "1"}
    if gpus:
        engine["gpu_memory_utilization"] = vllm.gpu_memory_utilization
    else:
        engine["dtype"] = "bfloat16"
        # vLLM 0.32 on a CPU crashes on a seeded request whose prompt is prefilled in two chunks ("CPU
        # Generator does not use offset").
        engine["enable_chunked_prefill"] = False
        engine["max_num_batched_tokens"] = max(4096, vllm.max_model_len)
        environment["VLLM_CPU_KVCACHE_SPACE"] = str(vllm.cpu_kv_cache_gib)
    resources: dict[str, Any] = {"num_gpus": gpus} if gpus else {"num_cpus": vllm.cpus_per_actor}
    if vllm.accelerator_type:
        resources["accelerator_type"] = vllm.accelerator_type
    python = interpreter(config)
    # Actors import the modules of vLLM's environment and none of this process's.
    resources["runtime_env"] = {
        "py_executable": python,
        "env_vars": {"PYTHONPATH": "", "PYTHONWARNINGS": "ignore"},
    }
    return Actors(
        actor=vllm_actor.VLLMActor,
        arguments={
            "engine": engine,
            **_asked(config, prompts),
            "sampling": {
                "temperature": asked.temperature,
                "top_p": asked.top_p,
                "max_tokens": asked.max_tokens,
            },
            "timeout_s": asked.timeout_s,
            "environment": environment,
            "template": vllm.chat_template_kwargs,
        },
        resources=resources,
        min_size=vllm.min_actors,
        max_size=vllm.max_actors,
        gpus=gpus,
    )


def interpreter(config: NegativesConfig) -> str:
    """Return the absolute path of vLLM's interpreter; a virtual environment's is a link and not resolved."""
    python = config.vllm.python
    return sys.executable if python is None else str(Path(python).expanduser().absolute())


def _openai(config: NegativesConfig, prompts: Prompts) -> Actors:
    asked = config.generation
    sampling = {"temperature": asked.temperature, "top_p": asked.top_p, "max_tokens": asked.max_tokens}
    arguments = {"server": config.openai, **_asked(config, prompts), "sampling": sampling}
    return Actors(
        actor=OpenAIActor,
        arguments={**arguments, "timeout_s": asked.timeout_s},
        resources={"num_cpus": 0.5},
    )


def _scripted(config: NegativesConfig, prompts: Prompts) -> Actors:
    return Actors(
        actor=scripted_actor.ScriptedActor, arguments=_asked(config, prompts), resources={"num_cpus": 0.5}
    )


COMPLETERS: dict[str, CompleterKind] = {
    "vllm": CompleterKind(
        model=lambda config: Path(config.vllm.model).name,
        identity=lambda config: {
            "model": config.vllm.model,
            "quantization": config.vllm.quantization,
            "max_model_len": config.vllm.max_model_len,
            "chat_template_kwargs": config.vllm.chat_template_kwargs,
        },
        actors=_vllm,
    ),
    "openai": CompleterKind(
        model=lambda config: config.openai.model,
        identity=lambda config: {
            "model": config.openai.model,
            "base_url": config.openai.base_url,
            "extra_body": config.openai.extra_body,
        },
        actors=_openai,
    ),
    "scripted": CompleterKind(model=lambda config: "scripted", identity=lambda config: {}, actors=_scripted),
}
