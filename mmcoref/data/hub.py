"""Model name -> local folder: the user's own, or the hub's cache, into which one process of a machine downloads at a time."""

from __future__ import annotations

import hashlib
from pathlib import Path

from filelock import FileLock
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from mmcoref.atomic import cannot_write
from mmcoref.errors import UserError, first_line
from mmcoref.paths import user_path

_TEXT = ["*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken"]  # config, tokenizer, chat template, index of the weights
_WEIGHTS = ["*.safetensors"]
_ELSEWHERE = ["*/*"]  # Llama's repositories hold the weights a second time, in folders


def fetch(name: str, *, weights: bool = False) -> Path:
    """The folder of a model's config and tokenizer, and of its weights if asked for.

    The processes of a machine take turns, so that the first one downloads and the others find what it left.

    Args:
        name: a folder, or a hub name.
        weights: whether the safetensors files are needed.

    Raises:
        UserError: the hub does not give it, and the cache does not have it.
    """
    folder = user_path(name)
    if folder.is_dir():
        return folder
    cache = Path(constants.HF_HUB_CACHE)
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(cache, error, "Models are kept there.", option="HF_HOME") from None
    patterns = [*_TEXT, *(_WEIGHTS if weights else [])]
    turn = cache / f".mmcoref-{hashlib.sha256(name.encode()).hexdigest()[:16]}.lock"
    try:
        with FileLock(turn):
            return Path(snapshot_download(name, allow_patterns=patterns, ignore_patterns=_ELSEWHERE))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise UserError(f"model.name {name!r}: cannot be downloaded from {constants.ENDPOINT}: {first_line(error)}") from None
