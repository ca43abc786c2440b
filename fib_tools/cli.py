"""The command line: one command for each of OPERATIONS; results to stdout, progress and errors to stderr.

Exit status: 0 done, 1 the data has errors, 2 the request cannot be served, 130 interrupted.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from cyclopts import App, CycloptsError, Parameter
from rich.console import Console

from fib_tools import __version__
from fib_tools.errors import FibError, RequestError, StorageError
from fib_tools.host.env import read_settings, redact
from fib_tools.model.base import to_document
from fib_tools.model.canonical import canonical_bytes
from fib_tools.model.summary import Result
from fib_tools.operations import OPERATIONS, Operation, Option
from fib_tools.phases.context import Context, Workspace
from fib_tools.render import print_error, print_summary, show_progress

__all__ = ["build_app", "main"]


def _shared(name: str, kind: Any, default: object, text: str) -> inspect.Parameter:
    annotation = Annotated[kind, Parameter(help=text, negative="" if kind is bool else None)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


_SHARED = (
    _shared("workspace", Path | None, None, "Folder for clones, dataset and manifests. [default: tmp]"),
    _shared("dataset", Path | None, None, "Dataset folder. [default: WORKSPACE/flashinfer-trace]"),
    _shared("offline", bool, False, "Never reach for the network."),
    _shared("json", bool, False, "Print the result as JSON."),
    _shared("quiet", bool, False, "Show no progress."),
)
"""Options of every command."""

_PIPED_WIDTH = 180
"""Columns of a table that does not go to a terminal: nothing is folded that a search could look for."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    console = Console(stderr=True)
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        status = build_app()(given, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        _report_error(RequestError(str(error), todo="see fib --help"), console, as_json="--json" in given)
        return 2
    except KeyboardInterrupt:
        console.print("interrupted; what was finished is kept, run the same command again to go on", markup=False)
        return 130
    return status if isinstance(status, int) else 0


def build_app() -> App:
    """Build the command line from OPERATIONS."""
    app = App(
        name="fib",
        help="Turn a newly released LLM into GPU kernel Definitions for FlashInfer-Bench, each with an executed reference.",
        version=__version__,
        help_epilogue="Begin with: fib onboard kimi-k2",
        help_format="plaintext",  # markdown would cost 50 ms at every --help
        result_action="return_value",
        suppress_keyboard_interrupt=False,
    )
    for operation in OPERATIONS:
        app.command(_command(operation), name=operation.verb)
    return app


def _command(operation: Operation) -> Callable[..., int]:
    def command(*positional: Any, **options: Any) -> int:
        shared = {item.name: options.pop(item.name, item.default) for item in _SHARED}
        return _run(operation, {**dict(zip(subjects, positional, strict=False)), **options}, shared)

    own = operation.list_options()
    subjects = [option.name for option in own if option.is_subject]
    parameters = [*(_parameter(option) for option in own), *_SHARED]
    command.__signature__ = inspect.Signature(parameters, return_annotation=int)  # type: ignore[attr-defined]
    command.__annotations__ = {item.name: item.annotation for item in parameters}
    command.__doc__ = inspect.getdoc(operation.function)
    command.__name__ = operation.verb
    return command


def _parameter(option: Option) -> inspect.Parameter:
    """Turn an option into a parameter of the command line; lists are written with commas between."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD if option.is_subject else inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(option.name, kind, default=option.default, annotation=_annotation(option))


def _annotation(option: Option) -> Any:
    if option.kind is bool:
        negative = "" if option.default is False else None
        return Annotated[bool, Parameter(help=option.description, negative=negative)]
    item = _item_type(option.kind)
    if item is None:
        return Annotated[option.kind, Parameter(help=option.description)]
    return Annotated[
        option.kind,
        Parameter(
            help=option.description,
            converter=_split_into(item),
            n_tokens=1,
            accepts_keys=False,
            negative="",
            metavar=f"{item.__name__.upper()},...",
            show_default=_join if option.default else False,
        ),
    ]


def _item_type(kind: Any) -> type | None:
    for option in get_args(kind) or (kind,):
        if get_origin(option) is tuple:
            return get_args(option)[0]  # type: ignore[no-any-return]
    return get_args(kind)[0] if get_origin(kind) is tuple else None


def _split_into(item: type) -> Callable[..., tuple[Any, ...]]:
    def convert(_kind: Any, tokens: Sequence[Any]) -> tuple[Any, ...]:
        pieces = [piece.strip() for token in tokens for piece in token.value.split(",") if piece.strip()]
        if not pieces:
            raise ValueError("no value")
        if item is int and not all(re.fullmatch(r"-?[0-9]{1,18}", piece) for piece in pieces):
            raise ValueError(f"{','.join(pieces)!r} is not a list of whole numbers such as 2,4")
        return tuple(map(item, pieces))

    return convert


def _join(values: tuple[Any, ...] | None) -> str:
    return ",".join(map(str, values or ()))


def _run(operation: Operation, options: dict[str, Any], shared: dict[str, Any]) -> int:
    settings = read_settings()
    errors = Console(stderr=True, no_color=settings.no_color or None)
    root = shared["workspace"] or settings.workspace or Path("tmp")
    try:
        with show_progress(errors, quiet=bool(shared["quiet"])) as progress:
            context = Context(
                workspace=Workspace(root=root),
                offline=bool(shared["offline"]) or settings.offline,
                progress=progress,
                dataset_override=shared["dataset"],
            )
            result = operation.run(context, options)
    except FibError as error:
        _report_error(error, errors, as_json=bool(shared["json"]))
        return 2
    except OSError as error:  # what the system refuses to read; what it refuses to write is a StorageError already
        refused = StorageError(
            f"the system refused: {error.strerror or error}",
            where=str(error.filename or root),
            todo="check the path and its permissions",
        )
        _report_error(refused, errors, as_json=bool(shared["json"]))
        return 2
    try:
        _print_result(result, as_json=bool(shared["json"]))
    except OSError as error:
        refused = StorageError(f"the result cannot be written: {error.strerror}", todo="free some space, or use a pipe")
        _report_error(refused, errors, as_json=False)
        _drop_stdout()
        return 2
    return 1 if result.has_errors else 0


def _print_result(result: Result, *, as_json: bool) -> None:
    if as_json:
        _write(canonical_bytes(to_document(result)).decode())
    else:
        console = _Output()
        print_summary(result.summary(), console if console.is_terminal else _Output(width=_PIPED_WIDTH))


def _report_error(error: FibError, console: Console, *, as_json: bool) -> None:
    if as_json:
        document = {"error": type(error).__name__, "what": error.what, "where": error.where, "next": error.todo}
        _write(redact(json.dumps(document, indent=2)) + "\n")
    else:
        parts = {name: redact(text) if text else None for name, text in (("where", error.where), ("todo", error.todo))}
        print_error(FibError(redact(error.what), **parts), console)


class _Output(Console):
    """Stdout as a terminal or a pipe."""

    def on_broken_pipe(self) -> None:
        """Stop without a word: a reader such as `head` has what it wanted."""
        _drop_stdout()


def _write(text: str) -> None:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        _drop_stdout()


def _drop_stdout() -> None:
    """Let what is still buffered go nowhere, so that its flush at the interpreter's end does not fail again."""
    descriptor = os.open(os.devnull, os.O_WRONLY)
    os.dup2(descriptor, sys.stdout.fileno())
    os.close(descriptor)
