"""What a machine lacks is said before anything is downloaded or allocated."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, LlamaConfig

from mmcoref.errors import UserError
from mmcoref.run import preflight


class Hub:
    """A model hub on the loopback that answers everything in one way, and remembers what it was asked."""

    def __init__(self, answer: Callable[[BaseHTTPRequestHandler], None]) -> None:
        self.asked: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.asked.append(self.path)
                answer(self)

            do_HEAD = do_GET

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


def refuse(code: str, status: int) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        request.send_header("X-Error-Code", code)
        request.send_header("Content-Length", "0")
        request.end_headers()

    return answer


@pytest.fixture
def hub() -> Iterator[Callable[..., Hub]]:
    hubs: list[Hub] = []

    def start(code: str, status: int) -> Hub:
        hubs.append(Hub(refuse(code, status)))
        return hubs[-1]

    yield start
    for one in hubs:
        one.server.shutdown()


def fit(endpoint: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A fit of a gated Llama in a process of its own, as the hub's address is read at import."""
    command = [sys.executable, "-m", "mmcoref", "fit", "--model.name", "meta-llama/Llama-3.2-1B", "--data.path", "sample"]
    here = {"HF_ENDPOINT": endpoint, "HF_HOME": str(Path("hf").resolve()), "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | here | environment, timeout=120)


def test_a_gated_model_names_its_page_and_the_login(hub: Callable[..., Hub]) -> None:
    gate = hub("GatedRepo", 403)
    done = fit(gate.url)
    assert done.returncode == 2
    assert f"its licence must be accepted first: open {gate.url}/meta-llama/Llama-3.2-1B, accept it, then log in" in done.stderr
    assert "Traceback" not in done.stderr
    assert not [path for path in gate.asked if path.endswith((".safetensors", ".bin"))]
    assert not list(Path("hf").rglob("*.safetensors"))
    assert not Path("lightning_logs").exists()


def test_an_unknown_repository_is_named(hub: Callable[..., Hub]) -> None:
    done = fit(hub("RepoNotFound", 404).url)
    assert done.returncode == 2
    assert "no such repository at" in done.stderr


def test_without_a_network_the_cache_is_named() -> None:
    done = fit("http://127.0.0.1:9", HF_HUB_OFFLINE="1")
    assert done.returncode == 2
    assert "not in the cache" in done.stderr
    assert "give the folder of a copy you have" in done.stderr


@pytest.mark.parametrize(
    ("there", "devices", "way_out"),
    [
        (0, 8, "--trainer.accelerator cpu --trainer.devices 1 --trainer.accumulate_grad_batches 32"),
        (1, 8, "--trainer.devices 1 --trainer.accumulate_grad_batches 32"),
        (3, 8, "--trainer.devices 2 --trainer.accumulate_grad_batches 16"),  # 64 records do not divide among 3
        (4, "8", "--trainer.devices 4 --trainer.accumulate_grad_batches 8"),
        (7, [0, 1, 2, 3, 4, 5, 6, 7], "--trainer.devices 4 --trainer.accumulate_grad_batches 8"),
    ],
)
def test_fewer_gpus_keep_the_records_of_a_step(there: int, devices: Any, way_out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    with pytest.raises(UserError) as raised:
        preflight.check_devices({"accelerator": "gpu", "devices": devices, "accumulate_grad_batches": 4}, batch_size=2)
    assert str(raised.value).endswith(f"this machine has {there}: use {way_out}, which keeps 64 records an optimizer step.")


def test_enough_gpus_and_other_machines_are_let_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    preflight.check_devices({"accelerator": "gpu", "devices": 8, "accumulate_grad_batches": 4}, batch_size=2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for accelerator, devices in (("cpu", 8), ("auto", "auto"), ("gpu", -1)):
        preflight.check_devices({"accelerator": accelerator, "devices": devices}, batch_size=2)


LLAMA_3_1_8B: dict[str, Any] = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
}


def test_8b_is_counted_without_being_allocated_and_refused_on_80_gb(monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = preflight.parameter_count(LlamaConfig(**LLAMA_3_1_8B))
    assert parameters == 8_030_261_248

    class Card:
        total_memory = 80_000_000_000

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Card)
    with pytest.raises(
        UserError, match=r"8\.03 B parameters × 16 bytes = 128\.5 GB before activations, and the smallest GPU here has 80\.0 GB"
    ):
        preflight.check_memory(parameters, training=True)
    preflight.check_memory(parameters, training=False)  # 32.1 GB: testing it fits
    Card.total_memory = 141_000_000_000
    preflight.check_memory(parameters, training=True)


def test_a_disk_too_small_for_two_checkpoints_is_named(monkeypatch: pytest.MonkeyPatch, llama_folder: Path, tmp_path: Path) -> None:
    monkeypatch.setattr(preflight, "_free", lambda _: 29_000_000_000)
    folder, mine = tmp_path / "lightning_logs", str(llama_folder)
    with pytest.raises(UserError, match=r"checkpoints of 1\.24 B parameters need 29\.7 GB .* and 29\.0 GB are free: make room"):
        preflight.check_disk(folder, 1_235_814_400, training=True, model=mine)
    preflight.check_disk(folder, 1_200_000_000, training=True, model=mine)
    preflight.check_disk(folder, 1_235_814_400, training=False, model=mine)


def test_a_disk_too_small_for_the_download_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(preflight, "_free", lambda _: 10_000_000_000)
    monkeypatch.setattr(preflight, "_download_bytes", lambda _: 16_000_000_000)
    with pytest.raises(UserError, match=r"its files are 16\.0 GB and .* has 10\.0 GB free"):
        preflight.check_disk(tmp_path, 1, training=False, model="meta-llama/Llama-3.1-8B")


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path, llama_folder: Path) -> None:
    with pytest.raises(UserError, match=r"found no config\.json in it"):
        preflight.check_model(str(tmp_path))
    assert preflight.check_model(str(llama_folder)).hidden_size == AutoConfig.from_pretrained(llama_folder).hidden_size
    assert preflight.check_model("tiny") is None
