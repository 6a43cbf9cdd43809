"""Standard output: any encoding, a full disk, a reader that has gone; the command as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmcoref.cli import main
from mmcoref.errors import USER_ERROR_EXIT

_ROOT = Path(__file__).parent.parent.parent
_SHORT = "from mmcoref import cli; cli.main = lambda: print('≥ 한 \\ud800', '—' * {n}) or {code}; cli.command()"


def python(code: str, *, output: str | None = None, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """A process that prints; `command` without torch, which takes no time."""
    settings = os.environ | {"PYTHONPATH": str(_ROOT)} | environment
    if output is None:
        return subprocess.run([sys.executable, "-c", code], capture_output=True, env=settings, check=False)
    with Path(output).open("wb") as file:
        return subprocess.run([sys.executable, "-c", code], stdout=file, stderr=subprocess.PIPE, env=settings, check=False)


@pytest.mark.parametrize("encoding", ["ascii", "euc-kr", "cp949", "latin-1", "utf-8"])
def test_output_in_any_encoding_loses_no_text_and_no_run(encoding: str) -> None:
    done = python(_SHORT.format(n=1, code=0), PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, b"")
    out = done.stdout.decode(encoding)
    assert out.encode("ascii", "backslashreplace") == rb"\u2265 \ud55c \ud800 \u2014" + b"\n" or "≥" in out
    assert r"\ud800" in out
    assert ("한" in out) is (encoding in ("euc-kr", "cp949", "utf-8"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("n", [1, 100_000])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_under_the_output_is_one_sentence(n: int, unbuffered: str) -> None:
    done = python(_SHORT.format(n=n, code=0), output="/dev/full", PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == USER_ERROR_EXIT
    assert done.stderr == (
        b"mmcoref: error: standard output could not be written (No space left on device); what was printed is lost, "
        b"files that were written are not.\n"
    )
    assert python(_SHORT.format(n=n, code=1), output="/dev/full").returncode == 1  # what it has to say comes first


def test_a_reader_that_has_gone_ends_the_command_quietly() -> None:
    code = "import time; time.sleep(0.3); " + _SHORT.format(n=1, code=0)
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(_ROOT), "PYTHONUNBUFFERED": ""},  # or it would be written in `main`, which is not ours here
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(60) == 141


def test_an_option_before_the_program_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", "x.yaml", "fit"]) == USER_ERROR_EXIT
    assert "--config: options come after the program, such as in `mmcoref fit --config …`" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "cp949"])
def test_a_whole_run_in_any_encoding(encoding: str, llama_folder: Path, data_file: Path) -> None:
    base = ["--model.name", str(llama_folder), "--data.path", str(data_file), "--trainer.accelerator", "cpu", "--trainer.devices", "1"]
    settings = os.environ | {"PYTHONPATH": str(_ROOT), "PYTHONIOENCODING": encoding}

    def mmcoref(*argv: str, output: str = "out") -> bytes:
        with Path(output).open("wb") as out:
            done = subprocess.run([sys.executable, "-m", "mmcoref", *argv], stdout=out, stderr=subprocess.PIPE, env=settings, check=False)
        assert b"Traceback" not in done.stderr, done.stderr
        assert done.returncode == (USER_ERROR_EXIT if output == "/dev/full" else 0), done.stderr
        return done.stderr

    mmcoref("fit", *base, "--trainer.max_epochs", "1", "--trainer.enable_progress_bar", "true")
    mmcoref("test", *base, "--ckpt_path", "last")
    mmcoref("audit", str(data_file))
    mmcoref("compare", "lightning_logs/version_1")
    mmcoref("plan", *base)
    assert b"standard output could not be written" in mmcoref("test", *base, "--ckpt_path", "last", output="/dev/full")
    assert Path("lightning_logs/version_2/record.json").is_file()
