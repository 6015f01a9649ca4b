"""A chain's sections are typed, and all read before anything runs."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from degla_ray.cli import build_parser, from_settings, parse
from degla_ray.cli_help import settings
from degla_ray.config import JOBS, ChainConfig
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
        (
            "fine_tune",
            {"degla": {"seed": 3}},
            r"fine_tune\.degla\.seed: no such setting; did you mean --seed",
        ),
        ("fine_tune", {"degla": {"data": {"prepared": "x"}}}, r"fine_tune\.degla\.data\.prepared: no such"),
        ("fine_tune", {"degla": {"validation": {"every_steps": 5}}}, r"fine_tune\.degla\.validation\.suite"),
        ("fine_tune", {"base": {}}, r"fine_tune: found 'base'"),
        ("fine_tune", {"optimizer": {"lr": 1}}, r"fine_tune: found 'optimizer'; expected a label before"),
        ("fine_tune", {"a.b": {}}, r"fine_tune: found 'a\.b'; expected a label of letters"),
        ("fine_tune", {"degla": None}, r"fine_tune: found {}; expected at least one label"),
        ("fine_tune", 3, r"fine_tune: found 3; expected labels"),
        ("evaluate", {"bootstrap_samples": 0}, r"evaluate\.bootstrap_samples: found 0"),
        ("evaluate", {"num_actors": 1, "batch": 2}, r"evaluate\.batch: no such setting"),
    ],
)
def test_chain_wrong_section_is_told_of_before_anything_runs(
    repo: Path, tmp_path: Path, section: str, wrong: dict[str, Any], told: str
) -> None:
    given = recipe(repo, "demo", tmp_path) | {section: wrong}
    with pytest.raises(DeglaError, match=told):
        from_settings(ChainConfig, given, "chain")


def test_chain_wires_the_folders_and_the_models_of_its_stages(repo: Path, tmp_path: Path) -> None:
    given = recipe(repo, "flickr8k", tmp_path)
    kept = copy.deepcopy(given)
    config = from_settings(ChainConfig, given, "chain")
    stages = config.stages()
    root = str(tmp_path / "chain" / "seed0")
    assert given == kept
    assert stages.pretrain is not None
    assert stages.pretrain.model == config.base_model
    assert (config.base_model.name, config.base_model.random_init) == ("flickr-small", True)
    assert (
        stages.prepare.output == stages.negatives.prepared == stages.evaluate.prepared == f"{root}/prepared"
    )
    assert stages.fine_tune["degla"].data.negatives == stages.negatives.output == f"{root}/negatives"
    assert {t.output for t in (stages.pretrain, *stages.fine_tune.values())} == {f"{root}/train"}


def test_chain_gives_its_seed_and_tracking_to_every_stage(repo: Path, tmp_path: Path) -> None:
    file = ["--config", str(repo / "jobs" / "configs" / "demo.yaml")]
    config = parse(ChainConfig, "", [*file, "--seed", "7", "--tracking.enabled", "false"])
    stages = config.stages()
    assert (stages.prepare.scenes.seed, stages.negatives.seed) == (7, 7)
    assert {train.seed for train in stages.fine_tune.values()} == {7}
    tracked = [stages.negatives, stages.evaluate, *stages.fine_tune.values()]
    assert not any(stage.tracking.enabled for stage in tracked)
    assert stages.evaluate.suite == f"{config.root}/prepared/tests"


def test_chain_settings_of_a_section_are_options(repo: Path) -> None:
    file = ["--config", str(repo / "jobs" / "configs" / "demo.yaml")]
    options = ["--prepare.scenes.num_images=9", "--fine_tune.degla.optimizer.lr", "3e-4"]
    config = parse(
        ChainConfig,
        "",
        [
            *file,
            *options,
            "--fine_tune.degla-2.max_steps=5",
            "--pretrain.max_steps=6",
            "--pretrain.objective.name=clip",
        ],
    )
    stages = config.stages()
    assert stages.prepare.scenes.num_images == 9
    degla = stages.fine_tune["degla"]
    assert (degla.optimizer.lr, degla.optimizer.warmup_steps, degla.objective.lambda_igc) == (3e-4, 50, 10.0)
    assert stages.fine_tune["clip"].optimizer.lr == 2e-3
    assert stages.fine_tune["degla-2"].max_steps == 5
    assert stages.pretrain is not None
    assert stages.pretrain.max_steps == 6
    assert list(parse(ChainConfig, "", [*file, "--fine_tune", "{clip: null}"]).fine_tune) == ["degla"]
    for wrong, told in (
        ("--fine_tune.degla-2.objective.naem=x", r"did you mean --fine_tune\.degla-2\.objective\.name"),
        ("--fine_tune.degla-2.optimizer.lr=x", r"fine_tune\.degla-2\.optimizer\.lr: expected type float"),
        ("--fine_tune.degla-2.num_workers=0", r"fine_tune\.degla-2\.num_workers: found 0"),
        ("--pretrain=3", r"pretrain: found '3'; expected settings"),
    ):
        with pytest.raises(DeglaError, match=told):
            parse(ChainConfig, "", [*file, wrong])


def test_chain_printed_config_can_be_read_back(
    repo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "printed.yaml"
    for name in ("demo", "flickr8k"):
        given = ["--config", str(repo / "jobs" / "configs" / f"{name}.yaml")]
        with pytest.raises(SystemExit):
            parse(ChainConfig, "", [*given, "--print_config"])
        file.write_text(capsys.readouterr().out)
        assert parse(ChainConfig, "", ["--config", str(file)]) == parse(ChainConfig, "", given)


@pytest.mark.parametrize(
    ("section", "job"),
    [
        ("prepare", "prepare"),
        ("negatives", "negatives"),
        ("pretrain", "train"),
        ("fine_tune.LABEL", "train"),
        ("evaluate", "evaluate"),
    ],
)
def test_chain_section_has_every_setting_of_its_job_but_what_the_chain_decides(
    section: str, job: str
) -> None:
    decided = {"output", "name", "label", "seed", "scenes.seed", "suite", "prepared", "negatives"}
    decided |= {"data.prepared", "data.negatives"}
    chain = settings(build_parser(ChainConfig, ""))
    of_job = settings(build_parser(JOBS[job], ""))
    own = {name.removeprefix(f"{section}.") for name in chain if name.startswith(f"{section}.")}
    left_out = {name for name in of_job if name not in own}
    groups = ("model.", "tracking.", "ray.")
    assert {name for name in left_out if not name.startswith(groups)} <= decided
    assert own <= of_job.keys()
    for name in own:
        action, original = chain[f"{section}.{name}"], of_job[name]
        assert (action.default, action.help.split()) == (original.default, original.help.split())
