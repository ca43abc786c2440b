"""How a summary, an error and progress look in a terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table as RichTable
from rich.text import Text

from fib_tools.errors import FibError
from fib_tools.model.summary import Summary, Table
from fib_tools.phases.context import Progress as Report
from fib_tools.phases.context import be_silent

__all__ = ["print_error", "print_summary", "show_progress"]

_LINE_SECONDS = 2.0
"""Without a terminal, progress is a line at each new step, and then one in so many seconds."""


def print_summary(summary: Summary, console: Console) -> None:
    """Print tables and lines; nothing in them is taken as markup."""
    for table in summary.tables:
        console.print(_rich_table(table))
    for line in summary.lines:
        console.print(Text(line), soft_wrap=True)


def _rich_table(table: Table) -> RichTable:
    rich_table = RichTable(title=table.title, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for index, column in enumerate(table.columns):
        rich_table.add_column(column, overflow="fold", no_wrap=index == 0)
    for row in table.rows:
        rich_table.add_row(*(Text(cell) for cell in row))
    return rich_table


def print_error(error: FibError, console: Console) -> None:
    """Say what went wrong, where, and what to do next."""
    console.print(Text.assemble(("error: ", "bold red"), error.what), soft_wrap=True)
    if error.where:
        console.print(Text(f"  in: {error.where}"), soft_wrap=True)
    if error.todo:
        console.print(Text(f"  next: {error.todo}"), soft_wrap=True)


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
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)

        def report(step: str, done: int, total: int) -> None:
            bar.update(task, description=step, completed=done, total=total or None)

        yield report


def _lines(console: Console) -> Report:
    began = time.monotonic()
    last = {"step": "", "at": began}

    def report(step: str, done: int, total: int) -> None:
        now = time.monotonic()
        stem = step.partition(":")[0]
        if stem == last["step"] and now - float(last["at"]) < _LINE_SECONDS:
            return
        last.update(step=stem, at=now)
        count = f" {done}/{total}" if total else ""
        console.print(Text(f"[{now - began:5.1f} s] {step}{count}"), soft_wrap=True)

    return report
