#!/usr/bin/env python
"""Write negative captions, by rule or by a language model (stage `negatives`).

    python jobs/negatives.py --prepared runs/scenes --output runs/scenes-negatives

The default engine, `rules`, edits captions by grammar. `--engine vllm` and `--engine openai` ask a language
model; `--engine given` uses the negatives that the source supplies (docs/negatives.md). Run again, the job
continues an unfinished folder.
"""

from _start import main

if __name__ == "__main__":
    main("negatives")
