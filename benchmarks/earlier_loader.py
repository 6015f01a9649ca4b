"""Measure the loader of commit a094aed, which decoded images at full size and read whole row groups.

`benchmarks/loader.py` runs this with that commit's package before this one on PYTHONPATH.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import open_clip
import ray

from benchmarks.processes import measure
from degla_ray import ray_setup
from degla_ray.config import DataConfig, RayConfig

# Modules that only the earlier package has.
data, decode, order, samples_of = (
    import_module(f"degla_ray.training.{name}") for name in ("data", "decode", "order", "samples")
)
MODEL, SIZE = "ViT-B-32-quickgelu", 224


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prepared")
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--cache_bytes", type=int, default=2**28, help="row groups in a decoder's memory")
    options = parser.parse_args()
    ray_setup.set_environment()
    samples = samples_of.load_samples(DataConfig(prepared=options.prepared), with_negatives=False)
    spec = decode.BatchSpec(
        order=order.BatchOrder(seed=0, num_rows=len(samples), batch_size=options.batch),
        rank=0,
        world_size=1,
        negatives=0,
        size=(SIZE, SIZE),
        interpolation="bicubic",
        crop_scale_min=0.9,
        tokenizer=open_clip.get_tokenizer(MODEL),
    )
    ray_setup.start(RayConfig())
    reference = ray.put(samples)

    def batches(steps: int) -> Iterator[Any]:
        decoders = data.start_decoders(1, 1)
        ray.get(decoders[0][0].__ray_call__.remote(_limit_cache, options.cache_bytes))
        yield from data.Feed(reference, spec, first=0, last=steps, decoders=decoders[0], prefetch=2)
        data.end_decoders(decoders)

    print(json.dumps(dataclasses.asdict(measure(batches, options.batch, options.steps))), flush=True)
    ray.shutdown()


def _limit_cache(decoder: Any, cache_bytes: int) -> None:
    import_module("degla_ray.training.decode").PictureReader.__init__.__defaults__ = (cache_bytes,)


if __name__ == "__main__":
    main()
