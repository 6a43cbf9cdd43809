"""Decodings, orders of options, the record's figures and the Python interface, through the real command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mmcoref
from mmcoref.cli import main
from mmcoref.data.file import dump_records
from mmcoref.data.record import LETTERS
from mmcoref.errors import UserError
from tests.conftest import dialogue

Folder = Path
CPU = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.enable_progress_bar", "false"]


@pytest.fixture(scope="module")
def fitted(llama_folder: Path, data_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learnt its nine train records, and of the three test records' answers the form."""
    root = tmp_path_factory.mktemp("fitted")
    settings = ["--model.name", str(llama_folder), "--data.path", str(data_file), "--data.batch_size", "9", *CPU]
    rates = ["--trainer.max_epochs", "60", "--model.lr", "1e-2", "--model.warmup_steps", "2", "--trainer.limit_val_batches", "0"]
    assert main(["fit", *settings, *rates, "--trainer.default_root_dir", str(root)]) == 0
    return root / "lightning_logs" / "version_0"


@pytest.fixture
def tested(fitted: Path) -> Callable[..., tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Runs `mmcoref test` with more options; gives the record and the predictions."""

    def run(*options: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        assert main(["test", "--ckpt_path", str(fitted / "checkpoints" / "last.ckpt"), *CPU, *options]) == 0
        folder = max(Path("lightning_logs").glob("version_*"), key=lambda one: int(one.name.removeprefix("version_")))
        lines = (folder / "predictions.jsonl").read_text("utf-8").splitlines()
        return json.loads((folder / "record.json").read_text("utf-8")), [json.loads(line) for line in lines]

    return run


def test_every_figure_has_its_doubt_and_adds_up(tested: Any) -> None:
    record, lines = tested()
    n = record["n"]
    assert n == len(lines) == 3
    assert record["decoding"] == "greedy"
    assert record["headline"] == ["object_accuracy", "photo_accuracy", "exact_match"]
    for name, score in record["metrics"].items():
        for kind in ("intervals", "bootstrap"):
            low, high = record[kind][name]
            assert 0 <= low <= score["value"] <= high <= 1
    assert record["metrics"]["letter_accuracy"]["k"] == sum(line["by_letter"] == line["gold"] for line in lines)
    assert record["metrics"]["likelihood_accuracy"]["k"] == sum(line["by_likelihood"] == line["gold"] for line in lines)
    assert sum(record["failures"].values()) == n - record["metrics"]["exact_match"]["k"]
    assert sum(record["recall"][letter]["n"] for letter in LETTERS) == n
    assert sum(record["recall"][letter]["k"] for letter in LETTERS) == record["metrics"]["object_accuracy"]["k"]
    squares = [sum((p - (letter == line["gold"])) ** 2 for letter, p in line["probabilities"].items()) for line in lines]
    assert record["brier_score"] == pytest.approx(sum(squares) / n, abs=1e-5)
    for one, other in (("by_letter", "by_likelihood"), ("by_letter", "option"), ("by_likelihood", "option")):
        names = "_and_".join(name.removeprefix("by_").replace("option", "text") for name in (one, other))
        assert record["agreement"][names] == {"k": sum(line[one] == line[other] for line in lines), "n": n}
    for level in ("object", "photo"):
        above = record["above_best_floor"][level]
        [floor] = [floor for floor in record["floors"] if floor["name"] == above["floor"]]
        assert floor[level] == max(floor[level] or 0 for floor in record["floors"])
        assert above["value"] == pytest.approx(record["metrics"][f"{level}_accuracy"]["value"] - floor[level] / n)
    assert record["training"]["trainer"]["max_epochs"] == 60
    assert record["permutations"] is None


def test_constrained_decoding_always_says_an_option_exactly(tested: Any, data_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record, lines = tested("--model.decoding", "constrained")
    assert "model.decoding: constrained (given now) instead of greedy (checkpoint)" in capsys.readouterr().err
    assert record["decoding"] == "constrained"
    for line in lines:
        options = [option.text for option in dialogue(line["index"]).options]
        assert line["text"] in [f"{option}." for option in options]
        assert line["stopped"]
        assert line["option"] == line["by_letter"]
    assert record["metrics"]["exact_match"]["k"] == record["metrics"]["object_accuracy"]["k"]
    assert record["cut"] == record["unparsable"] == 0


@pytest.mark.parametrize("decoding", ["greedy", "constrained"])
def test_the_batch_size_changes_no_text(tested: Any, decoding: str) -> None:
    texts = [
        [line["text"] for line in tested("--model.decoding", decoding, "--data.eval_batch_size", size)[1]] for size in ("1", "2", "64")
    ]
    assert texts[0] == texts[1] == texts[2]


def test_published_decoding_puts_the_published_rules_first(tested: Any, capsys: pytest.CaptureFixture[str]) -> None:
    record, lines = tested("--model.decoding", "published", "--data.limit", "2")
    assert record["headline"] == ["object_published_rule", "photo_published_rule", "exact_match"]
    assert record["partial"]
    out = capsys.readouterr().out
    assert out.index("object, published rule") < out.index("object_accuracy")
    again = tested("--model.decoding", "published", "--data.limit", "2", "--data.eval_batch_size", "1")[1]
    assert [line["text"] for line in again] == [line["text"] for line in lines]  # seeded by record


def test_published_decoding_draws_from_the_runs_seed(llama_folder: Path, data_file: Path) -> None:
    untrained = ["--model.name", str(llama_folder), "--data.path", str(data_file), "--data.limit", "1", "--model.decoding", "published"]
    for seed in ("1", "2"):
        assert main(["test", *untrained, *CPU, "--seed_everything", seed]) == 0
    first, second = (Path(f"lightning_logs/version_{number}/predictions.jsonl").read_text("utf-8") for number in (0, 1))
    assert json.loads(first)["text"] != json.loads(second)["text"]
    assert json.loads(first)["option_logprobs"] == json.loads(second)["option_logprobs"]


@pytest.mark.parametrize(("permutations", "orders"), [("cyclic", 4), ("all", 24)])
def test_orders_of_the_options(tested: Any, permutations: str, orders: int) -> None:
    plain, _ = tested()
    record, lines = tested("--model.permutations", permutations)
    assert record["n"] == 3
    assert record["metrics"] == plain["metrics"]  # the file's order
    found = record["permutations"]
    assert found["orders"] == orders
    assert all(len(line["orders"]) == orders for line in lines)
    assert all(line["orders"]["ABCD"] == line["option"] for line in lines)
    right = [[option == line["gold"] for option in line["orders"].values()] for line in lines]
    text = found["by_text"]
    assert text["mean_accuracy"]["value"] == pytest.approx(sum(map(sum, right)) / (3 * orders))
    assert text["all_right"]["value"] == pytest.approx(sum(map(all, right)) / 3)
    flips = sum(option != line["option"] for line in lines for option in line["orders"].values())
    assert text["flip_rate"]["value"] == pytest.approx(flips / (3 * (orders - 1)))
    assert [text["recall"][letter]["n"] for letter in LETTERS] == [3 * orders // 4] * 4
    assert sum(text["recall"][letter]["k"] for letter in LETTERS) == sum(map(sum, right))
    for name in ("mean_accuracy", "all_right", "majority_vote", "flip_rate"):
        low, high = text[name]["interval"]
        assert low <= text[name]["value"] <= high


def test_a_limit_does_not_change_the_majority_letter(llama_folder: Path) -> None:
    Path("five.json").write_text(dump_records([dialogue(number) for number in (3, 0, 4, 8, 1)]), "utf-8")  # golds D, A, A, A; B
    assert main(["test", "--model.name", str(llama_folder), "--data.path", "five.json", "--data.limit", "1", *CPU]) == 0
    record = json.loads(Path("lightning_logs/version_0/record.json").read_text("utf-8"))
    assert record["split"]["train"] == 1
    assert record["floors"][0]["name"] == "always A"


def test_batches_left_out_leave_no_record_in_some_orders_only(tested: Any) -> None:
    record, lines = tested("--model.permutations", "cyclic", "--data.eval_batch_size", "5", "--trainer.limit_test_batches", "0.7")
    assert record["partial"]
    assert 0 < record["n"] == len(lines) < 3
    assert all(len(line["orders"]) == 4 for line in lines)


def test_validate_says_which_records_it_measures(fitted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    validate = ["validate", "--ckpt_path", str(fitted / "checkpoints" / "last.ckpt"), *CPU]
    assert main(validate) == 0
    assert "data.val_size is 0: these are the test records" in capsys.readouterr().err
    assert main([*validate, "--data.val_size", "2"]) == 0
    assert "data.val_size is 2 and was 0 in the fit: this model was trained on records" in capsys.readouterr().err


def test_a_reader_that_has_seen_enough_ends_the_program_quietly(data_file: Path) -> None:
    import subprocess
    import sys

    audit = subprocess.Popen(
        [sys.executable, "-m", "mmcoref", "audit", "sample", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert audit.stdout is not None
    assert audit.stderr is not None
    audit.stdout.close()
    assert audit.stderr.read() == ""
    assert audit.wait(60) == 141


def test_an_unknown_decoding_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["test", "--model.decoding", "beam"]) == 2
    error = capsys.readouterr().err
    assert "model.decoding" in error
    assert all(name in error for name in ("greedy", "constrained", "published"))
    assert "Traceback" not in error


def test_validation_without_generation_logs_a_number_of_its_own(
    llama_folder: Path, data_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    logged: dict[str, float] = {}
    from lightning.pytorch.loggers import TensorBoardLogger

    log = TensorBoardLogger.log_metrics

    def spy(self: TensorBoardLogger, metrics: dict[str, float], step: int | None = None) -> None:
        logged.update(metrics)
        log(self, metrics, step)

    monkeypatch.setattr(TensorBoardLogger, "log_metrics", spy)
    settings = ["--model.name", str(llama_folder), "--data.path", str(data_file), "--data.val_size", "3", "--trainer.max_epochs", "1"]
    with monkeypatch.context() as nothing_is_generated:
        nothing_is_generated.delattr("mmcoref.model.module.predict")
        assert main(["fit", *settings, "--model.val_generate", "false", *CPU]) == 0
    assert "val/likelihood_accuracy" in logged
    assert not {"val/object_accuracy", "val/exact_match", "val/photo_accuracy"} & set(logged)
    assert Path("lightning_logs/version_0/checkpoints/best.ckpt").is_file()
    capsys.readouterr()
    assert main(["validate", "--ckpt_path", "last", *CPU]) == 0
    assert f"likelihood_accuracy: {logged['val/likelihood_accuracy']:.4f} of 3 records; no text was generated" in capsys.readouterr().out
    assert not list(Path("lightning_logs").glob("*/record.json"))
    logged.clear()
    assert main(["fit", *settings, *CPU]) == 0
    assert {"val/likelihood_accuracy", "val/object_accuracy"} <= set(logged)


def test_shuffled_options_differ_by_epoch_and_keep_their_answers(llama_folder: Path, data_file: Path) -> None:
    from mmcoref.data.batch import IGNORED
    from mmcoref.data.module import MMCorefDataModule

    data = MMCorefDataModule(path=str(data_file), tokenizer=str(llama_folder), shuffle_options=True, batch_size=9)
    data.setup("fit")
    loader, seen = data.train_dataloader(), []
    for epoch in (0, 1, 0):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        [batch] = loader
        assert batch.window_targets == int((batch.labels != IGNORED).sum())
        answers = [data.tokenizer.decode(row[row != IGNORED][:-1]) for row in batch.labels]
        prompts = [data.tokenizer.decode(row) for row in batch.input_ids]
        for answer, prompt in zip(answers, prompts, strict=True):
            assert prompt.count(answer) == 2  # among the choices, with its letter, and as the answer
            assert any(answer[3:-1] == dialogue(number).gold.body for number in range(9))
        seen.append(sorted(prompts))
    assert seen[0] != seen[1]
    assert seen[0] == seen[2]


def test_answer_tokens_are_counted_under_the_letter_that_the_answer_has(data_file: Path) -> None:
    from mmcoref.data.batch import IGNORED
    from mmcoref.data.module import MMCorefDataModule
    from mmcoref.data.tokenizer import train_tokenizer

    train_tokenizer(["A) "] * 9, 260).save_pretrained("letters")  # "A)" is one token, "B)" are two
    data = MMCorefDataModule(path=str(data_file), tokenizer="letters", shuffle_options=True, batch_size=9, max_tokens=4000)
    data.setup("fit")
    assert {len(set(lengths)) for lengths in data.encoder.answer_lengths(data.train)} == {2}
    loader = data.train_dataloader()
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        [batch] = loader
        assert batch.window_targets == int((batch.labels != IGNORED).sum())


# ---------------------------------------------------------------------- in Python


def test_a_loaded_run_answers_as_the_test_did(fitted: Path, tested: Any) -> None:
    _, lines = tested()
    resolver = mmcoref.load(fitted)
    answers = resolver([dialogue(line["index"]) for line in lines])
    for line, answer in zip(lines, answers, strict=True):
        assert answer.text == line["text"]
        assert (answer.option.letter if answer.option else None) == line["option"]
        assert answer.probabilities == pytest.approx(line["probabilities"], abs=1e-5)
        assert answer.owner == (answer.option.owner if answer.option else None)
    assert sum(answers[0].probabilities.values()) == pytest.approx(1)


def test_one_record_a_list_a_dictionary_and_none(fitted: Path) -> None:
    resolver = mmcoref.load(fitted / "checkpoints" / "last.ckpt", batch_size=2)
    records = [dialogue(number) for number in (3, 0, 8, 5)]
    together = resolver(records)
    assert [resolver(record).text for record in records] == [answer.text for answer in together]
    fields = {key: value for key, value in records[0].model_dump().items() if key != "solution"}
    assert resolver(fields).text == resolver(json.dumps(fields)).text == together[0].text
    assert resolver([]) == []
    assert together[0].option == records[0].gold  # learnt by heart
    assert not resolver.module.training
    assert together[0].owner == records[0].gold.owner


def test_a_tests_folder_names_its_checkpoint(fitted: Path, tested: Any) -> None:
    tested()
    assert mmcoref.load("lightning_logs/version_0")(dialogue(1)).text == mmcoref.load(fitted)(dialogue(1)).text


def test_what_cannot_be_loaded_or_answered_is_said(fitted: Path, llama_folder: Path, data_file: Path) -> None:
    with pytest.raises(UserError, match=r"^lightning_logs/version_7: no such run; name a folder"):
        mmcoref.load("lightning_logs/version_7")
    with pytest.raises(UserError, match=r"best\.ckpt: no such checkpoint; it is kept by a fit with --data\.val_size\.$"):
        mmcoref.load(fitted, best=True)
    assert main(["test", "--model.name", str(llama_folder), "--data.path", str(data_file), *CPU]) == 0
    with pytest.raises(UserError, match="the record of an untrained model"):
        mmcoref.load("lightning_logs/version_0")
    resolver = mmcoref.load(fitted)
    with pytest.raises(UserError, match=r"^record 1, problem: expected a question, got nothing$"):
        resolver([dialogue(0), {key: value for key, value in dialogue(0).model_dump().items() if key != "problem"}])
    for nonsense in ("{", None, 5):
        with pytest.raises(UserError, match="expected a"):
            resolver(nonsense)
    with pytest.raises(UserError, match=r"more than data\.max_tokens = 512 tokens"):
        resolver(dialogue(0).model_copy(update={"problem": "저거 " * 600}))


def test_importing_the_package_loads_nothing_heavy() -> None:
    import subprocess
    import sys

    program = "import sys, mmcoref; mmcoref.load; print('torch' in sys.modules, 'lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "False False\n"
