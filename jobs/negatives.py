#!/usr/bin/env python
"""Writes negative captions for the captions that `prepare` wrote.

    python jobs/negatives.py --prepared runs/scenes --output runs/scenes-negatives
    python jobs/negatives.py --prepared runs/flickr8k --output runs/flickr8k-negatives \
        --kinds '[reshuffle, swap_nouns]' --per_kind 4 --num_shards 32

    python jobs/negatives.py --prepared runs/scenes --output runs/scenes-llm --engine vllm \
        --vllm.python .venv-vllm/bin/python --generation.estimate 200

`--engine rules` needs no language model; `vllm` and `openai` ask one (docs/negatives.md); `given` takes what
the source brought. Running it again continues an unfinished folder and leaves a finished one as it is.
"""

from degla_ray.cli import run
from degla_ray.config import NegativesConfig
from degla_ray.negatives.pipeline import generate

if __name__ == "__main__":
    run(NegativesConfig, generate, "Captions become negative captions (+ rejects).")
