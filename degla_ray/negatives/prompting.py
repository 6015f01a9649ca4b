"""What a language model is asked: an instruction and examples for each kind, from prompts/<kind>.yaml.

The examples stand before the caption in one order for all captions of a kind, chosen by the run's seed: so
every prompt of a kind begins with the same tokens, which vLLM's prefix cache computes once.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from degla_ray.errors import DataError, SettingError
from degla_ray.negatives.grammar import load_yaml
from degla_ray.schema import Kind

FOLDER = Path(__file__).parent / "prompts"

Message = dict[str, str]
"""A turn of a chat: role and content."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What stands before the caption.

    Attributes:
        instruction: what to do.
        examples: (caption, negative) pairs.
    """

    instruction: str
    examples: tuple[tuple[str, str], ...]

    def messages(self) -> list[Message]:
        """As turns of a chat: the instruction, then each example as question and answer."""
        turns = [{"role": "system", "content": self.instruction}]
        for caption, negative in self.examples:
            turns += [{"role": "user", "content": caption}, {"role": "assistant", "content": negative}]
        return turns


def load_prompts(kinds: Sequence[Kind], shots: int, seed: int, folder: Path = FOLDER) -> dict[Kind, Prompt]:
    """The prompt of each kind, with `shots` examples drawn by `seed`.

    Raises:
        SettingError: more examples wanted than a file has.
        DataError: a file is missing, or is not an instruction and examples.
    """
    prompts = {}
    for kind in kinds:
        content = _read(folder / f"{kind.value}.yaml")
        examples = [(e["caption"], e["negative"]) for e in content["examples"]]
        if shots > len(examples):
            raise SettingError("generation.shots", shots, f"at most {len(examples)}, which {kind} has")
        chosen = random.Random(f"{seed} {kind.value}").sample(examples, shots)
        prompts[kind] = Prompt(instruction=content["instruction"].strip(), examples=tuple(chosen))
    return prompts


def prompt_sha(prompts: Mapping[Kind, Prompt]) -> str:
    """12 hex digits of everything that the prompts say."""
    text = repr(sorted((kind.value, p.instruction, p.examples) for kind, p in prompts.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _read(path: Path) -> dict[str, Any]:
    expected = "a YAML file with `instruction` and `examples` of `caption` and `negative`"
    content = load_yaml(path)
    if set(content) != {"instruction", "examples"}:
        raise DataError(str(path), f"keys {sorted(content)}", expected)
    for number, example in enumerate(content["examples"], start=1):
        if not isinstance(example, dict) or set(example) != {"caption", "negative"}:
            raise DataError(f"{path}, example {number}", example, expected)
        if not all(isinstance(text, str) and text.strip() for text in example.values()):
            raise DataError(f"{path}, example {number}", example, "two captions")
    return content
