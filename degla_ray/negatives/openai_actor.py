"""Any server that speaks OpenAI's chat API, behind the same columns as vLLM's actor.

The library `openai` (extra `openai`) repeats what failed on the way, with growing pauses. One actor serves:
the server does the work, and `openai.concurrency` says how much of it at a time.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

from degla_ray.config import OpenAIConfig
from degla_ray.negatives.vllm_actor import BLANK, AsyncActor, json_schema


class OpenAIActor(AsyncActor):
    """Sends questions to a server.

    Args:
        server: where it is.
        heads, joint: see AsyncActor.
        sampling: temperature, top_p and max_tokens, the last for each kind.
        timeout_s: after which one request is given up, in seconds.
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

        self._sampling, self._model = sampling, server.model
        self._at_a_time = asyncio.Semaphore(server.concurrency)
        self._client = AsyncOpenAI(
            base_url=server.base_url,
            api_key=os.environ.get(server.key_variable, "none"),
            timeout=timeout_s,
            max_retries=server.max_retries,
        )

    async def complete(self, turns: list[dict[str, str]], seed: int, kinds: list[str]) -> dict[str, Any]:
        import openai

        answer = dict(BLANK)
        messages: Any = turns
        sampling = {**self._sampling, "max_tokens": self._sampling["max_tokens"] * len(kinds)}
        async with self._at_a_time:
            started = time.monotonic()
            try:
                reply = await self._client.chat.completions.create(
                    model=self._model, messages=messages, seed=seed, **sampling, **self._form(kinds)
                )
                choice, usage = reply.choices[0], reply.usage
                cached = usage.prompt_tokens_details if usage else None
                answer |= {
                    "text": choice.message.content or "",
                    "finish_reason": choice.finish_reason or "",
                    "prompt_tokens": usage.prompt_tokens if usage else 0,
                    "completion_tokens": usage.completion_tokens if usage else 0,
                    "cached_tokens": (cached.cached_tokens or 0) if cached else 0,
                }
            except openai.APITimeoutError:
                answer |= {"error": "timeout", "text": f"no answer within {self._client.timeout:g} s"}
            except openai.OpenAIError as error:
                answer |= {
                    "error": "engine_error",
                    "text": f"{type(error).__name__}: {error}".splitlines()[0],
                }
            return answer | {"seconds": time.monotonic() - started}

    def _form(self, kinds: list[str]) -> Any:
        """An answer is a line, or an object with the kinds as keys."""
        if not self._joint:
            return {"stop": ["\n"]}
        schema = {"name": "captions", "schema": json_schema(kinds), "strict": True}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}
