"""Files of a source by name, folder and pattern."""

from __future__ import annotations

from pathlib import Path

import pytest

from degla_ray.errors import SettingError
from degla_ray.sources.files import find_files, open_file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a-000.tar", "a-001.tar", "a-002.tar", "b.TAR", "notes.txt", "deep/c.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


def found(folder: Path, *patterns: str) -> list[str]:
    files = find_files({"train": [f"{folder}/{p}" for p in patterns]}, "x.shards", ".tar")
    return [uri.removeprefix(f"{folder}/") for uri in files.files["train"]]


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (["a-001.tar"], ["a-001.tar"]),
        (["notes.txt"], ["notes.txt"]),  # named outright, whatever its suffix
        (["a-{001..002}.tar"], ["a-001.tar", "a-002.tar"]),
        (["a-00{2..2}.tar", "a-{000..001}.tar"], ["a-002.tar", "a-000.tar", "a-001.tar"]),
        (["a-*.tar"], ["a-000.tar", "a-001.tar", "a-002.tar"]),
        (["a-00[02].tar"], ["a-000.tar", "a-002.tar"]),
        ([""], ["a-000.tar", "a-001.tar", "a-002.tar", "b.TAR", "deep/c.tar"]),
        (["deep/"], ["deep/c.tar"]),
    ],
)
def test_find_files_takes_names_ranges_patterns_and_folders(
    folder: Path, patterns: list[str], names: list[str]
) -> None:
    assert found(folder, *patterns) == names


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("gone.tar", r"gone\.tar'; expected an existing file"),
        ("a-{000..003}.tar", r"a-003\.tar'; expected an existing file"),
        ("z*.tar", r"expected an existing file"),
        ("a-{2..1}.tar", r"expected a range from the smaller"),
        ("*/c.tar", r"expected a pattern in the last part"),
    ],
)
def test_find_files_that_are_not_there_are_named(folder: Path, pattern: str, message: str) -> None:
    with pytest.raises(SettingError, match=r"^x\.shards\.train: found .*" + message):
        found(folder, pattern)


def test_find_files_named_twice_or_not_at_all_is_an_error(folder: Path) -> None:
    with pytest.raises(SettingError, match="each file once"):
        found(folder, "a-*.tar", "a-001.tar")
    with pytest.raises(SettingError, match=r"x\.shards\.val: .*each file once"):
        find_files({"train": [f"{folder}/b.TAR"], "val": [f"{folder}/b.TAR"]}, "x.shards", ".tar")
    with pytest.raises(SettingError, match="at least one file"):
        find_files({"train": []}, "x.shards", ".tar")
    with pytest.raises(SettingError, match=r"x\.shards: .*train-\*\.tar"):
        find_files({}, "x.shards", ".tar")


def test_find_files_relative_to_the_working_folder_are_opened(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    for pattern in ("a-000.tar", "a-000.*"):
        (uri,) = find_files({"train": [pattern]}, "x.shards", ".tar").files["train"]
        with open_file(uri) as file:
            assert (uri, file.read()) == (str(folder / "a-000.tar"), b"a-000.tar")


@pytest.mark.parametrize("name", ["a[1]", "what?", "x*y", "n{0..1}", "50% #1"])
def test_find_files_name_with_a_patterns_characters_is_taken_as_it_is(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / f"{name}.tar").write_text("x")
    (tmp_path / name / "b-0.tar").write_text("x")
    assert found(tmp_path, name) == sorted([f"{name}/{name}.tar", f"{name}/b-0.tar"])
    assert found(tmp_path, f"{name}/{name}.tar") == [f"{name}/{name}.tar"]
    if "{" not in name:
        below = found(tmp_path, f"{name}/b-*.tar", f"{name}/[!b]*.tar")
        assert below == [f"{name}/b-0.tar", f"{name}/{name}.tar"]
        assert found(tmp_path, f"{name}/b-{{0..0}}.tar") == [f"{name}/b-0.tar"]


def test_find_files_other_files_of_a_folder_are_listed(folder: Path) -> None:
    others = find_files({"train": [str(folder)]}, "x.shards", ".tar").others
    assert others == [f"{folder}/notes.txt"]
    (folder / "gz").mkdir()
    (folder / "gz" / "a.tar.gz").write_text("x")
    with pytest.raises(SettingError, match="a folder of 1 other files"):
        found(folder, "gz")
