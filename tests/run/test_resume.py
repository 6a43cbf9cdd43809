"""A resumed run keeps what it had, and follows what it is given: setting by setting, whatever the moment of the kill."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mmcoref.cli import main
from mmcoref.data.batch import TrainBatch
from mmcoref.errors import UserError
from mmcoref.model import module as module_file
from mmcoref.model.module import MMCorefModule
from mmcoref.run import callbacks
from mmcoref.run.callbacks import Checkpoints, TimeLimit
from mmcoref.run.checkpoint import Stored, find_last, read_stored
from mmcoref.run.resume import _FIXED, inherit

LAST = Path("lightning_logs/version_0/checkpoints/last.ckpt")
BEST = LAST.with_name("best.ckpt")
SCORES = {2: 0.25, 4: 0.75, 6: 0.5, 8: 0.75}  # by optimizer step: the best is the one of step 4


class Killed(BaseException):
    """A process that ends at once."""


@pytest.fixture
def arguments(llama_folder: Path, data_file: Path) -> list[str]:
    """A fit of 7 records in steps of 4: 2 optimizer steps an epoch, of 2 and 2 micro-batches; 2 records choose."""
    return [
        *("--model.name", str(llama_folder), "--data.path", str(data_file), "--data.batch_size", "2"),
        *("--data.micro_batch_size", "2", "--data.val_size", "2", "--model.warmup_steps", "2", "--model.lr", "1e-2"),
        *("--trainer.max_epochs", "4", "--trainer.accumulate_grad_batches", "2", "--trainer.accelerator", "cpu"),
        *("--trainer.devices", "1", "--trainer.enable_progress_bar", "false", "--model.val_generate", "false"),
    ]


@pytest.fixture(autouse=True)
def _scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each validation the score of its step; what a model of a few steps scores never changes."""

    def log(self: MMCorefModule) -> None:
        name = "val/object_accuracy" if self.hparams["val_generate"] else "val/likelihood_accuracy"
        self.log(name, SCORES[self.trainer.global_step])

    monkeypatch.setattr(MMCorefModule, "on_validation_epoch_end", log)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The ids of each micro-batch that is trained on, in order."""
    seen: list[list[int]] = []
    loss = module_file.target_loss_sum

    def watched(lm: Any, batch: TrainBatch) -> Any:
        seen.append(batch.input_ids.flatten().tolist())
        return loss(lm, batch)

    monkeypatch.setattr(module_file, "target_loss_sum", watched)
    return seen


def load(path: Path) -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(path, weights_only=True)
    return checkpoint


def fit(*argv: str) -> None:
    assert main(["fit", *argv]) == 0


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    capsys.readouterr()
    assert main(list(argv)) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error.rpartition("error: ")[2]


# ---------------------------------------------------------------------- killed at any moment


def _after_save(self: Checkpoints, trainer: Any) -> None:
    callbacks_save(self, trainer)
    if trainer.global_step == 4:
        raise Killed


def _in_validation(self: MMCorefModule, batch: Any, batch_idx: int) -> None:
    if self.trainer.global_step == 4:
        raise Killed


def _before_link(source: Path, target: Path) -> None:
    if read_stored(source).step == 4:
        raise Killed
    callbacks_link(source, target)


def _after_link(source: Path, target: Path) -> None:
    callbacks_link(source, target)
    if read_stored(source).step == 4:
        raise Killed


callbacks_save, callbacks_link = Checkpoints.save, callbacks.link
KILLS: dict[str, tuple[Any, str, Any]] = {
    "after the checkpoint is written": (Checkpoints, "save", _after_save),
    "in the validation": (MMCorefModule, "validation_step", _in_validation),
    "before best.ckpt is named": (callbacks, "link", _before_link),
    "after best.ckpt is named": (callbacks, "link", _after_link),
}


@pytest.mark.parametrize("moment", KILLS)
def test_a_kill_around_a_validation_changes_nothing(
    arguments: list[str], moment: str, trained: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(*arguments, "--trainer.default_root_dir", "straight")
    straight = list(trained)
    trained.clear()
    with monkeypatch.context() as patched:
        patched.setattr(*KILLS[moment])
        with pytest.raises(Killed):
            main(["fit", *arguments])
    fit("--ckpt_path", "last")
    assert trained == straight
    for name in ("last.ckpt", "best.ckpt"):
        mine, other = load(LAST.with_name(name)), load(Path("straight", LAST.with_name(name)))
        assert mine["global_step"] == other["global_step"] == {"last.ckpt": 8, "best.ckpt": 4}[name]
        assert mine["callbacks"]["Checkpoints"] == other["callbacks"]["Checkpoints"]
        assert all(torch.equal(mine["state_dict"][key], value) for key, value in other["state_dict"].items())
    events = EventAccumulator("lightning_logs/version_0").Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(8))


def test_a_resumed_run_keeps_its_best_in_another_folder_too(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    fit(*arguments, "--trainer.max_epochs", "3")
    fit("--ckpt_path", str(LAST), "--trainer.default_root_dir", "other", "--trainer.max_epochs", "4")
    assert load(Path("other", BEST))["global_step"] == 4
    assert load(Path("other", LAST))["global_step"] == 8
    assert load(LAST)["global_step"] == 6  # the original run is as it was
    assert "--ckpt_path other/lightning_logs/version_0/checkpoints/best.ckpt" in capsys.readouterr().err


def test_an_earlier_checkpoint_continues_in_a_folder_of_its_own(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    fit(*arguments, "--trainer.max_epochs", "3")
    fit("--ckpt_path", str(BEST))
    assert "has newer checkpoints than best.ckpt" in capsys.readouterr().err
    assert (load(LAST)["global_step"], load(BEST)["global_step"]) == (6, 4)
    assert load(Path("lightning_logs/version_1/checkpoints/last.ckpt"))["global_step"] == 6


def test_the_newest_checkpoint_is_the_one_with_most_steps(arguments: list[str]) -> None:
    fit(*arguments, "--trainer.max_epochs", "3")
    os.utime(BEST, (2**33, 2**33))
    assert find_last(Path("lightning_logs")) == LAST
    assert find_last(Path("lightning_logs"), best=True) == BEST
    LAST.rename(LAST.with_name("epoch=2.ckpt"))
    assert find_last(Path("lightning_logs")) == LAST.with_name("epoch=2.ckpt")


@pytest.mark.parametrize(
    "fewer", [["--trainer.limit_val_batches", "0"], ["--trainer.check_val_every_n_epoch", "4"]], ids=["none", "rarely"]
)
def test_a_run_resumed_without_its_validation_trains_each_record_once_an_epoch(
    arguments: list[str], fewer: list[str], trained: list[list[int]]
) -> None:
    fit(*arguments, "--trainer.max_epochs", "3", "--trainer.default_root_dir", "straight")
    straight = list(trained)
    trained.clear()
    fit(*arguments, "--trainer.max_epochs", "2")
    fit("--ckpt_path", "last", "--trainer.max_epochs", "3", *fewer)
    assert trained == straight
    steps = [event.step for event in EventAccumulator("lightning_logs/version_0").Reload().Scalars("train/loss")]
    assert steps == list(range(6))


# ---------------------------------------------------------------------- ended inside an epoch


def test_an_epoch_cut_by_max_steps_is_finished_on_resume(arguments: list[str], trained: list[list[int]]) -> None:
    fit(*arguments, "--trainer.default_root_dir", "straight")
    straight = list(trained)
    trained.clear()
    fit(*arguments, "--trainer.max_steps", "3")
    assert len(trained) == 6
    fit("--ckpt_path", "last", "--trainer.max_steps", "-1")
    assert trained == straight
    assert load(LAST)["global_step"] == 8


def test_max_time_ends_a_start_after_a_step_and_is_not_inherited(
    arguments: list[str], trained: list[list[int]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(*arguments, "--trainer.default_root_dir", "straight")
    straight = list(trained)
    trained.clear()
    with monkeypatch.context() as patched:
        patched.setattr(TimeLimit, "time_elapsed", lambda self, stage=None: 4.0 * len(trained))
        fit(*arguments, "--trainer.max_time", "00:00:00:10")
    assert len(trained) == 4  # two micro-batches a step; the time was over after the third
    assert "stopped at step 2: the time of --trainer.max_time is over" in capsys.readouterr().err
    fit("--ckpt_path", "last")
    assert trained == straight
    assert "not taken over from the checkpoint: trainer.max_time" in capsys.readouterr().err


# ---------------------------------------------------------------------- setting by setting


def test_what_is_given_on_resume_is_used_and_recorded(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    fit(*arguments, "--trainer.max_steps", "3")
    given = ["--model.lr", "4e-2", "--model.weight_decay", "0.5", "--trainer.gradient_clip_val", "0.25", "--checkpoint.every_n_steps", "1"]
    fit("--ckpt_path", "last", "--trainer.max_steps", "4", *given)
    said = capsys.readouterr().err
    assert "model.lr: 0.04 (given now) instead of 0.01 (checkpoint)" in said
    assert "not taken over" not in said
    checkpoint = load(LAST)
    groups = checkpoint["optimizer_states"][0]["param_groups"]
    assert [(group["initial_lr"], group["weight_decay"]) for group in groups] == [(0.04, 0.5), (0.04, 0.0)]
    stored = checkpoint["mmcoref_config"]
    assert (stored["model"]["lr"], stored["model"]["weight_decay"]) == (0.04, 0.5)
    assert (stored["trainer"]["gradient_clip_val"], stored["checkpoint"]["every_n_steps"]) == (0.25, 1)
    rates = [event.value for event in EventAccumulator("lightning_logs/version_0").Reload().Scalars("train/lr")]
    # Step 3 has the factor that it would have had, 0 of 3 steps, so that the schedule is the one of 4 steps.
    assert rates == pytest.approx([5e-3, 1e-2, 1e-2, 4e-2 * 0.5])


def test_a_run_given_other_steps_continues_its_rate_and_ends_at_the_new_end(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    fit(*arguments, "--checkpoint.every_n_steps", "1", "--trainer.max_steps", "8")
    straight = [event.value for event in EventAccumulator("lightning_logs/version_0").Reload().Scalars("train/lr")]
    assert straight == pytest.approx([1e-2 * factor for factor in (1 / 2, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6)])
    shutil.rmtree("lightning_logs")

    def dies(self: MMCorefModule, batch: Any, batch_idx: int) -> None:
        if self.trainer.global_step == 5:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(MMCorefModule, "on_train_batch_start", dies, raising=False)
        with pytest.raises(Killed):
            main(["fit", *arguments, "--checkpoint.every_n_steps", "1", "--trainer.max_steps", "8"])
    fit("--ckpt_path", "last", "--trainer.max_steps", "6")
    rates = [event.value for event in EventAccumulator("lightning_logs/version_0").Reload().Scalars("train/lr")]
    assert rates == pytest.approx(straight[:6])  # step 5 has the rate that it would have had; step 6 would have none
    fit("--ckpt_path", "last", "--trainer.max_steps", "7")
    assert EventAccumulator("lightning_logs/version_0").Reload().Scalars("train/lr")[-1].value > 0


def test_patience_is_the_one_given_and_a_stopped_run_stays_stopped(
    arguments: list[str], trained: list[list[int]], capsys: pytest.CaptureFixture[str]
) -> None:
    fit(*arguments, "--checkpoint.patience", "1")
    assert load(LAST)["global_step"] == 6  # step 4 is the best, step 6 is worse
    count = len(trained)
    for _ in range(2):
        fit("--ckpt_path", "last")
        assert "stopped after epoch 3: val/likelihood_accuracy has not been above 0.7500 for 1 validations" in capsys.readouterr().err
    assert len(trained) == count
    fit("--ckpt_path", "last", "--checkpoint.patience", "2")
    assert load(LAST)["global_step"] == 8
    assert load(BEST)["global_step"] == 4


def test_a_best_epoch_by_another_metric_is_chosen_anew(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    fit(*arguments, "--trainer.max_epochs", "3")
    fit("--ckpt_path", "last", "--trainer.max_epochs", "4", "--model.val_generate", "true")
    assert "best.ckpt is chosen anew: its scores were val/likelihood_accuracy" in capsys.readouterr().err
    assert load(BEST)["global_step"] == 8
    assert load(LAST)["callbacks"]["Checkpoints"]["scores"] == [[6, 0.5]]


@pytest.mark.parametrize("name", _FIXED)
def test_what_a_run_has_decided_cannot_be_changed(arguments: list[str], name: str, capsys: pytest.CaptureFixture[str]) -> None:
    fit(*arguments, "--trainer.max_steps", "1")
    other = {"data.prompt": "chat", "data.recipe": "published"}
    said = refused(capsys, "fit", "--ckpt_path", "last", f"--{name}", other.get(name, "3"))
    assert f"--{name}" in said
    assert "start a new run without --ckpt_path" in said


def test_no_program_takes_other_adapters_than_the_checkpoints(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    fit(*arguments, "--trainer.max_steps", "1", "--model.lora_rank", "2")
    for program, option, other in (
        ("fit", "--model.lora_rank", "4"),
        ("test", "--model.lora_rank", "4"),
        ("predict", "--model.lora_rank", "0"),
        ("test", "--model.lora_alpha", "1"),
        ("validate", "--model.lora_targets", "[q_proj]"),
    ):
        said = refused(capsys, program, "--ckpt_path", "last", option, other)
        assert f"{option} {other}" in said.replace("['q_proj']", "[q_proj]").replace("1.0:", "1:")
        assert "the checkpoint has" in said


# ---------------------------------------------------------------------- runs that are not mixed up


@pytest.mark.parametrize(
    "place",
    [
        ["--trainer.default_root_dir", "other root"],
        ["--trainer.logger", "false"],
        ["--trainer.logger", "lightning.pytorch.loggers.CSVLogger", "--trainer.logger.save_dir", "csv"],
    ],
    ids=["root", "no logger", "csv"],
)
def test_the_command_that_a_fit_names_tests_that_fit(arguments: list[str], place: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    import shlex

    short = ["--trainer.max_steps", "1", "--trainer.limit_val_batches", "0"]
    fit(*arguments, *short, "--model.lr", "1e-3")  # another run, at the default place
    fit(*arguments, *short, *place)
    command = capsys.readouterr().err.rpartition("next: mmcoref ")[2].strip()
    assert main([*shlex.split(command), "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]) == 0
    newest = max(Path("lightning_logs").glob("*/record.json"), key=lambda file: file.stat().st_mtime_ns)
    assert json.loads(newest.read_text("utf-8"))["training"]["model"]["lr"] == 1e-2


def test_two_runs_without_a_logger_do_not_meet(arguments: list[str]) -> None:
    for _ in range(2):
        fit(*arguments, "--trainer.max_steps", "1", "--trainer.logger", "false")
    assert sorted(path.parent.parent.name for path in Path().rglob("last.ckpt")) == ["version_0", "version_1"]
    assert Path("lightning_logs/version_1/config.yaml").is_file()


def test_two_loggers_write_into_one_folder(arguments: list[str]) -> None:
    Path("two.yaml").write_text(
        "trainer:\n  logger:\n"
        "  - class_path: lightning.pytorch.loggers.TensorBoardLogger\n    init_args: {save_dir: .}\n"
        "  - class_path: lightning.pytorch.loggers.CSVLogger\n    init_args: {save_dir: .}\n",
        "utf-8",
    )
    fit(*arguments, "--trainer.max_steps", "2", "--config", "two.yaml")
    [folder] = Path("lightning_logs").iterdir()
    assert {"metrics.csv", "checkpoints", "config.yaml"} <= {path.name for path in folder.iterdir()}
    assert list(folder.glob("events.*"))
    assert load(LAST)["mmcoref_config"]["trainer"]["logger"][0]["init_args"]["version"] is None  # not for another run


# ---------------------------------------------------------------------- settings of a checkpoint from someone else


@pytest.fixture
def planted(arguments: list[str]) -> Callable[..., None]:
    fit(*arguments, "--trainer.max_steps", "1")

    def plant(**trainer: Any) -> None:
        checkpoint = load(LAST)
        checkpoint["mmcoref_config"]["trainer"] |= trainer
        torch.save(checkpoint, LAST)

    return plant


class Marker:
    """A class that a checkpoint must not be able to have made."""

    made = 0

    def __init__(self, **_: Any) -> None:
        Marker.made += 1


@pytest.mark.parametrize("name", ["callbacks", "plugins", "logger", "profiler", "strategy"])
def test_no_class_is_made_that_a_checkpoint_names(planted: Callable[..., None], name: str, capsys: pytest.CaptureFixture[str]) -> None:
    marker = {"class_path": f"{__name__}.Marker", "init_args": {}}
    planted(**{name: [marker] if name in ("callbacks", "plugins", "logger") else marker})
    fit("--ckpt_path", "last", "--trainer.max_steps", "2")
    assert Marker.made == 0
    assert f"not taken over from the checkpoint: trainer.{name}" in capsys.readouterr().err


def test_a_value_of_another_type_is_refused() -> None:
    for section, name, value in (("model", "lr", "fast"), ("data", "batch_size", [2]), ("checkpoint", "patience", {"a": 1})):
        stored = Stored(Path("x.ckpt"), {section: {name: value}}, 0, {}, {}, None, None)
        with pytest.raises(UserError, match=rf"x\.ckpt: holds .* as {section}\.{name}, which is not of its type"):
            inherit(stored, "fit")
    with pytest.raises(UserError, match="as settings of model"):
        inherit(Stored(Path("x.ckpt"), {"model": [1]}, 0, {}, {}, None, None), "fit")
