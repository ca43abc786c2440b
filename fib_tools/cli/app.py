"""The command line: one command for each of OPERATIONS; results to stdout, progress and errors to stderr.

Exit status: 0 done, 1 the data has errors, 2 the request cannot be served, 130 interrupted.
"""

from __future__ import annotations

import inspect
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from cyclopts import App, CycloptsError, UnusedCliTokensError

from fib_tools import __version__
from fib_tools.cli.output import ErrorOutput, print_result, report_error
from fib_tools.cli.parameters import SHARED, make_parameter
from fib_tools.errors import FibError, RequestError
from fib_tools.host.env import read_settings
from fib_tools.operation import Effect, Operation, read_summary
from fib_tools.operations import OPERATIONS
from fib_tools.phases.context import Context, Workspace
from fib_tools.render import show_progress

__all__ = ["build_app", "main"]

_GROUPS = {"trace": "Watch a model run: its Workloads, one block as a picture for Perfetto, two pictures compared."}
"""What commands of two words have in common."""
_OWN = (
    Operation(verb="agent", tool="", entry="fib_tools.cli.agent:work", phase=None, effect=Effect.WORKSPACE),
    Operation(verb="mcp", tool="", entry="fib_tools.cli.mcp:serve", phase=None, effect=Effect.WORKSPACE),
)
"""Commands that call the others, or offer them."""
_GPU_LOCK = "fib_tools.cli.gpu_lock:gpu_lock"
"""Has options of its own kind, and ends with the status of another command."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    console = ErrorOutput()
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        status = build_app(given)(given, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        many = "; several values are written with commas: a,b,c" if isinstance(error, UnusedCliTokensError) else ""
        report_error(RequestError(str(error), todo=f"see fib --help{many}"), console, as_json="--json" in given)
        return 2
    except KeyboardInterrupt as interrupt:
        again = "the same command with --resume" if _has_resume(given) else "run the same command again"
        console.print(f"interrupted; what was finished is kept, to go on: {again}", markup=False)
        return 128 + (interrupt.args[0] if interrupt.args else signal.SIGINT)
    return status if isinstance(status, int) else 0


def _has_resume(given: Sequence[str]) -> bool:
    asked = _find_asked(given)
    return asked is not None and any(option.name == "resume" for option in asked.list_options())


def _find_asked(given: Sequence[str]) -> Operation | None:
    """Find the operation that a command line begins with; --help may stand before it."""
    given = [word for word in given if not word.startswith("-")]
    known = ((operation, operation.verb.split()) for operation in (*OPERATIONS, *_OWN))
    return next((operation for operation, words in known if words == given[: len(words)]), None)


@contextmanager
def _ending_like_an_interrupt() -> Iterator[None]:
    """Have SIGTERM and SIGHUP end an operation as Ctrl-C does: what is finished is written down first."""

    def interrupt(number: int, _frame: object) -> None:
        raise KeyboardInterrupt(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def build_app(given: Sequence[str]) -> App:
    """Build the command line from OPERATIONS: the command that is asked for, or what there is to be asked for."""
    app = App(
        name="fib",
        help="Turn a newly released LLM into GPU kernel Definitions for FlashInfer-Bench, each with an executed reference.",
        version=__version__,
        help_epilogue="Begin with: fib onboard kimi-k2",
        help_format="plaintext",  # markdown would cost 50 ms at every --help
        result_action="return_value",
        suppress_keyboard_interrupt=False,
    )
    asked = _find_asked(given)
    groups: dict[str, App] = {}
    for operation in (*OPERATIONS, *_OWN) if asked is None else (asked,):
        *group, name = operation.verb.split()
        owner = groups.setdefault(group[0], App(name=group[0], help=_GROUPS[group[0]])) if group else app
        owner.command(App(help=operation.summary) if asked is None else _command(operation), name=name)
    for owner in groups.values():
        app.command(owner)
    app.command(_GPU_LOCK, name="gpu-lock", help=read_summary(_GPU_LOCK) if asked is None else None)
    return app


def _command(operation: Operation) -> Callable[..., int]:
    def command(*positional: Any, **options: Any) -> int:
        shared = {item.name: options.pop(item.name, item.default) for item in SHARED}
        return _run(operation, {**dict(zip(subjects, positional, strict=False)), **options}, shared)

    own = operation.list_options()
    subjects = [option.name for option in own if option.is_subject]
    parameters = [*(make_parameter(option) for option in own), *SHARED]
    command.__signature__ = inspect.Signature(parameters, return_annotation=int)  # type: ignore[attr-defined]
    command.__annotations__ = {item.name: item.annotation for item in parameters}
    command.__doc__ = inspect.getdoc(operation.function)
    command.__name__ = operation.verb.replace(" ", "_")
    return command


def _run(operation: Operation, options: dict[str, Any], shared: dict[str, Any]) -> int:
    settings = read_settings()
    errors = ErrorOutput(no_color=settings.no_color or None)
    root = shared["workspace"] or settings.workspace or Path("tmp")
    try:
        with show_progress(errors, quiet=bool(shared["quiet"])) as progress:
            context = Context(
                workspace=Workspace(root=root),
                offline=bool(shared["offline"]) or settings.offline,
                progress=progress,
                dataset_override=shared["dataset"],
            )
            with _ending_like_an_interrupt() if operation in OPERATIONS else nullcontext():
                result = operation.run(context, options)
    except FibError as error:
        report_error(error, errors, as_json=bool(shared["json"]))
        return 2
    status = print_result(result, errors, as_json=bool(shared["json"]))
    with _ending_like_an_interrupt(), suppress(KeyboardInterrupt):
        result.serve()
    return status
