"""Import open_clip without transformers, until a Hugging Face text tower needs it.

open_clip imports transformers' generation code, and with it scikit-learn, SciPy and pandas, for two things
that few models use: text towers from Hugging Face and CoCa's `generate`. Every training worker and every
actor that encodes would pay for it: 6.6 s of a core for `import open_clip`, 4.3 s without. Text towers still
work, since the names that they use import transformers on first use; only `CoCa.generate` does not.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_OUTPUTS = "transformers.modeling_outputs"
# What the functions of open_clip.hf_model use, and its module.
_USED = {
    "AutoConfig": "transformers",
    "AutoModel": "transformers",
    "AutoTokenizer": "transformers",
    "BaseModelOutputWithPooling": _OUTPUTS,
    "BaseModelOutputWithPoolingAndCrossAttentions": _OUTPUTS,
}


def install() -> None:
    """Defer transformers in the next `import open_clip`; do nothing if open_clip is imported already."""
    if not any(isinstance(finder, _OpenClipFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _OpenClipFinder())


class _Deferred:
    """Stand in for a class of transformers: its attributes, and `isinstance(x, this)`."""

    def __init__(self, module: str, name: str) -> None:
        self._module, self._name = module, name

    def _class(self) -> Any:
        return getattr(import_module(self._module), self._name)

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._class(), attribute)

    def __instancecheck__(self, instance: object) -> bool:
        return isinstance(instance, self._class())


class _OpenClipFinder(MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != "open_clip" or "transformers" in sys.modules:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _OpenClipLoader(spec.loader)
        return spec


class _OpenClipLoader(Loader):
    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__.loader = module.__loader__ = self._loader  # type: ignore[union-attr]
        with _absent("transformers"):
            self._loader.exec_module(module)
        towers = import_module("open_clip.hf_model")
        for name, source in _USED.items():
            setattr(towers, name, _Deferred(source, name))
        towers.transformers = True  # type: ignore[attr-defined]  # asked only whether it is None


@contextmanager
def _absent(name: str) -> Iterator[None]:
    """Make `import NAME` raise ImportError, which open_clip takes for "not installed"."""
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]
