"""Folders of sharded checkpoints, read without running anything that they hold.

torch reads such a folder with pickle as it is: a `.metadata` file, or an entry of a `.distcp` file, that names a function has
it called. Here a name that no checkpoint needs ends the reading before anything is made of it.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path, PurePath
from typing import Any

import torch
from torch.distributed.checkpoint._traverse import set_element
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict, load

from mmcoref.errors import UserError, first_line

METADATA = ".metadata"
_WEIGHTS = "state_dict."  # what the names of a sharded run's weights begin with
_DESCRIPTIONS = "torch.distributed.checkpoint.metadata"
_NEEDED = {
    _DESCRIPTIONS: {
        *("Metadata", "MetadataIndex", "StorageMeta", "TensorProperties", "_MEM_FORMAT_ENCODING"),
        *("TensorStorageMetadata", "ChunkStorageMetadata", "BytesStorageMetadata"),
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},
    "pathlib": {"PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"},
    "pathlib._local": {"PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"},  # Python 3.13
    "collections": {"OrderedDict"},
}


class _Refused(Exception):
    """A name that no description of tensors needs."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Find what descriptions of tensors are made of, and nothing else."""
        dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not dtype and name not in _NEEDED.get(module, ()):
            raise _Refused(f"{module}.{name}")
        return super().find_class(module, name)


def read_metadata(folder: Path) -> Metadata:
    """Read the description of a folder's tensors.

    Raises:
        UserError: it holds something else, or names files outside the folder.
    """
    try:
        with (folder / METADATA).open("rb") as file:
            metadata = _Unpickler(file).load()
        if not isinstance(metadata, Metadata):
            raise TypeError(f"expected a description of tensors, got {type(metadata).__name__}")
        files = {place.relative_path for place in metadata.storage_data.values()}
        outside = [file for file in files if PurePath(file).name != file]
    except _Refused as error:
        raise UserError(
            f"{folder / METADATA}: names {error}, which no checkpoint needs and which could run code: it was not read; "
            "do not use this checkpoint."
        ) from None
    except Exception as error:  # whatever the unpickler makes of broken bytes
        raise UserError(
            f"{folder}: is not a whole checkpoint (an interrupted copy, or another kind of file); choose another with "
            f"--ckpt_path. ({first_line(error)})"
        ) from None
    if outside:
        raise UserError(f"{folder / METADATA}: names files outside its folder, such as {outside[0]!r}; it was not read.")
    return metadata


class _Reader(FileSystemReader):
    """Reads a folder whose description has been read already."""

    def __init__(self, folder: Path) -> None:
        self._metadata = read_metadata(folder)
        super().__init__(folder)

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Give the description."""
        return self._metadata


class _Planner(DefaultLoadPlanner):
    """Unpickles values that are no tensors as torch does whole files: without calling anything."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Put a value in its place."""
        loaded, name = torch.load(value, weights_only=True), read_item.dest_index.fqn
        if self.flatten_state_dict:
            set_element(self.original_state_dict, self.mappings[name], loaded)
        else:
            self.state_dict[name] = loaded


class _OtherThanWeights(_Planner, _EmptyStateDictLoadPlanner):
    """Reads all that a folder holds besides weights, without being told what that is."""

    def _should_include_key(self, key: str, metadata: Metadata) -> bool:
        return not key.startswith(_WEIGHTS)


def load_into(state: dict[str, Any], folder: Path, *, alone: bool = False) -> None:
    """Fill nested dictionaries of tensors and plain values from a folder; sharded tensors with this process's part.

    Args:
        state: to be filled.
        folder: of the checkpoint.
        alone: whether this process reads for itself, and not in step with others.

    Raises:
        UserError: the description holds something else.
        CheckpointException: a part is missing or broken.
    """
    load(state, storage_reader=_Reader(folder), planner=_Planner(), no_dist=alone)


def read_weights(folder: Path) -> dict[str, Any]:
    """Read a folder's weights, by name, into memory.

    Raises:
        UserError: the description holds something else.
        CheckpointException: a part is missing or broken.
    """
    known = read_metadata(folder).state_dict_metadata
    weights = {
        name.removeprefix(_WEIGHTS): torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in known.items()
        if name.startswith(_WEIGHTS) and isinstance(entry, TensorStorageMetadata)
    }
    load_into({_WEIGHTS[:-1]: weights}, folder, alone=True)
    return weights


def read_optimizer_states(folder: Path) -> list[dict[str, Any]]:
    """Read optimizer states, by number of parameter in the order of their groups, from states by name.

    Raises:
        UserError: the description holds something else.
        CheckpointException: a part is missing or broken.
    """
    stored: dict[str, Any] = {}
    planner = _OtherThanWeights()  # type: ignore[no-untyped-call]
    _load_state_dict(stored, storage_reader=_Reader(folder), planner=planner, no_dist=True)
    states: list[dict[str, Any]] = []
    while (state := stored.get(f"optimizer_{len(states)}")) is not None:
        names = [name for group in state["param_groups"] for name in group["params"]]
        number = {name: i for i, name in enumerate(names)}
        groups = [{**group, "params": [number[name] for name in group["params"]]} for group in state["param_groups"]]
        states.append({"state": {number[name]: values for name, values in state["state"].items()}, "param_groups": groups})
    return states
