#!/usr/bin/env python
"""Write captions and negatives as NegCLIP's training file, for its own training code.

python jobs/export_negclip_tsv.py --prepared runs/coco --negatives runs/coco-negatives --output negclip.tsv
"""

from _start import main

if __name__ == "__main__":
    main("export_negclip_tsv")
