"""Run references in sandbox children, one fork for each, and say which did what their Definition declares.

>>> with open_sandbox() as sandbox:
...     results = dict(execute_many(definitions, sandbox=sandbox))
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fib_tools.errors import ChildMemoryError, FibError
from fib_tools.host.cpu import count_cores, read_memory_bytes
from fib_tools.host.sandbox import Limits, Outcome, Protections, Sandbox
from fib_tools.model.base import to_document
from fib_tools.model.definition import Definition
from fib_tools.model.workload import Workload
from fib_tools.op_types.registry import list_modules

__all__ = ["DEFAULT_LIMITS", "Execution", "execute", "execute_many", "execute_workloads", "open_sandbox"]

DEFAULT_LIMITS = Limits(wall_seconds=60, memory_bytes=6 << 30)
_MOST_JOBS = 16
_ENTRY = "fib_tools.gate._execute_child:execute"
_BYTE_BUDGET = 64 << 20
"""Bytes of one input before its storage is shared along leading axes."""
_MESSAGE_LENGTH = 300
_REASON_LENGTH = 2 * _MESSAGE_LENGTH + 100
"""A reference can fail with inputs by rule and then with those of its `init`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Execution:
    """How a reference's trial run ended."""

    executed: bool
    """It ran twice, gave the declared shapes and dtypes, the same both times, and left its inputs alone."""
    reason: str | None = None
    """Why not."""
    seconds: float = 0.0
    axes: dict[str, int] = field(default_factory=dict)
    """The lengths it ran with."""
    shared_storage: bool = False
    """Large inputs repeated one slice, so that real sizes fit into memory."""
    seen: dict[str, Any] = field(default_factory=dict)
    """What differed in a way that `adapt` can repair: `dtypes` and `flat` of outputs, `mutated` inputs."""
    protections: Protections | None = None


def open_sandbox(import_paths: tuple[Path, ...] = (), *, readable: tuple[Path, ...] = ()) -> Sandbox:
    """Open a sandbox that has torch and every op_type loaded, for `execute_many` and `instantiate` to share.

    Packages of `import_paths` can be imported in it, files of `readable` read.
    """
    preload = ("torch", "fib_tools.gate._execute_child", *list_modules())
    return Sandbox(preload, limits=DEFAULT_LIMITS, import_paths=import_paths, readable=readable)


def execute(
    definition: Definition, *, limits: Limits = DEFAULT_LIMITS, seed: int = 0, sandbox: Sandbox | None = None
) -> Execution:
    """Run one reference."""
    return next(execute_many([definition], limits=limits, seed=seed, sandbox=sandbox))[1]


def execute_many(
    definitions: Iterable[Definition],
    *,
    jobs: int = 2,
    limits: Limits = DEFAULT_LIMITS,
    seed: int = 0,
    sandbox: Sandbox | None = None,
) -> Iterator[tuple[str, Execution]]:
    """Run references, `jobs` at a time, each in its own fork; results come as they are done."""
    names: list[str] = []

    def payloads() -> Iterator[dict[str, object]]:
        for definition in definitions:
            names.append(definition.name)
            yield {"document": to_document(definition), "seed": seed, "byte_budget": _BYTE_BUDGET}

    with nullcontext(sandbox) if sandbox else open_sandbox() as child:
        for outcome in child.run_many(_ENTRY, payloads(), jobs=jobs, limits=limits):
            yield names[outcome.index], _to_execution(outcome, limits)


def execute_workloads(
    workloads: Iterable[tuple[Definition, Workload]], *, root: Path, limits: Limits = DEFAULT_LIMITS
) -> Iterator[tuple[str, Execution]]:
    """Run references with what Workloads give, blobs below `root`; results come by uuid, as they are done.

    Each computes on one core; as many run at a time as there are cores, and memory for what they may take.
    """
    jobs = max(2, min(_MOST_JOBS, count_cores(), read_memory_bytes() // DEFAULT_LIMITS.memory_bytes))
    uuids: list[str] = []

    def payloads() -> Iterator[dict[str, object]]:
        for definition, workload in workloads:
            uuids.append(workload.uuid)
            given = {"document": to_document(workload), "root": str(root)}
            yield {"document": to_document(definition), "seed": 0, "byte_budget": _BYTE_BUDGET, "workload": given}

    with open_sandbox(readable=(root,)) as child:
        for outcome in child.run_many(_ENTRY, payloads(), jobs=jobs, limits=limits):
            yield uuids[outcome.index], _to_execution(outcome, limits)


def _to_execution(outcome: Outcome, limits: Limits) -> Execution:
    if isinstance(outcome.error, ChildMemoryError):
        reason = f"not executed: needs more than {limits.memory_bytes / (1 << 30):g} GB"
        return Execution(executed=False, reason=reason, seconds=outcome.seconds, protections=outcome.protections)
    if outcome.error is not None or outcome.value is None:
        return Execution(
            executed=False, reason=_explain(outcome.error), seconds=outcome.seconds, protections=outcome.protections
        )
    answer = outcome.value
    axes = answer.get("axes")
    return Execution(
        executed=answer.get("executed") is True,
        reason=_text(answer.get("reason")),
        seconds=outcome.seconds,
        axes={str(name): int(length) for name, length in axes.items()} if isinstance(axes, dict) else {},
        shared_storage=answer.get("shared_storage") is True,
        seen=answer["seen"] if isinstance(answer.get("seen"), dict) else {},
        protections=outcome.protections,
    )


def _text(value: object) -> str | None:
    return _first_line(value)[:_REASON_LENGTH] if isinstance(value, str) and value else None


def _explain(error: FibError | None) -> str:
    if error is None:
        return "the sandbox gave no answer"
    return str(error).replace(error.what, _first_line(error.what)[:_MESSAGE_LENGTH], 1)[:_REASON_LENGTH]


def _first_line(text: str) -> str:
    """Leave out what follows a message: C++ code appends its stack trace."""
    return text.strip().partition("\n")[0]
