"""Command lines of the programs that are not a trainer's."""

from __future__ import annotations

import argparse
from typing import NoReturn

from mmcoref.errors import UserError


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
        raise UserError(f"{self._program}: {message}; see {self.prog} --help.")
