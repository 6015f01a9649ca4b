"""What `ray job submit --working-dir .` takes along: the code, and nothing that may be large."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

from ray._private.runtime_env.packaging import create_package  # what the command itself calls

REPO = Path(__file__).parents[2]


def test_working_dir_takes_the_code_and_leaves_every_other_folder(tmp_path: Path) -> None:
    folder = tmp_path / "degla-ray"
    for code in ("degla_ray/model/pretrained", "jobs/configs", "tune_spaces"):
        (folder / code).mkdir(parents=True)
        (folder / code / "needed").touch()
    for other in (".git", ".venv", "benchmarks-data", "clip-hf", "models", "data", "runs", "my-photos"):
        (folder / other).mkdir()
        (folder / other / "large").touch()
    (folder / "mine.yaml").touch()
    for name in (".gitignore", ".rayignore"):
        shutil.copy(REPO / name, folder)
    package = tmp_path / "package.zip"
    create_package(str(folder), package, include_gitignore=True)
    files = {name for name in zipfile.ZipFile(package).namelist() if not name.endswith("/")}
    assert files == {
        "degla_ray/model/pretrained/needed",
        "jobs/configs/needed",
        "mine.yaml",
        "tune_spaces/needed",
    }
