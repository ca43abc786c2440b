"""What collecting Workloads came to, with the real distribution beside what was chosen of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

from fib_tools.capture.runs import NotCovered
from fib_tools.model.base import Model
from fib_tools.model.summary import Result, Summary, Table
from fib_tools.model.workload import Origin
from fib_tools.phases.trace_result import RunLine, show_runs

__all__ = [
    "CollectEntry",
    "CollectResult",
    "ExpertLoad",
    "Quantiles",
    "Refusal",
    "Spread",
    "measure_load",
    "measure_spread",
]

_EXAMPLE = "20261107_101530_250_pid71_rmsnorm_call0001"
_SHOWN = 20


class Quantiles(Model):
    """Where the lengths of an axis lie."""

    least: int
    median: int
    p95: int
    most: int

    def __str__(self) -> str:
        return f"{self.least} / {self.median} / {self.p95} / {self.most}"


class Spread(Model):
    """The lengths of one axis."""

    axis: str
    calls: Quantiles
    """Over all calls."""
    chosen: Quantiles | None
    """Over the chosen Workloads, each as often as it counts."""


class ExpertLoad(Model):
    """How the tokens of all calls are spread over a model's experts."""

    experts: int
    idle: int
    """Experts that no token was sent to."""
    busiest: float
    """Tokens of the busiest expert, as a multiple of the mean."""

    def __str__(self) -> str:
        return f"{self.idle} of {self.experts} experts idle, the busiest has {self.busiest:g} times the mean"


class CollectEntry(Model):
    """What became of the calls of one Definition."""

    definition: str
    op_type: str
    status: Literal["written", "unchanged", "kept", "would write", "refused"]
    """`kept`: there are Workloads, and none of made-up sizes are needed."""
    calls: int
    distinct: int
    """Different Workloads among them."""
    workloads: int
    """Chosen, and accepted by the reference."""
    blobs: int = 0
    """Files that are new."""
    spreads: tuple[Spread, ...] = ()
    load: ExpertLoad | None = None
    """Of experts, where the calls are of them."""
    notes: tuple[str, ...] = ()
    """How what no dump shows was settled."""
    rejected: tuple[str, ...] = ()
    """Why Workloads were not accepted."""


class Refusal(Model):
    """Calls of a known kernel that became no Workload."""

    function: str
    reason: str
    calls: int


