"""One model cut over two processes: the numbers of one process, wherever the work is unequal."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.checkpoint.api import CheckpointException
from transformers import PreTrainedTokenizerFast

from mmcoref.cli import main
from mmcoref.errors import USER_ERROR_EXIT, UserError
from mmcoref.model.module import MMCorefModule
from mmcoref.model.scoring import _PUBLISHED_DECODING
from mmcoref.run.checkpoint import AtomicCheckpointIO, read_stored
from mmcoref.run.files import replace
from mmcoref.run.strategy import ShardedStrategy, strategy_of
from tests.conftest import llama
from tests.sharded_worker import Watch
from tests.test_processes import free_port, mmcoref, newest_record

Said = dict[str, Any]


@pytest.fixture(scope="module")
def folder(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in several files, whose head is its embedding, as in Llama 3.2; the last test here has one whose head is apart."""
    folder: Path = tmp_path_factory.mktemp("llama")
    llama(len(tokenizer), tie_word_embeddings=True).save_pretrained(folder, max_shard_size="40KB")
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def out(folder: Path, data_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left: see `sharded_worker`."""
    out: Path = tmp_path_factory.mktemp("out")
    worker = Path(__file__).with_name("sharded_worker.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port()), str(worker)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run([*command, str(folder), str(data_file), str(out)], capture_output=True, text=True, env=environment, timeout=250)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.fixture(scope="module")
def said(out: Path) -> tuple[Said, Said]:
    first, second = (json.loads((out / f"rank{rank}.json").read_text("utf-8")) for rank in range(2))
    return first, second


@pytest.fixture(scope="module")
def alone(folder: Path, data_file: Path) -> tuple[MMCorefModule, pl.Trainer, Watch]:
    """The same fit on one process."""
    from mmcoref.data.module import MMCorefDataModule

    pl.seed_everything(3, verbose=False)
    watch = Watch()
    module = MMCorefModule(name=str(folder), lr=1e-3, warmup_steps=2, max_new_tokens=12)
    data = MMCorefDataModule(path=str(data_file), tokenizer=str(folder), batch_size=1, micro_batch_size=1, eval_batch_size=1)
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, accumulate_grad_batches=4, max_steps=3, gradient_clip_val=0.5, logger=False, limit_val_batches=0,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, callbacks=[watch],
    )  # fmt: skip
    trainer.fit(module, data)
    return module, trainer, watch


def steps(logged: list[dict[str, float]], each: int, name: str) -> list[float]:
    """A figure behind each optimizer step of so many micro-batches."""
    values = [entry[name] for entry in logged if name in entry]
    return list(dict.fromkeys(values)) if each > 1 else values


def test_every_weight_is_cut_and_every_process_has_its_half(said: tuple[Said, Said]) -> None:
    assert said[0]["not sharded"] == said[1]["not sharded"] == []
    assert len(said[0]["sizes"]) > 10
    for name, (mine, whole) in said[0]["sizes"].items():
        theirs = said[1]["sizes"][name][0]
        assert mine[0] == math.ceil(whole[0] / 2), name
        assert mine[0] + theirs[0] == whole[0]
        assert mine[1:] == theirs[1:] == whole[1:]


def test_the_processes_see_different_records_and_together_all_of_them(said: tuple[Said, Said]) -> None:
    seen = [{tuple(ids) for ids in one["plain"]["records"]} for one in said]
    assert not seen[0] & seen[1]
    assert len(seen[0] | seen[1]) == 9  # the train records


def test_losses_norms_and_weights_are_those_of_one_process(
    said: tuple[Said, Said], alone: tuple[MMCorefModule, pl.Trainer, Watch], out: Path
) -> None:
    module, _, watch = alone
    for name in ("train/loss", "train/grad_norm"):
        expected = steps(watch.logged, 4, name)
        assert len(expected) == 3
        for one in said:
            assert steps(one["plain"]["logged"], 2, name) == pytest.approx(expected, rel=1e-5), name
    checkpoint = AtomicCheckpointIO(training=True).load_checkpoint(out / "plain.ckpt")
    assert checkpoint["state_dict"].keys() == module.state_dict().keys()
    for name, weights in module.state_dict().items():
        assert torch.allclose(checkpoint["state_dict"][name], weights, atol=1e-5), name
    mine = alone[1].optimizers[0].state_dict()
    (theirs,) = checkpoint["optimizer_states"]
    assert [group["params"] for group in theirs["param_groups"]] == [group["params"] for group in mine["param_groups"]]
    for number, state in mine["state"].items():
        assert float(theirs["state"][number]["step"]) == float(state["step"]) == 3
        assert torch.allclose(theirs["state"][number]["exp_avg"], state["exp_avg"], atol=1e-5)


def test_checkpointing_changes_nothing(said: tuple[Said, Said]) -> None:
    for one in said:
        assert one["checkpointed"]["sums"] == pytest.approx(one["plain"]["sums"], rel=1e-9)


def test_float16_trains_as_float32_nearly_does_with_one_scale(said: tuple[Said, Said]) -> None:
    for one in said:
        assert set(one["half"]["scales"]) == {256.0}
        for name in ("train/loss", "train/grad_norm"):
            assert steps(one["half"]["logged"], 2, name) == pytest.approx(steps(one["plain"]["logged"], 2, name), rel=2e-2)
        assert one["half"]["sums"] != one["plain"]["sums"]


def test_an_overflow_in_one_processs_part_skips_the_step_of_both(said: tuple[Said, Said]) -> None:
    for one in said:
        sums, scales = one["overflow"]["sums"], one["overflow"]["scales"]
        assert sums[1] != sums[0]  # the first step is taken behind its second micro-batch
        assert sums[3] == sums[1]  # the second is not
        assert sums[4] != sums[3]  # the third is, of the epoch's one micro-batch that is left
        assert scales[1] == 256.0
        assert scales[3] == 128.0


@pytest.mark.parametrize("decoding", ["greedy", "constrained", "published"])
def test_processes_whose_answers_end_apart_take_the_same_forward_passes(
    said: tuple[Said, Said], alone: tuple[MMCorefModule, pl.Trainer, Watch], decoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (one[f"{decoding}, ends apart"] for one in said)
    assert first["passes"] == second["passes"]
    module, trainer, _ = alone
    module.hparams["decoding"] = decoding
    monkeypatch.setitem(_PUBLISHED_DECODING, "max_length", 160)
    module.data.setup("predict")
    module.data.encoder.stop_id = first["stop_id"]
    passes: list[int] = []
    hook = module.backbone.register_forward_pre_hook(lambda *_: passes.append(1))
    expected = {one.index: one for batch in trainer.predict(module, module.data) or [] for one in batch}
    hook.remove()
    got = first["answers"] | second["answers"]
    assert {int(index) for index in got} == set(expected) == set(range(12))
    for index, (text, stopped, logprobs) in got.items():
        one = expected[int(index)]
        assert logprobs == pytest.approx(list(one.option_logprobs), rel=1e-3, abs=1e-3)
        if decoding != "published":  # which draws, and so follows the last bit of a weight
            assert (text, stopped) == (one.text, one.stopped)
    if decoding == "greedy":
        ended = [stopped for _, stopped, _ in got.values()]
        assert any(ended)
        assert not all(ended)
        # Each took more passes than its own answers needed: the two have 6 of 12, and waited for one another.
        assert first["passes"] * 2 > len(passes)


def test_a_process_that_has_nothing_to_generate_runs_along(said: tuple[Said, Said]) -> None:
    name = "greedy, one has nothing"
    assert said[0][name]["passes"] == said[1][name]["passes"] == said[1]["greedy"]["passes"]
    assert all(text.startswith("A) ") and stopped for text, stopped, _ in said[0][name]["answers"].values())
    assert {index: text for index, (text, *_) in said[1][name]["answers"].items()} == {
        index: text for index, (text, *_) in said[1]["greedy"]["answers"].items()
    }


def test_a_run_that_goes_on_in_the_middle_of_an_epoch_ends_in_the_same_weights(said: tuple[Said, Said], out: Path) -> None:
    assert read_stored(out / "middle.ckpt").step == 2
    for one in said:
        assert len(one["plain"]["sums"]) == 5  # micro-batches: 2, 2 and 1
        assert one["resumed"]["records"] == one["plain"]["records"][4:]
        assert one["resumed"]["sums"] == one["plain"]["sums"][-1:]


def test_a_sharded_run_is_tested_on_one_process_and_on_two_with_the_same_numbers(
    llama_folder: Path, data_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mmcoref(
        "fit",
        "--model.name",
        str(llama_folder),
        "--data.path",
        str(data_file),
        "--trainer.strategy",
        "sharded",
        "--trainer.max_epochs",
        "1",
        processes=2,
    )
    last = Path("lightning_logs/version_0/checkpoints/last.ckpt")
    assert last.is_dir()
    assert [path.name for path in last.parent.iterdir()] == ["last.ckpt"]
    mmcoref("test", "--ckpt_path", "last")
    mmcoref("test", "--ckpt_path", "last", "--trainer.strategy", "sharded", processes=2)
    one, both = (json.loads(Path(f"lightning_logs/version_{n}/record.json").read_text("utf-8")) for n in (1, 2))
    assert one["metrics"] == both["metrics"]
    assert both["n"] == 3
    assert newest_record()["checkpoint"]["path"] == str(last.absolute())
    cpu = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.enable_progress_bar", "false"]
    assert main(["test", "--ckpt_path", str(last / "meta.pt"), *cpu]) == 0  # a file of the folder stands for it
    assert newest_record()["metrics"] == one["metrics"]
    (last / "__1_0.distcp").unlink()
    capsys.readouterr()
    assert main(["test", "--ckpt_path", "last", *cpu]) == USER_ERROR_EXIT
    error = capsys.readouterr().err
    assert f"{last}: is not a whole checkpoint" in error
    assert "No such file or directory" in error
    assert "Traceback" not in error


def test_a_folder_takes_another_folders_place_and_a_files(tmp_path: Path) -> None:
    target = tmp_path / "last.ckpt"
    target.write_text("a file")
    for number in range(2):
        new = tmp_path / ".last.ckpt.tmp"
        new.mkdir()
        (new / "part").write_text(str(number))
        replace(target, new)
        assert (target / "part").read_text() == str(number)
        assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_folder_that_is_not_whole_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "meta.pt").write_bytes(b"")
    with pytest.raises(UserError, match="got a folder without one"):
        read_stored(tmp_path)
    (tmp_path / ".metadata").write_bytes(b"")
    with pytest.raises(UserError, match="is not a whole checkpoint"):
        read_stored(tmp_path)


def test_parts_that_cannot_be_read_are_told_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (FileNotFoundError("__1_0.distcp"), RuntimeError("unexpected end of file\nand more"), CheckpointException("failed", {})):

        def fails(*_: Any, error: BaseException = error) -> None:
            raise error

        monkeypatch.setattr(ModelParallelStrategy, "load_checkpoint", fails)
        with pytest.raises(UserError, match=r"last\.ckpt: is not a whole checkpoint"):
            ShardedStrategy().load_checkpoint(tmp_path / "last.ckpt")


def test_names_of_strategies() -> None:
    assert isinstance(strategy_of("sharded", 8), ShardedStrategy)
    ddp = strategy_of("ddp", 8)
    assert ddp._ddp_kwargs["gradient_as_bucket_view"]  # or its buckets would be a second copy of the gradients
    assert type(strategy_of("auto", 2)) is type(ddp)
    assert strategy_of("auto", 1) == "auto"
    for name in ("fsdp", "deepspeed_stage_2", "ddp_spawn", "ddp_fork_find_unused_parameters_true", "ddp_notebook"):
        with pytest.raises(UserError, match=re.escape(f"expected auto, ddp or sharded, got {name}")):
            strategy_of(name, 8)
