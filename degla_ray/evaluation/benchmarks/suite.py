"""A suite folder: the test sets that `prepare --source scenes` writes to OUTPUT/tests.

    images/part-*.parquet           IMAGES, all images of the suite
    choices/part-*.parquet          CHOICE_ITEMS, several benchmarks in one table
    classification/part-*.parquet   CLASS_ITEMS
    classification/classes.json     {benchmark: {"classes": [...], "templates": ["an image of a {}.", ...]}}
    retrieval/part-*.parquet        CAPTIONS

A suite needs at least one of the last three datasets.
"""

from __future__ import annotations

import hashlib
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from degla_ray.errors import DataError
from degla_ray.evaluation.benchmarks.base import Benchmark, Rule
from degla_ray.evaluation.benchmarks.choice import Choice, ChoiceProtocol
from degla_ray.evaluation.benchmarks.classification import Classification, ClassPrompts
from degla_ray.evaluation.benchmarks.retrieval import Retrieval
from degla_ray.schema import CAPTIONS, CHOICE_ITEMS, CLASS_ITEMS
from degla_ray.stage import MANIFEST
from degla_ray.storage import Storage

SOURCE = "suite"
SCENES_SUBSETS = ("replace_obj", "replace_att", "replace_rel", "swap_obj", "swap_att", "add_obj", "add_att")
CHOICE_RULES: dict[str, tuple[Rule, tuple[str, ...]]] = {  # benchmark -> rule, subsets
    "scenes": (Rule.STRICT, SCENES_SUBSETS),
    "scenes_order": (Rule.FIRST_ARGMAX, ("order",)),
}
RETRIEVAL = "scenes_retrieval"
DATASETS = ("images", "choices", "classification", "retrieval")


def load_suite(uri: str) -> list[Benchmark]:
    """Load every benchmark of a suite folder.

    Raises:
        DataError: a missing folder, a folder of another kind, or a broken file or item.
    """
    storage = _open(uri)
    benchmarks: list[Benchmark] = []
    if storage.names("choices"):
        benchmarks += _choices(storage)
    if storage.names("classification"):
        benchmarks += _classifications(storage)
    if storage.names("retrieval"):
        captions = storage.read_dataset("retrieval", CAPTIONS)
        if captions["image_id"].null_count or captions["caption"].null_count:
            raise DataError(storage.path("retrieval"), "a null image_id or caption", "none")
        benchmarks.append(Retrieval(RETRIEVAL, captions, SOURCE))
    return benchmarks


def suite_identity(uri: str) -> str:
    """Return a hash of every file of a suite, independent of where the suite is stored."""
    storage = _open(uri)
    digest = hashlib.blake2b(digest_size=8)
    for dataset in DATASETS:
        for name in storage.names(dataset):
            content = storage.read_bytes(dataset, name)
            digest.update(f"{dataset}/{name}:{len(content)}\n".encode() + content)
    return digest.hexdigest()


def _open(uri: str) -> Storage:
    storage = Storage(uri)
    expected = "a suite folder; `jobs/prepare.py --source scenes` writes one at OUTPUT/tests"
    if not storage.exists():
        raise DataError(uri, "no such folder", expected)
    if storage.exists("tests", "images"):
        raise DataError(uri, "a prepared folder", f"its suite: {uri.rstrip('/')}/tests")
    if not any(storage.names(dataset) for dataset in DATASETS[1:]):
        stage = storage.read_json(MANIFEST).get("stage") if storage.exists(MANIFEST) else None
        found = f"the output of stage {stage!r}" if stage else f"none of {', '.join(DATASETS[1:])} in it"
        raise DataError(uri, found, expected)
    return storage


def _choices(storage: Storage) -> list[Benchmark]:
    items, where = storage.read_dataset("choices", CHOICE_ITEMS), storage.path("choices")
    found = items["benchmark"].unique().to_pylist()
    unknown = sorted(str(name) for name in found if name not in CHOICE_RULES)
    if unknown:
        raise DataError(
            where, f"benchmark {unknown[0]!r}", f"one whose rule is known: {', '.join(CHOICE_RULES)}"
        )
    benchmarks: list[Benchmark] = []
    for name, (rule, subsets) in CHOICE_RULES.items():
        if name in found:
            own = items.filter(pc.equal(items["benchmark"], name))
            strange = sorted(str(s) for s in set(own["subset"].to_pylist()) - set(subsets))
            if strange:
                raise DataError(where, f"subset {strange[0]!r} of {name}", f"one of {', '.join(subsets)}")
            protocol = ChoiceProtocol(rule=rule, subsets=subsets)
            benchmarks.append(Choice(name, own, protocol, SOURCE, where))
    return benchmarks


def _classifications(storage: Storage) -> list[Benchmark]:
    where = storage.path("classification", "classes.json")
    if not storage.exists("classification", "classes.json"):
        raise DataError(where, "no such file", "the classes and templates of each benchmark")
    described: Any = storage.read_json("classification", "classes.json")
    items: pa.Table = storage.read_dataset("classification", CLASS_ITEMS)
    benchmarks: list[Benchmark] = []
    for name in items["benchmark"].unique().to_pylist():
        entry = described.get(name) if isinstance(described, dict) else None
        lists = [entry.get(key) if isinstance(entry, dict) else None for key in ("classes", "templates")]
        if not all(isinstance(x, list) and all(isinstance(text, str) for text in x) for x in lists):
            expected = f'{{"{name}": {{"classes": [text, …], "templates": [text, …]}}}}'
            raise DataError(where, f"no classes and templates of {name!r}", expected)
        classes, templates = lists
        assert classes is not None  # checked above; for the type checker
        assert templates is not None
        prompts = ClassPrompts(classes=classes, templates=templates)
        own = items.filter(pc.equal(items["benchmark"], name))
        benchmarks.append(Classification(name, own, prompts, SOURCE, where))
    return benchmarks
