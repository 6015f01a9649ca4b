#!/usr/bin/env python
"""Read images and captions from a source into Parquet (stage `prepare`).

    python jobs/prepare.py --source scenes --output runs/scenes

`--source` names the format: `scenes` renders its own images, `coco`, `flickr8k`, `parquet`, `webdataset`,
`degla_json` and `negclip_tsv` read yours (docs/sources.md). Run again, an unfinished folder continues and a
finished one stays as it is.
"""

from _start import main

if __name__ == "__main__":
    main("prepare")
