"""Comparisons on published benchmarks: rows of other models, disagreements with their images, plots.

The evaluation folders are made up, but for the benchmarks' own classes, which score features made here.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from mlflow import MlflowClient
from PIL import Image
from test_evaluation_compare import OWN_SCRIPTS, Page

from degla_ray.config import CompareConfig, TrackingConfig
from degla_ray.encoding import images as images
from degla_ray.encoding.features import FeatureTable, image_key
from degla_ray.encoding.images import FileImages
from degla_ray.evaluation.benchmarks.base import Benchmark, Rule, Shown
from degla_ray.evaluation.benchmarks.choice import Choice, ChoiceProtocol
from degla_ray.evaluation.benchmarks.classification import Classification, ClassPrompts, ClassProtocol
from degla_ray.evaluation.benchmarks.image_choice import ImageChoice
from degla_ray.evaluation.benchmarks.retrieval import Retrieval
from degla_ray.evaluation.benchmarks.sugarcrepe import AVERAGES, SUBSETS
from degla_ray.evaluation.benchmarks.two_positives import TwoPositives
from degla_ray.evaluation.benchmarks.valse import AVERAGES as VALSE_AVERAGES
from degla_ray.evaluation.benchmarks.valse import SUBSETS as VALSE_SUBSETS
from degla_ray.evaluation.benchmarks.winoground import Winoground
from degla_ray.evaluation.benchmarks.zero_shot import METRICS, SETS
from degla_ray.evaluation.comparison import means_of, set_side_by_side
from degla_ray.evaluation.summary import STAGE, Summary, summarise, write_summary
from degla_ray.reporting import plots
from degla_ray.reporting.compare import compare
from degla_ray.reporting.disagreements import disagreements
from degla_ray.reporting.published_rows import FOLDER, published_points, published_tables
from degla_ray.reporting.tables import console_tables
from degla_ray.reporting.thumbnails import SIZE, thumbnails
from degla_ray.schema import CAPTIONS, CHOICE_ITEMS, CLASS_ITEMS, ITEMS
from degla_ray.stage import StageFolder

OFF = TrackingConfig(enabled=False)
N = 12  # items of a subset
SOURCE = "coco_val2017"
NASTY = '</td><script>x</script> "a" & b | c\n*d* `e` [f](http://g)'


def choice(
    name: str,
    subsets: Sequence[str],
    averages: dict[str, Sequence[str]] | None = None,
    n: int = N,
    foils: int = 1,
) -> Choice:
    rows = [
        {
            "benchmark": name,
            "subset": subset,
            "item_id": str(i),
            "image_id": f"{i % 5}.png",
            "texts": [
                f"{name} {subset} {i} {'true' if k == 0 else f'foil {k}'} {NASTY}" for k in range(foils + 1)
            ],
        }
        for subset in subsets
        for i in range(n)
    ]
    rule = Rule.FIRST_ARGMAX if foils > 1 else Rule.STRICT
    table = pa.Table.from_pylist(rows, schema=CHOICE_ITEMS)
    return Choice(name, table, ChoiceProtocol(rule=rule, subsets=subsets, averages=averages or {}), SOURCE)


def zero_shot(name: str, metrics: Sequence[str] = METRICS, n: int = 40, classes: int = 7) -> Classification:
    rows = [
        {"benchmark": name, "item_id": f"{i}.png", "image_id": f"{i}.png", "label": i % classes}
        for i in range(n)
    ]
    items = pa.Table.from_pylist(rows, schema=CLASS_ITEMS)
    return Classification(
        name,
        items,
        ClassPrompts(classes=[f"class {c} of {name}" for c in range(classes)], templates=["a {}"]),
        source=SOURCE,
        protocol=ClassProtocol(metrics=metrics),
    )


def all_benchmarks() -> list[Benchmark]:
    return [
        choice("sugarcrepe", SUBSETS, AVERAGES),
        choice("valse", VALSE_SUBSETS, VALSE_AVERAGES),
        choice("vg_relation", ("relations", "symmetric")),
        choice("vg_attribution", ("pairs", "rare_pairs")),
        choice("coco_order", ("order",), foils=4),
        choice("flickr30k_order", ("order",), foils=4),
        *(zero_shot(f"zeroshot_{name}") for name in SETS),
    ]


def features(benchmarks: Sequence[Benchmark], seed: int, skill: float, scale: float = 1.0) -> FeatureTable:
    """Of every item's first text nearer to its first image, the nearer the greater the skill."""
    rng = np.random.default_rng(seed)
    keys = sorted(set().union(*(b.image_keys() for b in benchmarks)))
    texts = sorted(set().union(*(b.texts() for b in benchmarks)))
    img = rng.normal(size=(len(keys), 8))
    txt = rng.normal(size=(len(texts), 8))
    row, text_row = {k: i for i, k in enumerate(keys)}, {t: i for i, t in enumerate(texts)}
    for benchmark in benchmarks:
        for shown in benchmark.shown():
            first = shown.texts[0] if shown.texts[0] in text_row else f"a {shown.texts[0]}"
            txt[text_row[first]] += skill * img[row[shown.images[0]]]
    img /= np.linalg.norm(img, axis=1, keepdims=True)
    txt /= np.linalg.norm(txt, axis=1, keepdims=True)
    return FeatureTable(
        img_ND=(scale * img).astype(np.float32),
        txt_MD=txt.astype(np.float32),
        image_row=row,
        text_row=text_row,
    )


