"""The plan of a fit: figures checked by hand, verdicts and what they propose, lengths and where they come from, mistakes."""

from __future__ import annotations

import io
import math
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import constants
from rich.console import Console
from transformers import PreTrainedTokenizerFast

from mmcoref.cli import main
from mmcoref.data.encode import Encoder
from mmcoref.data.file import read_records
from mmcoref.data.prompt import answer_text, prompt_text
from mmcoref.data.record import Record
from mmcoref.errors import UserError
from mmcoref.model.capacity import most_records
from mmcoref.model.memory import FULL, PUBLISHED_SHAPES, training_flops
from mmcoref.run import terms
from mmcoref.run.terms import machine_of, parse_memory
from mmcoref.tools.plan import Plan, plan_of, run
from mmcoref.tools.plan_table import disk, run_length, show, verdict, ways_out
from tests.conftest import published_path

CONFIGS = Path(__file__).parents[2] / "configs"
DEFAULTS: dict[str, dict[str, Any]] = {
    "model": {
        "name": "tiny", "lora_rank": 0, "lora_alpha": 32.0, "lora_dropout": 0.0, "lora_targets": None, "gradient_checkpointing": None,
        "val_generate": True,
    },
    "data": {
        "path": "data/ai_response.json", "prompt": "base", "val_size": 0, "limit": None, "max_tokens": 512, "overlength": "raise",
        "batch_size": 2, "micro_batch_size": None, "eval_batch_size": 16, "recipe": "mmcoref", "sample_train": 1380, "sample_seed": 0,
    },
    "checkpoint": {"patience": None},
    "trainer": {
        "accelerator": "auto", "devices": "auto", "num_nodes": 1, "strategy": "auto", "precision": None, "accumulate_grad_batches": 1,
        "max_epochs": 30, "max_steps": -1, "limit_train_batches": None, "limit_val_batches": None, "val_check_interval": None,
    },
}  # fmt: skip
SMALL, MIDDLE, LARGE, INSTRUCT = PUBLISHED_SHAPES
FILES = {SMALL: "1b", MIDDLE: "3b", LARGE: "8b", INSTRUCT: "8b_instruct"}
PARAMETERS = {SMALL: 1_235_814_400, MIDDLE: 3_212_749_824, LARGE: 8_030_261_248, INSTRUCT: 8_030_261_248}


def settings(*files: str, **options: Any) -> dict[str, Any]:
    """What a fit with these configs and options would have; `trainer__devices=8` is `--trainer.devices 8`."""
    merged = {section: dict(values) for section, values in DEFAULTS.items()}
    for file in files:
        for section, values in yaml.safe_load((CONFIGS / f"{file}.yaml").read_text("utf-8")).items():
            merged[section] |= values
    for option, value in options.items():
        section, _, key = option.partition("__")
        merged[section][key] = value
    return merged


def plan(*files: str, gpu_memory: str | None = "80GB", **options: Any) -> Plan:
    return plan_of(settings(*files, **options), gpu_memory)


def printed(plan: Plan) -> str:
    out = io.StringIO()
    show(plan, Console(file=out, width=160))
    return out.getvalue()


@pytest.fixture(autouse=True)
def _no_gpu_and_no_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


# ---------------------------------------------------------------------- the published models


