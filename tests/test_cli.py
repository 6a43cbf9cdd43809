"""The command line as a user meets it, in one process; several processes are in test_processes.py."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mmcoref import __version__, atomic
from mmcoref.cli import main
from mmcoref.data.file import dump_records, read_records
from mmcoref.data.record import Record
from mmcoref.errors import USER_ERROR_EXIT, UserError
from mmcoref.model.module import SKIPPED_STEPS, MMCorefModule
from mmcoref.run import progress
from mmcoref.run.callbacks import Checkpoints
from mmcoref.run.checkpoint import read_stored
from tests.conftest import published_path

Mmcoref = Callable[..., int]


@pytest.fixture
def arguments(llama_folder: Path, data_file: Path) -> list[str]:
    """A fit of 9 records in windows of 4: 3 optimizer steps an epoch, of 2, 2 and 1 micro-batches."""
    return [
        *("--model.name", str(llama_folder), "--data.path", str(data_file), "--data.batch_size", "2"),
        *("--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.enable_progress_bar", "false"),
        *("--trainer.max_epochs", "2", "--trainer.accumulate_grad_batches", "2", "--model.warmup_steps", "2", "--model.lr", "1e-2"),
    ]


CPU = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Runs a command that must exit with 2 and one message; gives the message."""
    capsys.readouterr()
    try:
        code = main(list(argv))
    except SystemExit as exit_:  # jsonargparse's own way
        code = int(str(exit_.code))
    error = capsys.readouterr().err
    assert code == 2
    assert "Traceback" not in error
    assert "usage:" not in error
    return error.rpartition("error: ")[2].strip()


def read(path: str) -> Any:
    return json.loads(Path(path).read_text("utf-8"))


def weights(path: str = "lightning_logs/version_0/checkpoints/last.ckpt") -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return state


# ---------------------------------------------------------------------- without torch


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_help_and_version_answer_in_under_a_second_and_load_nothing_heavy(argument: str) -> None:
    program = f"import sys; from mmcoref.cli import main; main(['{argument}']); print('torch' in sys.modules, 'lightning' in sys.modules)"
    start = time.perf_counter()
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert out.endswith("False False\n")
    assert time.perf_counter() - start < 1
    assert __version__ in out or "predict" in out


def test_the_module_is_the_command() -> None:
    out = subprocess.run([sys.executable, "-m", "mmcoref", "--version"], capture_output=True, text=True, check=True).stdout
    assert out == f"mmcoref {__version__}\n"


def test_an_unknown_program_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, "train").startswith("'train': no such program; there are fit, validate, test, predict")


def test_sample_writes_records_in_the_published_form(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "--n", "20", "--seed", "5", "--out", "sample.json"]) == 0
    assert all(isinstance(item, str) for item in read("sample.json"))
    assert len(read_records("sample.json").records) == 20
    assert "exists already" in refused(capsys, "sample", "--out", "sample.json")
    for n in ("1", "-1", "1000000000000"):
        assert "at least 2 records and at most 10,000,000" in refused(capsys, "sample", "--n", n, "--out", "other.json")


# ---------------------------------------------------------------------- fit and what it leaves


