"""What a run was trained on and what its checkpoint holds are checked before they are used."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

import mmcoref
from mmcoref.cli import main
from mmcoref.data.file import dump_records, read_records
from mmcoref.data.module import MMCorefDataModule
from mmcoref.errors import UserError
from mmcoref.lightning_cli import _Settings
from mmcoref.run import integrity, provenance
from mmcoref.run.checkpoint import AtomicCheckpointIO, read_stored
from mmcoref.run.files import read_file
from mmcoref.run.integrity import SUMS, check, check_structure, digest
from mmcoref.run.provenance import DataIdentity, check_data, names_data
from mmcoref.run.tested import tested_checkpoint as checkpoint_of
from tests.conftest import own_environment
from tests.test_cli import CPU, refused

QUICK = ["--trainer.limit_val_batches", "0", "--trainer.devices", "1", *CPU]
LAST = "lightning_logs/version_0/checkpoints/last.ckpt"


@pytest.fixture(scope="module")
def runs(llama_folder: Path, data_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain fit and a sharded one, on a copy of the data file."""
    root = tmp_path_factory.mktemp("runs")
    shutil.copy(data_file, root / "data.json")
    for name, options in (("plain", []), ("sharded", ["--trainer.strategy", "sharded"])):
        where = ["--data.path", str(root / "data.json"), "--trainer.default_root_dir", str(root / name)]
        with own_environment():
            assert main(["fit", "--model.name", str(llama_folder), "--trainer.max_steps", "5", *where, *QUICK, *options]) == 0
    return root


@pytest.fixture
def file(runs: Path) -> Iterator[Path]:
    """The data that the fits have read; a test may change them."""
    path = runs / "data.json"
    before = path.read_bytes()
    yield path
    path.write_bytes(before)


@pytest.fixture
def fitted(runs: Path, tmp_path: Path) -> Path:
    """The plain fit's checkpoint, as if it had been made here."""
    shutil.copytree(runs / "plain" / "lightning_logs", tmp_path / "lightning_logs")
    return Path(LAST)


@pytest.fixture
def sharded(runs: Path, tmp_path: Path) -> Path:
    """The sharded fit's."""
    shutil.copytree(runs / "sharded" / "lightning_logs", tmp_path / "lightning_logs")
    return Path(LAST)


def reverse(file: Path) -> None:
    file.write_text(dump_records(read_records(str(file)).records[::-1]), "utf-8")


# ---------------------------------------------------------------------- data


