"""Comparisons, their tables and pages, made from evaluation folders written by hand; MLflow for real."""

from __future__ import annotations

import json
import re
import shutil
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from mlflow import MlflowClient

from degla_ray import tracking
from degla_ray.config import CompareConfig, TrackingConfig
from degla_ray.errors import DataError, SettingError
from degla_ray.evaluation.benchmarks.base import Scored, ScoredItems, scores_table
from degla_ray.evaluation.benchmarks.suite import SCENES_SUBSETS
from degla_ray.evaluation.comparison import set_side_by_side
from degla_ray.evaluation.summary import ARTIFACTS, STAGE, SUMMARY, Summary, summarise, write_summary
from degla_ray.masking import MaskedStream
from degla_ray.reporting.compare import compare
from degla_ray.reporting.curves import training_curve
from degla_ray.stage import StageFolder
from degla_ray.storage import Storage

ITEMS = 60


class Fixed:
    """A benchmark of which only name, subsets and chance matter."""

    def __init__(self, name: str, subsets: tuple[str, ...]) -> None:
        self.name, self.subsets, self.protocol, self.averages = name, subsets, "", {}

    def chance(self, subset: str) -> float | None:
        return 0.5


BENCHMARKS = [
    Fixed("scenes", SCENES_SUBSETS),
    Fixed("scenes_order", ("order",)),
    Fixed("scenes_zeroshot", ("top1",)),
]


def decisions(skill: float, name: str) -> np.ndarray:
    """Right on the easiest items, the same ones for every model, but for a few of its own."""
    rng = np.random.default_rng(len(name))
    return rng.random(ITEMS) + 0.1 * np.random.default_rng(int(skill * 1000)).normal(size=ITEMS) < skill


