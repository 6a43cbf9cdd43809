"""Options as the trainer programs read them: who wins, whole names, null, `~`; and every option with every odd value."""

from __future__ import annotations

import argparse
import math
import os
import random
import shutil
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, get_args

import lightning.pytorch as pl
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from jsonargparse import Namespace
from jsonargparse._common import parser_context
from lightning.pytorch.cli import LightningArgumentParser

from mmcoref.cli import main
from mmcoref.errors import USER_ERROR_EXIT, UserError
from mmcoref.lightning_cli import _Settings
from mmcoref.ranges import RANGES, in_ranges
from mmcoref.run.mistakes import told_in_one_sentence
from mmcoref.run.options import _takes_null, check_values, split_configs
from mmcoref.run.refusals import check_settings

Read = Callable[..., Any]


@pytest.fixture(scope="session")
def cli() -> _Settings:
    """The parsers, made once: that takes longer than to use them."""
    return _Settings(["fit"], ExitStack())


@pytest.fixture
def read(cli: _Settings) -> Read:
    def read_(*options: str) -> Namespace:
        with told_in_one_sentence("fit"):
            return cli.parser.parse_args(["fit", *options]).fit

    return read_


def parser_of(cli: _Settings) -> LightningArgumentParser:
    return cli._subcommand_parsers["fit"]


def settings_of(cli: _Settings) -> Iterator[argparse.Action]:
    """All settings: of the model, the data, the checkpoint, the trainer and the program itself."""
    for action in parser_of(cli)._actions:
        if hasattr(action, "_typehint") and action.default is not argparse.SUPPRESS:
            yield action


# ---------------------------------------------------------------------- who wins


@pytest.mark.parametrize(
    "options",
    [
        "--model.lr 0.5 --config q.yaml",
        "--model.lr 0.5 --config=q.yaml",
        "--model.lr 0.5 -c q.yaml",
        "--model.lr=0.5 -cq.yaml",
        "-c=q.yaml --model.lr 0.5",
        "--config q.yaml --model.lr 0.5",
        "--config q.yaml --model.lr 0.5 --config q.yaml",
        "--model.lr 0.5 --model m.yaml",
        "--model=m.yaml --model.lr 0.5",
        "--model.lr 0.5 --model m.yaml --config q.yaml",
        "--model.lr 0.25 --model.lr 0.5 --config q.yaml",
    ],
)
def test_the_command_line_wins_over_configs_whatever_the_order(options: str, read: Read) -> None:
    Path("q.yaml").write_text("model:\n  lr: 0.125\n  warmup_steps: 7\n", "utf-8")
    Path("m.yaml").write_text("lr: 0.0625\nwarmup_steps: 7\n", "utf-8")
    settings = read(*options.split())
    assert settings.model.lr == 0.5
    assert settings.model.warmup_steps == 7  # the config is not left out


def test_a_later_config_wins_over_an_earlier_one_and_a_sections_over_a_whole_one(read: Read) -> None:
    for name, rate in (("a", 0.5), ("b", 0.25)):
        Path(f"{name}.yaml").write_text(f"model: {{lr: {rate}}}\n", "utf-8")
    Path("m.yaml").write_text("lr: 0.125\n", "utf-8")
    assert read("--config", "a.yaml", "--config", "b.yaml").model.lr == 0.25
    assert read("--config", "b.yaml", "--data.limit", "3", "--config", "a.yaml").model.lr == 0.5
    assert read("--model", "m.yaml", "--config", "a.yaml").model.lr == 0.125


_WORDS = [["g"], ["--config", "a"], ["--config=b"], ["-c", "c"], ["-cd"], ["--model", "e"], ["--model=f"]]
_WORDS += [["--model.lr", "1"], ["--model.lr=2"]]


@given(st.lists(st.sampled_from(_WORDS)))
def test_configs_are_parted_as_argparse_reads_them(groups: list[list[str]]) -> None:
    words = [word for group in groups for word in group]
    parser = argparse.ArgumentParser(allow_abbrev=False, exit_on_error=False)
    parser.add_argument("-c", "--config", action="append", default=[])
    for name in ("--model", "--model.lr"):
        parser.add_argument(name, action="append", default=[])
    read, unknown = parser.parse_known_args(words)
    configs, rest = split_configs(words, ["model"])
    assert configs == [("--config", value) for value in read.config] + [("--model", value) for value in read.model]
    without, same_unknown = parser.parse_known_args(rest)
    assert (without.config, without.model, getattr(without, "model.lr")) == ([], [], getattr(read, "model.lr"))
    assert same_unknown == unknown


