"""Folders that `mmcoref test` wrote: read, checked against their own predictions, and against each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, NonNegativeInt, PositiveInt, StrictBool, StrictInt, ValidationError, field_validator

from mmcoref.data.record import Letter
from mmcoref.errors import UserError
from mmcoref.evaluation.floors import Floor
from mmcoref.tools.run_settings import Settings, decisive_test, decisive_training, same_form

Metric = Literal["object_accuracy", "photo_accuracy", "exact_match", "object_published_rule", "photo_published_rule"]
METRICS: tuple[Metric, ...] = get_args(Metric)

T = TypeVar("T")
Model = TypeVar("Model", bound=BaseModel)


class _Each(BaseModel, Generic[T]):
    """One value per metric."""

    object_accuracy: T
    photo_accuracy: T
    exact_match: T
    object_published_rule: T
    photo_published_rule: T

    def by_name(self) -> dict[Metric, T]:
        return {name: getattr(self, name) for name in METRICS}


class _Line(_Each[StrictBool]):
    """One line of predictions.jsonl, as far as it is compared."""

    index: NonNegativeInt
    cluster: StrictInt
    gold: Letter


class _Score(BaseModel):
    k: NonNegativeInt
    n: PositiveInt


class _Checkpoint(BaseModel):
    path: str
    step: NonNegativeInt
    digest: str | None = None  # results of earlier versions have none


class _Data(BaseModel):
    path: str
    sha256: str
    records: PositiveInt


class Above(BaseModel):
    """The best floor of a level, and how far above it the run is, as the run wrote it."""

    floor: str
    value: float
    interval: tuple[float, float]


class _Levels(BaseModel):
    object: Above
    photo: Above


class RecordFile(BaseModel):
    """record.json, as far as it is compared; other keys are ignored."""

    stage: str
    partial: StrictBool
    n: PositiveInt
    decoding: Literal["greedy", "constrained", "published"]
    seed: StrictBool | StrictInt | None
    config: Settings
    training: Settings | None
    training_data: _Data | None = None  # the same
    checkpoint: _Checkpoint | None
    data: _Data
    metrics: _Each[_Score]
    intervals: _Each[tuple[float, float]]
    bootstrap: _Each[tuple[float, float]]
    floors: tuple[Floor, ...]
    above_best_floor: _Levels

    @field_validator("floors")
    @classmethod
    def _a_floor_names_objects(cls, floors: tuple[Floor, ...]) -> tuple[Floor, ...]:
        if all(floor.object is None for floor in floors):
            raise ValueError("no floor names objects")
        return floors


@dataclass(frozen=True, eq=False)
class Run:
    """One test run, its N records in file order.

    Attributes:
        folder: as the user gave it.
        record: its record.json.
        index: (N,) places in the data file, rising.
        cluster: (N,) cluster numbers.
        gold: N gold letters.
        hits: (N,) whether each record counts, by metric.
    """

    folder: str
    record: RecordFile
    index: NDArray[np.int64]
    cluster: NDArray[np.int64]
    gold: tuple[Letter, ...]
    hits: dict[Metric, NDArray[np.bool_]]

    @property
    def model(self) -> str:
        """`model.name`."""
        return str(self.record.config.model.get("name", "unknown"))

    @property
    def step(self) -> int:
        """Optimizer steps of the checkpoint; 0 for an untrained model."""
        return self.record.checkpoint.step if self.record.checkpoint else 0

    @property
    def seed(self) -> int | None:
        """The training's, else the test's; None where no number is known."""
        seed = _number(self.record.training.seed_everything) if self.record.training else None
        return _number(self.record.seed) if seed is None else seed

    @property
    def test_seed(self) -> int | None:
        """The test's, where the decoding samples; None elsewhere."""
        return _number(self.record.seed) if self.record.decoding == "published" else None

    @property
    def settings(self) -> str:
        """All that matters but the seeds, in one form: equal texts, equal settings."""
        training, checkpoint, data = self.record.training, self.record.checkpoint, self.record.data
        # Without all of the fit's settings nothing shows that two checkpoints differ in the seed only.
        whole = training is not None and training.trainer
        trained = self.record.training_data
        form = {
            "decoding": self.record.decoding,
            "test": decisive_test(self.record.config),
            "step": self.step,
            "training": decisive_training(training, data.path, data.sha256, trained.sha256 if trained else None)
            if training and whole
            else checkpoint and (checkpoint.digest or checkpoint.path),
        }
        return same_form(form)


