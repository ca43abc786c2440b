"""What a trace-dump tells: the runs that were made, and of each kernel whether the engine says the same as we do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

from fib_tools.capture.runs import NotCovered
from fib_tools.model.base import Model
from fib_tools.model.summary import Summary, Table
from fib_tools.phases.outcomes import DefineResult

__all__ = ["KernelLine", "KernelStatus", "RunLine", "TraceDumpResult", "show_runs"]

KernelStatus = Literal["confirmed", "corrected", "differs", "new", "seen", "not seen", "set aside"]
"""`confirmed`: the engine calls what we listed; `corrected`: so too, and FlashInfer's own dump had it wrong;
`differs`: the engine calls it with another parameter than ours; `new`: not in the inventory;
`seen`: the engine computes it outside of FlashInfer's traces; `set aside`: a shape that only the overrides made."""

_SHOWN_OVERRIDES = 12


class RunLine(Model):
    """One run of the engine."""

    name: str
    status: str
    """`would run`, or how it went."""
    seconds: float = 0.0
    gpus: int
    points: tuple[str, ...]
    overrides: dict[str, Any]
    stages: dict[str, float]
    dumps: int = 0
    error: str = ""
    notes: tuple[str, ...] = ()

    @property
    def has_failed(self) -> bool:
        """Tell whether it did not come to its end, or not with every request."""
        return self.status in {"failed", "timed out", "partial", "interrupted"}

    def list_remarks(self) -> list[str]:
        """List what went wrong, and what is to be known of it."""
        failure = [f"{self.status}: {self.name}: {self.error}"] if self.error else []
        return failure + [f"note: {self.name}: {note}" for note in self.notes]


class KernelLine(Model):
    """One kernel, as we listed it or as it was dumped."""

    name: str
    op_type: str
    status: KernelStatus
    detail: str = ""
    """What was corrected or differs, where it was seen instead, or why it was not."""
    runs: tuple[str, ...] = ()
    fi_names: tuple[str, ...] = ()
    """What FlashInfer calls it in its own dumps."""


class TraceDumpResult(DefineResult):
    """What the engine showed, and what became of its dumps at the gate."""

    rows = "kernels"

    kernels: tuple[KernelLine, ...] = ()
    runs: tuple[RunLine, ...] = ()
    not_covered: tuple[NotCovered, ...] = ()
    folder: str = ""
    """Where logs, raw dumps and calls of the runs are."""

    @property
    def has_errors(self) -> bool:
        """A run that failed and a dump that the gate refused are errors; a kernel not seen is a finding."""
        return any(run.has_failed for run in self.runs) or super().has_errors

    def summary(self) -> Summary:
        """List the runs and the kernels, then what could not be shown."""
        runs = show_runs(self.runs)
        kernels = Table(
            title="kernels in the engine",
            columns=("definition", "status", "detail"),
            rows=tuple((kernel.name, kernel.status, kernel.detail) for kernel in self.kernels),
        )
        lines = [text for run in self.runs for text in run.list_remarks()]
        lines += [f"not covered: {item.subject}: {item.reason}" for item in self.not_covered]
        lines += [
            f"{entry.status}: {entry.name}: {entry.reason}" for entry in self.entries if entry.status == "refused"
        ]
        counts = Counter(kernel.status for kernel in self.kernels)
        said = (
            ", ".join(f"{count} {status}" for status, count in counts.items()) or f"{len(self.runs)} runs would be made"
        )
        tables = (runs, kernels) if self.kernels else (runs,)
        gate = f"; at the gate: {self.count_text()}" if self.entries else ""
        return Summary(tables=tables, lines=(*lines, f"{self.subject}: {said}{gate}", self.folder))


def show_runs(runs: Sequence[RunLine]) -> Table:
    """Show the runs as a table."""
    columns = ("run", "status", "seconds", "GPUs", "overrides")
    return Table(title="runs of the engine", columns=columns, rows=tuple(map(_run_row, runs)))


def _run_row(run: RunLine) -> tuple[str, ...]:
    shown = [f"{name}={value}" for name, value in run.overrides.items()][:_SHOWN_OVERRIDES]
    return run.name, run.status, f"{run.seconds:.0f}", str(run.gpus), " ".join(shown)
