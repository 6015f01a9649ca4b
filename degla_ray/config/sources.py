"""Settings of the jobs `prepare` (one class per source) and `export_degla_json`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from degla_ray.config.shared import RayConfig, require
from degla_ray.pixel_limit import MAX_PIXELS


@dataclass(frozen=True, kw_only=True)
class ScenesConfig:
    """Rendered scenes with exactly known content."""

    num_images: int = 4000
    """Training images."""
    num_validation_images: int = 400
    """Validation images, in split `val`."""
    captions_per_image: int = 3
    """Captions per image."""
    min_objects: int = 2
    """Minimum number of objects in an image."""
    max_objects: int = 3
    """Maximum number of objects in an image; at most 4."""
    image_size: int = 64
    """Width and height of an image in pixels."""
    test_items: int = 300
    """Items per subset of the test sets written next to the images; 0 writes no test sets."""
    seed: int = 0
    """Random seed; the same seed gives identical bytes."""

    def __post_init__(self) -> None:
        require(
            1 <= self.min_objects <= self.max_objects <= 4,
            "scenes.min_objects",
            self.min_objects,
            "1 <= min_objects <= max_objects <= 4",
        )
        require(self.image_size >= 32, "scenes.image_size", self.image_size, "at least 32 pixels")
        require(self.num_images >= 1, "scenes.num_images", self.num_images, "at least 1")
        require(
            self.captions_per_image >= 1, "scenes.captions_per_image", self.captions_per_image, "at least 1"
        )
        require(
            self.num_validation_images >= 0,
            "scenes.num_validation_images",
            self.num_validation_images,
            ">= 0",
        )
        require(self.test_items >= 0, "scenes.test_items", self.test_items, ">= 0")


@dataclass(frozen=True, kw_only=True)
class CsvConfig:
    """A folder of images and CSV files whose header names an image column and a caption column."""

    images: str = ""
    """Folder of the images."""
    captions: dict[str, str] = field(default_factory=dict)
    """Caption file of each split, e.g. {train: captions_train.txt, val: captions_val.txt}."""
    separator: str = ","
    """Column separator, one character; `tab` or \\t means a tab."""
    image_column: str = "image"
    """Column with the image's path relative to `images`, e.g. filepath; case-insensitive."""
    caption_column: str = "caption"
    """Column with the caption, e.g. title; case-insensitive."""

    def __post_init__(self) -> None:
        if self.separator in ("tab", "\\t"):
            object.__setattr__(self, "separator", "\t")
        good = len(self.separator) == 1 and self.separator not in '"\r\n'
        require(good, "csv.separator", self.separator, "one character, or tab")
        columns = f"{self.image_column}, {self.caption_column}"
        require(
            self.image_column.lower() != self.caption_column.lower(),
            "csv.caption_column",
            columns,
            "two columns",
        )


Flickr8kConfig = CsvConfig  # `flickr8k` is an alias of `csv`


@dataclass(frozen=True, kw_only=True)
class CocoConfig:
    """COCO captions of 2014 or 2017, from the official JSON files or Karpathy's split file."""

    images: str = ""
    """Folder with the images, or with COCO's folders train2014/, val2014/, train2017/ ..."""
    annotations: dict[str, str] = field(default_factory=dict)
    """Official captions_*.json file of each split, e.g. {train: captions_train2014.json}."""
    karpathy: str | None = None
    """Karpathy's dataset_coco.json. It provides captions and splits, so `annotations` must be empty."""


@dataclass(frozen=True, kw_only=True)
class ParquetConfig:
    """Parquet files of images and captions, such as Hugging Face datasets."""

    files: dict[str, list[str]] = field(default_factory=dict)
    """Files, folders or glob patterns of each split, e.g. {train: [data/train-*.parquet]}."""
    image_column: str = "image"
    """Column with the image: bytes, a struct<bytes, path>, or a path relative to `images`."""
    caption_column: str = "caption"
    """Column with the caption: a string or a list of strings."""
    image_id_column: str | None = None
    """Column with the image's id; rows with the same id are one image. null uses the path, or
    makes each row its own image if images are stored as bytes."""
    split_column: str | None = None
    """Column with the split; null takes the split from `files`."""
    images: str | None = None
    """Folder of the images, if `image_column` holds paths."""


