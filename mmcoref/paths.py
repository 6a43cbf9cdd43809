"""Paths as users write them."""

from __future__ import annotations

import os
from pathlib import Path


def user_path(path: str | Path) -> Path:
    """Give a path with the home folder for a leading `~`.

    A shell does so for some words and not for others (`--data.path=~/x`), and nobody does it in a config.

    Args:
        path: as the user wrote it. `~name` of a user that is unknown stays a folder's name, as in a shell.
    """
    return Path(os.path.expanduser(path))
