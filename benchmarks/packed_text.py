#!/usr/bin/env python
"""Compare three ways to compute a BERT-like text tower: padded, in groups of similar length, packed.

    python -m benchmarks.packed_text

An encoder of MiniLM's size with random weights takes captions with about the lengths of Flickr8k's (15 of 64
tokens). Medians of alternating rounds on one thread; the features must agree to 1e-5.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from open_clip.hf_model import HFTextEncoder
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import BertConfig

from degla_ray.model.packed_encoders import pooled_states
from degla_ray.model.packing import TextEnd, pack
from degla_ray.model.trunks import in_groups

LENGTH, VOCABULARY = 64, 30522


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--captions", type=int, default=256, help="captions (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    tower, tokens = _tower(), _tokens(options.captions)
    text = pack(tokens, TextEnd(padding=0).find(tokens)).map(torch.as_tensor)
    tokens_BL = torch.from_numpy(tokens)
    sides: dict[str, Callable[[], Tensor]] = {
        "padded": lambda: tower.pooler(tower.transformer(tokens_BL, tokens_BL != 0), tokens_BL != 0),
        "in groups": lambda: in_groups(tower, tokens_BL),
        "packed": lambda: pooled_states(tower, text),
    }
    expected = sides["padded"]().detach()
    table = Table(title=f"{options.captions} captions, {int((tokens != 0).sum())} of {tokens.size} tokens")
    for heading in ("", "forward s", "forward and backward s", "packed is"):
        table.add_column(heading, justify="right" if heading else "left")
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for _ in range(options.rounds):
        for name, side in sides.items():
            seconds[name].append(_timed(side))
            if not torch.allclose(side().detach(), expected, atol=1e-5):
                sys.exit(f"the features of {name!r} differ")
    medians = {
        name: [statistics.median(x) for x in zip(*found, strict=True)] for name, found in seconds.items()
    }
    for name, (forward, both) in medians.items():
        ratio = f"{both / medians['packed'][1]:.2f} x as fast"
        table.add_row(name, f"{forward:.2f}", f"{both:.2f}", ratio)
    Console().print(table)


def _timed(side: Callable[[], Tensor]) -> tuple[float, float]:
    """Return seconds of the forward pass, and of both passes."""
    started = time.perf_counter()
    pooled_BW = side()
    forward = time.perf_counter() - started
    pooled_BW.square().sum().backward()
    return forward, time.perf_counter() - started


def _tower() -> HFTextEncoder:
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1536,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config.to_dict()))
        tower = HFTextEncoder(folder, output_dim=384, pooler_type="mean_pooler", pretrained=False)
    return tower.eval()


def _tokens(captions: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    tokens = np.zeros((captions, LENGTH), np.int64)
    for row, length in zip(tokens, rng.normal(15, 4, captions).round().clip(6, LENGTH), strict=True):
        row[: int(length)] = rng.integers(1000, VOCABULARY, int(length))
    return tokens


if __name__ == "__main__":
    main()
