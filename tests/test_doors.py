"""Files from elsewhere run nothing: planted code leaves no mark, and ends in one sentence. docs/security.md lists the readers."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from transformers import PreTrainedTokenizerFast

import mmcoref
from mmcoref.cli import main
from mmcoref.data.pretrained import read_config, restored_config
from mmcoref.data.tokenizer import load_tokenizer, pack_tokenizer, unpack_tokenizer
from mmcoref.errors import UserError
from mmcoref.model.backbone import load_backbone
from mmcoref.run.checkpoint import _FORM, AtomicCheckpointIO, read_stored
from mmcoref.run.integrity import SUMS
from mmcoref.run.resume import inherit
from mmcoref.run.sharded_folder import read_metadata
from tests.conftest import llama, own_environment
from tests.test_cli import CPU, refused

MARK = "mark-of-planted-code"
CODE = f"import pathlib; pathlib.Path({MARK!r}).touch()\n"
HOSTILE = "could run code"


class Planted:
    """Pickles as a call."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (CODE,)


@pytest.fixture(autouse=True)
def _nothing_ran(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Whoever asks on standard input is told yes."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    yield
    assert not list(tmp_path.rglob(MARK))


@pytest.fixture(scope="module")
def fitted(llama_folder: Path, data_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of a plain run and of a sharded one."""
    root = tmp_path_factory.mktemp("fitted")
    quick = ["--trainer.max_steps", "1", "--trainer.limit_val_batches", "0", "--trainer.devices", "1", *CPU]
    for name in ("plain", "sharded"):
        strategy = ["--trainer.strategy", "sharded"] if name == "sharded" else []
        where = ["--trainer.default_root_dir", str(root / name), "--model.name", str(llama_folder), "--data.path", str(data_file)]
        with own_environment():
            assert main(["fit", *where, *quick, *strategy]) == 0
    return root


@pytest.fixture
def file(fitted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(fitted / "plain/lightning_logs/version_0/checkpoints/last.ckpt", tmp_path / "its.ckpt"))


@pytest.fixture
def folder(fitted: Path, tmp_path: Path) -> Path:
    """Without checksums, which are no lock: whoever changes a file can write others."""
    copy = Path(shutil.copytree(fitted / "sharded/lightning_logs/version_0/checkpoints/last.ckpt", tmp_path / "its.ckpt"))
    (copy / SUMS).unlink()
    return copy


def described(folder: Path) -> Metadata:
    metadata: Metadata = pickle.loads((folder / ".metadata").read_bytes())
    return metadata


def describe(folder: Path, metadata: object) -> None:
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


def plant_entry(folder: Path, name: str) -> None:
    """Puts a pickled call in an entry's place."""
    metadata, buffer = described(folder), BytesIO()
    torch.save(Planted(), buffer)
    data = folder / "__0_0.distcp"
    (index,) = (index for index in metadata.storage_data if index.fqn == name)
    place = metadata.storage_data[index]
    place.offset, place.length = data.stat().st_size, len(buffer.getvalue())
    data.write_bytes(data.read_bytes() + buffer.getvalue())
    describe(folder, metadata)


def test_the_planted_code_does_run_where_pickle_is_trusted(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Planted()))
    assert (tmp_path / MARK).exists()
    (tmp_path / MARK).unlink()


@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_that_is_a_pickled_call(legacy: bool, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = torch.load(file, weights_only=True)
    torch.save(checkpoint | {"callbacks": Planted()}, file, _use_new_zipfile_serialization=not legacy)
    for use in (read_stored, AtomicCheckpointIO().load_checkpoint, mmcoref.load):
        with pytest.raises(UserError) as caught:
            use(file)
        assert str(caught.value).startswith(f"{file}: ")
    if not legacy:
        said = refused(capsys, "test", "--ckpt_path", str(file), *CPU)
        assert said.startswith(f"{file}: holds objects that no checkpoint needs and that could run code: they were not read; do not use")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["auto", "sharded"])
@pytest.mark.parametrize("program", ["test", "fit", "predict", "validate"])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_every_program_refuses_a_pickled_call(
    kind: str, program: str, strategy: str, file: Path, fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = file
    if kind == "file":
        torch.save(torch.load(file, weights_only=True) | {"loops": Planted()}, file)
    else:
        path = Path(shutil.copytree(fitted / "sharded/lightning_logs/version_0/checkpoints/last.ckpt", tmp_path / "folder.ckpt"))
        (path / SUMS).unlink()
        metadata = described(path)
        metadata.planner_data["state_dict.x"] = Planted()
        describe(path, metadata)
    options = ["--trainer.strategy", strategy, "--trainer.devices", "1", "--trainer.max_steps", "2", *CPU]
    assert "could run code" in refused(capsys, program, "--ckpt_path", str(path), *options)


@pytest.mark.parametrize("where", ["planner_data", "state_dict_metadata", "storage_meta", "instead"])
def test_a_folder_whose_description_is_a_pickled_call(where: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metadata = described(folder)
    if where == "instead":
        metadata = Planted()  # type: ignore[assignment]
    elif where == "storage_meta":
        metadata.storage_meta = Planted()  # type: ignore[assignment]
    else:
        getattr(metadata, where)["state_dict.x"] = Planted()
    describe(folder, metadata)
    with pytest.raises(UserError, match=r"\.metadata: names builtins\.exec, which no checkpoint needs and which could run code"):
        read_metadata(folder)
    if where == "planner_data":
        with pytest.raises(UserError, match=r"names builtins\.exec"):
            AtomicCheckpointIO().load_checkpoint(folder)
        with pytest.raises(UserError, match=r"names builtins\.exec"):
            mmcoref.load(folder, device="cpu")


def test_a_folder_with_a_pickled_call_among_its_entries(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--trainer.strategy", "sharded", "--trainer.devices", "1", "--trainer.max_steps", "2", *CPU]
    for name, program in (("optimizer_0.param_groups.0.weight_decay", "fit"), ("state_dict.lm.model.norm.weight", "test")):
        plant_entry(folder, name)
        with pytest.raises(UserError, match=HOSTILE):
            AtomicCheckpointIO(training=program == "fit").load_checkpoint(folder)
        assert HOSTILE in refused(capsys, program, "--ckpt_path", str(folder), *options)


def test_a_folder_whose_own_values_are_a_pickled_call(folder: Path) -> None:
    torch.save({"loops": Planted()}, folder / "meta.pt")
    for use in (read_stored, AtomicCheckpointIO().load_checkpoint, mmcoref.load):
        with pytest.raises(UserError, match=HOSTILE):
            use(folder)


def test_a_description_of_something_else_and_of_files_elsewhere_is_refused(folder: Path) -> None:
    metadata = described(folder)
    assert read_metadata(folder) == metadata
    metadata.storage_data[MetadataIndex("state_dict.x")] = type(next(iter(metadata.storage_data.values())))("../secret", 0, 1)
    describe(folder, metadata)
    with pytest.raises(UserError, match=r"names files outside its folder, such as '\.\./secret'"):
        read_metadata(folder)
    for other in ({"state_dict_metadata": {}}, None, 3):
        describe(folder, other)
        with pytest.raises(UserError, match="is not a whole checkpoint"):
            read_metadata(folder)


# ---------------------------------------------------------------------- tokenizers and configs

REMOTE = {"auto_map": {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil", "AutoTokenizer": ["evil.Evil", "evil.Evil"]}}


def plant(folder: Path, name: str, **values: Any) -> None:
    """Has a JSON file ask for code, and brings the code."""
    path = folder / name
    known = json.loads(path.read_text("utf-8")) if path.exists() else {}
    path.write_text(json.dumps({**known, **values}), "utf-8")
    (folder / "evil.py").write_text(CODE)


@pytest.fixture
def model(llama_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama_folder, tmp_path / "model"))


def test_a_models_config_that_brings_code(model: Path, data_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plant(model, "config.json", model_type="evil", **REMOTE)
    said = refused(capsys, "test", "--model.name", str(model), "--data.path", str(data_file), *CPU)
    assert "it brings code of its own, which this program never runs: choose a model of a type that transformers has" in said


def test_a_models_config_that_asks_for_compiled_code_from_the_hub(model: Path) -> None:
    plant(model, "config.json", attn_implementation="owner/kernel")
    with pytest.raises(UserError, match="its config asks for code from the hub, 'owner/kernel': remove attn_implementation from it"):
        read_config(model, str(model))
    for broken in ("", "[]", '{"model_type": "llama", "hidden_size": "wide"}', "[" * 100000):
        (model / "config.json").write_text(broken)
        with pytest.raises(UserError, match="its config cannot be read: "):
            read_config(model, str(model))


def test_code_beside_a_model_that_transformers_has_is_left_alone(
    model: Path, llama_folder: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    plant(model, "config.json", **REMOTE)
    plant(model, "tokenizer_config.json", **REMOTE)
    ours = load_backbone(str(model), load_tokenizer(str(model), ())).state_dict()
    for name, weights in load_backbone(str(llama_folder), tokenizer).state_dict().items():
        assert torch.equal(ours[name], weights)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"tokenizer_class": "EvilTokenizer", **REMOTE}, "it brings code of its own"),
        ({"tokenizer_class": "AutoModelForCausalLM"}, "tokenizer_class 'AutoModelForCausalLM' is no tokenizer"),
        ({"tokenizer_class": "pipeline"}, "is no tokenizer"),
        ({"tokenizer_class": ["x"]}, ""),
    ],
)
def test_a_tokenizer_that_brings_code_or_is_none(asked: dict[str, Any], said: str, model: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    plant(model, "config.json", model_type="evil", **REMOTE)
    plant(model, "tokenizer_config.json", **asked)
    with pytest.raises(UserError, match=f"model.name .*: its tokenizer cannot be loaded: .*{said}"):
        load_tokenizer(str(model), ())
    config = {"config.json": json.dumps({"model_type": "evil", **REMOTE}), "evil.py": CODE}
    packed = pack_tokenizer(tokenizer) | config | {"tokenizer_config.json": json.dumps(asked)}
    with pytest.raises(UserError, match=f"the checkpoint's tokenizer cannot be loaded: .*{said}"):
        unpack_tokenizer(packed)


def test_transformers_is_not_let_ask(model: Path) -> None:
    from transformers import AutoModelForCausalLM

    plant(model, "config.json", model_type="evil", **REMOTE)
    with pytest.raises(ValueError, match="custom code"):
        AutoModelForCausalLM.from_pretrained(model)


def test_a_checkpoints_model_is_a_causal_language_model_of_transformers_own(file: Path) -> None:
    checkpoint = torch.load(file, weights_only=True)
    whole = checkpoint["mmcoref_backbone"]
    assert type(restored_config(whole | REMOTE)).__name__ == "LlamaConfig"
    assert not hasattr(restored_config(whole | REMOTE), "auto_map")
    for change, said in (
        ({"model_type": "evil"}, "is of the type 'evil', which this version of transformers does not have"),
        ({"model_type": ["llama"]}, "is of the type"),
        ({"model_type": "clip"}, "is not a causal language model"),
        ({"attn_implementation": "owner/kernel"}, "is not a causal language model"),
        ({"hidden_size": "wide"}, "cannot be made"),
    ):
        with pytest.raises(UserError, match=said):
            restored_config(whole | change)
    torch.save(checkpoint | {"mmcoref_backbone": whole | {"model_type": "evil"}}, file)
    with pytest.raises(UserError, match="is of the type 'evil'"):
        mmcoref.load(file)


def test_weights_that_are_a_pickled_call(model: Path, data_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for shard in (*model.glob("*.safetensors"), model / "model.safetensors.index.json"):
        shard.unlink()
    torch.save({"lm_head.weight": Planted()}, model / "pytorch_model.bin")
    said = refused(capsys, "test", "--model.name", str(model), "--data.path", str(data_file), *CPU)
    assert "pytorch_model.bin: is broken, or holds objects that could run code: it was not read" in said


def test_weights_in_pickle_are_read_where_they_are_that_only(model: Path, llama_folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    for shard in (*model.glob("*.safetensors"), model / "model.safetensors.index.json"):
        shard.unlink()
    torch.save(llama(len(tokenizer)).to(torch.bfloat16).state_dict(), model / "pytorch_model.bin")
    theirs = load_backbone(str(llama_folder), tokenizer).state_dict()
    for name, weights in load_backbone(str(model), tokenizer).state_dict().items():
        assert torch.equal(weights, theirs[name])


def test_an_adapter_in_a_models_folder_is_not_taken_for_the_model(model: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    plant(model, "adapter_config.json", base_model_name_or_path="somebody/else", peft_type="LORA")
    with pytest.raises(UserError, match="holds an adapter, which is not read"):
        load_backbone(str(model), tokenizer)


# ---------------------------------------------------------------------- removing


def test_no_checkpoint_has_a_folder_of_the_users_removed(tmp_path: Path) -> None:
    precious, run = tmp_path / "precious", tmp_path / "run" / "checkpoints"
    precious.mkdir()
    run.mkdir(parents=True)
    io, best = AtomicCheckpointIO(), ModelCheckpoint(dirpath=run)
    trainer: Any = SimpleNamespace(ckpt_path=None)
    for name in (f"{run}/../../precious", f"local://{precious}"):
        assert best._should_remove_checkpoint(trainer, name, f"{run}/best.ckpt")  # so Lightning would
        io.remove_checkpoint(name)
        assert precious.is_dir()
    (run / "best.ckpt").touch()
    io.remove_checkpoint(str(run / "best.ckpt"))
    assert not list(run.iterdir())


# ---------------------------------------------------------------------- the list of readers


def test_every_reader_and_every_test_that_the_list_names_is_there() -> None:
    root = Path(__file__).parent.parent
    rows = [line for line in (root / "docs" / "security.md").read_text("utf-8").split("\n") if line.startswith("| `")]
    assert len(rows) > 15
    for row in rows:
        _, reader, _, _, tests, _ = row.split("|")
        file, name = reader.strip(" `").split(": ")
        assert re.search(rf"(def|class) {name}\b", (root / "mmcoref" / file).read_text("utf-8")), reader
        for place in tests.split(";"):
            path, *names = re.findall(r"(?:tests/\S+\.py|\btest_\w+)", place)
            text = (root / path).read_text("utf-8")
            assert all(f"def {test}(" in text for test in names), place


# ---------------------------------------------------------------------- forms


def test_values_of_another_form_than_a_checkpoints_are_refused_in_one_sentence(file: Path) -> None:
    checkpoint = torch.load(file, weights_only=True)
    whole = {key: value for key, value in checkpoint.items() if key in _FORM}
    assert len(whole) > 8
    for key in _FORM:
        for value in (None, -1, ["x"], {3: "x"}, torch.zeros(2)):
            torch.save(whole | {key: value}, file)
            try:
                stored = read_stored(file)
                inherit(stored, "fit")
                unpack_tokenizer(stored.tokenizer)
                restored_config(stored.backbone)
            except UserError as error:
                assert str(error).startswith((f"{file}: ", "the checkpoint's "))  # noqa: PT017  # some values are of the form
    for other in ([], torch.zeros(2), "x"):
        torch.save(other, file)
        with pytest.raises(UserError, match="expected a checkpoint that mmcoref wrote, but it has no mmcoref_backbone and"):
            read_stored(file)
