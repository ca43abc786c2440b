"""The rules of honest measurement: what each forbids, and who looks.

A Solution that breaks one is rejected; the log then begins with `REJECTED by <rule>: ` and the Evidence carries the name.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = ["RULES", "Look", "Rule", "Violation"]


class Look(str, Enum):
    """Who looks for breaches, and when."""

    SOURCE = "source"
    """The sources are read before anything runs."""
    CHILD = "child"
    """The process that runs the Solution watches itself; a Solution may try to blind it, so others look too."""
    JUDGE = "judge"
    """The process that owns seeds, output memory and verdict; no code of the Solution runs there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """One thing that a Solution may not do."""

    name: str
    """The name is a contract: Evidence and logs carry it."""
    forbids: str
    """One sentence."""
    look: Look


@dataclass(frozen=True, kw_only=True, slots=True)
class Violation:
    """A rule was broken in a place."""

    rule: Rule
    detail: str
    """Where (`file:line`), what was found, and what to do next."""


_SOURCE = {
    "source-import": "Imports or reaches a module that a kernel has no use for.",
    "source-library": "Calls the library whose kernels are measured, which only the author `baseline` may.",
    "source-dynamic": "Reaches code, names or files in a way that cannot be read off the source.",
    "source-patch": "Changes a module or a class that is not its own, or how torch dispatches.",
    "source-fallback": "Catches every error of its kernel and carries on with something else.",
    "source-harness": "Names a module of an evaluator.",
    "source-native": "C++ or CUDA text reaches the system, the profiler, Python or another process.",
}
_CHILD = {
    "audit": "Makes the interpreter do what a kernel has no use for: open files, read frames, start processes.",
    "threads": "Leaves threads or processes behind, or works in them while no call is under way.",
    "patched": "Leaves torch, a clock or the evaluator different from what it was.",
    "output-kind": "Returns what is no plain tensor of its own: a subclass, a view of an input or of another output, or one on another device.",
    "output-count": "Returns fewer or more outputs than the Definition declares.",
    "inputs-changed": "Changes values, shape or storage of an input.",
    "hidden-work": "Keeps the GPU busy outside its calls.",
    "l2-policy": "Sets aside a part of the L2 cache that survives the flush.",
}
_JUDGE = {
    "unwritten": "Leaves parts of an output unwritten.",
    "wrong-values": "Gives values that the reference does not give for these inputs.",
    "stale-result": "Gives for new contents of its inputs what it gave for others: a result that it kept, or memory that it did not write.",
    "wrong-distribution": "Is right on the usual inputs only: wrong on another distribution or on a held-out shape.",
    "too-fast": "Claims less time than this GPU needs to move the bytes or to do the arithmetic.",
    "stopwatch": "Claims less time than passes on a clock outside its process.",
    "memory": "Is faster on contents that it has seen before.",
    "uneven": "Has some calls do the work of others.",
    "library-kernel": "Runs kernels of the library under test.",
    "drift": "Clocks or times drifted, so the measurement is refused; it says nothing against the Solution.",
    "crash": "The process that runs it died.",
    "timeout": "Did not come to an end in time.",
}

RULES: dict[str, Rule] = {
    name: Rule(name=name, forbids=forbids, look=look)
    for look, family in ((Look.SOURCE, _SOURCE), (Look.CHILD, _CHILD), (Look.JUDGE, _JUDGE))
    for name, forbids in family.items()
}
"""By name: first those that are read off the source, then those of the child, then those of the judge."""
