"""Adapters beside a frozen model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from mmcoref import load
from mmcoref.cli import main
from mmcoref.data.batch import packed_batch
from mmcoref.data.encode import Encoder
from mmcoref.data.file import read_records
from mmcoref.data.record import Record
from mmcoref.errors import UserError
from mmcoref.model.adapters import Adapters
from mmcoref.model.backbone import Place, load_backbone
from mmcoref.model.packing import allow_packing
from mmcoref.model.scoring import target_loss_sum
from tests.conftest import llama
from tests.test_cli import CPU, refused

LORA = Adapters(rank=4, alpha=8.0, dropout=0.0, targets=None)


def test_only_adapters_are_trained_and_frozen_products_are_kept_in_what_they_are_computed_in(
    llama_folder: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    lm = load_backbone(str(llama_folder), tokenizer, Place(compute_dtype=torch.float16), LORA)
    trained = {name: weights for name, weights in lm.named_parameters() if weights.requires_grad}
    assert len(trained) == 2 * 7 * 2  # A and B beside seven linear layers of two blocks
    assert all(".lora_" in name for name in trained)
    assert {weights.dtype for weights in trained.values()} == {torch.float32}
    for name, weights in lm.named_parameters():
        if name not in trained:
            half = name.endswith("base_layer.weight") or name == "lm_head.weight"
            assert weights.dtype == (torch.float16 if half else torch.float32), name


@pytest.mark.parametrize("tied", [False, True])
def test_under_autocast_a_frozen_half_model_says_what_a_whole_one_says(
    tied: bool, tokenizer: PreTrainedTokenizerFast, dialogues: tuple[Record, ...], tmp_path: Path
) -> None:
    llama(len(tokenizer), tie_word_embeddings=tied).save_pretrained(tmp_path)
    batch = packed_batch([(example, True) for example in Encoder(tokenizer).encode(list(enumerate(dialogues))).examples], 1)
    losses = []
    for place, adapters in ((Place(compute_dtype=torch.float16), LORA), (Place(), None)):  # an untrained adapter adds nothing
        lm = load_backbone(str(tmp_path), tokenizer, place, adapters)
        allow_packing(lm)
        with torch.autocast("cpu", torch.float16, cache_enabled=False), torch.no_grad():
            losses.append(float(target_loss_sum(lm, batch)))
    assert losses[0] == losses[1]


def test_targets_are_taken_and_unknown_ones_named(llama_folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    lm = load_backbone(str(llama_folder), tokenizer, adapters=Adapters(2, 4.0, 0.0, ("q_proj", "v_proj")))
    named = {name.split(".lora_")[0].rpartition(".")[2] for name, weights in lm.named_parameters() if weights.requires_grad}
    assert named == {"q_proj", "v_proj"}
    with pytest.raises(UserError, match="no linear layer 'query'; it has down_proj, gate_proj, k_proj, lm_head"):
        load_backbone(str(llama_folder), tokenizer, adapters=Adapters(2, 4.0, 0.0, ("q_proj", "query")))


def test_a_run_of_adapters_is_saved_without_the_model_tested_and_gone_on_with(
    llama_folder: Path, data_file: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "base"
    shutil.copytree(llama_folder, base)
    arguments = ["--model.name", str(base), "--data.path", str(data_file), "--model.lora_rank", "4", "--model.lr", "1e-2", *CPU]
    assert main(["fit", *arguments, "--model.warmup_steps", "2", "--trainer.max_epochs", "2"]) == 0
    last = Path("lightning_logs/version_0/checkpoints/last.ckpt")
    assert f"checkpoint (adapters, beside {base}): {last}; next: " in capsys.readouterr().err
    stored = torch.load(last, weights_only=True)
    assert len(stored["state_dict"]) == 28
    assert all(".lora_" in name for name in stored["state_dict"])
    assert any(weights.any() for name, weights in stored["state_dict"].items() if "lora_B" in name)  # they start at 0
    assert sum(len(group["params"]) for group in stored["optimizer_states"][0]["param_groups"]) == 28
    assert main(["test", "--ckpt_path", "last", *CPU]) == 0
    lines = [json.loads(line) for line in Path("lightning_logs/version_1/predictions.jsonl").read_text("utf-8").splitlines()]
    answers = load("lightning_logs/version_0", device="cpu")(read_records(str(data_file)).records[9:])
    assert [answer.text for answer in answers] == [line["text"] for line in lines]
    assert main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "3"]) == 0
    resumed = torch.load(last, weights_only=True)
    assert resumed["global_step"] > stored["global_step"]
    # The frozen weights may have moved, and may not have changed.
    moved = tmp_path / "moved"
    base.rename(moved)
    assert main(["test", "--ckpt_path", "last", "--model.name", str(moved), *CPU]) == 0
    other = tmp_path / "other"
    torch.manual_seed(9)
    changed = llama(len(tokenizer))
    with torch.no_grad():
        changed.model.layers[0].mlp.up_proj.weight.add_(0.01)
    changed.save_pretrained(other)
    tokenizer.save_pretrained(other)
    error = refused(capsys, "test", "--ckpt_path", "last", "--model.name", str(other), *CPU)
    assert "its weights are not those that the checkpoint's adapters were trained with" in error


def test_adapters_of_tiny_are_saved_with_it_as_it_is_in_no_folder(data_file: Path) -> None:
    arguments = ["--data.path", str(data_file), "--model.lora_rank", "2", "--trainer.max_epochs", "1", *CPU]
    assert main(["fit", *arguments]) == 0
    stored = torch.load("lightning_logs/version_0/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert "lm.model.embed_tokens.weight" in stored
    assert main(["test", "--ckpt_path", "last", *CPU]) == 0
