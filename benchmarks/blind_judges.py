#!/usr/bin/env python
"""Measure how often judges that see no image find the caption beside its negative: 50 % is chance.

    python benchmarks/blind_judges.py --data data/flickr8k --plausibility none
    python benchmarks/blind_judges.py --data data/flickr8k --language_model models/smollm2-135m

The negatives are those that the job `negatives` writes for the captions of the validation images. Judges:
an n-gram model of a third of the images' captions, neither the third that the judged caption is of nor the
one that its negative was selected with; a model of COCO's captions (`--coco`); the project's own, a logistic
regression on words and word pairs; a language model's log-probability a token, on `--pairs` pairs a kind.
5,000 captions take 30 s, 300 pairs a kind by SmolLM2 3 minutes.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from degla_ray.config import ScenesConfig
from degla_ray.evaluation.statistics import wilson
from degla_ray.language.ngrams import NGrams
from degla_ray.negatives.plausibility import Balance, CaptionModels, Chooser, fold_of, plausibility
from degla_ray.negatives.rules import RuleEngine
from degla_ray.negatives.selection import ORDER, EditRequest, no_veto, select
from degla_ray.negatives.shard import vocabulary
from degla_ray.negatives.text_only import text_only_accuracy
from degla_ray.sources.scenes.captions import captions as scene_captions
from degla_ray.sources.scenes.world import sample_scene, scene_rng

LABELS = Path(__file__).resolve().parents[1] / "tests" / "golden" / "plausible_labels.jsonl"
READ = ("true", "grammatical", "sensible")
"""Labels: false of the caption's image as far as the caption tells; no error that its caption lacks; a scene
that a photograph may show."""
Pair = tuple[str, str, int, float]
"""Caption, negative, fold of the image, score."""


def main() -> None:
    options = _options()
    if options.labels:
        return print_labels()
    if options.scenes:
        train, val = (_scenes(split, count) for split, count in (("train", 4000), ("val", 1700)))
    else:
        train, val = (_read(options.data / f"captions_{split}.txt") for split in ("train", "val"))
    captions = [(image, text) for image, texts in [*train.items(), *val.items()] for text in texts]
    models = CaptionModels([text for _, text in captions], [fold_of(image) for image, _ in captions])
    selectors = models if options.plausibility == "ngram" else None
    engine = RuleEngine(vocabulary(text for _, text in captions), selectors)
    started = time.process_time()
    pairs = _negatives(engine, val if options.split == "val" else train, options, selectors)
    print(f"{options.limit / (time.process_time() - started):,.0f} captions/s on one core")
    chosen = {kind: len(found) for kind, found in pairs.items()}
    if options.plausibility == "ngram":
        pairs = _balanced(pairs, options.window)
    judges: dict[str, Callable[[list[Pair]], float | None]] = {
        "n-gram": lambda found: _accuracy(_differences(models, found)),
        "own": lambda found: text_only_accuracy([(c, n) for c, n, _, _ in found], 0),
    }
    if options.coco is not None:
        coco = NGrams(text for row in json.loads(options.coco.read_text()) for text in row["caption"])
        judges["n-gram, COCO"] = lambda found: _accuracy(
            plausibility(coco, [p[0] for p in found], [p[1] for p in found])
        )
    if options.language_model is not None:
        judges["language model"] = LanguageModelJudge(options.language_model, options.pairs)
    table = Table(title=f"Blind accuracy, plausibility {options.plausibility}")
    for heading in ("kind", "chosen", "kept", "captions", *judges):
        table.add_column(heading, justify="right")
    pairs["all"] = [pair for found in pairs.values() for pair in found]
    chosen["all"] = sum(chosen.values())
    for kind, found in pairs.items():
        told = (judge(found) if found else None for judge in judges.values())
        shares = ("" if share is None else f"{share:.1%}" for share in told)
        table.add_row(kind, str(chosen[kind]), str(len(found)), str(len({p[0] for p in found})), *shares)
    Console().print(table)
    if options.examples:
        rng = random.Random(options.seed)
        for kind, found in pairs.items():
            for caption, negative, _, score in rng.sample(found, min(options.examples, len(found))):
                print(f"{_digest(caption, negative)}\t{kind}\t{score:+.2f}\t{caption}\t{negative}")


def _digest(caption: str, negative: str) -> str:
    return hashlib.blake2b(f"{caption}\t{negative}".encode(), digest_size=6).hexdigest()


def print_labels() -> None:
    """Print the shares of the negatives read by hand, with Wilson's 95 % intervals."""
    rows = [json.loads(line) for line in LABELS.read_text().splitlines()]
    table = Table(title=f"{len(rows)} negatives read by hand")
    for heading in ("kind", "read", *READ):
        table.add_column(heading, justify="right")
    for kind in (*dict.fromkeys(row["kind"] for row in rows), "all"):
        mine = [row for row in rows if kind in (row["kind"], "all")]
        shares = []
        for label in READ:
            share = sum(row[label] for row in mine) / len(mine)
            low, high = wilson(share, len(mine))
            shares.append(f"{share:.0%} [{low:.0%}, {high:.0%}]")
        table.add_row(kind, str(len(mine)), *shares)
    Console().print(table)


