"""What a drafter is told of an attempt: first what is wrong, with values and places, then each size's time."""

from __future__ import annotations

from collections.abc import Sequence

from fib_tools.draft.attempt import Attempt, Draft, ShapeResult
from fib_tools.draft.profile import explain_time
from fib_tools.draft.target import format_axes
from fib_tools.evaluate.inspection.exactness import Exactness
from fib_tools.evaluate.inspection.ncu import Profile
from fib_tools.evaluate.inspection.ncu_report import KernelCounters
from fib_tools.evaluate.rules.rules import RULES
from fib_tools.model.trace import EvaluationStatus

__all__ = ["FEEDBACK_BYTES", "write_feedback", "write_history", "write_log"]

FEEDBACK_BYTES = 2048
_DETAIL = 1200
_HISTORY = 14
_WORD = 110
_WAITING = "no verdict yet; if it was interrupted, the next draft is judged after it"


def write_feedback(attempt: Attempt) -> str:
    """Say what came of an attempt."""
    if not attempt.results:
        return f"It was not evaluated: {attempt.problem}"
    lines = []
    wrong = attempt.first_wrong
    if wrong is not None:
        lines += _describe_wrong(wrong, attempt.results)
        lines.append("")
    elif attempt.passed:
        lines.append(
            f"Right {f'on {attempt.sizes}' if attempt.untried else 'everywhere'};"
            f" {attempt.score:.3f} times as fast as {attempt.against}{'' if attempt.is_apart else ', not told apart from it'}"
            " (geometric mean, weighted as in the brief)."
        )
    if attempt.exactness is not None:
        lines += _describe_exactness(attempt.exactness)
    if attempt.profile is not None:
        lines += _describe_profile(attempt.profile)
    lines += [_write_row(result) for result in attempt.results]
    return _clip("\n".join(lines), FEEDBACK_BYTES)


def _describe_wrong(wrong: ShapeResult, results: Sequence[ShapeResult]) -> list[str]:
    count = sum(result.status is not EvaluationStatus.PASSED for result in results)
    rule = RULES.get(wrong.rule)
    said = f" by the rule `{wrong.rule}`: {rule.forbids}" if rule else ""
    return [
        f"{wrong.status.value} on {count} of {len(results)} sizes{said}",
        _clip(wrong.detail, _DETAIL),
    ]


def _describe_exactness(found: Exactness) -> list[str]:
    """Say how far from float64 it is, beside what the reference's own arithmetic costs and what is allowed."""
    if found.problem:
        return [_end(f"No error against FP64: {found.problem}")]
    return [
        f"{name}: max abs error vs FP64, rounded to {each.dtype}, {each.error:.2g}; the reference itself {each.reference_error:.2g};"
        f" the bound there {each.bound:.2g} ({format_axes(found.axes)}, typical values)"
        for name, each in found.outputs.items()
    ]


def _describe_profile(profile: Profile) -> list[str]:
    """Say what NCU counted in the main kernels, or why it did not."""
    if profile.problem:
        reason = _end(f"No counters of NCU: {profile.problem}")
        return [f"{reason} What is said of the times below follows from them alone."]
    head = f"NCU, {format_axes(profile.axes)}, cold L2, {profile.launches} launches, the longest:"
    return [head, *(f"- {kernel.name}: {_describe_kernel(kernel)}" for kernel in profile.kernels)]


def _describe_kernel(kernel: KernelCounters) -> str:
    rates = [("DRAM", kernel.dram), ("L2", kernel.l2), ("SM", kernel.sm)]
    parts = [f"{kernel.microseconds:.4g} us", *(f"{name} {value:.0f}%" for name, value in rates if value is not None)]
    if kernel.occupancy is not None:
        most = f" of {kernel.most_occupancy:.0f}%" if kernel.most_occupancy is not None else ""
        parts.append(
            f"occupancy {kernel.occupancy:.0f}%{most}{f' (limit: {kernel.limiter})' if kernel.limiter else ''}"
        )
    if kernel.registers is not None:
        parts.append(f"{kernel.registers} registers")
    if kernel.shared_bytes is not None:
        parts.append(f"{kernel.shared_bytes / 1024:.3g} KB shared")
    if kernel.stall and kernel.stall_share is not None:
        parts.append(f"stalls most on {kernel.stall} ({kernel.stall_share:.0%})")
    return ", ".join(parts)


def _write_row(result: ShapeResult) -> str:
    axes = format_axes(result.axes)
    if result.milliseconds is None:
        return f"{axes}: {result.status.value}"
    low, high = (1e3 * (value or 0.0) for value in (result.low, result.high))
    parts = [f"{1e3 * result.milliseconds:.4g} us ({low:.4g} to {high:.4g})"]
    if result.speedup:
        parts.append(f"{result.speedup:.3f} x")
    if result.percent is not None:
        parts.append(f"{result.percent:.0f}% of the limit")
    if result.warm_ms is not None:
        parts.append(f"{1e3 * result.warm_ms:.4g} us with a warm L2")
    if result.launches > 1:
        parts.append(f"{result.launches} launches: {', '.join(result.kernels)}")
    said = explain_time(result)
    return f"{axes}: {', '.join(parts)}{f'; {said}' if said else ''}"


def write_history(attempts: Sequence[Attempt]) -> str:
    """Sum up what was tried, the newest last: a line for each but repetitions, so that nothing is tried twice."""
    return write_log([attempt for attempt in attempts if not attempt.is_repeat])


def write_log(attempts: Sequence[Attempt], waiting: Sequence[Draft] = ()) -> str:
    """List what was sent, the newest last, repetitions and what is `waiting` for its verdict too."""
    lines = [_write_line(attempt) for attempt in attempts[-_HISTORY:]]
    left = len(attempts) - len(lines)
    lines += [f"- {draft.number}. {draft.technique}: {_WAITING}" for draft in waiting]
    return "\n".join([*([f"({left} older ones)"] if left else []), *lines])


def _write_line(attempt: Attempt) -> str:
    wrong = attempt.first_wrong
    if attempt.passed:
        said = f"right{f' on {attempt.sizes}' if attempt.untried else ''}, {attempt.score:.3f} x"
    elif wrong is None:
        said = attempt.problem
    else:
        said = f"{wrong.verdict}: {' '.join(wrong.detail.split())}"
    return f"- {attempt.number}. {attempt.technique}: {_clip(said, _WORD)}"


def _end(sentence: str) -> str:
    """End a sentence whose last words, another program's, may have a full stop of their own."""
    return f"{sentence.removesuffix('.')}."


def _clip(text: str, size: int) -> str:
    data = text.encode()
    return text if len(data) <= size else data[: size - 3].decode(errors="ignore") + "..."
