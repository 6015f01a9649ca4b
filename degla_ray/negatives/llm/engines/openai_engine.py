"""Engine `openai`: any server with OpenAI's chat API.

The library `openai` (extra `openai`) retries transient failures with growing pauses; a request's timeout
covers all its tries together. Every reply becomes its row's answer or its row's error. One actor is enough:
the server does the work, and `openai.concurrency` limits the requests in flight.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Mapping
from typing import Any

from degla_ray.config import NegativesConfig, OpenAIConfig
from degla_ray.errors import SettingError
from degla_ray.masking import without
from degla_ray.negatives.llm.engines.base import actor_arguments, pipeline_need, sampling_arguments
from degla_ray.negatives.llm.engines.vllm_actor import BLANK, AsyncActor, json_schema, slot_schema
from degla_ray.negatives.llm.pool import EnginePool
from degla_ray.negatives.llm.prompting import Prompts
from degla_ray.resources import Need

ACTOR_CPUS = 0.5
LISTING_S = 10.0
"""Seconds within which a server must list its models."""
SHOWN = 300
"""Characters kept of a server's error message."""
_COUNTS = ("prompt_tokens", "completion_tokens")
_LARGEST = 2**31 - 1


class OpenAIEngine:
    """Engine that sends requests to a server."""

    def __init__(self, config: NegativesConfig) -> None:
        self._config, self._server = config, config.openai

    @property
    def model(self) -> str:
        return self._server.model

    @property
    def concurrency(self) -> int:
        return self._server.concurrency

    def identity(self) -> dict[str, Any]:
        return {name: getattr(self._server, name) for name in ("model", "base_url", "extra_body")}

    def check_settings(self) -> None:
        _check_server(self._server)

    def needs(self) -> list[Need]:
        return [pipeline_need(self._config, {"CPU": ACTOR_CPUS})]

    def pool(self, prompts: Prompts) -> EnginePool:
        arguments = actor_arguments(self._config, prompts) | {
            "server": self._server,
            "sampling": sampling_arguments(self._config),
            "timeout_s": self._config.generation.timeout_s,
        }
        return EnginePool(
            actor=OpenAIActor,
            arguments=arguments,
            resources={"num_cpus": ACTOR_CPUS},
            concurrency=self.concurrency,
        )


