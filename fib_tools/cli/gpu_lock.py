"""`fib gpu-lock`: a command with GPUs of its own; the exit status is the command's."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.console import Console

from fib_tools.cli.output import print_result, report_error
from fib_tools.errors import FibError
from fib_tools.host.env import read_settings, redact_command

if TYPE_CHECKING:
    from fib_tools.host.gpu_lock import Waiting

__all__ = ["gpu_lock"]

_PATIENCE_SECONDS = 2.0
"""How long waiting needs no word, and how much time is between two."""


def _refuse_negative(_kind: object, value: float | None) -> None:
    if value is not None and not value >= 0:  # so is what is no number at all
        raise ValueError(f"{value:g} is less than 0")


def _refuse_nothing(_kind: object, value: float | None) -> None:
    if value is not None and not value > 0:
        raise ValueError(f"{value:g} is no time to run in")


def gpu_lock(  # noqa: PLR0913  # its parameters are the command line's options
    *command: Annotated[str, Parameter(help="The command, after --.")],
    gpus: Annotated[
        int, Parameter(help="How many GPUs it needs; with 0 it sees none.", validator=_refuse_negative)
    ] = 1,
    timeout: Annotated[
        float | None, Parameter(help="Seconds to wait for them at most.", validator=_refuse_negative)
    ] = None,
    exec_timeout: Annotated[
        float | None,
        Parameter(help="Seconds that all it starts may run; then SIGTERM.", validator=_refuse_nothing),
    ] = None,
    no_wait: Annotated[bool, Parameter(help="Give up if they are not free at once.", negative="")] = False,
    idle: Annotated[
        bool, Parameter(help="Take only GPUs on which nobody computes without a lock.", negative="")
    ] = False,
    grace: Annotated[float, Parameter(help="Seconds from SIGTERM to SIGKILL.", validator=_refuse_negative)] = 10.0,
    status: Annotated[bool, Parameter(help="Show who holds which GPU and who waits.", negative="")] = False,
    json: Annotated[bool, Parameter(help="Print the status, or an error, as JSON.", negative="")] = False,
) -> int:
    """Run a command with GPUs that nobody else who asks this way has: fib gpu-lock --gpus 2 -- python train.py.

    First come, first served; the GPUs are free again when the last process that the command started has ended.
    The exit status is the command's, 128 + n if signal n ended it, 124 past --exec-timeout, 2 if it never began.
    """
    # the other commands can do without
    from fib_tools.host.gpu_lock import acquire
    from fib_tools.host.gpu_run import find_program, run_on_gpus

    settings = read_settings()
    errors = Console(stderr=True, no_color=settings.no_color or None)
    try:
        if status:
            return _show_status(errors, as_json=json)
        find_program(command)
        with acquire(
            gpus,
            timeout=timeout,
            wait=not no_wait,
            idle=idle,
            command=redact_command(command)[:500],
            report=_report_to(errors),
        ) as lease:
            return run_on_gpus(lease, command, exec_timeout=exec_timeout, grace=grace)
    except FibError as error:
        report_error(error, errors, as_json=json)
        return 2


def _show_status(errors: Console, *, as_json: bool) -> int:
    from fib_tools.cli.gpu_status import build_result
    from fib_tools.host.gpu_status import read_status

    return print_result(build_result(read_status()), errors, as_json=as_json)


def _report_to(console: Console) -> Callable[[Waiting], None]:
    told_at = 0.0
    told: tuple[int, tuple[str, ...]] = (0, ())

    def report(waiting: Waiting) -> None:
        nonlocal told_at, told
        news = (waiting.position, waiting.reasons)
        if waiting.seconds < _PATIENCE_SECONDS or news == told or time.monotonic() - told_at < _PATIENCE_SECONDS:
            return
        told_at, told = time.monotonic(), news
        line = f"waiting, {waiting.position} in the queue: {'; '.join(waiting.reasons)}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    return report
