"""Settings of job `negatives`."""

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
    """vLLM engines, each in its own Ray actor."""

    model: str = "models/smollm2-135m"
    """Local model folder (the same path on every node) or a model name on the Hugging Face hub."""
    python: str | None = None
    """Python interpreter with vLLM installed, e.g. .venv-vllm/bin/python; null uses the job's interpreter."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """`auto`: GPUs if the cluster has some or can start nodes with some, else CPUs."""
    min_actors: int = 1
    """Minimum number of engines."""
    max_actors: int = 1
    """Maximum number of engines; Ray starts more while work is waiting."""
    tensor_parallel_size: int = 1
    """GPUs that each layer is split across."""
    pipeline_parallel_size: int = 1
    """Pipeline stages that the layers are divided into."""
    accelerator_type: str | None = None
    """Ray's name of the GPU type to run on, e.g. A100; null allows any."""
    cpus_per_actor: int = 1
    """CPUs per engine on machines without GPUs."""
    quantization: str | None = None
    """vLLM's quantization method, e.g. fp8 or awq; null follows the model's own configuration."""
    max_model_len: int = 2048
    """Maximum tokens of prompt and answer together."""
    max_num_seqs: int = 256
    """Maximum number of requests that an engine answers at the same time; more wait beside it."""
    gpu_memory_utilization: float = 0.9
    """Fraction of a GPU's memory that an engine may use."""
    cpu_kv_cache_gib: int = 1
    """Size of an engine's key-value cache in GiB on machines without GPUs."""
    enforce_eager: bool = False
    """Skip compilation and CUDA graphs: starts faster and runs slower."""
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments for the model's chat template, e.g. {enable_thinking: false}."""

    def __post_init__(self) -> None:
        require(
            1 <= self.min_actors <= self.max_actors,
            "vllm.min_actors",
            self.min_actors,
            "1 <= min_actors <= max_actors",
        )
        require(self.max_num_seqs >= 1, "vllm.max_num_seqs", self.max_num_seqs, "at least 1")
        require(
            _is_json(self.chat_template_kwargs),
            "vllm.chat_template_kwargs",
            self.chat_template_kwargs,
            "what JSON can hold: no dates, no NaN",
        )


@dataclass(frozen=True, kw_only=True)
class OpenAIConfig:
    """Any server with an OpenAI-compatible chat API."""

    base_url: str = "http://127.0.0.1:8000/v1"
    """Base URL of the API."""
    model: str = ""
    """Model name known to the server."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the API key; not needed for a server without keys."""
    concurrency: int = 64
    """Maximum number of concurrent requests."""
    max_retries: int = 5
    """Retries of a request after a refused connection or status 408, 409, 429 or 5xx."""
    extra_body: dict[str, Any] = field(default_factory=dict)
    """Extra or overridden fields of a request; null removes a field, and max_completion_tokens replaces
    max_tokens."""

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
    """Prompting, sampling and retries of language models (engines `vllm` and `openai`)."""

    prompting: Literal["per_kind", "joint", "slots"] = "per_kind"
    """per_kind: one request per caption and kind. joint: one request per caption for all kinds, answered by
    a JSON object. slots: one request per caption and kind for the words that change, by guided decoding."""
    shots: int = 12
    """Few-shot examples before the caption."""
    temperature: float = 0.7
    """Sampling temperature."""
    top_p: float = 0.95
    """Probability mass for nucleus sampling."""
    max_tokens: int = 64
    """Maximum tokens of an answer."""
    attempts: int = 3
    """Maximum requests per caption and kind, each with another seed, until an answer passes the checks."""
    timeout_s: float = 300.0
    """Seconds until a request fails, retries included."""
    stall_s: float = 1800.0
    """Seconds without any answer until the job fails; engine startup counts. At least twice timeout_s, so
    that requests to a hung server time out before the job does."""
    fill_with_rules: bool = False
    """Use the rule engine's negative if no attempt passed; such rows name the rule engine."""
    retry_failed: bool = False
    """Repeat requests that ended in an error or for one of `retry_reasons`, even in a finished folder."""
    retry_reasons: list[RejectReason] = field(default_factory=list)
    """Reject reasons to retry if `retry_failed` is set."""
    estimate: int | None = None
    """Send requests for this many captions only, write nothing, and print an estimate for the full run."""
    max_gpu_hours: float | None = None
    """Stop cleanly once the engines have used this many GPU hours in total; null sets no limit. A rerun
    continues."""
    price_per_gpu_hour: float = 0.0
    """Price of a GPU hour in your currency, for the estimate and the report."""

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
            "at least 1, or null",
        )
        require(
            not self.retry_reasons or self.retry_failed,
            "generation.retry_reasons",
            [str(reason) for reason in self.retry_reasons],
            "an empty list, or generation.retry_failed true",
        )


@dataclass(frozen=True, kw_only=True)
class NegativesConfig:
    """Job `negatives`: turn captions into negative captions and rejects."""

    prepared: str
    """Output folder of job `prepare`."""
    output: str
    """Output folder; any URI that pyarrow opens."""
    engine: Literal["rules", "given", "vllm", "openai", "scripted"] = "rules"
    """Engine that writes negatives: `rules` needs no model, `given` copies the source's, `scripted` tests."""
    kinds: list[Kind] = field(default_factory=list)
    """Kinds of negatives to generate; []: all five, but with plausibility `ngram` only those of the rules'
    kinds that cannot be guessed on photographs: swap_adjectives, replace_nouns, replace_adjectives."""
    per_kind: int = 2
    """Maximum number of distinct negatives per caption and kind."""
    seed: int = 0
    """Random seed; together with the caption it determines the engine's choices."""
    plausibility: Literal["none", "ngram"] = "ngram"
    """`ngram`: score each negative by an n-gram model of other captions; of the rules' edits take those about
    as likely as their caption, and leave out what could be guessed without the image. `none`, or fewer than
    3,000 captions: no scores, and the first edits."""
    plausibility_window: float | None = None
    """Greatest difference of a negative's log-probability a word from its caption's; null sets no limit."""
    plausibility_preview: int | None = None
    """Edit this many captions only, write nothing, and print what each window costs in negatives."""
    num_shards: int | None = None
    """Number of output shards; a language model's driver holds one of them, 20 kB a caption. null: one per
    20,000 captions, at least 8."""
    vllm: VLLMConfig = field(default_factory=VLLMConfig)
    openai: OpenAIConfig = field(default_factory=OpenAIConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    ray: RayConfig = field(default_factory=RayConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        window, preview = self.plausibility_window, self.plausibility_preview
        require(window is None or window > 0, "plausibility_window", window, "more than 0, or null")
        require(preview is None or preview >= 1, "plausibility_preview", preview, "at least 1, or null")
        chosen = self.engine == "rules" and self.plausibility == "ngram"
        for name, value in (("plausibility_window", window), ("plausibility_preview", preview)):
            require(value is None or chosen, name, value, "null unless engine is rules, plausibility ngram")
