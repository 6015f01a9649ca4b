"""Sources of images and captions, one file per format; base.py defines the interface."""

from __future__ import annotations

from degla_ray.config import PrepareConfig
from degla_ray.sources.base import Source


def open_source(config: PrepareConfig) -> Source:
    """Return the source that `config.source` names, built from its settings.

    Raises:
        SettingError: a folder or file named in the settings does not exist.
    """
    # Imported on demand, so that a job loads only the libraries of its own source.
    follow_links = config.follow_links
    if config.source in ("csv", "flickr8k"):
        from degla_ray.sources.csv_captions import CsvSource

        return CsvSource(getattr(config, config.source), config.source, follow_links)
    if config.source == "coco":
        from degla_ray.sources.coco import CocoSource

        return CocoSource(config.coco, follow_links)
    if config.source == "parquet":
        from degla_ray.sources.parquet import ParquetSource

        return ParquetSource(config.parquet, follow_links)
    if config.source == "webdataset":
        from degla_ray.sources.webdataset import WebdatasetSource

        return WebdatasetSource(config.webdataset)
    if config.source == "degla_json":
        from degla_ray.sources.degla_json import DeglaJsonSource

        return DeglaJsonSource(config.degla_json, follow_links)
    if config.source == "negclip_tsv":
        from degla_ray.sources.negclip_tsv import NegclipTsvSource

        return NegclipTsvSource(config.negclip_tsv, follow_links)
    from degla_ray.sources.scenes.source import ScenesSource

    return ScenesSource(config.scenes)
