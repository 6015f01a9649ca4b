"""Settings of `negatives`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from degla_ray.config.shared import RayConfig, TrackingConfig, require
from degla_ray.schema import Kind, RejectReason


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True


@dataclass(frozen=True, kw_only=True)
class VLLMConfig:
    """vLLM engines, one a Ray actor."""

    model: str = "models/smollm2-135m"
    """Folder of a language model, the same on every node, or its name on the Hugging Face hub."""
    python: str | None = None
    """Interpreter that has vLLM, e.g. .venv-vllm/bin/python; none: the one that runs the job."""
    min_actors: int = 1
    """Engines, at least."""
    max_actors: int = 1
    """Engines, at most; Ray starts more of them while work waits."""
    tensor_parallel_size: int = 1
    """GPUs that share a layer."""
    pipeline_parallel_size: int = 1
    """Groups of GPUs that layers are spread over."""
    accelerator_type: str | None = None
    """Ray's name of the GPU to run on, e.g. A100; none: any."""
    cpus_per_actor: int = 1
    """CPUs of an engine where there are no GPUs."""
    quantization: str | None = None
    """vLLM's quantization, e.g. fp8 or awq; none: as the model's folder says."""
    max_model_len: int = 2048
    """Tokens of prompt and answer, at most."""
    gpu_memory_utilization: float = 0.9
    """Share of a GPU's memory that an engine takes."""
    cpu_kv_cache_gib: int = 1
    """GiB of an engine's key-value cache where there are no GPUs."""
    enforce_eager: bool = False
    """Start faster and run slower: no compilation, no CUDA graphs."""
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of the model's chat template, e.g. {enable_thinking: false}."""

    def __post_init__(self) -> None:
        require(
            1 <= self.min_actors <= self.max_actors,
            "vllm.min_actors",
            self.min_actors,
            "1 <= min_actors <= max_actors",
        )
        require(
            _is_json(self.chat_template_kwargs),
            "vllm.chat_template_kwargs",
            self.chat_template_kwargs,
            "what JSON can hold: no dates, no NaN",
        )


@dataclass(frozen=True, kw_only=True)
class OpenAIConfig:
    """Any server that speaks OpenAI's chat API."""

    base_url: str = "http://127.0.0.1:8000/v1"
    """Address of the API."""
    model: str = ""
    """Model name that the server knows."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable with the key; a server without keys needs none."""
    concurrency: int = 64
    """Requests under way at a time."""
    max_retries: int = 5
    """Times that a request is repeated after a refused connection, status 408, 409, 429 or 5xx."""
    extra_body: dict[str, Any] = field(default_factory=dict)
    """Further fields of a request, or other values of ours; null leaves a field out, and
    max_completion_tokens takes the place of max_tokens."""

    def __post_init__(self) -> None:
        require(
            "@" not in urlsplit(self.base_url).netloc,
            "openai.base_url",
            "an address with a user or password in it",
            "an address without; the key is read from the variable that openai.key_variable names",
        )
        require(self.concurrency >= 1, "openai.concurrency", self.concurrency, "at least 1")
        require(
            _is_json(self.extra_body),
            "openai.extra_body",
            self.extra_body,
            "what JSON can hold: no dates, no NaN",
        )
        ours = sorted({"model", "messages", "stream", "n"} & set(self.extra_body))
        require(not ours, "openai.extra_body", ours, "fields other than model, messages, stream and n")


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """What language models are asked and how often (engines `vllm` and `openai`)."""

    prompting: Literal["per_kind", "joint"] = "per_kind"
    """One question a (caption, kind), or one a caption for all kinds, answered by a JSON object."""
    shots: int = 12
    """Examples before the caption."""
    temperature: float = 0.7
    """Of sampling."""
    top_p: float = 0.95
    """Probability mass that is sampled from."""
    max_tokens: int = 64
    """Tokens of an answer, at most."""
    attempts: int = 3
    """Times that a (caption, kind) is asked, with another seed each, until an answer passes the checks."""
    timeout_s: float = 300.0
    """Seconds after which a request is given up, its repetitions included."""
    stall_s: float = 1800.0
    """Seconds without any answer after which the job gives up; starting an engine counts. At least twice
    timeout_s, so that the requests of a hung server are given up before the job is."""
    fill_with_rules: bool = False
    """Where no attempt passed, take the rule engine's negative (its rows say so)."""
    retry_failed: bool = False
    """Ask again what ended in an error, or for one of `retry_reasons`, also in a finished folder."""
    retry_reasons: list[RejectReason] = field(default_factory=list)
    """Reasons of rejection to ask again for, with `retry_failed`."""
    estimate: int | None = None
    """Only ask for so many captions, write nothing, and tell what all would take."""
    max_gpu_hours: float | None = None
    """Stop cleanly when the engines have run for so long together; none: no limit. A rerun goes on."""
    price_per_gpu_hour: float = 0.0
    """For the estimate and the report, in your currency."""

    def __post_init__(self) -> None:
        require(1 <= self.attempts <= 100, "generation.attempts", self.attempts, "1 to 100")
        require(self.shots >= 0, "generation.shots", self.shots, "at least 0")
        require(self.timeout_s > 0, "generation.timeout_s", self.timeout_s, "more than 0 seconds")
        require(
            self.stall_s >= 2 * self.timeout_s,
            "generation.stall_s",
            self.stall_s,
            f"at least twice generation.timeout_s ({self.timeout_s:g})",
        )
        require(
            self.estimate is None or self.estimate >= 1,
            "generation.estimate",
            self.estimate,
            "at least 1, or none",
        )
        require(
            not self.retry_reasons or self.retry_failed,
            "generation.retry_reasons",
            [str(reason) for reason in self.retry_reasons],
            "none without generation.retry_failed",
        )


@dataclass(frozen=True, kw_only=True)
class NegativesConfig:
    """Job `negatives`: captions become negative captions (+ rejects)."""

    prepared: str
    """Folder that `prepare` wrote."""
    output: str
    """Folder to write, any URI pyarrow opens."""
    engine: Literal["rules", "given", "vllm", "openai", "scripted"] = "rules"
    """What writes the negatives; `rules` needs no model, `given` takes the source's own, `scripted` tests."""
    kinds: list[Kind] = field(default_factory=lambda: list(Kind))
    """Kinds of negative to make."""
    per_kind: int = 2
    """Distinct negatives of one kind for one caption, at most."""
    seed: int = 0
    """Seed of the engine's choices; with the caption it decides them."""
    num_shards: int = 8
    """Shards that the work is cut into."""
    vllm: VLLMConfig = field(default_factory=VLLMConfig)
    openai: OpenAIConfig = field(default_factory=OpenAIConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    ray: RayConfig = field(default_factory=RayConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
