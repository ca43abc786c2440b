"""What `fib trace block` answers: the operators of a block, and where its picture lies."""

from __future__ import annotations

from collections.abc import Iterable

from fib_tools.model.base import Model
from fib_tools.model.summary import Result, Summary, Table

__all__ = ["TraceBlockResult", "TracedOperator"]

_SHOWN = 40


class TracedOperator(Model):
    """One operator of the block."""

    path: str
    op_type: str
    definition: str = ""
    """The Definition that it is a call of; empty for what only moves data, and for what no kernel type describes."""
    microseconds: float
    bytes: int
    flops: int
    best: str = ""
    """The fastest Solution that is known for such a call, as author/name; empty where none is."""
    best_percent: float | None = None
    """Of the limit of the GPU that it was measured on."""
    best_gpu: str = ""


class TraceBlockResult(Result):
    """What was traced, and where the trace lies."""

    rows = "operators"
    row_fields = ("path", "op_type", "definition", "microseconds", "bytes", "flops", "best", "best_percent", "best_gpu")

    model: str
    path: str
    layers: tuple[int, ...]
    """Those that were recorded from inside."""
    input: str
    slices: int
    bytes: int
    """Of the file."""
    profile: str | None = None
    """What torch.profiler saw of the same run."""
    kernels: int = 0
    """Of the slices, those that a GPU executed; without a profiler nobody saw them."""
    load_seconds: float
    forward_seconds: float
    """Of the recorded forward: a third time at least what it takes unobserved."""
    most_memory: int
    """Bytes of live tensors, weights included, at the moment when there are most."""
    most_activations: int
    """The same less the weights."""
    operators: tuple[TracedOperator, ...]
    problems: tuple[str, ...] = ()
    """Of the dataset's Traces and evidence, where the best Solutions are looked up."""

    def summary(self) -> Summary:
        """Show the operators in order, what is known to be faster, then where to look at them."""
        columns = ("operator", "op_type", "Definition", "us", "bytes", "FLOPs")
        rows = tuple(
            (each.path, each.op_type, each.definition, f"{each.microseconds:.0f}", str(each.bytes), str(each.flops))
            for each in self.operators[:_SHOWN]
        )
        tables = (Table(title=self.model, columns=columns, rows=rows), *self._best_tables())
        return Summary(tables=tables, lines=tuple(self._conclude()))

    def _best_tables(self) -> Iterable[Table]:
        """List each Definition's best Solution once; calls of other lengths may have another one."""
        known = {(each.definition, each.best, _percent(each.best_percent), each.best_gpu) for each in self.operators}
        rows = tuple(sorted(row for row in known if row[1]))
        if rows:
            yield Table(title="best known", columns=("Definition", "Solution", "% of limit", "on"), rows=rows[:_SHOWN])

    def _conclude(self) -> Iterable[str]:
        left = len(self.operators) - _SHOWN
        if left > 0:
            yield f"... and {left} more operators"
        if self.problems:
            yield f"{len(self.problems)} problems with the dataset's Traces; the first: {self.problems[0]}"
        megabytes = (f"{each / 1e6:.2f} MB" for each in (self.most_memory, self.most_activations))
        yield "at most {} of tensors live at once, {} of them no weights".format(*megabytes)
        if self.profile:
            seen = f"{self.kernels} kernels of the GPU are in the trace too" if self.kernels else "no GPU took part"
            yield f"{self.profile}: the same run for TensorBoard, or chrome://tracing; {seen}"
        yield f"{self.path}: {self.slices} slices, {self.bytes / 1e6:.2f} MB; open it at https://ui.perfetto.dev"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
