"""Zero-shot sets: decisions against plain re-implementations, and every loader on trees written here.

torchvision's eleven are written in its own layout, whole in their classes and with few images. CIFAR and
Flowers102 are checked by MD5 each time torchvision opens them: their sums are taken away for the test.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import json
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch

from degla_ray.encoding.features import FeatureTable
from degla_ray.encoding.images import ImageSource
from degla_ray.encoding.tar_images import TarImages
from degla_ray.errors import DataError, SettingError
from degla_ray.evaluation.benchmarks import own_sets, zero_shot
from degla_ray.evaluation.benchmarks.base import Benchmark
from degla_ray.evaluation.benchmarks.classification import (
    MEAN_PER_CLASS,
    TOP1,
    TOP5,
    Classification,
    ClassPrompts,
    ClassProtocol,
    Scores,
)
from degla_ray.evaluation.summary import mean_of_rows
from degla_ray.schema import CLASS_ITEMS, SCORES
from tests.fixtures_sources import encode, noise, write_tar

JPEG = encode(noise())
NAMES: dict[str, list[str]] = json.loads(
    Path(
        str(
            importlib.metadata.distribution("clip-benchmark").locate_file(
                "clip_benchmark/datasets/en_classnames.json"
            )
        )
    ).read_text()
)
CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
# folders of Caltech101, in torchvision's order
CALTECH = """
Faces Faces_easy Leopards Motorbikes accordion airplanes anchor ant barrel bass beaver binocular
bonsai brain brontosaurus buddha butterfly camera cannon car_side ceiling_fan cellphone chair chandelier
cougar_body cougar_face crab crayfish crocodile crocodile_head cup dalmatian dollar_bill dolphin dragonfly
electric_guitar elephant emu euphonium ewer ferry flamingo flamingo_head garfield gerenuk gramophone
grand_piano hawksbill headphone hedgehog helicopter ibis inline_skate joshua_tree kangaroo ketch lamp laptop
llama lobster lotus mandolin mayfly menorah metronome minaret nautilus octopus okapi pagoda panda pigeon pizza
platypus pyramid revolver rhino rooster saxophone schooner scissors scorpion sea_horse snoopy soccer_ball
stapler starfish stegosaurus stop_sign strawberry sunflower tick trilobite umbrella watch water_lilly
wheelchair wild_cat windsor_chair wrench yin_yang
""".strip().split()


# Decisions


def items_table(labels: list[int]) -> pa.Table:
    rows = [
        {"benchmark": "z", "item_id": f"{i}", "image_id": f"i{i}", "label": label}
        for i, label in enumerate(labels)
    ]
    return pa.Table.from_pylist(rows, schema=CLASS_ITEMS)


def unit_rows(rng: np.random.Generator, rows: int, width: int = 64) -> np.ndarray:
    features = rng.normal(size=(rows, width)).astype(np.float32)
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def made(
    classes: int, items: int, scores: Scores, seed: int = 0
) -> tuple[Classification, FeatureTable, list[int]]:
    """A benchmark of one template, so that a class's vector is its text's, and random features."""
    rng = np.random.default_rng(seed)
    labels = [int(x) for x in rng.integers(0, classes - 1, items)]  # the last class has no items
    names = [f"class {i}" for i in range(classes)]
    protocol = ClassProtocol(metrics=(TOP1, TOP5, MEAN_PER_CLASS), scores=scores)
    prompts = ClassPrompts(classes=names, templates=["{}"])
    benchmark = Classification("z", items_table(labels), prompts, "s", protocol=protocol)
    features = FeatureTable(
        img_ND=unit_rows(rng, items),
        txt_MD=unit_rows(rng, classes),
        image_row={f"s:i{i}": i for i in range(items)},
        text_row={name: i for i, name in enumerate(names)},
    )
    return benchmark, features, labels


def rows_of(benchmark: Benchmark, features: FeatureTable, subset: str) -> list[dict[str, Any]]:
    result = benchmark.score(features)
    assert result.scores.schema.equals(SCORES)
    return [row for row in result.scores.to_pylist() if row["subset"] == subset]


@pytest.mark.parametrize("chunk", [7, 4096])
@pytest.mark.parametrize("seed", range(3))
def test_int_logits_decisions_equal_truncated_logits_item_by_item(
    monkeypatch: pytest.MonkeyPatch, chunk: int, seed: int
) -> None:
    monkeypatch.setattr("degla_ray.evaluation.benchmarks.classification.CHUNK", chunk)
    benchmark, features, labels = made(classes=40, items=150, scores="int_logits", seed=seed)
    img_ND, txt_MD = (torch.from_numpy(x).double() for x in (features.img_ND, features.txt_MD))
    logits = (100 * (img_ND @ txt_MD.T)).int().tolist()
    ties = 0
    for row, plain, label in zip(rows_of(benchmark, features, TOP1), logits, labels, strict=True):
        assert row["candidate_scores"] == plain
        assert not any(math.copysign(1, x) < 0 for x in row["candidate_scores"] if x == 0)
        assert row["correct"] == (plain.index(max(plain)) == label)
        ties += plain.count(max(plain)) > 1
    assert ties > 5
    assert benchmark.protocol == "int_logits"


@pytest.mark.parametrize("scores", ["standard", "int_logits"])
def test_top5_equals_a_plain_sort_in_which_the_lower_label_goes_first(scores: Scores) -> None:
    benchmark, features, labels = made(classes=30, items=200, scores=scores)
    every = rows_of(benchmark, features, TOP1)
    ties = 0
    for row, top1, label in zip(rows_of(benchmark, features, TOP5), every, labels, strict=True):
        plain = top1["candidate_scores"]
        order = sorted(range(30), key=lambda i: (-plain[i], i))
        assert row["correct"] == (label in order[:5])
        fifth_wrong = [plain[i] for i in order if i != label][4]
        assert row["candidate_scores"] == [plain[label], fifth_wrong]
        ties += plain[label] == fifth_wrong
        assert row["correct"] >= top1["correct"]
    assert (ties > 0) == (scores == "int_logits")


def test_mean_per_class_is_the_mean_of_the_classes_accuracies() -> None:
    benchmark, features, labels = made(classes=8, items=300, scores="standard")
    result = benchmark.score(features)
    rows = [r for r in result.scores.to_pylist() if r["subset"] == MEAN_PER_CLASS]
    correct = np.array([r["correct"] for r in rows])
    assert correct.tolist() == [r["correct"] for r in rows_of(benchmark, features, TOP1)]
    expected = np.mean([correct[np.array(labels) == c].mean() for c in sorted(set(labels))])
    mean = mean_of_rows(result.scores.filter(pc.equal(result.scores["subset"], MEAN_PER_CLASS)))
    assert mean.value == pytest.approx(expected)
    assert mean.value != correct.mean()
    assert {r["subset"] for r in result.scores.to_pylist() if r["group"] is not None} == {MEAN_PER_CLASS}
    for row, label in zip(rows, labels, strict=True):
        true, best_wrong = row["candidate_scores"]
        assert row["correct"] == (true > best_wrong), label


def test_metrics_top5_is_left_out_of_five_classes_and_missing_images_are_counted_everywhere() -> None:
    five, _, _ = made(classes=5, items=3, scores="standard")
    assert five.subsets == (TOP1, MEAN_PER_CLASS)
    benchmark, features, labels = made(classes=10, items=6, scores="standard")
    kept = {key: row for key, row in features.image_row.items() if key != "s:i2"}
    result = benchmark.score(dataclasses.replace(features, image_row=kept))
    assert dict(result.missing) == {TOP1: 1, TOP5: 1, MEAN_PER_CLASS: 1}
    groups = [r["group"] for r in result.scores.to_pylist() if r["subset"] == MEAN_PER_CLASS]
    assert groups == [str(x) for i, x in enumerate(labels) if i != 2]
    assert [benchmark.chance(s) for s in benchmark.subsets] == [0.1, 0.5, 0.1]


def test_metrics_without_any_image_has_every_subset_and_no_rows() -> None:
    benchmark, features, _ = made(classes=10, items=2, scores="standard")
    result = benchmark.score(dataclasses.replace(features, image_row={}))
    assert len(result.scores) == 0
    assert result.scores.schema.equals(SCORES)
    assert dict(result.missing) == dict.fromkeys(benchmark.subsets, 2)


def test_classes_of_one_name_where_allowed_the_first_wins() -> None:
    prompts = ClassPrompts(classes=["a", "a"], templates=["{}"], unique_names=False)
    benchmark = Classification("z", items_table([0, 1]), prompts, "s")
    one = unit_rows(np.random.default_rng(0), 1)
    features = FeatureTable(img_ND=one, txt_MD=one, image_row={"s:i0": 0, "s:i1": 0}, text_row={"a": 0})
    assert benchmark.score(features).scores["correct"].to_pylist() == [True, False]


# torchvision's eleven: each writer makes a tree below `root` and returns image id -> class name


def put(path: Path, data: bytes | str = JPEG) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


def write_cifar(root: Path, folder: str, labels: str, meta: dict[str, Any], train: list[str]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 3072), dtype=np.uint8)
    batch = {"data": pixels, labels: [i % 10 for i in range(12)]}
    test, about = ("test", "meta") if folder == "cifar-100-python" else ("test_batch", "batches.meta")
    for name in train:
        put(root / folder / name, b"unused")
    put(root / folder / test, pickle.dumps(batch))
    put(root / folder / about, pickle.dumps(meta))


def write_cifar10(root: Path) -> dict[str, str]:
    train = [f"data_batch_{i}" for i in range(1, 6)]
    write_cifar(root, "cifar-10-batches-py", "labels", {"label_names": CIFAR10}, train)
    return {str(i): CIFAR10[i % 10] for i in range(12)}


def write_cifar100(root: Path) -> dict[str, str]:
    names = ["aquarium_fish", *(f"thing {i}" for i in range(99))]
    write_cifar(root, "cifar-100-python", "fine_labels", {"fine_label_names": names}, ["train"])
    return {"0": "aquarium fish", "1": "thing 0", "10": "aquarium fish"}


def write_food101(root: Path) -> dict[str, str]:
    names = ["waffles", "apple_pie", *(f"food_{i}" for i in range(99))]  # not in the order of the labels
    put(root / "food-101/meta/test.json", json.dumps({name: [f"{name}/1"] for name in names}))
    put(root / "food-101/images/apple_pie/1.jpg")
    return {"food-101/images/apple_pie/1.jpg": "apple pie", "food-101/images/waffles/1.jpg": "waffles"}


def write_pets(root: Path) -> dict[str, str]:
    # labels in another order than clip_benchmark's: names decide
    files = {name.lower().replace(" ", "_"): name for name in reversed(NAMES["pets"])}
    lines = [f"{stem}_{i} {label} 1 1" for i in (1, 20) for label, stem in enumerate(files, start=1)]
    put(root / "oxford-iiit-pet/annotations/test.txt", "\n".join(lines) + "\n")
    for stem in files:
        put(root / f"oxford-iiit-pet/images/{stem}_1.jpg")
    return {f"oxford-iiit-pet/images/{stem}_1.jpg": name for stem, name in files.items()}


def write_flowers102(root: Path) -> dict[str, str]:
    from scipy.io import savemat

    folder = root / "flowers-102"
    for i in range(1, 4):
        put(folder / f"jpg/image_{i:05d}.jpg")
    savemat(folder / "imagelabels.mat", {"labels": np.array([[93, 1, 60, 2]])})
    savemat(folder / "setid.mat", {"trnid": [[4]], "valid": [[4]], "tstid": [[3, 1, 2]]})
    names = ("air plant", "pink primrose", "pink and yellow dahlia")
    return {f"flowers-102/jpg/image_{i:05d}.jpg": name for i, name in enumerate(names, start=1)}


def write_sun397(root: Path) -> dict[str, str]:
    names = ["/a/abbey", "/t/temple/east_asia", *(f"/x/place_{i}" for i in range(395))]
    put(root / "SUN397/ClassName.txt", "\n".join(names) + "\n")
    expected = {
        "SUN397/t/temple/east_asia/sun_b.jpg": "temple east asia",
        "SUN397/a/abbey/sun_a.jpg": "abbey",
    }
    for path in expected:
        put(root / path)
    return expected


def write_stanford_cars(root: Path) -> dict[str, str]:
    from scipy.io import savemat

    folder = root / "stanford_cars"
    names = [
        "AM General Hummer SUV 2000",
        "Ram C/V Cargo Van Minivan 2012",
        *(f"Car {i}" for i in range(194)),
    ]
    for i in range(1, 3):
        put(folder / f"cars_test/0000{i}.jpg")
    (folder / "devkit").mkdir()
    savemat(folder / "devkit/cars_meta.mat", {"class_names": np.array(names, dtype=object)})
    annotations = np.array(
        [("00001.jpg", 2), ("00002.jpg", 1)], dtype=[("fname", object), ("class", np.uint8)]
    )
    savemat(folder / "cars_test_annos_withlabels.mat", {"annotations": annotations})
    return {"stanford_cars/cars_test/00001.jpg": names[1], "stanford_cars/cars_test/00002.jpg": names[0]}


def write_dtd(root: Path) -> dict[str, str]:
    names = ["polka-dotted", *(f"texture{i:02d}" for i in range(46))]
    lines = [f"{name}/{name}_0001.jpg" for name in names]
    put(root / "dtd/dtd/labels/test1.txt", "\n".join(lines) + "\n")
    put(root / "dtd/dtd/labels/test2.txt", "never/read.jpg\n")
    put(root / "dtd/dtd/images/polka-dotted/polka-dotted_0001.jpg")
    return {f"dtd/dtd/images/{line}": name for line, name in zip(lines, names, strict=True)}


def write_caltech101(root: Path) -> dict[str, str]:
    folder = "caltech101/101_ObjectCategories"
    for name in ["BACKGROUND_Google", *CALTECH]:
        put(root / folder / name / "image_0001.jpg")
    return {
        f"{folder}/{name}/image_0001.jpg": listed
        for name, listed in zip(CALTECH, NAMES["caltech101"][1:], strict=True)
    }


def write_fgvc_aircraft(root: Path) -> dict[str, str]:
    folder = root / "fgvc-aircraft-2013b/data"
    names = ["F/A-18", "707-320", *(f"Plane {i}" for i in range(98))]
    put(folder / "variants.txt", "\n".join(names) + "\n")
    put(folder / "images_variant_test.txt", "0000001 707-320\n0000002 F/A-18\n")
    put(folder / "images/0000001.jpg")
    put(folder / "images/0000002.jpg")
    start = "fgvc-aircraft-2013b/data/images"
    return {f"{start}/0000001.jpg": "707-320", f"{start}/0000002.jpg": "F/A-18"}


def write_imagenet(root: Path) -> dict[str, str]:
    from torchvision.models._meta import _IMAGENET_CATEGORIES

    wnids = [f"n{i:08d}" for i in range(1000)]
    for wnid in wnids:
        put(root / f"imagenet/val/{wnid}/ILSVRC2012_val_1.JPEG")
    meta: tuple[dict[str, tuple[str, ...]], list[str]] = (
        {wnid: (name,) for wnid, name in zip(wnids, _IMAGENET_CATEGORIES, strict=True)},
        [],
    )
    torch.save(meta, root / "imagenet/meta.bin")
    known = {0: "tench", 134: "crane bird", 517: "construction crane", 744: "missile", 999: "toilet paper"}
    return {f"imagenet/val/{wnids[i]}/ILSVRC2012_val_1.JPEG": name for i, name in known.items()}


WRITERS: dict[str, Callable[[Path], dict[str, str]]] = {
    "cifar10": write_cifar10,
    "cifar100": write_cifar100,
    "food101": write_food101,
    "pets": write_pets,
    "flowers102": write_flowers102,
    "sun397": write_sun397,
    "stanford_cars": write_stanford_cars,
    "dtd": write_dtd,
    "caltech101": write_caltech101,
    "fgvc_aircraft": write_fgvc_aircraft,
    "imagenet": write_imagenet,
}


@pytest.fixture
def _no_md5(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any bytes will do for the sets that torchvision checks whenever it opens them."""
    from torchvision.datasets import CIFAR10, CIFAR100, Flowers102

    for loader in (CIFAR10, CIFAR100):
        for attribute in ("train_list", "test_list"):
            monkeypatch.setattr(loader, attribute, [[name, None] for name, _ in getattr(loader, attribute)])
        monkeypatch.setattr(loader, "meta", {**loader.meta, "md5": None})
    files = {key: (name, None) for key, (name, _) in Flowers102._file_dict.items()}
    monkeypatch.setattr(Flowers102, "_file_dict", files)


