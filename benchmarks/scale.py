"""Time and memory of audit, split, set-up and start of a run by the number of records, each in a process of its own.

    python -m benchmarks.scale
    python -m benchmarks.scale --sizes 1700000 --stages audit records split

The files are lists of JSON strings, as published: 1,700 generated dialogues, varied by a number in an utterance and in an option, so
that no two records are the same and no clusters are larger than they would be. Tokens are words, so that the tokenizer's time, which
is a library's and linear, does not hide ours: a byte-level BPE takes about a millisecond more for each record.

- audit: `mmcoref audit FILE --val_size` of a tenth of the train part.
- records: the file is read, validated and put into the cache, or into memory if it is small.
- split: whole clusters of a tenth of the train part are held out.
- encode: train, validation and test part are encoded and put into the cache.
- again: all of set-up once more, as every other process of the machine does it, and each later run.
- start: the loader's first optimizer step of 64 records.

Time is told for each record, as a ratio to the smallest size, whose own microseconds depend on the machine. Memory is the peak above
what the process held after its imports: all of it (getrusage), of which pages of mapped files can be taken back at any time, and what is
the process's own (anonymous, sampled every 10 ms).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.program import told
from mmcoref.data.record import Record
from mmcoref.data.sample import sample_records

SIZES = (1_700, 17_000, 170_000)
DISTINCT = 1_700
STAGES = ("audit", "records", "split", "encode", "again", "start")
_NUMBER = "00000000"  # in its place stands a record's own number
_WINDOW = 64
_EVERY = 0.01  # seconds between two looks at the memory


def main(args: Sequence[str] | None = None) -> int:
    """Measure, print a table, and return 0; 2 for a mistake of the user's."""
    return told("benchmarks.scale", lambda: _run(_options(args)))


def _options(args: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="records of each file")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), help="what is measured")
    parser.add_argument("--folder", help="where files and cache are put (default: a temporary folder); about 6 kB a record")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    return parser.parse_args(args)


def _run(options: argparse.Namespace) -> int:
    if options.child:
        stage, file, tokenizer = options.child
        print(json.dumps(_measured(stage, file, tokenizer)))
        return 0
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        tokenizer = str(Path(folder, "tokenizer"))
        save_tokenizer(tokenizer)
        rows: dict[int, dict[str, Any]] = {}
        for size in options.sizes:
            file = Path(folder, f"{size}.json")
            write_file(file, size)
            rows[size] = {stage: _in_child(stage, str(file), tokenizer, folder) for stage in STAGES if stage in options.stages}
            print(json.dumps({"records": size, "megabytes": round(file.stat().st_size / 1e6), **rows[size]}), file=sys.stderr)
            file.unlink()
    Console().print(table(rows))
    return 0


def templates() -> list[str]:
    """The distinct dialogues as JSON, with `_NUMBER` in an utterance and in an option."""
    made = []
    for record in sample_records(DISTINCT):
        option = f"{record.choices[3]} {_NUMBER}"
        fields = record.model_dump(exclude_none=True)
        fields["conversation"] = [*record.conversation[:2], f"A: '{_NUMBER}번째 사진이야.'", *record.conversation[2:]]
        fields["choices"] = [*record.choices[:3], option]
        fields["solution"] = option if record.solution == record.choices[3] else record.solution
        Record.model_validate(fields)
        made.append(json.dumps(json.dumps(fields, ensure_ascii=False), ensure_ascii=False))
    return made


def write_file(file: Path, size: int) -> None:
    """Write a data file of so many different records, in the published form."""
    known = templates()
    with file.open("w", encoding="utf-8") as out:
        for number in range(size):
            out.write("[" if number == 0 else ",\n")
            out.write(known[number % len(known)].replace(_NUMBER, f"{number:08d}"))
        out.write("]\n")


