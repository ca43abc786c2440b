"""The workers of a run as the engine sees them: who has which items, what each is to be told, and what a death means.

No process, clock or wire in here: engines bring messages, times and deaths, and carry the answers away.
The messages are those of `_engine_worker`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from fib_tools.errors import ChildCrashedError, FormatError
from fib_tools.evaluate.engines.engine import LoadBundle, Outcome, Place
from fib_tools.evaluate.engines.items import Item, Plan, SolutionRef
from fib_tools.evaluate.engines.schedule import Job, Schedule
from fib_tools.model.base import read_strict, to_document
from fib_tools.model.evidence import Evidence

__all__ = ["PATIENCE_SECONDS", "Crew", "Message", "ProtocolError"]

Message = dict[str, Any]

_MOST_ATTEMPTS = 2
_MOST_FAILED_STARTS = 2
"""In a row; then the place is given up."""
_MOST_LOSSES = 3
"""Machines that one item may lose before it counts as the cause."""
PATIENCE_SECONDS = 2.0
"""For what a worker compiles, where there is nothing else for it to do; then it tries the next that compiles."""
_AHEAD = 2
"""Items that a busy worker holds: the one it evaluates and the next, so that it never waits for us."""


class ProtocolError(ChildCrashedError):
    """A worker said what no worker may say: it is ended."""


@dataclass(kw_only=True, slots=True)
class _Member:
    place: Place
    is_ready: bool = False
    jobs: deque[tuple[int, Job]] = field(default_factory=deque)
    """The first one is being evaluated."""
    bundles: list[str] = field(default_factory=list)
    deadline: float | None = None


class Crew:
    """Everything an engine has to remember about a run."""

    def __init__(self, plan: Plan, items: Iterable[Item], load: LoadBundle) -> None:
        self._plan = plan
        self._load = load
        self._schedule = Schedule(items)
        self._members: dict[str, _Member] = {}
        self._failed_starts: dict[str, int] = {}
        self._numbers = 0

    @property
    def is_done(self) -> bool:
        """Tell whether every item came to an end."""
        return not self._schedule.waiting and not any(member.jobs for member in self._members.values())

    @property
    def has_waiting(self) -> bool:
        """Tell whether there is work that nobody has taken."""
        return bool(self._schedule.waiting)

    @property
    def members(self) -> tuple[str, ...]:
        """The workers that live, by the names of their places."""
        return tuple(self._members)

    def start(self, place: Place, *, now: float) -> list[Message]:
        """Take in a worker that was just started; give what it is told first."""
        deadline = now + self._plan.options.limits.start_seconds
        self._members[place.name] = _Member(place=place, deadline=deadline)
        plan = self._plan.model_copy(update={"items": ()})
        return [{"type": "plan", "plan": to_document(plan), "place": to_document(place)}]

    def needs(self, name: str) -> bool:
        """Tell whether a place whose worker is gone should get another one."""
        return self.has_waiting and name not in self._members and not self.is_hopeless(name)

    def is_hopeless(self, name: str) -> bool:
        """Tell whether workers keep dying at a place before they are ready."""
        return self._failed_starts.get(name, 0) >= _MOST_FAILED_STARTS

    def assign(self, *, now: float) -> Iterator[tuple[str, list[Message]]]:
        """Give out work: what to tell which worker."""
        for depth in range(_AHEAD):
            for name, member in self._members.items():
                may_hold_more = depth == 0 or self._schedule.waiting >= len(self._members)
                if member.is_ready and len(member.jobs) == depth and may_hold_more:
                    job = self._schedule.take(name)
                    if job is not None:
                        # the first item comes alone: its own processes are to start before those of groups after it
                        yield name, list(self._give(name, member, job, now=now, prepares=depth > 0))

    def _give(self, name: str, member: _Member, job: Job, *, now: float, prepares: bool) -> Iterator[Message]:
        yield from self._show(member, job.item.definition)
        idle = sum(not each.jobs for each in self._members.values())
        following = self._schedule.find_next(name, idle=idle, workers=len(self._members)) if prepares else None
        if following is not None:
            yield from self._show(member, following.item.definition)
            yield {"type": "prepare", "item": to_document(following.item)}
        if not member.jobs:
            member.deadline = now + self._plan.options.limits.silence_seconds
        self._numbers += 1
        member.jobs.append((self._numbers, job))
        patience = 0.0 if self._schedule.has_others(name, job.item.group) else PATIENCE_SECONDS
        yield {"type": "item", "number": self._numbers, "item": to_document(job.item), "patience": patience}
        yield from self._forget(name, member)

    def _show(self, member: _Member, definition: str) -> Iterator[Message]:
        if definition not in member.bundles:
            member.bundles.append(definition)
            yield {"type": "bundle", "bundle": to_document(self._load(definition))}

    def _forget(self, name: str, member: _Member) -> Iterator[Message]:
        wanted = {job.item.definition for _, job in member.jobs}
        for definition in list(member.bundles):
            if definition not in wanted and not self._schedule.is_wanted(name, definition):
                member.bundles.remove(definition)
                yield {"type": "forget", "definition": definition}

    def hear(self, name: str, message: Message, *, now: float) -> list[Outcome]:
        """Take a worker's message in.

        Raises:
            ProtocolError: it may not say that now.
        """
        member = self._members[name]
        kind = message.get("type")
        if kind == "ready" and not member.is_ready:
            member.is_ready = True
            member.deadline = None
            self._failed_starts.pop(name, None)
            return []
        if not member.jobs or message.get("number") != member.jobs[0][0]:
            raise ProtocolError(f"a message {kind!r} that belongs to no item", where=name)
        member.deadline = now + self._plan.options.limits.silence_seconds
        if kind == "evidence":
            return [self._take_evidence(member, message)]
        if kind == "later":
            _, job = member.jobs.popleft()
            self._schedule.defer(name, job)
            member.deadline = member.deadline if member.jobs else None
            return []
        if kind in {"refused", "done"}:
            return self._settle(member, kind, message.get("reason", ""))
        if kind != "alive":
            raise ProtocolError(f"a message of the unknown type {kind!r}", where=name)
        return []

    def _take_evidence(self, member: _Member, message: Message) -> Outcome:
        number, job = member.jobs[0]
        try:
            evidence = read_strict(Evidence, message.get("evidence"), where=member.place.name)
        except FormatError as error:
            raise ProtocolError(f"what was sent as Evidence is none: {error.what}", where=member.place.name) from error
        ref = job.item.find_solution(evidence.key, self._plan.hardware)
        if ref is None:
            what = f"Evidence on {evidence.subject.solution!r} on {evidence.subject.device!r}, which was not asked for"
            raise ProtocolError(what, where=member.place.name)
        left = tuple(each for each in job.item.solutions if each != ref)
        rest = job.item.model_copy(update={"solutions": left})
        member.jobs[0] = (number, replace(job, item=rest))
        return self._conclude(member, job, ref, evidence=evidence)

    def _settle(self, member: _Member, kind: str, reason: str) -> list[Outcome]:
        """Close the item; a Solution that nothing was said about has failed."""
        number, job = member.jobs[0]
        why = reason or "the worker left it out"
        failed = [self._conclude(member, job, ref, failure=why) for ref in job.item.solutions]
        if kind == "done":
            member.jobs.popleft()
            if not member.jobs:
                member.deadline = None
            return failed
        rest = job.item.model_copy(update={"solutions": ()})
        member.jobs[0] = (number, replace(job, item=rest))
        return failed

    def lose(self, name: str, reason: str, *, is_machine: bool = False) -> list[Outcome]:
        """Take a death in: what the worker was at is tried again, each Solution alone; what it only held goes back.

        With `is_machine`, the whole machine was lost, for which the item is not to blame.
        """
        member = self._members.pop(name)
        self._schedule.dismiss(name)
        if not member.is_ready:
            self._failed_starts[name] = self._failed_starts.get(name, 0) + 1
        if not member.jobs:
            return []
        (_, current), *held = member.jobs
        self._schedule.put_back([job for _, job in held])
        if is_machine and current.losses < _MOST_LOSSES:
            self._schedule.put_back([replace(current, losses=current.losses + 1)] if current.item.solutions else [])
            return []
        if current.attempt >= _MOST_ATTEMPTS:
            return [self._conclude(member, current, ref, failure=reason) for ref in current.item.solutions]
        alone = [current.item.model_copy(update={"solutions": (ref,)}) for ref in current.item.solutions]
        self._schedule.put_back([replace(current, item=item, attempt=current.attempt + 1) for item in alone])
        return []

    def _conclude(
        self, member: _Member, job: Job, ref: SolutionRef, *, evidence: Evidence | None = None, failure: str = ""
    ) -> Outcome:
        return Outcome(
            item=job.origin,
            solution=ref,
            key=job.origin.key(ref, self._plan.hardware),
            evidence=evidence,
            failure=failure,
            place=member.place.name,
            attempts=job.attempt,
        )

    def find_overdue(self, *, now: float) -> list[str]:
        """Name the workers that owe something and have been silent for too long."""
        return [name for name, member in self._members.items() if member.deadline is not None and member.deadline < now]

    def find_deadline(self) -> float | None:
        """Say when the next one is overdue."""
        return min((member.deadline for member in self._members.values() if member.deadline is not None), default=None)