def read_all(source: ImageSource, ids: set[str], size: int = 3) -> dict[str, Any]:
    """Through a pickle, as the tasks that read get it."""
    batches, absent = source.batches(ids, size)
    assert all(len(batch.ids) <= size for batch in batches)
    there: ImageSource = pickle.loads(pickle.dumps(source))
    found = {i: p for b in batches for i, p in zip(b.ids, there.read(b), strict=True)}
    assert found.keys() | absent.keys() == ids
    return found | absent


@pytest.mark.usefixtures("_no_md5")
@pytest.mark.parametrize("name", list(zero_shot.SETS))
def test_torchvision_set_has_its_names_templates_metrics_and_images(tmp_path: Path, name: str) -> None:
    expected = WRITERS[name](tmp_path)
    spec = zero_shot.SETS[name]
    assert zero_shot.present(str(tmp_path)) == [name]
    ((benchmark, source),) = zero_shot.load_torchvision(str(tmp_path), [name])
    assert benchmark.name == f"zeroshot_{name}"
    assert benchmark.subsets == (TOP1, TOP5, MEAN_PER_CLASS)
    assert benchmark.chance(TOP1) == 1 / spec.classes
    assert benchmark.protocol.startswith("standard")
    assert ("no official split" in benchmark.protocol) == (name in ("sun397", "caltech101"))
    shown = {s.item_id: s for s in benchmark.shown()}
    assert {i: shown[i].texts[0] for i in expected} == expected
    assert all(s.images == (f"zeroshot_{name}:{s.item_id}",) for s in shown.values())
    assert all(text.isprintable() and "_" not in text and "{" not in text for text in benchmark.texts())
    prompts = {"pets": "a photo of a Boxer, a type of pet.", "imagenet": "a tattoo of the tench."}
    assert prompts.get(name, next(iter(benchmark.texts()))) in benchmark.texts()
    assert type(source)(**dataclasses.asdict(source)) == source  # type: ignore[call-overload]

    there = {i for i in expected if not name.startswith("cifar") and (tmp_path / i).exists()}
    for image_file in read_all(source, there or set(expected)).values():
        assert image_file.open().size == ((40, 30) if there else (32, 32))
        assert not there or image_file.data == JPEG


