"""MMCorefDataModule: files -> loaders. It wires the rooms of `mmcoref.data` together and has no logic of its own."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import lightning.pytorch as pl
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from mmcoref.data.batch import EvalCollator, ExampleDataset, TrainCollator
from mmcoref.data.encode import Encoder, Overlength, PromptStyle, Recipe
from mmcoref.data.encoding import encode_orders, encode_whole
from mmcoref.data.examples import NO_EXAMPLES, Examples
from mmcoref.data.file import dump_records
from mmcoref.data.order import Order, Permutations, orders
from mmcoref.data.prompt import answer_text, prompt_text
from mmcoref.data.records import DataSource, collect, open_records
from mmcoref.data.sample import sample_records
from mmcoref.data.sampler import EvalSampler, ResumableLoader, TrainSampler, batches_per_epoch, global_seed, optimizer_steps
from mmcoref.data.split import Split, split_records
from mmcoref.data.tokenizer import TINY, TokenizerFiles, load_tokenizer, unpack_tokenizer
from mmcoref.data.workers import leave_signals_to_the_main_process
from mmcoref.errors import UserError
from mmcoref.ranges import in_ranges

SAMPLE = "sample"  # the word that stands for generated dialogues in place of a file
SAMPLE_TEST = 346  # as many as the published test part


class MMCorefDataModule(pl.LightningDataModule):
    """Dialogue records as train, validation, test and predict batches.

    Args:
        path: the data file (a list of JSON strings, a list of objects, or JSON Lines), or `sample` for generated
            dialogues.
        tokenizer: the model's name; on the command line it follows `model.name`.
        prompt: `base` for the published prompt, `chat` for the tokenizer's chat template around it.
        val_size: train records held out for choosing a checkpoint, in whole clusters. 0: none; the curves of each
            epoch are then measured on the test records, as the published report did, and nothing is chosen by them.
        limit: only the first n records of each part; such a run is marked partial.
        max_tokens: the most tokens that a prompt and its longest answer may have.
        overlength: what becomes of a longer record: `raise`, `drop` it, or `trim` its middle utterances.
        batch_size: train records that a process takes at a time; times `trainer.accumulate_grad_batches` they are its share of an
            optimizer step.
        micro_batch_size: records of one forward pass, a divisor of that share. By default it is chosen before the fit, as large as
            the memory holds, and kept in the checkpoint; the update is the same.
        eval_batch_size: rows of an evaluation batch on one process.
        num_workers: processes that collate batches; 0 is right, as collating takes microseconds.
        shuffle_options: whether each epoch shows the training options in another order, lettered anew; seeded.
        recipe: `mmcoref`, or `published` to train as the published study did: no stop token for base models, rows cut and padded
            to `max_tokens`, the mean of micro-batches' mean losses, and no optimizer step that an epoch cannot fill.
        permutations: the orders of each test record's options; on the command line it follows `model.permutations`.
        sample_train: generated train records.
        sample_seed: of the generator.
    """

    def __init__(
        self,
        path: str = "data/ai_response.json",
        tokenizer: str = TINY,
        prompt: PromptStyle = "base",
        val_size: int = 0,
        limit: int | None = None,
        max_tokens: int = 512,
        overlength: Overlength = "raise",
        batch_size: int = 2,
        micro_batch_size: int | None = None,
        eval_batch_size: int = 16,
        num_workers: int = 0,
        shuffle_options: bool = False,
        recipe: Recipe = "mmcoref",
        permutations: Permutations = "none",
        sample_train: int = 1380,
        sample_seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        in_ranges(self.hparams, "data")
        self.file: DataSource | None = None
        self.split = Split((), (), ())
        self.whole_train: Sequence[int] = ()  # of the split, whatever `limit` leaves of it
        self.train = self.val = self.test = self.unlabelled = NO_EXAMPLES
        self.rows = batch_size  # records of a forward pass
        self.packed = False  # whether they stand in one row
        self.dropped: list[int] = []
        self.trimmed: list[int] = []
        self._packed_tokenizer: TokenizerFiles | None = None
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._encoder: Encoder | None = None

    def restore_tokenizer(self, files: TokenizerFiles) -> None:
        """Uses a checkpoint's tokenizer instead of loading or training one."""
        self._packed_tokenizer = files

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer; known after `setup`."""
        if self._tokenizer is None:
            raise RuntimeError("the tokenizer is known after setup()")
        return self._tokenizer

    @property
    def encoder(self) -> Encoder:
        """What turns records into ids; known after `setup`."""
        if self._encoder is None:
            raise RuntimeError("the encoder is known after setup()")
        return self._encoder

    @property
    def partial(self) -> bool:
        """Whether `limit` was set, so that results speak of part of the records only."""
        return self.hparams["limit"] is not None

    @property
    def as_published(self) -> bool:
        """Whether the published recipe is followed."""
        return bool(self.hparams["recipe"] == "published")

    @property
    def orders(self) -> tuple[Order, ...]:
        """The orders of the options in which each test record is asked, the file's first."""
        return orders(self.hparams["permutations"])

    @property
    def curve(self) -> Examples:
        """What the curves of each epoch are measured on: the validation part, or the test part where there is none."""
        return self.val or self.test

    @property
    def longest_answer(self) -> int:
        """Tokens of the longest option of any record, stop token included."""
        return max(part.longest_answer for part in (self.train, self.val, self.test, self.unlabelled))

    def setup(self, stage: str) -> None:
        """Reads, splits and encodes; `predict` takes every record of the file, with or without a solution.

        Raises:
            UserError: what is wrong with the file, the settings or the tokenizer.
        """
        if stage == "predict":
            if not self.unlabelled:
                self.file, _ = self._read(require_solution=False)
                self.prepare_encoder(())
                self.unlabelled = self._encode("", range(len(self.file.records))[: self.hparams["limit"]])
            return
        if self.file is None:
            self.file, n_train = self._read(require_solution=True)
            split = split_records(self.file.records, n_train=n_train, val_size=self.hparams["val_size"])
            self.whole_train = split.train
            self.split = Split(*(part[: self.hparams["limit"]] for part in split))
            self.prepare_encoder(self.split.train)
            self.val = self._encode("val ", self.split.val)
            self.test = self._encode("test ", self.split.test)
        if stage == "fit" and not self.train:
            self.train = self._encode("train ", self.split.train)

    def _read(self, *, require_solution: bool) -> tuple[DataSource, int | None]:
        """The records, and how many of them are the train part where the published share does not decide that."""
        settings = self.hparams
        if settings["path"] != SAMPLE:
            return open_records(settings["path"], require_solution=require_solution), None
        test = sample_records(SAMPLE_TEST, seed=settings["sample_seed"], part="test")
        train = sample_records(settings["sample_train"], seed=settings["sample_seed"]) if require_solution else ()
        digest = hashlib.sha256(dump_records([*train, *test]).encode()).hexdigest()
        return DataSource(SAMPLE, digest, collect((*train, *test))), len(train)

    def prepare_encoder(self, train: Sequence[int]) -> None:
        """Makes `tokenizer` and `encoder`, with `tiny`'s tokenizer trained on these records of the file."""
        settings = self.hparams
        if self._packed_tokenizer is not None:
            self._tokenizer = unpack_tokenizer(self._packed_tokenizer)
        else:
            self._tokenizer = load_tokenizer(settings["tokenizer"], self._texts(train))
        self._encoder = Encoder(
            self._tokenizer,
            style=settings["prompt"],
            max_tokens=settings["max_tokens"],
            overlength=settings["overlength"],
            recipe=settings["recipe"],
        )

    def _texts(self, indices: Sequence[int]) -> Iterator[str]:
        assert self.file is not None
        for index in indices:
            record = self.file.records[index]
            yield prompt_text(record) + answer_text(record.gold)

    def _encode(self, part: str, indices: Sequence[int]) -> Examples:
        assert self.file is not None
        examples = encode_whole(self.encoder, self.file.records, indices, part)
        self.dropped += examples.dropped
        self.trimmed += examples.trimmed
        return examples

    def total_steps(self, trainer: pl.Trainer) -> int:
        """Optimizer steps of a whole fit.

        Lightning's `estimated_stepping_batches` would build the train loader for this before a checkpoint's state is
        restored, and a loader that is there already never gets its state: the resumed run would repeat records.

        Raises:
            UserError: neither `max_epochs` nor `max_steps` ends the run, or the published recipe has too few records for a step.
        """
        window = {
            "batch_size": self.rows,
            "accumulate": trainer.accumulate_grad_batches,
            "num_replicas": self.replicas(trainer)["num_replicas"],
        }
        batches = batches_per_epoch(len(self.train), **window, whole_windows=self.as_published)
        if batches == 0:
            raise UserError(
                f"data.recipe: published leaves out what does not fill an optimizer step, and {len(self.train)} train records fill none of "
                f"{math.prod(window.values())}: lower --data.batch_size or --trainer.accumulate_grad_batches."
            )
        limit, accumulate = trainer.limit_train_batches, trainer.accumulate_grad_batches
        return optimizer_steps(batches, accumulate=accumulate, limit=limit, max_epochs=trainer.max_epochs, max_steps=trainer.max_steps)

    def cut_windows(self, trainer: pl.Trainer, records: int, *, packed: bool) -> None:
        """Has each process take its share of an optimizer step in forward passes of so many records: a divisor of the share.

        Args:
            trainer: whose accumulation follows.
            records: of a forward pass.
            packed: whether they stand behind one another in one row.
        """
        trainer.accumulate_grad_batches = self.rows * trainer.accumulate_grad_batches // records
        self.rows, self.packed = records, packed
        self.hparams["micro_batch_size"] = records

    def train_dataloader(self) -> ResumableLoader:
        """Windows of one optimizer step each, resumable in their middle."""
        replicas = self.replicas(self.trainer)
        shuffles = self.hparams["shuffle_options"]
        sampler = TrainSampler(
            self.train.tokens,
            self.train.answer_tokens,
            batch_size=self.rows,
            accumulate=self.trainer.accumulate_grad_batches if self.trainer else 1,
            seed=global_seed(),
            options=self.encoder.shuffled(self.train, global_seed()) if shuffles else None,
            as_published=self.as_published,
            limit=self.trainer.limit_train_batches if self.trainer else None,
            **replicas,
        )
        collate = TrainCollator(
            pad_id=self.encoder.pad_id,
            packed=self.packed,
            width=self.hparams["max_tokens"] if self.as_published else None,
            replicas=replicas["num_replicas"],
            encoder=self.encoder if shuffles else None,
        )
        return ResumableLoader(ExampleDataset(self.train), sampler=sampler, collate_fn=collate, num_workers=self.hparams["num_workers"])

    def val_dataloader(self) -> DataLoader[Any]:
        """The validation part, or the test part where none is held out."""
        return self._eval_loader(self.curve)

    def test_dataloader(self) -> DataLoader[Any]:
        """The test part, each record in all `orders`."""
        assert self.file is not None
        return self._eval_loader(encode_orders(self.encoder, self.test, self.file.records, self.orders))

    def predict_dataloader(self) -> DataLoader[Any]:
        """Every record of the file."""
        return self._eval_loader(self.unlabelled)

    def _eval_loader(self, examples: Examples) -> DataLoader[Any]:
        return DataLoader(
            ExampleDataset(examples),
            batch_size=self.hparams["eval_batch_size"],
            sampler=EvalSampler(examples.tokens, **self.replicas(self.trainer)),
            collate_fn=EvalCollator(self.encoder.pad_id),
            num_workers=self.hparams["num_workers"],
            worker_init_fn=leave_signals_to_the_main_process,
        )

    @staticmethod
    def replicas(trainer: pl.Trainer | None) -> dict[str, int]:
        """How many processes see different data, and which of them this is: not always world size and rank."""
        return (trainer.distributed_sampler_kwargs if trainer else None) or {"num_replicas": 1, "rank": 0}

    def rows_at_once(self, trainer: pl.Trainer) -> int:
        """Evaluation rows of one batch on each process, over all of them."""
        return int(self.hparams["eval_batch_size"]) * self.replicas(trainer)["num_replicas"]
