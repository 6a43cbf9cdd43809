"""Which epoch of a fit is the best, and when none will be better: by the validation part, if there is one."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from mmcoref.errors import UserError


def choosing(settings: dict[str, Any]) -> list[pl.Callback]:
    """What keeps the best epoch of a fit, and ends it when none gets better.

    Args:
        settings: of the fit.

    Raises:
        UserError: it is to end so, and holds out no records to choose by.
    """
    patience = settings["checkpoint"]["patience"]
    if not settings["data"]["val_size"]:
        if patience is not None:
            raise UserError("--checkpoint.patience: needs a validation part to choose by; hold one out with --data.val_size, such as 138.")
        return []
    chosen_by = "val/object_accuracy" if settings["model"]["val_generate"] else "val/likelihood_accuracy"
    best = ModelCheckpoint(monitor=chosen_by, mode="max", filename="best", enable_version_counter=False)
    return [best, *([] if patience is None else [EarlyStopping(chosen_by, mode="max", patience=patience)])]
