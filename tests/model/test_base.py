"""Adapters beside another model than they were trained with are refused, whatever of it has changed."""

from __future__ import annotations

import hashlib
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from mmcoref.data.pretrained import read_config
from mmcoref.errors import UserError
from mmcoref.model import base
from mmcoref.model.base import check_base, fingerprint
from mmcoref.model.loading import open_weights
from tests.conftest import llama


@pytest.fixture
def folder(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    llama(len(tokenizer)).to(torch.bfloat16).save_pretrained(folder)
    return folder


def pickled(folder: Path, *, shards: int = 1) -> dict[str, torch.Tensor]:
    """Puts the same weights into pytorch_model.bin, or several, in place of safetensors."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    if shards == 1:
        torch.save(weights, folder / "pytorch_model.bin")
        return weights
    place = {name: f"pytorch_model-{number % shards}.bin" for number, name in enumerate(weights)}
    for file in sorted({*place.values()}):
        torch.save({name: tensor for name, tensor in weights.items() if place[name] == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": place}))
    return weights


def test_every_number_of_every_tensor_counts(folder: Path) -> None:
    first, weights = fingerprint(folder), load_file(folder / "model.safetensors")
    assert fingerprint(folder) == first
    for name, tensor in weights.items():
        changed = tensor.clone()
        changed.view(-1).view(torch.int16)[-1] ^= 1  # the last bit of the last number
        save_file(weights | {name: changed}, folder / "model.safetensors", {"format": "pt"})
        assert fingerprint(folder) != first, name
    one, *_ = weights
    for other in ({name: tensor for name, tensor in weights.items() if name != one}, weights | {one: weights[one].half()}):
        save_file(other, folder / "model.safetensors", {"format": "pt"})
        assert fingerprint(folder) != first
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert fingerprint(folder) == first


@pytest.mark.parametrize("shards", [1, 2])
def test_pickled_weights_have_the_fingerprint_of_the_same_in_safetensors(shards: int, folder: Path) -> None:
    first = fingerprint(folder)
    weights = pickled(folder, shards=shards)
    assert fingerprint(folder) == first
    name, tensor = next(iter(weights.items()))
    file = "pytorch_model.bin" if shards == 1 else "pytorch_model-0.bin"
    torch.save(torch.load(folder / file, weights_only=True) | {name: tensor + 1}, folder / file)
    assert fingerprint(folder) != first


def test_a_folder_without_weights_or_with_broken_ones_has_none(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:1000])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        fingerprint(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="holds no weights"):
        fingerprint(folder)
    (folder / "pytorch_model.bin").write_bytes(content[:1000])
    with pytest.raises(UserError, match=r"pytorch_model\.bin: is broken"):
        fingerprint(folder)
    for index in ("{", "[]", '{"weight_map": 3}', '{"weight_map": {"a": 3}}'):
        (folder / "model.safetensors.index.json").write_text(index)
        with pytest.raises(UserError, match="expected the names of the files of weights"):
            fingerprint(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../secret"}}')
    with pytest.raises(UserError, match=r"names a file outside its folder, '\.\./secret'"):
        fingerprint(folder)


def changed(folder: Path, **values: Any) -> Path:
    config = json.loads((folder / "config.json").read_text("utf-8"))
    for name, value in values.items():
        config[name] = config.get(name, {}) | value if isinstance(value, dict) else value
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"rope_parameters": {"rope_theta": 500000.0}}, r"rope_parameters.rope_theta is 500000.0, and was 10000.0"),
        ({"rms_norm_eps": 1e-5}, "rms_norm_eps is 1e-05, and was 1e-06"),
        ({"hidden_act": "gelu", "attention_dropout": 0.1}, "attention_dropout is 0.1, and was 0.0, hidden_act is gelu, and was silu"),
        ({"transformers_version": "4.0", "_name_or_path": "elsewhere", "dtype": "float32", "use_cache": False}, ""),
    ],
)
def test_a_config_that_computes_otherwise_is_another_model(values: dict[str, Any], said: str, folder: Path) -> None:
    trained_with, was = read_config(folder, "m").to_dict(), fingerprint(folder)
    changed(folder, **values)
    if not said:
        check_base(folder, "m", now=was, was=was, trained_with=trained_with)
        return
    with pytest.raises(UserError, match=f"model.name m: its config is not the one .* trained with: {said}: name the folder"):
        check_base(folder, "m", now=was, was=was, trained_with=trained_with)


def test_a_fingerprint_of_an_earlier_version_is_compared_as_far_as_it_goes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = []
    monkeypatch.setattr(base.log, "warning", lambda text, *values: said.append(text % values))
    trained_with = read_config(folder, "m").to_dict()
    digest = hashlib.sha256()
    with ExitStack() as opened:
        weights = open_weights(folder, opened)
        for name in sorted(weights):
            row = weights[name]()[:1]
            digest.update(f"{name} {row.shape}".encode() + row.flatten()[:16].float().numpy().tobytes())
    now = fingerprint(folder)
    check_base(folder, "m", now=now, was=digest.hexdigest(), trained_with=trained_with)
    assert said == ["model.name m: the checkpoint, of an earlier version, knows a part of its weights only: the rest is not compared"]
    with pytest.raises(UserError, match="its weights are not those"):
        check_base(folder, "m", now=now, was="0" * 64, trained_with=trained_with)
