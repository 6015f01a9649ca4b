#!/usr/bin/env python
"""Turns a source of pictures and captions into the project's Parquet datasets.

    python jobs/prepare.py --source scenes --output runs/scenes
    python jobs/prepare.py --source csv --output runs/flickr8k --csv.images DIR/Images \
        --csv.captions '{train: DIR/captions_train.txt, val: DIR/captions_val.txt}'
    python jobs/prepare.py --source coco --output runs/coco --coco.images DIR \
        --coco.karpathy dataset_coco.json
    python jobs/prepare.py --source parquet --output runs/mine --parquet.files '{train: [DIR/train]}'
    python jobs/prepare.py --source webdataset --output runs/cc3m --webdataset.shards '{train: [DIR/train]}'

docs/sources.md tells of all of them.
Running it again continues an unfinished folder and leaves a finished one as it is.
"""

from degla_ray.cli import run
from degla_ray.config import PrepareConfig
from degla_ray.sources.prepare import prepare

if __name__ == "__main__":
    run(PrepareConfig, prepare, "A source becomes images + captions (+ rejects).")
