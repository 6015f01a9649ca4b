"""What a user sees of the command line, on a small config and on the real ones."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
import venv
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from degla_ray.cli import build_parser, from_settings, parse, run, user_error
from degla_ray.cli_help import settings
from degla_ray.commands import COMMANDS, degla, main
from degla_ray.config import (
    JOBS,
    ChainConfig,
    CompareConfig,
    EvaluateConfig,
    NegativesConfig,
    TrainConfig,
    TuneConfig,
)
from degla_ray.config.renamed import RENAMED
from degla_ray.errors import DataError, DeglaError, FingerprintMismatch, SettingError, TooManyRejects
from degla_ray.schema import Kind


@dataclass(frozen=True, kw_only=True)
class Inner:
    """Inner settings."""

    size: int = 3
    """Side in pixels."""

    def __post_init__(self) -> None:
        if self.size < 0:
            raise SettingError("inner.size", self.size, "at least 0 pixels")


@dataclass(frozen=True, kw_only=True)
class Outer:
    """Outer settings."""

    name: str
    """Name of the thing."""
    inner: Inner = field(default_factory=Inner)
    limit: int | None = None
    """Rows, at most."""


def _exit(
    capsys: pytest.CaptureFixture[str], argv: list[str], job: Callable[[Outer], object] = print
) -> tuple:
    """Exit status (0 if `run` returned), stdout, stderr."""
    code: object = 0
    try:
        run(Outer, job, "Does a thing.", argv)
    except SystemExit as stopped:
        code = stopped.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def _write(tmp_path: Path, text: str | bytes) -> str:
    path = tmp_path / "config.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def test_cli_file_and_overrides_the_later_wins(tmp_path: Path) -> None:
    file = _write(tmp_path, "name: a\ninner: {size: 5}\nlimit: 9\n")
    assert parse(Outer, "", ["--config", file, "--inner.size", "7", "--limit", "null"]) == Outer(
        name="a", inner=Inner(size=7)
    )
    assert parse(Outer, "", ["--name", "b", "--config", file]).name == "a"


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        ([], "name"),
        (["--nam", "x"], "--nam"),
        (["--name", "x", "--inner.sides", "3"], "--inner.sides"),
        (["--name", "x", "--inner.size", "wide"], "inner.size"),
        (["--name", "x", "--inner.size", "1.5"], "inner.size"),
        (["--name", "x", "--inner.size", "-1"], "inner.size: found -1; expected at least 0 pixels"),
        (["--name", "x", "--limit", "ten"], "limit: expected one of int, null. Got value: ten"),
        (["--name", "x", "stray"], "stray"),
        (["--config", "/does/not/exist.yaml"], "/does/not/exist.yaml"),
        (["--config", "/"], "'/'"),
        (["--config"], "--config"),
    ],
)
def test_cli_wrong_option_exits_2_with_one_line(
    capsys: pytest.CaptureFixture[str], argv: list[str], named: str
) -> None:
    code, out, err = _exit(capsys, argv)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    assert named in err


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("name: x\ntitle: y\n", "title: no such setting"),
        ("name: x\ninner: {sides: 3}\n", "inner.sides: no such setting"),
        ("name: x\ninner: {size: wide}\n", "inner.size: expected type int. Got value: wide"),
        ("name: x\ninner: {size: -2}\n", "inner.size: found -2"),
        ("name: x\ninner: [1\n", "line 3"),
        ("", "holds no settings"),
        ("- name\n", "holds no settings"),
        (b"\xff\xfe\x00", "config"),
    ],
)
def test_cli_wrong_file_exits_2_with_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str | bytes, named: str
) -> None:
    code, out, err = _exit(capsys, ["--config", _write(tmp_path, text)])
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert named in err


def test_cli_help_states_meaning_and_default_of_nested_settings(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = _exit(capsys, ["--help"])
    assert code == 0
    assert "Does a thing." in out
    assert "--inner.size N Side in pixels. (default: 3)" in " ".join(out.split())


def test_cli_print_config_can_be_read_back(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, _ = _exit(capsys, ["--name", "x", "--inner.size", "8", "--print_config"])
    assert code == 0
    assert parse(Outer, "", ["--config", _write(tmp_path, out)]) == Outer(name="x", inner=Inner(size=8))


def test_cli_user_error_in_job_exits_2_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def job(config: Outer) -> None:
        raise DataError("captions.txt, line 3", "no comma", "image,caption\nand this is advice")

    assert _exit(capsys, ["--name", "x"], job) == (
        2,
        "",
        "error: captions.txt, line 3: found no comma; expected image,caption\n",
    )


def test_cli_fault_of_ours_keeps_its_traceback() -> None:
    def job(config: Outer) -> None:
        raise KeyError("a bug")

    with pytest.raises(KeyError, match="a bug"):
        run(Outer, job, "", ["--name", "x"])


def test_cli_interrupt_exits_130(capsys: pytest.CaptureFixture[str]) -> None:
    def job(config: Outer) -> None:
        raise KeyboardInterrupt

    assert _exit(capsys, ["--name", "x"], job) == (130, "", "interrupted\n")


def test_cli_from_settings_names_the_section() -> None:
    assert from_settings(Outer, {"name": "x", "inner": {"size": 4}}, "part") == Outer(
        name="x", inner=Inner(size=4)
    )
    for wrong, named in (
        ({"name": "x", "inner": {"sides": 4}}, "part.inner.sides"),
        ({"name": "x", "inner": {"size": "wide"}}, "part.inner.size"),
        ({"name": "x", "inner": {"size": -4}}, "part.inner.size"),
        ({}, "part.name"),
    ):
        with pytest.raises(DeglaError) as caught:
            from_settings(Outer, wrong, "part")
        assert named in str(caught.value)


def test_cli_kinds_are_named_as_in_the_data() -> None:
    folders = {"prepared": "a", "output": "b"}
    config = from_settings(NegativesConfig, folders | {"kinds": ["swap_nouns"]}, "negatives")
    assert config.kinds == [Kind.SWAP_NOUNS]
    with pytest.raises(DeglaError, match=r"kinds: expected one of reshuffle, swap_nouns, .*: SWAP_NOUNS"):
        from_settings(NegativesConfig, folders | {"kinds": ["SWAP_NOUNS"]}, "negatives")


def test_user_error_behind_a_chain_of_causes_is_found() -> None:
    setting = SettingError("a.b", 1, "2")
    wrapped = RuntimeError("outer")
    wrapped.__cause__ = ValueError("middle")
    wrapped.__cause__.__cause__ = setting
    assert user_error(wrapped) is setting
    assert user_error(RuntimeError("ours")) is None


def test_user_error_of_a_worker_group_is_found() -> None:
    from ray.train.v2.api.exceptions import WorkerGroupError

    setting = SettingError("a.b", 1, "2")
    assert user_error(WorkerGroupError("worker 1 failed", {0: RuntimeError("lost"), 1: setting})) is setting


@pytest.mark.parametrize(
    "error",
    [
        DeglaError("a"),
        SettingError("a.b", 1, "2"),
        DataError("file", "x", "y"),
        FingerprintMismatch("folder", {"a.b": (1, 2)}),
        TooManyRejects("folder", "x", "y"),
    ],
)
def test_errors_survive_pickling_with_message_and_attributes(error: DeglaError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)


def _job_files() -> list[Path]:
    return sorted((Path(__file__).parents[2] / "jobs").glob("[a-z]*.py"))


def test_jobs_are_there() -> None:
    names = {path.stem for path in _job_files()}
    assert {"prepare", "negatives", "train", "evaluate", "compare", "tune", "chain"} <= names


@pytest.mark.parametrize("job", _job_files(), ids=lambda path: path.stem)
def test_job_help_answers_and_wrong_setting_is_one_line(
    job: Path, tmp_path: Path, run_stage: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    # From another folder, as a user may: the package is installed, not found by the working directory.
    shown = subprocess.run(
        [sys.executable, str(job), "--help"], capture_output=True, text=True, cwd=tmp_path, timeout=60
    )
    assert shown.returncode == 0, shown.stderr
    assert "--print_config" in shown.stdout
    assert "default:" in shown.stdout
    assert run_stage(job.stem, "--no_such_setting", "1") == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "error: --no_such_setting: no such setting (in: --no_such_setting 1)\n"


def test_job_help_does_not_import_torch_ray_or_mlflow() -> None:
    # Held by what is imported rather than by seconds, which a busy machine stretches.
    code = (
        "import sys\n"
        "from degla_ray.commands import COMMANDS, main\n"
        "for name in COMMANDS:\n"
        "    try: main(name, ['--help'])\n"
        "    except SystemExit: pass\n"
        "print('HEAVY', sorted({'torch', 'ray', 'mlflow', 'open_clip'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "HEAVY []", done.stdout.splitlines()[-1] + done.stderr


def test_job_without_the_package_says_how_to_get_it(tmp_path: Path) -> None:
    bare = tmp_path / "venv"
    venv.create(bare, with_pip=False)
    done = subprocess.run([bare / "bin" / "python", _job_files()[0]], capture_output=True, text=True, env={})
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "source .venv/bin/activate" in done.stderr


def test_every_job_is_a_stage_of_the_command_and_has_its_file() -> None:
    assert list(COMMANDS) == list(JOBS)
    assert {path.stem for path in _job_files()} == set(COMMANDS)
    for name, command in COMMANDS.items():
        assert set(command.first) <= settings(build_parser(JOBS[name], "")).keys(), name


def test_degla_lists_the_stages_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    degla(["--help"])
    lines = capsys.readouterr().out.splitlines()
    shown = [line.split()[0] for line in lines if line.startswith("  ")]
    assert shown == list(COMMANDS)


def test_degla_unknown_stage_suggests_the_near_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        degla(["trane"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "error: trane: no such stage; did you mean train?\n"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--objective", "degla"], "did you mean --objective.name degla?"),
        (["--optimizer", "adamw"], "optimizer: found 'adamw'; expected settings in braces, or a YAML file"),
        (["--negatives", "n"], "did you mean --data.negatives or --validation.negatives?"),
        (["--optimizer.learning_rat", "1"], "--optimizer.learning_rat: no such setting"),
        (["--optimiser.lr", "1"], "did you mean --optimizer.lr?"),
        (["--help", "nope"], "expected all, or one of general, data,"),
    ],
)
def test_parse_mistaken_setting_suggests_the_right_one(argv: list[str], said: str) -> None:
    with pytest.raises(DeglaError) as raised:
        parse(TrainConfig, "", ["--name", "x", "--data.prepared", "p", *argv])
    assert said in str(raised.value)


CLASS = "{class_path: planted.Class}"


@pytest.mark.parametrize(
    "argv",
    [
        ["--config", "openai: {extra_body: {a: [{class_path: planted.Class}]}}"],
        ["--config", f"openai: {{extra_body: '{CLASS}'}}"],
        ["--config", "openai: {extra_body: '{\"class\\u005fpath\": planted.Class}'}"],
        ["--config", f"generation: {CLASS}"],
        ["--config", "generation: planted.Class"],
        ["--generation", CLASS],
        ["--generation", "planted.Class"],
        ["--generation.class_path", "planted.Class"],
        ["--openai.extra_body", CLASS],
        ["--openai.extra_body.a", CLASS],
        ["--openai.extra_body.a.class_path", "planted.Class"],
        [f"--kinds=[{CLASS}]"],
    ],
)
def test_parse_config_that_names_a_class_is_refused_before_any_import(
    argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "planted.py").write_text("class Class: pass")
    monkeypatch.syspath_prepend(tmp_path)
    if argv[0] == "--config":
        argv = ["--config", _write(tmp_path, argv[1])]
    with pytest.raises(DeglaError, match=r"^(openai|generation|kinds)\S*: "):
        parse(NegativesConfig, "", ["--prepared", "p", "--output", "o", *argv])
    assert "planted" not in sys.modules


def test_from_settings_that_name_a_class_are_refused_before_any_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "planted.py").write_text("class Class: pass")
    monkeypatch.syspath_prepend(tmp_path)
    values = {"output": "o", "prepare": {"source": "scenes", "scenes": {"class_path": "planted.Class"}}}
    with pytest.raises(DeglaError, match=r"^x\.prepare\.scenes\.class_path: found 'planted\.Class'"):
        from_settings(ChainConfig, values, "x")
    assert "planted" not in sys.modules


@pytest.mark.parametrize("job", ["train", "evaluate", "export", "neighbours", "tune", "chain"])
def test_parse_without_a_model_names_a_real_clip_and_the_demos(job: str) -> None:
    required = {
        "train": ["--name", "x", "--data.prepared", "p", "--objective.name", "clip"],
        "evaluate": ["--output", "o", "--suite", "s"],
        "export": ["--output", "o"],
        "neighbours": ["--output", "o", "--prepared", "p"],
        "tune": ["--suite", "s", "--train.name", "x", "--train.data.prepared", "p"],
        "chain": ["--output", "o", "--prepare.source", "scenes"],
    }
    with pytest.raises(DeglaError, match=r"model(\.name)?: required, but not set; .*openai.* scenes-base"):
        parse(JOBS[job], "", required[job])


DATA = {"name": "x", "model": {"name": "m"}, "data": {"prepared": "p", "negatives": "n"}}


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_old_name_of_a_setting_is_accepted_with_a_line_that_says_the_new_one(
    old: str, new: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the command line, as a group in braces, in a file, in a section of a chain."""
    jobs = {
        "train": (TrainConfig, ["--name=x", "--model.name=m", "--data.prepared=p", "--data.negatives=n"]),
        "evaluate": (EvaluateConfig, ["--model.name=m", "--suite=s", "--output=o"]),
    }
    [job] = [job for job, (each, _) in jobs.items() if new in settings(build_parser(each, ""))][:1]
    if old == "cpus_per_actor":
        job = "evaluate"
    config_class, needed = jobs[job]
    value = {"precision": "bf16", "use_gpu": "true"}.get(old, "3")
    expected = parse(config_class, "", [*needed, f"--{new}={value}"])
    group, _, last = old.rpartition(".")
    nested = f"{group}: {{{last}: {value}}}" if group else f"{last}: {value}"
    forms = [[f"--{old}", value], [f"--{old}={value}"], ["--config", _write(tmp_path, nested)]]
    if group:
        forms.append([f"--{group}", f"{{{last}: {value}}}"])
    for form in forms:
        capsys.readouterr()
        assert parse(config_class, "", [*needed, *form]) == expected
        assert capsys.readouterr().err == f"note: {old} is now called {new}\n"
        for both in ([*form, f"--{new}={value}"], [f"--{new}={value}", *form]):
            with pytest.raises(DeglaError, match=rf"^{old}: given a second time as {new}"):
                parse(config_class, "", [*needed, *both])


