"""What a machine lacks is said before anything is downloaded or allocated."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from transformers import AutoConfig, LlamaConfig

from mmcoref.atomic import temporary_of
from mmcoref.data.example import Example
from mmcoref.data.examples import collect
from mmcoref.data.module import MMCorefDataModule
from mmcoref.errors import UserError
from mmcoref.model import need
from mmcoref.model.memory import Memory, shape_of
from mmcoref.model.module import MMCorefModule
from mmcoref.run import announce, holding, preflight, terms
from mmcoref.run.checkpoint import Stored
from tests.conftest import dialogue


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


def settings(name: str = "tiny", **trainer: Any) -> dict[str, Any]:
    """Of a fit, as far as they are looked at before there is a trainer."""
    return {
        "model": {
            "name": name, "lora_rank": 0, "lora_alpha": 32.0, "lora_dropout": 0.0, "lora_targets": None,
            "gradient_checkpointing": None, "check_memory": True,
        },
        "data": {"batch_size": 2, "micro_batch_size": None, "eval_batch_size": 16, "recipe": "mmcoref"},
        "trainer": {
            "accelerator": "gpu", "devices": 8, "num_nodes": 1, "strategy": "auto", "precision": "16-mixed", "accumulate_grad_batches": 4,
            "limit_train_batches": None, "limit_val_batches": None, "val_check_interval": None,
        } | trainer,
    }  # fmt: skip


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
        holding.check_devices(settings(devices=devices), training=True)
    said = f"ask for 8 GPUs and this machine has {there or 'none'}: use {way_out}, which keeps 64 records an optimizer step."
    assert str(raised.value).endswith(said)


def test_a_test_on_fewer_gpus_takes_those_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    with pytest.raises(UserError, match=r"ask for 8 GPUs and this machine has 3: use --trainer\.devices 3\.$"):
        holding.check_devices(settings(), training=False)


@pytest.mark.parametrize(
    ("training", "memory", "said"),
    [
        (
            True,
            100 * 10**9,
            "nor the memory to do without (8.03 B parameters take at least 132.1 GB, it has 100.0 GB): `mmcoref plan` says",
        ),
        (True, 200 * 10**9, "use --trainer.accelerator cpu"),
        (False, 20 * 10**9, "nor the memory to do without (8.03 B parameters take at least 32.1 GB, it has 20.0 GB)"),
        (False, 100 * 10**9, "use --trainer.accelerator cpu --trainer.devices 1."),
    ],
)
def test_processors_are_not_proposed_for_what_they_cannot_hold(
    training: bool, memory: int, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for module in (holding, terms):
        monkeypatch.setattr(module, "machine_memory", lambda: memory)
    LlamaConfig(**LLAMA_3_1_8B).save_pretrained(tmp_path)
    for name in ("meta-llama/Llama-3.1-8B", str(tmp_path)):
        with pytest.raises(UserError) as raised:
            holding.check_devices(settings(name, strategy="sharded"), training=training)
        assert said in str(raised.value)


def test_a_published_model_that_no_device_here_holds_is_refused_before_the_hub_is_asked(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    asked = settings("meta-llama/Llama-3.1-8B", strategy="ddp")
    with pytest.raises(UserError, match=r"8\.03 B parameters × 16 bytes = 128\.5 GB on every device"):
        holding.check_known_model(asked, training=True)
    holding.check_known_model(settings("meta-llama/Llama-3.1-8B", strategy="sharded"), training=True)
    holding.check_known_model(settings("someone/8b", strategy="ddp"), training=True)
    asked["model"]["check_memory"] = False
    holding.check_known_model(asked, training=True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(terms, "machine_memory", lambda: 100 * 10**9)
    with pytest.raises(UserError, match=r"a device here has 100\.0 GB"):
        holding.check_known_model(settings("meta-llama/Llama-3.1-8B", accelerator="auto", devices=1), training=True)


def test_enough_gpus_and_other_machines_are_let_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    holding.check_devices(settings(), training=True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for accelerator, devices in (("cpu", 8), ("auto", "auto"), ("gpu", -1)):
        holding.check_devices(settings(accelerator=accelerator, devices=devices), training=True)


LLAMA_3_1_8B: dict[str, Any] = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
}


def fit_of_8b(strategy: str, processes: int, **settings: Any) -> tuple[MMCorefModule, MMCorefDataModule, Any]:
    """What `check_memory` looks at, of 8B on so many GPUs; nothing is loaded."""
    module = MMCorefModule(name="somewhere/8b", **settings)
    module.restore_backbone(LlamaConfig(**LLAMA_3_1_8B).to_dict())
    data = MMCorefDataModule(tokenizer="somewhere/8b")
    example = Example(0, dialogue(0), tuple(range(300)), ((1,) * 16,) * 4)
    data.train = collect([example] * 16)

    class Sharded(ModelParallelStrategy):
        root_device = torch.device("cuda", 0)

    class Whole:
        root_device = torch.device("cuda", 0)

    class Trainer:
        accumulate_grad_batches, num_devices, precision = 4, processes, "16-mixed"
        limit_train_batches, limit_val_batches, val_check_interval, world_size = 1.0, 1.0, 1.0, processes

    trainer = Trainer()
    trainer.strategy = Sharded() if strategy == "sharded" else Whole()  # type: ignore[attr-defined]
    return module, data, trainer


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    class Card:
        total_memory = 80_000_000_000

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Card)
    return Card


def test_8b_is_refused_on_80_gb_under_ddp_and_held_sharded(gpu: Any, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UserError) as raised:
        holding.check_memory(*fit_of_8b("ddp", 8))
    said = str(raised.value)
    assert said.startswith("8.03 B parameters × 16 bytes = 128.5 GB on every device, ")
    assert "a device here has 80.0 GB: use --trainer.strategy sharded, --config configs/lora.yaml, more or larger devices" in said
    holding.check_memory(*fit_of_8b("ddp", 8, check_memory=False))
    holding.check_memory(*fit_of_8b("sharded", 8))
    holding.check_memory(*fit_of_8b("ddp", 8, lora_rank=16))
    assert not caplog.records
    gpu.total_memory = 16_000_000_000
    with pytest.raises(UserError, match=r"8\.03 B parameters × 16 bytes / 8 processes = 16\.1 GB on every device"):
        holding.check_memory(*fit_of_8b("sharded", 8))
    with pytest.raises(UserError, match=r"8\.07 B parameters, 0\.042 B of them trained, take 1\d\.\d GB on every device"):
        holding.check_memory(*fit_of_8b("ddp", 8, lora_rank=16))


@pytest.mark.parametrize(
    ("share", "warned", "refused"), [(0.89, False, False), (0.91, True, False), (1.09, True, False), (1.11, True, True)]
)
def test_from_90_percent_it_warns_and_above_110_it_refuses(
    gpu: Any, share: float, warned: bool, refused: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("mmcoref"), "propagate", True)
    memory = Memory(weights=int(share * gpu.total_memory))
    monkeypatch.setattr(need, "training_memory", lambda *_: memory)
    if refused:
        with pytest.raises(UserError):
            holding.check_memory(*fit_of_8b("ddp", 8))
        return
    holding.check_memory(*fit_of_8b("ddp", 8))
    assert bool(caplog.records) is warned
    if warned:
        assert f"({100 * share:.0f} %)" in caplog.text


def test_a_disk_too_small_for_two_checkpoints_is_named(monkeypatch: pytest.MonkeyPatch, llama_folder: Path, tmp_path: Path) -> None:
    monkeypatch.setattr(preflight, "_free", lambda _: 29_000_000_000)
    folder, mine = tmp_path / "lightning_logs", str(llama_folder)
    with pytest.raises(UserError, match=r"a checkpoint has 14\.8 GB, .* 29\.7 GB, and 29\.0 GB are free: make room"):
        preflight.check_disk(folder, 12 * 1_235_814_400, model=mine)
    preflight.check_disk(folder, 12 * 1_200_000_000, model=mine)
    preflight.check_disk(folder, 0, model=mine)


def test_a_checkpoint_has_12_bytes_of_what_is_trained_and_adapters_stand_alone() -> None:
    config = LlamaConfig(**LLAMA_3_1_8B)
    assert preflight.checkpoint_bytes(shape_of(config), "someone/8b") == 12 * 8_030_261_248
    adapters = shape_of(config, 16)
    assert preflight.checkpoint_bytes(adapters, "someone/8b") == 12 * 41_943_040
    assert preflight.checkpoint_bytes(adapters, "tiny") == 4 * (8_030_261_248 + 41_943_040) + 8 * 41_943_040


def test_adapters_are_looked_at_before_anything_is_loaded(llama_folder: Path) -> None:
    config, asked = AutoConfig.from_pretrained(llama_folder), settings(str(llama_folder), strategy="ddp")
    asked["model"] |= {"lora_rank": 2, "lora_targets": ["q_proj", "query"]}
    with pytest.raises(UserError, match="no linear layer 'query'"):
        terms.shape_of_fit(config, asked)
    asked["model"]["lora_targets"] = None
    assert terms.shape_of_fit(config, asked).frozen
    asked["trainer"]["strategy"] = "sharded"
    with pytest.raises(UserError, match=r"use --trainer\.strategy ddp"):
        terms.shape_of_fit(config, asked)


@pytest.mark.parametrize(
    ("devices", "count"),
    [
        (3, 3),
        ("3", 3),
        ("0,", 1),
        ("0,1", 2),
        ("0, 1", 2),
        ([2, 3, 4], 3),
        ("auto", None),
        (-1, None),
        ("-1", None),
        ("1.5", None),
        ("a,b", None),
    ],
)
def test_devices_are_counted_as_lightning_counts_them(devices: Any, count: int | None) -> None:
    assert terms.count_devices(devices) == count


@pytest.mark.parametrize("sharing", [1, 2])
def test_ways_out_that_are_none_are_not_named(sharing: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terms, "machine_memory", lambda: 10 * 10**9)
    with pytest.raises(UserError) as raised:
        holding.check_known_model(settings("meta-llama/Llama-3.1-8B", accelerator="cpu", devices=sharing), training=True)
    fewer = "fewer processes (--trainer.devices 1), " if sharing == 2 else ""
    assert f"use {fewer}GPUs, a machine with more memory or a smaller model" in str(raised.value)
    monkeypatch.setattr(terms, "machine_memory", lambda: 40 * 10**9 * sharing)
    with pytest.raises(UserError, match=r"use --config configs/lora\.yaml, "):
        holding.check_known_model(settings("meta-llama/Llama-3.1-8B", accelerator="cpu", devices=sharing), training=True)


def test_a_test_is_refused_where_the_weights_alone_are_too_large(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(terms, "machine_memory", lambda: 20 * 10**9)
    LlamaConfig(**LLAMA_3_1_8B).save_pretrained(tmp_path)
    for name in ("meta-llama/Llama-3.1-8B", str(tmp_path)):
        with pytest.raises(UserError, match=r"8\.03 B parameters take 32\.1 GB on every device, and a device here has 20\.0 GB"):
            holding.check_known_model(settings(name, accelerator="cpu", devices=1), training=False)
    holding.check_known_model(settings("meta-llama/Llama-3.2-1B", accelerator="cpu", devices=1), training=False)


def test_processes_of_torchrun_that_would_each_run_alone_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = settings(accelerator="cpu", devices=1)["trainer"]
    preflight.check_processes(trainer)
    started = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}
    for name, value in started.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"started 4 processes .* ask for 1 on .*: use --trainer\.devices 2 --trainer\.num_nodes 2"):
        preflight.check_processes(trainer)
    preflight.check_processes(trainer | {"devices": 2, "num_nodes": 2})


def test_a_place_where_no_run_can_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    preflight.check_writable(tmp_path / "new" / "folder")
    with pytest.raises(UserError, match=r"lightning_logs: no run can be written there .*name a folder with --trainer\.default_root_dir"):
        preflight.check_writable(tmp_path / "file" / "lightning_logs")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UserError, match="no run can be written there"):
        preflight.check_writable(tmp_path)


@pytest.mark.parametrize(
    ("accumulate", "stored", "said"),
    [
        (4, 64, ""),
        (4, None, ""),  # a checkpoint of an earlier version
        (2, 64, "have 64 records, and those of this fit would have 32: --trainer.accumulate_grad_batches 4 keeps them"),
        (4, 24, "have 24 records, and those of this fit would have 64: processes and a --data.batch_size that divide 24 keep them"),
    ],
)
def test_a_fit_goes_on_in_steps_of_as_many_records(accumulate: int, stored: int | None, said: str) -> None:
    class Trainer:
        accumulate_grad_batches, distributed_sampler_kwargs = accumulate, {"num_replicas": 8, "rank": 0}

    known = Stored(Path("last.ckpt"), {}, 1, {}, {}, None, stored)
    if not said:
        preflight.check_window(known, MMCorefDataModule(), Trainer())  # type: ignore[arg-type]
        return
    with pytest.raises(UserError, match=re.escape(said)):
        preflight.check_window(known, MMCorefDataModule(), Trainer())  # type: ignore[arg-type]


def test_a_fit_of_several_machines_says_what_it_waits_for(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("mmcoref"), "propagate", True)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)

    class Meeting:
        main_address, main_port = "10.0.0.1", 29500

    class Strategy:
        root_device, cluster_environment = torch.device("cpu"), Meeting()

    class Trainer:
        num_nodes, num_devices, strategy = 2, 3, Strategy()

    with caplog.at_level(logging.INFO, "mmcoref"):
        announce._processes(Trainer())  # type: ignore[arg-type]
    assert "waits for the processes of 2 machines at 10.0.0.1:29500; torchrun starts them on each" in caplog.text
    assert "3 processes share 2 processors" in caplog.text


def test_a_validation_that_is_too_large_names_the_rows_that_are_not(gpu: Any) -> None:
    module, data, trainer = fit_of_8b("sharded", 8)
    data.hparams["eval_batch_size"] = 4096
    with pytest.raises(UserError) as raised:
        holding.check_memory(module, data, trainer)
    said = str(raised.value)
    assert "GB while 4096 records are validated at a time, and a device here has 80.0 GB: use --data.eval_batch_size " in said
    data.hparams["eval_batch_size"] = int(said.split("--data.eval_batch_size ")[1].split(",")[0])
    holding.check_memory(module, data, trainer)
    data.hparams["eval_batch_size"] = 4096
    trainer.limit_val_batches = 0
    holding.check_memory(module, data, trainer)


def test_a_disk_too_small_for_the_download_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(preflight, "_free", lambda _: 10_000_000_000)
    monkeypatch.setattr(preflight, "_download_bytes", lambda _: 16_000_000_000)
    with pytest.raises(UserError, match=r"its files are 16\.0 GB and .* has 10\.0 GB free"):
        preflight.check_disk(tmp_path, 0, model="meta-llama/Llama-3.1-8B")


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path, llama_folder: Path) -> None:
    with pytest.raises(UserError, match=r"found no config\.json in it"):
        preflight.check_model(str(tmp_path))
    assert preflight.check_model(str(llama_folder)).hidden_size == AutoConfig.from_pretrained(llama_folder).hidden_size
    assert preflight.check_model("tiny") is None


def test_what_interrupted_writes_left_is_removed_from_all_runs_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("mmcoref"), "propagate", True)
    command = [sys.executable, "-c", "import os; print(os.getpid())"]
    ended = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    folders = (tmp_path, tmp_path / "version_0", tmp_path / "version_0" / "checkpoints")
    folders[-1].mkdir(parents=True)
    left = [temporary_of(folder / "last.ckpt") for folder in folders]
    left = [path.with_name(path.name.replace(f"-{os.getpid()}", f"-{ended}")) for path in left]
    for path in left:
        path.write_text("half")
    (folders[-1] / "last.ckpt").write_text("whole")
    with caplog.at_level("INFO", logger="mmcoref"):
        preflight.prepare_runs(tmp_path)
    assert list(dict.fromkeys(caplog.messages)) == [f"removed {path}, which an interrupted write had left" for path in left]
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["last.ckpt"]
