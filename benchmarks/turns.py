"""Processes that train, each in the turns that it is given, and what they use."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers.utils import logging as transformers_logging

from mmcoref.data.example import Example
from mmcoref.data.module import MMCorefDataModule
from mmcoref.errors import UserError

WINDOW = 8  # records of an optimizer step
ROWS = 2  # of a micro-batch, as published
MAX_TOKENS = 512
WEIGHT_DECAY = 0.01
_SAMPLE_SECONDS = 0.005


@dataclass(frozen=True)
class Job:
    """What every way is given.

    Attributes:
        folder: of the model and its tokenizer, which `save_pretrained` wrote.
        path: of the data file.
        steps: optimizer steps of the whole run, over which the learning rate falls from `lr` to 0.
        checked: steps of the first turn, which warms up, and whose losses are compared where they are comparable.
        device: cpu or cuda.
        precision: as Lightning spells it.
        threads: of torch.
        trl: TRL's setting, once a trial has found it.
        lr: learning rate; large enough for a wrong update to show in the next loss.
    """

    folder: str
    path: str
    steps: int
    checked: int
    device: str
    precision: str
    threads: int
    trl: str = ""
    lr: float = 1e-3

    def data(self) -> MMCorefDataModule:
        """The data module, set up for a fit."""
        data = MMCorefDataModule(path=self.path, tokenizer=self.folder, batch_size=ROWS, max_tokens=MAX_TOKENS)
        data.setup("fit")
        return data

    def rate(self, step: int) -> float:
        """The factor on the learning rate at a step, counting from 0; the same for all ways."""
        return (self.steps - step) / self.steps


def length(example: Example) -> int:
    """Tokens of prompt and answer."""
    return len(example.prompt_ids) + len(example.answer_ids)


class Turn(NamedTuple):
    """What a way says of a turn.

    Attributes:
        seconds: that it took.
        windows: the records of each of its optimizer steps, by their places in the data file.
        losses: of its optimizer steps in nats, where the way computes them anyway.
        peak: bytes in use at most, so far, above those in use before the model was built.
        note: what the way chose by itself.
        different: of the run's records, those whose ids or labels it made other than ours.
    """

    seconds: float
    windows: list[list[int]]
    losses: list[float]
    peak: int
    note: str = ""
    different: int = 0


class PeakMemory:
    """The most memory that this process has used since the start, above what it used then.

    On a CPU it is anonymous memory, which leaves out mapped files, sampled every few milliseconds while `watch` is on: the
    kernel keeps a peak only of both together. On a GPU it is what torch's allocator handed out.

    Args:
        device: cpu or cuda.
    """

    def __init__(self, device: str) -> None:
        self._cuda = device == "cuda"
        self._peak = self._start = self._now()
        self._watched = threading.Event()
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            threading.Thread(target=self._sample, daemon=True).start()
        self.watch(True)

    @property
    def bytes(self) -> int:
        """The peak."""
        return (torch.cuda.max_memory_allocated() if self._cuda else self._peak) - self._start

    def watch(self, on: bool) -> None:
        """Looks, or lets another process work undisturbed."""
        if on:
            self._watched.set()
        else:
            self._watched.clear()

    def _now(self) -> int:
        if self._cuda:
            return torch.cuda.memory_allocated()
        _, resident, shared, *_ = Path("/proc/self/statm").read_text("ascii").split()
        return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")  # what /proc/self/status calls RssAnon

    def _sample(self) -> None:
        while self._watched.wait():
            self._peak = max(self._peak, self._now())
            time.sleep(_SAMPLE_SECONDS)


class Turns:
    """A way's end of the pipe: `begin` and `step` return when it may work on, and False when it is to end.

    Args:
        pipe: brings the steps of a turn, 0 to end; takes a `Turn` for each.
        device: cpu or cuda.
    """

    def __init__(self, pipe: Connection, device: str) -> None:
        self._pipe, self._device = pipe, device
        self._memory: PeakMemory | None = None
        self._left, self._start = 0, 0.0
        self._windows: list[list[int]] = []
        self._losses: list[Any] = []
        self._waited = False
        self.note, self.different = "", 0

    def building(self) -> None:
        """All is imported and read: from here on, memory is the model's and its training's."""
        self._memory = PeakMemory(self._device)

    def begin(self) -> bool:
        """Waits for the next turn, and starts its clock; the first time says that all is ready."""
        assert self._memory is not None
        self._memory.watch(False)
        try:
            if not self._waited:
                self._pipe.send(None)
            self._waited = True
            self._left = self._pipe.recv()
        except (EOFError, OSError):  # nobody is left to ask
            self._left = 0
        self._memory.watch(self._left > 0)
        self._windows, self._losses = [], []
        self._start = self._now()
        return self._left > 0

    def step(self, window: list[int], loss: Any = None) -> bool:
        """An optimizer step on these records is done; at the end of a turn, answers and waits for the next one."""
        assert self._memory is not None
        self._windows.append(window)
        self._losses += [] if loss is None else [loss]
        self._left -= 1
        if self._left > 0:
            return True
        seconds = self._now() - self._start
        with contextlib.suppress(BrokenPipeError):  # nobody is left to hear it; `begin` says so
            losses = [float(each) for each in self._losses]
            self._pipe.send(Turn(seconds, self._windows, losses, self._memory.bytes, self.note, self.different))
        return self.begin()

    def _now(self) -> float:
        if self._device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


Train = Callable[[Job, Turns], None]


class Way:
    """A way's process, as the one sees it that gives the turns.

    Args:
        train: what it does; a function that a module has.
        job: what it is given.
    """

    def __init__(self, train: Train, job: Job) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(train, job, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def ready(self) -> None:
        """Waits until it has built all that it needs; once, before its first turn.

        Raises:
            UserError: what it says that the user did wrong.
        """
        self._said()

    def turn(self, steps: int) -> Turn:
        """Has it do so many optimizer steps."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it has ended, and may have said why
            self._pipe.send(steps)
        return self._said()  # type: ignore[no-any-return]

    def _said(self) -> Any:
        try:
            said = self._pipe.recv()
        except (EOFError, ConnectionResetError):
            raise RuntimeError("a way's process has ended; it says above why") from None
        if isinstance(said, UserError):
            raise said
        return said

    def close(self) -> None:
        """Ends it."""
        self._pipe.close()
        self._process.join(5)
        self._process.terminate()


def _serve(train: Train, job: Job, pipe: Connection) -> None:
    import torch._dynamo  # an optimizer's first step would import it, and its memory be taken for the model's

    torch.set_num_threads(job.threads)
    _quiet()
    try:
        train(job, Turns(pipe, job.device))
    except UserError as error:
        pipe.send(error)


def _quiet() -> None:
    """Without the libraries' tips, warnings and progress bars."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """Without transformers' progress bars."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
