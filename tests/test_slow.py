"""Minutes long: what the README promises of the embedded default, and the oldest transformers that setup.cfg allows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmcoref.data.sample import sample_records
from mmcoref.evaluation.floors import floors

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

ROOT = Path(__file__).parent.parent
OLDEST_TRANSFORMERS = "5.17.0"


def run(*command: str, **environment: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    assert done.returncode == 0, (done.stdout[-3000:], done.stderr[-3000:])
    return done.stdout


def test_the_embedded_default_learns_what_no_floor_reaches() -> None:
    mmcoref = [sys.executable, "-m", "mmcoref"]
    config = str(ROOT / "configs" / "tiny.yaml")
    run(*mmcoref, "fit", "--config", config, "--trainer.enable_progress_bar", "false", PYTHONPATH=str(ROOT))
    run(*mmcoref, "test", "--ckpt_path", "last", "--trainer.enable_progress_bar", "false", PYTHONPATH=str(ROOT))
    record = json.loads(Path("lightning_logs/version_1/record.json").read_text("utf-8"))
    assert record["n"] == 346
    assert not record["partial"]
    assert record["metrics"]["object_accuracy"]["value"] >= 0.85
    assert record["metrics"]["exact_match"]["value"] >= 0.8
    found = floors(sample_records(1380), sample_records(346, part="test"))
    objects = [floor.object / floor.n for floor in found if floor.object is not None]
    assert len(objects) >= 3
    assert max(objects) <= 0.60


def test_the_fast_tier_passes_on_the_oldest_transformers(tmp_path: Path) -> None:
    """A second environment, laid over this one: transformers and all it needs of that time, and the same torch."""
    overlay = tmp_path / "overlay"
    run(sys.executable, "-m", "pip", "install", "-q", "--target", str(overlay), f"transformers=={OLDEST_TRANSFORMERS}")
    said = run(sys.executable, "-c", "import transformers; print(transformers.__version__)", PYTHONPATH=str(overlay))
    assert said.strip() == OLDEST_TRANSFORMERS
    tests = [str(ROOT / "tests" / name) for name in ("data", "model", "run", "test_cli.py", "test_configs.py")]
    run(sys.executable, "-m", "pytest", "-q", "-c", str(ROOT / "setup.cfg"), "--rootdir", str(ROOT), *tests, PYTHONPATH=f"{overlay}:{ROOT}")
