"""vLLM in a Ray actor: prompts in; texts, finish reasons, token counts and errors out, row by row.

The actor runs in vLLM's own interpreter (`vllm.python`), where neither degla_ray nor its dependencies are
installed. This file therefore imports only the standard library and packages of vLLM's environment, and Ray
pickles the class by value. Ray's own `ray.data.llm` reports no finish reason and has no timeout per request.
Many calls share one engine: it batches requests continuously, so a call that waits for its last rows does
not delay the others.
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
"""Exit status of an actor whose engine died; Ray restarts the actor and repeats the calls in flight."""


class AsyncActor:
    """Base class of actors that answer many requests concurrently, each as a coroutine.

    Args:
        heads: maps "KIND" or "KIND+KIND" to the chat turns before the caption.
        joint: whether one request covers all kinds of a caption and is answered by a JSON object.
    """

    def __init__(self, *, heads: dict[str, list[dict[str, str]]], joint: bool) -> None:
        self._id, self._started = uuid.uuid4().hex, time.monotonic()
        self._heads, self._joint = heads, joint
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()

    def ready(self) -> tuple[str, float]:
        """Return the actor's id and its age in seconds, once it has started.

        An actor that Ray restarted after a crash has a new id.
        """
        return self._id, time.monotonic() - self._started

    def answer(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the batch with the columns of `BLANK` added; calls may run concurrently."""
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
        """Return the columns of `BLANK` for each row of one request (the kinds of one caption)."""
        kinds = [str(row["kind"]) for row in rows]
        slot = json.loads(str(rows[0]["slot"])) if rows[0]["slot"] else None
        question = str(rows[0]["caption"]) if slot is None else slot["question"]
        turns = [*self._heads["+".join(kinds)], {"role": "user", "content": question}]
        answer = await self.complete(turns, int(rows[0]["seed"]), kinds, slot)
        return split(answer, kinds) if self._joint else [answer]

    async def complete(
        self, turns: list[dict[str, str]], seed: int, kinds: list[str], slot: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Return the columns of `BLANK` for one request.

        Args:
            turns: the chat, which ends with the question.
            seed: seed of the sampling.
            kinds: kinds that the answer covers.
            slot: fields of a `Slot` that limit the answer; None for an answer in free text.
        """
        raise NotImplementedError


class VLLMActor(AsyncActor):
    """Actor that holds one vLLM engine.

    Args:
        engine: arguments of vLLM's AsyncEngineArgs.
        heads, joint: see AsyncActor.
        sampling: arguments of SamplingParams; `max_tokens` is per kind, and each row supplies its own seed.
        timeout_s: seconds after which a request is aborted, counted from its submission to the engine.
        environment: environment variables that vLLM reads when it is imported.
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

        self._timeout_s, self._sampling = timeout_s, sampling
        tokenizer = AutoTokenizer.from_pretrained(engine["model"], trust_remote_code=False)
        self._prompts = PromptTokens(tokenizer, template)
        self._reasons = reasons(tokenizer)
        self._requests = 0
        # The engine's own tasks run in the event loop that creates it.
        made = asyncio.run_coroutine_threadsafe(_make(AsyncLLM, AsyncEngineArgs(**engine)), self.loop)
        self._engine = made.result()

    async def complete(
        self, turns: list[dict[str, str]], seed: int, kinds: list[str], slot: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        from vllm import SamplingParams
        from vllm.v1.engine.exceptions import EngineDeadError

        started = time.monotonic()
        self._requests += 1
        request_id = f"{os.getpid()}-{self._requests}"
        answer = dict(BLANK)
        try:
            tokens = self._prompts.of("+".join(kinds), turns)
            params = SamplingParams(
                **{**self._sampling, "max_tokens": self._sampling["max_tokens"] * len(kinds)},
                **self._form(kinds, slot),
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
        except Exception as error:  # concerns this row only, e.g. a prompt that is too long
            answer |= {"error": "engine_error", "text": f"{type(error).__name__}: {error}".splitlines()[0]}
        return answer | {"seconds": time.monotonic() - started}

    def _form(self, kinds: list[str], slot: dict[str, Any] | None) -> dict[str, Any]:
        """Return sampling arguments that limit an answer to one line, to JSON with a key per kind, or to a
        slot's options."""
        if not self._joint and slot is None:
            return {} if self._reasons else {"stop": ["\n"]}  # reasoning spans several lines
        from vllm.sampling_params import StructuredOutputsParams

        if slot is not None:
            return {"structured_outputs": StructuredOutputsParams(regex=slot_regex(slot))}
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
"""The columns that an engine adds, with the values of a row that needed no request; `status` is the HTTP
status of an error."""

_MARK = r"(?:think(?:ing)?|thought|reason(?:ing)?)"
_OPENS, _CLOSES = rf"(?:<{_MARK}>|\[{_MARK}\])", rf"(?:</{_MARK}>|\[/{_MARK}\])"
_THOUGHT = re.compile(f"{_OPENS}.*?{_CLOSES}", re.S | re.I)
_REST_OF_THOUGHT = re.compile(f"^.*{_CLOSES}", re.S | re.I)
_BEGUN_THOUGHT = re.compile(f"{_OPENS}.*$", re.S | re.I)


def after_thought(text: str) -> str | None:
    """Return the answer without a reasoning model's thinking section; None if nothing else remains.

    Some chat templates open the section in the prompt, so the answer contains only its closing tag. An answer
    that reached its token limit may lack the closing tag.
    """
    left = _THOUGHT.sub("", text)
    left = _BEGUN_THOUGHT.sub("", _REST_OF_THOUGHT.sub("", left))
    return None if left != text and not left.strip() else left


def json_schema(kinds: list[str]) -> dict[str, Any]:
    """Return the JSON schema of an object with one string per kind."""
    return {
        "type": "object",
        "properties": {kind: {"type": "string"} for kind in kinds},
        "required": kinds,
        "additionalProperties": False,
    }


ANY_WORD = "[a-z]{2,14}( [a-z]{2,14})?"
"""Regular expression of what fills a slot without options."""
_SPECIAL = re.compile(r"[.^$*+?{}\[\]\\|()]")


def slot_regex(slot: dict[str, Any]) -> str:
    """Return the regular expression of a JSON list with the wanted number of a slot's options."""
    texts = [json.dumps(option, ensure_ascii=False)[1:-1] for option in slot["options"]]
    one = "|".join(_SPECIAL.sub(r"\\\g<0>", text) for text in texts) or ANY_WORD
    return rf'\["({one})"(, "({one})"){{{slot["count"] - 1}}}\]'


def slot_schema(slot: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON schema of an object whose one key has the wanted number of a slot's options."""
    item = {"enum": slot["options"]} if slot["options"] else {"pattern": f"^{ANY_WORD}$"}
    texts = {"type": "array", "minItems": slot["count"], "maxItems": slot["count"]}
    return {
        "type": "object",
        "properties": {"answers": texts | {"items": {"type": "string"} | item}},
        "required": ["answers"],
        "additionalProperties": False,
    }


def split(answer: dict[str, Any], kinds: list[str]) -> list[dict[str, Any]]:
    """Split the answer to a joint request into one per kind, dividing tokens and seconds among them.

    If the text does not contain exactly one JSON object with a kind as a key, every kind gets the whole text,
    and the checks of form name its fault.
    """
    found = [] if answer["error"] else _objects(after_thought(answer["text"]) or "", kinds)
    each = []
    for n, kind in enumerate(kinds):
        own = answer | {"seconds": answer["seconds"] / len(kinds)}
        for tokens in ("prompt_tokens", "completion_tokens", "cached_tokens"):
            own[tokens] = (answer[tokens] + n) // len(kinds)  # the shares add up to the total
        if len(found) == 1:
            text = found[0].get(kind, "")
            # The object is complete, even if the text after it was cut off.
            own |= {"text": text if isinstance(text, str) else json.dumps(text), "finish_reason": "stop"}
        elif not answer["error"]:
            own["text"] = " ".join(answer["text"].split())  # all lines belong to one answer here
        each.append(own)
    return each


def _objects(text: str, kinds: list[str]) -> list[dict[str, Any]]:
    """Return the distinct JSON objects anywhere in `text` that have one of the kinds as a key."""
    decoder, objects, at = json.JSONDecoder(), list[dict[str, Any]](), text.find("{")
    while at >= 0:
        try:
            value, end = decoder.raw_decode(text, at)
        except (json.JSONDecodeError, RecursionError):
            value, end = {}, at + 1
        if not any(kind in value for kind in kinds):
            end = at + 1  # a nested object may be one
        elif value not in objects:
            objects.append(value)
        at = text.find("{", end)
    return objects


def reasons(tokenizer: Any) -> bool:
    """Return whether the tokenizer suggests that the model writes its reasoning before its answer."""
    return "</think>" in tokenizer.get_vocab() or "think>" in str(tokenizer.chat_template)


class PromptTokens:
    """Tokens of prompts, of which the examples that many have in common are tokenised once.

    A prompt is cut before the last control token in front of the caption, where no token spans the cut.

    Args:
        tokenizer: the model's tokenizer.
        template: arguments of its chat template.
    """

    _CAPTION = "A caption."

    def __init__(self, tokenizer: Any, template: dict[str, Any]) -> None:
        self._tokenizer, self._template = tokenizer, template
        self._control = control_tokens(tokenizer)
        self._heads: dict[str, tuple[list[int], str, str] | None] = {}

    def of(self, name: str, turns: list[dict[str, str]]) -> list[int]:
        """Return the tokens of a chat; all chats of one name differ in the last turn only."""
        if name not in self._heads:
            self._heads[name] = self._head(turns)
        head = self._heads[name]
        if head is None:
            return prompt_tokens(self._tokenizer, turns, self._template)
        return self._joined(head, turns[-1]["content"])

    def _head(self, turns: list[dict[str, str]]) -> tuple[list[int], str, str] | None:
        """Return the head's tokens and the texts around the caption; None if prompts cannot be cut."""
        if not self._tokenizer.chat_template:
            return None
        chat = [*turns[:-1], {"role": "user", "content": self._CAPTION}]
        text = _from_template(self._tokenizer, chat, self._template)
        before, _, after = text.rpartition(self._CAPTION)
        cut = max((before.rfind(token) for token in self._control), default=0)
        if cut <= 0:
            return None
        head = self._tokens(before[:cut]), before[cut:], after
        whole = prompt_tokens(self._tokenizer, turns, self._template)
        return head if self._joined(head, turns[-1]["content"]) == whole else None

    def _joined(self, head: tuple[list[int], str, str], caption: str) -> list[int]:
        tokens, before, after = head
        return tokens + self._tokens(f"{before}{without_control_tokens(self._control, caption)}{after}")

    def _tokens(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])


def prompt_tokens(tokenizer: Any, turns: list[dict[str, str]], template: dict[str, Any]) -> list[int]:
    """Return the prompt's tokens, from the model's chat template, or from plain text if it has none.

    The caption, which is the last turn, stays text: a control token written out in it does not end its turn.
    """
    *before, caption = turns
    text = without_control_tokens(control_tokens(tokenizer), caption["content"])
    turns = [*before, {**caption, "content": text}]
    if tokenizer.chat_template:
        text = _from_template(tokenizer, turns, template)
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    return list(tokenizer(as_plain_text(turns))["input_ids"])


def _from_template(tokenizer: Any, turns: list[dict[str, str]], template: dict[str, Any]) -> str:
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **template))


def control_tokens(tokenizer: Any) -> list[str]:
    """Return the tokens with a meaning of their own, such as `<|im_end|>`."""
    marked = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    return sorted({*tokenizer.all_special_tokens, *marked})


def without_control_tokens(control: list[str], text: str) -> str:
    """Return the text with a space inside every control token that it contains."""
    for token in control:
        text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


def as_plain_text(turns: list[dict[str, str]]) -> str:
    """Return a chat as plain text for a model without a chat template to continue."""
    labels = {"system": "", "user": "Caption: ", "assistant": "Rewritten: "}
    return "\n".join([*(labels[t["role"]] + t["content"] for t in turns), "Rewritten:"])


async def _make(engine_class: Any, arguments: Any) -> Any:
    return engine_class.from_engine_args(arguments)
