"""A disk that refuses a file costs that file: the checkpoint and what was computed are kept, and one sentence names the file."""

from __future__ import annotations

import errno
import os
import re
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.compat.tensorflow_stub.io import gfile

from mmcoref import atomic
from mmcoref.atomic import CannotWrite, write_text
from mmcoref.cli import main
from mmcoref.run.curves import tolerate
from mmcoref.run.files import link
from mmcoref.run.folder import run_folder_under
from mmcoref.run.rescue import keep

CPU = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.enable_progress_bar", "false"]
RUN = Path("lightning_logs/version_0")
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def refuse(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Have the disk refuse files of these names below the current folder."""
    here = Path.cwd()

    class Refusing(atomic._Raw):
        def write(self, data: Any, /) -> int:
            if Path(str(self.name)).absolute().is_relative_to(here) and any(f".{name}.tmp-" in str(self.name) for name in names):
                with self._remembered():
                    raise FULL
            return super().write(data)

    monkeypatch.setattr(atomic, "_Raw", Refusing)


@pytest.fixture
def elsewhere(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files, on another disk."""
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_a_fit_outlives_its_curves(
    llama_folder: Path, data_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    append = gfile.LocalFileSystem.append
    written: list[int] = []

    def full(self: Any, filename: Any, content: bytes, binary_mode: bool = False) -> None:
        written.append(len(content))
        if len(written) > 5:
            append(self, filename, content[:7], binary_mode)
            raise FULL
        append(self, filename, content, binary_mode)

    monkeypatch.setattr(gfile.LocalFileSystem, "append", full)
    options = ["--model.name", str(llama_folder), "--data.path", str(data_file), "--trainer.max_epochs", "3", *CPU]
    assert main(["fit", *options]) == 0
    assert len(written) == 6
    said = capsys.readouterr().err
    assert said.count("No more curves are written; the run continues.") == 1
    assert re.search(r"version_0/events\S*: could not be written: the disk is full .*; make room", said)
    assert "Traceback" not in said
    assert torch.load(RUN / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 15


def test_any_logger_is_dropped_at_its_first_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=1)
    tolerate([logger])
    logger.log_metrics({"a": 1.0}, 0)
    table = Path(logger.log_dir) / "metrics.csv"
    before = table.read_text()
    table.unlink()
    table.mkdir()  # in the file's place
    logger.log_metrics({"a": 2.0}, 1)
    table.rmdir()
    logger.log_metrics({"a": 3.0}, 2)
    logger.finalize("success")
    assert before.splitlines() == ["a,step", "1.0,0"]
    assert not table.exists()


def test_a_logger_that_works_works_as_before(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, version="version_0")
    tolerate([logger])
    logger.log_hyperparams({"lr": 1e-3})
    logger.save()
    assert Path(logger.log_dir, "hparams.yaml").read_text() == "lr: 0.001\n"
    logger.finalize("success")


def test_no_half_written_settings_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(file: str, hparams: Any) -> None:
        Path(file).write_text("lr: 0.")
        raise FULL

    monkeypatch.setattr("lightning.pytorch.loggers.tensorboard.save_hparams_to_yaml", half)
    logger = TensorBoardLogger(tmp_path, version="version_0")
    tolerate([logger])
    logger.log_hyperparams({"lr": 1e-3})
    logger.save()
    logger.finalize("success")
    assert not Path(logger.log_dir, "hparams.yaml").exists()


def test_what_a_test_has_answered_is_printed_and_kept_elsewhere(
    llama_folder: Path, data_file: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    refuse(monkeypatch, "predictions.jsonl", "record.json")
    assert main(["test", "--model.name", str(llama_folder), "--data.path", str(data_file), *CPU]) == 2
    printed = capsys.readouterr()
    assert "object_accuracy" in printed.out
    (kept,) = elsewhere.iterdir()
    assert sorted(path.name for path in kept.iterdir()) == ["predictions.jsonl", "record.json"]
    assert len((kept / "predictions.jsonl").read_text("utf-8").splitlines()) == 3
    assert "predictions.jsonl: could not be written: the disk is full" in printed.err
    assert f"Kept instead, to be moved there: {kept}/predictions.jsonl, {kept}/record.json" in printed.err
    assert "Traceback" not in printed.err
    written = {path.name for path in RUN.iterdir()}
    assert "eval_test.txt" in written
    assert not {"predictions.jsonl", "record.json"} & written
    assert not [name for name in written if "tmp" in name]


def test_what_no_disk_takes_is_said_so(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    refuse(monkeypatch, "a.txt")
    with pytest.raises(CannotWrite, match=r"a\.txt: could not be written: .* Nor could a\.txt be kept elsewhere \(.*the disk is full"):
        keep(elsewhere / "run", {"a.txt": partial(write_text, text="x"), "b.txt": partial(write_text, text="y")})
    assert (elsewhere / "run" / "b.txt").read_text() == "y"


def test_a_generated_file_is_whole_or_not_there(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    refuse(monkeypatch, "new.json")
    assert main(["sample", "--n", "50", "--out", "new.json"]) == 2
    assert "new.json: could not be written: the disk is full" in capsys.readouterr().err
    assert list(Path().iterdir()) == []


def test_a_second_name_that_the_disk_refuses_leaves_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise FULL

    last, best = tmp_path / "last.ckpt", tmp_path / "best.ckpt"
    last.write_text("new")
    best.write_text("old")
    monkeypatch.setattr(os, "link", fails)
    monkeypatch.setattr("shutil.copy2", fails)
    with pytest.raises(CannotWrite, match=r"best\.ckpt: could not be written: the disk is full .*last\.ckpt is whole\."):
        link(last, best)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"last.ckpt": "new", "best.ckpt": "old"}


def test_a_run_that_cannot_have_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file")
    with pytest.raises(CannotWrite, match="a file is where its folder should be"), run_folder_under(tmp_path / "logs"):
        pass
