#!/usr/bin/env python
"""Write negative captions, by rule or by a language model (stage `negatives`).

    python jobs/negatives.py --prepared runs/scenes --output runs/scenes-negatives

The default engine, `rules`, edits captions by grammar. `--engine vllm` and `--engine openai` ask a language
model; `--engine given` takes the negatives that the source brought (docs/negatives.md). Run again, an
unfinished folder continues.
"""

from _start import main

if __name__ == "__main__":
    main("negatives")