@pytest.mark.parametrize("name", FILES)
def test_a_published_model_is_planned_offline(name: str) -> None:
    whole = plan(FILES[name], trainer__strategy="ddp").need
    cut = plan(FILES[name], trainer__strategy="sharded").need
    for need, parts in ((whole, 1), (cut, 8)):
        training, weights = need.training, -(-4 * PARAMETERS[name] // parts)
        assert (training.weights, training.optimizer) == (weights, 2 * weights)
        assert need.validation.weights + need.validation.gradients + need.validation.optimizer == 4 * weights  # 16 bytes a parameter
        assert need.peak >= training.total > 3 * weights
    assert cut.training.buckets == whole.training.buckets == 0
    assert whole.training.gathered == 0 < cut.training.gathered


def test_8b_is_printed() -> None:
    text = printed(plan("8b", trainer__strategy="ddp"))
    for line in (
        "meta-llama/Llama-3.1-8B: memory of each of 8 GPUs at its peak, ddp, 16-mixed",
        "weights (8,030,261,248 parameters) │ 32.1 │ 40.2% │",
        "gradients (8,030,261,248 trained) │ 32.1 │ 40.2% │",
        "optimizer state (AdamW, fused: no temporaries) │ 64.2 │ 80.3% │",
        "optimizer step │ 64 records, 8 a process",
        "gradient checkpointing │ yes",
        "optimizer steps │ 660",
        "disk for checkpoints │ 192.7 GB",
        "does not fit: ",
        "try --trainer.strategy sharded (45.7 GB).",
    ):
        assert line in " ".join(text.split()), line
    text = " ".join(printed(plan("8b", trainer__strategy="sharded")).split())
    assert "weights (8,030,261,248 parameters) │ 4.0 │ 5.0% │" in text
    assert "at its peak, sharded, 16-mixed" in text
    assert text.count("estimated") == 4


def test_the_run_as_the_command_line_has_it(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plan", "--config", str(CONFIGS / "8b.yaml"), "--gpu_memory", "80GB", "--trainer.strategy"]
    assert main([*arguments, "ddp"]) == 1
    assert "try --trainer.strategy sharded" in capsys.readouterr().out
    assert main([*arguments, "sharded"]) == 0
    assert "\nfits: " in capsys.readouterr().out
    assert not list(Path().rglob("lightning_logs"))


# ---------------------------------------------------------------------- verdicts


def test_what_is_proposed_fits(capsys: pytest.CaptureFixture[str]) -> None:
    refused = plan("8b", trainer__strategy="ddp")
    options, other = next(ways_out(refused))
    assert options == "--trainer.strategy sharded"
    assert other.need == plan("8b", trainer__strategy="sharded").need
    assert run(settings("8b", trainer__strategy="ddp"), gpu_memory="80GB") == 1
    assert run(settings("8b", trainer__strategy="sharded"), gpu_memory="80GB") == 0
    assert "does not fit" in capsys.readouterr().out
    ways = dict(ways_out(refused))
    assert ways["--config configs/lora.yaml"].need == plan("8b", "lora").need
    assert ways[f"--model.name {MIDDLE}"].need == plan("8b", model__name=MIDDLE, trainer__strategy="ddp").need
    assert all(way.need.peak <= FULL * 80e9 for way in ways.values())


@pytest.mark.parametrize(
    ("options", "gpu_memory", "proposed"),
    [
        ({"model__gradient_checkpointing": False, "trainer__devices": 1}, "26GB", "--model.gradient_checkpointing true"),
        ({"data__batch_size": 64, "data__micro_batch_size": 64, "trainer__devices": 1}, "26GB", "--data.micro_batch_size 1"),
        ({"data__eval_batch_size": 512, "trainer__devices": 1}, "80GB", "--data.eval_batch_size 256"),
        ({"trainer__devices": 1}, "20GB", "--config configs/lora.yaml"),
        ({"trainer__devices": 2}, "20GB", "--trainer.strategy sharded"),
    ],
)
def test_the_nearest_way_out_is_proposed(options: dict[str, Any], gpu_memory: str, proposed: str) -> None:
    refused = plan("1b", gpu_memory=gpu_memory, **options)
    assert not refused.fits
    assert f"try {proposed} (" in verdict(refused)


def test_base_models_are_not_proposed_for_a_chat() -> None:
    names = [options for options, _ in ways_out(plan("8b", gpu_memory="40GB", trainer__devices=1))]
    assert f"--model.name {SMALL}" in names
    names = [options for options, _ in ways_out(plan("8b_instruct", gpu_memory="40GB", trainer__devices=1))]
    assert "--config configs/lora.yaml" in names
    assert not any("--model.name" in name for name in names)


def test_more_gpus_keep_the_records_of_a_step() -> None:
    refused = plan("8b", gpu_memory="24GB", trainer__strategy="sharded")
    options, other = next(ways_out(refused))
    more = "--trainer.strategy sharded --trainer.devices 8 --trainer.num_nodes 2 --trainer.accumulate_grad_batches 2"
    assert options == more
    step = other.need.step
    assert step.processes * step.records * step.micro_batches == 64
    changed = {"trainer__num_nodes": 2, "trainer__accumulate_grad_batches": 2, "trainer__strategy": "sharded"}
    assert other.need == plan("8b", gpu_memory="24GB", **changed).need


def test_where_nothing_fits_the_size_that_would_is_named() -> None:
    refused = plan("8b", "lora", gpu_memory="2GB")
    size = refused.need.peak / FULL / 1e9
    assert f"try devices of {size + 0.1:.1f} GB, as nothing else" in verdict(refused)
    # On devices of that size the choice of micro-batches is free again, and still fits.
    assert plan("8b", "lora", gpu_memory=f"{size + 0.1:.1f}GB").need.training.total <= FULL * (size + 0.1) * 1e9


def test_adapters_let_8b_fit_data_parallelism() -> None:
    fits = plan("8b", "lora")
    assert fits.fits
    adapters = 16 * 32 * (2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336))
    assert fits.terms.shape.trainable == adapters
    assert disk(fits) == 2 * 12 * adapters
    assert "gradients (41,943,040 trained) │ 0.2" in " ".join(printed(fits).split())


# ---------------------------------------------------------------------- lengths


def test_without_a_data_file_the_published_lengths_are_taken() -> None:
    lengths = plan("1b").lengths
    assert lengths.estimated
    assert "no data file" in lengths.source
    assert (len(lengths.trained), min(lengths.trained), max(lengths.trained)) == (1380, 230, 431)
    assert sum(lengths.trained) == pytest.approx(426_164, rel=1e-3)  # counted once with Llama 3's tokenizer
    assert sum(lengths.answers) == pytest.approx(17_881, rel=0.02)
    assert max(plan("8b_instruct").lengths.trained) == 431 + 34  # the chat template
    assert set(plan("1b", "published").lengths.trained) == {512}
    assert len(plan("1b", data__val_size=138).lengths.trained) == 1380 - 138
    assert plan("1b", data__limit=10).lengths.trained == tuple(sorted(lengths.trained))[-10:]


def test_without_a_tokenizer_characters_are_counted(data_file: Path) -> None:
    lengths = plan("1b", data__path=str(data_file)).lengths
    assert lengths.estimated
    assert "0.60 tokens a character" in lengths.source
    assert len(lengths.trained) == 9  # of twelve records
    record = read_records(data_file).records[0]
    prompt, answer = (math.ceil(rate * len(text)) + 1 for rate, text in ((0.60, prompt_text(record)), (0.71, answer_text(record.gold))))
    assert (lengths.trained[0], lengths.answers[0]) == (prompt + answer, answer)
    assert lengths.option >= max(lengths.answers)
    assert "estimated" in printed(plan("1b", data__path=str(data_file)))


def test_the_published_tokens_are_estimated_within_two_percent() -> None:
    estimated, counted = plan("1b", data__path=published_path()).lengths, plan("1b").lengths
    assert sum(estimated.trained) == pytest.approx(sum(counted.trained), rel=0.02)
    for share in (-1, -8):  # the longest, which decide the memory
        assert sum(sorted(estimated.trained)[share:]) == pytest.approx(sum(sorted(counted.trained)[share:]), rel=0.03)
    assert plan("8b", data__path=published_path()).need.peak == pytest.approx(plan("8b").need.peak, rel=0.01)


def test_a_folder_with_a_tokenizer_is_counted_exactly(
    llama_folder: Path, data_file: Path, tokenizer: PreTrainedTokenizerFast, dialogues: tuple[Record, ...]
) -> None:
    counted = plan(model__name=str(llama_folder), data__path=str(data_file))
    examples = Encoder(tokenizer).encode(list(enumerate(dialogues[:9]))).examples
    assert not counted.lengths.estimated
    assert counted.lengths.trained == tuple(example.trained_tokens for example in examples)
    assert counted.lengths.answers == tuple(len(example.answer_ids) for example in examples)
    assert counted.terms.config.hidden_size == 32
    assert "estimated" not in printed(counted)
    held_out = plan(model__name=str(llama_folder), data__path=str(data_file), data__val_size=3)
    assert len(held_out.lengths.trained) == 6
    assert plan(model__name=str(llama_folder), data__path=str(data_file), data__limit=2).lengths.trained == counted.lengths.trained[:2]
    assert disk(held_out) == 3 * 12 * held_out.terms.shape.parameters  # the last one, the best one, one that is being written


def test_the_cache_is_looked_into(llama_folder: Path, data_file: Path) -> None:
    repository = Path(constants.HF_HUB_CACHE, "models--owner--model")
    shutil.copytree(llama_folder, repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    known = plan(model__name="owner/model", data__path=str(data_file))
    assert known.terms.config.hidden_size == 32
    assert not known.lengths.estimated


def test_nothing_is_asked_for_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def refused(*arguments: Any, **_: Any) -> Any:
        asked.append(arguments)
        raise OSError

    monkeypatch.setattr(socket, "getaddrinfo", refused)
    monkeypatch.setattr(socket.socket, "connect", refused)
    assert plan("8b").terms.shape.layers == 32
    with pytest.raises(UserError):
        plan(model__name="owner/model")
    assert not asked


@pytest.mark.parametrize("name", ["tiny", "tiny-random"])
def test_the_embedded_model_is_planned(name: str, data_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = settings(model__name=name, data__path="sample", data__sample_train=50, trainer__accelerator="cpu", trainer__devices=2)
    assert run(asked, gpu_memory=None) == 0
    assert "shared by 2" in capsys.readouterr().out
    known = plan_of(asked, None)
    assert not known.lengths.estimated
    assert len(known.lengths.trained) == 50
    assert known.machine.capacity == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    assert "hours are not estimated" in printed(known)
    assert plan_of(settings(model__name=name), "8GB").lengths.estimated  # no data file: its tokenizer is trained on generated dialogues


# ---------------------------------------------------------------------- the run


def test_steps_operations_and_hours_are_reckoned() -> None:
    known = plan("8b")
    steps, flops = run_length(known)
    assert steps == 660
    lengths = known.lengths
    assert flops == pytest.approx(30 * training_flops(known.terms.shape, lengths.trained, sum(lengths.answers)))
    # 7.0 B weights in blocks, the last MLP's 0.18 B less, for 426 thousand tokens in 30 epochs.
    assert flops == pytest.approx(6 * (7_504_658_432 - 525_336_576 - 176_160_768) * 426_000 * 30, rel=0.05)
    minutes = flops / (8 * 989e12 * 0.4) / 60
    assert f"{minutes:.2g} minutes at 0.40 of an H100's 989 TFLOP/s" in " ".join(printed(known).split())
    again = plan("8b", model__gradient_checkpointing=True)
    assert run_length(again)[1] > 1.2 * flops
    full = plan("1b", trainer__precision="32-true")
    assert "of an H100's 67 TFLOP/s" in " ".join(printed(full).split())


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"trainer__max_steps": 100}, 100),
        ({"trainer__max_epochs": None, "trainer__max_steps": 100}, 100),
        ({"trainer__max_epochs": 2}, 44),
        ({"trainer__limit_train_batches": 0.5}, 330),
        ({"trainer__limit_train_batches": 8}, 60),  # micro-batches, which are then left as they are: 4 a step
        ({"data__recipe": "published"}, 630),
    ],
)
def test_what_ends_the_run_is_minded(options: dict[str, Any], steps: int) -> None:
    limited, whole = plan("1b", **options), plan("1b")
    assert run_length(limited)[0] == steps
    if "data__recipe" not in options:
        assert run_length(limited)[1] == pytest.approx(run_length(whole)[1] * steps / 660)


