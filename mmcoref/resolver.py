"""A trained model as a Python object: records in, answers out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import torch
from lightning.fabric.utilities import move_data_to_device

from mmcoref.data.batch import eval_batch
from mmcoref.data.example import longest_answer
from mmcoref.data.examples import collect
from mmcoref.data.module import MMCorefDataModule
from mmcoref.data.record import LETTERS, Letter, Option, Record, Speaker, parse_record
from mmcoref.errors import UserError, at_least
from mmcoref.model.answering import predict
from mmcoref.model.limits import check_answering_length, check_ids
from mmcoref.model.module import ROOM_AFTER_ANSWER, MMCorefModule
from mmcoref.paths import user_path
from mmcoref.run.checkpoint import Stored, load_weights, read_stored
from mmcoref.run.resume import inherit
from mmcoref.run.tested import RECORD, tested_checkpoint


@dataclass(frozen=True)
class Answer:
    """What a model says of one dialogue.

    Attributes:
        option: the option that its text names; None where the text names none.
        probabilities: of the four options, by letter; they sum to 1.
        text: what it wrote.
    """

    option: Option | None
    probabilities: dict[Letter, float]
    text: str

    @property
    def owner(self) -> Speaker | None:
        """Whose photo is meant; None where the option names nobody, or there is none."""
        return None if self.option is None else self.option.owner


One = Record | dict[str, Any] | str


class Resolver:
    """Answers records with a run's model, as `mmcoref predict` does; see `mmcoref.load`."""

    def __init__(self, run: str | Path, *, best: bool = False, batch_size: int = 16, device: str | None = None) -> None:
        at_least(1, batch_size=batch_size)
        stored = _stored(user_path(run), best=best)
        settings = inherit(stored, "predict").settings
        self.batch_size = batch_size
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.module, data = MMCorefModule(**settings["model"]), MMCorefDataModule(**settings["data"])
        stored.restore(self.module, data)
        data.prepare_encoder(())
        self.encoder = data.encoder
        self.module.configure_model()
        load_weights(self.module, stored.path)
        self.module.to(self.device).eval()
        self._seed = int(settings.get("seed_everything") or 0)

    @overload
    def __call__(self, records: One) -> Answer: ...  # type: ignore[overload-overlap]  # a string is a sequence, too
    @overload
    def __call__(self, records: Sequence[One]) -> list[Answer]: ...
    def __call__(self, records: One | Sequence[One]) -> Answer | list[Answer]:
        """The answer to one record, or to each of several, in their order.

        Args:
            records: with or without solutions, as `Record`, as a dictionary with the data file's fields, or as its JSON.

        Raises:
            UserError: a record is not valid, or longer than the model was trained for.
        """
        if isinstance(records, (Record, dict, str)):
            return self([records])[0]
        if not isinstance(records, Sequence):
            raise UserError(f"expected a record or a list of records, got {type(records).__name__}.")
        parsed = [(i, one if isinstance(one, Record) else parse_record(one, i)) for i, one in enumerate(records)]
        examples = self.encoder.encode(parsed).examples
        if len(examples) < len(records):
            missing = min(set(range(len(records))) - {example.index for example in examples})
            raise UserError(f"record {missing}: longer than the {self.encoder.max_tokens} tokens of data.max_tokens; shorten it.")
        settings, answers = self.module.hparams, dict[int, Answer]()
        room = settings["max_new_tokens"] or longest_answer(examples) + ROOM_AFTER_ANSWER
        if examples:
            config, decoding, asked = self.module.backbone.config, settings["decoding"], collect(examples)
            check_ids(config, self.encoder, [asked], settings["name"])
            check_answering_length(
                config, asked, settings["name"],
                max_new_tokens=room if decoding == "greedy" else 0, as_published=decoding == "published",
            )  # fmt: skip
        ranked = sorted(examples, key=lambda example: -example.tokens)  # rows of like length share a batch
        for start in range(0, len(ranked), self.batch_size):
            batch = eval_batch([(example, True) for example in ranked[start : start + self.batch_size]], self.encoder.pad_id)
            found = predict(
                self.module.backbone,
                self.encoder,
                move_data_to_device(batch, self.device),
                decoding=settings["decoding"],
                max_new_tokens=room,
                seed=self._seed,
            )
            for one in found:
                answers[one.index] = Answer(one.option, dict(zip(LETTERS, one.probabilities, strict=True)), one.text)
        return [answers[i] for i in range(len(records))]


def _stored(run: Path, *, best: bool) -> Stored:
    """Read what a run's checkpoint says."""
    if run.is_file() or (run / ".metadata").is_file():  # a sharded fit's checkpoint is a folder
        return read_stored(run)
    if not run.is_dir():
        raise UserError(f"{run}: no such run; name a folder such as lightning_logs/version_0, or a checkpoint file.")
    if (run / RECORD).is_file():
        return tested_checkpoint(run)
    file = run / "checkpoints" / ("best.ckpt" if best else "last.ckpt")
    if not file.exists():
        kept = "it is kept by a fit with --data.val_size" if best else "name the folder of a fit"
        raise UserError(f"{file}: no such checkpoint; {kept}.")
    return read_stored(file)
