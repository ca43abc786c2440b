"""The report: what the Traces of a dataset say, as tables, as a document and as a page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import compress
from pathlib import Path
from typing import Annotated

from pydantic import Field

from fib_tools.dataset.store import Dataset
from fib_tools.errors import RequestError
from fib_tools.evaluate.report.report_compare import compare_readings, compare_solutions, find_solution
from fib_tools.evaluate.report.report_reading import Reading, read_measurements
from fib_tools.evaluate.report.report_schema import (
    Comparison,
    DefinitionReport,
    DeviceReport,
    Measurement,
    Report,
    SolutionReport,
    Verdict,
)
from fib_tools.evaluate.report.report_tables import build_report
from fib_tools.host.files import write_atomically
from fib_tools.model.summary import Result, Summary, Table
from fib_tools.phases.context import Context
from fib_tools.phases.request import COMMAND_LINE_ONLY, check_definitions

__all__ = ["ReportResult", "report_benchmarks"]

_SHOWN_DEFINITIONS = 30
_SHOWN_PAIRS = 60
_SHOWN_PROBLEMS = 5
_MANY_PAIRS = 20
"""Of so many, one differs by chance in a 95% interval."""


class ReportResult(Result):
    """What was measured, and what follows from it."""

    rows = "report.measurements"
    row_fields = (
        "definition",
        "author",
        "solution",
        "workload",
        "status",
        "rule",
        "milliseconds",
        "speedup",
        "percent",
    )

    dataset: str
    report: Report
    comparison: Comparison | None = None
    problems: tuple[str, ...] = ()
    """Traces and evidence that could not be read, or contradict each other."""
    superseded: int = 0
    """Older Traces, of a Solution, Workload and device that has a newer one."""
    page: str | None = None
    """Where the HTML page was written."""

    @property
    def has_errors(self) -> bool:
        """A Solution that failed is no error of the data; a Trace that its evidence contradicts is one."""
        return bool(self.problems)

    def summary(self) -> Summary:
        """Show the comparison when one was asked for, else every device's standings, definitions and rejections."""
        tables = [*self._comparison_tables()] if self.comparison else [*self._report_tables()]
        return Summary(tables=tuple(tables), lines=tuple(self._lines()))

    def _report_tables(self) -> Iterator[Table]:
        for device in self.report.devices:
            yield _standings(device)
            own = [d for d in self.report.definitions if _is_on(d, device)]
            for definition in own[:_SHOWN_DEFINITIONS]:
                yield _solutions(definition, self.report.measurements)
            if device.rejections:
                yield _rejections(device)

    def _comparison_tables(self) -> Iterator[Table]:
        if self.comparison is None:
            return
        pairs = self.comparison.pairs
        # both sides' Solutions are one only where runs are compared
        has_names = len({pair.first for pair in pairs}) > 1
        has_devices = len({pair.device for pair in pairs}) > 1
        names = ("definition", "solution", "workload", "device")
        shown = [True, has_names, True, has_devices]
        rows = tuple(
            (
                *compress((pair.definition, pair.first, pair.label, pair.device), shown),
                _time(pair.first_ms),
                _time(pair.second_ms),
                f"{pair.ratio:.3f}" if pair.ratio is not None else "",
                f"{pair.low:.3f} .. {pair.high:.3f}" if pair.low is not None and pair.high is not None else "",
                pair.verdict.value,
            )
            for pair in pairs[:_SHOWN_PAIRS]
        )
        title = f"first: {self.comparison.first}; second: {self.comparison.second}"
        columns = (*compress(names, shown), "first", "second", "first/second", "95% interval", "verdict")
        yield Table(title=title, columns=columns, rows=rows)

    def _lines(self) -> Iterator[str]:
        for problem in self.problems[:_SHOWN_PROBLEMS]:
            yield f"problem: {problem}"
        if len(self.problems) > _SHOWN_PROBLEMS:
            yield f"... and {len(self.problems) - _SHOWN_PROBLEMS} more problems; --json has all"
        if self.comparison:
            yield from _comparison_lines(self.comparison)
        elif any(_count(self.report, device) > _SHOWN_DEFINITIONS for device in self.report.devices):
            yield f"{_SHOWN_DEFINITIONS} definitions of each device are shown; --definitions, --html FILE and --json show others"
        if self.superseded:
            yield f"{self.superseded} older traces are left out: a newer one stands for the same solution, workload and device"
        for device in self.report.devices:
            yield _describe(device)
        if self.page:
            yield f"page: {self.page}"