def write_evaluation(
    folder: Path | str, label: str, skill: float, suite: str = "s", **changes: object
) -> str:
    scored = []
    for benchmark in BENCHMARKS:
        tables = []
        for subset in benchmark.subsets:
            ids, right = [f"{subset}-{i}" for i in range(ITEMS)], decisions(skill, subset)
            shown = np.ones((ITEMS, 2))
            tables.append(
                scores_table(
                    benchmark.name, ScoredItems(subsets=[subset] * ITEMS, ids=ids, images=ids), shown, right
                )
            )
        missing = changes.get("missing", {})
        scored.append(Scored(scores=pa.concat_tables(tables), missing=missing))  # type: ignore[arg-type]
    stage = StageFolder(str(folder), STAGE, {"label": label, "suite": suite}, num_shards=1)
    base = Summary(
        label=label,
        model={
            "name": label,
            "source": changes.get("source", ""),
            "identity": "0",
            "folder": changes.get("model_folder"),
        },
        inputs={"suite": suite},
        fingerprint=stage.fingerprint,
    )
    unread = {"suite:<b>x</b>": "OSError: broken"} if "missing" in changes else {}
    summary = summarise(base, BENCHMARKS, scored, unread, bootstrap_samples=200)  # type: ignore[arg-type]
    stage.write_part("scores", 0, pa.concat_tables([s.scores for s in scored]))
    write_summary(stage.storage, summary)
    stage.write_receipt(0, {})
    stage.finish()
    return str(folder)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TrackingConfig:
    return TrackingConfig(uri=f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db", experiment="compare")


OFF = TrackingConfig(enabled=False)
OWN_SCRIPTS = 2  # of a page with charts: their data, and the program


class Page(HTMLParser):
    """Text (but for scripts and styles), tags and references of an HTML page; fails on tags that do not
    match."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.text, self.tags, self.references, self._open = "", [], [], []  # type: ignore[var-annotated]
        self.feed(source)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.references += [
            v for k, v in attrs if k in ("src", "href", "xlink:href") and not str(v).startswith("#")
        ]
        self.tags.append(tag)
        if tag not in ("meta", "link", "br", "img", "wbr"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] not in ("script", "style"):
            self.text += data


def test_compare_writes_tables_whose_numbers_are_the_evaluations(tmp_path: Path) -> None:
    folders = [
        write_evaluation(tmp_path / n, n, s) for n, s in (("base", 0.5), ("clip", 0.52), ("degla", 0.9))
    ]
    output = Path(compare(CompareConfig(evaluations=folders, output=str(tmp_path / "out"), tracking=OFF)))
    result = {m["label"]: m["results"] for m in json.loads((output / "comparison.json").read_text())}
    names = [f"scenes/{s}" for s in SCENES_SUBSETS] + ["scenes_order/order"]
    subset = {n: n.split("/")[1] for n in names}
    skills = {"base": 0.5, "degla": 0.9}
    accuracy = {k: [decisions(skill, subset[n]).mean() for n in names] for k, skill in skills.items()}
    degla = result["degla"]["composition"]
    assert degla["score"]["value"] == pytest.approx(np.mean(accuracy["degla"]))
    assert degla["delta"] == pytest.approx(np.mean(accuracy["degla"]) - np.mean(accuracy["base"]))
    assert degla["test"]["value"] == pytest.approx(degla["delta"])
    assert 0 < degla["test"]["low"] < degla["delta"] < degla["test"]["high"]
    assert degla["test"]["p_value"] < degla["corrected_p"] < 0.001
    assert result["base"]["composition"]["delta"] is None

    shown = f"{100 * np.mean(accuracy['degla']):.1f}"
    markdown = (output / "report.md").read_text()
    page = Page((output / "report.html").read_text())
    assert shown in markdown
    assert shown in page.text
    assert "\\*\\*\\*" in markdown
    assert page.references == []
    for name in re.findall(r"!\[.*?\]\((.*?)\)", markdown):
        ElementTree.parse(output / name)
    assert {p.name for p in (output / "plots").iterdir()} == {
        "accuracy_by_kind.svg", "composition_against_retention.svg",
    }  # fmt: skip


def test_compare_hostile_labels_stay_text_and_equal_labels_are_told_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = ["<script>x</script>", "a|b $x_{$ [bold]", "_hidden\n# `x` ![i](http://h/i)", "same", "same"]
    folders = [write_evaluation(tmp_path / str(i), label, 0.5 + i / 20) for i, label in enumerate(labels)]
    output = Path(compare(CompareConfig(evaluations=folders, output=str(tmp_path / "out"), tracking=OFF)))
    source = (output / "report.html").read_text()
    page = Page(source)
    assert page.tags.count("script") == OWN_SCRIPTS
    assert "<script>x</script>" in page.text
    assert "same (2)" in source
    markdown = (output / "report.md").read_text()
    assert "a\\|b" in markdown
    assert not re.search(r"(?<!\\)<script|\n# \\?`|(?<!\\)\[i|(?<!\\)`x", markdown)
    assert "[bold]" in capsys.readouterr().out
    for plot in (output / "plots").iterdir():
        ElementTree.parse(plot)


def test_compare_partial_and_other_test_sets_are_marked(tmp_path: Path) -> None:
    folders = [
        write_evaluation(tmp_path / "a", "a", 0.5),
        write_evaluation(tmp_path / "b", "b", 0.6, missing={"swap_att": 2}),
        write_evaluation(tmp_path / "c", "c", 0.6, suite="other"),
    ]
    output = Path(compare(CompareConfig(evaluations=folders, output=str(tmp_path / "out"), tracking=OFF)))
    page, markdown = Page((output / "report.html").read_text()).text, (output / "report.md").read_text()
    assert "b is partial" in page
    assert "<b>x</b>" in page  # as text: the page would not have matched its tags otherwise
    assert "†" in markdown
    assert "c ‡" in markdown
    third = json.loads((output / "comparison.json").read_text())[2]["results"]["composition"]
    assert third["test"] is None
    assert third["delta"] is not None


def test_compare_random_weights_are_said_in_every_form_of_the_report(tmp_path: Path, capsys) -> None:
    folders = [
        write_evaluation(tmp_path / "a", "a", 0.5, source="runs/x"),
        write_evaluation(tmp_path / "b", "b", 0.6, source="random"),
    ]
    output = Path(compare(CompareConfig(evaluations=folders, output=str(tmp_path / "out"), tracking=OFF)))
    page, markdown = Page((output / "report.html").read_text()).text, (output / "report.md").read_text()
    for text in (page, markdown, " ".join(capsys.readouterr().out.split())):
        assert "b (random weights)" in text
        assert "a (random weights)" not in text


def test_compare_one_evaluation_alone_and_stale_plots_are_cleared(tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path / "a", "a", 0.5)
    (tmp_path / "out" / "plots").mkdir(parents=True)
    (tmp_path / "out" / "plots" / "training_losses.svg").write_text("old")
    output = Path(compare(CompareConfig(evaluations=[folder], output=str(tmp_path / "out"), tracking=OFF)))
    assert not (output / "plots" / "training_losses.svg").exists()
    assert "Comparison of 1 model<" in (output / "report.html").read_text()


def test_compare_draws_the_trace_of_the_run_that_made_the_model(tmp_path: Path) -> None:
    run = tmp_path / "train" / "degla-0123"
    (run / "export_student").mkdir(parents=True)
    rows = [{"step": s, "loss": 4 / s, "igc": None if s == 1 else 1 / s} for s in (1, 2, 3, 3, 4)]
    (run / "trace.jsonl").write_text("\n".join(json.dumps(r) for r in rows) + '\n{"step": 5, "lo')
    curve = training_curve(str(run / "export_student"))
    assert curve is not None
    assert curve["step"] == [1, 2, 3, 4]
    assert curve["loss"] == [4, 2, 4 / 3, 1]
    assert curve["igc"][1:] == [1 / 2, 1 / 3, 1 / 4]
    assert training_curve(str(tmp_path)) is None
    folders = [
        write_evaluation(tmp_path / "a", "a", 0.5),
        write_evaluation(tmp_path / "b", "b", 0.6, model_folder=str(run / "export_student")),
    ]
    output = Path(compare(CompareConfig(evaluations=folders, output=str(tmp_path / "out"), tracking=OFF)))
    assert (output / "plots" / "training_loss_total.svg").is_file()


def test_compare_on_s3_writes_its_report_there_and_the_secret_of_its_uri_nowhere(
    tmp_path: Path,
    s3_bucket: str,
    store: TrackingConfig,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    named = s3_bucket.replace("://", "://KEY:hunter2secret@")
    folders = [write_evaluation(f"{named}/evaluate/{label}", label, 0.6) for label in "ab"]
    monkeypatch.setattr(sys, "stdout", MaskedStream(sys.stdout))  # as in every job
    compare(CompareConfig(evaluations=folders, output=f"{named}/compare", tracking=store))
    bucket = Storage(s3_bucket)
    written = bucket.names_below()
    assert {"compare/report.html", "compare/report.md", "compare/comparison.json"} <= set(written)
    assert list(tmp_path.iterdir()) == []
    printed = capsys.readouterr().out
    assert "/compare/report.html" in printed
    assert "hunter2secret" not in printed
    assert not [name for name in written if b"hunter2secret" in bucket.read_bytes(name)]
    files = [p for p in Path(store.uri.removeprefix("sqlite:///")).parent.rglob("*") if p.is_file()]
    assert any(path.name == "report.html" for path in files)
    assert not [path for path in files if b"hunter2secret" in path.read_bytes()]


def test_compare_of_a_moved_folder_of_runs_finds_the_new_curve(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "train" / "x"
    run.mkdir(parents=True)
    (run / "trace.jsonl").write_text("".join(f'{{"step": {s}, "loss": 1.0}}\n' for s in (1, 2)))
    export = str(run / "export_student")
    folder = write_evaluation(tmp_path / "runs" / "evaluate" / "a", "a", 0.5, model_folder=export)
    assert str(tmp_path) not in Path(folder, SUMMARY).read_text()
    shutil.move(tmp_path / "runs", tmp_path / "moved")
    entry = str(tmp_path / "moved" / "evaluate" / "a")
    output = Path(
        compare(CompareConfig(evaluations=[entry], output=str(tmp_path / "moved" / "c"), tracking=OFF))
    )
    assert (output / "plots" / "training_loss_total.svg").is_file()
    [model] = json.loads((output / "comparison.json").read_text())
    assert model["model"]["folder"] == "../train/x/export_student"


def test_compare_mlflow_runs_by_folder_or_by_artifacts_once_the_folder_is_gone(
    tmp_path: Path, store: TrackingConfig
) -> None:
    runs = []
    for label, skill in (("base", 0.5), ("degla", 0.8)):
        folder = Path(write_evaluation(tmp_path / label, label, skill))
        fingerprint = json.loads((folder / "manifest.json").read_text())["fingerprint"]
        run_id = tracking.find_or_create_run(
            store, label, fingerprint, str(folder), {}, {"degla.stage": STAGE}
        )
        storage = Storage(str(folder))
        parts = [f"scores/{name}" for name in storage.names("scores")]
        tracking.log_files(store, run_id, storage, [SUMMARY, *parts], ARTIFACTS)
        runs.append(str(run_id))
    config = CompareConfig(evaluations=runs, output=str(tmp_path / "out"), tracking=store)
    before = json.loads((Path(compare(config)) / "comparison.json").read_text())
    shutil.rmtree(tmp_path / "degla")
    after = json.loads((Path(compare(config)) / "comparison.json").read_text())
    assert after == before
    client = MlflowClient(tracking_uri=store.uri)
    experiment = client.get_experiment_by_name("compare").experiment_id
    found = client.search_runs([experiment], f"tags.`degla.folder` = '{tmp_path / 'out'}'")
    assert len(found) == 1  # the second call found the first one's run
    assert found[0].data.metrics == {}  # a score is a metric of its model's run
    names = {a.path for a in client.list_artifacts(found[0].info.run_id)}
    assert names == {"report.html", "report.md", "comparison.json", "scores.csv", "tables.tex", "plots"}


def test_compare_entry_that_is_no_evaluation_is_one_line(tmp_path: Path, store: TrackingConfig) -> None:
    StageFolder(str(tmp_path / "other"), "negatives", {"a": 1}, num_shards=1)
    (tmp_path / "plain").mkdir()
    StageFolder(str(tmp_path / "unfinished"), STAGE, {"a": 1}, num_shards=1)
    broken = write_evaluation(tmp_path / "broken", "b", 0.5)
    (tmp_path / "broken" / SUMMARY).write_text("{}")
    training = tracking.find_or_create_run(store, "train", "fp-train", "folder", {}, {"degla.stage": "train"})
    for entry, message in {
        str(tmp_path / "absent"): "no such folder",
        str(tmp_path / "plain"): "without manifest.json",
        str(tmp_path / "other"): "stage 'negatives'",
        str(tmp_path / "unfinished"): "an unfinished run",
        broken: "no readable summary",
        "0" * 32: "no run",
        str(training): "a run of stage 'train'",
    }.items():
        with pytest.raises(DataError, match=message) as caught:
            compare(CompareConfig(evaluations=[entry], output=str(tmp_path / "out"), tracking=store))
        assert "\n" not in str(caught.value)
    with pytest.raises(SettingError, match="evaluations"):
        compare(CompareConfig(evaluations=[], output=str(tmp_path / "out"), tracking=store))


@pytest.mark.parametrize(
    ("inputs", "same"),
    [
        ({"suite": "s", "prepared": None}, True),
        ({"suite": "s", "prepared": "only here"}, True),
        ({"suite": None, "published": {"valse": "1", "aro": "only here"}}, True),
        ({"suite": "other"}, False),
        ({"suite": "s", "published": {"valse": "2"}}, False),
    ],
)
def test_comparison_marks_a_model_whose_common_test_sets_differ(
    inputs: dict[str, object], same: bool
) -> None:
    first = {"suite": "s", "prepared": None, "published": {"valse": "1", "sugarcrepe": "1"}}
    summaries = [Summary(label="a", model={}, inputs=i, fingerprint="") for i in (first, inputs)]
    assert set_side_by_side(summaries, [{}, {}]).same_inputs == (True, same)
