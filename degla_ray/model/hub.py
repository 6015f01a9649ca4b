"""Download a model's repository from the Hugging Face Hub as a local folder: `hf-hub:ORG/REPO`."""

from __future__ import annotations

import json
from pathlib import Path

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
)

from degla_ray.errors import DataError, one_line
from degla_ray.model.files import CLIP_MODEL_WEIGHTS, INDEX_SUFFIX, OPEN_CLIP_WEIGHTS
from degla_ray.model.source import HUB

_SMALL_FILES = ("*.json", "*.txt", "*.model")  # configs and tokenizer files; never *.py


def hub_folder(repository: str) -> Path:
    """Return the folder in the Hub's local cache with a repository's configs, tokenizer and weights.

    Args:
        repository: `ORG/REPO` or `ORG/REPO@REVISION`.

    Raises:
        DataError: the repository does not exist or has no weights, or the Hub is unreachable and the files
            are not in the cache.
    """
    repo, _, revision = repository.partition("@")
    try:
        folder = Path(snapshot_download(repo, revision=revision or None, allow_patterns=list(_SMALL_FILES)))
        for name in (*OPEN_CLIP_WEIGHTS, *CLIP_MODEL_WEIGHTS):
            if not (folder / name).is_file() and not _download(repo, name, revision):
                continue
            if name.endswith(INDEX_SUFFIX):
                for file in sorted(set(json.loads((folder / name).read_bytes())["weight_map"].values())):
                    hf_hub_download(repo, file, revision=revision or None)
            return folder
    except (OSError, HfHubHTTPError, HFValidationError, ValueError, KeyError) as error:
        raise DataError(
            f"{HUB}{repository}", f"no download ({one_line(error)})", "a reachable Hub"
        ) from error
    expected = f"one of {', '.join((*OPEN_CLIP_WEIGHTS, *CLIP_MODEL_WEIGHTS))}"
    raise DataError(f"{HUB}{repository}", "no weights", expected)


def _download(repo: str, name: str, revision: str) -> bool:
    """Download a file; return False if the repository (or, offline, the cache) has no such file."""
    try:
        hf_hub_download(repo, name, revision=revision or None)
    except LocalEntryNotFoundError:  # offline and not in the cache: another weights file may be
        return False
    except EntryNotFoundError:
        return False
    return True