class LanguageModelJudge:
    """Finds the caption by a causal language model's mean log-probability a token."""

    def __init__(self, folder: Path, pairs: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._torch, self._pairs = torch, pairs
        self._tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False)
        self._model = model.eval()

    def __call__(self, found: list[Pair]) -> float:
        drawn = random.Random(0).sample(found, min(self._pairs, len(found)))
        scores = self._scores([text for pair in drawn for text in pair[:2]]).reshape(-1, 2)
        return _accuracy(scores[:, 1] - scores[:, 0])

    def _scores(self, texts: Sequence[str]) -> NDArray[np.float64]:
        torch, scores = self._torch, []
        for start in range(0, len(texts), 32):
            batch = self._tokenizer(
                [self._tokenizer.bos_token + text.rstrip(" .") + "." for text in texts[start : start + 32]],
                return_tensors="pt", padding=True, padding_side="right",
            )  # fmt: skip
            with torch.inference_mode():
                logits = self._model(**batch).logits[:, :-1]
            wanted, mask = batch["input_ids"][:, 1:], batch["attention_mask"][:, 1:]
            chance = torch.log_softmax(logits, -1).gather(2, wanted[..., None])[..., 0]
            scores += ((chance * mask).sum(1) / mask.sum(1)).tolist()
        return np.array(scores)


def _negatives(
    engine: RuleEngine,
    images: dict[str, list[str]],
    options: argparse.Namespace,
    models: CaptionModels | None,
) -> dict[str, list[Pair]]:
    requests = [
        EditRequest(
            caption=text,
            siblings=tuple(sorted({*texts} - {text})),
            limit=options.per_kind,
            seed=f"0 {image}#{i}",
            fold=fold_of(image),
        )
        for image, texts in images.items()
        for i, text in enumerate(texts)
    ]
    pairs: dict[str, list[Pair]] = {kind.value: [] for kind in ORDER}
    requests = requests[: options.limit]
    chooser = Chooser(models) if models is not None else None
    for start in range(0, len(requests), 256):
        batch = requests[start : start + 256]
        for request, selection in zip(
            batch, select(engine, batch, ORDER, [no_veto] * len(batch), chooser), strict=True
        ):
            for kind, texts in selection.accepted.items():
                for text in texts:
                    score = selection.plausibility.get(text, 0.0)
                    pairs[kind].append((request.caption, text, request.fold, score))
    return pairs


def _balanced(pairs: dict[str, list[Pair]], window: float | None) -> dict[str, list[Pair]]:
    scores = {kind: np.array([pair[3] for pair in found]) for kind, found in pairs.items()}
    balance = Balance.of(scores, window)
    return {
        kind: [
            pair
            for pair, keep in zip(
                found,
                balance.keeps(kind, scores[kind], [f"{kind} {p[0]} {p[1]}" for p in found], window),
                strict=True,
            )
            if keep
        ]
        for kind, found in pairs.items()
    }


def _differences(models: CaptionModels, found: Sequence[Pair]) -> NDArray[np.float64]:
    differences = np.zeros(len(found))
    for fold in {pair[2] for pair in found}:
        mine = [i for i, pair in enumerate(found) if pair[2] == fold]
        captions, negatives = [found[i][0] for i in mine], [found[i][1] for i in mine]
        differences[mine] = plausibility(models.judge(fold), captions, negatives)
    return differences


def _accuracy(differences: NDArray[np.float64]) -> float:
    """Return how often the caption is likelier than its negative; ties count half."""
    return float(np.mean((differences < 0) + 0.5 * (differences == 0)))


def _read(file: Path) -> dict[str, list[str]]:
    images: dict[str, list[str]] = {}
    with file.open(newline="") as rows:
        for row in csv.DictReader(rows):
            images.setdefault(row["image"], []).append(row["caption"])
    return images


def _scenes(split: str, count: int) -> dict[str, list[str]]:
    """Return three captions each of as many scenes of the demo's sizes."""
    images = {}
    for index in range(count):
        rng = scene_rng(0, split, index)
        scene = sample_scene(rng, ScenesConfig(min_objects=2, max_objects=2))
        images[f"{split} {index}"] = scene_captions(scene, rng, 3)
    return images


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--labels", action="store_true", help="only print the shares read by hand")
    parser.add_argument(
        "--data",
        type=Path,
        default=Path("data/flickr8k"),
        help="folder with captions_train.txt and captions_val.txt",
    )
    parser.add_argument("--split", choices=["val", "train"], default="val", help="captions to edit")
    parser.add_argument("--scenes", action="store_true", help="captions of scenes instead")
    parser.add_argument("--coco", type=Path, help="coco_karpathy_test.json")
    parser.add_argument("--plausibility", choices=["none", "ngram"], default="ngram")
    parser.add_argument("--window", type=float, help="greatest size of a score that is kept")
    parser.add_argument("--per_kind", type=int, default=2)
    parser.add_argument("--limit", type=int, default=5000, help="captions")
    parser.add_argument("--language_model", type=Path, help="folder of a causal language model")
    parser.add_argument("--pairs", type=int, default=300, help="pairs a kind for the language model")
    parser.add_argument("--examples", type=int, default=0, help="negatives a kind to print")
    parser.add_argument("--seed", type=int, default=0, help="seed of the examples")
    return parser.parse_args()


if __name__ == "__main__":
    main()