def test_old_name_of_a_setting_in_a_section_is_accepted(capsys: pytest.CaptureFixture[str]) -> None:
    chain = {"output": "o", "prepare": {"source": "scenes"}, "base_model": {"name": "scenes-base"}}
    chain["fine_tune"] = {"a": {"use_gpu": True}}
    assert from_settings(ChainConfig, chain, "chain").stages().fine_tune["a"].compute.use_gpu
    assert capsys.readouterr().err == "note: fine_tune.a.use_gpu is now called fine_tune.a.compute.use_gpu\n"
    sweep = from_settings(TuneConfig, {"suite": "s", "train": DATA | {"cpus_per_worker": 2}}, "tune")
    assert sweep.train.compute.cpus == 2


def test_setting_whose_successor_takes_another_value_is_refused_with_it() -> None:
    with pytest.raises(DeglaError, match=r"accumulation_steps: no such setting; expected micro_batch_size, "):
        from_settings(TrainConfig, DATA | {"accumulation_steps": 2}, "train")


def test_number_of_workers_is_one_or_a_range_that_holds_a_divisor_of_the_batch() -> None:
    def counts(given: object, batch: int = 16) -> list[int]:
        values = DATA | {"num_workers": given, "global_batch_size": batch}
        return from_settings(TrainConfig, values, "train").worker_counts

    assert counts(2) == [2]
    assert counts([1, 6]) == [1, 2, 4]
    assert counts([3, 4]) == [4]
    for given, batch, found in (
        ([5, 7], 16, r"global_batch_size: found 16; expected a multiple of num_workers \(\[5, 7\]\)"),
        ([2, 1], 16, r"num_workers: found \[2, 1\]; expected the smaller number first"),
        ([0, 4], 16, r"num_workers: found \[0, 4\]; expected at least 1"),
    ):
        with pytest.raises(DeglaError, match=found):
            counts(given, batch)
    with pytest.raises(DeglaError, match=r"train\.num_workers: found \[1, 2\]; expected one number"):
        from_settings(TuneConfig, {"suite": "s", "train": DATA | {"num_workers": [1, 2]}}, "tune")


