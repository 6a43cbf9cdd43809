"""Files are whole or not there, whatever the disk says, and the sentence tells the cases apart."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmcoref import atomic
from mmcoref.atomic import remove_abandoned, temporary_of, whole_bytes, whole_text, write_text
from mmcoref.errors import UserError
from mmcoref.run.checkpoint import AtomicCheckpointIO


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Have the kernel refuse what would make any file larger."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> Iterator[type]:
    """A raw file whose writes fail with `number`, by the same way as the kernel's refusals."""

    class Refusing(atomic._Raw):
        number = errno.ENOSPC

        def write(self, data: object, /) -> int:
            with self._remembered():
                raise OSError(self.number, os.strerror(self.number))

    monkeypatch.setattr(atomic, "_Raw", Refusing)
    return Refusing


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_whole_when_its_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "runs" / "a.txt"
    with whole_text(target) as file:
        file.write("하나\r\n")
        assert not target.exists()
        file.write("둘\n")
    assert target.read_bytes() == "하나\r\n둘\n".encode()
    assert names(target.parent) == ["a.txt"]


def test_an_error_of_the_writer_leaves_what_was_there_and_is_not_told_as_the_disks(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")

    def write() -> None:
        with whole_text(target) as file:
            file.write("new")
            Path("nothing").read_text()

    with pytest.raises(FileNotFoundError):
        write()
    assert (target.read_text(), names(tmp_path)) == ("old", ["a.txt"])


@given(pieces=st.lists(st.integers(0, 40_000), max_size=6), limit=st.integers(1, 60_000), old=st.booleans())
def test_there_is_the_old_file_or_the_new_one_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[int], limit: int, old: bool
) -> None:
    target = tmp_path_factory.mktemp("law") / "a.bin"
    if old:
        target.write_bytes(b"old")
    told = False
    try:
        with largest_file(limit), whole_bytes(target) as file:
            for piece in pieces:
                file.write(b"x" * piece)
    except UserError:
        told = True
    assert told == (sum(pieces) > limit)
    if not told:
        assert target.read_bytes() == b"x" * sum(pieces)
    elif old:
        assert target.read_bytes() == b"old"
    assert names(target.parent) == ["a.bin"] * (old or not told)


@pytest.mark.parametrize(
    ("number", "said", "unsaid"),
    [
        (errno.ENOSPC, "the disk is full", "permission"),
        (errno.EDQUOT, "your quota of that disk is used up; remove files of yours", "make room"),
        (errno.EACCES, "permission denied; get the permission to write in", "make room"),
        (errno.EPERM, "permission denied", "make room"),
        (errno.EROFS, "the disk is read-only; choose another folder", "make room"),
        (errno.ENOENT, "is not there any more", "make room"),
        (errno.EFBIG, "larger than is allowed; raise the limit", "make room"),
        (errno.EIO, "Input/output error", "make room"),
    ],
)  # fmt: skip
def test_the_sentence_tells_what_the_disk_says(tmp_path: Path, refusing: type, number: int, said: str, unsaid: str) -> None:
    refusing.number = number  # type: ignore[attr-defined]
    target = tmp_path / "record.json"
    with pytest.raises(UserError) as told:
        write_text(target, "x", option="--out", then="And so on.")
    sentence = str(told.value)
    assert sentence.startswith(f"{target}: could not be written: ")
    assert said in sentence
    assert unsaid not in sentence
    assert sentence.endswith("choose another folder with --out. And so on.")
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_told_likewise(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(UserError, match="a file is where its folder should be"):
        write_text(tmp_path / "runs" / "version_0" / "a.txt", "x")


def test_a_folder_that_is_removed_meanwhile_is_told_likewise(tmp_path: Path) -> None:
    target = tmp_path / "runs" / "a.txt"

    def write() -> None:
        with whole_text(target) as file:
            file.write("x")
            temporary_of(target).unlink()
            target.parent.rmdir()

    with pytest.raises(UserError, match="is not there any more"):
        write()


def test_a_checkpoint_names_the_cause_that_torch_forgets(tmp_path: Path, refusing: type) -> None:
    target = tmp_path / "last.ckpt"
    target.write_bytes(b"old")
    refusing.number = errno.EROFS  # type: ignore[attr-defined]
    with pytest.raises(UserError) as told:
        AtomicCheckpointIO().save_checkpoint({"weights": torch.zeros(100_000)}, target)
    assert "the disk is read-only" in str(told.value)
    assert str(told.value).endswith("The checkpoint before it is whole: resume with --ckpt_path last.")
    assert (target.read_bytes(), names(tmp_path)) == (b"old", ["last.ckpt"])


def test_what_is_renamed_has_been_synced_and_its_folder_is_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(number: int) -> None:
        done.append(f"sync {Path(os.readlink(f'/proc/self/fd/{number}')).name}")
        fsync(number)

    def replaced(old: Path, new: Path) -> None:
        done.append("rename")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    target = tmp_path / "a.txt"
    write_text(target, "x")
    assert done == [f"sync {temporary_of(target).name}", "rename", f"sync {tmp_path.name}"]


def gone() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_only_what_nobody_writes_any_more_is_removed(tmp_path: Path) -> None:
    mine, host = temporary_of(tmp_path / "last.ckpt"), atomic._host()
    dead = gone()
    day_ago = time.time() - 25 * 60 * 60
    ours = {mine.name: False, f".last.ckpt.tmp-{host}-{dead}": True, f".last.ckpt.tmp-{host}-1": False}
    theirs = {".last.ckpt.tmp-elsewhere-7": False, ".best.ckpt.tmp-elsewhere-8": True}
    others = {"last.ckpt": False, "notes.tmp-file": False, f"last.ckpt.tmp-{dead}": True}
    for name in ours | theirs | others:
        (tmp_path / name).write_text("x")
    for old in (".best.ckpt.tmp-elsewhere-8", f"last.ckpt.tmp-{dead}", "last.ckpt"):
        os.utime(tmp_path / old, (day_ago, day_ago))
    folder = tmp_path / f".sharded.ckpt.tmp-{host}-{dead}"
    folder.mkdir()
    (folder / "__0_0.distcp").write_text("x")
    removed = remove_abandoned(tmp_path)
    expected = {name for name, goes in (ours | theirs | others).items() if goes} | {folder.name}
    assert {path.name for path in removed} == expected
    assert set(names(tmp_path)) == (ours | theirs | others).keys() - expected
    assert remove_abandoned(tmp_path / "nowhere") == []


def test_another_machines_folder_is_alive_while_a_file_in_it_is(tmp_path: Path) -> None:
    folder = tmp_path / ".last.ckpt.tmp-elsewhere-7"
    folder.mkdir()
    (folder / "__0_0.distcp").write_text("x")
    day_ago = time.time() - 25 * 60 * 60
    os.utime(folder, (day_ago, day_ago))
    assert remove_abandoned(tmp_path) == []
