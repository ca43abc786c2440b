"""Validation: every rule over a dataset, with the references executed when asked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from fib_tools.dataset.store import Dataset, count_documents
from fib_tools.errors import RequestError
from fib_tools.host.files import write_atomically
from fib_tools.model.canonical import canonical_bytes
from fib_tools.model.report import Finding, Severity
from fib_tools.model.summary import Result, Summary, Table
from fib_tools.phases.context import Context
from fib_tools.phases.report_html import format_html
from fib_tools.phases.request import COMMAND_LINE_ONLY, check_definitions

if TYPE_CHECKING:
    from fib_tools.checks.view import DatasetView

__all__ = ["ValidationResult", "validate_dataset"]

_SHOWN = 40
_REPORTS = (".html", ".json", ".txt")


class ValidationResult(Result):
    """What was looked at, and what was found."""

    rows = "findings"
    advice = ("findings.todo",)

    dataset: str
    counts: dict[str, int]
    """Files by kind, and `executed`: references that ran and returned what they declare."""
    findings: tuple[Finding, ...] = ()

    @property
    def has_errors(self) -> bool:
        """Warnings and notes are no errors."""
        return any(finding.severity is Severity.ERROR for finding in self.findings)

    def summary(self) -> Summary:
        """Show errors first, then warnings, then how much there is of each."""
        order = {Severity.ERROR: 0, Severity.WARNING: 1, Severity.NOTE: 2}
        ranked = sorted(self.findings, key=lambda finding: order[finding.severity])
        rows = tuple((f.severity.value, f.check, f.where, f.message) for f in ranked[:_SHOWN])
        tables = (
            (Table(title="findings", columns=("severity", "check", "where", "message"), rows=rows),) if rows else ()
        )
        more = (
            (f"... and {len(ranked) - _SHOWN} more; --json and --report FILE have all",) if len(ranked) > _SHOWN else ()
        )
        totals = {severity: sum(f.severity is severity for f in self.findings) for severity in Severity}
        looked = ", ".join(f"{kind}: {count}" for kind, count in self.counts.items())
        said = ", ".join(f"{severity.value}s: {count}" for severity, count in totals.items())
        return Summary(tables=tables, lines=(*more, f"{self.dataset}: {looked}", said))


def validate_dataset(
    context: Context,
    *,
    checks: Annotated[
        tuple[str, ...] | None,
        Field(
            description="Families (layout, definition, workload, solution, trace, baseline) or rule ids; all if left out."
        ),
    ] = None,
    op_types: Annotated[tuple[str, ...] | None, Field(description="Only Definitions of these op_types.")] = None,
    definitions: Annotated[tuple[str, ...] | None, Field(description="Only these Definitions, by name.")] = None,
    execute: Annotated[
        bool, Field(description="Run every reference in an isolated child on generated inputs.")
    ] = False,
    report: Annotated[
        Path | None, Field(description="Also write a report: .html, .json or .txt."), COMMAND_LINE_ONLY
    ] = None,
) -> ValidationResult:
    """Check a dataset: everything that flashinfer-bench checks, and what it lets through.

    Exit status 0: no errors (warnings are allowed); 1: errors; 2: it could not be checked.
    """
    # the checks are heavy, and `fib --help` can do without them
    from fib_tools.checks.dataset import check_dataset
    from fib_tools.checks.view import open_view

    if report is not None:
        _check_report(report)
    dataset = Dataset.open(context.dataset.root)
    context.progress("reading the dataset", 0, 0)
    view = open_view(dataset, op_types=op_types, names=definitions)
    _require_selection(view, definitions, op_types)
    context.progress("checking", 0, 0)
    findings = list(check_dataset(view, checks))
    counts = count_documents(iter(view.files))
    if execute:
        executed, broken = _execute(context, view)
        findings += broken
        counts["executed"] = executed
    result = ValidationResult(dataset=str(dataset.root), counts=counts, findings=tuple(findings))
    if report is not None:
        _write_report(result, report)
    return result


def _check_report(path: Path) -> None:
    if path.suffix not in _REPORTS:
        raise RequestError(f"cannot write a report named {path.name!r}", todo=f"use {', '.join(_REPORTS)}")


def _require_selection(
    view: DatasetView, definitions: tuple[str, ...] | None, op_types: tuple[str, ...] | None
) -> None:
    held = {file.location.op_type for file in view.files if file.location is not None}
    for op_type in op_types or ():
        if op_type not in held:
            raise RequestError(f"nothing of op_type {op_type!r}", where=str(view.dataset.root), todo="check the name")
    known = view.definitions.keys() | view.unreadable_names
    check_definitions(definitions or (), known, where=str(view.dataset.root))


def _execute(context: Context, view: DatasetView) -> tuple[int, list[Finding]]:
    from fib_tools.checks.definitions import NOT_EXECUTED
    from fib_tools.gate.execute import execute_many

    wanted = {name: found[0] for name, found in view.definitions.items() if view.wants(name)}
    broken: list[Finding] = []
    executed = 0
    for done, (name, execution) in enumerate(execute_many([document for _, document in wanted.values()]), start=1):
        context.progress(f"executing: {name}", done, len(wanted))
        executed += execution.executed
        if not execution.executed:
            reason = execution.reason or "the reference did not run"
            broken.append(NOT_EXECUTED.at(wanted[name][0], reason, definition=name))
    return executed, broken


def _write_report(result: ValidationResult, path: Path) -> None:
    if path.suffix == ".html":
        data = format_html(result.dataset, result.counts, result.findings).encode()
    elif path.suffix == ".json":
        data = canonical_bytes(result)
    else:
        lines = [f"{f.severity.value}\t{f.check}\t{f.where}\t{f.message}" for f in result.findings]
        data = "".join(f"{line}\n" for line in lines).encode()
    write_atomically(path, data)
