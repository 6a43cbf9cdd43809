"""The benchmark runs through, all its rows are there, and the harness's scores are ours."""

from __future__ import annotations

import re
import sys

import pytest

from benchmarks.evaluate import agreement, main
from mmcoref.data.record import Record
from mmcoref.errors import USER_ERROR_EXIT

TINY_MODEL = ["--hidden", "64", "--layers", "1", "--vocabulary", "600", "--tokens", "500"]
TINY = [*TINY_MODEL, "--records", "5", "--published_records", "1", "--rounds", "1", "--batch_size", "2"]


@pytest.mark.slow
@pytest.mark.parametrize("steps", ["0", "40"])
def test_every_row_is_there_and_the_scores_agree(capsys: pytest.CaptureFixture[str], steps: str) -> None:
    pytest.importorskip("lm_eval")
    assert main([*TINY, "--fit_steps", steps, "--harness_batch_sizes", "3", "auto"]) == 0
    printed = capsys.readouterr().out
    rows = (
        "published decoding",
        "published, stopping",
        "lm-evaluation-harness",
        "greedy generate",
        "mmcoref, scores",
        "mmcoref, with text",
    )
    for row in rows:
        assert re.search(rf"^ +{re.escape(row)} {{2,}}[\d.]+ ", printed, re.MULTILINE), row
    found = re.search(r"scores: 20 options of harness and mmcoref agree: largest difference ([\d.e+-]+) nats", printed)
    assert found is not None
    assert float(found[1]) < 1e-4
    assert "texts: 5 of 5 equal those of greedy generate" in printed


def test_scores_that_differ_are_called_so(dialogues: tuple[Record, ...]) -> None:
    scores = [[-1.0, -2.0, -3.0, -4.0]] * len(dialogues)
    line, agree = agreement(dialogues, scores, scores)
    assert agree
    assert f"right: harness 3, mmcoref 3 of {len(dialogues)}" in line
    other = [*scores[1:], [-1.0, -2.0, -3.0, -4.01]]
    line, agree = agreement(dialogues, scores, other)
    assert not agree
    assert "DO NOT AGREE: largest difference 1.0e-02" in line


def test_without_the_harness_one_sentence_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert main(TINY) == USER_ERROR_EXIT
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "pip install" in error


@pytest.mark.parametrize("wrong", [("--hidden", "65"), ("--rounds", "0"), ("--harness_batch_sizes", "many")])
def test_a_wrong_option_is_told_in_one_sentence(wrong: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, *wrong]) == USER_ERROR_EXIT
    assert wrong[0].removeprefix("--") in capsys.readouterr().err
