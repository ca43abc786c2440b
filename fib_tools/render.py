"""How a summary, an error and progress look in a terminal."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table as RichTable
from rich.text import Text

from fib_tools.errors import FibError
from fib_tools.model.summary import Summary, Table
from fib_tools.phases.context import Progress as Report
from fib_tools.phases.context import be_silent

__all__ = ["print_error", "print_summary", "show_progress"]

_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but tab and line break, marks that turn the direction of writing, and lone surrogates."""

_UNBOUNDED = 10_000
_FOLDED = 40
"""Columns that a long text needs at least, to be folded into several lines and still be read."""

_LINE_SECONDS = 2.0
"""Without a terminal, progress is a line at each new step, and then one in so many seconds."""


def _printable(text: str) -> Text:
    """Show what would steer a terminal, or cannot be written at all, by its number."""
    return Text(_UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text))


def print_summary(summary: Summary, console: Console) -> None:
    """Print tables and lines; nothing in them is taken as markup."""
    for table in summary.tables:
        shown = _fit(table, console)
        console.print(_rich_table(shown))
        left_out = table.columns[len(shown.columns) :]
        if left_out:
            console.print(_printable(f"(too narrow for {', '.join(left_out)}; widen the terminal, or use --json)"))
    for line in summary.lines:
        console.print(_printable(line), soft_wrap=True)


def _fit(table: Table, console: Console) -> Table:
    """Leave out columns from the right until a row needs no folding but that of a long last column."""
    for count in range(len(table.columns), 2, -1):
        fits = _natural_width(_first_columns(table, count), console) <= console.width
        lead = _natural_width(_first_columns(table, count - 1), console)
        if fits or lead + _FOLDED <= console.width:
            return _first_columns(table, count)
    return _first_columns(table, 2)


def _first_columns(table: Table, count: int) -> Table:
    return table.model_copy(update={"columns": table.columns[:count], "rows": tuple(row[:count] for row in table.rows)})


def _natural_width(table: Table, console: Console) -> int:
    return Measurement.get(console, console.options.update(width=_UNBOUNDED), _rich_table(table)).maximum


def _rich_table(table: Table) -> RichTable:
    rich_table = RichTable(
        title=_printable(table.title), title_justify="left", header_style="bold", box=None, pad_edge=False
    )
    for column in table.columns:
        rich_table.add_column(_printable(column), overflow="fold")
    for row in table.rows:
        rich_table.add_row(*map(_printable, row))
    return rich_table


def print_error(error: FibError, console: Console) -> None:
    """Say what went wrong, where, and what to do next."""
    console.print(Text.assemble(("error: ", "bold red"), _printable(error.what)), soft_wrap=True)
    if error.where:
        console.print(_printable(f"  in: {error.where}"), soft_wrap=True)
    if error.todo:
        console.print(_printable(f"  next: {error.todo}"), soft_wrap=True)


@contextmanager
def show_progress(console: Console, *, quiet: bool) -> Iterator[Report]:
    """Show what is being done on a console: a live line on a terminal, plain lines elsewhere."""
    if quiet:
        yield be_silent
    elif console.is_terminal:
        with _live(console) as report:
            yield report
    else:
        yield _lines(console)


@contextmanager
def _live(console: Console) -> Iterator[Report]:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)

        def report(step: str, done: int, total: int) -> None:
            bar.update(task, description=_printable(step).plain, completed=done, total=total or None)

        yield report


def _lines(console: Console) -> Report:
    began = time.monotonic()
    last_step, last_at = "", began
    last_said = ("", 0)

    def report(step: str, done: int, total: int) -> None:
        nonlocal last_step, last_at, last_said
        now = time.monotonic()
        stem = step.partition(":")[0]
        if (stem == last_step and now - last_at < _LINE_SECONDS) or (step, done) == last_said:
            return
        last_step, last_at, last_said = stem, now, (step, done)
        count = f" {done}/{total}" if total else ""
        console.print(_printable(f"[{now - began:5.1f} s] {step}{count}"), soft_wrap=True)

    return report