@pytest.mark.parametrize(("epochs", "seconds", "unit"), [(900, 3600, "hours"), (60, 60, "minutes"), (1, 1, "seconds")])
def test_a_run_is_told_in_hours_minutes_or_seconds(epochs: int, seconds: int, unit: str) -> None:
    known = plan("8b", trainer__max_epochs=epochs)
    assert f"{run_length(known)[1] / (8 * 989e12 * 0.4) / seconds:.2g} {unit} at 0.40" in " ".join(printed(known).split())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "64 records, 8 a process │"),
        ({"trainer__devices": 4}, "32 records, 8 a process; 64 as published: --trainer.accumulate_grad_batches 8 │"),
        ({"trainer__devices": 3}, "24 records, 8 a process; 64 as published, which 3 processes do not divide │"),
    ],
)
def test_a_step_of_other_records_than_published_is_told(options: dict[str, Any], said: str) -> None:
    assert f"optimizer step │ {said}" in " ".join(printed(plan("1b", **options)).split())


def test_rows_that_a_strategy_has_not_are_not_there() -> None:
    alone, ddp, sharded = (
        printed(plan("1b", trainer__devices=devices, trainer__strategy=strategy))
        for devices, strategy in ((1, "auto"), (8, "ddp"), (8, "sharded"))
    )
    assert ["DDP buckets" in text for text in (alone, ddp, sharded)] == [False, True, False]
    assert ["gathered weights" in text for text in (alone, ddp, sharded)] == [False, False, True]
    assert "between epochs (16 records validated at a time)" in ddp
    assert "between epochs" not in printed(plan("1b", trainer__limit_val_batches=0))


