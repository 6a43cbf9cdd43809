"""Tables on any terminal: as a table where it has room for one, else as a list in which no name and no number is broken."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

_LEAST_NAME = 12  # columns of a terminal that names in the first column keep, if any is as long
_INDENT = "  "


def print_table(console: Console, table: Table) -> None:
    """Print a table whose first column holds names; as a list if not even folded names leave room for the other columns.

    Args:
        console: to print on.
        table: with cells of text.
    """
    names, *others = table.columns
    names.overflow, names.min_width = "fold", min(_longest(names), _LEAST_NAME)
    for column in others:
        if column.justify == "right":  # numbers, which are never folded
            column.no_wrap, column.min_width = True, _longest(column)
    least = Measurement.get(console, console.options.update(width=10_000), table).minimum
    if least <= console.width:
        console.print(table)
    else:
        for line in as_list(table, console.width):
            console.print(Text(line), soft_wrap=True)
        console.print()


def _longest(column: Column) -> int:
    lines = [line for cell in (column.header, *column.cells) for line in str(cell).split("\n")]
    return max(map(cell_len, lines))


def as_list(table: Table, width: int) -> Iterator[str]:
    """Give the lines of a table as a list: of each row its name, and below it its cells with their headings.

    Args:
        table: with cells of text; empty ones are left out.
        width: columns of the terminal. Longer words than that are the only lines that are longer.
    """
    if table.title:
        yield from fill(str(table.title).split(), width)
    headings = [_one_line(column.header) for column in table.columns]
    for name, *cells in zip(*(column.cells for column in table.columns), strict=True):
        yield from fill(_one_line(name).split(), width)
        values = [f"{heading} {_one_line(cell)}".strip() for heading, cell in zip(headings[1:], cells, strict=True) if _one_line(cell)]
        separated = [f"{value};" for value in values[:-1]] + values[-1:]
        yield from (_INDENT + line for line in fill(separated, width - len(_INDENT)))


def fill(pieces: Iterable[str], width: int) -> Iterator[str]:
    """Give lines of as many pieces as fit; a piece that is wider than a line goes on over the next ones, broken at its spaces."""
    line = ""
    for piece in pieces:
        if line and cell_len(line) + 1 + cell_len(piece) <= width:
            line += f" {piece}"
            continue
        if line:
            yield line
        line = piece
        if cell_len(piece) > width and " " in piece:
            *whole, line = fill(piece.split(), width)
            yield from whole
    if line:
        yield line


def _one_line(cell: object) -> str:
    return " ".join(str(cell).split())
