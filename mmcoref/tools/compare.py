"""`mmcoref compare RUN…`: a table of runs, a table of their pairs, and which of them the data cannot tell apart."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

from mmcoref.errors import at_least
from mmcoref.evaluation.stats import Interval
from mmcoref.run.narrow import as_list
from mmcoref.text import plain_console, printable
from mmcoref.tools.arguments import Parser
from mmcoref.tools.comparison import ALPHA, BY_PUBLISHED_RULES, HONEST, Comparison, Row, compare
from mmcoref.tools.runs import Metric, read_run

_FOLDED = ("run", "model", "a", "b")  # columns of names
_SIDE_BY_SIDE, _STACKED = " ", "\n"  # what stands between a value and its interval
_LEAST_NAME = 12  # columns of a terminal that a name keeps when it is folded


def main(argv: Sequence[str]) -> int:
    """Prints the comparison and returns 0.

    Args:
        argv: the command line after `mmcoref compare`.

    Raises:
        UserError: an option is wrong, a folder holds no whole test run, or the runs are not comparable.
    """
    options = _parser().parse_intermixed_args(argv)
    at_least(0, seed=options.seed)
    runs = [read_run(path) for path in options.runs]
    comparison = compare(runs, options.metric, seed=options.seed, published=options.published)
    if options.json:
        print(json.dumps(asdict(comparison), indent=2))
    else:
        show(comparison, plain_console())
    return 0


def show(comparison: Comparison, console: Console) -> None:
    """Prints the tables, and sentences below them.

    No number is cut or folded. Where a terminal is too narrow, intervals go below their values and names are folded; where
    that is not enough, tables are lists. Into a file or a pipe their lines are as long as they need to be.
    """
    for part in _parts(comparison):
        if isinstance(part, str):
            console.print(_text(part), soft_wrap=not console.is_terminal)
            continue
        table = part(_SIDE_BY_SIDE)
        table.width = _width(table, console)
        if console.is_terminal and table.width > console.width:
            table = part(_STACKED)
            spare = sum(max(0, _longest(column) - _LEAST_NAME) for column in table.columns if not column.no_wrap)
            most = _width(table, console)
            if most - spare > console.width:
                for line in as_list(part(_SIDE_BY_SIDE), console.width):
                    console.print(_text(line), soft_wrap=True)
                continue
            table.width = min(most, max(console.width, most - spare))
        console.print(table, crop=False)


def _parts(comparison: Comparison) -> Iterator[str | Callable[[str], Table]]:
    yield f"{comparison.n} test records of {printable(comparison.data)}\n"
    yield partial(_runs, comparison)
    yield (
        "\nIn brackets: 95 % intervals over records, Wilson's for a run, by bootstrap over clusters for a mean of seeds; "
        "± is the sample standard deviation between seeds."
    )
    for metric, floor in comparison.floors.items():
        above = [row.name for row in comparison.runs if row.above_floor[metric].above]
        rest = [row.name for row in comparison.runs if not row.above_floor[metric].above]
        yield (
            f"Best floor, {_level(metric)}: {floor.k / floor.n:.3f}, {printable(floor.name)}. "
            f"Above it, with the whole interval of the difference: {_listed(above)}{f'; not: {_listed(rest)}' if rest else ''}."
        )
    for names in comparison.repeats:
        yield f"{_listed(names)} have the same settings and the same seed; a mean of seeds counts the first of them."
    if comparison.pairs:
        yield (
            f"\nPairs by {comparison.metric}: records right in one of the two only, b − a in points, exact McNemar p, "
            f"Holm's over {len(comparison.pairs)} {'pair' if len(comparison.pairs) == 1 else 'pairs'}\n"
        )
        yield partial(_pairs, comparison)
        alike = "; ".join(_listed(names) for names in comparison.alike)
        if alike:
            yield f"\nThe data cannot tell apart (Holm's p ≥ {ALPHA}): {alike}."
        else:
            yield f"\nThe data tell each two runs apart (Holm's p < {ALPHA})."
        for pair in comparison.pairs:
            if pair.told_apart and pair.interval.low <= 0 <= pair.interval.high:
                yield (
                    f"{_listed((pair.a, pair.b))} are told apart only if records of one cluster are taken for independent: "
                    "the interval, which draws clusters, holds 0."
                )
        yield "The tests are of these runs on more records like these; a run with another seed may fall elsewhere."
    if comparison.published:
        yield "\nBy the published rules, of which the photo rule is faulty: an answer B or D is always right\n"
        yield partial(_by_published_rules, comparison)
        yield "\nNo outputs of the published runs are known, record by record, so that they are in no pair."


def _runs(comparison: Comparison, gap: str) -> Table:
    table = _table(gap, *_names_of(gap), "decoding", "step", "seed", *map(_level, HONEST))
    models = _short_models(comparison)
    for row in comparison.runs:
        cells = (_cell(f"{row.scores[m].k / row.scores[m].n:.3f}", row.scores[m].interval, gap) for m in HONEST)
        _add(table, gap, row.name, models[row.model], row.decoding, str(row.step), _seed(row), *cells)
    table.add_section()
    rows = {row.name: row for row in comparison.runs}
    for group in comparison.groups:
        row, spreads = rows[group.runs[0]], [group.scores[m] for m in HONEST]
        cells = (_cell(f"{spread.mean:.3f} ± {spread.sd:.3f}", spread.interval, gap) for spread in spreads)
        _add(table, gap, ", ".join(group.runs), models[row.model], row.decoding, str(row.step), f"{len(group.runs)} seeds", *cells)
    table.add_section()
    floors = (f"{comparison.floors[m].k / comparison.floors[m].n:.3f}" if m in comparison.floors else "–" for m in HONEST)
    _add(table, gap, "best floor", "no model", "–", "–", "–", *floors)
    return table


def _pairs(comparison: Comparison, gap: str) -> Table:
    table = _table(gap, "a", "b", "only a", "only b", "b − a", "p", "p (Holm)", "better")
    for pair in comparison.pairs:
        low, high = (f"{100 * end:+.1f}" for end in pair.interval)
        difference = f"{100 * pair.difference:+.1f}{gap}[{low}, {high}]"
        better = ("b" if pair.difference > 0 else "a") if pair.told_apart else f"cannot{gap}tell"
        cells = (printable(pair.a), printable(pair.b), str(pair.only_a), str(pair.only_b), difference, _p(pair.p), _p(pair.p_holm), better)
        table.add_row(*map(_text, cells))
    return table


def _by_published_rules(comparison: Comparison, gap: str) -> Table:
    table = _table(gap, *_names_of(gap), *map(_level, BY_PUBLISHED_RULES))
    models = _short_models(comparison)
    for row in comparison.runs:
        scores = [row.scores[m] for m in BY_PUBLISHED_RULES]
        _add(table, gap, row.name, models[row.model], *(_cell(f"{score.k / score.n:.3f}", score.interval, gap) for score in scores))
    table.add_section()
    for published in comparison.published:
        shares = (published.scores[m] for m in BY_PUBLISHED_RULES)
        _add(table, gap, "published", published.model, *(_cell(f"{share:.2f}", interval, gap) for share, interval in shares))
    return table


def _table(gap: str, *headings: str) -> Table:
    padding = (0, 1, 0, 0) if gap == _SIDE_BY_SIDE else (0, 0)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=padding)
    for heading in headings:
        names = heading in _FOLDED
        left = names or heading == "decoding"
        table.add_column(Text(heading), no_wrap=not names, overflow="fold", justify="left" if left else "right")
    return table


def _names_of(gap: str) -> tuple[str, ...]:
    """Columns of the names: stacked, the model stands below the run."""
    return ("run", "model") if gap == _SIDE_BY_SIDE else ("run",)


def _add(table: Table, gap: str, run: str, model: str, *cells: str) -> None:
    names: tuple[str, ...] = printable(run), printable(model)
    if gap == _STACKED:
        names = (gap.join(names),)
    table.add_row(*map(_text, (*names, *cells)))


def _text(text: str) -> Text:
    """Make a cell or a sentence of text, never read as markup; its line breaks are ours: names have theirs escaped before."""
    return Text(printable(text, lines=True))


def _cell(value: str, interval: Interval, gap: str) -> str:
    return f"{value}{gap}[{interval.low:.3f}–{interval.high:.3f}]"


def _width(table: Table, console: Console) -> int:
    """Columns of the terminal that the table takes with nothing folded."""
    return Measurement.get(console, console.options.update(width=100_000), table).maximum


def _longest(column: Column) -> int:
    return max((cell_len(line) for cell in column.cells for line in str(cell).split("\n")), default=0)


def _short_models(comparison: Comparison) -> dict[str, str]:
    """Hub names without their owner, folders without their place; whole where that would make two the same."""
    models = {row.model for row in comparison.runs}
    short = {model: Path(model).name or model for model in models}
    return short if len(set(short.values())) == len(models) else {model: model for model in models}


def _level(metric: Metric) -> str:
    """`object`, `photo` or `exact`."""
    return metric.partition("_")[0]


def _seed(row: Row) -> str:
    """The training's, and where the decoding samples and had another, the test's."""
    seed = "–" if row.seed is None else str(row.seed)
    return seed if row.test_seed in (None, row.seed) else f"{seed}, test {row.test_seed}"


def _p(p: float) -> str:
    return f"{p:.4f}" if p >= 1e-4 else "<0.0001"


def _listed(names: Sequence[str]) -> str:
    """`a, b and c`."""
    safe = [printable(name) for name in names]
    return " and ".join(filter(None, (", ".join(safe[:-1]), *safe[-1:]))) or "none"


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        "compare",
        "Runs of `mmcoref test` side by side, and for each pair whether the data can tell the two apart.",
    )
    parser.add_argument("runs", nargs="*", metavar="RUN", help="a folder that `mmcoref test` wrote, such as lightning_logs/version_3")
    parser.add_argument("--metric", choices=HONEST, default=HONEST[0], help="that the pairs are tested by (default: %(default)s)")
    parser.add_argument("--published", action="store_true", help="add the published results, by their published rules")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstraps' draws (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="everything as one JSON object, shares from 0 to 1")
    return parser
