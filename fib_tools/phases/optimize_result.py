"""What came of a search for a faster kernel."""

from __future__ import annotations

from typing import ClassVar

from fib_tools.draft.search import Ending
from fib_tools.model.summary import Result, Summary, Table

__all__ = ["OptimizeResult", "OptimizeRow"]


class OptimizeRow(Result):
    """One attempt."""

    attempt: int
    kind: str
    parents: tuple[int, ...]
    technique: str
    status: str
    rule: str = ""
    score: float | None = None
    """Speed over the baseline, the geometric mean over the Workloads."""
    detail: str = ""


class OptimizeResult(Result):
    """What a search found."""

    rows = "attempts"
    row_fields = ("attempt", "kind", "technique", "status", "rule", "score")

    run: str = ""
    """Its name, for `--resume`."""
    go_on: str = ""
    """The command that goes on with it."""
    ending: str = ""
    definition: str
    hardware: str
    baseline: str = ""
    """What was to be beaten; empty where no baseline runs, and the reference counts."""
    best: str = ""
    """The Solution's name, as it lies in the dataset."""
    author: str = ""
    technique: str = ""
    score: float | None = None
    is_apart: bool = True
    """False: its intervals do not tell its speed from that of what it is compared with."""
    attempts: tuple[OptimizeRow, ...] = ()
    tokens_in: int = 0
    tokens_out: int = 0
    usd: float = 0.0
    brief: str = ""
    """What whoever drafts by hand is given, where nobody was asked."""
    brief_path: str = ""
    """The file that holds it."""
    brief_bytes: int = 0
    card: str = ""
    """The file that sums the run up."""
    folder: str = ""
    files: tuple[str, ...] = ()
    """Of Traces, new or changed."""

    _MEANINGS: ClassVar[dict[str, str]] = {
        Ending.BUDGET.value: "what is left of the budget does not pay for another draft; give it more with --max-usd",
        Ending.EVALUATIONS.value: "it had as many drafts as it may; give it more with --max-evals",
        Ending.LIMIT.value: "every size is at the limit of the device",
        Ending.FRUITLESS.value: "the last drafts could not be evaluated; try another strategy or model",
        Ending.INTERRUPTED.value: "interrupted",
    }

    @property
    def has_errors(self) -> bool:
        """Tell whether no attempt was right."""
        return bool(self.ending) and not self.best

    def summary(self) -> Summary:
        """Show the attempts, the best one, what it cost, and how to go on; or the brief."""
        if self.brief:
            return Summary(lines=(self.brief, f"the brief: {self.brief_path}; nobody was asked"))
        shown = tuple(
            (
                str(row.attempt),
                row.kind,
                row.technique,
                f"{row.status} {row.rule}".strip(),
                f"{row.score:.3f}" if row.score else "-",
            )
            for row in self.attempts
        )
        columns = ("attempt", "kind", "technique", "status", "x baseline" if self.baseline else "x reference")
        tables = (Table(title=self.definition, columns=columns, rows=shown),) if shown else ()
        doubt = "" if self.is_apart else f", not told apart from the {'baseline' if self.baseline else 'reference'}"
        lines = (
            [f"best: {self.best} by {self.author}, {self.technique}: {self.score:.3f} x{doubt}"]
            if self.best and self.score
            else []
        )
        if self.score and not self.best:
            lines.append(f"{self.technique} is right on the sizes of this run and not on all: it is not kept")
        if self.ending in self._MEANINGS:
            lines.append(f"stopped: {self._MEANINGS[self.ending]}")
        if self.ending in {Ending.BUDGET.value, Ending.EVALUATIONS.value, Ending.INTERRUPTED.value}:
            lines.append(f"go on with: {self.go_on}")
        tokens = f"{self.tokens_in} tokens in, {self.tokens_out} out, {self.usd:.4f} USD"
        return Summary(tables=tables, lines=(*lines, f"{tokens}; {self.card or self.folder or 'nothing was asked'}"))