def read_run(path: str | Path) -> Run:
    """Reads the folder of one `mmcoref test`.

    Raises:
        UserError: no such folder, no record in it, a file that is not of the written form, or predictions that are not
            those of the record.
    """
    folder = Path(path)
    record_file, predictions_file = folder / "record.json", folder / "predictions.jsonl"
    if not record_file.is_file():
        raise UserError(_no_record(folder))
    record = _parse(RecordFile, _text(record_file), str(record_file))
    if record.stage != "test":
        raise UserError(f"{folder}: expected a test run, got one of `mmcoref {record.stage}`; test its model with mmcoref test first.")
    # Not splitlines(): an output may hold a line separator (U+2028), which JSON leaves as it is.
    written = enumerate(_text(predictions_file).split("\n"), start=1)
    lines = [_parse(_Line, line, f"{predictions_file}, line {number}") for number, line in written if line.strip()]
    lines.sort(key=lambda line: line.index)
    hits = {name: np.array([getattr(line, name) for line in lines], dtype=np.bool_) for name in METRICS}
    if problem := _mismatch(record, lines, hits):
        raise UserError(f"{predictions_file} does not match its record.json: {problem}; run the test again.")
    return Run(
        folder=str(path),
        record=record,
        index=np.array([line.index for line in lines]),
        cluster=np.array([line.cluster for line in lines]),
        gold=tuple(line.gold for line in lines),
        hits=hits,
    )


def check_comparable(runs: Sequence[Run]) -> None:
    """Whether the runs answered the same records, all of them.

    Raises:
        UserError: no runs, one folder twice, a partial run, or different records.
    """
    if not runs:
        raise UserError("expected one run folder or more, such as lightning_logs/version_3, got none.")
    folders = Counter(Path(run.folder).resolve() for run in runs)
    for run in runs:
        if folders[Path(run.folder).resolve()] > 1:
            raise UserError(f"{run.folder} is named twice; name each run once.")
        if run.record.partial:
            raise UserError(f"{run.folder} is partial (--data.limit or limited batches): test it on all its records first.")
    first = runs[0]
    for run in runs[1:]:
        if problem := _other_records(first, run):
            raise UserError(f"{first.folder} and {run.folder} were not tested on the same records: {problem}.")


def _other_records(a: Run, b: Run) -> str | None:
    files = a.record.data, b.record.data
    if files[0].sha256 != files[1].sha256:
        named = " and ".join(f"{file.path} (sha256 {file.sha256[:12]})" for file in files)
        return f"the data differ, {named}; test both on one file"
    apart = sorted(set(a.index.tolist()) ^ set(b.index.tolist()))
    if apart:
        return f"{len(apart)} are in one of the two only, the first is record {apart[0]}; test both with the same --data settings"
    for i, index in enumerate(a.index):
        if (a.gold[i], a.cluster[i]) != (b.gold[i], b.cluster[i]):
            return f"record {index} has another gold letter or cluster in each; run the tests again with one version of mmcoref"
    return None


def _mismatch(record: RecordFile, lines: Sequence[_Line], hits: Mapping[Metric, NDArray[np.bool_]]) -> str | None:
    if len(lines) != record.n:
        return f"{len(lines)} predictions, where it counts {record.n}"
    [(index, times)] = Counter(line.index for line in lines).most_common(1)
    if times > 1:
        return f"record {index} is answered {times} times"
    for name, score in record.metrics.by_name().items():
        if (int(hits[name].sum()), len(lines)) != (score.k, score.n):
            return f"{name} is {int(hits[name].sum())} of {len(lines)}, where it counts {score.k} of {score.n}"
    return None


def _no_record(folder: Path) -> str:
    if folder.is_file():
        return f"{folder}: expected a run folder, got a file; name the folder that it lies in, {folder.parent}."
    if not folder.is_dir():
        return f"{folder}: no such run folder; name one that `mmcoref test` wrote, such as lightning_logs/version_3."
    if (folder / "checkpoints").is_dir():
        last = folder / "checkpoints" / "last.ckpt"
        return f"{folder}: a fit, which has no record.json; run mmcoref test --ckpt_path {last} and compare the folder that it writes."
    runs = sorted(file.parent for file in folder.glob("*/record.json"))
    if runs:
        return f"{folder}: expected a run folder, got a folder of {len(runs)} runs; name those to compare, such as {runs[0]}."
    return f"{folder}: no record.json in it; name a folder that `mmcoref test` wrote, such as lightning_logs/version_3."


def _text(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: expected UTF-8 text, got byte 0x{error.object[error.start]:02x}; run the test again.") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); run the test again.") from None


def _parse(kind: type[Model], text: str, where: str) -> Model:
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place, message = ".".join(map(str, first["loc"])), first["msg"]
        got = {"json_invalid": "broken JSON", "missing": f"no {place}"}.get(first["type"], f"{place}: {message[0].lower()}{message[1:]}")
        raise UserError(f"{where}: expected what `mmcoref test` writes, got {got}; run the test again with this version.") from None


def _number(seed: bool | int | None) -> int | None:
    return None if isinstance(seed, bool) else seed
