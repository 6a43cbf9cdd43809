"""What worker processes are given can be pickled, is small, and makes the same batches there."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from mmcoref.data.module import MMCorefDataModule

LOADERS = {"train": "train_dataloader", "val": "val_dataloader", "test": "test_dataloader", "predict": "predict_dataloader"}
RECIPES: dict[str, dict[str, Any]] = {
    "rows": {},
    "packed": {"packed": True},
    "shuffled": {"shuffle_options": True},
    "published": {"recipe": "published"},
    "cyclic": {"permutations": "cyclic"},
}


class _Trainer(SimpleNamespace):
    """What a datamodule asks its trainer; like a real one it cannot be pickled."""

    accumulate_grad_batches, limit_train_batches = 2, 1.0
    distributed_sampler_kwargs = {"num_replicas": 2, "rank": 1}  # noqa: RUF012

    def __reduce__(self) -> Any:
        raise TypeError("a trainer was pickled")


@pytest.fixture
def module(tokenizer: PreTrainedTokenizerFast, data_file: Path, tmp_path: Path) -> Any:
    tokenizer.save_pretrained(tmp_path / "tokenizer")

    def make(packed: bool = False, **options: Any) -> MMCorefDataModule:
        data = MMCorefDataModule(path=str(data_file), tokenizer=str(tmp_path / "tokenizer"), eval_batch_size=2, **options)
        data.setup("fit")
        data.setup("predict")
        data.packed = packed
        data.trainer = _Trainer()  # type: ignore[assignment]
        return data

    return make


def _same(one: Any, other: Any) -> bool:
    """Whether two batches are equal, down to the examples of evaluation rows."""
    pairs = zip(one, other, strict=True)
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else _plain(a) == _plain(b) for a, b in pairs)


def _plain(value: Any) -> Any:
    return list(value) if type(value).__name__ == "Rows" else value


@pytest.mark.parametrize("recipe", RECIPES)
def test_dataset_sampler_and_collate_function_survive_pickling(recipe: str, module: Any) -> None:
    data = module(**RECIPES[recipe])
    for loader in (getattr(data, name)() for name in LOADERS.values()):
        dataset, sampler, collate = pickle.loads(pickle.dumps((loader.dataset, loader.sampler, loader.collate_fn)))
        slots = list(sampler)
        assert slots == list(loader.sampler)
        own = [loader.collate_fn([loader.dataset[slot] for slot in slots[i : i + 2]]) for i in range(0, len(slots), 2)]
        there = [collate([dataset[slot] for slot in slots[i : i + 2]]) for i in range(0, len(slots), 2)]
        assert own
        assert all(_same(one, other) for one, other in zip(own, there, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train", "test"])
def test_spawned_workers_make_the_same_batches(name: str, module: Any) -> None:
    options = {"shuffle_options": True, "packed": True}
    loader = getattr(module(**options, num_workers=1), LOADERS[name])()
    loader.multiprocessing_context = "spawn"
    there = list(loader)
    alone = getattr(module(**options), LOADERS[name])()
    assert there
    assert all(_same(one, other) for one, other in zip(there, alone, strict=True))
