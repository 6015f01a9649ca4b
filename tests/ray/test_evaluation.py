"""Evaluation end to end on Ray: parity with plain encoding, resume, broken images, refusals."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import threading
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest
import ray
import torch
from mlflow import MlflowClient
from PIL import Image

from degla_ray.config import CompareConfig, ComputeConfig, EvaluateConfig, ModelConfig, TrackingConfig
from degla_ray.encoding import encode as encoding
from degla_ray.encoding.feature_cache import FeatureCache, image_digest, text_digest
from degla_ray.encoding.features import image_key
from degla_ray.encoding.images import FileImages, ImageSource, ParquetImages, StoredImage, boxed
from degla_ray.encoding.needs import Needs
from degla_ray.encoding.pool import Pool
from degla_ray.errors import DataError, FingerprintMismatch, SettingError
from degla_ray.evaluation.run import evaluate
from degla_ray.evaluation.summary import read_evaluation
from degla_ray.model.build import build
from degla_ray.model.export import export
from degla_ray.model.loaded import LoadedModel
from degla_ray.reporting.compare import compare
from degla_ray.schema import CAPTIONS, NEGATIVES, SCORES
from degla_ray.stage import StageFolder
from degla_ray.storage import Storage
from tests.evaluation_suite import PART, choice_rows, images_table, png, write_model_config, write_suite

pytestmark = pytest.mark.usefixtures("ray_cluster")

OFF = TrackingConfig(enabled=False)
ITEMS = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A suite and two model configs."""
    root = tmp_path_factory.mktemp("evaluation")
    write_suite(root / "suite", ITEMS)
    write_model_config(root / "tiny.json")
    write_model_config(root / "wide.json", width=48)
    return root


def config_of(root: Path, output: Path, model: str = "tiny", **changes: Any) -> EvaluateConfig:
    config = EvaluateConfig(
        model=ModelConfig(name=str(root / f"{model}.json"), random_init=True),
        output=str(output),
        suite=str(root / "suite"),
        label=model,
        num_actors=1,
        bootstrap_samples=100,
        tracking=OFF,
    )
    return dataclasses.replace(config, **changes)


def loaded_of(root: Path) -> LoadedModel:
    torch.manual_seed(0)
    loaded = build(ModelConfig(name=str(root / "tiny.json")))
    loaded.model.eval()
    return loaded


def rows_of(output: Path) -> dict[tuple[str, str, str], dict[str, Any]]:
    rows = Storage(str(output)).read_dataset("scores", SCORES).to_pylist()
    return {(r["benchmark"], r["subset"], r["item_id"]): r for r in rows}


