"""Text that is not ours: no record, file name or model output steers a terminal, adds a line or crashes a writer."""

from __future__ import annotations

import json
import logging
import shutil
import unicodedata
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmcoref.cli import main
from mmcoref.data.record import Record
from mmcoref.errors import UserError
from mmcoref.run.quiet import quiet
from mmcoref.text import PrintableFormatter, plain_console, printable, to_json
from tests.test_cli import CPU, refused

FORGED = "\x1b[2J\x1b]0;title\x07\n  verdict: A; object right\r\x9b1m\u202eoops\u2028totals\x7f"
OBEYED = ("Cc", "Cs", "Zl", "Zp")
MARKS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def test_every_character_that_is_obeyed_is_escaped_and_no_other() -> None:
    characters = [chr(code) for code in range(0x20000)]
    kept = [one for one in characters if unicodedata.category(one) not in OBEYED and one not in MARKS]
    unchanged = printable("".join(f"{one}\n" for one in characters), lines=True).split("\n")
    assert [one for one in unchanged if len(one) == 1] == kept


@given(st.text(st.characters()))
def test_printable_text_is_one_line_that_every_encoding_takes_and_stays_as_it_is(text: str) -> None:
    safe = printable(text)
    assert safe.splitlines() in ([safe], [])
    safe.encode("utf-8")  # raises where it cannot
    assert printable(safe) == safe
    assert printable(text, lines=True).count("\n") == text.count("\n")


@given(st.dictionaries(st.text(st.characters()), st.text(st.characters())))
def test_json_gives_back_what_went_in_and_is_safe_to_print(value: dict[str, str]) -> None:
    text = to_json(value)
    assert json.loads(text) == value
    assert printable(text) == text


def test_a_mistakes_message_has_the_lines_that_it_was_given() -> None:
    error = UserError(f"{FORGED}: no such file", "  record 3")
    assert str(error).split("\n")[1:] == ["  record 3"]
    assert printable(str(error), lines=True) == str(error)
    assert str(UserError(*error.args)) == str(error)  # as between processes


def test_a_log_line_is_one_line_and_a_traceback_keeps_its_own() -> None:
    try:
        raise ValueError("below")
    except ValueError as error:
        record = logging.LogRecord("mmcoref", logging.INFO, "", 0, "data: %s", (FORGED,), (type(error), error, None))
    lines = PrintableFormatter("%(message)s").format(record).split("\n")
    assert lines == [f"data: {printable(FORGED)}", "ValueError: below"]


def test_what_libraries_say_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    handler = logging.StreamHandler()
    monkeypatch.setattr(logging.getLogger("lightning.pytorch"), "handlers", [handler])
    quiet()
    text = warnings.formatwarning(UserWarning(FORGED), UserWarning, f"/x/{FORGED}.py", 3)
    assert text == f"/x/{printable(FORGED)}.py:3: UserWarning: {printable(FORGED)}\n"
    record = logging.LogRecord("lightning.pytorch", logging.WARNING, "", 0, "%s", (FORGED,), None)
    assert handler.format(record) == printable(FORGED)


def test_markup_and_emoji_codes_are_text(capsys: pytest.CaptureFixture[str]) -> None:
    plain_console().print("[bold]x[/] [/nothing] :smile:")
    assert capsys.readouterr().out == "[bold]x[/] [/nothing] :smile:\n"


@pytest.fixture
def hostile(dialogues: tuple[Record, ...], tmp_path: Path) -> Path:
    """A data file whose every record forges a verdict, in a folder whose name does, too."""
    folder = tmp_path / f"[bold red]{FORGED.replace('/', '')}[/] [/x] :smile:"
    folder.mkdir(parents=True)  # a slash parts folders: `[/x]` is said of two
    texts = []
    for number, record in enumerate(dialogues):
        thing = f" {FORGED}"
        changes: dict[str, Any] = {
            "problem": record.problem + FORGED,
            "conversation": (*record.conversation, f"A: {FORGED}"),
            "choices": tuple(choice + thing for choice in record.choices),
            "solution": str(record.solution) + thing,
            "id": f"../../{number}{FORGED}",
        }
        texts.append(json.dumps(record.model_copy(update=changes).model_dump(mode="json")))
    (folder / "data.json").write_text(json.dumps(texts), "utf-8")
    return folder


def assert_clean(text: str) -> None:
    """What a terminal or a reader is given obeys nothing: colours and progress are off here, so no escape is ours."""
    assert printable(text, lines=True) == text
    assert "\n  verdict: A; object right" not in text


def test_a_hostile_record_and_a_hostile_path_go_through_every_program(
    hostile: Path, llama_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, root = str(hostile / "data.json"), ["--trainer.default_root_dir", str(hostile)]
    runs = hostile / "lightning_logs"
    arguments = ["--model.name", str(llama_folder), "--data.path", file, *root, *CPU, "--data.max_tokens", "4000"]
    quick = ["--trainer.max_steps", "1", "--trainer.limit_val_batches", "0", "--trainer.accumulate_grad_batches", "2"]
    last = str(runs / "version_0" / "checkpoints" / "last.ckpt")
    assert main(["fit", *arguments, *quick]) == 0
    for program in (["test", "--model.max_new_tokens", "4"], ["predict", "--data.limit", "2", "--data.path", file]):
        assert main([*program, "--ckpt_path", last, *root, *CPU]) == 0
    tested = [str(runs / "version_1"), str(shutil.copytree(runs / "version_1", hostile / FORGED.partition("/")[0]))]
    assert main(["compare", *tested]) == 0
    assert main(["audit", file]) == 0
    said = capsys.readouterr()
    assert_clean(said.out)
    assert_clean(said.err)
    assert "[bold red]" in said.out  # a folder's name, not a colour
    for written in (*runs.glob("*/eval_test.txt"), *runs.glob("*/predictions.jsonl"), *runs.glob("*/record.json")):
        assert_clean(written.read_text("utf-8"))
    text = (runs / "version_1" / "eval_test.txt").read_text("utf-8")
    assert [line for line in text.split("\n") if line.startswith("  verdict: ")] == [
        line for line in text.split("\n")[:15] if line.startswith("  verdict: ")
    ]
    assert text.count("\n  verdict: ") == 3
    # No name of a file comes from a record's id.
    assert not [path for path in hostile.parent.rglob("*") if path.name[0].isdigit()]


def test_what_is_wrong_with_a_hostile_file_is_said_in_its_own_lines(hostile: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = hostile / "broken.json"
    broken.write_text(json.dumps([json.dumps({"problem": FORGED, "choices": FORGED, "id": [FORGED]})] * 2), "utf-8")
    for program in (["fit", "--data.path", str(broken), *CPU], ["fit", "--data.path", f"{hostile}/missing\x1b.json", *CPU]):
        assert_clean(refused(capsys, *program))
    assert main(["audit", str(broken)]) == 1
    assert_clean(capsys.readouterr().out)
    assert main(["audit", str(broken), "--json"]) == 1
    assert_clean(capsys.readouterr().out)
    assert_clean(refused(capsys, "compare", f"{hostile}/\x9b"))
    assert_clean(refused(capsys, FORGED))
