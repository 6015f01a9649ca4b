"""What benchmarks need encoded, what has been encoded, and which benchmarks are complete. No Ray."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from degla_ray.encoding.features import FeatureTable


@dataclass(frozen=True, kw_only=True)
class Needs:
    """Images and texts that a benchmark needs.

    Attributes:
        keys: `image_key` of every image.
        texts: every text.
    """

    keys: set[str]
    texts: set[str]


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Features, and the images that have none."""

    features: FeatureTable
    missing: Mapping[str, str]
    """`image_key` -> reason why it could not be read."""
    truncated: frozenset[str] = frozenset()
    """Texts that exceed the model's context length and were truncated."""


@dataclass
class Work:
    """Pending needs of all benchmarks, and the features that have arrived."""

    needs: Sequence[Needs]
    on_progress: Callable[[int, int, int], None]
    img: dict[str, np.ndarray] = field(default_factory=dict)
    txt: dict[str, np.ndarray] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    truncated: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.needed_by: dict[tuple[str, str], list[int]] = defaultdict(list)
        for number, need in enumerate(self.needs):
            for key in need.keys:
                self.needed_by["key", key].append(number)
            for text in need.texts:
                self.needed_by["text", text].append(number)
        self._left = [len(need.keys) + len(need.texts) for need in self.needs]
        self._yielded = [False] * len(self.needs)

    def first_needed_by(self, what: str, name: str) -> int:
        return self.needed_by[what, name][0]

    def pending_texts(self) -> Iterator[str]:
        return (name for what, name in self.needed_by if what == "text" and name not in self.txt)

    def add_text(self, text: str, feature: np.ndarray, *, truncated: bool) -> None:
        self.txt[text] = feature
        if truncated:
            self.truncated.add(text)
        self._done("text", text)

    def add_image(self, key: str, feature: np.ndarray) -> None:
        self.img[key] = feature
        self._done("key", key)

    def add_missing(self, key: str, reason: str) -> None:
        self.missing[key] = reason
        self._done("key", key)

    def _done(self, what: str, name: str) -> None:
        for number in self.needed_by[what, name]:
            self._left[number] -= 1
            total = len(self.needs[number].keys) + len(self.needs[number].texts)
            self.on_progress(number, total - self._left[number], total)

    def finished(self) -> Iterator[tuple[int, Encoded]]:
        """Yield the benchmarks that became complete, each once."""
        for number, need in enumerate(self.needs):
            if not self._left[number] and not self._yielded[number]:
                self._yielded[number] = True
                yield number, self._encoded(need)

    def _encoded(self, need: Needs) -> Encoded:
        keys = sorted(need.keys & self.img.keys())
        texts = sorted(need.texts, key=lambda text: (len(text), text))
        return Encoded(
            features=FeatureTable(
                img_ND=_stack([self.img[key] for key in keys]),
                txt_MD=_stack([self.txt[text] for text in texts]),
                image_row={key: i for i, key in enumerate(keys)},
                text_row={text: i for i, text in enumerate(texts)},
            ),
            missing={key: self.missing[key] for key in sorted(need.keys & self.missing.keys())},
            truncated=frozenset(need.texts & self.truncated),
        )


def _stack(rows: Sequence[np.ndarray]) -> np.ndarray:
    return np.stack(rows) if rows else np.zeros((0, 0), dtype=np.float32)
