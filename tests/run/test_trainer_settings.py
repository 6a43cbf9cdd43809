"""Settings of Lightning's trainer that this program does not mention: each on a small fit and a test."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from mmcoref.cli import main
from mmcoref.run.checkpoint import read_stored

pytestmark = pytest.mark.slow

_PRECISIONS = ("64", "64-true", "32", "32-true", "16", "16-mixed", "bf16", "bf16-mixed", "bf16-true", "16-true")
_SETTINGS = [
    *(f"precision={name}" for name in _PRECISIONS),
    *(f"profiler={name}" for name in ("simple", "advanced", "pytorch")),
    *("detect_anomaly=true", "inference_mode=false", "benchmark=true", "deterministic=true", "deterministic=warn"),
    *("sync_batchnorm=true", "use_distributed_sampler=false", "reload_dataloaders_every_n_epochs=1", "enable_model_summary=true"),
    *("num_sanity_val_steps=2", "num_sanity_val_steps=-1", "log_every_n_steps=0", "enable_autolog_hparams=false"),
    *("val_check_interval=0.5", "val_check_interval=1", "val_check_interval=00:00:00:01", "check_val_every_n_epoch=2"),
    *(
        "gradient_clip_val=null",
        "gradient_clip_val=0",
        "gradient_clip_algorithm=value",
        "min_epochs=1",
        "min_steps=1",
        "max_time=00:00:10:00",
    ),
    *("limit_train_batches=1", "limit_val_batches=0", "limit_val_batches=1", "limit_test_batches=1"),
    *("logger=true", "logger=false", "callbacks=LearningRateMonitor", "plugins=SLURMEnvironment"),
]


@pytest.fixture
def base(llama_folder: Path, data_file: Path) -> list[str]:
    settings = ["--model.name", str(llama_folder), "--data.path", str(data_file), "--trainer.accelerator", "cpu"]
    return [*settings, "--trainer.devices", "1", "--trainer.enable_progress_bar", "false", "--trainer.max_epochs", "2"]


@pytest.mark.parametrize("setting", _SETTINGS)
def test_a_setting_fits_tests_and_resumes(setting: str, base: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", *base, f"--trainer.{setting}"]) == 0
    (last,) = Path().rglob("last.ckpt")
    stored = read_stored(last)
    assert stored.step > 0
    assert main(["test", "--ckpt_path", str(last), *base[4:], f"--trainer.{setting}"]) == 0
    (results,) = Path().rglob("record.json")
    record = json.loads(results.read_text("utf-8"))
    assert record["n"] == 3
    assert math.isfinite(record["negative_log_likelihood"])
    assert main(["fit", "--ckpt_path", str(last), *base[4:-2], "--trainer.max_epochs", "3", f"--trainer.{setting}"]) == 0
    assert "Traceback" not in capsys.readouterr().err
