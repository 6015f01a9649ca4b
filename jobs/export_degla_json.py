#!/usr/bin/env python
"""Write captions and negatives as DeGLA's released JSON, for its own training code.

python jobs/export_degla_json.py --prepared runs/coco --negatives runs/coco-negatives --output degla.json
"""

from _start import main

if __name__ == "__main__":
    main("export_degla_json")
