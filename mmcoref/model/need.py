"""What a fit takes of a device and how its windows are cut, from plain values: the same for `mmcoref plan` and for the fit itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from transformers import PretrainedConfig

from mmcoref.errors import UserError
from mmcoref.model.capacity import most_records
from mmcoref.model.memory import Memory, Shape, Step, choose_step, inference_memory, training_memory
from mmcoref.model.packing import can_pack


@dataclass(frozen=True)
class Terms:
    """What decides it.

    Attributes:
        config: of the model.
        shape: of the model, adapters included.
        lengths: tokens of each train record as it is trained on, the published recipe's padding included.
        targets: answer tokens of each.
        option: tokens of the longest option.
        rows: records that a process takes at a time, by the settings.
        accumulate: of such micro-batches to an optimizer step.
        micro_batch_size: records of a forward pass, where the settings choose it.
        counted: whether settings count micro-batches, which then have to stay what they are.
        published: whether the published recipe is followed, which pads and cuts as it does.
        eval_rows: records of a validation batch; 0 where nothing is validated.
        precision: as Lightning spells it.
        processes: of the run.
        sharded: whether the model is cut over them.
        checkpointing: whether blocks are computed twice, where the settings choose it.
        device: of this process.
        capacity: its bytes; None where nobody says.
    """

    config: PretrainedConfig
    shape: Shape
    lengths: Sequence[int]
    targets: Sequence[int]
    option: int
    rows: int
    accumulate: int
    micro_batch_size: int | None
    counted: bool
    published: bool
    eval_rows: int
    precision: str
    processes: int
    sharded: bool
    checkpointing: bool | None
    device: torch.device
    capacity: int | None


class Need(NamedTuple):
    """What it takes.

    Attributes:
        step: a forward pass, and the optimizer step that it is part of.
        packed: whether its records stand behind one another in one row.
        training: bytes at the peak of a training step.
        validation: the same of an evaluation batch between two epochs, when gradients and moments are there, too.
    """

    step: Step
    packed: bool
    training: Memory
    validation: Memory

    @property
    def peak(self) -> int:
        """Bytes."""
        return max(self.training.total, self.validation.total)


def need_of(terms: Terms) -> Need:
    """How a window is cut, and what that takes.

    Raises:
        UserError: records of a forward pass that do not divide a process's share of an optimizer step.
    """
    window, longest, given = terms.rows * terms.accumulate, max(terms.lengths), terms.micro_batch_size
    if given is None and (terms.published or terms.counted):
        given = terms.rows
    if given is not None and window % given:
        raise UserError(
            f"data.micro_batch_size: expected a divisor of the {window} records that a process has of an optimizer step, got {given}."
        )
    packed = not terms.published and can_pack(terms.config, longest)
    step = choose_step(
        terms.shape, terms.lengths, terms.targets, window=window, given=given, packed=packed, precision=terms.precision,
        processes=terms.processes, sharded=terms.sharded, checkpointing=terms.checkpointing, capacity=terms.capacity,
        most=most_records(terms.device, terms.config, terms.lengths),
    )  # fmt: skip
    training = training_memory(terms.shape, step)
    asked = inference_memory(
        terms.shape, rows=terms.eval_rows, prompt=longest, answer=terms.option, precision=terms.precision,
        processes=terms.processes, sharded=terms.sharded,
    )  # fmt: skip
    return Need(step, packed, training, asked._replace(optimizer=training.optimizer, gradients=training.optimizer // 2))