def test_name_that_is_old_elsewhere_is_kept_where_it_is_a_setting(capsys: pytest.CaptureFixture[str]) -> None:
    folders = {"prepared": "a", "output": "b"}
    config = from_settings(NegativesConfig, folders | {"vllm": {"cpus_per_actor": 3}}, "negatives")
    assert config.vllm.cpus_per_actor == 3
    assert capsys.readouterr().err == ""


def test_config_files_are_merged_setting_by_setting(tmp_path: Path) -> None:
    base, overlay = tmp_path / "base.yaml", tmp_path / "overlay.yaml"
    base.write_text("name: x\ninner: {size: 5}\n")
    overlay.write_text("limit: 4\ninner: {}\n")
    merged = parse(Outer, "", ["--config", str(base), "--config", str(overlay)])
    assert merged == Outer(name="x", inner=Inner(size=5), limit=4)
    overlay.write_text("inner: {size: 6}\n")
    assert parse(Outer, "", ["--config", str(base), f"--config={overlay}"]) == Outer(
        name="x", inner=Inner(size=6)
    )
    assert parse(Outer, "", ["--config", str(overlay), "--config", str(base)]).inner.size == 5


def test_error_of_a_section_names_the_setting_from_the_root() -> None:
    for values, named in (
        ({"num_workers": 0}, r"train\.num_workers: found 0"),
        ({"objective": {"negatives_per_caption": -1}}, r"train\.objective\.negatives_per_caption: found -1"),
    ):
        with pytest.raises(DeglaError, match=rf"^tune\.{named}"):
            from_settings(TuneConfig, {"suite": "s", "train": DATA | values}, "tune")


