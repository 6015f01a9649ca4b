"""The commands in the README and the docs parse, the files they name are there, and README's Python runs.

tests/ray/test_readme.py runs README's commands."""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path

import pytest

from degla_ray.cli import parse
from degla_ray.config import JOBS
from degla_ray.dry_run import without_flag

REPO = Path(__file__).parents[2]
PAGES = [
    REPO / "README.md",
    REPO / "CONTRIBUTING.md",
    *sorted((REPO / "docs").rglob("*.md")),
    REPO / "cluster.yaml",
    *sorted((REPO / "deploy").iterdir()),
]
PLACEHOLDER = re.compile(r"\bFILE\.yaml")


def _commands() -> list[tuple[str, list[str]]]:
    """(page, stage and its options) of each `degla STAGE --…` or `python jobs/STAGE.py --…`."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for match in re.finditer(r"(?:python jobs/(\w+)\.py|\bdegla (\w+)) (--[^\n`#]+)", text):
            if not PLACEHOLDER.search(match[3]) and not match[3].startswith("--help"):
                found.append((page.name, [match[1] or match[2], *shlex.split(match[3])]))
    return found


def test_docs_commands_are_found() -> None:
    stages = {words[0] for page, words in _commands() if page == "README.md"}
    assert {"prepare", "negatives", "train", "evaluate", "compare", "tune", "chain"} <= stages


def _parse(words: list[str], monkeypatch: pytest.MonkeyPatch) -> object:
    """The config that a job builds from a command line; the job itself is not run."""
    monkeypatch.chdir(REPO)
    options, _ = without_flag(words[1:])
    return parse(JOBS[words[0]], "", options)


@pytest.mark.parametrize(("page", "words"), _commands(), ids=lambda value: str(value)[:60])
def test_docs_command_parses(page: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert dataclasses.is_dataclass(_parse(words, monkeypatch)), page


def test_readme_python_runs_as_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(REPO)  # it opens an image of the docs
    blocks = re.findall(r"```python\n(.*?)```", (REPO / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
    scores = [float(number) for number in re.findall(r"-?\d\.\d+", capsys.readouterr().out)]
    assert len(scores) == 2
    assert scores[0] != scores[1]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_docs_files_that_are_named_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = set(
        re.findall(r"(?:degla_ray|jobs|tune_spaces|tests|docs|deploy)/[\w/-]+\.(?:py|yaml|md|txt|sh)", text)
    )
    missing = sorted(name for name in named if not (REPO / name).exists() and not PLACEHOLDER.search(name))
    assert not missing, f"{page.name} names files that are not there: {missing}"


def test_docs_make_targets_that_are_named_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (REPO / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        for target in re.findall(r"(?:^|`)make ([\w-]+)", page.read_text(encoding="utf-8"), re.MULTILINE):
            assert target in targets, f"{page.name}: make {target}"


def test_docs_every_config_is_named_in_a_command_that_parses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file in jobs/configs: a comment of its own, or a job's docstring, says what runs it."""
    configs = sorted((REPO / "jobs" / "configs").glob("*.yaml"))
    assert configs
    jobs = "\n".join(job.read_text(encoding="utf-8") for job in (REPO / "jobs").glob("*.py"))
    for config in configs:
        name = re.escape(f"jobs/configs/{config.name}")
        text = config.read_text(encoding="utf-8") + jobs
        commands = re.findall(rf"python jobs/(\w+)\.py (--config {name})", text)
        assert commands, f"{config.name}: no command `python jobs/... --config jobs/configs/{config.name}`"
        for stage, options in set(commands):
            assert dataclasses.is_dataclass(_parse([stage, *shlex.split(options)], monkeypatch)), stage


def test_docs_tests_that_reliability_names_exist() -> None:
    named = re.findall(r"`(test_\w+)`", (REPO / "docs" / "reliability.md").read_text(encoding="utf-8"))
    sources = [path.read_text(encoding="utf-8") for path in (REPO / "tests").rglob("test_*.py")]
    there = {name for source in sources for name in re.findall(r"def (test_\w+)\(", source)}
    assert len(named) > 50
    assert sorted(set(named) - there) == []
