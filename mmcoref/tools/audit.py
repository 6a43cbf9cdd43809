"""`mmcoref audit FILE`: what is in a data file, before anything is trained. Torch waits until tokens are to be counted."""

from __future__ import annotations

import argparse
import inspect
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

import numpy as np

from mmcoref.data.file import RecordStream, open_data
from mmcoref.data.items import Items
from mmcoref.data.prompt import answer_text, prompt_text
from mmcoref.data.record import Record
from mmcoref.data.sample import sample_records
from mmcoref.data.split import Split, split_by
from mmcoref.errors import UserError, at_least
from mmcoref.tools.arguments import Parser
from mmcoref.tools.audit_checks import Audit, Tokens, audit_of, lengths
from mmcoref.tools.audit_survey import Survey

if TYPE_CHECKING:
    from mmcoref.data.encode import PromptStyle

REFUSED_EXIT = 1
_SAMPLE = "sample"  # the word that stands for generated dialogues in place of a file
_NO_LIMIT = sys.maxsize


@dataclass(frozen=True)
class Report:
    """A file and its audit.

    Attributes:
        path: as the user gave it.
        form: of the file's top level, e.g. `JSON list of strings`; None where it was refused.
        sha256: hex digest of the file's bytes; None where it was refused, or generated.
        refusals: why training would refuse the file, one message each.
        audit: None where the records could not be read or split.
    """

    path: str
    form: str | None
    sha256: str | None
    refusals: tuple[str, ...]
    audit: Audit | None


def main(argv: Sequence[str]) -> int:
    """Prints the audit of a file and returns 0, or 1 where training would refuse the file.

    Args:
        argv: the command line after `mmcoref audit`.

    Raises:
        UserError: an option is wrong, or the file cannot be read at all.
    """
    options = _parser().parse_args(argv)
    report = audit_file(
        options.file, val_size=options.val_size, tokenizer=options.tokenizer, prompt=options.prompt, max_tokens=options.max_tokens
    )
    if options.json:
        print(json.dumps(asdict(report), indent=2))  # in ASCII: a message may quote half a surrogate pair
    else:
        from mmcoref.text import plain_console
        from mmcoref.tools.audit_table import show

        show(report, plain_console())
    return REFUSED_EXIT if report.refusals else 0


def audit_file(
    file: str, *, val_size: int = 0, tokenizer: str | None = None, prompt: PromptStyle | None = None, max_tokens: int | None = None
) -> Report:
    """Reads, splits, encodes and audits a file as a fit would.

    Args:
        file: its path, or `sample` for generated dialogues.
        val_size: train records to hold out.
        tokenizer: a hub name, a folder, or `tiny`; by default no tokens are counted.
        prompt: `base` or `chat`; by default as in training.
        max_tokens: the most tokens of a prompt and its longest answer; by default as in training.

    Raises:
        UserError: an option is wrong, or the file cannot be read at all.
    """
    if tokenizer is None and (prompt or max_tokens is not None):
        raise UserError("--prompt and --max_tokens are about tokens: name the tokenizer that counts them with --tokenizer.")
    at_least(1, max_tokens=max_tokens)
    with ExitStack() as stack:
        try:
            source = _sample() if file == _SAMPLE else _file(file, again=tokenizer is not None, stack=stack)
            survey = _survey(source)
            split_by(min(len(survey), 2), survey.clusters)  # refuses a single record, whatever the options
        except UserError as error:
            if not _is_readable(file):
                raise
            return Report(file, None, None, (str(error),), None)
        split = split_by(len(survey), survey.clusters, n_train=source.n_train, val_size=val_size)
        tokens = None if tokenizer is None else _tokens(source.records, len(survey), split, tokenizer, prompt, max_tokens)
    return Report(file, source.form, source.sha256, tuple(_refusals(tokens, len(survey))), audit_of(survey, split, tokens))


