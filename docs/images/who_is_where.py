#!/usr/bin/env python
"""Draw README's first image: two scenes that differ only in who is where, and how two models score them.

    python docs/images/who_is_where.py runs/demo/seed0/train/RUN/export_student

Needs a model that `make demo` trained. The scores are cosine similarities of image and caption.
"""

import io
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from PIL import Image

from degla_ray.model import encode_image, encode_text, load
from degla_ray.sources.scenes.render import render
from degla_ray.sources.scenes.world import Scene, SceneObject

CAPTIONS = ("a red circle to the left of a blue square", "a blue square to the left of a red circle")
RED = SceneObject(shape="circle", colour="red", size="large", texture="solid", x=0.27, y=0.5, radius=0.18)
BLUE = replace(RED, shape="square", colour="blue", x=0.73)
GROUND = ((172, 172, 172), (180, 180, 180))


def scores(name: str, images: list[Image.Image]) -> torch.Tensor:
    """Return the cosine similarity of every image (rows) with every caption (columns)."""
    clip = load(name)
    with torch.inference_mode():
        img_BD = encode_image(clip.model, torch.stack([clip.transform(image) for image in images]))
        return img_BD @ encode_text(clip.model, clip.tokenizer(list(CAPTIONS))).T


def main(trained: str) -> None:
    """Draw both scenes with their scores under them."""
    scenes = [
        Scene(objects=(RED, BLUE), ground=GROUND),
        Scene(objects=(replace(RED, x=0.73), replace(BLUE, x=0.27)), ground=GROUND),
    ]
    seen = [Image.open(io.BytesIO(render(scene, 64))) for scene in scenes]  # what the models see
    shown = [Image.open(io.BytesIO(render(scene, 384))) for scene in scenes]
    models = {"base CLIP": scores("scenes-base", seen), "after DeGLA": scores(trained, seen)}
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 3.3))
    for row, axis in enumerate(axes):
        axis.imshow(shown[row].crop((0, 80, 384, 304)))
        axis.set_axis_off()
        lines = [f"{'':<42}" + "".join(f"{model:>13}" for model in models)]
        for column, caption in enumerate(CAPTIONS):
            cells = []
            for table in models.values():
                leads = round(float(table[row, column]), 2) > round(float(table[row, 1 - column]), 2)
                cells.append(f"{table[row, column]:.2f}{' ◂' if leads else '  '}".rjust(13))
            lines.append(f"{caption:<42}" + "".join(cells))
        axis.text(
            0.5, -0.04, "\n".join(lines), transform=axis.transAxes, ha="center", va="top",
            family="monospace", fontsize=7,
        )  # fmt: skip
    figure.tight_layout()
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=140, bbox_inches="tight")


if __name__ == "__main__":
    main(sys.argv[1])