@dataclass(frozen=True, kw_only=True)
class WebdatasetConfig:
    """Tar shards; files with the same name up to the suffix form a sample."""

    shards: dict[str, list[str]] = field(default_factory=dict)
    """Tar files, folders or glob patterns of each split, e.g. {train: ["DIR/train-{000..099}.tar"]}."""
    json_field: str | None = None
    """Field of a sample's JSON file that holds its caption or captions: caption, meta.caption for nested
    objects, or captions.text for a list of objects; null reads captions from a text file."""
    caption_suffix: str | None = None
    """Suffix of a sample's caption file, e.g. caption or outputs.txt; null means txt, or json if `json_field`
    is set."""
    caption_per_line: bool = True
    """Whether each line of a text file is a caption; if false, the whole file is one caption."""
    image_suffixes: list[str] = field(default_factory=lambda: ["jpg", "jpeg", "png", "webp"])
    """Suffixes of image files, e.g. inputs.jpg, in order of preference if a sample has several."""

    def __post_init__(self) -> None:
        require(bool(self.image_suffixes), "webdataset.image_suffixes", self.image_suffixes, "at least one")


@dataclass(frozen=True, kw_only=True)
class DeglaJsonConfig:
    """DeGLA's released data: a JSON list of {image_id, original, enhanced}, with negatives per caption."""

    images: str = ""
    """Folder with the images, named as in `pattern`."""
    annotations: dict[str, str] = field(default_factory=dict)
    """JSON file of each split, e.g. {train: FILE}."""
    pattern: str = "train2014/COCO_train2014_%012d.jpg"
    """Image name relative to `images`, with %d or similar for image_id; COCO's other names are tried next."""
    min_negatives: int = 4
    """Minimum number of texts in `enhanced`; rows with fewer are rejected."""

    def __post_init__(self) -> None:
        try:
            ok = self.pattern % 1 != self.pattern % 2
        except (TypeError, ValueError):
            ok = False
        require(ok, "degla_json.pattern", self.pattern, "one number, e.g. train2014/COCO_train2014_%012d.jpg")
        require(self.min_negatives >= 0, "degla_json.min_negatives", self.min_negatives, ">= 0")