class _Source:
    """Records that can be read, and what is known of their file once they have been.

    Attributes:
        records: reads them from the beginning.
        n_train: how many are the train part, where the published share does not decide it.
        form: of the file's top level.
        sha256: of the file's bytes; None if there is none.
    """

    def __init__(self, records: Callable[[], Iterator[Record]], n_train: int | None = None, form: str | None = None) -> None:
        self.records = records
        self.n_train = n_train
        self.form = form
        self.sha256: str | None = None


def _survey(source: _Source) -> Survey:
    """Look at all records, in one pass."""
    survey = Survey()
    for record in source.records():
        survey.add(record)
    return survey


def _file(path: str, *, again: bool, stack: ExitStack) -> _Source:
    """A data file; what comes from a pipe is kept in a temporary file if it is to be read again."""
    file = stack.enter_context(open_data(path))
    if again and not file.seekable():
        copy = stack.enter_context(TemporaryFile())  # noqa: SIM115  # the stack closes it
        shutil.copyfileobj(file, copy)
        file = copy

    def records() -> Iterator[Record]:
        if file.seekable():
            file.seek(0)
        stream = RecordStream(path, Items(path, file), require_solution=True)
        yield from stream
        source.form, source.sha256 = stream.form, stream.sha256

    source = _Source(records)
    return source


def _sample() -> _Source:
    """What a fit generates by default."""
    from mmcoref.data.module import SAMPLE_TEST, MMCorefDataModule

    n_train: int = inspect.signature(MMCorefDataModule).parameters["sample_train"].default
    return _Source(lambda: iter((*sample_records(n_train), *sample_records(SAMPLE_TEST, part="test"))), n_train, "generated")


def _is_readable(path: str) -> bool:
    return os.path.exists(path) and not os.path.isdir(path) and os.access(path, os.R_OK)


def _tokens(
    records: Callable[[], Iterator[Record]], n: int, split: Split, name: str, prompt: PromptStyle | None, max_tokens: int | None
) -> Tokens:
    from mmcoref.data.encode import Encoder, Fates
    from mmcoref.data.tokenizer import load_tokenizer

    trains = np.zeros(n, np.bool_)
    trains[np.asarray(split.train, np.int64)] = True
    train = (record for record, learnt in zip(records(), trains, strict=True) if learnt)
    tokenizer = load_tokenizer(name, (prompt_text(record) + answer_text(record.gold) for record in train))
    encoder = Encoder(tokenizer) if prompt is None else Encoder(tokenizer, style=prompt)
    limit = encoder.max_tokens if max_tokens is None else max_tokens
    encoder.max_tokens = _NO_LIMIT  # longer records are measured, too
    examples = encoder.stream(enumerate(records()), n, Fates())
    counted = np.fromiter((example.tokens for example in examples), np.int64, n)
    return Tokens(name, encoder.style, limit, lengths(counted), tuple(np.flatnonzero(counted > limit).tolist()))


def _refusals(tokens: Tokens | None, n: int) -> Iterator[str]:
    if tokens and tokens.too_long:
        longest = tokens.lengths.max
        yield (
            f"{len(tokens.too_long)} of {n} records have more than {tokens.max_tokens} tokens (the longest {longest}): "
            f"raise --data.max_tokens to {longest}, or choose --data.overlength drop or trim."
        )


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        "audit",
        "What is in a data file. Oddities are warnings; the exit code is 1 only where training would refuse the file.",
    )
    parser.add_argument("file", metavar="FILE", help="the data file, or `sample` for generated dialogues")
    parser.add_argument("--val_size", type=int, default=0, help="train records to hold out, as for --data.val_size (default: %(default)s)")
    parser.add_argument("--tokenizer", help="hub name, folder or `tiny`: counts tokens, too (default: none, which starts faster)")
    parser.add_argument("--prompt", choices=("base", "chat"), help="in which tokens are counted (default: as in training)")
    parser.add_argument("--max_tokens", type=int, help="the most that a prompt and its longest answer may have (default: as in training)")
    parser.add_argument("--json", action="store_true", help="everything as one JSON object, with the indices of all records concerned")
    return parser
