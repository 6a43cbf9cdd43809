"""LightningCLI over our module and datamodule, and what it has to be told differently."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import yaml
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins import MixedPrecision

from mmcoref.data.module import MMCorefDataModule
from mmcoref.data.tokenizer import TINY_NAMES
from mmcoref.errors import UserError
from mmcoref.model.module import MMCorefModule
from mmcoref.run import announce, holding, preflight
from mmcoref.run.checkpoint import AtomicCheckpointIO, LastCheckpoint, Stored, StoredConfig, find_last, read_stored
from mmcoref.run.choosing import choosing
from mmcoref.run.ending import part
from mmcoref.run.mistakes import of_the_trainer, told_in_one_sentence
from mmcoref.run.progress import PlainProgress
from mmcoref.run.quiet import quiet
from mmcoref.run.record import RunRecord
from mmcoref.run.stopping import StopWhenAsked
from mmcoref.run.strategy import strategy_of
from mmcoref.run.terms import check_trainer, on_cpu, processes, shape_of_fit

log = logging.getLogger(__name__)

LOGS = "lightning_logs"
_TRAINER_DEFAULTS = {
    "max_epochs": 30,  # as published
    "gradient_clip_val": 1.0,  # as published
    "num_sanity_val_steps": 0,  # it would generate for a few records and log their scores as a curve's first point
    "enable_model_summary": False,  # the first log line says what matters
    "log_every_n_steps": 1,  # an optimizer step takes seconds; a curve of every fiftieth shows nothing
}
_FLOAT16 = ("16-mixed", "16", 16)


class MMCorefCLI(LightningCLI):
    """`fit`, `validate`, `test` and `predict`.

    Different from stock Lightning: a checkpoint's settings are read back with the lowest priority, so that the command
    line wins, out loud (stock lets the checkpoint win, silently, and forgets the data's); `last` finds the newest run's
    checkpoint; 16-mixed is float16 with loss scaling on the CPU too; what the machine lacks is said first.
    """

    stored: Stored | None = None

    def __init__(self, args: Sequence[str]) -> None:
        super().__init__(
            MMCorefModule,
            MMCorefDataModule,
            args=list(args),
            seed_everything_default=42,
            trainer_defaults=_TRAINER_DEFAULTS,
            save_config_kwargs={"overwrite": True},  # a resumed run goes on in its folder
            auto_configure_optimizers=False,
            # A wrong option raises, and is told in one sentence instead of below forty lines of usage.
            parser_kwargs={"exit_on_error": False, **{name: {"exit_on_error": False} for name in self.subcommands()}},
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The trainer's methods and which of their arguments are not options."""
        # weights_only: checkpoints are always read without unpickling code.
        return {name: {*skipped, "weights_only"} for name, skipped in LightningCLI.subcommands().items()}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds `--checkpoint.*`, and lets the tokenizer and the orders of the test records' options follow the model."""
        parser.add_lightning_class_args(LastCheckpoint, "checkpoint")
        parser.link_arguments("model.name", "data.tokenizer")
        parser.link_arguments("model.permutations", "data.permutations")

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand in ("test", "validate"):
            parser.set_defaults({"verbose": False})  # the run's record prints the scores, with their counts
        if subcommand == "predict":
            parser.set_defaults({"return_predictions": False})  # they go into a file, not into memory
        return parser

    # ------------------------------------------------------------------ settings

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses; with a checkpoint once more, over the checkpoint's settings."""
        self._parse(parser, args)
        stage = self.config.subcommand
        asked = self.config[stage].ckpt_path
        if asked is None:
            return
        path = self._resolve(stage, asked)
        if path is None:
            self.config[stage].ckpt_path = None
            return
        self.stored = read_stored(path)
        settings = self._inherited(self.stored, stage)
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            yaml.safe_dump(settings, file)
            file.flush()
            at = args.index(stage) + 1
            self._parse(parser, [*args[:at], "--config", file.name, *args[at:]])
        self.config[stage].ckpt_path = str(path)
        self._say_differences(settings, self._plain(stage))

    def _parse(self, parser: LightningArgumentParser, args: list[str]) -> None:
        self.config = parser.parse_args(args)

    def _parse_ckpt_path(self) -> None:
        """Nothing: stock LightningCLI reads the whole file on every process here, and lets it win over the command line."""

    def _resolve(self, stage: str, asked: str) -> Path | None:
        if asked not in ("last", "best"):
            run = Path(asked)
            if (run.parent / ".metadata").is_file():
                return run.parent  # a file of a sharded checkpoint
            return run / "checkpoints" / "last.ckpt" if (run / "checkpoints").is_dir() else run
        root = self._logs_root(stage)
        found = find_last(root, best=asked == "best")
        if found is not None:
            log.info("checkpoint: %s", found)
        elif stage == "fit" and asked == "last":
            log.info("no checkpoint under %s: the training starts from the beginning", root)
        elif asked == "best":
            raise UserError(f"--ckpt_path best: none under {root}; it is kept by a fit with --data.val_size, such as 138.")
        else:
            raise UserError(f"--ckpt_path {asked}: no whole checkpoint under {root}; train first (mmcoref fit), or name a file.")
        return found

    def _logs_root(self, stage: str) -> Path:
        trainer = self.config[stage].trainer
        logger = trainer.logger
        if isinstance(logger, bool) or logger is None or "init_args" not in logger:
            return Path(trainer.default_root_dir or ".", LOGS)
        return Path(logger.init_args.save_dir, logger.init_args.get("name") or "")

    @staticmethod
    def _inherited(stored: Stored, stage: str) -> dict[str, Any]:
        """Settings that a stage takes over: all of them to go on training, else what decides what is measured."""
        config = stored.config
        if stage == "fit":
            return {key: value for key, value in config.items() if key != "ckpt_path"}
        trainer = {"precision": config["trainer"]["precision"]} if "trainer" in config else {}
        return {key: config[key] for key in ("seed_everything", "model", "data") if key in config} | {"trainer": trainer}

    def _say_differences(self, stored: dict[str, Any], now: dict[str, Any]) -> None:
        new = dict(_flat(now))
        for key, old in _flat(stored):
            if new.get(key, old) == old:
                continue
            if key == "model.name" and self.stored is not None and self.stored.base is None:
                raise UserError(
                    f"--model.name {new[key]}: the checkpoint holds {old}, its shape and its tokenizer; leave --model.name out."
                )
            log.info("%s: %s (given now) instead of %s (checkpoint)", key, new[key], old)

    def _plain(self, stage: str) -> dict[str, Any]:
        """The stage's settings as plain values, without what follows from others."""
        text = self._subcommand_parsers[stage].dump(self.config[stage], skip_unset=False, format="yaml")
        plain: dict[str, Any] = yaml.safe_load(text)
        plain.pop("config", None)
        return plain

    # ------------------------------------------------------------------ before a run

    def before_instantiate_classes(self) -> None:
        """Says what this machine lacks, before anything is downloaded or allocated."""
        assert self.subcommand is not None
        settings = self._plain(self.subcommand)
        check_trainer(settings["trainer"])
        preflight.check_torchrun(settings["trainer"])
        if "LOCAL_RANK" in os.environ and os.environ["LOCAL_RANK"] != "0":
            return  # the first process checks the rest
        preflight.prepare_runs(self._logs_root(self.subcommand))
        model, training = settings["model"]["name"], self.subcommand == "fit"
        holding.check_devices(settings, training=training)
        if model in TINY_NAMES or self.stored is not None:
            return
        holding.check_known_model(settings, training=training)
        shape = shape_of_fit(preflight.check_model(model), settings)
        checkpoint = preflight.checkpoint_bytes(shape, model) if training else 0
        preflight.check_disk(self._logs_root(self.subcommand), checkpoint, model=model)

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """The trainer with our logger, checkpoints, record and float16."""
        assert self.subcommand is not None
        settings = self._plain(self.subcommand)
        trainer = self._get(self.config_init, "trainer")
        plugins = trainer.get("plugins") or []
        plugins = [*(plugins if isinstance(plugins, list) else [plugins]), AtomicCheckpointIO(training=self.subcommand == "fit")]
        kwargs["strategy"] = strategy_of(trainer["strategy"], processes(settings["trainer"]))
        if trainer["precision"] in _FLOAT16:
            # Lightning would compute in bfloat16 on the CPU, and refuses float16 for a sharded model.
            kwargs["precision"] = None
            device = "cpu" if on_cpu(trainer["accelerator"]) else "cuda"
            plugins.append(MixedPrecision("16-mixed", device, torch.amp.GradScaler(device)))
        kwargs["plugins"] = plugins
        callbacks = [*(trainer.get("callbacks") or []), StoredConfig(settings), RunRecord(settings, self.stored), PlainProgress()]
        callbacks.append(StopWhenAsked())
        kwargs["callbacks"] = callbacks + (choosing(settings) if self.subcommand == "fit" else [])
        if trainer["logger"] is None or trainer["logger"] is True:
            kwargs["logger"] = self._logger(trainer["default_root_dir"] or ".")
        if self.stored is not None:
            self.stored.restore(self.model, self.datamodule)
        with of_the_trainer():
            return super().instantiate_trainer(**kwargs)

    def _logger(self, root: str) -> TensorBoardLogger:
        """The run's TensorBoard folder: a new one, or, to go on training, the one that the checkpoint lies in."""
        folder = self.stored.run_folder if self.stored is not None and self.subcommand == "fit" else None
        if folder is None:
            return TensorBoardLogger(root, LOGS, default_hp_metric=False)
        assert self.stored is not None
        return TensorBoardLogger(
            folder.parent.parent, folder.parent.name, version=folder.name, default_hp_metric=False, purge_step=self.stored.step + 1
        )

    def before_fit(self) -> None:
        """Reads the data, so that a mistake in them is told first, and says what is to come."""
        self.datamodule.setup("fit")
        preflight.check_window(self.stored, self.datamodule, self.trainer)
        holding.check_limits(self.model, self.datamodule, self.trainer, "fit")
        holding.check_memory(self.model, self.datamodule, self.trainer)
        announce.fit(self.model, self.datamodule, self.trainer, self.stored)

    def after_fit(self) -> None:
        """The last log line of a fit: where its checkpoint is, and what comes next."""
        announce.fitted(self.trainer)

    def before_test(self) -> None:
        """Reads the data, so that a mistake in them is told first, and says what is tested."""
        self._before_answering("test")

    def before_validate(self) -> None:
        """The same for validation."""
        self._before_answering("validate")

    def before_predict(self) -> None:
        """The same for prediction."""
        self._before_answering("predict")

    def _before_answering(self, stage: str) -> None:
        self.datamodule.setup(stage)
        holding.check_limits(self.model, self.datamodule, self.trainer, stage)
        announce.answering(stage, self.model, self.datamodule, self.stored)


class _Settings(MMCorefCLI):
    """The command line of a fit, read and no more."""

    def before_instantiate_classes(self) -> None:
        """Nothing is looked for."""

    def instantiate_classes(self) -> None:
        """Nothing is made."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Nothing is run."""


def run(argv: Sequence[str]) -> None:
    """Runs one of Lightning's programs.

    Raises:
        UserError: a mistake of the user's.
    """
    quiet()
    try:
        with told_in_one_sentence(argv[0]):
            MMCorefCLI(argv)
    finally:
        part()


def fit_settings(argv: Sequence[str]) -> dict[str, Any]:
    """The settings that `mmcoref fit` would have with this command line, as plain values.

    Raises:
        UserError: a mistake of the user's.
    """
    quiet()
    with told_in_one_sentence("plan"):
        return _Settings(["fit", *argv])._plain("fit")


def _flat(settings: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) pairs."""
    if not isinstance(settings, dict):
        yield prefix, settings
        return
    for key, value in settings.items():
        yield from _flat(value, f"{prefix}.{key}" if prefix else key)
