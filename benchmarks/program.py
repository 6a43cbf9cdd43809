"""What the benchmarks' command lines share."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

from mmcoref.errors import USER_ERROR_EXIT, UserError


def told(program: str, body: Callable[[], int]) -> int:
    """The exit code of a program's body; a mistake of the user's is told in a sentence, and is 2."""
    try:
        return body()
    except UserError as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        return USER_ERROR_EXIT


def peers_module(peer: str, module: str) -> Any:
    """A module of a peer's, or one that it brings.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UserError(f"{peer} is missing ({error}); install it with: python -m pip install -e '.[bench]'") from None
