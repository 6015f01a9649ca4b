"""Prompts: an instruction and examples from prompts/<kind>.yaml or joint.yaml, followed by the caption.

A request is for one kind, or (`generation.prompting: joint`) for all kinds that a caption still lacks, and is
then answered by a JSON object. With `slots`, examples are cut to the part of the caption that changes. The
run's seed chooses the examples and their order, which is the same for all captions. Prompts of the same kinds
therefore start with the same tokens, which a prefix cache computes once.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from degla_ray.errors import DataError, SettingError
from degla_ray.language.grammar import load_yaml
from degla_ray.negatives.llm.slots import slot_between
from degla_ray.schema import Kind

FOLDER = Path(__file__).parent / "prompts"

Message = dict[str, str]
"""A turn of a chat: role and content."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """The part of a prompt before the caption.

    Attributes:
        instruction: the task, as the system message.
        examples: (caption, answer) pairs.
    """

    instruction: str
    examples: tuple[tuple[str, str], ...]

    def messages(self) -> list[Message]:
        """Return the chat turns: the instruction, then each example as a user turn and its answer."""
        turns = [{"role": "system", "content": self.instruction}]
        for caption, answer in self.examples:
            turns += [{"role": "user", "content": caption}, {"role": "assistant", "content": answer}]
        return turns


Prompts = Mapping[tuple[Kind, ...], Prompt]
"""The prompt of every possible request: one per kind, or one per set of kinds for joint requests."""


def load_prompts(
    kinds: Sequence[Kind], shots: int, seed: int, *, prompting: str = "per_kind", folder: Path = FOLDER
) -> Prompts:
    """Return the prompts of all requests, with `shots` examples drawn by `seed`.

    Args:
        kinds: requested kinds.
        shots: examples per prompt.
        seed: seed of the drawing.
        prompting: `generation.prompting`. For `joint`, every set of kinds has a prompt, because a request
            names only the kinds that are applicable to the caption and still missing.
        folder: folder with the prompt files.

    Raises:
        SettingError: `shots` exceeds the number of examples in a file.
        DataError: a file is missing, or does not consist of an instruction and examples.
    """
    own = {kind: _read(folder / f"{kind.value}.yaml", ["negative"]) for kind in kinds}
    if prompting == "joint":
        return _joint(own, shots, seed, folder)
    told = {kind.value: own[kind]["instruction"] for kind in kinds}
    if prompting == "slots":
        told = load_yaml(folder / "slots.yaml")
    prompts: dict[tuple[Kind, ...], Prompt] = {}
    for kind in kinds:
        examples = _drawn(own[kind]["examples"], shots, f"{seed} {kind.value}")
        pairs = ((example["caption"], example["negative"]) for example in examples)
        prompts[(kind,)] = Prompt(
            instruction=told[kind.value].strip(),
            examples=tuple(_as_slot(*pair) if prompting == "slots" else pair for pair in pairs),
        )
    return prompts


def _joint(own: Mapping[Kind, dict[str, Any]], shots: int, seed: int, folder: Path) -> Prompts:
    """Return a prompt for every set of kinds."""
    together = _read(folder / "joint.yaml", [kind.value for kind in Kind])
    examples = _drawn(together["examples"], shots, f"{seed} joint")
    prompts = {}
    for some in (s for n in range(1, len(own) + 1) for s in itertools.combinations(own, n)):
        each = [f"{kind.value}: {own[kind]['instruction'].strip()}" for kind in some]
        prompts[some] = Prompt(
            instruction="\n".join([together["instruction"].strip(), *each]),
            examples=tuple((e["caption"], json.dumps({k.value: e[k.value] for k in some})) for e in examples),
        )
    return prompts


def _as_slot(caption: str, negative: str) -> tuple[str, str]:
    """Return an example as the question and answer of a slot."""
    slot = slot_between(caption, [negative])
    return slot.question, json.dumps(slot.options)


def prompt_sha(prompts: Prompts) -> str:
    """Return the first 12 hex digits of the SHA-256 of all prompts."""
    text = repr(sorted(([k.value for k in kinds], p.instruction, p.examples) for kinds, p in prompts.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _drawn(examples: list[dict[str, str]], shots: int, seed: str) -> list[dict[str, str]]:
    if shots > len(examples):
        raise SettingError("generation.shots", shots, f"at most {len(examples)}, the examples of a prompt")
    return random.Random(seed).sample(examples, shots)


def _read(path: Path, answers: Sequence[str]) -> dict[str, Any]:
    keys = {"caption", *answers}
    expected = f"a YAML file with `instruction` and `examples` of {', '.join(sorted(keys))}"
    content = load_yaml(path)
    if set(content) != {"instruction", "examples"}:
        raise DataError(str(path), f"keys {sorted(content)}", expected)
    for number, example in enumerate(content["examples"], start=1):
        if not isinstance(example, dict) or set(example) != keys:
            raise DataError(f"{path}, example {number}", example, expected)
        if not all(isinstance(text, str) and text.strip() for text in example.values()):
            raise DataError(f"{path}, example {number}", example, "captions that are not empty")
    return content
