#!/usr/bin/env python
"""Read images and captions from a source into Parquet (stage `prepare`).

    python jobs/prepare.py --source scenes --output runs/scenes
    python jobs/prepare.py --source csv --output runs/flickr8k --csv.images DIR/Images \
        --csv.captions '{train: DIR/captions_train.txt, val: DIR/captions_val.txt}'

`--source` names the format: `scenes` renders its own images, `coco`, `csv`, `parquet`, `webdataset`,
`degla_json` and `negclip_tsv` read yours (docs/sources.md). Run again, the job continues an unfinished folder
and leaves a finished one unchanged.
"""

from _start import main

if __name__ == "__main__":
    main("prepare")
