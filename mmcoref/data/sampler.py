"""Which records a process sees, in which order, and how a run that was interrupted finds its place again.

Lightning's own samplers repeat records so that all processes get the same number, and shard a custom sampler a
second time; a resumed run starts its loader over. These subclass `DistributedSampler`, which Lightning leaves alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import DataLoader, DistributedSampler

from mmcoref.data.order import FILE_ORDER, Order
from mmcoref.data.workers import leave_signals_to_the_main_process
from mmcoref.errors import UserError


def global_seed() -> int:
    """What `seed_everything` was given, for whatever must not depend on how much of a random stream was used before."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))


class Slot(NamedTuple):
    """One row of a batch.

    Attributes:
        example: which.
        valid: whether it counts.
        window_targets: answer tokens of its optimizer step; 0 in evaluation.
        order: of its options.
        window_batches: micro-batches of its optimizer step on each process; 0 in evaluation.
    """

    example: int
    valid: bool
    window_targets: int = 0
    order: Order = FILE_ORDER
    window_batches: int = 0


def batches_per_epoch(examples: int, *, batch_size: int, accumulate: int, num_replicas: int, whole_windows: bool) -> int:
    """Micro-batches that each process sees in an epoch.

    Args:
        examples: of the train part.
        batch_size: rows of a micro-batch.
        accumulate: micro-batches of an optimizer step on one process.
        num_replicas: processes that see different data.
        whole_windows: whether examples that do not fill an optimizer step are left out.
    """
    row = batch_size * num_replicas
    return examples // (row * accumulate) * accumulate if whole_windows else -(-examples // row)


def taken_batches(batches: int, limit: float | None) -> int:
    """Count the micro-batches of an epoch that a trainer takes, as Lightning counts them.

    Args:
        batches: micro-batches that each process has in an epoch.
        limit: `trainer.limit_train_batches`: a number (int) or a share (float) of them; None for all.
    """
    if limit is None:
        return batches
    return min(batches, limit) if isinstance(limit, int) else int(batches * limit)