class CollectResult(Result):
    """The Workloads of a folder of dumps."""

    rows = "entries"

    dataset: str
    folder: str
    """Of the calls; empty where sizes were made up."""
    origin: Origin
    calls: int
    plans: int
    """Of the calls: those that only prepare others."""
    reading_seconds: float
    """Of reading and matching alone."""
    most_bytes: int | None = None
    """The most that lay in the folder at one time, where calls were removed as they came."""
    staying: int = 0
    """Calls that became no Workload and were left in the folder, where the others were removed."""
    entries: tuple[CollectEntry, ...] = ()
    refused: tuple[Refusal, ...] = ()
    others: dict[str, int]
    """Calls of functions that are of no kernel type, by name."""
    not_seen: tuple[str, ...] = ()
    """Definitions without a call."""
    runs: tuple[RunLine, ...] = ()
    """Of an engine that was started for this."""
    requests: str = ""
    """What each run is asked."""
    not_covered: tuple[NotCovered, ...] = ()
    """What the runs cannot show, and why."""

    @property
    def is_preview(self) -> bool:
        """Tell whether an engine would be started, and was not."""
        return any(run.status == "would run" for run in self.runs)

    @property
    def has_errors(self) -> bool:
        """Tell whether a reference did not accept a Workload, a run of the engine failed, or nothing came of it all."""
        failed = any(entry.rejected for entry in self.entries) or any(run.has_failed for run in self.runs)
        return failed or not (self.entries or self.is_preview)

    def summary(self) -> Summary:
        """Show the Workloads, the distribution, and what became none."""
        rows = tuple(
            (item.definition, item.status, str(item.calls), str(item.distinct), str(item.workloads), str(item.blobs))
            for item in self.entries
        )
        columns = ("definition", "status", "calls", "distinct", "workloads", "new blobs")
        tables = [show_runs(self.runs)] if self.runs else []
        tables += [Table(title=f"workloads ({self.origin})", columns=columns, rows=rows)] if rows else []
        tables += [*self._list_spreads(), *self._list_refusals()]
        lines = [f"{entry.definition}: {note}" for entry in self.entries for note in (*entry.notes, *entry.rejected)]
        lines += [f"{entry.definition}: {entry.load}" for entry in self.entries if entry.load]
        lines += [text for run in self.runs for text in run.list_remarks()]
        lines += [f"not covered: {item.subject}: {item.reason}" for item in self.not_covered]
        lines += [self.requests] * bool(self.requests)
        if self.is_preview:
            return Summary(tables=tuple(tables), lines=(*lines, self.dataset))
        if self.not_seen:
            lines.append(f"{len(self.not_seen)} Definitions without a call: {_shorten(self.not_seen)}")
        if self.others:
            lines.append(f"calls of no kernel type: {_shorten([f'{k} ({v})' for k, v in self.others.items()])}")
        total = sum(entry.workloads for entry in self.entries)
        if not self.folder:
            said = f"{total} Workloads of made-up sizes, {len(self.entries)} Definitions"
            return Summary(tables=tuple(tables), lines=(*lines, said, self.dataset))
        each = 1000 * self.reading_seconds / max(self.calls, 1)
        lines.append(
            f"{self.calls} calls ({self.plans} of them plan()) read in {self.reading_seconds:.2f} s, "
            f"{each:.2f} s for 1,000; {total} Workloads of {len(self.entries)} Definitions"
        )
        if self.staying:
            lines.append(f"calls that are part of no Workload, and stay in {self.folder}: {self.staying}")
        return Summary(tables=tuple(tables), lines=(*lines, *self._say_empty(), self.dataset))

    def _say_empty(self) -> Iterator[str]:
        """Say what was looked for in a folder that has nothing of it."""
        if self.calls or self.refused or self.runs:
            return
        yield (
            f"{self.folder} has no call in it: at log level 10 FlashInfer makes a folder of each there, such as "
            f"{_EXAMPLE}, with metadata.jsonl and inputs.safetensors"
        )
        yield (
            f"an engine writes them with FLASHINFER_LOGLEVEL=10 FLASHINFER_DUMP_DIR={self.folder} "
            "FLASHINFER_DUMP_SAFETENSORS=1 and no CUDA graphs; fib collect MODEL starts one that does"
        )

    def _list_spreads(self) -> list[Table]:
        rows = tuple(
            (entry.definition, spread.axis, str(spread.calls), str(spread.chosen or ""))
            for entry in self.entries
            for spread in entry.spreads
        )
        columns = ("definition", "axis", "calls: least / median / p95 / most", "workloads, by count")
        return [Table(title="lengths", columns=columns, rows=rows)] if rows else []

    def _list_refusals(self) -> list[Table]:
        rows = tuple((str(item.calls), item.function, item.reason) for item in self.refused[:_SHOWN])
        return [
            Table(title="calls that became no Workload", columns=("calls", "function", "reason"), rows=rows)
        ] * bool(rows)


def _shorten(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def measure_spread(axis: str, calls: Counter[int], chosen: Iterable[tuple[Mapping[str, int], int | None]]) -> Spread:
    """Measure the lengths of an axis over calls, and over Workloads with their counts."""
    kept: Counter[int] = Counter()
    for axes, count in chosen:
        kept[axes[axis]] += count or 1
    return Spread(axis=axis, calls=_measure(calls), chosen=_measure(kept) if kept else None)


def measure_load(tokens: Counter[int], experts: int) -> ExpertLoad:
    """Measure the load of so many experts by the tokens that each got."""
    mean = sum(tokens.values()) / experts
    return ExpertLoad(experts=experts, idle=experts - len(tokens), busiest=round(max(tokens.values()) / mean, 2))


def _measure(lengths: Counter[int]) -> Quantiles:
    total = sum(lengths.values())
    return Quantiles(
        least=min(lengths),
        median=_quantile(lengths, total, 0.5),
        p95=_quantile(lengths, total, 0.95),
        most=max(lengths),
    )


def _quantile(lengths: Counter[int], total: int, share: float) -> int:
    """Find the least length that so many are no longer than."""
    seen = 0
    for length in sorted(lengths):
        seen += lengths[length]
        if seen >= share * total:
            return length
    return max(lengths)
