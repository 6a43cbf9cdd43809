"""A run that is asked to stop does so at the next safe place, and what it saved goes on as if nothing had happened."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mmcoref.cli import main
from mmcoref.model.module import MMCorefModule

CPU = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.enable_progress_bar", "false"]
LAST = Path("lightning_logs/version_0/checkpoints/last.ckpt")


@pytest.fixture
def arguments(llama_folder: Path, data_file: Path) -> list[str]:
    """A fit of 7 records in 2 epochs of 2 steps, with a validation of 2 batches after each."""
    return [
        *("--model.name", str(llama_folder), "--data.path", str(data_file), *CPU),
        *("--data.val_size", "2", "--data.batch_size", "4", "--data.eval_batch_size", "1"),
        *("--trainer.max_epochs", "2", "--model.warmup_steps", "2", "--model.lr", "1e-2"),
    ]


def loaded(path: Path) -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(path, weights_only=True)
    return checkpoint


def validation_curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of each measure of the validation part, of all processes that wrote into the folder."""
    points: dict[str, list[tuple[int, float]]] = {}
    for file in sorted(folder.glob("events*")):
        events = EventAccumulator(str(file))
        events.Reload()
        for tag in events.Tags()["scalars"]:
            if tag.startswith("val/"):
                points.setdefault(tag, []).extend((event.step, event.value) for event in events.Scalars(tag))
    return points


@pytest.mark.parametrize(
    ("epoch", "batch"),
    [
        pytest.param(0, 0, id="in the first batch of the first"),
        pytest.param(0, None, id="before the first", marks=pytest.mark.slow),
        pytest.param(0, 1, id="in the last batch of the first", marks=pytest.mark.slow),
        pytest.param(1, None, id="before the last", marks=pytest.mark.slow),
        pytest.param(1, 0, id="in the first batch of the last", marks=pytest.mark.slow),
        pytest.param(1, 1, id="in the last batch of the last", marks=pytest.mark.slow),
    ],
)
def test_a_fit_stopped_at_a_validation_does_it_again_whole(
    arguments: list[str], epoch: int, batch: int | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", *arguments, "--trainer.default_root_dir", "straight"]) == 0
    validate, clip = MMCorefModule.validation_step, MMCorefModule.configure_gradient_clipping
    seen: list[tuple[int, int]] = []
    told = [False]

    def validation_step(self: MMCorefModule, rows: Any, number: int) -> Any:
        seen.append((self.trainer.current_epoch, number))
        if (self.trainer.current_epoch, number) == (epoch, batch) and not told[0]:
            told[0] = True
            os.kill(os.getpid(), signal.SIGTERM)
        return validate(self, rows, number)

    def clipped(self: MMCorefModule, *args: Any, **kwargs: Any) -> None:
        if batch is None and self.trainer.is_last_batch and self.trainer.current_epoch == epoch and not told[0]:
            told[0] = True
            os.kill(os.getpid(), signal.SIGTERM)
        clip(self, *args, **kwargs)

    monkeypatch.setattr(MMCorefModule, "validation_step", validation_step)
    monkeypatch.setattr(MMCorefModule, "configure_gradient_clipping", clipped)
    assert main(["fit", *arguments]) == 143
    said = capsys.readouterr().err
    assert f"stopped at step {2 * epoch + 2}, checkpoint saved; resume with: mmcoref fit --ckpt_path {LAST}" in said
    assert seen == [(0, 0), (0, 1)] * epoch + [(epoch, number) for number in range((batch or 0) + 1)]
    seen.clear()
    assert main(["fit", "--ckpt_path", str(LAST)]) == 0
    assert seen == [(one, number) for one in range(epoch, 2) for number in (0, 1)]
    straight, resumed = loaded("straight" / LAST), loaded(LAST)
    for checkpoint in (straight, resumed):
        checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"].pop("total")  # counts the one that was interrupted
    assert straight["loops"] == resumed["loops"]
    assert all(torch.equal(straight["state_dict"][name], weights) for name, weights in resumed["state_dict"].items())
    curves = validation_curves(Path("straight/lightning_logs/version_0"))
    assert len(curves["val/likelihood_accuracy"]) == 2
    assert validation_curves(Path("lightning_logs/version_0")) == curves


@pytest.mark.parametrize(
    ("program", "step", "number"),
    [("test", "test_step", signal.SIGTERM), ("validate", "validation_step", signal.SIGINT), ("predict", "predict_step", signal.SIGHUP)],
)
def test_other_programs_stop_after_their_batch_and_write_nothing(
    arguments: list[str], program: str, step: str, number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = getattr(MMCorefModule, step)
    seen: list[int] = []

    def signalled(self: MMCorefModule, rows: Any, place: int) -> Any:
        seen.append(place)
        if place == 1:
            os.kill(os.getpid(), number)
        return answer(self, rows, place)

    monkeypatch.setattr(MMCorefModule, step, signalled)
    assert main([program, *arguments[:-6]]) == 128 + number
    printed = capsys.readouterr()
    assert "stopped after 2 batches; nothing was written" in printed.err
    assert "Traceback" not in printed.err
    assert printed.out == ""
    assert seen == [0, 1]
    written = [path.name for path in Path("lightning_logs/version_0").iterdir()]
    assert not {"record.json", "predictions.jsonl", "eval_test.txt"} & set(written)
