"""What a run says where it would have been silent, or would have said what is not so."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers.utils import logging as transformers_logging

import mmcoref
from mmcoref.cli import main
from mmcoref.data.file import read_records
from mmcoref.errors import USER_ERROR_EXIT, UserError
from mmcoref.model.module import MMCorefModule
from mmcoref.paths import user_path
from mmcoref.run.quiet import quiet


@pytest.fixture
def base(llama_folder: Path, data_file: Path) -> list[str]:
    settings = ["--model.name", str(llama_folder), "--data.path", str(data_file), "--trainer.accelerator", "cpu"]
    return [*settings, "--trainer.devices", "1", "--trainer.enable_progress_bar", "false", "--trainer.max_epochs", "1"]


def test_a_trial_run_says_so_and_names_no_checkpoint(base: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", *base, "--trainer.max_epochs", "2", "--trainer.max_steps", "2"]) == 0
    capsys.readouterr()
    assert main(["fit", *base, "--trainer.max_epochs", "2", "--trainer.fast_dev_run", "1", "--ckpt_path", "last"]) == 0
    said = capsys.readouterr().err
    assert "trainer.fast_dev_run: a trial of 1 batch; nothing is written\n" in said
    assert "next: mmcoref test" not in said
    assert main(["test", *base, "--trainer.fast_dev_run", "2"]) == 0
    assert "trainer.fast_dev_run: a trial of 2 batches; nothing is written\n" in capsys.readouterr().err


@pytest.mark.parametrize("program", ["fit", "test"])
def test_a_profile_is_written_into_the_runs_folder(program: str, base: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([program, *base, "--trainer.profiler", "simple"]) == 0
    assert "trainer.profiler: writes to lightning_logs/version_0 when the run ends\n" in capsys.readouterr().err
    text = Path(f"lightning_logs/version_0/{program}-profile.txt").read_text("utf-8")
    assert {"fit": "training_step", "test": "test_step"}[program] in text


def test_what_a_callback_of_lightnings_refuses_in_a_run_is_a_sentence(base: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    stop = ["--trainer.callbacks", "EarlyStopping", "--trainer.callbacks.monitor", "loss"]
    assert main(["fit", *base, *stop]) == USER_ERROR_EXIT
    error = capsys.readouterr().err
    assert "mmcoref: error: trainer.callbacks: Early stopping conditioned on metric `loss` which is not available." in error
    assert error.splitlines()[-1].startswith("mmcoref: error: ")


def test_a_validation_by_time_is_a_validation(base: list[str]) -> None:
    assert main(["fit", *base, "--trainer.val_check_interval", "00:00:00:01"]) == 0


@pytest.mark.parametrize("terminal", [True, False])
def test_weights_are_loaded_without_bars_where_standard_error_is_a_log(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers_logging, "_tqdm_active", True)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    quiet()
    assert transformers_logging.is_progress_bar_enabled() is terminal
    monkeypatch.setattr(transformers_logging, "_tqdm_active", False)


def test_a_loss_that_is_nan_suggests_a_precision_only_if_there_is_a_better_one() -> None:
    for precision, hint in (("16-mixed", "--trainer.precision 32-true"), ("32-true", "--trainer.precision 64-true"), ("64-true", "")):
        module = MMCorefModule()
        module._trainer = SimpleNamespace(global_step=0, precision=precision)
        with pytest.raises(UserError) as caught:
            module._look_at(float("nan"), skips=False)
        assert str(caught.value).endswith(f", with {hint}." if hint else "lower --model.lr.")


# ---------------------------------------------------------------------- the home folder


def test_a_path_begins_at_the_home_folder_if_a_shell_would_have_it_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert user_path("~/a/~/b") == Path("/home/someone/a/~/b")
    assert user_path("~no_such_user/a") == Path("~no_such_user/a")
    assert user_path("a/~") == Path("a/~")


def test_files_are_found_in_the_home_folder_by_every_way_in(
    data_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(data_file.parent))
    assert len(read_records("~/twelve.json").records) == 12
    assert main(["audit", "~/twelve.json"]) == 0
    assert main(["sample", "--n", "2", "--out", "~/twelve.json"]) == USER_ERROR_EXIT
    assert f"{data_file}: exists already" in capsys.readouterr().err
    assert main(["compare", "~/run"]) == USER_ERROR_EXIT
    assert f"{data_file.parent}/run: no such run folder" in capsys.readouterr().err
    with pytest.raises(UserError, match=f"{data_file.parent}/run: no such run"):
        mmcoref.load("~/run")