@dataclass(frozen=True, kw_only=True)
class NegclipTsvConfig:
    """NegCLIP's training files, with negatives for each caption."""

    images: str = ""
    """Folder that paths in the file are relative to, or COCO's own folder."""
    annotations: dict[str, str] = field(default_factory=dict)
    """TSV file of each split, e.g. {train: train_neg_clip.tsv, val: valid_neg_clip.tsv}."""


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Job `prepare`: turn a source into images, captions and rejects."""

    source: Literal["scenes", "csv", "flickr8k", "coco", "parquet", "webdataset", "degla_json", "negclip_tsv"]
    """Source to read; its settings are under the same name. `flickr8k` is an alias of `csv`."""
    output: str
    """Output folder; any URI that pyarrow opens."""
    scenes: ScenesConfig = field(default_factory=ScenesConfig)
    csv: CsvConfig = field(default_factory=CsvConfig)
    flickr8k: Flickr8kConfig = field(default_factory=Flickr8kConfig)
    coco: CocoConfig = field(default_factory=CocoConfig)
    parquet: ParquetConfig = field(default_factory=ParquetConfig)
    webdataset: WebdatasetConfig = field(default_factory=WebdatasetConfig)
    degla_json: DeglaJsonConfig = field(default_factory=DeglaJsonConfig)
    negclip_tsv: NegclipTsvConfig = field(default_factory=NegclipTsvConfig)
    num_shards: int | None = None
    """Number of output shards; a resumed run redoes only unfinished shards. null: one per 10,000 images, at
    least 8."""
    short_side: int | None = None
    """Scale larger images down to this short side in pixels and re-encode them; null keeps their size."""
    max_image_pixels: int = 89_478_485
    """Maximum pixels of an image; larger images are rejected before decoding."""
    max_reject_fraction: float = 0.05
    """Stop if more than this fraction of the rows is rejected."""
    follow_links: bool = False
    """Follow links below the image folder's first level even if they lead out of the folder; links directly
    in the folder are always followed."""
    val_fraction: float | None = None
    """Share of the images (between 0 and 1) moved from split `train` to `val`, for a source without split
    `val`; a hash of the image id selects them, so more data moves no image; null: none."""
    limit: int | None = None
    """Maximum number of images, taken from the start of each split in proportion to its size; null: all."""
    ray: RayConfig = field(default_factory=RayConfig)

    def __post_init__(self) -> None:
        require(
            self.num_shards is None or self.num_shards >= 1,
            "num_shards",
            self.num_shards,
            "at least 1, or null",
        )
        require(0 <= self.max_reject_fraction <= 1, "max_reject_fraction", self.max_reject_fraction, "0 to 1")
        require(
            self.val_fraction is None or 0 < self.val_fraction < 1,
            "val_fraction",
            self.val_fraction,
            "between 0 and 1, or null",
        )
        require(self.limit is None or self.limit >= 1, "limit", self.limit, "at least 1, or null")
        require(
            self.short_side is None or self.short_side >= 1,
            "short_side",
            self.short_side,
            "at least 1 pixel, or null",
        )
        require(
            1 <= self.max_image_pixels <= MAX_PIXELS,
            "max_image_pixels",
            self.max_image_pixels,
            f"1 to {MAX_PIXELS}",
        )


@dataclass(frozen=True, kw_only=True)
class ExportDeglaJsonConfig:
    """Job `export_degla_json`: write captions and their negatives as DeGLA's released JSON."""

    negatives: str
    """Output folder of job `negatives`."""
    prepared: str
    """Output folder of job `prepare` that the negatives were made from; its images must be COCO's."""
    output: str
    """JSON file to write; any URI that pyarrow opens."""
    split: str = "train"
    """Split to export."""
    min_negatives: int = 4
    """Minimum number of negatives; captions with fewer are left out. The released training code uses 4."""
    seed: int = 0
    """Random seed of the order of a caption's negatives. Kinds alternate, since the released code reads the
    first 4."""

    def __post_init__(self) -> None:
        require(self.min_negatives >= 1, "min_negatives", self.min_negatives, "at least 1")


@dataclass(frozen=True, kw_only=True)
class ExportNegclipTsvConfig:
    """Job `export_negclip_tsv`: captions and their negatives as NegCLIP's training file."""

    negatives: str
    """Folder that `negatives` wrote."""
    prepared: str
    """Folder that `prepare` wrote and `negatives` was made from."""
    output: str
    """TSV file to write, any URI pyarrow opens."""
    filepath: str = "{image_id}"
    """Path of an image file as the training code is to open it: {image_id} is the image's id and {number} its
    COCO number, e.g. train2014/COCO_train2014_{number:012d}.jpg."""
    neighbours: str | None = None
    """Folder that `neighbours` wrote for the same split; fills neg_image, which is empty without it."""
    split: str = "train"
    """Split whose captions are written."""
    min_negatives: int = 1
    """Captions with fewer negatives are left out; NegCLIP's training code draws 1."""
    seed: int = 0
    """Decides the order of a caption's negatives, and which row of a neighbour neg_image names."""

    def __post_init__(self) -> None:
        require(self.min_negatives >= 1, "min_negatives", self.min_negatives, "at least 1")
