"""From a folder of calls to what is kept of each Definition; a call that is none of them is counted with its reason."""

from __future__ import annotations

import shutil
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fib_tools.capture.collection.candidates import Tally
from fib_tools.capture.collection.dumps import Call, list_call_folders, load_call
from fib_tools.capture.collection.matching import Target, find_match, find_targets, is_known_api
from fib_tools.capture.collection.observation import Plan, read_plan
from fib_tools.capture.collection.wrappers import needs_plan, observe
from fib_tools.errors import FormatError, SourceError
from fib_tools.host.files import storage_errors

__all__ = ["Collector", "remove_call", "take_calls"]

_MOST_PLANS = 1024
"""Objects whose last plan() is remembered; an engine has some for each batch size that it captures."""
_MOST_REASONS = 200


@dataclass(kw_only=True)
class Collector:
    """Takes calls in their order, and keeps what Workloads are made of."""

    targets: Sequence[Target]
    limit: int
    """Workloads wanted of each Definition."""
    expert_skew: float | None = None
    """Route tokens to experts anew, by a Zipf law of this exponent."""
    tallies: dict[str, Tally] = field(default_factory=dict)
    """By Definition."""
    calls: int = 0
    plans: int = 0
    refused: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Calls of a known kernel that became no Workload, by function and reason."""
    others: Counter[str] = field(default_factory=Counter)
    """Calls of functions that are of no kernel type, or of none that Workloads are wanted of."""
    remembers: bool = False
    """Where the calls lie is kept, for whoever removes those that became Workloads: memory grows with their number."""
    runs: dict[Path, list[Path]] = field(default_factory=dict)
    """By plan(): the calls that ran with it, where they lie."""
    _plans: OrderedDict[tuple[int, str, int | None], tuple[Path, Plan | str]] = field(default_factory=OrderedDict)

    def take(self, call: Call) -> None:
        """Take in the next call of the run."""
        self.calls += 1
        if call.function.endswith(".plan"):
            self.plans += 1
            self._remember(call)
            return
        targets = find_targets(self.targets, call.module, call.function)
        if not targets and not is_known_api(call.module, call.function):
            self.others[call.function] += 1
            return
        try:
            match = find_match(observe(call, self._find_plan(call), expert_skew=self.expert_skew), targets)
        except FormatError as error:
            self.refuse(call.function, error.what)
            return
        name = match.target.definition.name
        tally = self.tallies.setdefault(name, Tally(target=match.target, limit=self.limit))
        tally.add(match, folders=[call.folder] if self.remembers else [])

    def refuse(self, function: str, reason: str) -> None:
        """Count a call that became no Workload."""
        key = (function, reason)
        known = key in self.refused or len(self.refused) < _MOST_REASONS
        self.refused[key if known else (function, "other reasons")] += 1

    def list_plans(self) -> set[Path]:
        """List where each plan() lies that calls may yet come to run with."""
        return {folder for folder, _ in self._plans.values()}

    def _remember(self, call: Call) -> None:
        """Keep a plan() for the calls of the same object until the next; one that cannot be read voids the last."""
        try:
            self._plans[call.owner] = call.folder, read_plan(call)
        except FormatError as error:
            self._plans[call.owner] = call.folder, error.what
        self._plans.move_to_end(call.owner)
        if len(self._plans) > _MOST_PLANS:
            self._plans.popitem(last=False)

    def _find_plan(self, call: Call) -> Plan | None:
        if not needs_plan(call):
            return None
        folder, plan = self._plans.get(call.owner, (None, None))
        if folder is not None and self.remembers:
            self.runs.setdefault(folder, []).append(call.folder)
        if isinstance(plan, str):
            raise FormatError(f"its plan() cannot be read: {plan}", where=call.folder.name)
        return plan


def take_calls(
    folder: Path,
    collector: Collector,
    *,
    consume: bool = False,
    is_over: bool = True,
    known: Collection[Path] = (),
    report: Callable[[int, int], None] = lambda _done, _total: None,
) -> list[Path]:
    """Take in the calls of a folder but those that are known, and remove each that was read if told to; return them.

    While the engine still writes (`is_over` False), calls that have not come to their end are left for the next time.
    Nothing waits for them: one that raised never comes to its end, and one that calls others ends after them.

    Raises:
        SourceError: there is no such folder.
        StorageError: what was read cannot be removed.
    """
    if not folder.is_dir():
        raise SourceError("this is no folder", where=str(folder), todo="name the folder of FLASHINFER_DUMP_DIR")
    found = [path for path in list_call_folders(folder) if path not in known]
    read: list[Path] = []
    for done, path in enumerate(found):
        report(done, len(found))
        if _take(path, collector, is_over=is_over):
            read.append(path)
            if consume:
                remove_call(path)
    return read


def _take(path: Path, collector: Collector, *, is_over: bool) -> bool:
    """Take in one call; tell whether it is done with."""
    function = path.name.partition("_pid")[2].partition("_")[2].rpartition("_call")[0]
    if not is_over and not (path / "metadata.jsonl").exists():
        return False
    try:
        call = load_call(path)
    except FormatError as error:
        collector.refuse(function, error.what)
        return True
    if call is not None:
        collector.take(call)
    elif is_over:
        collector.refuse(function, "the call did not come to its end")
    return call is not None or is_over


def remove_call(path: Path) -> None:
    """Remove the folder of a call that was read.

    Raises:
        StorageError: the disk refuses.
    """
    with storage_errors(path):
        shutil.rmtree(path)
