"""What a model was trained on, and whether a run measures it on the same."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lightning.pytorch.cli import LightningArgumentParser

from mmcoref.data.module import MMCorefDataModule
from mmcoref.errors import UserError

log = logging.getLogger(__name__)

DATA_KEY = "mmcoref_data"
_GENERATED = ("sample_train", "sample_seed")  # settings that name generated dialogues
_SHOWN = 12  # hex digits


class DataIdentity(NamedTuple):
    """Names the data of a run.

    Attributes:
        path: of the file, as the run was given it, or `sample`.
        sha256: hex digest of its bytes, or of the generated dialogues.
        records: how many it has.
    """

    path: str
    sha256: str
    records: int

    def __str__(self) -> str:
        return f"sha256 {self.sha256[:_SHOWN]}…, {self.records} records"


def identity(data: MMCorefDataModule) -> DataIdentity:
    """Name the data that a datamodule has read."""
    assert data.file is not None
    return DataIdentity(str(data.hparams["path"]), data.file.sha256, len(data.file.records))


def names_data(parser: LightningArgumentParser, stage: str, args: Sequence[str], trained: Mapping[str, Any]) -> bool:
    """Whether the user names the data of a run, on the command line or in a config; a default is no name.

    Args:
        parser: of all programs.
        stage: the program's name.
        args: the command line.
        trained: settings of the run that wrote the checkpoint.
    """
    assert parser._subcommands_action is not None
    options, key, nobodys = parser._subcommands_action.choices[stage], "data.path", "<nobody's>"
    default = options.get_default(key)
    options.set_defaults({key: nobodys})
    try:
        settings = parser.parse_args(args)[stage]
    finally:
        options.set_defaults({key: default})
    then = trained.get("data") or {}
    return settings[key] != nobodys or any(settings[f"data.{name}"] != then.get(name) for name in _GENERATED if name in then)


def check_data(was: DataIdentity | None, now: DataIdentity, *, given: bool, training: bool) -> None:
    """Compare the data of a run with those that its checkpoint was trained on.

    Args:
        was: what the checkpoint says; None if an earlier version wrote it.
        now: what the run has read.
        given: whether the user has named the data; otherwise their name is the checkpoint's.
        training: whether the run trains on.

    Raises:
        UserError: the name is the checkpoint's, and the data are not; or a fit would continue on other data.
    """
    if was is None:
        log.warning("%s: its checkpoint, of an earlier version, does not say what the model was trained on: not compared", now.path)
    elif was.sha256 == now.sha256:
        return
    elif training:
        raise UserError(
            f"{now.path}: is not what the run was trained on: expected {was}, got {now}. Restore it, or start a new run without "
            "--ckpt_path: a model is trained on one file."
        )
    elif not given:
        raise UserError(
            f"{now.path}: is not what the model was trained on: expected {was}, got {now}. Restore it, or name it with --data.path if "
            "other data are meant."
        )
    else:
        log.warning(
            "data.path %s (%s): the model was trained on %s (%s); whether records measured here are among those cannot be told from "
            "their digests",
            now.path, now, was.path, was,
        )  # fmt: skip
