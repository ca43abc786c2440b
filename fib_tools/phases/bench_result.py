"""What a benchmark run tells: a row for each evaluation, and how the run went."""

from __future__ import annotations

from collections.abc import Iterable

from fib_tools.host.hardware import NO_GPU
from fib_tools.model.evidence import Evidence
from fib_tools.model.summary import Result, Summary, Table

__all__ = ["BenchResult", "BenchRow"]

_SHOWN = 60
_NAMED = 10


class BenchRow(Result):
    """What came of one Solution on one Workload."""

    definition: str
    workload: str
    solution: str
    author: str
    status: str
    rule: str = ""
    """The integrity rule that was broken."""
    milliseconds: float | None = None
    low: float | None = None
    """The 95% interval of the figure."""
    high: float | None = None
    reference_ms: float | None = None
    speedup: float | None = None
    """Over the reference."""
    percent_of_limit: float | None = None
    """Of what this device's memory or arithmetic was measured to allow."""
    detail: str = ""
    evidence: str = ""
    """Its key: `evidence/<2>/<key>.json` in the dataset."""

    @classmethod
    def of(cls, evidence: Evidence) -> BenchRow:
        """Take what a table shows from the evidence on one evaluation."""
        subject, figure = evidence.subject, evidence.series[0] if evidence.series else None
        passed = evidence.status.value == "PASSED" and figure is not None
        speedup = evidence.reference_ms / figure.milliseconds if passed and figure and evidence.reference_ms else None
        return cls(
            definition=subject.definition,
            workload=subject.workload,
            solution=subject.solution,
            author=subject.author,
            status=evidence.status.value,
            rule=evidence.rule or "",
            milliseconds=figure.milliseconds if passed and figure else None,
            low=figure.low if passed and figure else None,
            high=figure.high if passed and figure else None,
            reference_ms=evidence.reference_ms,
            speedup=speedup,
            percent_of_limit=evidence.roofline.percent if passed and evidence.roofline else None,
            detail=evidence.detail,
            evidence=evidence.key,
        )


class BenchResult(Result):
    """What a run measured."""

    rows = "evaluations"
    row_fields = ("definition", "workload", "solution", "author", "status", "milliseconds", "speedup", "rule")

    run: str = ""
    """The run's folder: `--resume` goes on with it."""
    dataset: str
    device: str
    hardware: str
    """The device's model."""
    planned: int
    """Evaluations that were asked for."""
    reused: int = 0
    """Those that the dataset had evidence on."""
    evaluations: tuple[BenchRow, ...] = ()
    failures: tuple[str, ...] = ()
    """What could not be read, or the machinery could not evaluate."""
    unfit: tuple[str, ...] = ()
    """Solutions that were left out, since their target_hardware is another."""
    conflicts: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    """Of Traces, new or changed."""
    seconds: float = 0.0

    @property
    def has_errors(self) -> bool:
        """A Solution that fails is a result; what could not be evaluated is an error."""
        return bool(self.failures)

    def summary(self) -> Summary:
        """Show figures by evaluation, and what was rejected and why."""
        rows = tuple(_show(row) for row in self.evaluations[:_SHOWN])
        columns = ("definition", "workload", "solution", "status", "ms", "x reference", "% of limit")
        tables = (Table(title="evaluations", columns=columns, rows=rows),) if rows else ()
        more = (f"... and {len(self.evaluations) - _SHOWN} more: fib report",) if len(self.evaluations) > _SHOWN else ()
        wrong = tuple(f"{row.solution} on {row.workload[:8]}: {row.detail}" for row in _first_wrong(self.evaluations))
        passed = sum(row.status == "PASSED" for row in self.evaluations)
        label = " (a CPU: good for learning, not for claims)" if self.device == "cpu" else ""
        said = (
            f"{passed} of {len(self.evaluations)} evaluations passed on {self.hardware}{label} in {self.seconds:.1f} s"
        )
        kept = (f"{self.reused} of them were not run: the dataset has their evidence (--fresh runs them)",) * bool(
            self.reused
        )
        names = ", ".join((*self.unfit[:_NAMED], *("...",) * (len(self.unfit) > _NAMED)))
        unfit = (f"{len(self.unfit)} left out, for other hardware (spec.target_hardware): {names}",) * bool(names)
        if not self.run:
            said = f"{self.planned} evaluations would be made on {self.hardware}{label}; the dataset has evidence on {self.reused} more"
            if self.hardware == NO_GPU:
                said = f"{self.planned} evaluations, for which there is no GPU here: --device cpu shows the way"
            return Summary(lines=(*self.failures, said, *unfit))
        return Summary(tables=tables, lines=(*more, *wrong, *self.failures, *self.conflicts, said, *kept, *unfit))


def _show(row: BenchRow) -> tuple[str, ...]:
    status = f"{row.status} ({row.rule})" if row.rule else row.status
    numbers = (row.milliseconds, row.speedup, row.percent_of_limit)
    figure, speedup, percent = ("" if number is None else f"{number:.4g}" for number in numbers)
    return (row.definition, row.workload[:8], row.solution, status, figure, speedup, percent)


def _first_wrong(rows: Iterable[BenchRow]) -> list[BenchRow]:
    """Take the first failure of each Solution."""
    found: dict[tuple[str, str], BenchRow] = {}
    for row in rows:
        if row.status != "PASSED":
            found.setdefault((row.definition, row.solution), row)
    return list(found.values())[:20]
