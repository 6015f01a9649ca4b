"""Source `scenes`: randomly generated images and captions; nothing to download.

A scene is a function of (seed, split, number), so no task needs another's result. The driver generates the
scenes for their captions, and a task generates them again for their images. This costs 0.5 ms per scene twice
and avoids sending the scenes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from degla_ray.config import ScenesConfig
from degla_ray.identity import canonical
from degla_ray.schema import SCENE_GRAPHS
from degla_ray.sources.base import Caption, Record, RowsRead, Source
from degla_ray.sources.scenes.captions import captions
from degla_ray.sources.scenes.render import render
from degla_ray.sources.scenes.world import Scene, sample_scene, scene_rng, scene_to_json
from degla_ray.storage import Storage

TESTS_COMPLETE = "complete.json"
"""Written to `tests/` last; if a job was killed before, the next run writes the test sets again."""


class ScenesSource(Source):
    """Rendered scenes; image_id is `scenes-<split>-<number>`, sample_id `<image_id>#<i>`."""

    def __init__(self, config: ScenesConfig) -> None:
        self._config = config

    def identity(self) -> dict[str, Any]:
        # Hashes instead of a version number that could be forgotten: of this package's code and wording (test
        # sets included), and of the first scenes' output, which also depends on Pillow.
        code, sample = hashlib.sha256(), hashlib.sha256()
        for path in sorted(Path(__file__).parent.glob("*.*")):
            if path.suffix in (".py", ".yaml"):
                code.update(path.read_bytes())
        for number in range(4):
            scene, texts = self._draw("train", number)
            sample.update(scene_to_json(scene).encode() + "\n".join(texts).encode())
            sample.update(render(scene, self._config.image_size))
        return {
            "settings": canonical(self._config),
            "code_sha256": code.hexdigest(),
            "sample_sha256": sample.hexdigest(),
        }

    def records(self) -> Iterator[Record | RowsRead]:
        config = self._config
        sizes = {"train": config.num_images, "val": config.num_validation_images}
        images = sum(sizes.values())
        yield RowsRead(images=images, captions=images * config.captions_per_image)
        for split, size in sizes.items():
            for number in range(size):
                image_id = f"scenes-{split}-{number:06d}"
                _, texts = self._draw(split, number)
                rows = tuple(Caption(f"{image_id}#{i}", text, split) for i, text in enumerate(texts))
                yield Record(image_id, f"{split}/{number}", rows)

    def read_image(self, locator: str) -> bytes:
        return render(self._scene(locator), self._config.image_size)

    def side_tables(self, records: list[Record]) -> dict[str, pa.Table]:
        graphs = [scene_to_json(self._scene(record.locator)) for record in records]
        ids = [record.image_id for record in records]
        return {"graphs": pa.table({"image_id": ids, "graph": graphs}, schema=SCENE_GRAPHS)}

    def write_extras(self, storage: Storage) -> None:
        """Write the test sets to `tests/`, unless they are complete or not requested."""
        if self._config.test_items == 0 or storage.exists("tests", TESTS_COMPLETE):
            return
        from degla_ray.sources.scenes.tests import write_test_sets

        write_test_sets(storage, self._config)
        storage.write_json({"items": self._config.test_items}, "tests", TESTS_COMPLETE)

    def _scene(self, locator: str) -> Scene:
        split, _, number = locator.partition("/")
        return self._draw(split, int(number))[0]

    def _draw(self, split: str, number: int) -> tuple[Scene, list[str]]:
        rng = scene_rng(self._config.seed, split, number)
        scene = sample_scene(rng, self._config)
        return scene, captions(scene, rng, self._config.captions_per_image)
