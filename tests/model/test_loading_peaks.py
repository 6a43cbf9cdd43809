"""Loading takes no second copy of a model: peaks of real processes, read while they load."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from tests.conftest import llama
from tests.test_processes import free_port


@pytest.fixture(scope="module")
def large(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """168 MB of fp32 weights, in bf16 and in nine files."""
    folder: Path = tmp_path_factory.mktemp("large")
    shape = {"hidden_size": 640, "intermediate_size": 2560, "num_hidden_layers": 6, "num_attention_heads": 10, "num_key_value_heads": 2}
    model = llama(4000, **shape, tie_word_embeddings=False).to(torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="10MB")
    tokenizer.save_pretrained(folder)
    assert len(list(folder.glob("*.safetensors"))) > 5
    return folder


def peaks(folder: Path, how: str, processes: int) -> list[dict[str, int]]:
    """Bytes of private memory before and at the peak of loading, and of the whole model's weights, of each process."""
    worker = Path(__file__).parents[1] / "loading_worker.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", str(free_port())]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([*command, str(worker), str(folder), how, "."], capture_output=True, text=True, env=environment, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(Path(f"{how}{rank}.json").read_text("utf-8")) for rank in range(processes)]


def test_two_processes_load_their_shards_in_little_more_than_one_copy_between_them(large: Path) -> None:
    found = peaks(large, "sharded", 2)
    assert found[0]["weights"] > 100e6
    copies = sum(one["peak"] - one["bare"] for one in found) / found[0]["weights"]
    assert 0.95 <= copies <= 1.2


def test_a_process_that_holds_the_model_takes_at_most_one_file_more(large: Path) -> None:
    largest = max(path.stat().st_size for path in large.glob("*.safetensors"))
    for one in peaks(large, "ddp", 2):
        # A little may come out of what the process had and did not use.
        assert 0.95 * one["weights"] <= one["peak"] - one["bare"] <= one["weights"] + largest
