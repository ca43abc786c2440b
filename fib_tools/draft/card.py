"""The card of a search: what was there before, what is there now, how far the limit is, and what made the difference."""

from __future__ import annotations

from collections.abc import Sequence

from fib_tools.draft.attempt import Attempt, find_best
from fib_tools.draft.run_folder import SearchPlan
from fib_tools.draft.target import Target, format_axes, format_us

__all__ = ["write_card"]


def write_card(plan: SearchPlan, attempts: Sequence[Attempt], *, ending: str, usd: float) -> str:
    """Write it as Markdown."""
    target, best = plan.target, find_best(attempts)
    lines = [
        f"# {target.definition.name} on {target.hardware}",
        "",
        (
            f"Run {plan.run}: {plan.strategy} with {plan.model}, {target.language.value}, {len(attempts)} attempts,"
            f" {usd:.4f} USD, ended by {ending}."
        ),
        "",
    ]
    if best is None or best.solution is None:
        lines.append("No attempt was right.")
    else:
        weighted = ", weighted by how often they occur" if target.is_weighted else ""
        against = "the baseline" if target.baseline_ms else "the reference (there is no baseline here)"
        lines += [
            (
                f"Best: `{best.solution.name}` by {best.solution.author}, attempt {best.number}: {best.technique};"
                f" {best.score:.3f} times as fast as {against}{'' if best.is_apart else ', not told apart from it'} (geometric mean of {len(best.results)} Workloads{weighted})."
            ),
            *([f"What made the difference, as its author says: {_escape(best.why)}"] if best.why else []),
            "",
            *_tabulate(target, best),
        ]
    lines += ["", "## What was tried", "", "| attempt | from | technique | what came of it |", "|---|---|---|---|"]
    lines += [_write_row(attempt) for attempt in attempts]
    return "\n".join([*lines, ""])


def _tabulate(target: Target, best: Attempt) -> list[str]:
    shapes, weights = {shape.workload: shape for shape in target.shapes}, target.weights
    lines = [
        "| axes | weight | baseline us | now us (95% interval) | ratio | % of the limit before | now |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in best.results:
        shape = shapes[result.workload]
        before = shape.baseline_ms
        share = f"{100 * shape.limit_ms / before:.1f}" if shape.limit_ms and before else "-"
        cells = (
            format_axes(result.axes),
            f"{weights[result.workload]:.1%}",
            format_us(before),
            f"{format_us(result.milliseconds)} ({format_us(result.low)} to {format_us(result.high)})",
            f"{result.speedup:.3f}" if result.speedup else "-",
            share,
            f"{result.percent:.1f}" if result.percent is not None else "-",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _write_row(attempt: Attempt) -> str:
    wrong = attempt.first_wrong
    if attempt.passed:
        said = f"{attempt.score:.3f} x"
    elif wrong is None:
        said = attempt.problem
    else:
        said = wrong.verdict
    parents = ", ".join(map(str, attempt.ask.parents)) or "-"
    cells = (str(attempt.number), f"{attempt.ask.kind.value} {parents}", attempt.technique, said)
    return f"| {' | '.join(_escape(cell) for cell in cells)} |"


def _escape(text: str) -> str:
    """Keep words of others within their place in the table."""
    return text.replace("|", "/").replace("\n", " ")
