"""Command lines of the programs that are not a trainer's."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NoReturn

from mmcoref.errors import UserError
from mmcoref.paths import user_path
from mmcoref.run.config_files import suggestion


class Parser(argparse.ArgumentParser):
    """Raises what argparse would print above its usage: a wrong option is told in one sentence, like every other mistake.

    Args:
        program: the word after `mmcoref`.
        description: above the options.
    """

    def __init__(self, program: str, description: str) -> None:
        super().__init__(prog=f"mmcoref {program}", description=description, allow_abbrev=False)
        self._program = program

    def error(self, message: str) -> NoReturn:
        """Says what is wrong and where the options are listed.

        Raises:
            UserError: always.
        """
        word = message.removeprefix("unrecognized arguments: ").split()[0]
        hint = ""
        if word.startswith("--") and message.startswith("unrecognized"):
            hint = suggestion(word.lstrip("-"), [option[2:] for option in self._option_string_actions if option.startswith("--")], "--")
        raise UserError(f"{self._program}: {message}{hint.rstrip('.')}; see {self.prog} --help.")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[argparse.Namespace, list[str]]:  # type: ignore[override]
        """Read the options that are known, with the home folder for `~`."""
        options, others = super().parse_known_args(args, namespace)
        for name, value in vars(options).items():
            if "" in (value if isinstance(value, list) else [value]):
                self.error(f"{name}: expected a value, got an empty text")
            if isinstance(value, list):
                setattr(options, name, [_expanded(item) for item in value])
            else:
                setattr(options, name, _expanded(value))
        return options, others


def _expanded(value: Any) -> Any:
    return type(value)(user_path(value)) if isinstance(value, str | Path) and str(value).startswith("~") else value
