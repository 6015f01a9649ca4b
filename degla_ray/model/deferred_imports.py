"""Import open_clip without transformers and torch's compiler, until something needs them.

open_clip imports transformers' generation code, and with it scikit-learn, SciPy and pandas, for two things
that few models use: text towers from Hugging Face and CoCa's `generate`. timm and torchvision import the
compiler for two functions that no model here uses. Every process that encodes or tokenises would pay for
both: 4.8 s of a core for `import open_clip`, 1.8 s without. Text towers still work, since the names that they
use import transformers on first use, and so do the two functions; only `CoCa.generate` does not. A training
worker imports the compiler in the end, because optimizers do.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

_COMPILER = "torch._dynamo.utils"
_GENERIC = "TokenizersBackend"
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
    """Defer both in the next `import open_clip`; do nothing if open_clip is imported already."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


@contextmanager
def generic_tokenizer(folder: Path) -> Iterator[None]:
    """Let open_clip open a tokenizer's folder without transformers' models, if it names the generic class.

    `AutoTokenizer` makes the same object of such a folder, but first imports every model's generation code
    and torch's compiler: 3.6 s of a core instead of 0.8.
    """
    named = folder / "tokenizer_config.json"
    others = not named.is_file() or (folder / "config.json").exists()
    if others or json.loads(named.read_text(encoding="utf-8")).get("tokenizer_class") != _GENERIC:
        yield
        return
    transformers: Any = import_module("transformers")
    before = vars(transformers).get("AutoTokenizer")  # imported on first use
    transformers.AutoTokenizer = getattr(transformers, _GENERIC)
    try:
        yield
    finally:
        del transformers.AutoTokenizer
        if before is not None:
            transformers.AutoTokenizer = before


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


class _Finder(MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        execute = _EXECUTED.get(name)
        spec = PathFinder.find_spec(name, path, target) if execute else None
        if execute and spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, execute)
        return spec


class _Loader(Loader):
    """A module's own loader, with something around the execution of the module."""

    def __init__(self, loader: Loader, execute: Callable[[Loader, ModuleType], None]) -> None:
        self._loader, self._execute = loader, execute

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__.loader = module.__loader__ = self._loader  # type: ignore[union-attr]
        self._execute(self._loader, module)


def _open_clip(loader: Loader, module: ModuleType) -> None:
    if "transformers" in sys.modules:
        with _lazily_disabled():
            loader.exec_module(module)
        return
    # None makes `import transformers` raise ImportError, which open_clip takes for "not installed".
    with _lazily_disabled(), _replaced("transformers", None):
        loader.exec_module(module)
    towers = import_module("open_clip.hf_model")
    for name, source in _USED.items():
        setattr(towers, name, _Deferred(source, name))
    towers.transformers = True  # type: ignore[attr-defined]  # asked only whether it is None


def _roi_align(loader: Loader, module: ModuleType) -> None:
    if _COMPILER in sys.modules:
        loader.exec_module(module)
        return
    stand_in = ModuleType(_COMPILER)
    stand_in.is_compile_supported = _is_compile_supported  # type: ignore[attr-defined]
    with _replaced(_COMPILER, stand_in):
        loader.exec_module(module)


_EXECUTED = {"open_clip": _open_clip, "torchvision.ops.roi_align": _roi_align}


def _is_compile_supported(device_type: str) -> bool:
    return bool(import_module(_COMPILER).is_compile_supported(device_type))


@contextmanager
def _replaced(name: str, stand_in: ModuleType | None) -> Iterator[None]:
    """Let `import NAME`, of a module that is not imported yet, find the stand-in."""
    sys.modules[name] = stand_in  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]


@contextmanager
def _lazily_disabled() -> Iterator[None]:
    """Let `@torch.compiler.disable()` import the compiler at the first call, as torch does inside itself."""
    torch: Any = import_module("torch")
    disable = torch.compiler.disable

    def lazily(fn: Any = None, recursive: bool = True, **_: Any) -> Any:
        return torch._disable_dynamo(fn, recursive)

    torch.compiler.disable = lazily
    try:
        yield
    finally:
        torch.compiler.disable = disable