def test_a_file_that_has_changed_since_the_fit_is_refused_unless_it_is_named(
    fitted: Path, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = read_stored(fitted).data
    assert before == DataIdentity(str(file), read_records(str(file)).sha256, 12)
    short = f"sha256 {before.sha256[:12]}…, 12 records"
    reverse(file)
    said = refused(capsys, "test", "--ckpt_path", "last", *CPU)
    assert said.startswith(f"{file}: is not what the model was trained on: expected {short}, got sha256 ")
    assert not list(Path("lightning_logs").glob("*/record.json"))
    assert main(["test", "--ckpt_path", "last", "--data.path", str(file), "--model.max_new_tokens", "2", *CPU]) == 0
    assert f"the model was trained on {file} ({short}); whether records measured here are among" in capsys.readouterr().err
    (written,) = Path("lightning_logs").glob("*/record.json")
    record = json.loads(written.read_text("utf-8"))
    assert record["training_data"] == before._asdict()
    assert record["data"]["sha256"] != before.sha256


def test_changed_data_stop_a_fit_even_if_they_are_named_and_no_prediction(
    fitted: Path, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reverse(file)
    assert "is not what the model was trained on" in refused(capsys, "validate", "--ckpt_path", "last", *CPU)
    for named in ([], ["--data.path", str(file)]):
        assert "start a new run without --ckpt_path" in refused(capsys, "fit", "--ckpt_path", "last", *named)
    assert main(["predict", "--ckpt_path", "last", "--data.limit", "1", *CPU]) == 0


def test_who_names_the_data() -> None:
    Path("data.yaml").write_text("path: a.json\n")
    Path("other.yaml").write_text("data:\n  val_size: 2\n")
    Path("all.yaml").write_text("data:\n  path: a.json\n")
    cases = {
        ("--data.path", "trained.json"): True,
        ("--data.path=a.json", "--data.val_size", "2"): True,
        ("--data", "data.yaml"): True,
        ("--config", "all.yaml"): True,
        ("--data.sample_seed", "3"): True,
        ("--config", "other.yaml"): False,
        (): False,
    }
    found = {}

    class Asked(_Settings):
        def parse_arguments(self, parser: Any, args: Any) -> None:
            super().parse_arguments(parser, args)
            trained = {"data": {"path": "trained.json", "sample_seed": 0}}
            for options in cases:
                found[options] = names_data(parser, "test", ["test", *options], trained)

    with ExitStack() as at_end:
        Asked(["test"], at_end)
    assert found == cases


@pytest.mark.slow
def test_generated_dialogues_are_compared_too(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    small = ["--data.path", "sample", "--data.sample_train", "8", "--data.limit", "2", "--model.max_new_tokens", "2"]
    assert main(["fit", *small, "--trainer.max_steps", "1", *QUICK]) == 0
    assert main(["test", "--ckpt_path", "last", "--data.sample_seed", "1", *CPU]) == 0
    assert "data.path sample (sha256 " in capsys.readouterr().err
    from mmcoref.data import module

    monkeypatch.setattr(module, "dump_records", lambda records: "of another version")
    assert "sample: is not what the model was trained on" in refused(capsys, "test", "--ckpt_path", "last", *CPU)


def test_a_checkpoint_that_does_not_say_its_data_is_used_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    said = []
    monkeypatch.setattr(provenance.log, "warning", lambda text, *values: said.append(text % values))
    now = DataIdentity("a.json", "0" * 64, 3)
    check_data(None, now, given=False, training=True)
    check_data(now, now._replace(path="moved.json"), given=False, training=False)
    assert said == ["a.json: its checkpoint, of an earlier version, does not say what the model was trained on: not compared"]


# ---------------------------------------------------------------------- bytes


def flips(size: int, number: int) -> list[tuple[int, int]]:
    draw = random.Random(0)
    return [(draw.randrange(size), 1 << draw.randrange(8)) for _ in range(number)]


def flipped(content: bytes, at: int, bit: int) -> bytes:
    return content[:at] + bytes([content[at] ^ bit]) + content[at + 1 :]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def test_no_flipped_bit_is_used(fitted: Path, tmp_path: Path) -> None:
    content, copy = fitted.read_bytes(), tmp_path / "copy.ckpt"
    whole = torch.load(fitted, weights_only=True)
    with zipfile.ZipFile(fitted) as archive:
        tables = archive.start_dir, len(content)  # names, sizes, checksums
    places = flips(len(content), 50) + [(tables[0] + at, bit) for at, bit in flips(tables[1] - tables[0], 50)]
    refusals = 0
    for at, bit in places:
        copy.write_bytes(flipped(content, at, bit))
        try:
            check(copy, training=True)
            loaded = read_file(copy)
        except UserError:
            refusals += 1
        else:  # a date, or a byte between two entries, which nobody reads
            assert same(loaded, whole)
    assert refusals > 60


def test_damage_is_found_before_anything_is_used(fitted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored, content = read_stored(fitted), fitted.read_bytes()
    with zipfile.ZipFile(LAST) as archive:
        places = {entry.filename: entry.header_offset + entry.file_size // 2 + 128 for entry in archive.infolist()}
    # The first tensor is the model's, the last one the optimizer's, which only a resumed fit needs.
    names = sorted((name for name in places if "/data/" in name), key=lambda name: int(name.rpartition("/")[2]))
    for name, training in ((names[0], False), (names[-1], True), ("archive/data.pkl", False)):
        fitted.write_bytes(flipped(content, places[name], 4))
        with pytest.raises(UserError, match=re.escape(f"(Bad CRC-32 for file '{name}')")):
            AtomicCheckpointIO(training=training).load_checkpoint(fitted)
        if name == names[0]:
            assert f"(Bad CRC-32 for file '{name}')" in refused(capsys, "test", "--ckpt_path", LAST, *CPU)
            with pytest.raises(UserError, match="Bad CRC-32"):
                mmcoref.load(fitted, device="cpu")
        if name == names[-1]:
            check(fitted, training=False)  # a test does not read it
        if name == "archive/data.pkl":
            with pytest.raises(UserError, match="Bad CRC-32"):
                read_stored(fitted)  # before a setting in it is used
    fitted.write_bytes(content)
    check(Path(LAST), training=True)
    assert stored.digest == digest(Path(LAST))


def test_a_digest_names_what_a_checkpoint_holds(fitted: Path, tmp_path: Path) -> None:
    first = digest(Path(LAST))
    assert first is not None
    assert len(first) == 64
    assert digest(Path(shutil.copy(LAST, tmp_path / "elsewhere.ckpt"))) == first
    checkpoint = torch.load(LAST, weights_only=True)
    torch.save(checkpoint, tmp_path / "named.otherwise")
    assert digest(tmp_path / "named.otherwise") == first
    checkpoint["state_dict"]["lm.model.norm.weight"][0] += 1e-3
    torch.save(checkpoint, tmp_path / "other.ckpt")
    assert digest(tmp_path / "other.ckpt") != first


def test_a_sharded_checkpoint_has_checksums_that_sha256sum_reads(sharded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = sharded
    names = {path.name for path in folder.iterdir()}
    assert names == {SUMS, ".metadata", "meta.pt", "__0_0.distcp"}
    done = subprocess.run(["sha256sum", "--check", "--strict", SUMS], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stdout.count(": OK") == 3
    whole = (folder / SUMS).read_text()
    first = digest(folder)
    assert first is not None
    assert digest(Path(shutil.copytree(folder, "elsewhere"))) == first
    for name in sorted(names - {SUMS}):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(flipped(content, len(content) // 2, 1))
        with pytest.raises(UserError, match=rf"\({re.escape(name)} has another checksum than when it was written\)"):
            check(folder, training=False)
        (folder / name).write_bytes(content)
    for sums in ("no checksum", f"{'0' * 64}  ../data.json\n"):
        (folder / SUMS).write_text(sums)
        with pytest.raises(UserError, match="is not a whole checkpoint"):
            check_structure(folder)
    for kept in ("", "".join(line for line in whole.splitlines(True) if "distcp" not in line)):
        (folder / SUMS).write_text(kept)
        with pytest.raises(UserError, match=f"{SUMS} has no checksum of"):
            check(folder, training=True)
    (folder / SUMS).unlink()
    said = []
    monkeypatch.setattr(integrity.log, "warning", lambda text, *values: said.append(text % values))
    check(folder, training=True)
    assert said == [f"{folder} has no {SUMS}, as an earlier version wrote it: damage to it is not noticed"]
    assert digest(folder) is None


# ---------------------------------------------------------------------- results


@pytest.fixture(scope="module")
def measured(runs: Path) -> Path:
    """The plain fit and a test of it."""
    work = shutil.copytree(runs / "plain", runs / "work")
    with own_environment():
        where = ["--ckpt_path", str(work / LAST), "--trainer.default_root_dir", str(work)]
        assert main(["test", *where, "--model.max_new_tokens", "2", *CPU]) == 0
    return work


@pytest.fixture
def tested(measured: Path, tmp_path: Path) -> Path:
    """The same, in a folder that can be moved; the record names the checkpoint where it was then."""
    shutil.copytree(measured, tmp_path / "work")
    rewritten(Path("work"), path=str(tmp_path / "work" / LAST))
    return Path("work")


def rewritten(work: Path, **changes: Any) -> Path:
    """The test's folder, after its record has been changed."""
    folder = work / "lightning_logs/version_1"
    record = json.loads((folder / "record.json").read_text("utf-8"))
    record["checkpoint"] = changes.pop("checkpoint", record["checkpoint"] | changes)
    (folder / "record.json").write_text(json.dumps(record), "utf-8")
    return folder


def test_a_tests_folder_gives_the_checkpoint_that_it_tested_from_anywhere(
    tested: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tested / "lightning_logs/version_1"
    first = checkpoint_of(folder)
    assert first.path == (tested / "lightning_logs/version_0/checkpoints/last.ckpt").absolute()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    answers = mmcoref.load(Path("..") / folder, device="cpu")
    assert answers.module.hparams["lr"] == first.config["model"]["lr"]
    shutil.move(tmp_path / tested, tmp_path / "moved")
    moved = checkpoint_of(tmp_path / "moved/lightning_logs/version_1")
    assert moved.path.is_relative_to(tmp_path / "moved")
    assert moved.digest == first.digest
    # Results of earlier versions hold a path from a working directory, and no digest.
    old = rewritten(tmp_path / "moved", path="lightning_logs/version_0/checkpoints/last.ckpt", digest=None)
    assert checkpoint_of(old).path == moved.path


def test_no_other_checkpoint_is_taken_for_the_one_that_was_tested(
    tested: Path, llama_folder: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Another run at the same relative path: what a working directory would find.
    other = ["--trainer.default_root_dir", "other/work", "--model.lr", "0.5", "--trainer.max_steps", "5"]
    assert main(["fit", "--model.name", str(llama_folder), "--data.path", str(file), *other, *QUICK]) == 0
    monkeypatch.chdir("other")
    last = tmp_path / "work/lightning_logs/version_0/checkpoints/last.ckpt"
    old = rewritten(tmp_path / tested, path="work/lightning_logs/version_0/checkpoints/last.ckpt", digest=None)
    assert checkpoint_of(old).path == last
    shutil.copy("work/lightning_logs/version_0/checkpoints/last.ckpt", last)
    with pytest.raises(UserError, match=r"the checkpoint that was tested, step 5 of .*, has been replaced since by another"):
        mmcoref.load(old)
    with pytest.raises(UserError, match="has been replaced since by another"):
        mmcoref.load(rewritten(tmp_path / tested, path=str(last), digest="0" * 64))
    last.unlink()
    with pytest.raises(UserError, match=r"work/lightning_logs/version_0/checkpoints/last.ckpt, is not there any more"):
        mmcoref.load(old)
    with pytest.raises(UserError, match="the record of an untrained model"):
        mmcoref.load(rewritten(tmp_path / tested, checkpoint=None))
    for broken in ("", "[]", '{"checkpoint": "x"}', '{"checkpoint": {"path": 3, "step": 1}}', "\x80"):
        (old / "record.json").write_text(broken, "latin-1")
        with pytest.raises(UserError, match="expected the results of a test"):
            mmcoref.load(old)


def test_a_checkpoint_that_is_replaced_while_a_test_starts_is_noticed(
    fitted: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = torch.load(fitted, weights_only=True)
    setup = MMCorefDataModule.setup

    def replaced(self: MMCorefDataModule, stage: str) -> None:
        setup(self, stage)
        torch.save(checkpoint | {"global_step": 6}, LAST)

    monkeypatch.setattr(MMCorefDataModule, "setup", replaced)
    assert "last.ckpt: was replaced while this run started" in refused(capsys, "test", "--ckpt_path", LAST, *CPU)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "strategy"), [("plain", "ddp"), ("sharded", "sharded"), ("sharded", "ddp")])
def test_damage_that_one_process_finds_ends_all_of_them_with_one_sentence(kind: str, strategy: str, runs: Path, tmp_path: Path) -> None:
    last = runs / kind / LAST
    damaged = Path(shutil.copytree(last, tmp_path / "its.ckpt") if last.is_dir() else shutil.copy(last, tmp_path / "its.ckpt"))
    part = damaged / "__0_0.distcp" if damaged.is_dir() else damaged
    content = part.read_bytes()
    part.write_bytes(flipped(content, len(content) // 4, 1))  # in the weights, of which a plain file begins with
    command = [
        sys.executable,
        "-m",
        "mmcoref",
        "test",
        "--ckpt_path",
        str(damaged),
        "--trainer.devices",
        "2",
        "--trainer.strategy",
        strategy,
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent.parent)}
    done = subprocess.run([*command, *CPU], capture_output=True, text=True, env=environment, timeout=250)
    assert done.returncode == 2, done.stderr[-3000:]
    assert done.stderr.count("mmcoref: error: ") == 1
    assert "its bytes are not those that were written" in done.stderr
    assert "Traceback" not in done.stderr
