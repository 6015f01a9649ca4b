"""Search spaces: files of tune_spaces/, each with a function `space()`.

It returns two dicts of dotted train settings: Ray Tune domains to search, and the values that they go with,
which replace those of the config. Adding a space is adding a file.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune as ray_tune
from ray.tune.search.sample import Domain

from degla_ray.config import ObjectiveConfig, TrainConfig
from degla_ray.errors import SettingError
from degla_ray.model.source import find_model


@dataclass(frozen=True, kw_only=True)
class Space:
    """A search space.

    Attributes:
        domains: dotted train setting -> Ray Tune domain.
        settings: dotted train setting -> its value in all trials.
        text: the file's content, which is part of the sweep's identity.
    """

    domains: Mapping[str, Domain]
    settings: Mapping[str, Any]
    text: str

    def combinations(self) -> list[dict[str, Any]]:
        """Return every combination of the domains' values.

        Raises:
            SettingError: a continuous domain.
        """
        for name, domain in self.domains.items():
            if not hasattr(domain, "categories"):
                expected = "tpe, nsga2 or random, or a list of values in tune.grid_search or tune.choice"
                raise SettingError("search", f"grid with a continuous {name}", expected)
        values = [_values(domain) for domain in self.domains.values()]
        return [dict(zip(self.domains, drawn, strict=True)) for drawn in itertools.product(*values)]


def load_space(path: str) -> Space:
    """Return the search space that a file's `space()` defines.

    Raises:
        SettingError: a missing file, a file without that function, or one that returns something else.
    """
    spec = importlib.util.spec_from_file_location("search_space", path)
    if spec is None or spec.loader is None or not Path(path).is_file():
        raise SettingError("space", path, "a Python file such as tune_spaces/loss_weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, "space", None)):
        raise SettingError("space", path, "a file that defines the function `space`")
    found = module.space()
    if not (isinstance(found, tuple) and len(found) == 2 and all(isinstance(d, Mapping) for d in found)):
        expected = "a function `space` that returns two dicts: domains to search, and settings they go with"
        raise SettingError("space", path, expected)
    domains, settings = found
    searched = {name: ray_tune.choice(_listed(d)) if _listed(d) else d for name, d in domains.items()}
    for name, domain in searched.items():
        if not isinstance(domain, Domain):
            raise SettingError("space", f"{name}: {domain!r}", "a Ray Tune domain, such as tune.choice([…])")
    if not searched:
        raise SettingError("space", path, "at least one domain to search")
    return Space(domains=searched, settings=dict(settings), text=Path(path).read_text(encoding="utf-8"))


def check_space(space: Space, config: TrainConfig) -> None:
    """Check that trials can be made of a space, as far as one setting at a time tells.

    Raises:
        SettingError: an unknown setting, an impossible value, or a model that is not there.
    """
    with_settings(config, {name: _values(domain)[0] for name, domain in space.domains.items()})
    for name, domain in space.domains.items():
        for value in _values(domain):  # check every listed value, not only the first
            if name == "model.name":
                find_model(value)
            elif name == "objective.name":
                ObjectiveConfig(name=value)


def with_settings(config: TrainConfig, settings: Mapping[str, Any]) -> TrainConfig:
    """Return `config` with some settings replaced, named as on the command line of job `train`.

    Raises:
        SettingError: an unknown setting or an invalid value.
    """
    for name, value in settings.items():
        config = _replaced(config, name, name.split("."), value)
    return config


def _listed(domain: Any) -> list[Any] | None:
    """Return the values of `tune.grid_search`, which is a dict; None for any other domain."""
    return domain["grid_search"] if isinstance(domain, Mapping) and "grid_search" in domain else None


def _values(domain: Any) -> list[Any]:
    """Return a domain's listed values; for a continuous domain, one sample in a list."""
    return list(domain.categories) if hasattr(domain, "categories") else [domain.sample()]


def _replaced(config: Any, name: str, path: Sequence[str], value: Any) -> Any:
    known = (
        {field.name for field in dataclasses.fields(config)} if dataclasses.is_dataclass(config) else set()
    )
    if path[0] not in known:
        raise SettingError("space", name, f"a setting of job train; {config!r:.60} has no such setting")
    inner = _replaced(getattr(config, path[0]), name, path[1:], value) if len(path) > 1 else value
    return dataclasses.replace(config, **{path[0]: inner})
