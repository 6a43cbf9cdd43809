"""The parser of the trainer programs' options: what jsonargparse and LightningCLI leave open, decided for the user."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from enum import Enum
from types import NoneType
from typing import Any, get_args

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from mmcoref.errors import UserError
from mmcoref.paths import user_path
from mmcoref.run.config_files import Names, check_config, suggestion
from mmcoref.run.mistakes import class_sentence
from mmcoref.run.refusals import check_settings

_CONFIG = "--config"


class OptionParser(LightningArgumentParser):
    """Reads options so that each means one thing, wherever it is given, and a mistake is found before anything is made.

    - The command line wins over configs, in whatever order they are given; a later config wins over an earlier one.
    - Names are whole: an abbreviation is refused, with the name that is meant.
    - Configs are checked by `check_config`. Null is refused where a setting has no null, and numbers are finite.
    - `~` at the start of a setting is the home folder, as a shell expands it in some places and not in others.
    - Enums that are texts, such as defaults of Lightning's classes, are those texts, which every file can hold.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **({"allow_abbrev": False, "exit_on_error": False} | kwargs))
        self._texts: dict[tuple[str, str], str] = {}  # of pipes, which cannot be read again when options are

    def parse_args(self, args: Sequence[str] | None = None, *others: Any, **kwargs: Any) -> Namespace:  # type: ignore[override]
        """Read a program's options.

        Args:
            args: the program's name and its options.
            others: as jsonargparse takes them.
            kwargs: as jsonargparse takes them.

        Raises:
            UserError: a config or a value is wrong.
            argparse.ArgumentError: an option is wrong.
        """
        if not args or self._subcommands_action is None or args[0] not in self._subcommands_action.choices:
            return super().parse_args(args, *others, **kwargs)
        program, options = args[0], list(args[1:])
        parser = self._subcommands_action.choices[program]
        names = _names(parser)
        configs, others_ = split_configs(options, sorted(names.sections))
        ordered: list[str] = []
        for option, value in configs:
            ordered += [option] if value is None else [option, self._check(option, value, names)]
        try:
            parsed = super().parse_args([program, *ordered, *others_], *others, **kwargs)
        except argparse.ArgumentError as error:
            raise argparse.ArgumentError(None, _unknown(str(error), parser) or str(error)) from None
        except UnicodeDecodeError:
            raise UserError("a file that an option names is not UTF-8; save it as UTF-8.") from None
        except UnicodeEncodeError:
            here = sys.getfilesystemencoding()
            raise UserError(f"file names here are in {here}, which lacks characters of the options; set PYTHONUTF8=1.") from None
        parsed[program] = _plain(parsed[program])
        check_values(parser, parsed[program])
        check_settings(program, {action.dest: parsed[program].get(action.dest) for action in _settings(parser)})
        return parsed

    def _check(self, option: str, value: str, names: Names) -> str:
        """Check a config, and return what is to be read for it."""
        text = self._texts.get((option, value))
        if text is None:
            text = check_config(value, names, None if option == _CONFIG else option.removeprefix("--"))
            if text != value:
                self._texts[option, value] = text
        return text

    def instantiate_classes(self, *args: Any, **kwargs: Any) -> Namespace:
        """Make what the settings name.

        Raises:
            UserError: a class that they name cannot be made, such as one whose package is missing.
        """
        try:
            made: Namespace = super().instantiate_classes(*args, **kwargs)
        except (ValueError, TypeError, ImportError) as error:
            if "class_path" not in str(error):
                raise
            raise UserError(class_sentence(str(error))) from error
        return made


def split_configs(options: Sequence[str], sections: Sequence[str]) -> tuple[list[tuple[str, str | None]], list[str]]:
    """Part configs from the other options, so that they can be read first.

    Args:
        options: words of the command line.
        sections: names of the sections, whose options such as `--model` take a config of that section.

    Returns:
        (option, value) of the configs, whole ones before those of sections; and the other words. A value that is
        missing is None.
    """
    names = {_CONFIG: _CONFIG, "-c": _CONFIG} | {f"--{section}": f"--{section}" for section in sections}
    found: list[tuple[str, str | None]] = []
    rest: list[str] = []
    words = iter(options)
    for word in words:
        name, equals, value = word.partition("=")
        if name in names and equals:
            found.append((names[name], value))
        elif name in names:
            found.append((names[name], next(words, None)))
        elif word.startswith("-c") and not word.startswith("--"):  # -cFILE
            found.append((_CONFIG, word.removeprefix("-c")))
        else:
            rest.append(word)
    whole = [one for one in found if one[0] == _CONFIG]
    return whole + [one for one in found if one[0] != _CONFIG], rest


def check_values(parser: LightningArgumentParser, settings: Namespace) -> None:
    """Check what the parser passes over: null where a setting has no null, and empty texts.

    Args:
        parser: of the program.
        settings: as it has read them.

    Raises:
        UserError: which setting is wrong.
    """
    for action in _settings(parser):
        value = settings.get(action.dest)
        kind = action._typehint  # type: ignore[attr-defined]
        if value is None and action.default is not None and not _takes_null(kind):
            raise UserError(f"{action.dest}: expected {_named(kind)}, got null; leave it out for the default, {action.default}.")
        if value == "":
            raise UserError(f"{action.dest}: expected {_named(kind)}, got an empty text.")


def _settings(parser: LightningArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        if hasattr(action, "_typehint") and action.default is not argparse.SUPPRESS:
            yield action


def _names(parser: LightningArgumentParser) -> Names:
    settings = frozenset(action.dest for action in _settings(parser))
    return Names(settings, frozenset(name.partition(".")[0] for name in settings if "." in name))


def _takes_null(kind: Any) -> bool:
    return kind in (Any, None, NoneType) or NoneType in get_args(kind)


def _named(kind: Any) -> str:
    if isinstance(kind, type):
        return kind.__name__
    each = [one.__name__ if isinstance(one, type) else repr(one) for one in get_args(kind)]
    return " or ".join(each)


def _unknown(message: str, parser: LightningArgumentParser) -> str:
    """Say which option is meant by one that is unknown; nothing for other messages."""
    if not message.startswith("unrecognized arguments: "):
        return ""
    word = message.removeprefix("unrecognized arguments: ").split()[0]
    if not word.startswith("-"):
        return f"{word}: expected an option such as --data.path, got a word that belongs to none"
    name = word.partition("=")[0]
    names = [option for option in parser._option_string_actions if option.startswith("--") and not option.endswith((".help", "+"))]
    return f"{name}: no such option{suggestion(name.lstrip('-'), [option[2:] for option in names], '--').rstrip('.')}"


def _plain(value: Any) -> Any:
    """Put the home folder for `~`, and texts for enums that are texts, in all settings, also in those of classes."""
    if isinstance(value, Namespace):
        for name, inner in vars(value).items():
            vars(value)[name] = _plain(inner)
    elif isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    elif isinstance(value, list):
        return [_plain(inner) for inner in value]
    elif isinstance(value, Enum) and isinstance(value, str):
        return str(value.value)
    elif isinstance(value, str) and value.startswith("~"):
        return str(user_path(value))
    return value
