"""Optimising a whole model: searches in the order of what they can save, each with its share of the budget."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from fib_tools.draft.ranking import Standing
from fib_tools.draft.search import Ending
from fib_tools.errors import RequestError
from fib_tools.host.files import read_limited, write_atomically
from fib_tools.host.locks import hold
from fib_tools.host.paths import check_component, confine
from fib_tools.model.base import Model, read_strict
from fib_tools.model.canonical import canonical_bytes, load_json
from fib_tools.model.summary import Result, Summary, Table
from fib_tools.phases.context import Context
from fib_tools.phases.drafting import find_runs, list_runs
from fib_tools.phases.optimize import optimize_kernel
from fib_tools.phases.search_options import SEARCH_DEFAULTS, SearchOptions
from fib_tools.phases.targets import list_targets

__all__ = ["ModelSearchResult", "optimize_model"]

_LEAST_GAIN = 0.01
"""Of the model's time: a kernel that could save less is not searched for."""
_LEAST_EVALUATIONS = 3
_STATE_LIMIT = 1 << 20


class ModelSearchRow(Model):
    """One kernel's search."""

    definition: str
    share: float
    """Of the model's kernel time, before the search."""
    gain: float
    """Of that time, at most, if it reached the limit."""
    usd: float
    """Allotted; spent, once it has ended."""
    evaluations: int
    ending: str = ""
    """Empty: not searched for yet."""
    score: float | None = None
    """Speed of the best Solution over the baseline."""
    before: tuple[str, ...] = ()
    """Runs about the Definition that there were when it was begun: another one is its own."""

    @property
    def saved(self) -> float:
        """The share of the model's time that the best Solution takes off."""
        return self.share * (1 - 1 / self.score) if self.score and self.score > 1 else 0.0


class _State(Model):
    """What was begun, in order: the file by which a killed run goes on."""

    rows: tuple[ModelSearchRow, ...] = ()


class ModelSearchResult(Result):
    """What the searches of a model's kernels found."""

    rows = "searches"
    row_fields = ("definition", "share", "gain", "usd", "evaluations", "ending", "score")

    model: str
    searches: tuple[ModelSearchRow, ...]
    usd: float
    is_plan: bool = False

    @property
    def has_errors(self) -> bool:
        """Tell whether something was searched for and nothing was found."""
        return not self.is_plan and bool(self.searches) and not any(row.score for row in self.searches)

    def summary(self) -> Summary:
        """Show each kernel with its part of the time and of the budget."""
        rows = tuple(
            (
                row.definition,
                f"{row.share:.1%}",
                f"{row.gain:.1%}",
                f"{row.usd:.2f}",
                row.ending or "planned",
                f"{row.score:.3f}" if row.score else "-",
                f"{row.saved:.1%}",
            )
            for row in self.searches
        )
        columns = ("definition", "share", "to gain", "USD", "ending", "x baseline", "saved")
        tables = (Table(title=f"kernels of {self.model}", columns=columns, rows=rows),) if rows else ()
        saved = sum(row.saved for row in self.searches)
        return Summary(tables=tables, lines=(f"{saved:.1%} of the kernels' time saved for {self.usd:.4f} USD",))