def test_parse_config_of_another_job_names_that_job() -> None:
    file = str(Path(__file__).parents[2] / "jobs" / "configs" / "demo.yaml")
    with pytest.raises(DeglaError, match=r"another job: python jobs/chain\.py --config .*demo\.yaml"):
        parse(TrainConfig, "", ["--config", file])


def test_parse_lists_as_words() -> None:
    assert parse(CompareConfig, "", ["--evaluations", "a", "b: c", "--output", "o"]).evaluations == [
        "a",
        "b: c",
    ]
    assert parse(CompareConfig, "", ["--evaluations", "[a, b]"]).evaluations == ["a", "b"]
    kinds = parse(
        NegativesConfig, "", ["--prepared", "p", "--output", "o", "--kinds", "reshuffle", "swap_nouns"]
    )
    assert kinds.kinds == [Kind.RESHUFFLE, Kind.SWAP_NOUNS]


def test_help_shows_what_is_set_first_one_group_or_all(capsys: pytest.CaptureFixture[str]) -> None:
    shown = {}
    for asked in ([], ["objective"], ["all"]):
        with pytest.raises(SystemExit):
            main("train", ["--help", *asked])
        shown[tuple(asked)] = capsys.readouterr().out
    assert len(shown[()]) < 5_000  # a screen or two; every setting is 14,000 characters
    assert "--data.prepared TEXT" in shown[()]
    assert "(required)" in shown[()]
    assert "--objective.lambda_igc" not in shown[()]
    assert "--objective.lambda_igc" in shown[("objective",)]
    assert "--optimizer.lr" not in shown[("objective",)]
    everything = settings(build_parser(TrainConfig, ""))
    assert all(f"--{name} " in shown[("all",)] for name in everything)


