"""What a run takes over from a checkpoint, and what may change when it is resumed; docs/resume.md has the rule.

A checkpoint is a file that may come from anyone. It gives plain values for settings that this program knows, each checked
against its type, and never the name of a class to be made.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, get_type_hints

import lightning.pytorch as pl
from pydantic import TypeAdapter, ValidationError

from mmcoref.data.module import MMCorefDataModule
from mmcoref.errors import UserError
from mmcoref.model.module import MMCorefModule
from mmcoref.run.callbacks import Checkpoints
from mmcoref.run.checkpoint import Stored

log = logging.getLogger(__name__)

# The trainer's settings that a resumed run takes over. Not default_root_dir, as a run continues in its own folder; nor
# max_time, which is the time of one start.
_TRAINER: dict[str, Any] = {
    "accelerator": str,
    "strategy": str,
    "devices": int | str | list[int],
    "num_nodes": int,
    "precision": int | str | None,
    "logger": bool | None,
    "max_epochs": int | None,
    "min_epochs": int | None,
    "max_steps": int,
    "min_steps": int | None,
    "limit_train_batches": int | float | None,
    "limit_val_batches": int | float | None,
    "overfit_batches": int | float,
    "val_check_interval": int | float | None,
    "check_val_every_n_epoch": int | None,
    "num_sanity_val_steps": int | None,
    "log_every_n_steps": int | None,
    "enable_progress_bar": bool | None,
    "enable_model_summary": bool | None,
    "accumulate_grad_batches": int,
    "gradient_clip_val": int | float | None,
    "gradient_clip_algorithm": str | None,
    "deterministic": bool | str | None,
    "benchmark": bool | None,
    "detect_anomaly": bool,
}
_SILENTLY_LEFT = ("default_root_dir", "limit_test_batches", "limit_predict_batches")
_UNSET = {name: parameter.default for name, parameter in inspect.signature(pl.Trainer).parameters.items()}

# What no run of a checkpoint can change, and what it decides.
_OF_THE_MODEL = {
    "model.lora_rank": "which weights there are",
    "model.lora_alpha": "what the adapters compute",
    "model.lora_targets": "which weights there are",
}
# What, besides, a resumed run cannot change.
_FIXED = {
    "data.prompt": "how a record is written",
    "data.recipe": "what is trained, and how it is divided into steps",
    "trainer.val_check_interval": "after which steps an epoch is validated",
    "data.val_size": "which records are trained on",
    "data.limit": "which records are trained on",
    "data.sample_train": "which records are trained on",
    "data.sample_seed": "which records are trained on",
}


class Inherited(NamedTuple):
    """Settings from a checkpoint.

    Attributes:
        settings: section -> name -> plain value; `seed_everything` has no section.
        left: names of the trainer's settings that the run had and that are not taken over.
    """

    settings: dict[str, Any]
    left: tuple[str, ...]


def inherit(stored: Stored, stage: str) -> Inherited:
    """Take over a checkpoint's settings: all of them to continue training, otherwise those that decide what is measured.

    Raises:
        UserError: a value that its setting cannot have.
    """
    settings: dict[str, Any] = {
        "model": _typed_section(stored, "model", MMCorefModule),
        "data": _typed_section(stored, "data", MMCorefDataModule),
    }
    seed = stored.config.get("seed_everything")
    if isinstance(seed, bool | int):
        settings["seed_everything"] = seed
    known, left = _divide(_section(stored, "trainer"))
    if stage == "fit":
        settings["checkpoint"] = _typed_section(stored, "checkpoint", Checkpoints)
        return Inherited(settings | {"trainer": known}, left)
    precision = {"precision": known["precision"]} if "precision" in known else {}
    return Inherited(settings | {"trainer": precision}, ())


def check_changes(stored: Stored, inherited: Inherited, settings: Mapping[str, Any], stage: str) -> None:
    """Report each setting that differs from the checkpoint's, and refuse those that cannot.

    Args:
        stored: the checkpoint.
        inherited: what it gave.
        settings: those of the run.
        stage: of the run.

    Raises:
        UserError: a setting that the checkpoint has decided.
    """
    now = dict(flat(settings))
    for key, old in flat(inherited.settings):
        new = now.get(key, old)
        if new == old:
            continue
        if key == "model.name" and stored.base is None:
            raise UserError(f"--model.name {new}: the checkpoint holds {old}, its shape and its tokenizer; leave --model.name out.")
        if key in _OF_THE_MODEL:
            raise UserError(f"--{key} {new}: the checkpoint has {old}, which decides {_OF_THE_MODEL[key]}: leave it out.")
        if key in _FIXED and stage == "fit":
            raise UserError(
                f"--{key} {new}: the run that is resumed has {old}, which decides {_FIXED[key]}: leave it out, or start a "
                "new run without --ckpt_path."
            )
        log.info("%s: %s (given now) instead of %s (checkpoint)", key, new, old)
    absent = [f"trainer.{name}" for name in inherited.left if settings["trainer"].get(name) == _UNSET.get(name)]
    if absent:
        log.warning(
            "not taken over from the checkpoint: %s; give them again, in a --config or as options, if this run is to have them",
            ", ".join(absent),
        )


def flat(settings: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Walk nested settings as (dotted name, value) pairs."""
    if not isinstance(settings, dict):
        yield prefix, settings
        return
    for key, value in settings.items():
        yield from flat(value, f"{prefix}.{key}" if prefix else str(key))


def _typed_section(stored: Stored, section: str, owner: type) -> dict[str, Any]:
    """Take the values of a section that the owner's constructor knows, each of its type."""
    types = get_type_hints(owner.__init__)  # type: ignore[misc]
    values = _section(stored, section)
    taken = {}
    for name in inspect.signature(owner).parameters:
        if name not in values:
            continue
        try:
            taken[name] = TypeAdapter(types[name]).validate_python(values[name])
        except ValidationError:
            raise UserError(
                f"{stored.path}: holds {values[name]!r} as {section}.{name}, which is not of its type: the file is damaged, or "
                "not one of mmcoref's."
            ) from None
    return taken


def _divide(trainer: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Divide the trainer's settings into those that are taken over and the names of those that are not."""
    known: dict[str, Any] = {}
    left = []
    for name, value in trainer.items():
        if name in _TRAINER and _is(value, _TRAINER[name]):
            known[name] = value
        elif value not in (None, [], _UNSET.get(name)) and name not in _SILENTLY_LEFT:
            left.append(name)
    return known, tuple(left)


def _is(value: Any, kind: Any) -> bool:
    try:
        TypeAdapter(kind).validate_python(value, strict=True)
    except ValidationError:
        return False
    return True


def _section(stored: Stored, section: str) -> Mapping[str, Any]:
    values = stored.config.get(section) or {}
    if not isinstance(values, dict):
        raise UserError(
            f"{stored.path}: holds {type(values).__name__} as settings of {section}: the file is damaged, or not one of mmcoref's."
        )
    return values