def optimizer_steps(batches: int, *, accumulate: int, limit: float | None, max_epochs: int | None, max_steps: int | None) -> int:
    """Optimizer steps of a whole fit.

    Args:
        batches: micro-batches that each process sees in an epoch.
        accumulate: of an optimizer step.
        limit: how many of them are taken, as a number or a share; None for all.
        max_epochs: of the trainer; -1 for no end.
        max_steps: the same.

    Raises:
        UserError: neither ends the run.
    """
    taken = taken_batches(batches, limit)
    ends = [-1 if max_steps is None else max_steps, -1 if max_epochs is None else max_epochs * -(-taken // accumulate)]
    if max(ends) < 0:
        raise UserError("trainer.max_epochs and trainer.max_steps are both unlimited: the learning rate needs an end to decay to.")
    return min(end for end in ends if end >= 0)


class TrainSampler(DistributedSampler[int]):
    """Every example once an epoch, in windows of one optimizer step each.

    An epoch's order depends on seed and epoch alone. It is cut into windows of `batch_size * accumulate *
    num_replicas` examples; the last window is smaller. Inside a window the examples are sorted by length and dealt
    out so that all processes have equally many micro-batches of like length; rows left over in the last window carry
    no labels. The number of answer tokens in the window travels with every row: the loss is divided by it, which
    makes the gradient the mean over all answer tokens of the step, however they are split. Where a limit ends an epoch
    inside a window, only the micro-batches that are taken belong to that step.

    As published, windows are dealt out in the order drawn, and an epoch's last window, which is not full, is left out.

    Args:
        lengths: tokens of each example.
        targets: answer tokens of each example.
        batch_size: rows of a micro-batch.
        accumulate: micro-batches of an optimizer step on one process.
        num_replicas: processes that see different data.
        rank: this process among them.
        seed: of the order.
        options: (epoch, example) -> the order of that example's options, and its answer tokens; by default the file's order
            and `targets`.
        as_published: see above.
        limit: `trainer.limit_train_batches`.
    """

    def __init__(
        self,
        lengths: ArrayLike,
        targets: ArrayLike,
        *,
        batch_size: int,
        accumulate: int,
        num_replicas: int,
        rank: int,
        seed: int,
        options: Callable[[int, int], tuple[Order, int]] | None = None,
        as_published: bool = False,
        limit: float | None = None,
    ) -> None:
        self.lengths = np.asarray(lengths, np.int32)
        super().__init__(range(len(self.lengths)), num_replicas, rank, shuffle=True, seed=seed)  # type: ignore[arg-type]  # it asks for len() only
        self.targets = np.asarray(targets, np.int32)
        self.batch_size = batch_size
        self.accumulate = accumulate
        self.options = options
        self.as_published = as_published
        self.limit = limit
        self.start_batch = 0

    @property
    def window(self) -> int:
        """Examples of one optimizer step."""
        return self.batch_size * self.accumulate * self.num_replicas

    def __len__(self) -> int:
        """Rows that one process sees in an epoch, a multiple of `batch_size`."""
        return self.batch_size * batches_per_epoch(
            len(self.lengths),
            batch_size=self.batch_size,
            accumulate=self.accumulate,
            num_replicas=self.num_replicas,
            whole_windows=self.as_published,
        )

    def __iter__(self) -> Iterator[Slot]:  # type: ignore[override]  # the rows of a batch are slots, not bare indices
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order: NDArray[np.int64] = torch.randperm(len(self.lengths), generator=generator).numpy()
        if self.as_published:
            order = order[: len(order) // self.window * self.window]
        first, self.start_batch = self.start_batch * self.batch_size, 0
        taken = taken_batches(len(self) // self.batch_size, self.limit)
        share = self.batch_size * self.accumulate  # rows of a whole window on this process
        done = first // share
        position = done * share
        for number in range(done, -(-len(order) // self.window)):
            window: list[int] = order[number * self.window : (number + 1) * self.window].tolist()
            for slot in self._deal(window, taken - number * self.accumulate):
                if position >= first:
                    yield slot
                position += 1

    def _deal(self, window: list[int], taken: int) -> Iterator[Slot]:
        """Deal this process its rows of one window, micro-batch by micro-batch.

        Args:
            window: examples of the optimizer step.
            taken: micro-batches that the trainer still takes in this epoch. Later ones are dealt, too, as their number is the
                loader's length, but are no part of a step.
        """
        targets = zip(window, self.targets[window].tolist(), strict=True)
        asked = {i: self.options(self.epoch, i) if self.options else (FILE_ORDER, target) for i, target in targets}
        length = dict(zip(window, self.lengths[window].tolist(), strict=True))
        ranked = window if self.as_published else sorted(window, key=lambda i: (-length[i], i))
        step = self.batch_size * self.num_replicas
        batches = min(-(-len(window) // step), max(0, taken))
        tokens = sum(asked[i][1] for i in ranked[: batches * step])
        for start in range(0, len(ranked), step):
            mine = ranked[start : start + step][self.rank :: self.num_replicas]
            yield from (Slot(i, True, tokens, asked[i][0], batches) for i in mine)
            yield from [Slot(ranked[-1], False, tokens, FILE_ORDER, batches)] * (self.batch_size - len(mine))


class EvalSampler(DistributedSampler[int]):
    """Every example exactly once over all processes, the longest first; the same number of rows on each, the surplus not valid.

    Equal numbers matter where each forward pass is a collective; the marks keep the counts exact. Rows of like length
    share a batch, which has less padding, and what does not fit into memory shows itself in the first batch.

    Args:
        lengths: tokens of each example.
        num_replicas: processes that see different data.
        rank: this process among them.
    """

    def __init__(self, lengths: ArrayLike, *, num_replicas: int, rank: int) -> None:
        self.lengths = np.asarray(lengths, np.int32)
        super().__init__(range(len(self.lengths)), num_replicas, rank, shuffle=False)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Slot]:  # type: ignore[override]
        ranked = np.argsort(-self.lengths, kind="stable")
        mine = ranked[self.rank :: self.num_replicas]
        for i in mine:
            yield Slot(int(i), True)
        # The shortest fills up: a process without an example of its own has rows all the same.
        yield from [Slot(int(i), False) for i in ranked[-1:]] * (self.num_samples - len(mine))


class ResumableLoader(DataLoader[Any]):
    """A loader over a `TrainSampler` that goes on where a checkpoint left it. Lightning saves and restores its state."""

    def __init__(self, dataset: Any, *, sampler: TrainSampler, collate_fn: Callable[[list[Any]], Any], num_workers: int = 0) -> None:
        super().__init__(
            dataset,
            batch_size=sampler.batch_size,
            sampler=sampler,
            collate_fn=collate_fn,
            num_workers=num_workers,
            worker_init_fn=leave_signals_to_the_main_process,
        )
        self._order = sampler
        self._done = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        self._done = self._order.start_batch
        for batch in super().__iter__():
            self._done += 1
            yield batch

    def _identity(self) -> dict[str, int]:
        """What must be equal for "the first k batches" to mean the same records."""
        order = self._order
        return {
            "records": len(order.lengths),
            "processes": order.num_replicas,
            "batch_size": order.batch_size,
            "accumulate": order.accumulate,
            "seed": order.seed,
        }

    def state_dict(self) -> dict[str, int]:
        """Batches of the current epoch that were handed out, and what they were cut from."""
        taken = taken_batches(len(self), self._order.limit)  # a limited epoch ends before the loader does
        return {"batches": self._done % max(1, taken), **self._identity()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on behind the batches that were handed out.

        Raises:
            UserError: mid-epoch, with another number of processes, batch size, accumulation, seed or records than the
                checkpoint's: its place in the epoch would mean other records.
        """
        different = [f"{key} {state.get(key)} -> {value}" for key, value in self._identity().items() if state.get(key) != value]
        if different and state["batches"]:
            raise UserError(
                "the checkpoint stands in the middle of an epoch and its place depends on settings that now differ "
                f"({', '.join(different)}): resume with the same ones, or from a checkpoint at the end of an epoch."
            )
        self._order.start_batch = self._done = state["batches"]