@pytest.mark.parametrize(
    ("options", "setting"),
    [
        (["--output=runs/x", "--tracking.uri=http://host:5000"], "output"),
        (["--output=s3://bucket/x"], r"tracking\.uri"),
        (["--output=s3://bucket/x", "--tracking.uri=sqlite:///runs/mlflow.db"], r"tracking\.uri"),
        (["--output=s3://bucket/x", "--tracking.uri=mlruns"], r"tracking\.uri"),
        (["--output=s3://bucket/x", "--tracking.uri=http://host", "--cache=features"], "cache"),
    ],
)
def test_run_in_a_submitted_job_refuses_what_lies_in_its_temporary_copy(
    options: list[str], setting: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    given = ["--model.name=scenes-base", "--suite=s", *options]
    with pytest.raises(SystemExit) as caught:
        run(EvaluateConfig, lambda config: pytest.fail("it ran"), "x", given)
    assert caught.value.code == 2
    assert re.match(rf"error: {setting}: found .*submitted job", capsys.readouterr().err)


@pytest.mark.parametrize(("submitted", "source"), [(True, "paintings"), (False, "$STORAGE")])
def test_main_in_a_submitted_job_replaces_variables_as_no_shell_does(
    submitted: bool, source: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STORAGE", "paintings")
    if submitted:
        monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(SystemExit):
        main("prepare", ["--source=$STORAGE", "--output=/shared/x"])
    assert f"Got value: {source}\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [
        ["--output=/shared/x", "--tracking.uri=sqlite:////shared/mlflow.db"],
        ["--output=s3://bucket/x", "--tracking.uri=databricks"],
        ["--output=~/x", "--tracking.enabled=false"],
    ],
)
def test_run_in_a_submitted_job_takes_what_lasts(options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    ran: list[EvaluateConfig] = []
    run(EvaluateConfig, ran.append, "x", ["--model.name=scenes-base", "--suite=s", *options])
    assert len(ran) == 1