# ---------------------------------------------------------------------- names, null, `~`, classes


def test_options_with_a_pipe_can_be_read_twice(read: Read) -> None:
    os.mkfifo("pipe")
    writer = threading.Thread(target=Path("pipe").write_text, args=("model: {lr: 0.5}\n", "utf-8"))
    writer.start()
    assert read("--config", "pipe").model.lr == 0.5
    writer.join()
    assert read("--config", "pipe", "--model.warmup_steps", "3").model.lr == 0.5  # as a resumed run's are


def test_a_config_of_the_program_is_refused_with_its_line_by_every_program(capsys: pytest.CaptureFixture[str]) -> None:
    Path("q.yaml").write_text("data: {path: x}\nmodel: {lr: 1}\ndata: {limit: 3}\n", "utf-8")
    for program in ("fit", "plan"):
        assert main([program, "--config", "q.yaml"]) == USER_ERROR_EXIT
        assert capsys.readouterr().err == "mmcoref: error: q.yaml, line 3: data is given twice, first in line 1; keep one.\n"


def test_the_home_folder_is_meant_by_a_tilde_in_every_setting(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    Path("q.yaml").write_text("trainer: {callbacks: [{class_path: ModelCheckpoint, init_args: {dirpath: ~/kept}}]}\n", "utf-8")
    options = ["--data.path=~/d.json", "--model.name=~/m", "--ckpt_path=~/c", "--trainer.default_root_dir=~/r", "--config", "q.yaml"]
    settings = read(*options, "--trainer.logger", "CSVLogger", "--trainer.logger.save_dir=~/l", "--model.lora_targets=['~']")
    assert settings.data.path == "/home/someone/d.json"
    assert settings.model.name == "/home/someone/m"
    assert settings.ckpt_path == "/home/someone/c"
    assert settings.trainer.default_root_dir == "/home/someone/r"
    assert settings.trainer.logger.init_args.save_dir == "/home/someone/l"
    assert settings.trainer.callbacks[0].init_args.dirpath == "/home/someone/kept"


def test_a_class_with_an_enum_for_a_default_can_be_written_and_made(cli: _Settings) -> None:
    settings = cli.parser.parse_args(["fit", "--trainer.callbacks+", "Timer", "--trainer.callbacks.duration", "00:01:00:00"])
    assert "interval: step" in parser_of(cli).dump(settings.fit)
    (timer,) = cli.parser.instantiate_classes(settings).fit.trainer.callbacks
    assert timer._interval == "step"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            ["--model.gradient_checkpoint", "true"],
            "--model.gradient_checkpoint: no such option; did you mean --model.gradient_check",
        ),
        (["--lr=1"], "--lr: no such option; did you mean --model.lr?"),
        (["--conf", "q.yaml"], "--conf: no such option; did you mean --config?"),
        (["tiny"], "tiny: expected an option such as --data.path, got a word that belongs to none"),
        (["--model.lr"], "argument --model.lr: expected one argument"),
        (["--model.max_new_tokens="], "model.max_new_tokens: expected int or null, got an empty text"),
        (["--model.name="], "model.name: expected str, got an empty text."),
        (["--model.lr", "null"], "model.lr: expected float, got null"),
        (["--trainer.logger", "CSVLogger", "--trainer.logger.nam", "x"], "trainer.logger: CSVLogger: Option 'nam' is not accepted"),
        (["--trainer.logger", "CSVLogger"], "trainer.logger: CSVLogger: the following arguments are required: save_dir"),
        (["--trainer.logger", "None"], "trainer.logger: expected Logger, Iterable[Logger], bool or null, got null"),
        (
            ["--trainer.logger.save_dir", "x", "--trainer.logger", "CSVLogger"],
            "trainer.logger: expected Logger, Iterable[Logger], bool or null, got",
        ),
    ],
)
def test_an_option_that_the_parser_refuses(options: list[str], sentence: str, read: Read) -> None:
    with pytest.raises(UserError) as caught:
        read(*options)
    assert str(caught.value).startswith(sentence)