def test_processors_take_passes_that_get_no_faster_if_larger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terms, "machine_memory", lambda: 10**12)
    on_cpu = plan("1b", gpu_memory=None, trainer__accelerator="cpu")
    assert on_cpu.need.step.records == most_records(torch.device("cpu"), on_cpu.terms.config, on_cpu.lengths.trained) == 1
    assert plan("1b").need.step.records == 8


def test_memory_of_a_machine_is_its_processes() -> None:
    one, eight = plan("8b", trainer__devices=1, trainer__strategy="auto"), plan("8b")
    assert eight.host_memory == 8 * one.host_memory == 8 * (3 * 10**9 + 4 * 525_336_576)
    assert plan("8b", trainer__num_nodes=2).host_memory == eight.host_memory


def test_processors_share_their_memory_with_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terms, "machine_memory", lambda: 25 * 10**9)
    alone = plan("1b", gpu_memory=None, trainer__accelerator="cpu", trainer__devices=1, model__lora_rank=16)
    assert alone.host_memory == 3 * 10**9 + alone.need.peak
    assert alone.fits
    monkeypatch.setattr(terms, "machine_memory", lambda: alone.host_memory - 1)
    assert alone.need.peak < FULL * (alone.host_memory - 1)
    assert not plan("1b", gpu_memory=None, trainer__accelerator="cpu", trainer__devices=1, model__lora_rank=16).fits


