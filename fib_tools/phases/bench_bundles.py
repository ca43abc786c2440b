"""What is benchmarked: the Definitions that are chosen, each with its Solutions, Workloads and bounds."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from fib_tools.dataset.layout import find_location
from fib_tools.dataset.store import Dataset
from fib_tools.errors import FibError, FormatError, RequestError
from fib_tools.evaluate.calibration.calibration import find_calibration, find_tolerances
from fib_tools.evaluate.engines.items import Bound, Bundle
from fib_tools.gate.recognise import find_kernel
from fib_tools.model.definition import Definition
from fib_tools.model.solution import Solution
from fib_tools.model.workload import Workload
from fib_tools.phases.baselines import make_baselines
from fib_tools.phases.context import Context
from fib_tools.phases.request import check_op_types

__all__ = ["BenchChoice", "load_bundles", "make_bundle"]


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchChoice:
    """What of a dataset is to be evaluated: all that it has where nothing is named."""

    definitions: tuple[str, ...] | None = None
    op_types: tuple[str, ...] | None = None
    solutions: tuple[str, ...] | None = None
    authors: tuple[str, ...] | None = None
    workloads: int | None = None
    """At most so many of each Definition, the first ones."""

    def takes(self, definition: Definition) -> bool:
        """Tell whether a Definition is chosen."""
        is_named = self.definitions is None or definition.name in self.definitions
        return is_named and (self.op_types is None or definition.op_type in self.op_types)

    def takes_solution(self, solution: Solution) -> bool:
        """Tell whether a Solution is chosen."""
        return self._takes(solution.name, solution.author)

    def may_take_file(self, path: str) -> bool:
        """Tell whether a Solution that cannot be read is one of those named, as far as its path says it."""
        at = find_location(path)
        return at is None or self._takes(at.file, at.author)

    def _takes(self, name: str, author: str) -> bool:
        is_named = self.solutions is None or name in self.solutions
        return is_named and (self.authors is None or author in self.authors)

    def find_missing(self, found: Collection[Solution]) -> list[str]:
        """Find the Solutions, then the authors, that were named and are not there."""
        names, authors = {each.name for each in found}, {each.author for each in found}
        return [*sorted(set(self.solutions or ()) - names), *sorted(set(self.authors or ()) - authors)]

    def check(self, names: Collection[str], found: Collection[Solution]) -> None:
        """Refuse names that choose nothing.

        Raises:
            RequestError: naming the first.
        """
        missing = [*sorted(set(self.definitions or ()) - set(names)), *self.find_missing(found)]
        if missing:
            what = f"no Definition, chosen Solution or author has the name {missing[0]!r}"
            near = difflib.get_close_matches(
                missing[0], {*names, *(each.name for each in found), *(each.author for each in found)}
            )
            raise RequestError(
                what, todo=f"did you mean {near[0]}?" if near else "see the folders definitions and solutions"
            )


def load_bundles(
    context: Context, dataset: Dataset, choice: BenchChoice, unwritten: Collection[tuple[str, str]] = ()
) -> tuple[list[Bundle], list[FibError]]:
    """Load what is to be evaluated, and what is wrong with Solutions that may have been among it.

    Baselines that a dry run leaves `unwritten`, by Definition and name, count as if they were there.

    Raises:
        RequestError: nothing is.
    """
    check_op_types(choice.op_types)
    loaded, broken = dataset.load_definitions()
    bundles: list[Bundle] = []
    seen: list[Solution] = []
    unread: list[FibError] = []
    chosen = [definition for _, definition in sorted(loaded.items()) if choice.takes(definition)]
    report = context.tell_if_slow("reading Solutions and Workloads")
    for done, definition in enumerate(chosen):
        report(done, len(chosen))
        found, wrong = dataset.read_solutions(definition.op_type, definition.name)
        unread += [error for path, error in wrong.items() if choice.may_take_file(path)]
        if unwritten:
            made = (solution for solution, _ in make_baselines(definition))
            found = (*found, *(each for each in made if (definition.name, each.name) in unwritten))
        seen += found
        kept = tuple(solution for solution in found if choice.takes_solution(solution))
        workloads = dataset.load_workloads(definition.op_type, definition.name)[: choice.workloads]
        if kept and workloads:
            bundles.append(make_bundle(context, definition, workloads, kept))
    if broken and not set(choice.definitions or ()) <= loaded.keys():
        raise broken[0]
    if unread and choice.find_missing(seen):
        raise unread[0]
    choice.check(loaded, seen)
    if not bundles and unread:
        raise unread[0]
    if not bundles:
        todo = "add Solutions (fib baselines write) and Workloads (workloads/<op_type>/<definition>.jsonl), or choose others"
        raise RequestError(
            "no Definition chosen has both a Solution and a Workload", where=str(dataset.root), todo=todo
        )
    return bundles, unread


def make_bundle(
    context: Context, definition: Definition, workloads: Sequence[Workload], solutions: Sequence[Solution]
) -> Bundle:
    """Put a Definition together with its bounds, calibrated if they are.

    Raises:
        FormatError: a Workload is not one of this Definition, or two have the same uuid.
    """
    _check_workloads(definition, workloads)
    calibration = find_calibration(context.workspace.root, definition)
    tolerances = find_tolerances(definition, find_kernel(definition), calibration)
    return Bundle(
        definition=definition,
        bounds={name: Bound.of(bound) for name, bound in tolerances.items()},
        workloads=tuple(workloads),
        solutions=tuple(solutions),
        trusted=tuple(made.hash for made, _ in make_baselines(definition)),
    )


def _check_workloads(definition: Definition, workloads: Sequence[Workload]) -> None:
    todo = "fib validate tells all that is wrong with them"
    seen: set[str] = set()
    for workload in workloads:
        where = f"Workload {workload.uuid} of {definition.name}"
        if workload.uuid in seen:
            raise FormatError("another Workload has the same uuid", where=where, todo=todo)
        seen.add(workload.uuid)
        for what, have, want in (
            ("axes", set(workload.axes), set(definition.var_axes)),
            ("inputs", set(workload.inputs), set(definition.inputs)),
        ):
            if have != want:
                said = f"its {what} are {', '.join(sorted(have)) or 'none'}; the Definition has {', '.join(sorted(want)) or 'none'}"
                raise FormatError(said, where=where, todo=todo)
