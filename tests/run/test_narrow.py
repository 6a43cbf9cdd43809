"""Tables where there is room for one, lists elsewhere; no name is lost and no number broken."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from mmcoref.run.narrow import as_list, fill, print_table

_ROWS = (("object_accuracy", "1,380", "[0.499, 0.604]"), ("a name of several words", "7", "[0.001, 0.002]"), ("한국어 이름", "12", ""))


def table() -> Table:
    made = Table(title="Scores of a run", title_justify="left")
    for heading, justify in (("score", "left"), ("k", "right"), ("95 % interval", "right")):
        made.add_column(heading, justify=justify)  # type: ignore[arg-type]
    for row in _ROWS:
        made.add_row(*row)
    return made


def printed(width: int) -> str:
    out = io.StringIO()
    print_table(Console(file=out, width=width), table())
    return out.getvalue()


@pytest.mark.parametrize("width", range(16, 81))
def test_every_name_is_there_and_every_number_whole(width: int) -> None:
    text = printed(width)
    for name, k, interval in _ROWS:
        assert all(word in text for word in name.split())
        assert all(number in text.split() or f"{number};" in text.split() for number in (k, *interval.split()))
    assert max(map(cell_len, text.splitlines())) <= max(width, len("object_accuracy"))


def test_a_terminal_with_room_has_a_table_and_one_without_a_list() -> None:
    assert printed(60).count("│") == 4 * len(_ROWS)
    assert "│ a name of        │" in printed(45)  # names are folded first
    assert printed(40).splitlines() == [
        "Scores of a run",
        "object_accuracy",
        "  k 1,380; 95 % interval [0.499, 0.604]",
        "a name of several words",
        "  k 7; 95 % interval [0.001, 0.002]",
        "한국어 이름",
        "  k 12",
        "",
    ]
    assert list(as_list(table(), 30))[2:4] == ["  k 1,380;", "  95 % interval [0.499, 0.604]"]


@given(st.lists(st.text("ab 가", min_size=1)), st.integers(4, 30))
def test_filled_lines_hold_every_word_in_order(pieces: list[str], width: int) -> None:
    lines = list(fill(pieces, width))
    assert " ".join(lines).split() == " ".join(pieces).split()
    for line in lines:
        assert cell_len(line) <= width or len(line.split()) == 1
