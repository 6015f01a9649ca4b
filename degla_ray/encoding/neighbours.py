"""Hard-negative images (NegCLIP): the images nearest to each image by a model's features.

Run by `jobs/neighbours.py`. Ray Data actors encode every image of the split once. The nearest images are
found by cosine similarity of image features, one block of rows at a time, so an I x I matrix is never in
memory. The features themselves are: 1 GB for 500,000 images of 512 numbers.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from rich.console import Console

from degla_ray import ray_setup, resources, shared_paths
from degla_ray.config import NeighboursConfig
from degla_ray.devices import resolve_precision
from degla_ray.encoding import encode as encoding
from degla_ray.encoding.features import image_key
from degla_ray.encoding.images import ParquetImages
from degla_ray.encoding.pool import Pool
from degla_ray.errors import SettingError
from degla_ray.lease import owned
from degla_ray.model.build import build_with_weights
from degla_ray.schema import CAPTIONS, NEIGHBOURS
from degla_ray.stage import StageFolder, read_complete

STAGE = "neighbours"
_BLOCK = 1024
_SOURCE = "prepared"

console = Console()


def find_neighbours(config: NeighboursConfig) -> dict[str, int]:
    """Write each image's neighbours, nearest first.

    Images that do not decode are counted as missing and raise no error.

    Returns:
        The counts `images`, `written` and `missing`.

    Raises:
        SettingError: the split does not exist or has too few images.
        DataError: a folder written by another job.
        LeaseHeld: another driver is writing to the output folder.
    """
    with owned(config.output):
        return _find_neighbours(config)


def _find_neighbours(config: NeighboursConfig) -> dict[str, int]:
    prepared, manifest = read_complete(config.prepared, "prepare")
    captions = prepared.read_dataset("captions", CAPTIONS, ["image_id", "split"])
    own = captions.filter(pc.equal(captions["split"], config.split))
    image_ids = sorted(pc.unique(own["image_id"]).to_pylist())
    if len(image_ids) <= config.count:
        raise SettingError("split", config.split, f"a split of more than {config.count} images")
    loaded = build_with_weights(config.model)
    loaded.model.eval()
    precision = resolve_precision(config.compute, config.ray)
    identity = {
        "prepared": manifest["fingerprint"],
        "split": config.split,
        "model": encoding.model_identity(loaded),
        "precision": precision,
        "count": config.count,
    }
    folder = StageFolder(config.output, STAGE, identity, num_shards=1)
    if not folder.complete:
        ray_setup.start(config.ray)
        pool = Pool(
            num_actors=config.num_actors,
            cpus_per_actor=config.compute.cpus,
            use_gpu=config.compute.use_gpu,
            batch_size=config.batch_size,
            precision=precision,
        )
        resources.require(config.ray, [pool.need()])
        shared_paths.require_shared(config, {}, driver_only=["model.name", "model.pretrained"])
        keys = {image_key(_SOURCE, image_id): image_id for image_id in image_ids}
        encoded = encoding.encode_all(loaded, {_SOURCE: ParquetImages(config.prepared)}, keys, [], pool)
        names = [keys[key] for key in encoded.features.image_row]
        nearest = nearest_rows(encoded.features.img_ND, config.count)
        table = pa.table(
            {"image_id": names, "neighbours": [[names[j] for j in row] for row in nearest]},
            schema=NEIGHBOURS,
        )
        folder.write_part("neighbours", 0, table)
        folder.write_receipt(
            0, {"images": len(image_ids), "written": len(names), "missing": len(encoded.missing)}
        )
        folder.finish()
    counts = folder.counts()
    console.print(
        f"images in {counts['images']:,} = written {counts['written']:,} + missing {counts['missing']:,}"
    )
    return counts


def nearest_rows(img_ID: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Return each row's nearest other rows by dot product, nearest first: int64 [I, count]."""
    nearest = np.empty((len(img_ID), count), dtype=np.int64)
    for first in range(0, len(img_ID), _BLOCK):
        block = img_ID[first : first + _BLOCK] @ img_ID.T
        own = np.arange(len(block))
        block[own, first + own] = -np.inf
        found = np.argpartition(-block, count - 1, axis=1)[:, :count]
        order = np.argsort(-np.take_along_axis(block, found, axis=1), axis=1, kind="stable")
        nearest[first : first + len(block)] = np.take_along_axis(found, order, axis=1)
    return nearest
