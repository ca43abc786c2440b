"""The question of one draft: which attempt to go on from, what was said of it, and what was tried before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fib_tools.draft.attempt import Ask, AskKind, Attempt
from fib_tools.draft.feedback import write_feedback, write_history

__all__ = ["write_question"]

_TASKS: Mapping[AskKind, str] = {
    AskKind.FIRST: "Write a Solution from nothing.",
    AskKind.REPAIR: "Repair this Solution: keep what is good about it, and answer with the whole file.",
    AskKind.IMPROVE: "Make this Solution faster, above all on the sizes that are farthest from the limit; answer with the whole file.",
    AskKind.CROSS: "Join what these Solutions do best in one; answer with the whole file.",
}
_SOURCE_BYTES = 24_000


def write_question(ask: Ask, attempts: Sequence[Attempt], failures: Sequence[str]) -> str:
    """Write the question; `failures` are those of earlier runs, a line each."""
    by_number = {attempt.number: attempt for attempt in attempts}
    parts = [_TASKS[ask.kind]]
    if failures:
        parts.append("\n".join(["What went wrong in earlier runs:", *failures]))
    if attempts:
        parts.append(f"Tried so far, do something else than what failed:\n{write_history(attempts)}")
    parts += [_show(by_number[number]) for number in ask.parents]
    return "\n\n".join(parts)


def _show(attempt: Attempt) -> str:
    source = attempt.solution.sources[0].content if attempt.solution else ""
    if len(source.encode()) > _SOURCE_BYTES:
        source = source.encode()[:_SOURCE_BYTES].decode(errors="ignore") + "\n... (cut)"
    return f"Attempt {attempt.number} ({attempt.technique}):\n```\n{source.strip()}\n```\n{write_feedback(attempt)}"
