"""Weights from files to their places."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaModel, PreTrainedTokenizerFast

from mmcoref.errors import UserError
from mmcoref.model.backbone import build_backbone, load_backbone
from mmcoref.model.base import fingerprint
from mmcoref.model.loading import fill, give_memory, lay_out
from tests.conftest import llama

CPU = torch.device("cpu")


@pytest.fixture(params=[False, True], ids=["head apart", "head tied"])
def folder(request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    llama(len(tokenizer), tie_word_embeddings=request.param).to(torch.bfloat16).save_pretrained(tmp_path, max_shard_size="40KB")
    tokenizer.save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    return tmp_path


def test_a_model_has_the_weights_and_the_logits_that_transformers_gives_it(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    ours, theirs = load_backbone(str(folder), tokenizer), AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert {weights.dtype for weights in ours.parameters()} == {torch.float32}
    assert all(module.training for module in ours.modules())
    state = theirs.state_dict()
    assert ours.state_dict().keys() == state.keys()
    for name, weights in ours.state_dict().items():
        assert torch.equal(weights, state[name]), name
    tied = theirs.config.tie_word_embeddings
    assert (ours.get_output_embeddings().weight is ours.get_input_embeddings().weight) is tied  # type: ignore[no-untyped-call]
    ids = torch.arange(40)[None]
    assert torch.equal(ours.eval()(ids).logits, theirs.eval()(ids).logits)  # so buffers that are in no file are right, too


def test_a_model_that_waits_for_a_checkpoint_has_its_shape_ties_and_buffers(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    loaded = load_backbone(str(folder), tokenizer)
    waiting = build_backbone(json.loads(loaded.config.to_json_string(use_diff=False)))
    waiting.load_state_dict(loaded.state_dict())
    ids = torch.arange(40)[None]
    assert torch.equal(waiting(ids).logits, loaded(ids).logits)


def test_nothing_is_allocated_before_the_place_is_known(folder: Path) -> None:
    model = lay_out(AutoModelForCausalLM.from_pretrained(folder).config)
    assert {weights.device.type for weights in (*model.parameters(), *model.buffers())} == {"meta"}


def test_other_names_than_the_models_are_loaded_as_transformers_does(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    whole = llama(len(tokenizer), tie_word_embeddings=True)
    bare = LlamaModel(whole.config)
    bare.load_state_dict(whole.model.state_dict())
    bare.save_pretrained(tmp_path)  # its names have no "model." in front
    assert "embed_tokens.weight" in load_file(tmp_path / "model.safetensors")
    tokenizer.save_pretrained(tmp_path)
    for name, weights in load_backbone(str(tmp_path), tokenizer).state_dict().items():
        assert torch.equal(weights, whole.state_dict()[name]), name


def test_a_missing_file_a_cut_one_and_another_shape_are_told_in_one_sentence(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    file = max(folder.glob("*.safetensors"))
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=rf"{file.name}: not a whole safetensors file"):
        load_backbone(str(folder), tokenizer)
    file.unlink()
    with pytest.raises(UserError, match=rf"{file.name} is missing, which model.safetensors.index.json names"):
        load_backbone(str(folder), tokenizer)
    file.write_bytes(content)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 96}), "utf-8")
    with pytest.raises(UserError, match=r"has the shape \[\d+, \d+\] and its config.json asks for \[\d+, \d+\]"):
        load_backbone(str(folder), tokenizer)


def test_a_fingerprint_goes_by_weights_and_not_by_files(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    first = fingerprint(folder)
    assert re.fullmatch("sha256:[0-9a-f]{64}", first)
    model = AutoModelForCausalLM.from_pretrained(folder)
    other = tmp_path_factory.mktemp("other")
    model.save_pretrained(other)
    assert len(list(other.glob("*.safetensors"))) == 1
    assert fingerprint(other) == first
    state = load_file(other / "model.safetensors")
    state["model.layers.1.mlp.down_proj.weight"][0, 0] += 1
    save_file(state, other / "model.safetensors", {"format": "pt"})
    assert fingerprint(other) != first


def test_filling_reads_each_tensor_once_and_in_turn(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmcoref.model import loading

    written: list[torch.Tensor] = []
    write = loading._write
    monkeypatch.setattr(loading, "_write", lambda target, source: (written.append(target), write(target, source)))
    model = lay_out(AutoModelForCausalLM.from_pretrained(folder).config)
    give_memory(model, CPU)
    fill(model, folder)
    assert [id(one) for one in written] == [id(one) for one in model.parameters()]
