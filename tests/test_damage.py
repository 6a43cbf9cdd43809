"""Files of a run, cut short or with a bit turned: whatever reads them works, or says in one sentence what is wrong."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import mmcoref
from mmcoref.cli import main
from mmcoref.errors import USER_ERROR_EXIT, UserError
from tests.conftest import dialogue

_FIT, _TEST = "lightning_logs/version_0", "lightning_logs/version_1"
_CPU = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.enable_progress_bar", "false"]
_LAST = f"{_FIT}/checkpoints/last.ckpt"


def _load(folder: str) -> int:
    """Ask the model of a run."""
    try:
        mmcoref.load(folder)(dialogue(0))
    except UserError:
        return USER_ERROR_EXIT
    return 0


_READERS: dict[str, Callable[[], int]] = {
    "load": lambda: _load(_FIT),
    "load a test": lambda: _load(_TEST),
    "compare": lambda: main(["compare", _TEST]),
    "plan": lambda: main(["plan", "--config", f"{_FIT}/config.yaml"]),
    "fit": lambda: main(["fit", "--ckpt_path", _LAST, "--trainer.max_epochs", "2", *_CPU]),
    "fit from the last": lambda: main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "2", *_CPU]),
    "fit with its config": lambda: main(["fit", "--config", f"{_FIT}/config.yaml", "--trainer.fast_dev_run", "1", *_CPU]),
    "test": lambda: main(["test", "--ckpt_path", _LAST, *_CPU]),
    "test the best": lambda: main(["test", "--ckpt_path", "best", *_CPU]),
}
# What of a run is read by what; the first of each in the fast tier, too, as it takes no time.
_READ_BY = {
    f"{_FIT}/checkpoints/last.ckpt": ("load", "load a test", "fit", "fit from the last", "test"),
    f"{_FIT}/checkpoints/best.ckpt": ("test the best", "fit"),
    f"{_FIT}/config.yaml": ("plan", "fit with its config", "fit"),
    f"{_FIT}/hparams.yaml": ("fit", "test"),
    f"{_FIT}/events.*": ("fit",),
    f"{_TEST}/record.json": ("compare", "load a test"),
    f"{_TEST}/predictions.jsonl": ("compare",),
    f"{_TEST}/eval_test.txt": ("compare",),
}
_QUICK = {"load", "compare"}


@pytest.fixture(scope="module")
def run(llama_folder: Path, data_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fit with a validation part, and a test of it."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        fit = ["fit", "--model.name", str(llama_folder), "--data.path", str(data_file), "--data.val_size", "2", "--trainer.max_epochs", "1"]
        assert main([*fit, *_CPU]) == 0
        assert main(["test", "--ckpt_path", _LAST, *_CPU]) == 0
    return folder


def _damaged(whole: bytes, flips: int) -> Iterator[bytes]:
    """The bytes of a file cut short at several lengths, with a stretch of zeros, and with single bits turned."""
    for length in (0, 1, len(whole) // 2, len(whole) - 1):
        yield whole[:length]
    draw = random.Random(len(whole))
    at = draw.randrange(len(whole))
    yield whole[:at] + bytes(len(whole[at : at + 16])) + whole[at + 16 :]
    for _ in range(flips):
        at, bit = draw.randrange(len(whole)), draw.randrange(8)
        yield whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :]


def _check(run: Path, pattern: str, reader: str, flips: int, capsys: pytest.CaptureFixture[str]) -> Counter[int]:
    """Damage a file in many ways and read it; every reader works or refuses."""
    codes: Counter[int] = Counter()
    (original,) = run.glob(pattern)
    file = original.relative_to(run)
    for damaged in _damaged(original.read_bytes(), flips):
        shutil.rmtree("lightning_logs", ignore_errors=True)
        shutil.copytree(run / "lightning_logs", "lightning_logs")
        file.write_bytes(damaged)
        capsys.readouterr()
        code = _READERS[reader]()
        error = capsys.readouterr().err
        assert code in (0, USER_ERROR_EXIT, 1 if reader == "plan" else 0), error
        assert error.count("mmcoref: error: ") == (code == USER_ERROR_EXIT and not reader.startswith("load")), error
        assert "Traceback" not in error
        codes[code] += 1
    return codes


@pytest.mark.parametrize("pattern", [pattern for pattern, readers in _READ_BY.items() if readers[0] in _QUICK])
def test_a_damaged_file_is_read_or_refused(pattern: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    codes = _check(run, pattern, _READ_BY[pattern][0], 8, capsys)
    refused = {"eval_test.txt": 0}.get(pattern.rpartition("/")[2], 3)  # which is for people, and read by nothing
    assert codes[USER_ERROR_EXIT] >= refused
    assert sum(codes.values()) == 13


@pytest.mark.slow
@pytest.mark.parametrize(("pattern", "reader"), [(pattern, reader) for pattern, readers in _READ_BY.items() for reader in readers])
def test_a_damaged_file_is_read_or_refused_by_everything(pattern: str, reader: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _check(run, pattern, reader, 200 if reader in _QUICK else 10, capsys)


@pytest.fixture(scope="module")
def sharded_run(llama_folder: Path, data_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fit whose checkpoint is a folder."""
    folder = tmp_path_factory.mktemp("sharded")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        fit = ["fit", "--model.name", str(llama_folder), "--data.path", str(data_file), "--trainer.max_epochs", "1"]
        assert main([*fit, "--trainer.strategy", "sharded", *_CPU]) == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("file", [".metadata", "meta.pt", "*.distcp", "SHA256SUMS"])
@pytest.mark.parametrize("reader", ["load", "test"])
def test_a_damaged_file_of_a_sharded_checkpoint_is_read_or_refused(
    file: str, reader: str, sharded_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _check(sharded_run, f"{_LAST}/{file}", reader, 12, capsys)[USER_ERROR_EXIT] >= 12