def plain_features(loaded: LoadedModel, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """FeatureTable of img-0 … img-11 and of the texts by open_clip's own methods, one at a time."""
    transform = loaded.transform
    with torch.no_grad():
        img = [loaded.model.encode_image(transform(Image.open(BytesIO(png(i))))[None]) for i in range(12)]
        txt = [loaded.model.encode_text(loaded.tokenizer([text])) for text in texts]
    both = [torch.nn.functional.normalize(torch.cat(x), dim=-1).numpy() for x in (img, txt)]
    return both[0], both[1]


@pytest.fixture(scope="module")
def whole(folder: Path, ray_cluster: None) -> Path:
    """The evaluation of the tiny model, once for the module; tests that change it copy it."""
    evaluate(whole_config(folder))
    return folder / "whole"


def whole_config(folder: Path) -> EvaluateConfig:
    store = TrackingConfig(uri=f"sqlite:///{folder}/mlflow.db", experiment="evaluation")
    return config_of(folder, folder / "whole", batch_size=7, tracking=store)


def test_evaluate_decisions_equal_plain_encoding_item_by_item(folder: Path, whole: Path) -> None:
    _, summary = read_evaluation(str(whole))
    items = choice_rows(ITEMS)
    texts = sorted({text for item in items for text in item["texts"]})
    img, txt = plain_features(loaded_of(folder), texts)
    rows = rows_of(whole)
    right: dict[str, list[bool]] = {}
    for item in items:
        row = rows[item["benchmark"], item["subset"], item["item_id"]]
        image = img[int(str(item["image_id"]).removeprefix("img-"))]
        own: list[str] = item["texts"]
        expected = [float(image @ txt[texts.index(text)]) for text in own]
        np.testing.assert_allclose(row["candidate_scores"], expected, atol=1e-5)
        tied = own[0] in own[1:]
        best = all(expected[0] > s for s, text in zip(expected[1:], own[1:], strict=True) if text != own[0])
        assert row["correct"] == (best and (item["benchmark"] == "scenes_order" or not tied))
        right.setdefault(f"{item['benchmark']}/{item['subset']}", []).append(bool(row["correct"]))
    for name, decisions in right.items():
        score = summary.score(name)
        assert score is not None
        assert (score.value, score.n, score.missing) == (np.mean(decisions), ITEMS, 0)
    composition = summary.score("composition")
    assert composition is not None
    assert composition.value == pytest.approx(np.mean([np.mean(d) for d in right.values()]))
    manifest = Storage(str(whole)).read_json("manifest.json")
    assert manifest["counts"]["items"] == manifest["counts"]["scored"] == len(rows)


@pytest.mark.slow  # batches of seven, above, give what images and texts give one at a time
def test_evaluate_same_features_for_any_number_of_actors_and_batch_size(
    folder: Path, whole: Path, tmp_path: Path
) -> None:
    evaluate(config_of(folder, tmp_path / "two", num_actors=2, batch_size=3))
    one, two = rows_of(whole), rows_of(tmp_path / "two")
    assert one.keys() == two.keys()
    for key, row in one.items():
        other = two[key]["candidate_scores"]
        np.testing.assert_allclose(row["candidate_scores"], other, atol=1e-5)


@pytest.mark.gpu  # the CPU's scores are `whole`
def test_evaluate_on_a_gpu_gives_the_scores_of_the_cpu(folder: Path, whole: Path, tmp_path: Path) -> None:
    """To 5e-3: precision `auto` may use TF32 or bf16."""
    evaluate(config_of(folder, tmp_path / "gpu", compute=ComputeConfig(use_gpu=True)))
    one, other = rows_of(whole), rows_of(tmp_path / "gpu")
    assert one.keys() == other.keys()
    for key, row in one.items():
        np.testing.assert_allclose(other[key]["candidate_scores"], row["candidate_scores"], atol=5e-3)


def test_evaluate_rerun_does_nothing_and_another_model_is_refused(
    folder: Path, whole: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole, tmp_path / "out")
    config = config_of(folder, tmp_path / "out")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*") if p.is_file()}
    first = evaluate(config)
    assert first.subsets == read_evaluation(str(whole))[1].subsets
    assert evaluate(config) == first
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*") if p.is_file()} == before
    assert evaluate(dataclasses.replace(config, label="renamed")).label == "renamed"
    with pytest.raises(FingerprintMismatch, match=r"identity\.model"):
        evaluate(config_of(folder, tmp_path / "out", "wide"))
    with pytest.raises(FingerprintMismatch, match=r"identity\.benchmarks"):
        evaluate(dataclasses.replace(config, benchmarks=["scenes_zeroshot"]))
    with pytest.raises(FingerprintMismatch, match=r"identity\.precision"):
        evaluate(dataclasses.replace(config, compute=ComputeConfig(precision="bf16")))


@pytest.mark.slow  # above, another precision is refused without encoding anything
def test_evaluate_precisions_share_neither_folder_nor_features(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = {"benchmarks": ["scenes_zeroshot"], "cache": str(tmp_path / "cache")}
    summary = evaluate(config_of(folder, tmp_path / "fp32", **shared))
    assert "encoding: 1 CPU actor, fp32" in capsys.readouterr().out
    bf16 = ComputeConfig(precision="bf16")
    rounded = evaluate(config_of(folder, tmp_path / "bf16", **shared, compute=bf16))
    assert "encoding: 1 CPU actor, bf16" in capsys.readouterr().out
    assert (summary.model["precision"], rounded.model["precision"]) == ("fp32", "bf16")
    exact, other = (rows_of(tmp_path / name) for name in ("fp32", "bf16"))
    differences = [
        np.abs(np.subtract(row["candidate_scores"], other[key]["candidate_scores"])).max()
        for key, row in exact.items()
    ]
    assert 1e-5 < max(differences) < 3e-2


def test_evaluate_broken_and_absent_images_are_named_and_make_it_partial(
    folder: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = {"img-3": png(3)[:60], "img-4": b"", "img-5": b"no image"}
    write_suite(tmp_path / "suite", ITEMS, images=broken)
    storage = Storage(str(tmp_path / "suite"))
    images = {f"img-{i}": broken.get(f"img-{i}", png(i)) for i in range(12) if i != 6}
    storage.write_table(images_table(images), "images", PART, row_group_rows=5)
    config = dataclasses.replace(config_of(folder, tmp_path / "out"), suite=str(tmp_path / "suite"))
    summary = evaluate(config)
    assert summary.partial
    assert set(summary.missing_images) == {f"suite:img-{i}" for i in (3, 4, 5, 6)}
    assert summary.missing_images["suite:img-6"] == "not in the images dataset"
    assert "UnidentifiedImageError" in summary.missing_images["suite:img-5"]
    for score in summary.subsets:
        assert score.missing == (4 if "zeroshot" in score.name or "i2t" in score.name else score.missing)
        assert score.missing > 0
    composition = summary.score("composition")
    assert composition is not None
    assert composition.partial
    kept, before = rows_of(tmp_path / "out"), rows_of(whole)
    for key, row in kept.items():
        if key[0] in ("scenes", "scenes_order"):  # what is left is scored as before
            np.testing.assert_allclose(row["candidate_scores"], before[key]["candidate_scores"], atol=1e-5)
    counts = Storage(str(tmp_path / "out")).read_json("manifest.json")["counts"]
    assert counts["items"] == counts["scored"] + counts["missing"]
    assert counts["scored"] == len(kept)
    printed = capsys.readouterr().out
    assert "partial" in printed
    assert "suite:img-3" in printed


def write_prepared(root: Path) -> tuple[Path, Path]:
    """A prepared folder of two shards and a negatives folder."""
    prepared = StageFolder(str(root / "prepared"), "prepare", {"made": "by hand"}, num_shards=2)
    negatives = StageFolder(str(root / "negatives"), "negatives", {"made": "by hand"}, num_shards=2)
    for shard in (0, 1):
        ids = [f"img-{i}" for i in range(12) if i % 2 == shard]
        captions, made = [], []
        for n, i in enumerate(ids):
            split = "val" if n % 3 else "train"
            captions.append({"sample_id": f"{i}#0", "image_id": i, "caption": f"this is {i}", "split": split})
            for kind in ("swap_nouns", "reshuffle"):
                made.append({"sample_id": f"{i}#0", "kind": kind, "negative": f"{kind} of {i}", "attempt": 0})
        images = images_table({i: png(int(i[4:])) for i in ids})
        prepared.write_part("images", shard, images, row_group_rows=2)
        prepared.write_part("captions", shard, pa.Table.from_pylist(captions, schema=CAPTIONS))
        negatives.write_part("negatives", shard, pa.Table.from_pylist(made, schema=NEGATIVES))
        for stage in (prepared, negatives):
            stage.write_receipt(shard, {})
    prepared.finish()
    negatives.finish()
    return root / "prepared", root / "negatives"


def test_evaluate_prepared_and_negatives_add_their_benchmarks(folder: Path, tmp_path: Path) -> None:
    prepared, negatives = write_prepared(tmp_path)
    config = dataclasses.replace(
        config_of(folder, tmp_path / "out"), suite=None, prepared=str(prepared), negatives=str(negatives)
    )
    summary = evaluate(config)
    assert {a.name for a in summary.averages} == {"retrieval", "negatives"}
    rows = rows_of(tmp_path / "out")
    assert {key[1] for key in rows if key[0] == "negatives"} == {"reshuffle", "swap_nouns"}
    assert sum(key[0] == "negatives" for key in rows) == 2 * 8  # 8 of 12 captions are in split val
    assert sum(key[:2] == ("prepared_retrieval", "i2t_r1") for key in rows) == 8
    texts = ["this is img-2", "swap_nouns of img-2"]
    img, txt = plain_features(loaded_of(folder), texts)
    row = next(r for k, r in rows.items() if k[1] == "swap_nouns" and k[2].startswith("img-2#0/"))
    np.testing.assert_allclose(row["candidate_scores"], txt @ img[2], atol=1e-5)
    for changes, message in (
        ({"split": "nowhere"}, "split"),
        ({"benchmarks": ["mystery"]}, "prepared_retrieval, negatives"),
        ({"benchmarks": []}, "benchmarks"),
    ):
        with pytest.raises(SettingError, match=message):
            evaluate(dataclasses.replace(config, output=str(tmp_path / "x"), **changes))
    no = str(tmp_path / "no")
    wrong: list[dict[str, Any]] = [
        {"prepared": str(negatives)},
        {"negatives": str(prepared)},
        {"prepared": no},
    ]
    for changes in wrong:
        with pytest.raises(DataError):
            evaluate(dataclasses.replace(config, output=str(tmp_path / "x"), **changes))


def test_evaluate_logs_one_mlflow_run_also_after_a_crash(
    folder: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = whole_config(folder)
    summary = read_evaluation(str(whole))[1]
    manifest = whole / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"complete": False}))
    assert evaluate(config) == summary
    client = MlflowClient(tracking_uri=config.tracking.uri)
    runs = client.search_runs([client.get_experiment_by_name("evaluation").experiment_id])
    assert len(runs) == 1
    scores = {f"eval/{name}": value for name, value in summary.metrics().items()}
    assert runs[0].data.metrics == pytest.approx(scores)
    assert {"eval/composition", "eval/zero_shot", "eval/scenes/replace_obj"} <= scores.keys()
    assert runs[0].data.tags["degla.label"] == "tiny"
    assert runs[0].data.tags["degla.weights"] == "random"
    assert "random weights" in capsys.readouterr().out
    assert runs[0].data.params["evaluate.batch_size"] == "7"
    assert {a.path for a in client.list_artifacts(runs[0].info.run_id, "evaluation")} == {
        "evaluation/summary.json", "evaluation/scores", "evaluation/items",
    }  # fmt: skip


def test_compare_model_with_a_suite_is_evaluated_first(folder: Path, whole: Path, tmp_path: Path) -> None:
    loaded = build(ModelConfig(name=str(folder / "wide.json")))
    export(dataclasses.replace(loaded, source="learned elsewhere"), str(tmp_path / "wide"))
    config = CompareConfig(
        evaluations=[str(whole), str(tmp_path / "wide")],
        output=str(tmp_path / "out"),
        suite=str(folder / "suite"),
        tracking=OFF,
    )
    models = json.loads((Path(compare(config)) / "comparison.json").read_text())
    assert models[1]["model"]["name"] == "../wide"  # from the report's folder
    assert models[1]["same_inputs_as_first"]
    assert models[1]["results"]["composition"]["test"] is not None


def suite_of(folder: Path) -> dict[str, ImageSource]:
    return {"suite": ParquetImages(str(folder / "suite"))}


def test_images_parquet_each_wanted_one_is_in_one_batch(folder: Path) -> None:
    source = ParquetImages(str(folder / "suite"))
    wanted = {f"img-{i}" for i in range(11)}
    batches, missing = source.batches(wanted | {"none"}, 4)
    assert sorted(image_id for batch in batches for image_id in batch.ids) == sorted(wanted)
    assert missing == {"none": "not in the images dataset"}
    assert max(len(batch.ids) for batch in batches) == 4
    for batch in batches:
        expected = [StoredImage(data=png(int(i.removeprefix("img-"))), prepared=True) for i in batch.ids]
        assert source.read(batch) == expected


@pytest.mark.slow
def test_evaluate_with_an_actor_killed_gives_the_same_scores(
    folder: Path, whole: Path, tmp_path: Path
) -> None:
    """SIGKILL of the actor that encodes, while it does."""
    killed = threading.Event()

    def kill_one() -> None:
        while not killed.wait(0.002):
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    if "MapBatches(Encoder)" in (title := " ".join(process.cmdline())) and "submit" in title:
                        process.kill()
                        killed.set()
                        return

    threading.Thread(target=kill_one, daemon=True).start()
    evaluate(config_of(folder, tmp_path / "out", batch_size=7))
    assert killed.is_set()
    assert rows_of(tmp_path / "out") == rows_of(whole)


def test_encode_takes_features_of_the_same_content_from_the_cache(folder: Path, tmp_path: Path) -> None:
    """Files of other names than the images that were encoded, and a model that would give another feature."""
    names = [f"other-name-{i}.png" for i in range(12)]
    features = np.random.default_rng(0).normal(size=(14, 32)).astype(np.float32)
    before = FeatureCache(str(tmp_path / "cache"), "model")
    for i, name in enumerate(names):
        (tmp_path / name).write_bytes(png(i))
        before.add(image_digest(png(i)), features[i], False)
    texts = ["a red cube", "word " * 100]
    for i, text in enumerate(texts):
        before.add(text_digest(text), features[12 + i], text.startswith("word"))
    before.flush()
    cache = FeatureCache(str(tmp_path / "cache"), "model")
    assert len(cache) == 14
    pool = Pool(num_actors=1, cpus_per_actor=1, use_gpu=False, batch_size=5, stall_seconds=60)
    keys = [image_key("files", name) for name in names]
    needs = [Needs(keys=set(keys), texts=set(texts))]
    files = {"files": FileImages(str(tmp_path))}
    [(_, found)] = encoding.encode(loaded_of(folder), files, needs, pool, cache)
    np.testing.assert_array_equal(found.features.images(keys), features[:12])
    np.testing.assert_array_equal(found.features.texts(texts), features[12:])
    assert found.truncated == {texts[1]}
    assert len(FeatureCache(str(tmp_path / "cache"), "another model")) == 0


def test_encode_parts_of_a_image_are_images_of_their_own(folder: Path, tmp_path: Path) -> None:
    left, right = (Image.open(BytesIO(png(i))) for i in (1, 2))
    both = Image.new("RGB", (80, 40))
    both.paste(left, (0, 0))
    both.paste(right, (40, 0))
    both.save(tmp_path / "both.png")
    left.save(tmp_path / "left.png")
    pool = Pool(num_actors=1, cpus_per_actor=1, use_gpu=False, batch_size=5, stall_seconds=60)
    ids = ["left.png", boxed("both.png", 0, 0, 40, 40), boxed("both.png", 40, 0, 40, 40)]
    Image.new("1", (20_000, 9_000)).save(tmp_path / "bomb.png")  # Pillow refuses 179 million pixels
    ids += [boxed("both.png", 90, 0, 4, 4), "absent.png", "bomb.png"]
    keys = [image_key("files", image_id) for image_id in ids]
    cache = FeatureCache(str(tmp_path / "cache"), "model")
    files = {"files": FileImages(str(tmp_path))}
    needs = [Needs(keys=set(keys), texts=set()), Needs(keys={keys[0]}, texts=set())]
    found = dict(encoding.encode(loaded_of(folder), files, needs, pool, cache))
    whole, one, other = found[0].features.images(keys[:3])
    np.testing.assert_allclose(whole, one, atol=1e-6)
    assert np.abs(one - other).max() > 1e-3
    assert "outside 80 x 40 pixels" in found[0].missing[keys[3]]
    assert "no such file" in found[0].missing[keys[4]]
    assert found[0].missing[keys[5]].startswith("DecompressionBombError: Image size (180000000 pixels)")
    assert found[1].missing == {}


def test_encode_nothing_asked_needs_no_actor(folder: Path) -> None:
    pool = Pool(num_actors=1, cpus_per_actor=1, use_gpu=False, batch_size=4, stall_seconds=60)
    encoded = encoding.encode_all(loaded_of(folder), {}, [], [], pool)
    assert encoded.features.image_row == {}
    assert encoded.missing == {}


def test_encode_model_with_nan_is_refused(folder: Path) -> None:
    loaded = loaded_of(folder)
    with torch.no_grad():
        next(loaded.model.get_submodule("visual").parameters()).fill_(float("nan"))
    pool = Pool(num_actors=1, cpus_per_actor=1, use_gpu=False, batch_size=4, stall_seconds=60)
    with pytest.raises(DataError, match="not finite"):
        encoding.encode_all(loaded, suite_of(folder), ["suite:img-0"], [], pool)


def test_encode_identity_follows_weights_and_not_their_file(folder: Path) -> None:
    first, second = loaded_of(folder), loaded_of(folder)
    assert encoding.model_identity(first) == encoding.model_identity(second)
    with torch.no_grad():
        second.model.get_parameter("logit_scale").add_(1e-3)
    assert encoding.model_identity(first) != encoding.model_identity(second)
    third = loaded_of(folder)
    third.preprocess_cfg["mean"] = (0.5, 0.5, 0.5)
    assert encoding.model_identity(first) != encoding.model_identity(third)


def test_encode_impossible_resources_are_refused_by_setting(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"compute\.cpus"):
        evaluate(config_of(folder, tmp_path / "a", compute=ComputeConfig(cpus=64.0)))
    if not torch.cuda.is_available():
        with pytest.raises(SettingError, match="use_gpu"):
            evaluate(config_of(folder, tmp_path / "b", compute=ComputeConfig(use_gpu=True)))


def test_job_wrong_suite_is_one_line_and_exit_2(
    tmp_path: Path, run_stage: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--model.name", "scenes-base", "--suite", tmp_path / "none", "--output", tmp_path / "out"]
    assert run_stage("evaluate", *given) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert "no such folder" in printed


def test_encode_cluster_whose_cpus_are_taken_ends_with_a_deadline(folder: Path) -> None:
    class Hog:
        def ready(self) -> bool:
            return True

    hog = ray.remote(num_cpus=8)(Hog).remote()
    ray.get(hog.ready.remote())
    pool = Pool(num_actors=1, cpus_per_actor=1, use_gpu=False, batch_size=4, stall_seconds=3)
    try:
        with pytest.raises(DataError, match="no progress for 3 s after 0 of 1 batches"):
            encoding.encode_all(loaded_of(folder), suite_of(folder), [], ["a text"], pool)
        left = {type(thread).__name__ for thread in threading.enumerate()}
        assert "StreamingExecutor" not in left
    finally:
        ray.kill(hog)
