"""Settings of `prepare`, a class for each source, and of the way out to the released format."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from degla_ray.config.shared import RayConfig, require


@dataclass(frozen=True, kw_only=True)
class ScenesConfig:
    """Rendered scenes: images whose truth is known."""

    num_images: int = 4000
    """Training images."""
    num_validation_images: int = 400
    """Validation images (split `val`)."""
    captions_per_image: int = 3
    """Captions of each image."""
    min_objects: int = 2
    """Objects in an image, at least."""
    max_objects: int = 3
    """Objects in an image, at most 4."""
    image_size: int = 64
    """Side of an image in pixels."""
    test_items: int = 300
    """Items of each subset of the test sets that are written beside the images; 0 writes none."""
    seed: int = 0
    """Same seed, same bytes."""

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
    """A folder of images and CSV files whose header names an image's and a caption's column."""

    images: str = ""
    """Folder of the images."""
    captions: dict[str, str] = field(default_factory=dict)
    """Caption file of each split, e.g. {train: captions_train.txt, val: captions_val.txt}."""
    separator: str = ","
    """Character between columns; tab or \\t is a tab."""
    image_column: str = "image"
    """Column of the image's path below `images`, e.g. filepath; upper and lower case are one."""
    caption_column: str = "caption"
    """Column of the caption, e.g. title; upper and lower case are one."""

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


Flickr8kConfig = CsvConfig  # `flickr8k` is another name of `csv`


@dataclass(frozen=True, kw_only=True)
class CocoConfig:
    """COCO captions, 2014 or 2017, as the official JSON or Karpathy's split file."""

    images: str = ""
    """Folder that holds the images, or train2014/, val2014/, train2017/ ... with them."""
    annotations: dict[str, str] = field(default_factory=dict)
    """Official captions_*.json of each split, e.g. {train: captions_train2014.json}."""
    karpathy: str | None = None
    """Karpathy's dataset_coco.json; it then gives captions and splits and `annotations` must be empty."""


@dataclass(frozen=True, kw_only=True)
class ParquetConfig:
    """Parquet files of images and captions, such as Hugging Face data sets are."""

    files: dict[str, list[str]] = field(default_factory=dict)
    """Files, folders or patterns of each split, e.g. {train: [data/train-*.parquet]}."""
    image_column: str = "image"
    """Column of the image: its bytes, a struct<bytes, path>, or its path below `images`."""
    caption_column: str = "caption"
    """Column of the caption, a text or a list of texts."""
    image_id_column: str | None = None
    """Column of the image's id, rows of one id being one image; none: the path, or each row its own."""
    split_column: str | None = None
    """Column of the split; none means that `files` names it."""
    images: str | None = None
    """Folder of the images; for a column of paths only."""


@dataclass(frozen=True, kw_only=True)
class WebdatasetConfig:
    """Tar shards: files of one name before their suffix are a sample."""

    shards: dict[str, list[str]] = field(default_factory=dict)
    """Tar files, folders or patterns of each split, e.g. {train: ["DIR/train-{000..099}.tar"]}."""
    json_field: str | None = None
    """Field of a sample's JSON file with its caption or captions, e.g. caption, meta.caption of nested
    objects, captions.text of a list of objects; none takes a text file."""
    caption_suffix: str | None = None
    """Suffix of a sample's file with the caption, e.g. caption or outputs.txt; none takes txt, or json where
    `json_field` is set."""
    caption_per_line: bool = True
    """Whether each line of a text file is a caption; false: the whole file is one caption."""
    image_suffixes: list[str] = field(default_factory=lambda: ["jpg", "jpeg", "png", "webp"])
    """Suffixes that make a file the sample's image, e.g. inputs.jpg; the first that a sample has counts."""

    def __post_init__(self) -> None:
        require(bool(self.image_suffixes), "webdataset.image_suffixes", self.image_suffixes, "at least one")