def test_the_first_line_of_a_fit_says_records_split_tokens_batch_and_steps(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", *arguments]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("12 records, train/test 9/3; tokens mean ")
    assert lines[0].endswith("; 4 records an optimizer step; 6 steps (2 epochs of 3)")
    assert any("test_curve" in line and "as the published report did" in line for line in lines)


def test_a_run_that_ends_within_its_warm_up_is_said_loudly(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", *arguments, "--model.warmup_steps", "60", "--trainer.max_epochs", "1"]) == 0
    assert "ends after 3 optimizer steps, within its 60 warm-up steps: the learning rate reaches 5 %" in capsys.readouterr().err


def test_tensorboard_has_loss_rate_norm_speed_and_the_accuracies_of_each_epoch(arguments: list[str]) -> None:
    assert main(["fit", *arguments]) == 0
    events = EventAccumulator("lightning_logs/version_0").Reload()
    tags = events.Tags()["scalars"]
    assert "hp_metric" not in tags
    for name in ("train/loss", "train/lr", "train/grad_norm", "train/tokens_per_second"):
        assert len(events.Scalars(name)) == 6, name
    for name in ("object_accuracy", "photo_accuracy", "exact_match"):
        assert len(events.Scalars(f"test_curve/{name}")) == 2, name
    assert [event.value for event in events.Scalars("train/lr")] == pytest.approx([5e-3, 1e-2, 1e-2, 7.5e-3, 5e-3, 2.5e-3])


def test_a_validation_part_is_logged_under_its_own_name_and_chooses_the_best(arguments: list[str]) -> None:
    assert main(["fit", *arguments, "--data.val_size", "2"]) == 0
    tags = EventAccumulator("lightning_logs/version_0").Reload().Tags()["scalars"]
    assert "val/object_accuracy" in tags
    assert not [tag for tag in tags if tag.startswith("test_curve")]
    assert sorted(path.name for path in Path("lightning_logs/version_0/checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    assert main(["test", "--ckpt_path", "best", *CPU]) == 0


def test_a_fit_goes_on_only_in_steps_of_as_many_records(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", *arguments]) == 0
    capsys.readouterr()
    again = ["fit", "--ckpt_path", "last", "--trainer.max_epochs", "3"]
    assert main([*again, "--trainer.accumulate_grad_batches", "4"]) == USER_ERROR_EXIT
    said = "steps have 4 records, and those of this fit would have 8: --trainer.accumulate_grad_batches 2 keeps them"
    assert said in capsys.readouterr().err
    assert main([*again, "--data.batch_size", "1", "--trainer.accumulate_grad_batches", "4"]) == 0
    assert "step 9, checkpoint" in capsys.readouterr().err


def test_what_is_wrong_around_a_run_is_told_before_anything_is_read(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    said = refused(capsys, "test", *arguments, "--trainer.default_root_dir", str(tmp_path / "file"))
    assert "no run can be written there" in said
    started = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}
    for name, value in started.items():
        monkeypatch.setenv(name, value)
    assert "torchrun has started 2 processes" in refused(capsys, "fit", *arguments)


def test_a_fit_whose_loss_is_no_number_ends(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    wild = ["--model.lr", "1e30", "--model.warmup_steps", "0", "--trainer.gradient_clip_val", "0"]
    assert main(["fit", *arguments, *wild]) == USER_ERROR_EXIT
    assert re.search(r"error: train/loss is (nan|inf) at optimizer step [2-6], .* lower --model\.lr, or compute", capsys.readouterr().err)


def test_steps_that_loss_scaling_skips_do_not_end_a_fit_at_once() -> None:
    module = MMCorefModule()
    module._trainer = SimpleNamespace(global_step=0, precision="16-mixed")
    for _ in range(3):
        for _ in range(SKIPPED_STEPS):
            module._look_at(math.inf, skips=True)
        module._look_at(1.0, skips=True)
    for _ in range(SKIPPED_STEPS):
        module._look_at(math.nan, skips=True)
    with pytest.raises(UserError, match="train/loss is nan at optimizer step 1"):
        module._look_at(math.nan, skips=True)


def test_a_fit_ends_when_no_epoch_gets_better_and_says_which_was_the_best(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    still = ["--model.lr", "0", "--trainer.max_epochs", "20"]  # no epoch changes anything
    still += ["--data.val_size", "2", "--checkpoint.patience", "2"]
    assert main(["fit", *arguments, *still]) == 0
    said = capsys.readouterr().err
    assert "stopped after epoch 3: val/object_accuracy has not been above" in said
    best = re.search(r"has not been above (0\.\d{4}) for 2 validations; a higher --checkpoint\.patience", said)
    assert best is not None
    assert said.endswith(f"/best.ckpt: val/object_accuracy {best[1]} at step 2\n")
    folder = Path("lightning_logs/version_0/checkpoints")
    assert torch.load(folder / "last.ckpt", weights_only=True)["epoch"] == 2
    assert torch.load(folder / "best.ckpt", weights_only=True)["epoch"] == 0
    assert "hold one out with --data.val_size" in refused(capsys, "fit", *arguments, "--checkpoint.patience", "2")


def test_the_split_of_a_window_is_kept_in_the_checkpoint(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", *arguments, "--trainer.max_epochs", "1"]) == 0
    assert "micro-batches of 4 records in one row, 1 a step on each process" in capsys.readouterr().err
    stored = torch.load("lightning_logs/version_0/checkpoints/last.ckpt", weights_only=True)["mmcoref_config"]
    assert stored["data"]["micro_batch_size"] == 4
    assert stored["model"]["gradient_checkpointing"] is False
    assert stored["trainer"]["accumulate_grad_batches"] == 2  # as the settings say: the window is theirs
    assert main(["fit", "--ckpt_path", "lightning_logs/version_0", "--trainer.max_epochs", "2", "--data.micro_batch_size", "1"]) == 0
    said = capsys.readouterr().err
    assert "data.micro_batch_size: 1 (given now) instead of 4 (checkpoint)" in said
    assert "micro-batches of 1 record, 4 a step on each process" in said


def test_sixteen_mixed_is_float16_with_loss_scaling_on_the_cpu_too(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    from mmcoref.model import module as module_file

    loss = module_file.target_loss_sum

    def watched(lm: Any, batch: Any) -> Any:
        plugin = lm_trainer[0].precision_plugin
        seen.append((type(plugin), plugin.scaler.get_scale() > 1, torch.get_autocast_dtype("cpu")))
        assert torch.is_autocast_enabled("cpu")
        return loss(lm, batch)

    lm_trainer: list[Any] = []
    monkeypatch.setattr(Checkpoints, "setup", lambda self, trainer, *_, **__: lm_trainer.append(trainer), raising=False)
    monkeypatch.setattr(module_file, "target_loss_sum", watched)
    assert main(["fit", *arguments, "--trainer.precision", "16-mixed"]) == 0
    assert set(seen) == {(MixedPrecision, True, torch.float16)}


# ---------------------------------------------------------------------- test and predict from a checkpoint alone


def test_a_checkpoint_alone_rebuilds_model_tokenizer_data_and_settings(
    arguments: list[str], llama_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(llama_folder, mine)
    arguments[1] = str(mine)
    assert main(["fit", *arguments, "--data.max_tokens", "400", "--data.val_size", "2", "--seed_everything", "7"]) == 0
    shutil.rmtree(mine)  # neither weights nor tokenizer are left
    assert main(["test", "--ckpt_path", "lightning_logs/version_0/checkpoints/last.ckpt", *CPU]) == 0
    record = read("lightning_logs/version_1/record.json")
    assert record["config"]["data"]["max_tokens"] == 400
    assert record["config"]["model"]["lr"] == 1e-2
    assert record["seed"] == 7
    assert record["split"] == {"train": 7, "val": 2, "test": 3}
    assert record["n"] == 3
    assert not record["partial"]
    last = tmp_path / "lightning_logs/version_0/checkpoints/last.ckpt"
    assert record["checkpoint"] == {"path": str(last), "step": 4, "digest": read_stored(last).digest}


def test_the_command_line_wins_over_the_checkpoint_out_loud(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", *arguments]) == 0
    capsys.readouterr()
    assert main(["test", "--ckpt_path", "last", "--model.max_new_tokens", "3", "--data.limit", "2", *CPU]) == 0
    said = capsys.readouterr().err
    assert "model.max_new_tokens: 3 (given now) instead of None (checkpoint)" in said
    assert "data.limit: 2 (given now) instead of None (checkpoint)" in said
    assert "data.batch_size" not in said
    record = read("lightning_logs/version_1/record.json")
    assert (record["n"], record["partial"], record["max_new_tokens"]) == (2, True, 3)
    lines = [json.loads(line) for line in Path("lightning_logs/version_1/predictions.jsonl").read_text("utf-8").splitlines()]
    assert record["cut"] == sum(not line["stopped"] for line in lines) > 0


def test_another_model_than_the_checkpoints_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", *arguments]) == 0
    error = refused(capsys, "test", "--ckpt_path", "last", "--model.name", "tiny", *CPU)
    assert error.startswith("--model.name tiny: the checkpoint holds")


def test_no_tensor_of_a_checkpoint_is_read_before_the_weights_are_loaded_and_none_twice(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["fit", *arguments]) == 0
    loads: list[tuple[Any, Any]] = []
    load = torch.load

    def watched(*args: Any, **kwargs: Any) -> Any:
        loads.append((kwargs["map_location"], kwargs.get("mmap")))
        return load(*args, **kwargs)

    monkeypatch.setattr(torch, "load", watched)
    assert main(["test", "--ckpt_path", "lightning_logs/version_0/checkpoints/last.ckpt", *CPU]) == 0
    assert loads == [("meta", True), ("cpu", True)]


def test_every_test_run_writes_its_record_predictions_and_a_text_to_read(arguments: list[str], data_file: Path) -> None:
    assert main(["fit", *arguments]) == 0
    assert main(["test", "--ckpt_path", "last", *CPU]) == 0
    folder = Path("lightning_logs/version_1")
    record = read(f"{folder}/record.json")
    keys = (
        "config",
        "versions",
        "git",
        "data",
        "split",
        "seed",
        "stage",
        "partial",
        "n",
        "metrics",
        "unparsable",
        "seconds",
        "peak_memory_gib",
    )
    assert set(keys) <= set(record)
    assert set(record["data"]) == {"path", "sha256", "records"}
    names = ["object_accuracy", "photo_accuracy", "exact_match", "object_published_rule", "photo_published_rule"]
    assert list(record["metrics"]) == [*names, "letter_accuracy", "likelihood_accuracy"]
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text("utf-8").splitlines()]
    assert [line["index"] for line in lines] == [9, 10, 11]
    for name in names:
        score = record["metrics"][name]
        assert score == {"value": score["k"] / 3, "k": sum(line[name] for line in lines), "n": 3}
        low, high = record["intervals"][name]
        assert 0 <= low <= score["value"] <= high <= 1
    assert [floor["name"] for floor in record["floors"]][1:] == [
        "mentioned last, whole noun",
        "mentioned last, last word",
        "photo of the speaker not named",
    ]
    text = (folder / "eval_test.txt").read_text("utf-8")
    for test_record in read_records(str(data_file)).records[9:]:
        assert test_record.problem in text
        assert test_record.gold.text in text
    assert f"object_accuracy: {record['metrics']['object_accuracy']['k']}/3" in text


def test_without_a_checkpoint_the_untrained_model_is_tested(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["test", *arguments]) == 0
    assert "no checkpoint" in capsys.readouterr().err
    record = read("lightning_logs/version_0/record.json")
    assert record["n"] == 3
    assert record["checkpoint"] is None


def test_predict_answers_records_without_a_solution(arguments: list[str], dialogues: tuple[Record, ...]) -> None:
    assert main(["fit", *arguments]) == 0
    asked = [record.model_copy(update={"solution": None, "id": f"q{i}"}) for i, record in enumerate(dialogues[:5])]
    Path("new.json").write_text(dump_records([*asked, dialogues[5]]), "utf-8")
    assert main(["predict", "--ckpt_path", "last", "--data.path", "new.json", *CPU]) == 0
    lines = [json.loads(line) for line in Path("lightning_logs/version_1/predictions.jsonl").read_text("utf-8").splitlines()]
    assert [line["id"] for line in lines] == ["q0", "q1", "q2", "q3", "q4", 5]
    for line in lines:
        assert {"option", "text", "probabilities"} <= set(line)
        assert list(line["probabilities"]) == ["A", "B", "C", "D"]
        assert sum(line["probabilities"].values()) == pytest.approx(1, abs=1e-5)


def test_validate_measures_the_validation_part(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", *arguments, "--data.val_size", "2"]) == 0
    assert main(["validate", "--ckpt_path", "last", *CPU]) == 0
    assert "lightning_logs/version_1: validate, greedy decoding, n = 2" in capsys.readouterr().out
    record = read("lightning_logs/version_1/record.json")
    assert (record["stage"], record["n"], record["partial"]) == ("validate", 2, False)
    assert len(Path("lightning_logs/version_1/predictions.jsonl").read_text("utf-8").splitlines()) == 2


# ---------------------------------------------------------------------- going on


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("stop_at", [1, 2, 3, 4])  # in the middle of an epoch, before its short last window, at its end, in the next
def test_a_resumed_run_ends_in_the_same_weights_bit_for_bit(
    arguments: list[str], stop_at: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", *arguments, "--checkpoint.every_n_steps", "1", "--trainer.default_root_dir", "straight"]) == 0
    save = Checkpoints.save

    def save_and_die(self: Checkpoints, trainer: Any) -> None:
        save(self, trainer)
        if trainer.global_step == stop_at:
            raise Interrupted

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoints, "save", save_and_die)
        with pytest.raises(Interrupted):
            main(["fit", *arguments, "--checkpoint.every_n_steps", "1"])
    assert main(["fit", "--ckpt_path", "last"]) == 0
    assert [path.name for path in Path("lightning_logs").iterdir()] == ["version_0"]
    straight, resumed = weights("straight/lightning_logs/version_0/checkpoints/last.ckpt"), weights()
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


# In an epoch's middle, at its last step.
@pytest.mark.parametrize(("number", "code", "at"), [(signal.SIGINT, 130, 1), (signal.SIGTERM, 143, 2)])
def test_a_run_told_to_stop_saves_and_goes_on_bit_for_bit(
    arguments: list[str], number: int, code: int, at: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", *arguments, "--trainer.default_root_dir", "straight"]) == 0
    clip = MMCorefModule.configure_gradient_clipping

    def signalled(self: MMCorefModule, *args: Any, **kwargs: Any) -> None:
        if self.trainer.global_step == at:
            os.kill(os.getpid(), number)
        clip(self, *args, **kwargs)

    handlers = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patched:
        patched.setattr(MMCorefModule, "configure_gradient_clipping", signalled)
        assert main(["fit", *arguments]) == code
    assert (
        f"stopped at step {at + 1}, checkpoint saved; resume with: mmcoref fit --ckpt_path lightning_logs/version_0/checkpoints/last.ckpt"
        in capsys.readouterr().err
    )
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert main(["fit", "--ckpt_path", "last"]) == 0
    straight, resumed = weights("straight/lightning_logs/version_0/checkpoints/last.ckpt"), weights()
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    curves = [
        [(event.step, event.value) for event in EventAccumulator(f"{root}lightning_logs/version_0").Reload().Scalars("train/loss")]
        for root in ("straight/", "")
    ]
    assert curves[0] == curves[1]
    assert len(curves[0]) == 6


def test_last_with_no_run_starts_a_fit_and_stops_a_test(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert "no whole checkpoint under lightning_logs" in refused(capsys, "test", "--ckpt_path", "last")
    assert main(["fit", *arguments, "--ckpt_path", "last"]) == 0
    assert "no checkpoint under lightning_logs: the training starts from the beginning" in capsys.readouterr().err


def test_last_is_the_newest_whole_checkpoint_of_the_newest_run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert main(["fit", *arguments]) == 0
    shutil.move("lightning_logs/version_1", "lightning_logs/version_9")
    shutil.copytree("lightning_logs/version_9", "lightning_logs/version_10")  # by number the newest, not by name
    capsys.readouterr()
    assert main(["test", "--ckpt_path", "last", *CPU]) == 0
    assert "checkpoint: lightning_logs/version_10/checkpoints/last.ckpt" in capsys.readouterr().err
    file = Path("lightning_logs/version_10/checkpoints/last.ckpt")
    file.write_bytes(file.read_bytes()[:-1000])
    said = refused(capsys, "test", "--ckpt_path", "last", *CPU)
    assert said.startswith("lightning_logs/version_10/checkpoints/last.ckpt: is not a whole checkpoint")
    assert "The newest that can be read is lightning_logs/version_9/checkpoints/last.ckpt" in said
    assert "is not a whole checkpoint" in refused(capsys, "test", "--ckpt_path", str(file))


# ---------------------------------------------------------------------- mistakes


def test_mistakes_are_told_in_one_message_with_exit_code_2(
    arguments: list[str], data_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    near = tmp_path / "ai_responses.json"
    shutil.copy(data_file, near)
    torch.save({"state_dict": {}}, "foreign.ckpt")
    cases = {
        ("--data.path", str(near).replace("responses", "response")): f"Did you mean {near}?",
        ("--model.name", "no/such/folder"): "no such folder, and not a hub name",
        ("--model.name", str(tmp_path)): "found no config.json",
        ("--data.max_tokens", "20"): "3 records have more than data.max_tokens = 20 tokens",
        ("--data.val_size", "9"): "data.val_size: expected 0 to 8",
        ("--data.prompt", "chat"): "needs a tokenizer with a chat template",
        ("--ckpt_path", "missing.ckpt"): "missing.ckpt: no such checkpoint",
        ("--ckpt_path", "foreign.ckpt"): "expected a checkpoint that mmcoref wrote",
        ("--ckpt_path", str(tmp_path)): "expected a checkpoint, got a folder without one",
        ("--checkpoint.every_n_steps", "0"): "checkpoint.every_n_steps: expected 1 or more, got 0",
        ("--data.limit", "0"): "data.limit: expected 1 or more, got 0",
        ("--model.lr", "-1"): "model.lr: expected 0 or more, got -1",
        ("--trainer.precision", "8-mixed"): "precision",
        ("--data.no_such_option", "1"): "no_such_option",
        ("--model.lr", "fast"): "model.lr",
        ("--config", "nowhere.yaml"): "nowhere.yaml",
    }
    for extra, expected in cases.items():
        assert expected in refused(capsys, "fit", *arguments, *extra), extra
    assert not Path("lightning_logs").exists()


def test_a_full_disk_leaves_the_earlier_checkpoint(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written: set[str] = set()

    class Full(atomic._Raw):
        """Holds one checkpoint, and of the second one its first write."""

        def write(self, data: Any, /) -> int:
            if Path("lightning_logs/version_0/checkpoints/last.ckpt").exists() and str(self.name) in written:
                with self._remembered():
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            written.add(str(self.name))
            return super().write(data)

    monkeypatch.setattr(atomic, "_Raw", Full)
    said = refused(capsys, "fit", *arguments)
    assert "last.ckpt: could not be written: the disk is full (" in said
    assert "make room" in said
    assert "The checkpoint before it is whole: resume with --ckpt_path last." in said
    (left,) = Path("lightning_logs/version_0/checkpoints").iterdir()
    assert left.name == "last.ckpt"
    assert torch.load(left, weights_only=True)["global_step"] == 3


def test_a_trial_run_leaves_nothing(arguments: list[str]) -> None:
    assert main(["fit", *arguments, "--trainer.fast_dev_run", "true"]) == 0
    assert main(["test", *arguments, "--trainer.fast_dev_run", "true"]) == 0
    assert not list(Path().rglob("*.ckpt"))
    assert not list(Path().rglob("record.json"))


def test_a_run_limited_to_some_batches_is_partial(arguments: list[str]) -> None:
    assert main(["test", *arguments, "--data.eval_batch_size", "2", "--trainer.limit_test_batches", "0.5"]) == 0
    record = read("lightning_logs/version_0/record.json")
    assert (record["n"], record["partial"]) == (2, True)
    assert "partial" in Path("lightning_logs/version_0/eval_test.txt").read_text("utf-8")


def test_a_fit_ends_by_saying_what_comes_next_and_a_finished_one_says_so(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", *arguments]) == 0
    said = capsys.readouterr().err
    last = "lightning_logs/version_0/checkpoints/last.ckpt"
    assert f"step 6, checkpoint: {last}; next: mmcoref test --ckpt_path {last}\n" in said
    written = Path(last).stat().st_mtime_ns
    assert main(["fit", "--ckpt_path", "last", "--model.lr", "0.5"]) == 0
    assert "this run is finished, 6 of 6 steps: raise --trainer.max_epochs to go on" in capsys.readouterr().err
    assert Path(last).stat().st_mtime_ns == written  # nothing was trained at the new rate: nothing is recorded of it
    assert "lr: 0.5" in Path("lightning_logs/version_0/hparams.yaml").read_text("utf-8")
    assert main(["fit", "--ckpt_path", "last", "--trainer.max_steps", "9"]) == 0
    assert "raise --trainer.max_epochs" in capsys.readouterr().err


def test_a_log_gets_a_line_now_and_then(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "_EVERY_SECONDS", 0.0)
    assert main(["fit", *arguments]) == 0
    assert re.findall(r"step (\d) of 6, loss \d\.\d{3}, about 0 min left", capsys.readouterr().err)[-1] == "6"


# ---------------------------------------------------------------------- the published file


def test_the_published_file_is_1380_and_346_with_nothing_dropped(capsys: pytest.CaptureFixture[str]) -> None:
    path = published_path()
    config = Path(__file__).parent.parent / "configs" / "tiny.yaml"
    quick = ["--trainer.max_steps", "1", "--trainer.limit_val_batches", "0", "--trainer.enable_progress_bar", "false"]
    assert main(["fit", "--config", str(config), "--data.path", path, *quick]) == 0
    said = capsys.readouterr().err
    assert said.startswith("1726 records, train/test 1380/346;")
    assert "dropped" not in said