class Refusing(pl.Callback):
    """A callback of a user's own that cannot be made."""

    def __init__(self, n: int = 4) -> None:
        raise ValueError(f"{n} is not prime\nand more lines")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--trainer.logger", "WandbLogger"], "WandbLogger: Requirement 'wandb>=0.12.10' not met."),
        (["--trainer.logger", "MLFlowLogger"], "MLFlowLogger: Requirement 'mlflow>=1.0.0' not met."),
        (["--trainer.callbacks+", "mine.Refusing"], "mine.Refusing cannot be made: 4 is not prime and more lines"),
    ],
)
def test_a_class_that_cannot_be_made_is_named(cli: _Settings, options: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Refusing, "__module__", "mine")
    monkeypatch.setitem(sys.modules, "mine", sys.modules[__name__])
    with pytest.raises(UserError) as caught:
        cli.parser.instantiate_classes(cli.parser.parse_args(["fit", *options]))
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--trainer.overfit_batches", "2"], "trainer.overfit_batches: not supported"),
        (["--trainer.barebones", "true"], "trainer.barebones: it forbids"),
        (["--trainer.enable_checkpointing", "false"], "trainer.enable_checkpointing: a fit keeps its last checkpoint"),
        (["--trainer.val_check_interval", "0"], "trainer.val_check_interval: expected more than 0, got 0"),
        (["--trainer.val_check_interval", "0.0"], "trainer.val_check_interval: expected more than 0, got 0"),
        (["--trainer.devices", "1025"], "trainer.devices: expected at most 1024 of a machine, got 1025."),
        (["--trainer.max_epochs", "0"], "trainer.max_epochs: expected more than 0, got 0, with which nothing is trained."),
        (["--trainer.max_steps", "0"], "trainer.max_steps: expected more than 0, got 0, with which nothing is trained."),
        (["--trainer.limit_train_batches", "0.0"], "trainer.limit_train_batches: expected more than 0, got 0, with which nothing"),
        (["--trainer.callbacks+", "BatchSizeFinder"], "trainer.callbacks: lightning.pytorch.callbacks.BatchSizeFinder cannot work here"),
        (
            ["--trainer.callbacks", "{class_path: GradientAccumulationScheduler, init_args: {scheduling: {0: 2}}}"],
            "trainer.callbacks: lightning.pytorch.callbacks.GradientAccumulationScheduler cannot work here: the loss is a mean",
        ),
        (["--data.batch_size", "1001", "--trainer.accumulate_grad_batches", "1000"], "data.batch_size × trainer.accumulate_grad_batches"),
    ],
)
def test_what_the_trainer_cannot_do_here_is_refused(options: list[str], sentence: str, read: Read) -> None:
    with pytest.raises(UserError) as caught:
        read(*options)
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize(
    ("program", "setting", "others"),
    [
        ("test", "limit_test_batches", "limit_val_batches"),
        ("predict", "limit_predict_batches", "max_epochs"),
        ("validate", "limit_val_batches", "max_steps"),
    ],
)
def test_each_program_refuses_what_leaves_it_nothing_to_do(cli: _Settings, program: str, setting: str, others: str) -> None:
    with pytest.raises(UserError, match=f"trainer.{setting}: expected more than 0, got 0, with which nothing is (measured|answered)"):
        cli.parser.parse_args([program, f"--trainer.{setting}", "0"])
    cli.parser.parse_args([program, f"--trainer.{others}", "0"])