@dataclass(frozen=True, kw_only=True)
class DeglaJsonConfig:
    """DeGLA's released data: a JSON list of {image_id, original, enhanced}, negatives with the captions."""

    images: str = ""
    """Folder that holds the images under the names of `pattern`."""
    annotations: dict[str, str] = field(default_factory=dict)
    """JSON file of each split, e.g. {train: FILE}."""
    pattern: str = "train2014/COCO_train2014_%012d.jpg"
    """An image's name below `images`, with %d or the like for its image_id; COCO's other names are tried."""
    min_negatives: int = 4
    """Rows with fewer texts in `enhanced` are rejected."""

    def __post_init__(self) -> None:
        try:
            ok = self.pattern % 1 != self.pattern % 2
        except (TypeError, ValueError):
            ok = False
        require(ok, "degla_json.pattern", self.pattern, "one number, e.g. train2014/COCO_train2014_%012d.jpg")
        require(self.min_negatives >= 0, "degla_json.min_negatives", self.min_negatives, ">= 0")


@dataclass(frozen=True, kw_only=True)
class NegclipTsvConfig:
    """NegCLIP's training files, negatives with the captions."""

    images: str = ""
    """Folder that the file's paths start from, or COCO's own folder."""
    annotations: dict[str, str] = field(default_factory=dict)
    """TSV file of each split, e.g. {train: train_neg_clip.tsv, val: valid_neg_clip.tsv}."""


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Job `prepare`: a source becomes images + captions (+ rejects)."""

    source: Literal["scenes", "csv", "flickr8k", "coco", "parquet", "webdataset", "degla_json", "negclip_tsv"]
    """Which source; its settings stand under the same name. `flickr8k` is another name of `csv`."""
    output: str
    """Folder to write, any URI pyarrow opens."""
    scenes: ScenesConfig = field(default_factory=ScenesConfig)
    csv: CsvConfig = field(default_factory=CsvConfig)
    flickr8k: Flickr8kConfig = field(default_factory=Flickr8kConfig)
    coco: CocoConfig = field(default_factory=CocoConfig)
    parquet: ParquetConfig = field(default_factory=ParquetConfig)
    webdataset: WebdatasetConfig = field(default_factory=WebdatasetConfig)
    degla_json: DeglaJsonConfig = field(default_factory=DeglaJsonConfig)
    negclip_tsv: NegclipTsvConfig = field(default_factory=NegclipTsvConfig)
    num_shards: int = 8
    """Shards that the work is cut into; a resumed run redoes at most the unfinished ones."""
    short_side: int | None = None
    """Re-encode larger images to this short side in pixels; none keeps the files as they are."""
    max_image_pixels: int = 89_478_485
    """An image with more pixels than this is rejected before it is decoded."""
    max_reject_fraction: float = 0.05
    """Stop when more than this fraction of the rows is rejected."""
    follow_links: bool = False
    """Follow links deep in a folder of images out of it; one that is directly in the folder always is."""
    limit: int | None = None
    """Use only so many images of the source, the first of each split in proportion; none uses all."""
    ray: RayConfig = field(default_factory=RayConfig)

    def __post_init__(self) -> None:
        require(self.num_shards >= 1, "num_shards", self.num_shards, "at least 1")
        require(0 <= self.max_reject_fraction <= 1, "max_reject_fraction", self.max_reject_fraction, "0 to 1")
        require(self.limit is None or self.limit >= 1, "limit", self.limit, "at least 1, or none")
        require(
            self.short_side is None or self.short_side >= 1,
            "short_side",
            self.short_side,
            "at least 1 pixel, or none",
        )
        require(self.max_image_pixels >= 1, "max_image_pixels", self.max_image_pixels, "at least 1")


@dataclass(frozen=True, kw_only=True)
class ExportDeglaJsonConfig:
    """Job `export_degla_json`: captions and their negatives as DeGLA's released JSON."""

    negatives: str
    """Folder that `negatives` wrote."""
    prepared: str
    """Folder that `prepare` wrote and `negatives` was made from; its images are COCO's."""
    output: str
    """JSON file to write, any URI pyarrow opens."""
    split: str = "train"
    """Split whose captions are written."""
    min_negatives: int = 4
    """Captions with fewer negatives are left out; the released training code draws 4."""
    seed: int = 0
    """Decides the order of a caption's negatives, in which kinds take turns: the code reads the first 4."""

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