# ---------------------------------------------------------------------- machines and mistakes


def test_a_memory_is_read() -> None:
    assert [parse_memory(text) for text in ("80GB", "80GiB", "141 GB", "1.5tb", " 512 MiB ")] == [
        80 * 10**9, 80 * 2**30, 141 * 10**9, 1_500_000_000_000, 2**29,
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["80", "GB", "eighty GB", "0GB", "-80GB", "80GB each", ""])
def test_a_memory_that_is_none_is_told_in_a_sentence(text: str) -> None:
    with pytest.raises(UserError, match="expected a number above 0 and a unit, such as 80GB"):
        run(settings("8b"), gpu_memory=text)


def test_the_smallest_gpu_here_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(terms, "device_memory", lambda device: (40 - device.index) * 10**9)
    machine = machine_of({"accelerator": "gpu", "devices": "auto", "num_nodes": 1}, None)
    assert (machine.processes, machine.capacity, machine.source, machine.note) == (2, 39 * 10**9, "the smallest here", "")


def test_what_is_assumed_is_said() -> None:
    known = plan("8b", gpu_memory=None, trainer__devices=-1)
    assert (known.machine.processes, known.machine.capacity) == (1, 80 * 10**9)
    text = " ".join(printed(known).split())
    assert "Memory of a GPU: assumed, as there is no GPU here." in text
    assert "trainer.devices -1 counts as 1, as there is no GPU here." in text
    assert "one GPU" in text