def save_tokenizer(folder: str) -> None:
    """Save a tokenizer whose tokens are the words of the dialogues, with the space after them."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    from mmcoref.data.prompt import prompt_text

    split = pre_tokenizers.Split(Regex(r"\n|[^ \n]+ ?| "), behavior="isolated")
    words = {word for record in sample_records(DISTINCT) for word, _ in split.pre_tokenize_str(prompt_text(record))}
    vocabulary = {word: number for number, word in enumerate(["<s>", "</s>", "<unk>", *sorted(words)])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))  # no password
    backend.pre_tokenizer = split
    backend.decoder = decoders.Fuse()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    make: Any = PreTrainedTokenizerFast
    tokenizer = make(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    tokenizer.save_pretrained(folder)


def _in_child(stage: str, file: str, tokenizer: str, folder: str) -> dict[str, float]:
    """Measure a stage in a process of its own; those before it have left their tables in the cache."""
    command = [sys.executable, "-m", "benchmarks.scale", "--child", stage, file, tokenizer]
    environment = os.environ | {"MMCOREF_CACHE": str(Path(folder, "cache")), "TOKENIZERS_PARALLELISM": "false"}
    output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    measured: dict[str, float] = json.loads(output.splitlines()[-1])
    return measured


def _measured(stage: str, file: str, tokenizer: str) -> dict[str, float]:
    """Seconds and peak memory of a stage."""
    work, n = _prepared(stage, file, tokenizer)
    before = _status("RssAnon"), _peak()
    own, done = [before[0]], threading.Event()

    def look() -> None:
        while not done.wait(_EVERY):
            own.append(_status("RssAnon"))

    watcher = threading.Thread(target=look)
    watcher.start()
    start, cpu = time.perf_counter(), time.process_time()
    work()
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    done.set()
    watcher.join()
    return {
        "records": n, "seconds": seconds, "cpu_seconds": cpu_seconds,
        "megabytes": (_peak() - before[1]) / 1e6, "own_megabytes": (max(own) - before[0]) / 1e6,
    }  # fmt: skip


def _prepared(stage: str, file: str, tokenizer: str) -> tuple[Callable[[], object], int]:
    """What a stage does, its imports done and the stages before it ready in the cache; and the number of records."""
    from mmcoref.data.module import MMCorefDataModule
    from mmcoref.data.records import open_records
    from mmcoref.data.split import split_records
    from mmcoref.tools.audit import audit_file

    n = int(Path(file).stem)
    val_size = n // 12  # about a tenth of the train part
    if stage == "audit":
        return lambda: audit_file(file, val_size=val_size), n
    if stage == "records":
        return lambda: open_records(file), n
    if stage == "split":
        records = open_records(file).records
        return lambda: split_records(records, val_size=val_size), n
    data = MMCorefDataModule(path=file, tokenizer=tokenizer, val_size=val_size, batch_size=_WINDOW)
    if stage in ("encode", "again"):
        if stage == "encode":
            open_records(file)
        return lambda: data.setup("fit"), n
    data.setup("fit")
    return lambda: next(iter(data.train_dataloader())), n


def _peak() -> int:
    """Bytes that the process held at most; Linux counts in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _status(name: str) -> int:
    """Bytes of a line of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {name}")


def table(rows: dict[int, dict[str, Any]]) -> Table:
    """Time for each record as a ratio to the smallest size, records a second, and peak memory."""
    shown = Table(box=box.MARKDOWN)
    for heading in ("stage", "records", "records/s", "CPU time a record", "ratio", "peak memory, MB", "of it own, MB"):
        shown.add_column(heading, justify="left" if heading == "stage" else "right")
    smallest = min(rows)
    for stage in STAGES:
        for size, measured in rows.items():
            if stage not in measured:
                continue
            found, first = measured[stage], rows[smallest][stage]
            each = found["cpu_seconds"] / size
            shown.add_row(
                stage, f"{size:,}", f"{size / found['seconds']:,.0f}", f"{1e6 * each:,.0f} µs",
                f"{each / (first['cpu_seconds'] / smallest):.2f}", f"{found['megabytes']:,.0f}", f"{found['own_megabytes']:,.0f}",
            )  # fmt: skip
    return shown


if __name__ == "__main__":
    sys.exit(main())
