"""What the parser and Lightning's trainer refuse is told in one sentence, in words of the command line."""

from __future__ import annotations

import pytest

from mmcoref.cli import main
from mmcoref.errors import USER_ERROR_EXIT
from mmcoref.run.mistakes import option_sentence


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (["--model.lr", "abc"], "model.lr: expected float, got abc"),
        (["--data.limit", "3.5"], "data.limit: expected int or null, got 3.5"),
        (["--model.decoding", "foo"], "model.decoding: expected 'greedy', 'constrained' or 'published', got foo"),
        (["--model.lora_targets", "x"], "model.lora_targets: expected list[str] or null, got x (a list is written [a, b])"),
        (["--model.lora_targets", "[[x]]"], "model.lora_targets: expected list[str] or null, got [['x']]"),
        (["--no_such", "3"], "--no_such: no such option"),
        (["--config"], "argument -c/--config: expected one argument"),
    ],
)
def test_an_option_that_cannot_be_read(wrong: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    for program in ("fit", "plan"):
        assert main([program, *wrong]) == USER_ERROR_EXIT
        error = capsys.readouterr().err
        assert error.startswith(f"mmcoref: error: {sentence}"), error
        assert error.endswith(f" (mmcoref {program} --help lists the options)\n")
        assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (["--trainer.devices", "4,x"], "trainer.devices: expected auto, a number above 0 or a list such as [0, 1], got 4,x."),
        (["--trainer.precision", "transformer-engine"], "trainer: "),
        (["--trainer.precision", "64-true", "--trainer.strategy", "sharded"], "trainer: The `ModelParallelStrategy` does not support"),
        (["--trainer.max_epochs", "-5"], "trainer.max_epochs: expected -1 or more, got -5."),
        (["--trainer.strategy", "no_such"], "trainer.strategy: expected auto, ddp or sharded, got no_such"),
        (["--trainer.gradient_clip_algorithm", "no_such"], "`gradient_clip_algorithm`"),
    ],
)
def test_a_setting_that_the_trainer_refuses(wrong: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--data.path", "sample", "--trainer.accelerator", "cpu", *wrong]) == USER_ERROR_EXIT
    error = capsys.readouterr().err
    assert error.startswith(f"mmcoref: error: {sentence}"), error
    assert error.count("\n") == 1


def test_a_message_of_another_form_is_kept() -> None:
    assert option_sentence("something\n  else") == "something else"