@pytest.mark.parametrize(
    ("strategy", "sharded"),
    [
        ("auto", False),
        ("ddp", False),
        ("sharded", True),
        ({"class_path": "lightning.pytorch.strategies.DDPStrategy"}, False),
        ({"class_path": "lightning.pytorch.strategies.ModelParallelStrategy"}, True),
        ({"class_path": "mmcoref.run.strategy.ShardedStrategy", "init_args": {}}, True),
    ],
)
def test_strategies_are_told_apart(strategy: Any, sharded: bool) -> None:
    assert plan("1b", trainer__strategy=strategy).need.step.sharded is sharded


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"model__name": "owner/unknown"}, "model.name owner/unknown: no folder with a config.json, and not in the cache"),
        ({"model__lora_rank": 8}, "use --trainer.strategy ddp"),
        ({"model__lora_rank": 8, "model__lora_targets": ["no_proj"], "trainer__strategy": "ddp"}, "no linear layer 'no_proj'"),
        ({"data__micro_batch_size": 3}, "expected a divisor of the 8 records that a process has of an optimizer step, got 3"),
        ({"data__path": "elsewhere.json"}, "elsewhere.json: no such data file"),
        ({"trainer__accelerator": "cpu"}, "--gpu_memory: the settings have trainer.accelerator cpu"),
        ({"trainer__max_epochs": None}, "both unlimited"),
        ({"data__recipe": "published", "data__limit": 10}, "10 records fill none"),
        ({"trainer__strategy": "shardd"}, "trainer.strategy: expected auto, ddp or sharded, got shardd"),
        ({"trainer__strategy": "fsdp"}, "trainer.strategy: expected auto, ddp or sharded, got fsdp"),
        ({"trainer__devices": "banana"}, "trainer.devices: expected auto, a number above 0 or a list such as [0, 1], got banana"),
        ({"trainer__devices": 0}, "trainer.devices: expected auto, a number above 0"),
        ({"trainer__devices": "-3"}, "trainer.devices: expected auto, a number above 0"),
        ({"trainer__num_nodes": 0}, "trainer.num_nodes: expected 1 or more, got 0"),
        ({"trainer__accelerator": "tpu"}, "trainer.accelerator: expected auto, cpu, gpu, cuda or mps, got tpu"),
        ({"trainer__accumulate_grad_batches": 0}, "trainer.accumulate_grad_batches: expected 1 or more, got 0"),
        ({"data__batch_size": 0}, "data.batch_size: expected 1 or more, got 0"),
        ({"data__val_size": -3}, "data.val_size: expected 0 or more, got -3"),
        ({"data__val_size": 1380}, "data.val_size: expected 0 to 1379 of the 1380 train records, got 1380"),
        ({"checkpoint__patience": 3}, "--checkpoint.patience: needs a validation part"),
        ({"model__lora_rank": -4}, "model.lora_rank: expected 0 or more, got -4"),
        ({"model__lora_rank": 4, "model__lora_dropout": 1.5}, "model.lora_dropout: expected 0 or more and less than 1, got 1.5"),
        ({"model__lora_rank": 4, "model__lora_targets": []}, "model.lora_targets: expected names of linear layers"),
        ({"model__lora_alpha": 0.0}, "model.lora_alpha: expected a number above 0, got 0.0"),
        ({"model__lora_targets": ["q_proj"]}, "model.lora_targets: model.lora_rank is 0"),
    ],
)
def test_mistakes_are_told_in_a_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as raised:
        run(settings("8b", **{"trainer__strategy": "sharded"} | options), gpu_memory="80GB")
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_folder_that_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no folder with a config\.json"):
        plan(model__name=str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(UserError, match="not a causal language model"):
        plan(model__name=str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "nothing of the kind"}')
    with pytest.raises(UserError, match="its config cannot be read"):
        plan(model__name=str(tmp_path))
