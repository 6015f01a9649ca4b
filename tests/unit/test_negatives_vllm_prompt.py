"""The prompt that a vLLM engine gets from a model's chat template, with real tokenizers."""

from __future__ import annotations

from typing import Any

import pytest

from degla_ray.negatives.llm.engines.vllm_actor import prompt_tokens, reasons

TURNS = [{"role": "user", "content": "dog"}]
TEMPLATE = (
    "{% for turn in messages %}{{ turn.content }} {% endfor %}answer "
    "{% if enable_thinking is defined and not enable_thinking %}nothing{% endif %}"
)


def tokenizer_of(template: str | None, *more: str) -> Any:
    tokenizers = pytest.importorskip("tokenizers")
    from transformers import PreTrainedTokenizerFast

    words = ["[UNK]", "dog", "answer", "nothing", *more]
    model = tokenizers.models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="[UNK]")
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, chat_template=template, unk_token="[UNK]")


def test_prompt_tokens_template_gets_its_arguments() -> None:
    tokenizer = tokenizer_of(TEMPLATE)
    assert prompt_tokens(tokenizer, TURNS, {}) == [1, 2]
    assert prompt_tokens(tokenizer, TURNS, {"enable_thinking": True}) == [1, 2]
    assert prompt_tokens(tokenizer, TURNS, {"enable_thinking": False}) == [1, 2, 3]


@pytest.mark.parametrize(
    ("tokenizer", "expected"),
    [
        ((TEMPLATE,), False),
        ((None,), False),
        ((None, "</think>"), True),
        ((TEMPLATE + "<think>",), True),
    ],
)
def test_reasons_by_vocabulary_or_template(tokenizer: tuple[Any, ...], expected: bool) -> None:
    assert reasons(tokenizer_of(*tokenizer)) is expected
