"""A run's record for people: the table on standard output, and eval_test.txt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from mmcoref.evaluation.prediction import Prediction
from mmcoref.evaluation.report import BY_SCORE, HONEST, PUBLISHED_RULES
from mmcoref.run.narrow import print_table
from mmcoref.text import plain_console, printable

_SAID = {
    "object_published_rule": "object, published rule",
    "photo_published_rule": "photo, published rule (faulty)",
    "letter_accuracy": "object, by the letter alone",
    "likelihood_accuracy": "object, by option likelihood",
}


def print_scores(record: dict[str, Any], folder: Path) -> None:
    """Every score beside its doubt and what no model scores; the headline first, as published where the run was."""
    partial = ", partial" if record["partial"] else ""
    title = f"{printable(folder)}: {record['stage']}, {record['decoding']} decoding, n = {record['n']}{partial}"
    table = Table(title=Text(title), title_justify="left")
    for heading in ("", "k", "share", "95 % Wilson", "95 % by clusters"):
        table.add_column(heading, justify="right" if heading else "left")
    names = list(dict.fromkeys([*record["headline"], *HONEST, *PUBLISHED_RULES, *BY_SCORE]))
    for name in names:
        score = record["metrics"][name]
        row = (str(score["k"]), f"{score['value']:.3f}", _interval(record["intervals"][name]), _interval(record["bootstrap"][name]))
        table.add_row(_SAID.get(name, name), *row, end_section=name == record["headline"][-1])
    table.add_section()
    for floor in record["floors"]:
        for level in ("object", "photo"):
            if floor[level] is not None:
                name = floor["name"] if floor["name"].startswith(level) else f"{level}, {floor['name']}"
                table.add_row(f"{name} (no model)", str(floor[level]), f"{floor[level] / floor['n']:.3f}", "", "")
    console = plain_console()
    if not console.is_terminal:
        console.width = max(console.width, 110)  # a log's lines have no edge
    print_table(console, table)
    for line in _sentences(record):
        console.print(printable(line), soft_wrap=True)


def _sentences(record: dict[str, Any]) -> list[str]:
    """What does not fit a row: one line each."""
    n, recall = record["n"], record["recall"]
    lines = []
    for level in ("object", "photo"):
        above = record["above_best_floor"][level]
        low, high = (100 * end for end in above["interval"])
        lines.append(f"{level}: {_points(100 * above['value'])} the best floor, {above['floor']} [{low:+.1f}, {high:+.1f}]")
    letters = ", ".join(f"{letter} {recall[letter]['k']}/{recall[letter]['n']}" for letter in "ABCD")
    lines.append(f"recall by gold letter: {letters}; macro {recall['macro']:.3f}, spread (RStd) {recall['spread']:.3f}")
    measures = (("Brier score", "brier_score"), ("negative log-likelihood", "negative_log_likelihood"))
    said = [f"{title} {record[name]:.3f} {_interval(record['bootstrap'][name])}" for title, name in measures]
    lines.append(f"option probabilities: {', '.join(said)} (a guess has 0.750 and 1.386)")
    failures = [f"{reason.replace('_', ' ')} {count}" for reason, count in record["failures"].items() if count]
    lines.append(f"no exact match: {n - record['metrics']['exact_match']['k']} of {n}{': ' if failures else ''}{', '.join(failures)}")
    agreement = [f"{name.replace('_', ' ')} {same['k']}" for name, same in record["agreement"].items()]
    lines.append(f"agreement of {n}: {', '.join(agreement)}")
    if record["permutations"] is not None:
        lines += _orders(record["permutations"])
    return lines


def _orders(permutations: dict[str, Any]) -> list[str]:
    """The same records in several orders of their options."""
    lines = []
    for choice in ("by_text", "by_likelihood"):
        found = permutations[choice]
        measures = ("mean_accuracy", "all_right", "majority_vote", "flip_rate")
        said = [f"{name.replace('_', ' ')} {found[name]['value']:.3f} {_interval(found[name]['interval'])}" for name in measures]
        unparsable = f", unparsable {found['unparsable']['k']} of {found['unparsable']['n']}" if found["unparsable"]["k"] else ""
        title = f"{permutations['orders']} orders, {choice.replace('_', ' ')}"
        lines.append(f"{title}: {', '.join(said)}, RStd {found['recall_spread']:.3f}{unparsable}")
    return lines


def _points(points: float) -> str:
    return f"{abs(points):.1f} points {'above' if points >= 0 else 'below'}"


def _interval(ends: Sequence[float]) -> str:
    return f"[{ends[0]:.3f}, {ends[1]:.3f}]"


def readable(prediction: Prediction) -> str:
    """One dialogue's question, gold, output and verdict, on lines of their own."""
    record, verdict = prediction.record, prediction.verdict
    said = {"object": verdict.object_accuracy, "photo": verdict.photo_accuracy, "exact": verdict.exact_match}
    outcome = ", ".join(f"{name} {'right' if right else 'wrong'}" for name, right in said.items())
    parsed = verdict.option.letter if verdict.option else "unparsable"
    return (
        f"[{prediction.index}] {printable(record.problem)}\n"
        f"  gold:    {printable(record.gold.text)}\n"
        f"  output:  {printable(repr(prediction.text))}{'' if prediction.stopped else ' (cut: it did not stop)'}\n"
        f"  verdict: {parsed}; {outcome}\n"
    )


def readable_totals(run: dict[str, Any]) -> str:
    """The figures below the dialogues."""
    totals = [f"{name}: {score['k']}/{score['n']} = {score['value']:.4f}" for name, score in run["metrics"].items()]
    partial = ["partial: not all records"] if run["partial"] else []
    return "\n".join([*totals, f"unparsable: {run['unparsable']}/{run['n']}", *partial, *_sentences(run)]) + "\n"
