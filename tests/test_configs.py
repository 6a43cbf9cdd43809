"""Every file in configs/ through the real command line, scaled down in shape and time only."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from transformers import PreTrainedTokenizerFast

from mmcoref.cli import main
from tests.conftest import CHAT_TEMPLATE

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
    assert (trainer["devices"], trainer["precision"], trainer["strategy"], trainer["max_epochs"]) == (8, "16-mixed", "ddp", 30)
    assert settings["data"].get("prompt", "base") == ("chat" if "instruct" in name else "base")
    assert set(settings["model"]) == {"name"}  # rate, decay and warm-up are the program's defaults: published values, kept once


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_a_config_fits_and_tests(config: Path, llama_folder: Path, data_file: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    brought = Path("brought")
    brought.mkdir()
    for file in llama_folder.iterdir():
        (brought / file.name).symlink_to(file)
    (brought / "chat_template.jinja").write_text(CHAT_TEMPLATE.replace("<|eot_id|>", tokenizer.eos_token), "utf-8")
    scaled = ["--data.path", str(data_file), "--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.max_epochs", "1"]
    if config.stem != "tiny":
        scaled += ["--model.name", str(brought)]
    assert main(["fit", "--config", str(config), *scaled, "--trainer.enable_progress_bar", "false"]) == 0
    assert main(["test", "--ckpt_path", "last", "--trainer.enable_progress_bar", "false"]) == 0
    assert Path("lightning_logs/version_1/record.json").is_file()


@pytest.mark.skipif(torch.cuda.device_count() >= 8, reason="this machine has the GPUs")
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_machine_without_eight_gpus_is_told_how_to_keep_64_a_step(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = next(path for path in CONFIGS if path.stem == name)
    assert main(["fit", "--config", str(config)]) == 2
    error = capsys.readouterr().err
    assert "the settings ask for 8 GPUs and this machine has" in error
    assert "which keeps 64 records an optimizer step" in error
