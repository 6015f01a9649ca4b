"""Load the published benchmarks whose files are present, and locate their images.

    DATA/annotations/sugarcrepe, sugarcrepe_pp, valse, aro, order, winoground    as released
    DATA/images/coco_val2017, vg, ...        one folder per image collection
    DATA/zeroshot/                           in torchvision's layout

`jobs/fetch_benchmarks.py` writes such a folder. `published.images` names images stored elsewhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from degla_ray.config import PublishedConfig
from degla_ray.encoding.images import FileImages, ImageSource
from degla_ray.errors import DataError
from degla_ray.evaluation.benchmarks import zero_shot
from degla_ray.evaluation.benchmarks.aro import load_vg_attribution, load_vg_relation
from degla_ray.evaluation.benchmarks.base import Benchmark
from degla_ray.evaluation.benchmarks.nlvr import NLVR, load_nlvr
from degla_ray.evaluation.benchmarks.order import CaptionSet, load_order, load_retrieval
from degla_ray.evaluation.benchmarks.own_sets import load_folder, load_webdataset
from degla_ray.evaluation.benchmarks.sugarcrepe import load_sugarcrepe, load_sugarcrepe_pp
from degla_ray.evaluation.benchmarks.valse import load_valse
from degla_ray.evaluation.benchmarks.winoground import load_winoground
from degla_ray.storage import Storage

ANNOTATIONS, IMAGES, ZERO_SHOT, SHUFFLES = "annotations", "images", "zeroshot", "shuffles"
Load = Callable[[Storage, PublishedConfig, bool], Benchmark]


def _order(captions: CaptionSet, annotations: Storage, config: PublishedConfig, keep: bool) -> Benchmark:
    cache = Storage(f"{config.data}/{SHUFFLES}")
    return load_order(annotations, captions, seed=config.order_seed, cache=cache, keep=keep)


BENCHMARKS: dict[str, tuple[str, Load]] = {  # name -> (path that must exist in annotations/, loader)
    "sugarcrepe": ("sugarcrepe", lambda a, c, _: load_sugarcrepe(a, extra_item=c.swap_obj_items == 246)),
    "sugarcrepe_pp": ("sugarcrepe_pp", lambda a, *_: load_sugarcrepe_pp(a)),
    "valse": ("valse", lambda a, c, _: load_valse(a, min_votes=c.valse_votes)),
    "vg_relation": (
        "aro/visual_genome_relation.json",
        lambda a, c, _: load_vg_relation(a, average=c.aro_average),
    ),
    "vg_attribution": (
        "aro/visual_genome_attribution.json",
        lambda a, c, _: load_vg_attribution(a, average=c.aro_average),
    ),
    "coco_order": ("order/coco_karpathy_test.json", partial(_order, CaptionSet.COCO)),
    "flickr30k_order": ("order/flickr30k_karpathy_test.json", partial(_order, CaptionSet.FLICKR30K)),
    "coco_retrieval": ("order/coco_karpathy_test.json", lambda a, *_: load_retrieval(a, CaptionSet.COCO)),
    "flickr30k_retrieval": (
        "order/flickr30k_karpathy_test.json",
        lambda a, *_: load_retrieval(a, CaptionSet.FLICKR30K),
    ),
    "winoground": ("winoground/examples.jsonl", lambda a, *_: load_winoground(a)),
}


@dataclass(frozen=True, kw_only=True)
class Published:
    """Loaded benchmarks and their image sources.

    Attributes:
        sources: image collection -> its source.
        identity: benchmark -> hash of its items and protocol.
        absent: benchmarks whose files are missing.
    """

    benchmarks: list[Benchmark] = field(default_factory=list)
    sources: dict[str, ImageSource] = field(default_factory=dict)
    identity: dict[str, str] = field(default_factory=dict)
    absent: list[str] = field(default_factory=list)


def load_published(config: PublishedConfig, names: Sequence[str], *, keep: bool = True) -> Published:
    """Load the named benchmarks; [all] loads every benchmark whose files are present.

    Args:
        config: where the files are, and the protocols.
        names: benchmarks to load, or [all].
        keep: whether to keep the shuffles of the order benchmarks beside the annotations.

    Raises:
        DataError: a broken file, or a missing file of a benchmark that is named.
    """
    found = Published()
    if config.data is not None:
        annotations = Storage(f"{config.data}/{ANNOTATIONS}")
        for name, (file, read) in BENCHMARKS.items():
            if _wanted(name, names, present=annotations.exists(file), absent=found.absent):
                _add(found, read(annotations, config, keep), config)
        root = f"{config.data}/{ZERO_SHOT}"
        sets = set() if "://" in config.data else set(zero_shot.present(root))
        for name in zero_shot.SETS:
            full = f"{zero_shot.PREFIX}{name}"
            if _wanted(full, names, present=name in sets, absent=found.absent):
                for benchmark, source in zero_shot.load_torchvision(root, [name], config.zero_shot_scores):
                    _add(found, benchmark, config, source)
    if config.nlvr is not None and _wanted(NLVR, names, present=True, absent=found.absent):
        _add(found, load_nlvr(Storage(config.nlvr)), config, FileImages(config.nlvr))
    for uri in config.class_folders:
        benchmark, source = load_folder(uri, config.zero_shot_scores)
        _add(found, benchmark, config, source)
    for uri in config.webdatasets:
        benchmark, source = load_webdataset(uri, config.zero_shot_scores)
        _add(found, benchmark, config, source)
    return found


def benchmark_identity(benchmark: Benchmark) -> str:
    """Return a hash of a benchmark's items and of how they are scored."""
    digest = hashlib.blake2b(digest_size=8)
    digest.update(repr((benchmark.name, benchmark.protocol, list(benchmark.subsets))).encode())
    digest.update(repr(sorted(benchmark.texts())).encode())  # includes prompts, which no item shows
    for shown in benchmark.shown():
        digest.update(repr((shown.subset, shown.item_id, shown.images, shown.texts)).encode())
    return digest.hexdigest()


def _wanted(name: str, names: Sequence[str], *, present: bool, absent: list[str]) -> bool:
    """Return whether to load a benchmark.

    A named benchmark is loaded even if its files are missing, so that its loader raises the error.
    """
    if list(names) != ["all"]:
        return name in names
    if not present:
        absent.append(name)
    return present


def _add(
    found: Published, benchmark: Benchmark, config: PublishedConfig, source: ImageSource | None = None
) -> None:
    if benchmark.name in found.identity:
        raise DataError(benchmark.name, "two benchmarks of this name", "another name for one of the folders")
    found.benchmarks.append(benchmark)
    found.identity[benchmark.name] = benchmark_identity(benchmark)
    for collection in sorted({key.partition(":")[0] for key in benchmark.image_keys()}):
        folder = config.images.get(collection, f"{config.data}/{IMAGES}/{collection}")
        found.sources[collection] = source or FileImages(folder)