def optimize_model(
    context: Context,
    onboarded: Annotated[str, Field(description="A model that was onboarded in this workspace.")],
    options: SearchOptions = SEARCH_DEFAULTS,
    *,
    tp: Annotated[
        int | None,
        Field(ge=1, le=1024, description="Of this tensor-parallel size; the one with the most kernels if left out."),
    ] = None,
    kernels: Annotated[int, Field(ge=1, le=100, description="At most so many kernels, the largest gains first.")] = 5,
    max_usd: Annotated[float, Field(gt=0, le=10_000, description="What all searches may cost, in USD.")] = 5.0,
    max_evals: Annotated[int, Field(ge=1, le=100_000, description="How many drafts all may have.")] = 200,
    resume: Annotated[bool, Field(description="Go on with the searches that were begun for this model.")] = False,
    dry_run: Annotated[bool, Field(description="Show the order and the budgets, and ask nobody.")] = False,
) -> ModelSearchResult:
    """Search for faster kernels of a model, the largest possible gain first; needs what `fib bench` measured of it.

    Each search has the share of the budget that is its kernel's share of what can be gained; what one leaves over goes
    to those after it.

    Exit status 0: a right Solution was found; 1: none was.
    """
    targets = list_targets(context, onboarded, tp=tp)
    path = confine(find_runs(context), f"model-{check_component(targets.model)}-tp{targets.tp}.json")
    done = _read_state(path) if resume else _State()
    waiting = [row for row in targets.targets if row.gain >= _LEAST_GAIN][:kernels]
    if not waiting and not done.rows:
        todo = "measure its baselines first: fib baselines write, then fib bench"
        raise RequestError(f"nothing of {targets.model} is known to be worth a search", todo=todo)
    if dry_run:
        plan = _plan_rest(done.rows, waiting, usd=max_usd, evaluations=max_evals)
        return ModelSearchResult(model=targets.model, searches=(*done.rows, *plan), usd=_spent(done.rows), is_plan=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    with hold(path.with_suffix(".lock"), purpose=f"the searches for {targets.model}"):
        rows = list(done.rows)
        while (following := _choose(rows, waiting, usd=max_usd, evaluations=max_evals)) is not None:
            if following not in rows:
                rows.append(_begin(context, following))
                _write_state(path, rows)
            rows[-1] = _search(context, rows[-1], options)
            _write_state(path, rows)
            if not rows[-1].ending:
                break
    return ModelSearchResult(model=targets.model, searches=tuple(rows), usd=_spent(rows))


def _spent(rows: Sequence[ModelSearchRow]) -> float:
    return sum(row.usd for row in rows if row.ending)


def _plan(waiting: Sequence[Standing], *, usd: float, evaluations: int) -> tuple[ModelSearchRow, ...]:
    """Divide a budget by what can be gained."""
    total = sum(row.gain for row in waiting)
    return tuple(
        ModelSearchRow(
            definition=row.definition,
            share=row.share,
            gain=row.gain,
            usd=usd * row.gain / total,
            evaluations=min(evaluations, max(_LEAST_EVALUATIONS, round(evaluations * row.gain / total))),
        )
        for row in waiting
    )


def _choose(
    rows: Sequence[ModelSearchRow], waiting: Sequence[Standing], *, usd: float, evaluations: int
) -> ModelSearchRow | None:
    """Take the search that was cut off, or else plan the next one with what is left; None at the end."""
    begun = next((row for row in rows if not row.ending), None)
    if begun is not None:
        return begun
    return next(iter(_plan_rest(rows, waiting, usd=usd, evaluations=evaluations)), None)


def _plan_rest(
    rows: Sequence[ModelSearchRow], waiting: Sequence[Standing], *, usd: float, evaluations: int
) -> tuple[ModelSearchRow, ...]:
    """Divide what is left of a budget among the kernels that were not searched for."""
    known = {row.definition for row in rows}
    left = [row for row in waiting if row.definition not in known]
    usd -= sum(row.usd for row in rows)
    evaluations -= sum(row.evaluations for row in rows)
    return _plan(left, usd=usd, evaluations=evaluations) if left and usd > 0 and evaluations > 0 else ()


def _search(context: Context, row: ModelSearchRow, options: SearchOptions) -> ModelSearchRow:
    """Search for one kernel, or go on where its search was cut off."""
    own = [run for run in list_runs(find_runs(context), row.definition) if run not in row.before]
    resume = own[-1] if own else None
    found = optimize_kernel(context, row.definition, options, max_usd=row.usd, max_evals=row.evaluations, resume=resume)
    if found.ending == Ending.INTERRUPTED.value:
        return row
    spent = {"usd": found.usd, "evaluations": len(found.attempts)}
    return row.model_copy(update={"ending": found.ending, "score": found.score, **spent})


def _begin(context: Context, row: ModelSearchRow) -> ModelSearchRow:
    return row.model_copy(update={"before": tuple(list_runs(find_runs(context), row.definition))})


def _read_state(path: Path) -> _State:
    if not path.is_file():
        return _State()
    return read_strict(_State, load_json(read_limited(path, _STATE_LIMIT), where=path.name), where=path.name)


def _write_state(path: Path, rows: Sequence[ModelSearchRow]) -> None:
    write_atomically(path, canonical_bytes(_State(rows=tuple(rows))))
