"""A wrong option of the small programs is one sentence, without a page of usage above it."""

from __future__ import annotations

import pytest

from mmcoref.cli import main


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["sample", "--n", "many", "--out", "x"], "sample: argument --n: invalid int value: 'many'"),
        (["sample"], "sample: the following arguments are required: --out"),
        (["audit", "--jsn", "x"], "audit: unrecognized arguments: --jsn; did you mean --json?"),
        (["audit", ""], "audit: file: expected a value, got an empty text"),
        (["audit", "x", "--tokenizer="], "audit: tokenizer: expected a value, got an empty text"),
        (["compare", "x", ""], "compare: runs: expected a value, got an empty text"),
        (["audit", "--zzz", "x"], "audit: unrecognized arguments: --zzz; see"),
        (["compare", "--metric", "f1", "x"], "compare: argument --metric: invalid choice: 'f1'"),
    ],
)
def test_a_wrong_option(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"mmcoref: error: {message}")
    assert error.endswith(f"; see mmcoref {argv[0]} --help.\n")
    assert error.count("\n") == 1
