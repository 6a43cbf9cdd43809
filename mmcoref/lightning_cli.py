"""LightningCLI over our module and datamodule, and what it has to be told differently."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

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
from mmcoref.run import announce, holding, preflight, resume
from mmcoref.run.callbacks import Checkpoints, StoredConfig, TimeLimit
from mmcoref.run.checkpoint import AtomicCheckpointIO, Stored, carry_best, find_last, read_stored
from mmcoref.run.ending import parting
from mmcoref.run.folder import RunFolder, is_first_process, only_writer, run_folder_under, share_version
from mmcoref.run.launchers import is_first_here
from mmcoref.run.launching import take_over
from mmcoref.run.mistakes import of_the_trainer, told_in_one_sentence
from mmcoref.run.options import OptionParser
from mmcoref.run.progress import PlainProgress
from mmcoref.run.provenance import check_data, identity, names_data
from mmcoref.run.quiet import quiet
from mmcoref.run.record import RunRecord
from mmcoref.run.refusals import check_validation_interval
from mmcoref.run.stopping import StopWhenAsked
from mmcoref.run.strategy import strategy_of
from mmcoref.run.terms import check_trainer, on_cpu, processes, shape_of_fit

log = logging.getLogger(__name__)

LOGS = "lightning_logs"


class _Link(NamedTuple):
    """A setting that follows another."""

    source: str
    target: str


_LINKS = (_Link("model.name", "data.tokenizer"), _Link("model.permutations", "data.permutations"))
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

    Different from stock Lightning: a checkpoint's settings become the defaults, so that the command line wins and each
    difference is logged (stock lets the checkpoint win, silently, and forgets the data's); `last` finds the newest run's
    checkpoint; each run has a folder of its own; 16-mixed is float16 with loss scaling on the CPU too; what the machine lacks is
    reported first.

    Args:
        args: the command line.
        at_end: what is to be undone when the run is over.
    """

    stored: Stored | None = None
    names_data = False  # whether the user does, and not the checkpoint

    def __init__(self, args: Sequence[str], at_end: ExitStack) -> None:
        self._at_end = at_end
        super().__init__(
            MMCorefModule,
            MMCorefDataModule,
            args=list(args),
            seed_everything_default=42,
            trainer_defaults=_TRAINER_DEFAULTS,
            save_config_callback=None,  # `StoredConfig` writes it
            auto_configure_optimizers=False,
            parser_class=OptionParser,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The trainer's methods and which of their arguments are not options."""
        # weights_only: checkpoints are always read without unpickling code.
        return {name: {*skipped, "weights_only"} for name, skipped in LightningCLI.subcommands().items()}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds `--checkpoint.*`, and lets the tokenizer and the orders of the test records' options follow the model."""
        parser.add_lightning_class_args(Checkpoints, "checkpoint")
        for link in _LINKS:
            parser.link_arguments(link.source, link.target)

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand in ("test", "validate"):
            parser.set_defaults({"verbose": False})  # the run's record prints the scores, with their counts
        if subcommand == "predict":
            parser.set_defaults({"return_predictions": False})  # they go into a file, not into memory
        return parser

    # ------------------------------------------------------------------ settings

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; with a checkpoint once more, its settings being the defaults."""
        self._parse(parser, args)
        stage = self.config.subcommand
        asked = self.config[stage].ckpt_path
        path = None if asked is None else self._resolve(stage, asked)
        if path is None:
            self.config[stage].ckpt_path = None
            return
        self.stored = read_stored(path)
        inherited = resume.inherit(self.stored, stage)
        followers = {link.target for link in _LINKS}
        defaults = {key: value for key, value in resume.flat(inherited.settings) if key not in followers}
        self._subcommand_parsers[stage].set_defaults(defaults)
        self._parse(parser, args)
        self.config[stage].ckpt_path = str(path)
        self.names_data = names_data(parser, stage, args, self.stored.config)
        resume.check_changes(self.stored, inherited, self._plain(stage), stage)

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
        """Return the folder in which runs are numbered: that of the first logger that has one, else `lightning_logs`."""
        trainer = self.config[stage].trainer
        for logger in trainer.logger if isinstance(trainer.logger, list) else [trainer.logger]:
            arguments = {} if isinstance(logger, bool) or logger is None else logger.get("init_args") or {}
            if arguments.get("save_dir"):
                return Path(arguments["save_dir"], arguments.get("name") or "")
        return Path(trainer.default_root_dir or ".", LOGS)

    def _claim_folder(self, stage: str) -> Path:
        """Return the folder that the run writes.

        A resumed run continues in its own, unless another root is given or its checkpoint is not the newest there: what came
        after it would be overwritten.
        """
        root, stored = self._logs_root(stage), self.stored
        elsewhere = self.config[stage].trainer.default_root_dir or root != Path(".", LOGS)
        if stage == "fit" and stored is not None and stored.run_folder is not None and not elsewhere:
            if stored.is_newest:
                return stored.run_folder
            log.info("%s has newer checkpoints than %s: this run continues in a folder of its own", stored.run_folder, stored.path.name)
        return self._at_end.enter_context(run_folder_under(root))

    def _plain(self, stage: str) -> dict[str, Any]:
        """The stage's settings as plain values, without what follows from others."""
        text = self._subcommand_parsers[stage].dump(self.config[stage], skip_unset=False, format="yaml")
        plain: dict[str, Any] = yaml.safe_load(text)
        plain.pop("config", None)
        return plain

    # ------------------------------------------------------------------ before a run

    def before_instantiate_classes(self) -> None:
        """Check what this machine lacks, before anything is downloaded or allocated; then claim the run's folder."""
        assert self.subcommand is not None
        self._settings = self._plain(self.subcommand)
        check_trainer(self._settings["trainer"])
        preflight.check_processes(self._settings["trainer"])
        if is_first_here():  # the first process of a machine checks for all
            self._check_machine(self._settings)
        self.folder = self._claim_folder(self.subcommand)
        if self.subcommand == "fit":
            self._at_end.enter_context(only_writer(self.folder))
        share_version(self.config[self.subcommand].trainer.logger, self.folder.name)

    def _check_machine(self, settings: dict[str, Any]) -> None:
        assert self.subcommand is not None
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
        """Make the trainer, with our folder, logger, checkpoints, record and float16."""
        settings, training = self._settings, self.subcommand == "fit"
        trainer = self._get(self.config_init, "trainer")
        plugins = trainer.get("plugins") or []
        plugins = [*(plugins if isinstance(plugins, list) else [plugins]), AtomicCheckpointIO(training=training)]
        kwargs["strategy"] = strategy_of(trainer["strategy"], processes(settings["trainer"]))
        if trainer["precision"] in _FLOAT16:
            # Lightning would compute in bfloat16 on the CPU, and refuses float16 for a sharded model.
            kwargs["precision"] = None
            device = "cpu" if on_cpu(trainer["accelerator"]) else "cuda"
            plugins.append(MixedPrecision("16-mixed", device, torch.amp.GradScaler(device)))
        kwargs["plugins"] = plugins
        given = trainer.get("callbacks") or []
        callbacks = [RunFolder(self.folder), *(given if isinstance(given, list) else [given]), StoredConfig(settings)]
        callbacks += [RunRecord(settings, self.stored), PlainProgress(), StopWhenAsked()]
        if trainer["logger"] is None or trainer["logger"] is True:
            kwargs["logger"] = self._logger()
        if training:
            self._get(self.config_init, "checkpoint").choose_by(settings)
        if self.stored is not None:
            self.stored.restore(self.model, self.datamodule)
        with of_the_trainer():
            if trainer["max_time"] is not None:
                callbacks.append(TimeLimit(trainer["max_time"]))
                kwargs["max_time"] = None
            made = super().instantiate_trainer(**kwargs, callbacks=callbacks)
        take_over(made)
        announce.profile(made, self.folder)
        announce.trial(made)
        return made

    def _logger(self) -> TensorBoardLogger:
        """Make the TensorBoard logger of the run's folder; a resumed run replaces the curves after its checkpoint."""
        purge = self.stored.step if self.stored is not None and self.subcommand == "fit" else None
        root = self.folder.parent
        return TensorBoardLogger(root.parent, root.name, self.folder.name, default_hp_metric=False, purge_step=purge)

    def before_fit(self) -> None:
        """Reads the data, so that a mistake in them is told first, and says what is to come."""
        self.datamodule.setup("fit")
        self._check_data(training=True)
        preflight.check_window(self.stored, self.datamodule, self.trainer)
        check_validation_interval(self.datamodule, self.trainer)
        holding.check_limits(self.model, self.datamodule, self.trainer, "fit")
        holding.check_memory(self.model, self.datamodule, self.trainer)
        if self.stored is not None and is_first_process():
            carry_best(self.stored, self.folder)
        announce.fit(self.model, self.datamodule, self.trainer, self.stored)

    def after_fit(self) -> None:
        """The last log line of a fit: where its checkpoint is, and what comes next."""
        announce.fitted(self.trainer, self.stored)

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
        if stage != "predict":
            self._check_data(training=False)
        holding.check_limits(self.model, self.datamodule, self.trainer, stage)
        announce.answering(stage, self.model, self.datamodule, self.stored)

    def _check_data(self, *, training: bool) -> None:
        if self.stored is not None:
            check_data(self.stored.data, identity(self.datamodule), given=self.names_data, training=training)


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
    with parting(), told_in_one_sentence(argv[0]), ExitStack() as at_end:
        MMCorefCLI(argv, at_end)


def fit_settings(argv: Sequence[str]) -> dict[str, Any]:
    """The settings that `mmcoref fit` would have with this command line, as plain values.

    Raises:
        UserError: a mistake of the user's.
    """
    quiet()
    with told_in_one_sentence("plan"), ExitStack() as at_end:
        return _Settings(["fit", *argv], at_end)._plain("fit")
