"""An audit as tables on a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mmcoref.data.record import LETTERS
from mmcoref.run.narrow import print_table
from mmcoref.text import printable
from mmcoref.tools.audit import Report
from mmcoref.tools.audit_checks import Audit, Finding, Part

_SHOWN_RECORDS = 3


def show(report: Report, console: Console) -> None:
    """Print the report; text from the file or the user is never read as markup, and cannot steer the terminal."""
    source = [report.form or "form not known", *([f"sha256 {report.sha256}"] if report.sha256 else [])]
    _print(f"{printable(report.path)}: {', '.join(source) if report.audit else 'refused'}", console)
    found = report.audit
    if found:
        parts = [part for part in found.parts if part.records]
        print_table(console, _records(found, parts))
        print_table(console, _lengths(found))
        _print(_notes(found), console)
        print_table(console, _findings(found.findings, parts))
        print_table(console, _floors(found))
        odd = sum(finding.total > 0 for finding in found.findings)
        _print(f"{odd} warnings (!) of {len(found.findings)} checks. --json lists every record.", console)
    for refusal in report.refusals:
        _print(f"Training refuses this file: {refusal}", console)


def _print(text: str, console: Console) -> None:
    """Print plain text, wrapped by the terminal alone."""
    console.print(Text(printable(text, lines=True)), soft_wrap=True)


def _table(title: str, words: str, *numbers: str) -> Table:
    """Make a table with a column of words, then columns of numbers."""
    table = Table(title=title, title_justify="left")
    table.add_column(words)
    for heading in numbers:
        table.add_column(heading, justify="right")
    return table


def _records(found: Audit, parts: Sequence[Part]) -> Table:
    table = _table("Records", "", *(part.name for part in parts), "all")

    def add(name: str, counts: Sequence[int]) -> None:
        of = [part.records for part in parts]
        pairs = [*zip(counts, of, strict=True), (sum(counts), sum(of))]
        table.add_row(name, *(f"{count:,} {_share(count, n)}" for count, n in pairs))

    table.add_row("valid, gold among options", *(f"{part.records:,}" for part in parts), f"{found.records:,}", end_section=True)
    for letter in LETTERS:
        add(f"gold {letter}", [part.gold[letter] for part in parts])
    table.add_section()
    orders = sum((Counter(part.owner_orders) for part in parts), Counter[str]())
    for order, _ in orders.most_common():
        add(f"owners {order}", [part.owner_orders.get(order, 0) for part in parts])
    table.add_section()
    add("demonstrative in last turn", [part.demonstrative_last for part in parts])
    add("demonstrative in some turn", [part.demonstrative_somewhere for part in parts])
    return table


def _lengths(found: Audit) -> Table:
    table = _table("Lengths", "", "min", "mean", "median", "p95", "p99", "max")
    measured = {"characters": found.characters} | ({"tokens": found.tokens.lengths} if found.tokens else {})
    for name, of in measured.items():
        table.add_row(name, *(f"{length:,.0f}" for length in (of.min, of.mean, of.p50, of.p95, of.p99, of.max)))
    said = found.utterances
    table.add_row("utterances", f"{said.least:,}", f"{said.total / found.records:,.1f}", "", "", "", f"{said.most:,}")
    return table


def _notes(found: Audit) -> str:
    """What the table of lengths does not say."""
    said, tokens = found.utterances, found.tokens
    notes = [
        "Characters: dialogue, captions, question and options.",
        f"{said.quoted:,} of {said.total:,} utterances {_share(said.quoted, said.total)} open with a quotation mark.",
    ]
    if tokens is None:
        notes.append("Tokens: no tokenizer given (--tokenizer).")
    else:
        exceeding = f"{len(tokens.too_long):,} records exceed {tokens.max_tokens:,}{_first(tokens.too_long, ': ')}"
        notes.append(f"Tokens: prompt ({tokens.prompt}) and longest answer, by {printable(tokens.tokenizer)}; {exceeding}.")
    return "\n".join(notes)


def _findings(findings: Sequence[Finding], parts: Sequence[Part]) -> Table:
    table = _table("Checks", "", *(part.name for part in parts))
    table.add_column("records", overflow="fold")
    for finding in findings:
        counts = (f"{finding.counts[part.name]:,}" if part.name in finding.counts else "" for part in parts)
        table.add_row(f"{'!' if finding.total else ' '} {finding.message}", *counts, _first(finding.records))
    return table


def _floors(found: Audit) -> Table:
    table = _table("Floors: what no model at all scores on the test part", "rule", "object", "photo")
    for floor in found.floors:
        cells = ("" if right is None else f"{right:,} {_share(right, floor.n)}" for right in (floor.object, floor.photo))
        table.add_row(floor.name, *cells)
    return table


def _share(count: int, n: int) -> str:
    return f"({count / n:.3f})" if n else ""


def _first(records: Sequence[int], before: str = "") -> str:
    shown = ", ".join(map(str, records[:_SHOWN_RECORDS])) + (", …" if len(records) > _SHOWN_RECORDS else "")
    return before + shown if records else ""
