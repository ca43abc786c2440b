"""Phase 4 of an onboarding: what `fib submit` does for a model, with the time that it took."""

from __future__ import annotations

import time

from fib_tools.errors import RequestError
from fib_tools.host.cpu import read_cpu_name
from fib_tools.host.locks import hold
from fib_tools.model.base import Model
from fib_tools.model.progress import PhaseTime
from fib_tools.phases.collect_record import load_manifest, save_time
from fib_tools.phases.context import Context
from fib_tools.phases.inventory import workspace_lock
from fib_tools.phases.submit import Grouping, submit_prs
from fib_tools.phases.submit_result import SubmitResult

__all__ = ["SHOWN", "SubmitOptions", "submit_onboarding"]

_PHASE = 4
_PATIENCE = 60.0


class SubmitOptions(Model):
    """How phase 4 goes; `fib submit` takes more."""

    yes: bool = False
    """Send the requests of phase 4; without it they are only shown."""
    group: Grouping = "model"
    """What shares a pair of pull requests."""
    dummy_weights: bool = False
    """Take Workloads of an engine with made-up weights; the pull request says so."""


SHOWN = SubmitOptions()


def submit_onboarding(context: Context, model: str, how: SubmitOptions) -> SubmitResult:
    """Submit what the onboarding of a model made, or show it.

    Raises:
        RequestError: an agent asks; there is nothing to submit, or no token to send it with.
    """
    if context.is_confined:
        raise RequestError("phase 4 is a tool of its own for an agent", todo="call fib_submit_prs")
    begun = time.monotonic()
    result = submit_prs(context, model, yes=how.yes, group=how.group, dummy_weights=how.dummy_weights)
    seconds = round(time.monotonic() - begun, 3)
    with hold(workspace_lock(context), purpose="writing the manifest", wait_seconds=_PATIENCE):
        times = load_manifest(context, result.model)[1].times
        if (result.sent and result.requests) or all(spent.phase != _PHASE for spent in times):
            save_time(context, result.model, PhaseTime(phase=_PHASE, seconds=seconds, machine=read_cpu_name()))
    return result
