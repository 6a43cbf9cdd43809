"""What a run needs and this machine lacks, found out before anything is downloaded or allocated."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from mmcoref.atomic import remove_abandoned
from mmcoref.data.module import MMCorefDataModule
from mmcoref.data.pretrained import read_config
from mmcoref.data.tokenizer import TINY_NAMES
from mmcoref.errors import UserError, first_line
from mmcoref.model.memory import Shape
from mmcoref.paths import user_path
from mmcoref.run.checkpoint import Stored
from mmcoref.run.launchers import check_launcher
from mmcoref.run.terms import processes

log = logging.getLogger(__name__)

# Two files stand beside each other while one is written: the new one and the one that it replaces.
_CHECKPOINTS_ON_DISK = 2


def check_model(name: str) -> Any:
    """Whether the model can be had: a folder with a config, or a hub repository that this login may read.

    Only config.json is fetched. Returns the config (None for `tiny` and `tiny-random`).

    Raises:
        UserError: no such folder or repository, no access, or no network and nothing in the cache.
    """
    if name in TINY_NAMES:
        return None
    folder = user_path(name)
    if not folder.is_dir():
        folder = _check_hub(name)
    elif not (folder / "config.json").is_file():
        raise UserError(f"model.name {name}: expected a folder with config.json, weights and a tokenizer, found no config.json in it.")
    return read_config(folder, name)


def _check_hub(name: str) -> Path:
    """Fetch a repository's config, and say where it is.

    Raises:
        UserError: no such repository, no access, or no network and nothing in the cache.
    """
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UserError(f"model.name {name!r}: no such folder, and not a hub name either (owner/model), nor `tiny`.")
    page = f"{constants.ENDPOINT}/{name}"
    try:
        return Path(hf_hub_download(name, "config.json")).parent
    except GatedRepoError:
        raise UserError(
            f"model.name {name}: its licence must be accepted first: open {page}, accept it, then log in with `hf auth login` "
            "(or set HF_TOKEN); or give the folder of a copy you have."
        ) from None
    except RepositoryNotFoundError:
        raise UserError(
            f"model.name {name}: no such repository at {page}, or a private one: check the name, or log in with `hf auth login`."
        ) from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        raise UserError(
            f"model.name {name}: not in the cache ({constants.HF_HUB_CACHE}), and {constants.ENDPOINT} cannot be reached: "
            "connect, or give the folder of a copy you have."
        ) from None
    except EntryNotFoundError:
        raise UserError(f"model.name {name}: {page} has no config.json: it is not a transformers model.") from None
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise UserError(f"model.name {name}: {page} answered: {first_line(error)}") from None


def checkpoint_bytes(shape: Shape, name: str) -> int:
    """Bytes of a fit's checkpoint: weights and AdamW's two moments, in fp32; of adapters alone, where the frozen weights have a place."""
    alone = shape.frozen and name not in TINY_NAMES
    return 4 * (shape.trainable if alone else shape.parameters) + 8 * shape.trainable


def check_processes(trainer: Mapping[str, Any]) -> None:
    """Check that the processes which a launcher has started are those that the settings ask for.

    Raises:
        UserError: they are not.
    """
    nodes = int(trainer["num_nodes"])
    check_launcher(processes(trainer) // nodes, nodes)


def check_window(stored: Stored | None, data: MMCorefDataModule, trainer: pl.Trainer) -> None:
    """Whether a fit goes on in optimizer steps of as many records as before: steps, epochs and the learning rate are counted in them.

    Raises:
        UserError: it does not; the sentence names the accumulation that would.
    """
    each = data.rows * data.replicas(trainer)["num_replicas"]
    if stored is None or stored.window in (None, each * trainer.accumulate_grad_batches):
        return
    accumulate, rest = divmod(stored.window, each)
    keeps = f"--trainer.accumulate_grad_batches {accumulate} keeps them"
    if rest:
        keeps = f"processes and a --data.batch_size that divide {stored.window} keep them"
    raise UserError(
        f"the checkpoint's optimizer steps have {stored.window} records, and those of this fit would have "
        f"{each * trainer.accumulate_grad_batches}: {keeps}, and with them the learning rate's schedule."
    )


def check_writable(folder: Path) -> None:
    """Whether runs can be written there.

    Raises:
        UserError: they cannot.
    """
    place = _existing(folder)
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise UserError(
            f"{folder}: no run can be written there (read-only, not yours, or a file): name a folder with --trainer.default_root_dir."
        )


def prepare_runs(folder: Path) -> None:
    """Check that runs can be written in a folder, and remove what interrupted writes have left in its runs.

    Raises:
        UserError: they cannot be written there.
    """
    check_writable(folder)
    for run in [folder, *folder.glob("version_*"), *folder.glob("version_*/checkpoints")]:
        for path in remove_abandoned(run):
            log.info("removed %s, which an interrupted write had left", path)


def check_disk(folder: Path, checkpoint: int, *, model: str) -> None:
    """Whether the disks hold what will be written: the download, where the cache has none, and the checkpoints.

    Args:
        folder: of the runs.
        checkpoint: bytes of one; 0 where none is written.
        model: its name.

    Raises:
        UserError: one does not.
    """
    needed, free = checkpoint * _CHECKPOINTS_ON_DISK, _free(folder)
    if needed > free:
        raise UserError(
            f"{folder}: a checkpoint has {checkpoint / 1e9:.1f} GB, and two stand there while one is replaced: {needed / 1e9:.1f} GB, "
            f"and {free / 1e9:.1f} GB are free: make room, or choose another disk with --trainer.default_root_dir."
        )
    if model in TINY_NAMES or user_path(model).is_dir():
        return
    needed, free = _download_bytes(model), _free(Path(constants.HF_HUB_CACHE))
    if needed > free:
        raise UserError(
            f"{model}: its files are {needed / 1e9:.1f} GB and {constants.HF_HUB_CACHE} has {free / 1e9:.1f} GB free: make room, or choose "
            "another disk with HF_HOME."
        )


def _download_bytes(name: str) -> int:
    """Bytes of the safetensors files that the cache does not have yet; 0 where the hub does not say."""
    try:
        files = HfApi().model_info(name, files_metadata=True).siblings or []
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError):
        return 0
    cache = Path(constants.HF_HUB_CACHE, "models--" + name.replace("/", "--"), "snapshots")
    have = {file.name for file in cache.glob("*/*.safetensors")}
    wanted = [file for file in files if "/" not in file.rfilename and file.rfilename.endswith(".safetensors")]
    return sum(file.size or 0 for file in wanted if file.rfilename not in have)


def _free(folder: Path) -> int:
    """Free bytes of the disk that will hold `folder`, which need not exist yet."""
    return shutil.disk_usage(_existing(folder)).free


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    folder = user_path(folder).absolute()
    while not folder.exists():
        folder = folder.parent
    return folder