def items_of(benchmark: Benchmark) -> pa.Table:
    rows = [{"benchmark": benchmark.name, **vars(shown)} for shown in benchmark.shown()]
    return pa.Table.from_pylist(rows, schema=ITEMS)


def evaluation(
    folder: Path,
    label: str,
    benchmarks: Sequence[Benchmark],
    seed: int,
    skill: float,
    lost: Sequence[str] = (),
) -> str:
    """An evaluation folder; `lost` are images that could not be read."""
    known = features(benchmarks, seed, skill)
    for key in lost:
        del known.image_row[key]  # type: ignore[attr-defined]
    scored = [b.score(known) for b in benchmarks]
    inputs = {"published": {b.name: "0" for b in benchmarks}}
    stage = StageFolder(str(folder), STAGE, {"label": label}, num_shards=1)
    base = Summary(
        label=label,
        model={"name": label, "source": "", "identity": "0", "folder": None},
        inputs=inputs,
        fingerprint=stage.fingerprint,
        sources={SOURCE: images.source_spec(FileImages(str(folder.parent / "images")))},
    )
    summary = summarise(base, benchmarks, scored, dict.fromkeys(lost, "gone"), bootstrap_samples=100)
    stage.write_part("scores", 0, pa.concat_tables([s.scores for s in scored]))
    stage.write_part("items", 0, pa.concat_tables([items_of(b) for b in benchmarks]))
    write_summary(stage.storage, summary)
    stage.write_receipt(0, {})
    stage.finish()
    return str(folder)


