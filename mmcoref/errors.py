"""The one exception whose text is meant for the user.

Everything a user can get wrong (a file, a flag, a machine too small) is raised as `UserError` with one
sentence that says what, where, what was expected and the way out. `mmcoref.cli.main` prints it without a
traceback and exits with `USER_ERROR_EXIT`. Anything else that escapes is a defect of ours and keeps its traceback.
"""

from mmcoref.text import printable

USER_ERROR_EXIT = 2


class UserError(Exception):
    """A mistake the user can fix; `str(error)` is the whole message.

    Args:
        lines: of the message, nearly always one. What they quote from elsewhere can add none: see `printable`.
    """

    def __init__(self, *lines: str) -> None:
        super().__init__(*map(printable, lines))

    def __str__(self) -> str:
        return "\n".join(self.args)


class Stopped(Exception):
    """A run was told to stop by a signal, and has saved its checkpoint.

    Attributes:
        exit_code: 128 and the signal's number, as a shell expects.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


def at_least(least: int, **settings: float | None) -> None:
    """Checks settings that have a lower bound; None means "not set". A section's dot is written as two underscores.

    Raises:
        UserError: one is lower.
    """
    for name, value in settings.items():
        if value is not None and value < least:
            raise UserError(f"{name.replace('__', '.')}: expected {least} or more, got {value}.")


def first_line(error: BaseException) -> str:
    """An error's first line: library errors go on for a page."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