def report_benchmarks(
    context: Context,
    *,
    definitions: Annotated[tuple[str, ...] | None, Field(description="Only these Definitions, by name.")] = None,
    op_types: Annotated[tuple[str, ...] | None, Field(description="Only Definitions of these op_types.")] = None,
    gpu: Annotated[
        str | None, Field(description="Only what was measured on this model of GPU, such as 'NVIDIA H200'.")
    ] = None,
    compare: Annotated[
        tuple[str, str] | None,
        Field(
            description="Two Solutions, each as name or author/name, or two dataset folders, each beginning with / or ./, to compare."
        ),
    ] = None,
    html: Annotated[
        Path | None,
        Field(description="Also write the report as one HTML page that needs nothing else."),
        COMMAND_LINE_ONLY,
    ] = None,
) -> ReportResult:
    """Sum up the Traces of a dataset: speed-ups over the baseline, share of the limit, fast_p, leaderboard.

    Models of GPU are never mixed, nor our measurements with another tool's; the newest Trace of several counts.

    Exit status 0: read; 1: Traces or evidence are broken or contradict each other; 2: there is nothing to report.
    """
    # the page needs templates, which no other output does
    from fib_tools.publish.report_page import format_page

    comparison = None
    between = None if compare is None else _find_datasets(context, compare)
    root = between[0].root if between else context.dataset.root
    context.progress("reading traces", 0, 0)
    reading = _read(Dataset.open(root), definitions, op_types, gpu)
    problems = reading.problems
    if between and compare:
        other = _read(Dataset.open(between[1].root), definitions, op_types, gpu)
        comparison = compare_readings((compare[0], reading), (compare[1], other))
        problems += other.problems
    elif compare:
        comparison = compare_solutions(reading, *_find_solutions(reading, compare))
    report = build_report(reading)
    if html is not None:
        context.progress("writing the page", 0, 0)
        text = format_page(report, reading.evidence, subject=str(root), comparison=comparison, problems=problems)
        write_atomically(html, text.encode())
    return ReportResult(
        dataset=str(root),
        report=report,
        comparison=comparison,
        problems=problems,
        superseded=reading.superseded,
        page=str(html) if html else None,
    )


def _find_datasets(context: Context, compare: tuple[str, str]) -> tuple[Dataset, Dataset] | None:
    """Take the two sides as folders when both are written as paths."""
    if not all(text.startswith(("/", "./", "../")) for text in compare):
        return None
    first, second = (Dataset.open(context.check_readable(Path(text))) for text in compare)
    return first, second


def _find_solutions(reading: Reading, compare: tuple[str, str]) -> list[tuple[str, str]]:
    found = []
    for text in compare:
        solution = find_solution(reading, text)
        if solution is None:
            raise RequestError(
                f"no Traces of a Solution {text!r}", todo="pass name or author/name, or two folders as ./one,./other"
            )
        found.append(solution)
    return found


def _read(
    dataset: Dataset, definitions: Sequence[str] | None, op_types: Sequence[str] | None, gpu: str | None
) -> Reading:
    if definitions:
        files = dataset.files("definitions", "traces")
        known = {file.location.definition for file in files if file.location is not None}
        check_definitions(definitions, known, where=str(dataset.root))
    reading = read_measurements(dataset, definitions=definitions, op_types=op_types)
    if not reading.measurements:
        first = f"; the first problem: {reading.problems[0]}" if reading.problems else ""
        raise RequestError(
            f"no Trace of an evaluation is there{first}",
            where=str(dataset.root),
            todo="run: fib bench, or select less narrowly",
        )
    return reading if gpu is None else reading.take_device(gpu, where=str(dataset.root))


def _is_on(definition: DefinitionReport, device: DeviceReport) -> bool:
    return (definition.device, definition.measured_by) == (device.device, device.measured_by)


def _count(report: Report, device: DeviceReport) -> int:
    return sum(_is_on(definition, device) for definition in report.definitions)


