"""What commands print: results to stdout, as text or as JSON, and errors to stderr."""

from __future__ import annotations

import json
import os
import sys
from typing import TextIO

from rich.console import Console

from fib_tools.errors import FibError, StorageError
from fib_tools.host.env import redact
from fib_tools.model.base import to_document
from fib_tools.model.canonical import canonical_bytes
from fib_tools.model.summary import Result
from fib_tools.render import print_error, print_summary
from fib_tools.tools.job import Failure

__all__ = ["ErrorOutput", "print_result", "report_error"]

_PIPED_WIDTH = 180
"""Columns of a table that does not go to a terminal: nothing is folded that a search could look for."""


def print_result(result: Result, errors: Console, *, as_json: bool) -> int:
    """Print a result and return the exit status that goes with it."""
    try:
        _print(result, as_json=as_json)
    except OSError as error:
        refused = StorageError(f"the result cannot be written: {error.strerror}", todo="free some space, or use a pipe")
        report_error(refused, errors, as_json=False)
        _drop(sys.stdout)
        return 2
    return 1 if result.has_errors else 0


def _print(result: Result, *, as_json: bool) -> None:
    if as_json:
        _write(canonical_bytes(to_document(result)).decode())
    else:
        console = _Output()
        print_summary(result.summary(), console if console.is_terminal else _Output(width=_PIPED_WIDTH))


def report_error(error: FibError, console: Console, *, as_json: bool) -> None:
    """Tell of an error: to stderr for a person, to stdout for a program that asked for JSON."""
    if as_json:
        _write(json.dumps(Failure.of(error).model_dump(), indent=2) + "\n")
    else:
        parts = {name: redact(text) if text else None for name, text in (("where", error.where), ("todo", error.todo))}
        print_error(FibError(redact(error.what), **parts), console)


class ErrorOutput(Console):
    """Stderr; whoever reads it may go, which ends nothing."""

    def __init__(self, *, no_color: bool | None = None) -> None:
        super().__init__(stderr=True, no_color=no_color)

    def on_broken_pipe(self) -> None:
        """Go on without a word."""
        _drop(sys.stderr)


class _Output(Console):
    """Stdout as a terminal or a pipe."""

    def on_broken_pipe(self) -> None:
        """Stop without a word: a reader such as `head` has what it wanted."""
        _drop(sys.stdout)


def _write(text: str) -> None:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        _drop(sys.stdout)


def _drop(stream: TextIO) -> None:
    """Let what is still buffered go nowhere, so that its flush at the interpreter's end does not fail again."""
    descriptor = os.open(os.devnull, os.O_WRONLY)
    os.dup2(descriptor, stream.fileno())
    os.close(descriptor)
