"""What submitting came to: pull requests and issues, what keeps others back, and every request."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Literal

from fib_tools.model.base import Model
from fib_tools.model.manifest import SubmissionKind
from fib_tools.model.summary import Result, Summary, Table
from fib_tools.publish.outward import Action, Failure, Request

__all__ = ["SubmitEntry", "SubmitResult"]

_SHOWN = 40
_DOING = {"would open", "would update"}
_HELD = {"blocked", "waiting"}


class SubmitEntry(Model):
    """One pull request or issue."""

    kind: SubmissionKind
    subject: str
    """The group of Definitions, the kernel or the API that it is about."""
    status: Action | Literal["blocked", "waiting", "failed"]
    """`blocked`: the checklist holds it back; `waiting`: for the pull request that it would link."""
    repo: str
    url: str = ""
    branch: str = ""
    title: str = ""
    definitions: int = 0
    note: str = ""


class SubmitResult(Result):
    """The pull requests and issues of an onboarding."""

    rows = "entries"
    row_fields = ("kind", "subject", "status", "url", "note")
    advice = ("failures.todo",)

    model: str
    manifest_path: str
    sent: bool
    """False: everything was only shown."""
    entries: tuple[SubmitEntry, ...]
    failures: tuple[Failure, ...] = ()
    """What the checklist found, with what to do about it."""
    requests: tuple[Request, ...] = ()
    """Those that write, in order, with all that they hold: sent, or what would be."""
    notes: tuple[str, ...] = ()

    @property
    def has_errors(self) -> bool:
        """Tell whether something is held back or failed, or a pull request was closed; a closed issue may be done."""
        return bool(self.failures) or any(_is_error(entry) for entry in self.entries)

    def summary(self) -> Summary:
        """Show what is held back, why and what to do about it, each request if nothing was sent, then what came of all."""
        tables: list[Table] = []
        lines: list[str] = []
        if self.failures:
            held = _join_failures(self.failures)
            rows = tuple(row[:3] for row in held[:_SHOWN])
            tables.append(Table(title="held back", columns=("definition", "check", "found"), rows=rows))
            lines += [f"what to do for {name} ({check}): {todo}" for name, check, _, todo in held[:_SHOWN]]
            if len(held) > _SHOWN:
                lines.append(f"... and {len(held) - _SHOWN} more that are missing; --json has all")
        if self.entries:
            entries = tuple((item.kind, item.subject, item.status, item.url or item.repo) for item in self.entries)
            columns = ("what", "about", "status", "where")
            tables.append(Table(title="pull requests and issues", columns=columns, rows=entries))
        lines += [f"{item.kind} {item.subject}: {item.note}" for item in self.entries if item.note]
        lines += list(self.notes)
        if not self.sent:
            lines += [text for request in self.requests for text in _show(request)]
        return Summary(tables=tuple(tables), lines=(*lines, self._describe_end()))

    def _describe_end(self) -> str:
        held = sum(entry.status in _HELD for entry in self.entries)
        failed = sum(entry.status == "failed" for entry in self.entries)
        others = f"; {held} held back" * bool(held) + f"; {failed} failed" * bool(failed)
        if self.sent:
            return f"{len(self.requests)} requests sent{others}; recorded in {self.manifest_path}"
        would = sum(entry.status in _DOING for entry in self.entries)
        if not would:
            return f"nothing was sent, and --yes would send nothing{others}"
        by = f"{would} would be opened or updated, by {len(self.requests)} requests"
        return f"nothing was sent: {by}; --yes sends them{others}"


def _is_error(entry: SubmitEntry) -> bool:
    is_pull = entry.kind in {"dataset", "coverage", "integration"}
    return entry.status in {"blocked", "failed"} or (entry.status == "closed" and is_pull)


def _join_failures(failures: Iterable[Failure]) -> tuple[tuple[str, str, str, str], ...]:
    """Name what is missing once for all Definitions that lack it, with what to do about all of them."""
    alike: dict[tuple[str, str], list[Failure]] = {}
    for item in failures:
        alike.setdefault((item.check, item.found), []).append(item)
    rows = []
    for (check, found), items in alike.items():
        more = f" and {len(items) - 1} more" if len(items) > 1 else ""
        rows.append((f"{items[0].definition or items[0].group}{more}", check, found, _do_for_all(items)))
    return tuple(rows)


def _do_for_all(items: Sequence[Failure]) -> str:
    """Write the first one's remedy with the names of all where its commands take them."""
    todo = items[0].todo
    for before, between in (("--definitions ", ","), ("fib bench ", " ")):
        names = between.join(item.definition for item in items)
        todo = re.sub(rf"{before}{re.escape(items[0].definition)}(?![\w.])", f"{before}{names}", todo)
    return todo


def _show(request: Request) -> list[str]:
    """Write a request out: where it goes, the files with their sizes, and the text as it is."""
    branch = f" branch {request.branch}" if request.branch else ""
    lines = [f"--- {request.service}: {request.method} {request.target}{branch}"]
    if request.title:
        lines.append(f"title: {request.title}")
    lines += [f"file: {file.path} ({file.size} bytes)" for file in request.files]
    return [*lines, *(f"    {line}" for line in request.body.splitlines())]
