"""A chain's sections are all read before anything runs."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from degla_ray.chain import _plan, run_chain
from degla_ray.cli import from_settings
from degla_ray.config import ChainConfig
from degla_ray.errors import DeglaError


def recipe(repo: Path, name: str, output: Path) -> dict[str, Any]:
    settings = yaml.safe_load((repo / "jobs" / "configs" / f"{name}.yaml").read_text())
    return settings | {"output": str(output / "chain")}


@pytest.mark.parametrize(
    ("section", "wrong", "told"),
    [
        ("prepare", {"sauce": "scenes"}, r"prepare\.sauce: no such setting"),
        ("negatives", {"per_kind": "four"}, r"negatives\.per_kind: expected"),
        ("base_model", {"weights": "x"}, r"weights: no such setting"),
        ("pretrain", {"max_steps": "ten"}, r"pretrain\.max_steps: expected"),
        ("fine_tune", {"degla": {"objective": {"name": "dgela"}}}, r"fine_tune\.degla\.objective\.name"),
        ("fine_tune", {"degla": {"num_workers": 0}}, r"fine_tune\.degla\.num_workers: found 0"),
        ("fine_tune", {"degla": {"seed": 3}}, r"fine_tune\.degla\.seed: found 3; expected no such setting"),
        ("fine_tune", {"degla": {"data": {"prepared": "x"}}}, r"fine_tune\.degla\.data\.prepared: found 'x'"),
        ("fine_tune", {"base": {}}, r"fine_tune: found 'base'"),
        ("evaluate", {"bootstrap_samples": 0}, r"evaluate\.bootstrap_samples: found 0"),
        ("evaluate", {"num_actors": 1, "batch": 2}, r"evaluate\.batch: no such setting"),
    ],
)
def test_chain_wrong_section_is_told_of_before_anything_runs(
    repo: Path, tmp_path: Path, section: str, wrong: dict[str, Any], told: str
) -> None:
    settings = recipe(repo, "demo", tmp_path) | {section: wrong}
    before = ray.is_initialized()
    with pytest.raises(DeglaError, match=told):
        run_chain(from_settings(ChainConfig, settings, "chain"))
    assert not (tmp_path / "chain").exists()
    assert ray.is_initialized() == before


def test_chain_wires_the_folders_and_the_models_of_its_stages(repo: Path, tmp_path: Path) -> None:
    settings = recipe(repo, "flickr8k", tmp_path)
    given = copy.deepcopy(settings)
    plan = _plan(from_settings(ChainConfig, settings, "chain"))
    root = str(tmp_path / "chain" / "seed0")
    assert settings == given
    assert plan.pretrain is not None
    assert plan.pretrain.model == plan.base_model
    assert (plan.base_model.name, plan.base_model.random_init) == ("flickr-small", True)
    assert plan.prepare.output == plan.negatives.prepared == plan.evaluate.prepared == f"{root}/prepared"
    assert plan.fine_tune["degla"].data.negatives == plan.negatives.output == f"{root}/negatives"
    assert {t.output for t in (plan.pretrain, *plan.fine_tune.values())} == {f"{root}/train"}
