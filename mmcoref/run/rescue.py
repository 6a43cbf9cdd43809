"""Results that took hours to compute are kept when the disk of their run refuses them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from mmcoref.atomic import CannotWrite
from mmcoref.text import printable


def keep(folder: Path, writers: Mapping[str, Callable[[Path], object]]) -> None:
    """Write the files of a run's results into its folder; what the disk refuses goes into a temporary folder.

    Args:
        folder: of the run.
        writers: file name -> what writes that file, whole or not at all, under the path that it is given. It may be asked twice.

    Raises:
        CannotWrite: a file could not be written into the folder; the sentence says where it is instead, if anywhere.
    """
    refused: dict[str, CannotWrite] = {}
    for name, write in writers.items():
        try:
            write(folder / name)
        except CannotWrite as error:
            refused[name] = error
    if not refused:
        return
    first = next(iter(refused.values()))
    try:
        other = Path(tempfile.mkdtemp(prefix=f"mmcoref-{folder.name}-"))
        for name in refused:
            writers[name](other / name)
    except (OSError, CannotWrite) as error:
        raise CannotWrite(f"{first} Nor could {', '.join(refused)} be kept elsewhere ({error}).") from error
    raise CannotWrite(f"{first} Kept instead, to be moved there: {', '.join(printable(other / name) for name in refused)}") from first