class OpenAIActor(AsyncActor):
    """Actor that sends requests to a server.

    Args:
        server: address, model and limits of the server.
        heads, joint: see AsyncActor.
        sampling: temperature, top_p and max_tokens (per kind).
        timeout_s: seconds after which a request is abandoned, counted from its first try to the last byte.
    """

    def __init__(
        self,
        *,
        server: OpenAIConfig,
        heads: dict[str, list[dict[str, str]]],
        joint: bool,
        sampling: dict[str, Any],
        timeout_s: float,
    ) -> None:
        super().__init__(heads=heads, joint=joint)
        from openai import AsyncOpenAI

        self._sampling, self._server, self._timeout_s = sampling, server, timeout_s
        self._at_a_time = asyncio.Semaphore(server.concurrency)
        self._key = api_key(server)
        self._client = AsyncOpenAI(
            base_url=server.base_url, api_key=self._key, timeout=timeout_s, max_retries=server.max_retries
        )

    async def complete(
        self, turns: list[dict[str, str]], seed: int, kinds: list[str], slot: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        fields = self._fields(seed, kinds, slot)
        messages: Any = turns
        async with self._at_a_time:
            started = time.monotonic()
            try:
                async with asyncio.timeout(self._timeout_s):
                    reply = await self._client.chat.completions.with_raw_response.create(
                        model=self._server.model, messages=messages, extra_body=fields
                    )
                answer = completion(reply.content)
            except TimeoutError:
                answer = {"error": "timeout", "text": f"no answer within {self._timeout_s:g} s"}
            except Exception as error:  # any error of the server is recorded in this row
                answer = refusal(error)
        text = without(_storable(answer["text"]), self._key)
        if "error" in answer:
            text = text[:SHOWN]
        return BLANK | answer | {"text": text, "seconds": time.monotonic() - started}

    def _fields(self, seed: int, kinds: list[str], slot: dict[str, Any] | None) -> dict[str, Any]:
        """Return the request's fields other than model and messages; joint ones and slots ask for JSON.

        No stop string is sent: it would end a model's reasoning at its first line.
        """
        limit = {"max_tokens": self._sampling["max_tokens"] * len(kinds)}
        fields: dict[str, Any] = {"seed": seed, **self._sampling, **limit}
        if self._joint or slot is not None:
            form = json_schema(kinds) if slot is None else slot_schema(slot)
            schema = {"name": "captions", "schema": form, "strict": True}
            fields["response_format"] = {"type": "json_schema", "json_schema": schema}
        if "max_completion_tokens" in self._server.extra_body:
            del fields["max_tokens"]  # older name of the same limit
        fields |= self._server.extra_body
        return {name: value for name, value in fields.items() if value is not None}


def _check_server(server: OpenAIConfig) -> None:
    if not server.model:
        raise SettingError("openai.model", "", "the name of a model on the server")
    try:
        import openai
    except ImportError as error:
        package = "the package openai: pip install 'degla-ray[openai]'"
        raise SettingError("engine", "openai", package) from error
    client = openai.AsyncOpenAI(
        base_url=server.base_url, api_key=api_key(server), timeout=LISTING_S, max_retries=0
    )
    try:
        names = asyncio.run(_models(client))
    except (openai.APIConnectionError, TimeoutError) as error:
        raise SettingError("openai.base_url", server.base_url, "a server that answers") from error
    except openai.AuthenticationError as error:
        raise SettingError("openai.key_variable", server.key_variable, "a variable with a key") from error
    except Exception:
        return  # some servers do not list their models, or do so in another form
    if names and server.model not in names:
        raise SettingError("openai.model", server.model, f"one of {', '.join(sorted(names)[:10])}")


async def _models(client: Any) -> list[str]:
    """Return the names of a server's models."""
    async with asyncio.timeout(LISTING_S):
        return [str(model.id) for model in (await client.models.list()).data]


def api_key(server: OpenAIConfig) -> str:
    """Return the API key from the environment, or "none" if the variable is unset.

    Raises:
        SettingError: the key cannot be sent in an HTTP header.
    """
    key = os.environ.get(server.key_variable, "").strip() or "none"
    if not (key.isascii() and key.isprintable()):
        found = f"{server.key_variable}, whose value is not plain ASCII"
        raise SettingError("openai.key_variable", found, "a variable with a key as the server gave it")
    return key


def completion(body: bytes) -> dict[str, Any]:
    """Return columns of `BLANK` for a reply with status 200: its answer, or the error in its body."""
    try:
        reply = json.loads(body)
    except ValueError:
        reply = None
    reply = reply if isinstance(reply, dict) else {}
    choices = reply.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        return _no_completion(body, reply.get("error"))
    usage = reply.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else 0
    return {
        "text": _text(message),
        "finish_reason": str(choice.get("finish_reason") or ""),
        **{name: _count(usage.get(name)) for name in _COUNTS},
        "cached_tokens": _count(cached),
    }


def _no_completion(body: bytes, error: Any) -> dict[str, Any]:
    """Return the error columns of a reply with status 200 that contains no completion."""
    if error:
        code = error.get("code") if isinstance(error, dict) else None
        status = code if isinstance(code, int) and 400 <= code < 600 else 0
        return {"error": "engine_error", "text": _sentence(error), "status": status}
    found = _short(body.decode("utf-8", "replace")) or "an empty body"
    return {"error": "engine_error", "text": f"status 200, but no completion: {found}"}


def _text(message: Mapping[str, Any]) -> str:
    """Return a message's text; reasoning without any text is returned after an unclosed `<think>`."""
    text = _parts(message.get("content")) or _parts(message.get("refusal"))
    thought = _parts(message.get("reasoning_content")) or _parts(message.get("reasoning"))
    return f"<think>{thought}" if thought.strip() and not text.strip() else text


def _parts(content: Any) -> str:
    """Return content as one text; parts with reasoning are enclosed in `<think>` tags."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    texts = []
    for part in content:
        if isinstance(part, dict) and part.get("thinking"):
            texts.append(f"<think>{_parts(part['thinking'])}</think>")
        elif isinstance(part, dict):
            texts.append(_parts(part.get("text")))
    return "".join(texts)


def _count(value: Any) -> int:
    """Return a token count that fits the ledger's int32 column; 0 for anything else."""
    return value if isinstance(value, int) and 0 <= value <= _LARGEST else 0


def refusal(error: Exception) -> dict[str, Any]:
    """Return columns of `BLANK` for a request that failed."""
    import openai

    if isinstance(error, openai.APITimeoutError):
        return {"error": "timeout", "text": "the server did not answer in time"}
    if isinstance(error, openai.APIStatusError):
        said = _sentence(error.body) or f"{type(error).__name__} without a word"
        return {"error": "engine_error", "text": said, "status": error.status_code}
    cause = f" ({error.__cause__})" if str(error.__cause__ or "") else ""
    return {"error": "engine_error", "text": _short(f"{type(error).__name__}: {error}{cause}")}


def _sentence(error: Any) -> str:
    """Return a server's error message, whichever field contains it."""
    for field in ("message", "detail", "error", "error_msg"):
        if isinstance(error, dict) and error.get(field):
            return _sentence(error[field])
    return _short(error if isinstance(error, str) else json.dumps(error) if error else "")


def _short(text: str) -> str:
    return " ".join(text.split())


def _storable(text: str) -> str:
    """Return the text with U+FFFD in place of lone surrogates, which UTF-8 cannot encode."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