def write_images(folder: Path, names: Sequence[str], format: str | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        Image.new("RGBA", (600, 200), (5 * number, 90, 160, 255)).save(folder / name, format)


def report(output: Path) -> tuple[Page, str, list[dict]]:
    page = Page((output / "report.html").read_text())
    content = json.loads((output / "comparison.json").read_text())
    return page, (output / "report.md").read_text(), content


# published rows


COLUMNS = {
    "sugarcrepe": {
        "replace_avg": "sugarcrepe_replace",
        "swap_avg": "sugarcrepe_swap",
        "add_avg": "sugarcrepe_add",
    }
    | {subset: f"sugarcrepe/{subset}" for subset in SUBSETS}
    | {"note": "protocol"},
    "valse": {"counting": "valse_counting", "avg": "valse"}
    | {subset: f"valse/{subset}" for subset in VALSE_SUBSETS},
    "aro": {
        "vg_relation": "vg_relation/relations",
        "vg_attribution": "vg_attribution/pairs",
        "coco_order": "coco_order/order",
        "flickr30k_order": "flickr30k_order/order",
        "avg": "aro",
    },
    "zeroshot": {
        "cifar10": "zeroshot_cifar10/top1",
        "cifar100": "zeroshot_cifar100/top1",
        "food101": "zeroshot_food101/top1",
        "pets": "zeroshot_pets/mean_per_class",
        "flowers": "zeroshot_flowers102/mean_per_class",
        "sun397": "zeroshot_sun397/top1",
        "cars": "zeroshot_stanford_cars/top1",
        "dtd": "zeroshot_dtd/top1",
        "caltech101": "zeroshot_caltech101/mean_per_class",
        "aircraft": "zeroshot_fgvc_aircraft/mean_per_class",
        "imagenet": "zeroshot_imagenet/top1",
        "avg": "zero_shot_eleven",
        "protocol": "protocol",
    },
}


@pytest.mark.parametrize("name", COLUMNS)
def test_published_tables_are_the_paper_s(name: str, real_data: Path) -> None:
    source = real_data.parent / "paper" / f"{name}.csv"
    if not source.is_file():
        pytest.skip(f"no published tables at {source.parent}")
    names = {"model": "model", **COLUMNS[name]}
    with source.open(newline="") as file:
        expected = [{names[k]: v for k, v in row.items()} for row in csv.DictReader(file)]
    with (FOLDER / f"{name}.csv").open(newline="") as file:
        found = list(csv.DictReader(line for line in file if not line.startswith("#")))
    assert found == expected
    table = published_tables()[name]
    assert [r.model for r in table.rows] == [r["model"] for r in expected]
    for row, known in zip(table.rows, expected, strict=True):
        assert row.values == {n: float(known[n]) for n in table.columns}
        assert row.protocol == known.get("protocol", "")
    assert "Hu et al. 2025" in table.note


def test_published_columns_are_names_that_evaluations_have() -> None:
    benchmarks = all_benchmarks()
    known = features(benchmarks, 0, 1.0)
    base = Summary(label="", model={}, inputs={}, fingerprint="")
    summary = summarise(base, benchmarks, [b.score(known) for b in benchmarks], {}, bootstrap_samples=10)
    for table in published_tables().values():
        assert [name for name in table.columns if summary.score(name) is None] == []


def test_published_points_mean_their_columns_and_need_all_of_them() -> None:
    points = {
        (p.model, p.protocol[:3]): p for p in published_points(["zero_shot_eleven"], ["sugarcrepe", "aro"])
    }
    degla = points["DeGLA", "int"]
    subsets = [94.5, 92.6, 84.2, 81.6, 82.1, 93.8, 95.7]
    assert degla.x == 58.7
    assert degla.y == pytest.approx((sum(subsets) / 7 + 86.1) / 2)
    assert points["CLIP", "sta"].x == 66.2
    assert ("human", "") not in points
    assert ("CyCLIP", "int") not in points
    assert published_points(["zero_shot"], ["composition"]) == []


# the report


def test_compare_stands_among_published_rows_with_dashes_and_partial_marks(tmp_path: Path) -> None:
    whole, part = (
        all_benchmarks(),
        [choice("sugarcrepe", SUBSETS, AVERAGES), choice("coco_order", ("order",), foils=4)],
    )
    folders = [
        evaluation(tmp_path / "base", "base", whole, 1, 0.3),
        evaluation(tmp_path / "tuned", "tuned", part, 2, 0.8, lost=[image_key(SOURCE, "0.png")]),
    ]
    output = Path(compare(CompareConfig(evaluations=folders, output=str(tmp_path / "out"), tracking=OFF)))
    page, markdown, content = report(output)
    for text in (
        "SugarCrepe",
        "VALSE",
        "ARO",
        "Zero-shot classification",
        "Structure-CLIP",
        "swap_obj over 245",
    ):
        assert text in page.text
        assert text in markdown.replace("\\", "")
    lines = markdown.splitlines()
    aro = lines[lines.index("## ARO, among published results") :]
    assert next(line for line in aro if line.startswith("| DeGLA |")) == (
        "| DeGLA | 81.6 | 74.3 | 93.8 | 94.7 | 86.1 | published |"
    )
    order = content[1]["results"]["coco_order/order"]["score"]
    assert order["missing"] > 0
    tuned = next(line for line in aro if line.startswith("| **tuned** |"))
    assert tuned == f"| **tuned** | – | – | {100 * order['value']:.1f}† | – | – | first of the best |"
    # test sets that only one was evaluated on do not make the others different ones
    assert "‡" not in markdown
    assert content[1]["results"]["sugarcrepe/swap_att"]["test"] is not None
    assert content[1]["results"]["valse"]["score"] is None
    assert {p.name for p in (output / "plots").iterdir()} == {
        "accuracy_sugarcrepe.svg", "accuracy_valse.svg", "accuracy_aro.svg", "accuracy_zero_shot_sets.svg",
    }  # fmt: skip
    for plot in (output / "plots").iterdir():
        ElementTree.parse(plot)


def test_compare_without_a_published_column_shows_no_published_table(tmp_path: Path) -> None:
    folder = evaluation(
        tmp_path / "a", "a", [choice("nlvr", ("dev",)), choice("winoground", ("group",))], 1, 0.5
    )
    output = Path(compare(CompareConfig(evaluations=[folder], output=str(tmp_path / "out"), tracking=OFF)))
    page, markdown, _ = report(output)
    assert "Among published" not in page.text
    assert "published" not in markdown
    assert {p.name for p in (output / "plots").iterdir()} == {"accuracy_other_benchmarks.svg"}


def test_retention_takes_the_composition_that_all_models_have(tmp_path: Path) -> None:
    whole = all_benchmarks()
    known = features(whole, 1, 0.5)
    base = Summary(label="a", model={}, inputs={}, fingerprint="")
    means = [means_of(pa.concat_tables([b.score(known).scores for b in whole]))] * 2

    def summary(names: Sequence[str]) -> Summary:
        some = [b for b in whole if b.name.partition("_")[0] in names]
        return summarise(base, some, [b.score(known) for b in some], {}, bootstrap_samples=50)

    full, no_aro = (
        summary(["sugarcrepe", "valse", "zeroshot", "vg", "coco", "flickr30k"]),
        summary(["sugarcrepe", "valse", "zeroshot"]),
    )
    chart = plots.retention_plot(set_side_by_side([full, no_aro], means))
    assert chart is not None
    drawn = chart.description + json.dumps(chart.spec)
    assert "composition: mean of SugarCrepe and VALSE" in drawn
    assert "mean of 11 sets" in drawn
    assert "Structure-CLIP" in drawn
    sets = [b for b in whole if b.name in ("sugarcrepe", "zeroshot_dtd", "zeroshot_pets")]
    two = summarise(base, sets, [b.score(known) for b in sets], {}, bootstrap_samples=50)
    chart = plots.retention_plot(set_side_by_side([full, two], means))
    assert chart is not None
    assert "mean of pets, dtd" in chart.description
    assert plots.retention_plot(set_side_by_side([full, summary(["zeroshot"])], means)) is None


def test_console_tables_fit_a_narrow_console(tmp_path: Path) -> None:
    from rich.console import Console

    whole = all_benchmarks()
    base = Summary(label="a model", model={}, inputs={}, fingerprint="")
    scored = [b.score(features(whole, 1, 0.5)) for b in whole]
    summary = summarise(base, whole, scored, {}, bootstrap_samples=50)
    means = means_of(pa.concat_tables([result.scores for result in scored]))
    comparison = set_side_by_side([summary, summary], [means, means])
    console = Console(width=80, file=io.StringIO(), record=True)
    for table in console_tables(comparison, 80):
        console.print(table)
    text = console.export_text()
    for name in ("fgvc_aircraft", "coreference-standard", "Structure-CLIP", "sugarcrepe_replace", "58.7"):
        assert name in text  # none is broken over lines
    for title in ("sugarcrepe", "valse", "ARO", "zero-shot sets"):
        assert any(line.strip() == title for line in text.splitlines())


# disagreements


def brute_force(benchmark: Benchmark, one: FeatureTable, other: FeatureTable, count: int) -> list[tuple]:
    """The same from the features' decisions, item by item, with margins as each benchmark defines them."""
    tables = [benchmark.score(f).scores.to_pylist() for f in (one, other)]
    decided = [{(r["subset"], r["item_id"]): r["correct"] for r in rows} for rows in tables]
    rows = []
    for shown in benchmark.shown():
        key = (shown.subset, shown.item_id)
        if key in decided[0] and key in decided[1]:
            rows.append((key, [margin(benchmark, shown, f) for f in (one, other)], [d[key] for d in decided]))
    if isinstance(benchmark, Classification):  # elsewhere nobody knows the label
        rows = [row for row in rows if any(row[2])]
    rows = [row for row in rows if np.isfinite(row[1]).all()]
    deviations = np.std([row[1] for row in rows], axis=0)
    found = [
        (-abs(m[0] / deviations[0] - m[1] / deviations[1]), key, tuple(right))
        for key, m, right in rows
        if right[0] != right[1]
    ]
    kept: list[tuple] = []
    for row in sorted(found):  # `count` of each subset and of each outcome
        if sum((key[0], right) == (row[1][0], row[2]) for _, key, right in kept) < count:
            kept.append(row)
    return kept


def margin(benchmark: Benchmark, shown: Shown, f: FeatureTable) -> float:
    img, txt = (f.images(shown.images).astype(float), lambda t: f.texts([t])[0].astype(float))
    if isinstance(benchmark, Classification):
        scores = {name: img[0] @ txt(f"a {name}") for name in benchmark._classes}
        true = scores.pop(shown.texts[0])
        return true - max(scores.values())
    if isinstance(benchmark, TwoPositives):
        a, b, foil = (img[0] @ txt(t) for t in shown.texts)
        return min(a, b) - foil
    if isinstance(benchmark, Winoground):
        s = np.array([[i @ txt(t) for t in shown.texts] for i in img])
        return min(s[0, 0] - s[0, 1], s[1, 1] - s[1, 0], s[0, 0] - s[1, 0], s[1, 1] - s[0, 1])
    if isinstance(benchmark, ImageChoice):
        return img[0] @ txt(shown.texts[0]) - max(i @ txt(shown.texts[0]) for i in img[1:])
    if isinstance(benchmark, Retrieval):
        if shown.subset == "i2t_r1":
            scores = {t: img[0] @ txt(t) for t in benchmark.texts()}
            true = max(scores.pop(t) for t in shown.texts)
        else:
            scores = {k: f.images([k])[0].astype(float) @ txt(shown.texts[0]) for k in benchmark.image_keys()}
            true = max(scores.pop(k) for k in shown.images)
        return true - max(scores.values())
    scores_K = [img[0] @ txt(t) for t in shown.texts]
    return scores_K[0] - max(scores_K[1:])


def two_positives() -> TwoPositives:
    return TwoPositives(
        "sugarcrepe_pp",
        [
            Shown(
                subset=s,
                item_id=str(i),
                images=(f"{SOURCE}:{i}",),
                texts=(f"{s}{i}", f"{s}{i} too", f"{s}{i} not"),
            )
            for s in ("swap_obj", "swap_att")
            for i in range(40)
        ],
    )


def winoground() -> Winoground:
    items = [
        Shown(subset="group", item_id=str(i), images=(f"w:{i}a", f"w:{i}b"), texts=(f"c {i}", f"d {i}"))
        for i in range(150)
    ]
    return Winoground("winoground", items)


def image_choice() -> ImageChoice:
    items = [
        Shown(subset="dev", item_id=str(i), images=(f"p:{i}", f"p:{i} not"), texts=(f"c {i}",))
        for i in range(60)
    ]
    return ImageChoice("nlvr", items, Rule.STRICT)


def retrieval() -> Retrieval:
    rows = [
        {"sample_id": f"{i}/{k}", "image_id": f"{i}", "caption": f"caption {i} {k}", "split": "test"}
        for i in range(25)
        for k in range(2)
    ]
    return Retrieval("coco_retrieval", pa.Table.from_pylist(rows, schema=CAPTIONS), SOURCE)


MADE = {
    "choice": lambda: choice("sugarcrepe", SUBSETS, n=30),
    "order": lambda: choice("coco_order", ("order",), n=90, foils=4),
    "classes": lambda: zero_shot("zeroshot_cifar10"),
    "scenes_classes": lambda: zero_shot("scenes_zeroshot", ("top1",)),
    "two_positives": two_positives,
    "winoground": winoground,
    "image_choice": image_choice,
    "retrieval": retrieval,
}


@pytest.mark.parametrize("kind", MADE)
def test_disagreements_equal_brute_force_on_any_scale(kind: str) -> None:
    benchmark = MADE[kind]()
    one, other = features([benchmark], 1, 0.4), features([benchmark], 2, 0.8)
    tables = [benchmark.score(f).scores for f in (one, other)]
    shuffled = tables[1].take(np.random.default_rng(0).permutation(len(tables[1])))
    found = disagreements(tables[0], shuffled, items_of(benchmark), 3)
    expected = brute_force(benchmark, one, other, 3)
    assert len(found) >= 5, "too few to tell"
    assert [((d.subset, d.item_id), d.correct) for d in found] == [(key, right) for _, key, right in expected]
    assert [d.difference for d in found] == pytest.approx([-gap for gap, _, _ in expected], rel=1e-4)
    for d in found:
        assert [m > 0 for m in d.margins] == list(d.correct)
        assert len(d.candidates) == len(d.true) == len(d.scores[0]) == len(d.scores[1])
    # a hundred times the scores, as logits are, changes nothing
    scaled = pa.array(
        [[100 * s for s in row] for row in tables[0]["candidate_scores"].to_pylist()],
        tables[0].schema.field("candidate_scores").type,
    )
    logits = tables[0].set_column(
        tables[0].schema.get_field_index("candidate_scores"),
        tables[0].schema.field("candidate_scores"),
        scaled,
    )
    again = disagreements(logits, shuffled, items_of(benchmark), 3)
    assert [(d.subset, d.item_id) for d in again] == [(d.subset, d.item_id) for d in found]


def test_disagreements_of_models_that_agree_or_share_no_item_are_none() -> None:
    benchmark = choice("sugarcrepe", SUBSETS)
    scores = benchmark.score(features([benchmark], 1, 0.4)).scores
    assert disagreements(scores, scores, items_of(benchmark), 10) == []
    other = scores.set_column(2, scores.schema.field(2), pa.array([f"x{i}" for i in range(len(scores))]))
    assert disagreements(scores, other, items_of(benchmark), 10) == []


def test_compare_shows_disagreements_with_images_and_texts_as_they_stand(
    tmp_path: Path, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path / "images", [f"{i}.png" for i in range(4)])  # 4.png is gone
    (tmp_path / "images" / "3.png").write_bytes(b"not an image")
    benchmarks = [choice("sugarcrepe", SUBSETS, AVERAGES, n=20), zero_shot("zeroshot_dtd")]
    folders = [
        evaluation(tmp_path / name, name, benchmarks, seed, skill)
        for name, seed, skill in (("base", 1, 0.3), ("plain", 2, 0.5), ("tuned", 3, 0.9))
    ]
    tracking = TrackingConfig(uri=mlflow_uri, experiment="published")
    config = CompareConfig(evaluations=folders, output=str(tmp_path / "out"), tracking=tracking)
    output = Path(compare(config))
    compare(config)  # once more, into the same run
    page, markdown, content = report(output)
    assert content[0]["disagreements"] == []
    for model in (1, 2):
        items = content[model]["disagreements"]
        assert len(items) == 20
        improved = [d["correct"][1] for d in items]
        assert improved == sorted(improved, reverse=True)
        assert 0 < sum(improved) < len(items)
        assert all(d["correct"][0] != d["correct"][1] for d in items)
        for d in items:
            assert all(" ".join(text.split()) in " ".join(page.text.split()) for text in d["candidates"])
    assert page.tags.count("script") == OWN_SCRIPTS
    assert "<script" not in markdown.replace("\\<script", "")
    assert "where they disagree" in markdown
    assert "image coco_val2017:4.png, no longer readable" in page.text
    assert "image coco_val2017:3.png, no longer readable" in page.text
    assert "image coco_val2017:2.png, which" not in page.text
    assert page.references
    for reference in page.references:
        head, _, data = reference.partition(",")
        assert head == "data:image/jpeg;base64"
        assert Image.open(io.BytesIO(base64.b64decode(data))).size == (SIZE, SIZE // 3)

    client = MlflowClient(tracking_uri=tracking.uri)
    experiment = client.get_experiment_by_name("published").experiment_id
    (run,) = client.search_runs([experiment])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking.uri)  # `load_table` asks the store named globally
    table = client.load_table(experiment, "disagreements.json", [run.info.run_id])
    assert isinstance(table, pd.DataFrame)
    assert list(table["model"]) == ["plain"] * 20 + ["tuned"] * 20
    assert set(table["right"]) <= {"base", "plain", "tuned"}


def test_thumbnails_come_from_the_first_source_that_can_read_them(tmp_path: Path) -> None:
    write_images(tmp_path / "there", ["a.png"])
    gone, there = (images.source_spec(FileImages(str(tmp_path / name))) for name in ("gone", "there"))
    strange = {"kind": "degla_ray.encoding.images:Nothing"}
    found = thumbnails(["s:a.png", "s:b.png", "other:a.png"], [{"s": strange}, {"s": gone}, {"s": there}])
    assert list(found) == ["s:a.png"]
    boxed = thumbnails(["s:a.png#0,0,60,30"], [{"s": there}])["s:a.png#0,0,60,30"]
    assert Image.open(io.BytesIO(base64.b64decode(boxed.partition(",")[2]))).size == (60, 30)