@pytest.mark.usefixtures("_no_md5")
def test_torchvision_cifar_pixels_and_labels_come_through_unchanged(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    ((benchmark, source),) = zero_shot.load_torchvision(str(tmp_path), ["cifar10"])
    pixels = np.random.default_rng(0).integers(0, 256, (12, 3072), dtype=np.uint8)
    found = read_all(source, {str(i) for i in range(14)})
    for i in range(12):
        image = np.asarray(found[str(i)].open()).transpose(2, 0, 1)
        assert image.tobytes() == pixels[i].tobytes()
    assert all(isinstance(found[i], IndexError) for i in ("12", "13"))
    assert len(benchmark.image_keys()) == 12


def test_torchvision_missing_image_is_named_and_the_rest_is_read(tmp_path: Path) -> None:
    write_food101(tmp_path)
    ((benchmark, source),) = zero_shot.load_torchvision(str(tmp_path), ["food101"])
    ids = {key.partition(":")[2] for key in benchmark.image_keys()}
    found = read_all(source, ids)
    assert len(found) == 101
    lost = found["food-101/images/waffles/1.jpg"]
    assert isinstance(lost, FileNotFoundError)
    assert "waffles/1.jpg" in str(lost)
    assert sum(not isinstance(x, Exception) for x in found.values()) == 1


@pytest.mark.parametrize("name", list(zero_shot.SETS))
def test_torchvision_absent_set_names_set_root_and_how_to_get_it(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError) as caught:
        zero_shot.load_torchvision(str(tmp_path), [name])
    message = str(caught.value)
    assert name in message
    assert str(tmp_path) in message
    assert f"jobs/fetch_benchmarks.py --benchmarks '[zeroshot_{name}]'" in message
    assert not list(tmp_path.iterdir())  # torchvision's Caltech101 would have made a folder


def test_torchvision_broken_files_are_a_data_error(tmp_path: Path) -> None:
    write_cifar10(tmp_path)  # here the MD5 sums are on
    with pytest.raises(DataError, match=r"cifar10 in .*RuntimeError: Dataset not found or corrupted"):
        zero_shot.load_torchvision(str(tmp_path), ["cifar10"])
    (tmp_path / "food-101/images").mkdir(parents=True)
    put(tmp_path / "food-101/meta/test.json", "{")
    with pytest.raises(DataError, match=r"food101 in .*JSONDecodeError"):
        zero_shot.load_torchvision(str(tmp_path), ["food101"])


def test_torchvision_set_without_all_its_classes_is_refused(tmp_path: Path) -> None:
    write_dtd(tmp_path)
    list_file = tmp_path / "dtd/dtd/labels/test1.txt"
    list_file.write_text("".join(list_file.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(DataError, match="46 classes; expected 47"):
        zero_shot.load_torchvision(str(tmp_path), ["dtd"])


def test_torchvision_class_that_no_name_fits_is_named(tmp_path: Path) -> None:
    write_pets(tmp_path)
    annotations = tmp_path / "oxford-iiit-pet/annotations/test.txt"
    annotations.write_text(annotations.read_text().replace("beagle_", "dachshund_"))
    with pytest.raises(DataError, match="class 'Dachshund'; expected one of Abyssinian"):
        zero_shot.load_torchvision(str(tmp_path), ["pets"])
    write_caltech101(tmp_path)
    folder = tmp_path / "caltech101/101_ObjectCategories"
    (folder / "crab").rename(folder / "zebra")  # all between are off by one
    with pytest.raises(DataError, match="class 'crayfish' in place 26, where the names have 'crab'"):
        zero_shot.load_torchvision(str(tmp_path), ["caltech101"])


def test_torchvision_imagenet_in_another_order_is_refused(tmp_path: Path) -> None:
    write_imagenet(tmp_path)
    classes, _ = torch.load(tmp_path / "imagenet/meta.bin")
    shifted = dict(zip(classes, [*list(classes.values())[1:], ("tench",)], strict=True))
    torch.save((shifted, []), tmp_path / "imagenet/meta.bin")
    with pytest.raises(DataError, match=r"class 'goldfish' in place 0, where the names have 'tench'"):
        zero_shot.load_torchvision(str(tmp_path), ["imagenet"])


def test_torchvision_unknown_set_uri_and_absent_package_say_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SettingError, match="cifar10, cifar100"):
        zero_shot.load_torchvision(str(tmp_path), ["mnist"])
    with pytest.raises(DataError, match="a local folder"):
        zero_shot.load_torchvision("s3://bucket/folder", ["dtd"])
    write_dtd(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"degla-ray\[zeroshot\]"):
        zero_shot.load_torchvision(str(tmp_path), ["dtd"])


def test_eleven_average_has_one_official_subset_a_set() -> None:
    per_class = {"pets", "flowers102", "caltech101", "fgvc_aircraft"}
    official = dict(member.split("/") for member in zero_shot.ZERO_SHOT_ELEVEN)
    assert len(official) == 11
    for name in zero_shot.SETS:
        assert official[f"zeroshot_{name}"] == (MEAN_PER_CLASS if name in per_class else TOP1)


# A folder a class


def write_classes(root: Path) -> Path:
    for name, images in {"polar_bear": ("b.jpg", "a.PNG"), "zebra": ("deep/c.webp",)}.items():
        for image_file in images:
            put(root / name / image_file)
    put(root / "zebra/notes.txt", "no image")
    put(root / "zebra/._c.jpg", "no image either")
    put(root / ".cache/x/y.jpg")
    return root


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_folder_items_names_and_images(tmp_path: Path, prefix: str) -> None:
    benchmark, source = own_sets.load_folder(prefix + str(write_classes(tmp_path / "animals")))
    assert benchmark.name == "zeroshot_folder_animals"
    assert benchmark.subsets == (TOP1, MEAN_PER_CLASS)
    assert {s.item_id: s.texts[0] for s in benchmark.shown()} == {
        "polar_bear/a.PNG": "polar bear",
        "polar_bear/b.jpg": "polar bear",
        "zebra/deep/c.webp": "zebra",
    }
    assert benchmark.texts() == {"a photo of a polar bear.", "a photo of a zebra."}
    found = read_all(source, {key.partition(":")[2] for key in benchmark.image_keys()})
    assert all(image_file.data == JPEG for image_file in found.values())


def test_folder_names_and_templates_from_files(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "animals")
    put(root / "templates.txt", "one {c}\nthe {}\n")
    put(root / "classnames.txt", "ice bear\nzebra, striped\n")
    benchmark, _ = own_sets.load_folder(str(root), "int_logits")
    assert benchmark.texts() == {"one ice bear", "the ice bear", "one zebra, striped", "the zebra, striped"}
    assert benchmark.protocol == "int_logits"
    put(root / "classes.json", json.dumps({"zebra": "horse", "polar_bear": "bear"}))
    benchmark, _ = own_sets.load_folder(str(root))
    assert {s.texts[0] for s in benchmark.shown() if "zebra" in s.item_id} == {"horse"}


@pytest.mark.parametrize(
    ("path", "content", "message"),
    [
        ("empty/notes.txt", "x", "empty: found no images"),
        ("zebra/a#1.jpg", JPEG, "a # in its name"),
        ("polar bear/a.jpg", JPEG, "each once"),  # the same name as polar_bear
        ("classes.json", "[]", "FOLDER"),
        ("classes.json", "{", "broken JSON"),
        ("classes.json", '{"zebra": "a", "polar_bear": " "}', "FOLDER"),
        ("classes.json", '{"zebra": "a"}', "no name for 'polar_bear'"),
        (
            "classes.json",
            '{"zebra": "a", "polar_bear": "b", "yak": "c"}',
            "a missing folder, 'yak'",
        ),
        ("classnames.txt", "one\n", "1 names; expected 2"),
        ("classnames.txt", "one\n\ntwo\n", "an empty line"),
        ("classnames.txt", b"\xff\xfe\xfa", "UTF-8"),
        ("templates.txt", "\n", "no lines"),
        ("templates.txt", "a photo\n", "each with {}"),
    ],
)
def test_folder_that_does_not_fit_is_refused(
    tmp_path: Path, path: str, content: bytes | str, message: str
) -> None:
    put(write_classes(tmp_path) / path, content)
    with pytest.raises(DataError, match=message):
        own_sets.load_folder(str(tmp_path))


def test_folder_absent_or_of_one_class_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        own_sets.load_folder(str(tmp_path / "nowhere"))
    put(tmp_path / "only/a.jpg")
    with pytest.raises(DataError, match="1 folders in it; expected at least two"):
        own_sets.load_folder(str(tmp_path))


def test_folder_of_real_cifar10_images_lists_all_600(real_data: Path) -> None:
    folder = real_data / "cifar10"
    if not folder.is_dir():
        pytest.skip(f"no CIFAR-10 images at {folder} (set DEGLA_DATA to a folder that holds cifar10/)")
    benchmark, source = own_sets.load_folder(str(folder))
    assert benchmark.name == "zeroshot_folder_cifar10"
    assert benchmark.subsets == (TOP1, TOP5, MEAN_PER_CLASS)
    assert benchmark.chance(TOP1) == 0.1
    shown = list(benchmark.shown())
    assert len(shown) == 600
    assert {s.texts[0] for s in shown} == set(CIFAR10)
    assert all(s.item_id.startswith(f"{s.texts[0]}/") for s in shown)
    some = read_all(source, {s.item_id for s in shown[::50]})
    assert {image_file.open().size for image_file in some.values()} == {(32, 32)}


# Tar shards


def write_shards(root: Path, where: str = "test") -> Path:
    """Two shards of three samples each, of classes 0, 1, 2; every image has its own bytes."""
    for shard in range(2):
        files: dict[str, bytes] = {}
        for i in range(3):
            key = f"s{shard * 3 + i:07d}"
            files |= {f"{key}.cls": str(i).encode(), f"{key}.webp": encode(noise(seed=shard * 3 + i), "WEBP")}
        write_tar(root / where / f"{shard}.tar", files)
    put(root / where / "nshards.txt", "2\n")
    put(root / "classnames.txt", "cat\ndog\ncat\n")
    put(root / "zeroshot_classification_templates.txt", "a photo of a {c}.\n")
    return root


@pytest.mark.parametrize(
    ("where", "given"), [("test", ""), ("test", "/test"), ("test", "/test/"), (".", ""), (".", "/")]
)
@pytest.mark.parametrize("prefix", ["", "file://"])
def test_webdataset_items_and_images(tmp_path: Path, where: str, given: str, prefix: str) -> None:
    root = write_shards(tmp_path / "wds_animals", where)
    benchmark, source = own_sets.load_webdataset(f"{prefix}{root}{given}")
    assert benchmark.name == "zeroshot_webdataset_wds_animals"
    expected = {f"{i // 3}.tar/s{i:07d}": ("cat", "dog", "cat")[i % 3] for i in range(6)}
    assert {s.item_id: s.texts[0] for s in benchmark.shown()} == expected
    assert benchmark.texts() == {"a photo of a cat.", "a photo of a dog."}
    found = read_all(source, {*expected, "1.tar/s9999999"}, size=2)
    assert found.pop("1.tar/s9999999") == "not in the shards"
    for i in range(6):
        assert found[f"{i // 3}.tar/s{i:07d}"].data == encode(noise(seed=i), "WEBP")


def test_webdataset_source_travels_without_its_table_and_reads_by_offset(tmp_path: Path) -> None:
    write_shards(tmp_path)
    _, source = own_sets.load_webdataset(str(tmp_path))
    assert isinstance(source, TarImages)
    assert len(source.samples) == 6
    assert b"s0000001" not in pickle.dumps(source)
    assert source == TarImages(**dataclasses.asdict(source))
    batches, _ = source.batches(set(source.samples), 2)
    assert [len(b.ids) for b in batches] == [2, 1, 2, 1]  # a batch lies in one shard
    (tmp_path / "test/1.tar").write_bytes((tmp_path / "test/1.tar").read_bytes()[:1600])
    (tmp_path / "test/0.tar").unlink()
    found = [image_file for batch in batches for image_file in source.read(batch)]
    assert all(isinstance(x, OSError) for x in found)
    assert "it has been changed" in str(found[3])


def test_webdataset_of_the_real_writer_is_read(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    (tmp_path / "test").mkdir()
    with webdataset.ShardWriter(str(tmp_path / "test/%d.tar"), maxcount=4, verbose=0) as sink:
        for i in range(10):
            sink.write({"__key__": f"s{i:07d}", "png": encode(noise(seed=i), "PNG"), "cls": i % 2})
    put(tmp_path / "classnames.txt", "even\nodd\n")
    put(tmp_path / "test/zeroshot_classification_templates.txt", "{c}\n")
    benchmark, source = own_sets.load_webdataset(str(tmp_path))
    assert [s.texts[0] for s in benchmark.shown()] == ["even", "odd"] * 5
    found = read_all(source, {s.item_id for s in benchmark.shown()})
    assert found["2.tar/s0000009"].data == encode(noise(seed=9), "PNG")


def test_webdataset_sample_with_several_images_is_read_as_clip_benchmark_does(tmp_path: Path) -> None:
    write_shards(tmp_path)
    files = {"a.jpg": b"jpg", "a.PNG": b"png", "a.json": b"{}", "a.cls": b" 1\n", ".hidden": b""}
    write_tar(tmp_path / "test/1.tar", files)
    _, source = own_sets.load_webdataset(str(tmp_path))
    assert read_all(source, {"1.tar/a"})["1.tar/a"].data == b"png"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.jpg": JPEG}, "sample 'a' of jpg; expected an image"),
        ({"a.cls": b"1"}, "sample 'a' of cls; expected an image"),
        ({"a.jpg": JPEG, "a.cls": b"dog"}, "a.cls: found b'dog'; expected a class number"),
        ({"a.jpg": JPEG, "a.cls": b"3"}, "label 3 of item '1.tar/a'; expected 0 to 2"),
        ({"a.jpg": JPEG, "a.cls": b"-1"}, "label -1 of item"),
        ({"a.jpg": JPEG, "a.JPG": JPEG, "a.cls": b"1"}, "a.JPG twice"),
        ({}, "no samples"),
    ],
)
def test_webdataset_sample_that_is_not_whole_is_refused(
    tmp_path: Path, files: dict[str, bytes], message: str
) -> None:
    write_shards(tmp_path)
    write_tar(tmp_path / "test/1.tar", files)
    with pytest.raises(DataError, match=message):
        own_sets.load_webdataset(str(tmp_path))


@pytest.mark.parametrize("cut", [0, 100, 700, 3000, -1024])
def test_webdataset_broken_shard_is_refused_by_name(tmp_path: Path, cut: int) -> None:
    path = write_shards(tmp_path) / "test/1.tar"
    data = path.read_bytes()
    path.write_bytes(data[: len(data.rstrip(b"\0")) // 512 * 512] if cut < 0 else data[:cut])
    with pytest.raises(DataError, match=r"1\.tar: .* expected a whole, uncompressed tar file"):
        own_sets.load_webdataset(str(tmp_path))


@pytest.mark.parametrize(
    ("path", "content", "message"),
    [
        ("classnames.txt", None, "no classnames.txt"),
        ("zeroshot_classification_templates.txt", None, "no zeroshot_classification_templates.txt"),
        ("zeroshot_classification_templates.txt", "a photo", "each with {}"),
        ("classnames.txt", "cat\n\ndog\n", "an empty line"),
        ("test/nshards.txt", "3", "2 shards; expected 3"),
    ],
)
def test_webdataset_whose_files_do_not_fit_is_refused(
    tmp_path: Path, path: str, content: str | None, message: str
) -> None:
    target = write_shards(tmp_path) / path
    target.unlink()
    if content is not None:
        target.write_text(content)
    with pytest.raises(DataError, match=message):
        own_sets.load_webdataset(str(tmp_path))


def test_webdataset_without_shards_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no \*.tar"):
        own_sets.load_webdataset(str(tmp_path))
