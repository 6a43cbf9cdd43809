"""Data runs one way through the package: a room imports only the rooms before it."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "mmcoref"
ROOMS = ("data", "evaluation", "model", "run", "tools")  # in the order in which a dialogue passes them
DOORS = ("cli", "lightning_cli", "resolver", "__main__")  # they may know every room
FREE = ("atomic", "errors", "paths", "ranges", "text", "together")


def imported(file: Path) -> set[str]:
    """The rooms and files of the package that a file imports, under TYPE_CHECKING and inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "mmcoref":
            names |= {node.module.split(".")[1]} if "." in node.module else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("mmcoref.")}
    return names


def test_every_file_has_a_room_or_is_a_door() -> None:
    places = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in PACKAGE.rglob("*.py")}
    assert places == {*ROOMS, *DOORS, *FREE, "__init__"}


def test_no_room_imports_a_later_one() -> None:
    seen = 0
    for number, room in enumerate(ROOMS):
        for file in (PACKAGE / room).rglob("*.py"):
            rooms = imported(file) & {*ROOMS, *DOORS}
            seen += len(rooms)
            assert rooms <= set(ROOMS[: number + 1]), f"{file.relative_to(PACKAGE)} imports {rooms}"
    assert seen > 20  # the walk finds imports at all


def test_the_text_side_knows_no_torch_until_it_encodes() -> None:
    for name in ("decode", "examples", "file", "items", "order", "prompt", "record", "records", "sample", "sample_words", "split", "table"):
        assert "torch" not in (PACKAGE / "data" / f"{name}.py").read_text("utf-8")
