"""What is spooled comes back, whatever the disk says at whatever moment."""

from __future__ import annotations

import errno
import itertools
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmcoref.run.spool import Spool


@given(
    pieces=st.lists(st.binary(max_size=9), max_size=12),
    in_memory=st.integers(0, 40),
    disk=st.integers(0, 60),
    reads=st.booleans(),
)
def test_all_bytes_come_back_from_memory_a_file_or_a_full_disk(pieces: list[bytes], in_memory: int, disk: int, reads: bool) -> None:
    written = [0]

    class File:
        """A file on a disk with so many bytes, which takes a part of what does not fit."""

        def __init__(self, **_: Any) -> None:
            self._file = open(os.memfd_create("disk"), "r+b", buffering=0)  # noqa: SIM115

        def fileno(self) -> int:
            return self._file.fileno()

        def write(self, data: memoryview) -> int:
            fits = min(len(data), disk - written[0])
            if data and not fits:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            written[0] += fits
            return self._file.write(data[:fits])

        def close(self) -> None:
            self._file.close()

    spool, ends = Spool(in_memory), [0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "TemporaryFile", File)
        for piece in pieces:
            spool.append(piece)
            ends.append(ends[-1] + len(piece))
            if reads:
                assert spool.read(ends[-2], ends[-1]) == piece
    assert [spool.read(start, end) for start, end in itertools.pairwise(ends)] == pieces
    if spool._file is not None:
        spool._file.close()


def test_beyond_its_memory_it_is_in_a_file_that_has_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    spool = Spool(10)
    for _ in range(5):
        spool.append(b"12345")
    assert spool._file is not None
    assert os.fstat(spool._file.fileno()).st_size == 25
    assert list(tmp_path.iterdir()) == []
    spool._file.close()
