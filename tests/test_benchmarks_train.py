"""The benchmark runs through; what it prints is what was trained: its FLOPs, its memory, its losses beside a plain loop's."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import sft, train
from benchmarks.sft import windows
from benchmarks.train import CHECKED, TOLERANCE, Subject, _options, agreement, main
from benchmarks.turns import MAX_TOKENS, ROWS, WINDOW, Job, PeakMemory, Turn, Turns, Way, length
from benchmarks.ways import load_model, reference_losses, train_as_published, train_ours, training_flops
from mmcoref.data.file import dump_records, read_records
from mmcoref.data.prompt import answer_text
from mmcoref.data.record import Record
from mmcoref.errors import USER_ERROR_EXIT, UserError

TINY = ["--hidden", "64", "--layers", "2", "--vocabulary", "600", "--tokens", "500", "--records", "40", "--rounds", "1"]


def subject(folder: Path, *more: str) -> Subject:
    return Subject(_options([*TINY, *more]), str(folder))


def run(way: Callable[[Job, Turns], None], job: Job, *steps: int) -> list[Turn]:
    """What a way says to turns of so many steps, in this process."""
    mine, theirs = Pipe()
    for each in (*steps, 0):
        mine.send(each)
    way(job, Turns(theirs, "cpu"))
    assert mine.recv() is None  # ready
    return [mine.recv() for _ in steps]


# ---------------------------------------------------------------------- what is counted


def test_flops_are_those_written_out_by_hand() -> None:
    weights, head, attention = 6 * 10 * 4, 6 * 6 * 2, 3 * 2 * (4 * 3) * (1 + 2 + 3 + 4)  # 3 passes, 2 layers, q·k and p·v to 1 to 4 tokens
    assert training_flops(4, 2, body=10, head=6, layers=2, width=3) == weights + head + attention == 1032


def test_flops_are_those_that_torch_counts(tmp_path: Path) -> None:
    made = subject(tmp_path)
    lm = load_model(made.job)
    lm.set_attn_implementation("eager")
    ids = torch.arange(50)[None]
    with FlopCounterMode(display=False) as counter:
        lm(ids).logits.sum().backward()
    body = sum(weight.numel() for weight in lm.parameters() if weight.ndim > 1) - made.head
    needed = training_flops(50, 50, body=body, head=made.head, layers=2, width=64)
    # torch counts no norms, and computes the half of the attention that is masked.
    assert counter.get_total_flops() == needed + 6 * 2 * 64 * 50 * (50 - 1)


def test_a_turn_is_counted_without_padding(tmp_path: Path) -> None:
    made = subject(tmp_path)
    turn = Turn(1.0, [[0, 1], [2]], [], 0)
    assert made.tokens(turn) == sum(length(made.examples[i]) for i in range(3))
    shape = {"body": made.weights - made.head, "head": 600 * 64, "layers": 2, "width": 64}
    assert made.flops(turn) == sum(training_flops(length(e), len(e.answer_ids), **shape) for e in map(made.examples.get, range(3)) if e)


def test_memory_is_seen_where_it_is_watched() -> None:
    memory = PeakMemory("cpu")
    block = torch.ones(2**24)  # 64 MiB
    time.sleep(0.2)
    assert 0.9 * block.nbytes < memory.bytes < 2 * block.nbytes
    seen = memory.bytes
    memory.watch(False)
    time.sleep(0.1)
    other = torch.ones(2**25)
    time.sleep(0.1)
    assert memory.bytes < seen + other.nbytes / 2
    memory.watch(True)
    time.sleep(0.2)
    assert memory.bytes > seen + 0.9 * other.nbytes
    memory.watch(False)


# ---------------------------------------------------------------------- what is trained


@pytest.mark.parametrize("records", [8, 13, 40])
def test_the_train_part_is_as_many_records_as_asked_for(tmp_path: Path, records: int) -> None:
    made = subject(tmp_path, "--records", str(records))
    assert sorted(made.examples) == list(range(records))
    assert [e.index for e in made.job.data().train] == list(range(records))


def test_a_trainers_losses_are_the_reference_loops(tmp_path: Path) -> None:
    made = subject(tmp_path)
    job = replace(made.job, steps=7)
    first, second = run(train_ours, job, CHECKED, 4)  # 5 steps to an epoch
    assert first.windows != second.windows
    assert sorted(index for window in [*first.windows, *second.windows[:2]] for index in window) == list(range(40))
    assert {len(window) for window in second.windows} == {WINDOW}
    expected = reference_losses(job, [[made.examples[i] for i in window] for window in [*first.windows, *second.windows]])
    found = [*first.losses, *second.losses]
    assert found == pytest.approx(expected, abs=1e-5)
    assert found[0] - found[-1] > 0.1  # it trains at all, and 1e-4 would show a wrong update
    assert first.seconds > 0
    assert second.peak >= first.peak
    assert re.fullmatch(r"forward passes of \d records", first.note)


def test_a_smaller_last_window_is_told(tmp_path: Path) -> None:
    made = subject(tmp_path, "--records", "13")
    (turn,) = run(train_ours, made.job, CHECKED)
    assert [len(window) for window in turn.windows] == [8, 5, 8]
    assert turn.losses == pytest.approx(reference_losses(made.job, made.windows(turn)), abs=1e-5)


def test_a_trainer_that_learns_other_answers_is_found_out(tmp_path: Path) -> None:
    made = subject(tmp_path)
    other = tmp_path / "other.json"
    records = read_records(made.job.path).records
    other.write_text(dump_records([wrong(record) for record in records]), "utf-8")
    (turn,) = run(train_ours, replace(made.job, path=str(other)), CHECKED)
    line, agree = agreement("mmcoref", reference_losses(made.job, made.windows(turn)), turn.losses)
    assert not agree
    assert "DOES NOT AGREE" in line


def wrong(record: Record) -> Record:
    """With the next option for a solution."""
    place = record.choices.index(record.gold.text)
    return Record.model_validate(record.model_dump() | {"solution": record.choices[place - 1]})


def test_the_published_loop_averages_means_over_rows_of_512(tmp_path: Path) -> None:
    made = subject(tmp_path)
    (turn,) = run(train_as_published, made.job, 1)
    (window,) = made.windows(turn)
    lm: Any = load_model(made.job)
    means, ids = [], torch.full((WINDOW, MAX_TOKENS), 7)  # any filler
    for row, example in enumerate(window):
        ids[row, : length(example)] = torch.tensor(example.prompt_ids + example.answer_ids)
    with torch.no_grad():
        for start in range(0, WINDOW, ROWS):
            sums, targets = 0.0, 0
            for row in range(start, start + ROWS):
                begin, end = len(window[row].prompt_ids), length(window[row])
                logits = lm(ids[row : row + 1]).logits[0, begin - 1 : end - 1]
                sums += float(F.cross_entropy(logits, ids[row, begin:end], reduction="sum"))
                targets += end - begin
            means.append(sums / targets)
    assert turn.losses == pytest.approx([sum(means) / len(means)], abs=1e-5)


def test_trls_windows_hold_records_of_like_length_in_no_order(tmp_path: Path) -> None:
    examples = list(subject(tmp_path, "--records", "400").examples.values())
    made = windows(examples, 50)
    assert made == windows(examples, 50)
    assert sorted(e.index for window in made for e in window) == list(range(400))
    spread = [max(map(length, window)) - min(map(length, window)) for window in made]
    assert sum(spread) / len(spread) < (max(map(length, examples)) - min(map(length, examples))) / 5
    sums = [sum(map(length, window)) for window in made[:12]]  # TRL sorts blocks of 12
    assert sums != sorted(sums, reverse=True)
    assert windows(examples, 60)[50:] == made[:10]


# ---------------------------------------------------------------------- turns


def test_a_way_works_in_its_turns_only() -> None:
    mine, theirs = Pipe()
    turns = Turns(theirs, "cpu")
    turns.building()
    turns.note = "chosen"
    mine.send(2)
    assert turns.begin()
    assert mine.recv() is None
    assert turns.step([1, 2], torch.tensor(0.5))
    assert not mine.poll()
    mine.send(1)
    assert turns.step([3], torch.tensor(0.25))
    said = mine.recv()
    assert (said.windows, said.losses, said.note) == ([[1, 2], [3]], [0.5, 0.25], "chosen")
    mine.send(0)
    assert not turns.step([4])
    assert mine.recv().losses == []
    mine.close()
    assert not turns.step([5])


@pytest.mark.slow
def test_what_a_way_says_was_wrong_is_raised(tmp_path: Path) -> None:
    way = Way(train_ours, Job(str(tmp_path), str(tmp_path / "none.json"), 1, 1, "cpu", "32-true", 1))
    try:
        with pytest.raises(UserError, match=r"none\.json: no such data file"):
            way.ready()
        with pytest.raises(RuntimeError, match="has ended"):
            way.turn(1)
    finally:
        way.close()


# ---------------------------------------------------------------------- the program


def test_losses_that_differ_are_called_so() -> None:
    line, agree = agreement("mmcoref", [2.0, 1.0], [2.0, 1.0 + TOLERANCE / 2])
    assert agree
    assert "mmcoref agrees with the reference loop: step 2: 1.000050, reference 1.000000; largest difference of 2 5.0e-05" in line
    line, agree = agreement("mmcoref", [2.0, 1.0], [2.0 + 2 * TOLERANCE, 1.0])
    assert not agree
    assert "DOES NOT AGREE" in line


def test_without_trl_one_sentence_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "trl", None)
    assert main(TINY) == USER_ERROR_EXIT
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "python -m pip install -e '.[bench]'" in error


@pytest.mark.parametrize(
    "wrong",
    [
        ("--hidden", "65"),
        ("--rounds", "0"),
        ("--records", "7"),
        ("--steps", "0"),
        ("--trl_settings", "3"),
        ("--trl_settings", "2", "2-packed"),
        ("--precision", "16-mixed"),
        ("--path", "none.json"),
        ("--tokens", "300"),
    ],
)
def test_a_wrong_option_is_told_in_one_sentence(wrong: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, "--ways", "mmcoref", *wrong]) == USER_ERROR_EXIT
    error = capsys.readouterr().err
    assert error.startswith("benchmarks.train: error: ")
    assert error.count("\n") == 1
    assert wrong[0 if wrong[0] != "--path" else 1].removeprefix("--") in error


def test_a_file_with_too_few_records_is_told(data_file: Path, dialogues: tuple[Record, ...], capsys: pytest.CaptureFixture[str]) -> None:
    few = data_file.with_name("nine.json")
    few.write_text(dump_records(dialogues[:9]), "utf-8")
    assert main([*TINY, "--ways", "mmcoref", "--path", str(few)]) == USER_ERROR_EXIT
    assert "path: expected 8 or more records in the train part, got 7" in capsys.readouterr().err


@pytest.mark.slow
def test_texts_of_trl_that_are_not_ours_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trl")
    job = replace(subject(tmp_path).job, steps=2, trl="4")
    (turn,) = run(sft.train_with_trl, job, 2)
    assert turn.different == 0
    monkeypatch.setattr(sft, "answer_text", lambda option: f"{answer_text(option)}." if option.letter == "A" else answer_text(option))
    (turn,) = run(sft.train_with_trl, job, 2)
    records = read_records(job.path).records
    assert turn.different == sum(records[index].gold.letter == "A" for window in turn.windows for index in window) > 0


def test_texts_that_are_not_ours_fail_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert not train._same_texts(Console(), "trl", Turn(1.0, [[0]], [], 0, different=3), 8)
    assert "DIFFER from ours in 3 of them" in capsys.readouterr().out
    assert train._same_texts(Console(), "trl", Turn(1.0, [[0]], [], 0), 8)


@pytest.mark.slow
def test_every_row_is_there_and_the_losses_agree(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("trl")
    assert main([*TINY, "--trl_settings", "4", "2-flat"]) == 0
    printed = capsys.readouterr().out
    for row in ("published", "trl", "trl-answers", "mmcoref"):
        assert re.search(rf"^ +{row} {{2,}}[\d.]+ +\d+ +\d+–\d+ +[\d.]+% +\d MB +\d+ MB +", printed, re.MULTILINE), row
    found = re.findall(r"loss: ([\w-]+) agrees with the reference loop: step 3: .* largest difference of 3 ([\d.e+-]+)", printed)
    assert [name for name, _ in found] == ["trl", "trl-answers", "mmcoref"]
    assert max(float(difference) for _, difference in found) < 1e-5
    same = "ids and labels: what TRL's collator makes of the 32 records that {} has in its run are ours, token for token"
    assert same.format("trl") in printed
    assert same.format("trl-answers") in printed


@pytest.mark.slow
def test_a_way_that_trains_something_else_fails_the_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(train._WAYS, "mmcoref", train_as_published)
    assert main([*TINY, "--ways", "mmcoref"]) == 1
    assert "mmcoref DOES NOT AGREE" in capsys.readouterr().out
