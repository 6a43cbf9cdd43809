"""Each run has a folder of its own."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mmcoref.errors import UserError
from mmcoref.run.folder import only_writer, run_folder_under, typed, versions
from mmcoref.run.signals import SIGNALS


def test_runs_that_start_together_get_different_folders(tmp_path: Path) -> None:
    from mmcoref.run.folder import _claim

    with ThreadPoolExecutor(16) as pool:
        claimed = list(pool.map(lambda _: _claim(tmp_path / "logs"), range(64)))
    assert len(set(claimed)) == 64
    assert [number for number, _ in versions(tmp_path / "logs")] == list(range(63, -1, -1))


def test_an_unused_folder_is_removed_and_a_used_one_stays(tmp_path: Path) -> None:
    with run_folder_under(tmp_path / "logs") as folder:
        assert folder == tmp_path / "logs" / "version_0"
    assert list(tmp_path.iterdir()) == []
    with run_folder_under(tmp_path / "logs") as folder:
        (folder / "record.json").touch()
    with run_folder_under(tmp_path / "logs") as other:
        assert other.name == "version_1"
    assert [path.name for path in (tmp_path / "logs").iterdir()] == ["version_0"]


def test_a_process_of_the_same_run_gets_the_same_folder(tmp_path: Path) -> None:
    with run_folder_under(tmp_path) as folder, run_folder_under(tmp_path) as again:
        assert again == folder
        assert os.environ["MMCOREF_RUN_FOLDER"] == str(folder)
    assert "MMCOREF_RUN_FOLDER" not in os.environ


def test_versions_are_ordered_by_number(tmp_path: Path) -> None:
    for name in ("version_2", "version_10", "version_9", "version_x", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "version_11").touch()
    assert [number for number, _ in versions(tmp_path)] == [10, 9, 2]
    assert versions(tmp_path / "nowhere") == []


def test_a_path_is_shown_as_it_is_typed_from_here(tmp_path: Path) -> None:
    assert typed(Path("a/b.ckpt")) == "a/b.ckpt"
    assert typed(tmp_path / "a b.ckpt") == "'a b.ckpt'"  # tests run in tmp_path
    assert typed(Path("/elsewhere/last.ckpt")) == "/elsewhere/last.ckpt"


def test_two_processes_do_not_train_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with only_writer(tmp_path):
        with only_writer(tmp_path):  # a process of the same run
            pass
        monkeypatch.delenv("MMCOREF_LOCKED_FOLDER")
        with pytest.raises(UserError, match="another process is training this run"), only_writer(tmp_path):
            pass
    with only_writer(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_a_signal_ends_at_once_leaves_no_unused_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def end() -> None:
        for action in SIGNALS.at_end:
            action()

    monkeypatch.setattr(SIGNALS, "at_end", [])
    with run_folder_under(tmp_path / "logs") as folder, only_writer(folder):
        end()
        assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(SIGNALS, "at_end", [])
    with run_folder_under(tmp_path / "logs") as folder, only_writer(folder):
        (folder / "config.yaml").touch()
        end()
        assert sorted(path.name for path in folder.iterdir()) == [".lock", "config.yaml"]
