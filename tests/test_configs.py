"""Every file in configs/ through the real command line, scaled down in shape and time only."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import yaml
from lightning.pytorch.plugins import MixedPrecision
from transformers import PreTrainedTokenizerFast

from mmcoref.cli import main
from mmcoref.run import holding, terms
from mmcoref.run.checkpoint import read_stored
from mmcoref.run.progress import PlainProgress
from tests.conftest import CHAT_TEMPLATE
from tests.test_processes import mmcoref, newest_record

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))
PUBLISHED = ("1b", "3b", "8b", "8b_instruct")


def test_the_expected_configs_are_there() -> None:
    assert {"tiny", *PUBLISHED} <= {path.stem for path in CONFIGS}


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_a_config_is_short_and_opens_with_hardware_memory_time_and_command(config: Path) -> None:
    text = config.read_text("utf-8")
    head = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    assert len(text.splitlines()) <= 30
    assert all(word in head for word in ("Hardware:", "Memory:", "Time:", f"--config configs/{config.name}"))


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_hyperparameters(name: str) -> None:
    settings = yaml.safe_load(next(path for path in CONFIGS if path.stem == name).read_text("utf-8"))
    trainer = settings["trainer"]
    assert trainer["devices"] * settings["data"]["batch_size"] * trainer["accumulate_grad_batches"] == 64
    strategy = "sharded" if "8b" in name else "ddp"  # 16 bytes a parameter fit one card, or they do not
    assert (trainer["devices"], trainer["precision"], trainer["strategy"], trainer["max_epochs"]) == (8, "16-mixed", strategy, 30)
    assert settings["data"].get("prompt", "base") == ("chat" if "instruct" in name else "base")
    assert set(settings["model"]) == {"name"}  # rate, decay and warm-up are the program's defaults: published values, kept once


@pytest.fixture
def scaled(llama_folder: Path, data_file: Path, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """What scales a config down: a small model with a chat template, twelve dialogues, no GPUs."""
    brought = Path("brought")
    brought.mkdir()
    for file in llama_folder.iterdir():
        (brought / file.name).symlink_to(file)
    (brought / "chat_template.jinja").write_text(CHAT_TEMPLATE.replace("<|eot_id|>", tokenizer.eos_token), "utf-8")
    return [
        "--data.path",
        str(data_file),
        "--model.name",
        str(brought),
        "--trainer.accelerator",
        "cpu",
        "--trainer.enable_progress_bar",
        "false",
    ]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_a_config_fits_and_tests(config: Path, scaled: list[str]) -> None:
    if config.stem == "tiny":
        scaled = [*scaled[:2], *scaled[4:]]  # it brings its own model
    assert main(["fit", "--config", str(config), *scaled, "--trainer.devices", "1", "--trainer.max_epochs", "1"]) == 0
    assert main(["test", "--ckpt_path", "last", "--trainer.enable_progress_bar", "false"]) == 0
    assert Path("lightning_logs/version_1/record.json").is_file()


def test_a_config_that_says_16_mixed_is_float16_with_loss_scaling_where_lightning_refuses_or_swaps_it(
    scaled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, str, bool]] = []

    def watch(self: object, trainer: pl.Trainer, *_: object) -> None:
        plugin = trainer.precision_plugin
        assert isinstance(plugin, MixedPrecision)
        dtype = str(plugin.autocast_context_manager().fast_dtype)
        seen.append((type(trainer.strategy).__name__, dtype, isinstance(plugin.scaler, torch.amp.GradScaler)))

    monkeypatch.setattr(PlainProgress, "on_train_start", watch)
    monkeypatch.setattr(PlainProgress, "on_train_batch_end", lambda *_: None)
    for name in ("1b", "8b"):
        config = next(path for path in CONFIGS if path.stem == name)
        assert main(["fit", "--config", str(config), *scaled, "--trainer.devices", "1", "--trainer.max_epochs", "1"]) == 0
    assert seen == [("DDPStrategy", "torch.float16", True), ("ShardedStrategy", "torch.float16", True)]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*PUBLISHED, "lora"])
def test_a_published_config_on_two_processes_with_all_else_as_written(name: str, scaled: list[str]) -> None:
    config = next(path for path in CONFIGS if path.stem == name)
    said = mmcoref("fit", "--config", str(config), *scaled, processes=2)
    assert "16 records an optimizer step; 30 steps (30 epochs of 1)" in said or name == "lora"
    last = Path("lightning_logs/version_0/checkpoints/last.ckpt")
    assert last.is_dir() is ("8b" in name)
    stored = read_stored(last)
    written = yaml.safe_load(config.read_text("utf-8"))
    for key, value in written["trainer"].items():
        assert stored.config["trainer"][key] == value or key in ("accelerator", "devices"), key
    assert stored.config["trainer"]["strategy"] == written["trainer"]["strategy"]
    mmcoref("test", "--config", str(config), *scaled, "--ckpt_path", "last", processes=2)
    assert newest_record()["n"] == 3


@pytest.mark.skipif(torch.cuda.device_count() >= 8, reason="this machine has the GPUs")
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_machine_without_eight_gpus_is_told_how_to_keep_64_a_step(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (holding, terms):
        monkeypatch.setattr(module, "machine_memory", lambda: 10**12)
    config = next(path for path in CONFIGS if path.stem == name)
    assert main(["fit", "--config", str(config)]) == 2
    error = capsys.readouterr().err
    assert "the settings ask for 8 GPUs and this machine has" in error
    assert "which keeps 64 records an optimizer step" in error
    for module in (holding, terms):
        monkeypatch.setattr(module, "machine_memory", lambda: 10**9)
    assert main(["fit", "--config", str(config)]) == 2
    assert "`mmcoref plan` says what a fit needs" in capsys.readouterr().err


def test_a_published_model_that_this_machine_cannot_hold_is_refused_without_the_hub(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terms, "machine_memory", lambda: 10**10)
    config = next(path for path in CONFIGS if path.stem == "8b")
    alone = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.strategy", "auto"]
    assert main(["fit", "--config", str(config), *alone]) == 2
    assert "8.03 B parameters × 16 bytes = 128.5 GB on every device" in capsys.readouterr().err
