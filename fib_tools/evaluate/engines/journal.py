"""A run's folder: what was planned, and every result from the moment it is there, so that a killed run goes on.

<runs>/<date>-<time>-<plan>/plan.json
                            results.jsonl    {"key": "...", "evidence": {...}}, or {"key": "...", "failure": "...", ...}

A line is on the disk before the next result is taken in. Half a line, from a kill or a power cut, is cut off at opening.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from typing_extensions import Self

from fib_tools.dataset.store import Dataset
from fib_tools.errors import FormatError
from fib_tools.evaluate.engines.engine import Outcome
from fib_tools.evaluate.engines.items import Item, Options, Plan
from fib_tools.host.files import (
    read_limited,
    storage_errors,
    sweep_temporaries,
    temporary_sibling,
    write_atomically,
)
from fib_tools.host.locks import hold
from fib_tools.model.base import read_strict
from fib_tools.model.canonical import canonical_bytes, format_line, load_json
from fib_tools.model.evidence import Evidence, Timer

__all__ = ["Conflict", "Failure", "Journal", "find_reusable", "is_final"]

_PLAN = "plan.json"
_RESULTS = "results.jsonl"
_PLAN_BYTES = 1 << 30
_NAMED_BY = 12
"""Characters of the plan's hash in a run's name; the plan itself is compared."""
_BOUND_TO_LIMITS = frozenset({"timeout", "crash"})
"""Rules that another time limit or another machine's memory may not find broken."""
_PASSING = frozenset({"drift"})
"""Rules that say something about the moment of a measurement and nothing about the Solution: it is measured again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Conflict:
    """Two results for one address that do not say the same: the first one counts."""

    key: str
    first: str
    second: str
    """Status and rule."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """An evaluation that the machinery could not make."""

    key: str
    reason: str
    place: str


def is_final(evidence: Evidence) -> bool:
    """Tell whether an evaluation stands, or is to be made again at the next occasion."""
    return evidence.rule not in _PASSING


class Journal:
    """One run on the disk. Use it as a context manager: it is held by one process at a time."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder = folder
        self.plan = plan
        self.goes_on = False
        """It was there before."""
        self.conflicts: list[Conflict] = []
        self._places: dict[str, tuple[int, int]] = {}
        """Where each finished evaluation stands: the first byte and the length of its line."""
        self._verdicts: dict[str, str] = {}
        self._failures: dict[str, Failure] = {}
        self._open_keys = frozenset(plan.keys)
        self._file = -1
        self._end = 0
        self._held = ExitStack()

    @classmethod
    def prepare(cls, runs: Path, plan: Plan, *, resume: bool, now: datetime) -> Journal:
        """Find the last run of the same plan, if it is to go on, or begin one; the folder has its plan from the start.

        Raises:
            StorageError: the disk refuses.
        """
        with storage_errors(runs):
            runs.mkdir(parents=True, exist_ok=True)
        sweep_temporaries(runs)
        standing = _find_run(runs, plan) if resume else None
        journal = cls(standing or _make_run(runs, plan, now), plan)
        journal.goes_on = standing is not None
        return journal

    def __enter__(self) -> Self:
        """Hold the run, and read what is finished.

        Raises:
            LockedError: another process is at it.
            FormatError: the file was damaged, and not by a kill.
        """
        with ExitStack() as held:
            held.enter_context(hold(self.folder / "lock", purpose=f"the run {self.folder.name}"))
            with storage_errors(self._path):
                self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            held.callback(os.close, self._file)
            self._read()
            self._held = held.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close()

    @property
    def _path(self) -> Path:
        return self.folder / _RESULTS

    @property
    def finished(self) -> Collection[str]:
        """The keys of evaluations that need not be made again."""
        return self._places.keys()

    @property
    def failures(self) -> tuple[Failure, ...]:
        """What the machinery could not evaluate, and has not since."""
        return tuple(self._failures.values())

    def remaining(self, others: Collection[str] = ()) -> tuple[Item, ...]:
        """List what is still to be done, without the keys of `others`, which are finished elsewhere."""
        done = {*self.finished, *others}
        left = (item.without(done, self.plan.hardware) for item in self.plan.items)
        return tuple(item for item in left if item is not None)

    def record(self, outcome: Outcome) -> bool:
        """Write a result down for good; False if its address has one already, which then counts.

        Raises:
            StorageError: the disk refuses; what was recorded before stays.
        """
        key, evidence = outcome.key, outcome.evidence
        if key in self._places:
            self._compare(key, evidence)
            return False
        if evidence is None:
            entry = {"key": key, "failure": outcome.failure, "place": outcome.place, "attempts": outcome.attempts}
            self._append(entry)
            self._failures[key] = Failure(key=key, reason=outcome.failure, place=outcome.place)
            return True
        begin, length = self._append({"key": key, "evidence": evidence})
        self._note(key, evidence, (begin, length))
        return True

    def results(self) -> Iterator[Evidence]:
        """Yield what is finished, in the order of the plan, one at a time from the disk."""
        for key in self.plan.keys:
            if key in self._places:
                begin, length = self._places[key]
                line = os.pread(self._file, length, begin)
                yield self._parse(line, begin)[1]

    def _compare(self, key: str, evidence: Evidence | None) -> None:
        if evidence is not None and _describe(evidence) != self._verdicts[key]:
            self.conflicts.append(Conflict(key=key, first=self._verdicts[key], second=_describe(evidence)))

    def _append(self, entry: dict[str, Any]) -> tuple[int, int]:
        data = format_line(entry).encode() + b"\n"
        begin = self._end
        with storage_errors(self._path):
            try:
                written = 0
                while written < len(data):
                    written += os.pwrite(self._file, data[written:], begin + written)
                os.fsync(self._file)
            except OSError:
                os.ftruncate(self._file, begin)
                raise
        self._end = begin + len(data)
        return begin, len(data)

    def _read(self) -> None:
        """Read the whole file line by line, and cut off the half of a line that a kill left."""
        size = os.fstat(self._file).st_size
        with os.fdopen(os.dup(self._file), "rb") as stream:
            stream.seek(0)
            for line in stream:
                begin = self._end
                if not line.endswith(b"\n") or (begin + len(line) == size and not _is_json(line)):
                    break
                self._take(line, begin)
                self._end += len(line)
        if self._end < size:
            with storage_errors(self._path):
                os.ftruncate(self._file, self._end)
                os.fsync(self._file)

    def _take(self, line: bytes, begin: int) -> None:
        entry = load_json(line, where=str(self._path))
        if not isinstance(entry, dict) or not isinstance(entry.get("key"), str):
            raise FormatError("a line without a key", where=f"{self._path}, byte {begin}", todo="start a new run")
        if "evidence" in entry:
            self._note(*self._parse(line, begin), (begin, len(line)))
        else:
            reason, place = str(entry.get("failure", "")), str(entry.get("place", ""))
            self._failures[entry["key"]] = Failure(key=entry["key"], reason=reason, place=place)

    def _note(self, key: str, evidence: Evidence, place: tuple[int, int]) -> None:
        if key in self._open_keys and key not in self._places and is_final(evidence):
            self._places[key] = place
            self._verdicts[key] = _describe(evidence)
            self._failures.pop(key, None)

    def _parse(self, line: bytes, begin: int) -> tuple[str, Evidence]:
        where = f"{self._path}, byte {begin}"
        entry = load_json(line, where=where)
        return entry["key"], read_strict(Evidence, entry["evidence"], where=where)


