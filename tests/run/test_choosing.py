"""Which epoch is kept, and when a fit ends."""

from __future__ import annotations

from typing import Any

import pytest
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from mmcoref.errors import UserError
from mmcoref.run.choosing import choosing


def settings(val_size: int, patience: int | None, *, generates: bool = True) -> dict[str, Any]:
    return {"data": {"val_size": val_size}, "model": {"val_generate": generates}, "checkpoint": {"patience": patience}}


@pytest.mark.parametrize(("generates", "score"), [(True, "val/object_accuracy"), (False, "val/likelihood_accuracy")])
def test_the_best_epoch_has_the_highest_score_of_the_validation_part(generates: bool, score: str) -> None:
    best, stopping = choosing(settings(138, 3, generates=generates))
    assert isinstance(best, ModelCheckpoint)
    assert isinstance(stopping, EarlyStopping)
    assert (best.monitor, best.mode, best.filename) == (score, "max", "best")
    assert (stopping.monitor, stopping.mode, stopping.patience) == (score, "max", 3)
    assert len(choosing(settings(138, None))) == 1


def test_without_a_validation_part_nothing_is_chosen() -> None:
    assert choosing(settings(0, None)) == []
    with pytest.raises(UserError, match=r"hold one out with --data\.val_size"):
        choosing(settings(0, 3))