def _name(device: DeviceReport) -> str:
    note = " (a CPU: no figure of a GPU)" if device.is_cpu else ""
    return f"{device.device}{note}, measured by {device.measured_by}"


def _standings(device: DeviceReport) -> Table:
    rows = tuple(
        (
            s.author or "unknown",
            f"{100 * s.correct:.0f}%",
            f"{s.passed}/{s.attempted}",
            _factor(s.speedup if device.has_baseline else s.reference_speedup),
            _share(s.fast_1),
            _percent(s.percent),
            str(s.rejected) if s.rejected else "",
        )
        for s in device.leaderboard
    )
    columns = ("author", "correct", "workloads", _name_factor(device), "fast_1", "% of limit", "rejected")
    return Table(title=f"leaderboard: {_name(device)}", columns=columns, rows=rows)


def _solutions(definition: DefinitionReport, measurements: Sequence[Measurement]) -> Table:
    times = {
        (m.author, m.solution, m.workload): m
        for m in measurements
        if (m.definition, m.device, m.measured_by) == (definition.definition, definition.device, definition.measured_by)
    }
    rows = []
    for s in definition.solutions:
        cells = [_outcome(times.get((s.author, s.solution, workload.uuid))) for workload in definition.workloads]
        head = (
            f"{s.author or 'unknown'}/{s.solution}",
            f"{s.passed}/{s.attempted}",
            _describe_speedup(s) if definition.has_baseline else _factor(s.reference_speedup),
            _percent(s.percent),
        )
        rows.append((*head, *cells))
    columns = ("solution", "passed", _name_factor(definition), "% of limit", *(w.label for w in definition.workloads))
    title = f"{definition.definition} ({definition.op_type})"
    return Table(title=title, columns=columns, rows=tuple(rows))


def _describe_speedup(solution: SolutionReport) -> str:
    """Say on how many sizes there is one, if not on all that passed: the baseline may lack some."""
    some = f" on {solution.compared} of {solution.passed}" if 0 < solution.compared < solution.passed else ""
    return f"{_factor(solution.speedup)}{some}"


def _name_factor(report: DeviceReport | DefinitionReport) -> str:
    return "speed-up" if report.has_baseline else "x reference"


def _outcome(m: Measurement | None) -> str:
    if m is None:
        return "-"
    return _time(m.milliseconds) if m.passed else m.rule or m.status.value.lower().replace("_", " ")


def _rejections(device: DeviceReport) -> Table:
    rows = tuple(
        (r.rule, f"{r.author or 'unknown'}/{r.solution}", r.definition, str(r.workloads), r.detail.split("\n")[0][:160])
        for r in device.rejections
    )
    return Table(title="rejected", columns=("rule", "solution", "definition", "workloads", "what was seen"), rows=rows)


def _comparison_lines(comparison: Comparison) -> Iterator[str]:
    counted = [f"{verdict.value}: {count}" for verdict in Verdict if (count := comparison.count(verdict))]
    yield ", ".join(counted)
    judged = sum(pair.low is not None for pair in comparison.pairs)
    if judged >= _MANY_PAIRS:
        yield f"by chance alone, about {judged // 20} of {judged} pairs without a difference would seem to have one"
    for device, ratio in comparison.ratios.items():
        yield f"{device}: first over second, geometric mean: {ratio:.3f} (above 1: the second is faster)"
    if len(comparison.pairs) > _SHOWN_PAIRS:
        yield f"{_SHOWN_PAIRS} of {len(comparison.pairs)} pairs are shown; --html FILE and --json have all"


def _describe(device: DeviceReport) -> str:
    timers = f", timed with {', '.join(device.timers)}" if device.timers else ""
    rejected = f", rejected {device.rejected}" if device.rejected else ""
    return f"{_name(device)}: {device.passed} of {device.evaluations} evaluations passed{rejected}{timers}"


def _time(milliseconds: float | None) -> str:
    if milliseconds is None:
        return ""
    return f"{milliseconds * 1000:.4g} us" if milliseconds < 1 else f"{milliseconds:.4g} ms"


def _factor(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}x" if value >= 0.1 else f"{value:.2g}x"


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f}%"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}%" if value < 10 else f"{value:.0f}%"