def _describe(evidence: Evidence) -> str:
    return f"{evidence.status.value} {evidence.rule}" if evidence.rule else evidence.status.value


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _find_run(runs: Path, plan: Plan) -> Path | None:
    """Find the last run of this plan; one whose plan cannot be read is none."""
    for folder in sorted(runs.glob(f"*-{plan.hash[:_NAMED_BY]}*"), reverse=True):
        try:
            found = load_json(read_limited(folder / _PLAN, _PLAN_BYTES), where=str(folder))
            if read_strict(Plan, found, where=str(folder)).hash == plan.hash:
                return folder
        except FormatError:
            continue
    return None


def _make_run(runs: Path, plan: Plan, now: datetime) -> Path:
    name = f"{now.strftime('%Y%m%d-%H%M%S')}-{plan.hash[:_NAMED_BY]}"
    temporary = temporary_sibling(runs / name)
    with storage_errors(runs):
        temporary.mkdir()
        try:
            write_atomically(temporary / _PLAN, canonical_bytes(plan))
            return _claim(temporary, runs / name)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def _claim(temporary: Path, wanted: Path) -> Path:
    """Give the folder its name, or the first free one after it."""
    number = 1
    while True:
        target = wanted if number == 1 else wanted.with_name(f"{wanted.name}.{number}")
        try:
            temporary.rename(target)
        except OSError:
            if not target.exists():
                raise
            number += 1
        else:
            return target


def find_reusable(dataset: Dataset, plan: Plan) -> Iterator[Evidence]:
    """Yield the evidence that the dataset already has on evaluations of the plan; what cannot be read is none."""
    for key in plan.keys:
        try:
            evidence = dataset.find_evidence(key)
        except FormatError:
            continue
        if evidence is not None and _is_reusable(evidence, plan.options):
            yield evidence


def _is_reusable(evidence: Evidence, options: Options) -> bool:
    """Tell whether an evaluation under these options would have come to the same."""
    timers = {series.timer for series in evidence.series}
    has_other_timer = bool(({Timer.CUPTI, Timer.EVENTS} - {options.timer}) & timers)
    has_other_seed = options.seed is not None and options.seed != evidence.seed
    return is_final(evidence) and evidence.rule not in _BOUND_TO_LIMITS and not has_other_timer and not has_other_seed