def test_a_validation_after_more_passes_than_an_epoch_has_is_refused(
    llama_folder: Path, data_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit = [
        "fit",
        "--model.name",
        str(llama_folder),
        "--data.path",
        str(data_file),
        "--trainer.accelerator",
        "cpu",
        "--trainer.devices",
        "1",
    ]
    fit += ["--trainer.enable_progress_bar", "false", "--trainer.max_epochs", "1", "--trainer.accumulate_grad_batches", "2"]
    assert main([*fit, "--trainer.val_check_interval", "6"]) == USER_ERROR_EXIT
    said = "trainer.val_check_interval: expected at most 5, the forward passes of an epoch, each of 2 records, got 6;"
    assert said in capsys.readouterr().err
    assert main([*fit, "--trainer.val_check_interval", "5"]) == 0
    assert main([*fit, "--trainer.val_check_interval", "6", "--trainer.check_val_every_n_epoch", "null"]) == 0


# ---------------------------------------------------------------------- every option, every odd value

ODD = ("null", "", "-1", "0", "1000000000000", "1e400", "-1e400", "nan", ".nan", ".inf", "word", "[1]", "{a: 1}", "true", "1.5")


def test_every_setting_that_is_a_number_has_a_range(cli: _Settings) -> None:
    numbers = {action.dest for action in settings_of(cli) if {int, float} & {action._typehint, *get_args(action._typehint)}}
    assert numbers - {"trainer.devices"} == set(RANGES)  # devices may be a list, and are counted


@pytest.mark.parametrize("name", RANGES)
def test_a_number_is_taken_up_to_the_ends_of_its_range(name: str) -> None:
    least, most = RANGES[name]
    for value in (least, most, None, "text"):
        in_ranges({name: value})
        in_ranges({name.partition(".")[2]: value}, name.partition(".")[0])
    wrong = {
        math.nextafter(least, -math.inf): f"{least} or more",
        -math.inf: f"{least} or more",
        math.nextafter(most, math.inf): "a finite number" if most == sys.float_info.max else f"at most {most:,}",
        math.inf: "a finite number",
        math.nan: "a number",
    }
    for value, expected in wrong.items():
        with pytest.raises(UserError) as caught:
            in_ranges({name: value})
        assert str(caught.value) == f"{name}: expected {expected}, got {value}."


def test_every_setting_refuses_null_in_a_config_or_takes_it(cli: _Settings, read: Read) -> None:
    """One config with null for all settings that take it; and each of the others by itself."""
    taking: dict[str, None] = {}
    for action in settings_of(cli):
        if _takes_null(action._typehint):
            taking[action.dest] = None
            continue
        settings = _with(cli, action.dest, None)
        with pytest.raises(UserError, match=f"^{action.dest}: expected .*, got null; leave it out for the default, "):
            check_values(parser_of(cli), settings)
    Path("q.yaml").write_text(yaml.safe_dump(taking), "utf-8")
    settings = read("--config", "q.yaml")
    assert {settings[name] for name in taking} == {None}
    assert {"data.limit", "model.lora_targets", "ckpt_path"} <= set(taking)


def test_every_setting_takes_an_odd_value_or_refuses_it_in_a_sentence(cli: _Settings) -> None:
    """By the parser's type and the rules after it, without parsing the other settings again each time."""
    outcomes: Counter[str] = Counter()
    for action in settings_of(cli):
        for value in ODD:
            outcomes[_outcome(cli, action, value)] += 1
    assert outcomes["refused"] > 700
    assert outcomes["taken"] > 100


def _outcome(cli: _Settings, action: argparse.Action, text: str) -> str:
    parser = parser_of(cli)
    try:
        with told_in_one_sentence("fit"), parser_context(parent_parser=parser, load_value_mode="yaml"):
            try:
                value = parser._check_value_key(action, text, action.dest, None)
            except TypeError as error:  # as the parser itself has it
                raise argparse.ArgumentError(None, str(error)) from None
            settings = _with(cli, action.dest, value)
            check_values(parser, settings)
            check_settings("fit", {one.dest: settings.get(one.dest) for one in settings_of(cli)})
    except UserError as error:
        message = str(error)
    else:
        message = ""
    if message:
        assert action.dest in message, (action.dest, text, message)
        assert "\n" not in message
        assert "typing." not in message
        return "refused"
    number = value if isinstance(value, float) else 0.0
    assert math.isfinite(number), (action.dest, text)
    return "taken"


def _with(cli: _Settings, name: str, value: Any) -> Namespace:
    settings = cli.config.fit.clone()
    settings[name] = value
    return settings


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_option_works_or_is_refused_by_a_whole_run(
    cli: _Settings, llama_folder: Path, data_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The real command, with real fits of two steps for what it takes: a sample, as all of them take a quarter of an hour."""
    base = ["--model.name", str(llama_folder), "--data.path", str(data_file), "--trainer.accelerator", "cpu", "--trainer.devices", "1"]
    base += ["--trainer.enable_progress_bar", "false", "--trainer.max_epochs", "1", "--trainer.max_steps", "2"]
    cases = [(action.dest, text) for action in settings_of(cli) for text in ODD]
    for name, text in random.Random(0).sample(cases, 80):
        capsys.readouterr()
        code = main(["fit", *base, f"--{name}={text}"])
        said = capsys.readouterr().err
        assert code in (0, USER_ERROR_EXIT), (name, text, said)
        if code == USER_ERROR_EXIT:
            assert said.count("mmcoref: error: ") == 1, (name, text, said)
        shutil.rmtree("lightning_logs", ignore_errors=True)
