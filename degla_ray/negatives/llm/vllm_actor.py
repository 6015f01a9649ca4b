"""vLLM in a Ray actor: prompts in; texts, finish reasons, token counts and errors out, row by row.

It runs in vLLM's own interpreter (`vllm.python`), where neither degla_ray nor what it needs is installed, so
this file imports the standard library and vLLM's environment only; the class travels there by value. Ray's
own `ray.data.llm` keeps neither the finish reason nor a deadline for a request. Many calls share one engine:
it batches requests continuously, so a call that waits for its last rows costs the others nothing.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import threading
import time
import uuid
from typing import Any

ENGINE_DIED = 70
"""Exit status of an actor whose engine died; Ray starts the actor anew and repeats what was in flight."""


class AsyncActor:
    """What actors have in common that answer many questions at a time: each question is a coroutine.

    Args:
        heads: "KIND" or "KIND+KIND" -> turns of a chat that stand before the caption.
        joint: one question for all kinds of a caption, answered by a JSON object.
    """

    def __init__(self, *, heads: dict[str, list[dict[str, str]]], joint: bool) -> None:
        self._id, self._started = uuid.uuid4().hex, time.monotonic()
        self._heads, self._joint = heads, joint
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()

    def ready(self) -> tuple[str, float]:
        """Returns once the actor has started: which one it is, and its age in seconds.

        An actor that Ray started again after a crash is another one.
        """
        return self._id, time.monotonic() - self._started

    def answer(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch with the columns of `BLANK`. Several calls may run at a time."""
        rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        answers = asyncio.run_coroutine_threadsafe(self._answer_all(rows), self.loop).result()
        return {**batch, **{name: [a[name] for a in answers] for name in BLANK}}

    async def _answer_all(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        groups: dict[Any, list[int]] = {}
        for i, row in enumerate(rows):
            if row["applicable"]:
                groups.setdefault(row["key"] if self._joint else i, []).append(i)
        answers = [dict(BLANK) for _ in rows]
        answered = await asyncio.gather(*(self._ask([rows[i] for i in group]) for group in groups.values()))
        for group, own in zip(groups.values(), answered, strict=True):
            for i, answer in zip(group, own, strict=True):
                answers[i] = answer
        return answers

    async def _ask(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The columns of `BLANK` for the kinds of one caption that are asked for together."""
        kinds = [str(row["kind"]) for row in rows]
        turns = [*self._heads["+".join(kinds)], {"role": "user", "content": str(rows[0]["caption"])}]
        answer = await self.complete(turns, int(rows[0]["seed"]), kinds)
        return split(answer, kinds) if self._joint else [answer]

    async def complete(self, turns: list[dict[str, str]], seed: int, kinds: list[str]) -> dict[str, Any]:
        """The columns of `BLANK` for one request."""
        raise NotImplementedError


class VLLMActor(AsyncActor):
    """One engine.

    Args:
        engine: arguments of vLLM's AsyncEngineArgs.
        heads, joint: see AsyncActor.
        sampling: arguments of SamplingParams; the seed is each row's own, `max_tokens` each kind's.
        timeout_s: after which a request is given up, in seconds, from when the engine has it.
        environment: variables that vLLM reads at its import.
        template: arguments of the model's chat template.
    """

    def __init__(
        self,
        *,
        engine: dict[str, Any],
        heads: dict[str, list[dict[str, str]]],
        joint: bool,
        sampling: dict[str, Any],
        timeout_s: float,
        environment: dict[str, str],
        template: dict[str, Any],
    ) -> None:
        super().__init__(heads=heads, joint=joint)
        os.environ.update(environment)
        from transformers import AutoTokenizer
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        self._timeout_s, self._sampling, self._template = timeout_s, sampling, template
        self._tokenizer = AutoTokenizer.from_pretrained(engine["model"])
        self._reasons = reasons(self._tokenizer)
        self._requests = 0
        # The engine's own tasks live in the loop that it is made in.
        made = asyncio.run_coroutine_threadsafe(_make(AsyncLLM, AsyncEngineArgs(**engine)), self.loop)
        self._engine = made.result()

    async def complete(self, turns: list[dict[str, str]], seed: int, kinds: list[str]) -> dict[str, Any]:
        from vllm import SamplingParams
        from vllm.v1.engine.exceptions import EngineDeadError

        started = time.monotonic()
        self._requests += 1
        request_id = f"{os.getpid()}-{self._requests}"
        answer = dict(BLANK)
        try:
            tokens = prompt_tokens(self._tokenizer, turns, self._template)
            params = SamplingParams(
                **{**self._sampling, "max_tokens": self._sampling["max_tokens"] * len(kinds)},
                **self._form(kinds),
                seed=seed,
            )
            async with asyncio.timeout(self._timeout_s):
                async for output in self._engine.generate({"prompt_token_ids": tokens}, params, request_id):
                    last = output
            answer |= {
                "text": last.outputs[0].text,
                "finish_reason": str(last.outputs[0].finish_reason or ""),
                "prompt_tokens": len(tokens),
                "completion_tokens": len(last.outputs[0].token_ids),
                "cached_tokens": int(last.num_cached_tokens or 0),
            }
        except TimeoutError:
            await self._engine.abort(request_id)
            answer |= {"error": "timeout", "text": f"no answer within {self._timeout_s:g} s"}
        except EngineDeadError:
            print(
                "degla-ray: vLLM's engine died; this actor ends and is replaced", file=sys.stderr, flush=True
            )
            os._exit(ENGINE_DIED)
        except Exception as error:  # one row's fault, e.g. a prompt that is too long: the row says so
            answer |= {"error": "engine_error", "text": f"{type(error).__name__}: {error}".splitlines()[0]}
        return answer | {"seconds": time.monotonic() - started}

    def _form(self, kinds: list[str]) -> dict[str, Any]:
        """An answer is a line, or an object with the kinds as keys."""
        if not self._joint:
            return {} if self._reasons else {"stop": ["\n"]}  # a thought has many lines
        from vllm.sampling_params import StructuredOutputsParams

        return {"structured_outputs": StructuredOutputsParams(json=json_schema(kinds))}


BLANK: dict[str, Any] = {
    "text": "",
    "finish_reason": "",
    "prompt_tokens": 0,
    "completion_tokens": 0,
    "cached_tokens": 0,
    "error": "",
    "status": 0,
    "seconds": 0.0,
}
"""The columns that a completer adds, of a row that was not asked; `status` is the HTTP status of an error."""

_MARK = r"(?:think(?:ing)?|thought|reason(?:ing)?)"
_OPENS, _CLOSES = rf"(?:<{_MARK}>|\[{_MARK}\])", rf"(?:</{_MARK}>|\[/{_MARK}\])"
_THOUGHT = re.compile(f"{_OPENS}.*?{_CLOSES}", re.S | re.I)
_REST_OF_THOUGHT = re.compile(f"^.*{_CLOSES}", re.S | re.I)
_BEGUN_THOUGHT = re.compile(f"{_OPENS}.*$", re.S | re.I)


def after_thought(text: str) -> str | None:
    """The answer without the thought of a reasoning model; None where there is nothing but a thought.

    Some chat templates open the thought in the prompt, so that the answer holds its end only; one that
    reached its token limit has no end.
    """
    left = _THOUGHT.sub("", text)
    left = _BEGUN_THOUGHT.sub("", _REST_OF_THOUGHT.sub("", left))
    return None if left != text and not left.strip() else left


def json_schema(kinds: list[str]) -> dict[str, Any]:
    """Of an object with one text a kind."""
    return {
        "type": "object",
        "properties": {kind: {"type": "string"} for kind in kinds},
        "required": kinds,
        "additionalProperties": False,
    }


def split(answer: dict[str, Any], kinds: list[str]) -> list[dict[str, Any]]:
    """One answer for several kinds as an answer each, tokens and seconds shared out.

    One without exactly one JSON object that names a kind stays as it is for every kind: the checks of form
    name what is wrong with it.
    """
    found = [] if answer["error"] else _objects(after_thought(answer["text"]) or "", kinds)
    each = []
    for n, kind in enumerate(kinds):
        own = answer | {"seconds": answer["seconds"] / len(kinds)}
        for tokens in ("prompt_tokens", "completion_tokens", "cached_tokens"):
            own[tokens] = (answer[tokens] + n) // len(kinds)  # they add up to the whole
        if len(found) == 1:
            text = found[0].get(kind, "")
            # The object is whole, whatever was cut off behind it.
            own |= {"text": text if isinstance(text, str) else json.dumps(text), "finish_reason": "stop"}
        elif not answer["error"]:
            own["text"] = " ".join(answer["text"].split())  # lines are one answer here
        each.append(own)
    return each


def _objects(text: str, kinds: list[str]) -> list[dict[str, Any]]:
    """The different JSON objects in a text that have one of the kinds as a key, wherever they stand."""
    decoder, objects, at = json.JSONDecoder(), list[dict[str, Any]](), text.find("{")
    while at >= 0:
        try:
            value, end = decoder.raw_decode(text, at)
        except (json.JSONDecodeError, RecursionError):
            value, end = {}, at + 1
        if not any(kind in value for kind in kinds):
            end = at + 1  # what it holds may be one
        elif value not in objects:
            objects.append(value)
        at = text.find("{", end)
    return objects


def reasons(tokenizer: Any) -> bool:
    """Whether a model writes its thought before its answer, as far as its tokenizer tells."""
    return "</think>" in tokenizer.get_vocab() or "think>" in str(tokenizer.chat_template)


def prompt_tokens(tokenizer: Any, turns: list[dict[str, str]], template: dict[str, Any]) -> list[int]:
    """The prompt: by the model's chat template where it has one, else as plain text to be continued."""
    if tokenizer.chat_template:
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **template)
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    return list(tokenizer(as_plain_text(turns))["input_ids"])


def as_plain_text(turns: list[dict[str, str]]) -> str:
    """A chat as text that a model without chat template continues."""
    labels = {"system": "", "user": "Caption: ", "assistant": "Rewritten: "}
    return "\n".join([*(labels[t["role"]] + t["content"] for t in turns), "Rewritten:"])


async def _make(engine_class: Any, arguments: Any) -> Any:
    return engine_class.from_engine_args(arguments)
