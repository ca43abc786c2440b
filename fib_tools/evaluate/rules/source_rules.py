"""The rules that are read off a Solution's sources before anything runs.

They are the first of three nets: what they miss meets the child's own watch and then the judge.
So they are strict about what a kernel never needs, and silent about what honest kernels do.
"""

from __future__ import annotations

import sys
from pathlib import PurePosixPath

from fib_tools.evaluate.rules.rules import RULES, Violation
from fib_tools.evaluate.rules.source_native import check_native
from fib_tools.evaluate.rules.source_python import check_python
from fib_tools.evaluate.rules.source_tables import ALLOWED_ROOTS, HARNESS_ROOTS, LIBRARY_ROOTS
from fib_tools.model.solution import BASELINE, Solution

__all__ = ["check_sources"]


_PROSE = (".md", ".txt", ".rst")
_AT_START = frozenset({"sitecustomize", "usercustomize", "conftest"})
"""Modules that a Python process imports by itself when it starts."""


def check_sources(solution: Solution) -> list[Violation]:
    """Find every breach in the sources of a Solution, in the order of files and lines; nothing is run.

    Raises:
        FormatError: a Python source is not Python; the evaluation's status is COMPILE_ERROR, the text its log.
    """
    own_modules, violations = _find_own_modules(solution)
    for source in solution.sources:
        if source.path.endswith(".py"):
            violations += check_python(
                source.path,
                source.content,
                own_modules=own_modules,
                may_use_library=solution.author == BASELINE,
            )
        elif not source.path.lower().endswith(_PROSE):
            violations += check_native(source.path, source.content)
    return violations


def _find_own_modules(solution: Solution) -> tuple[frozenset[str], list[Violation]]:
    """Name the modules that the Solution's own files make; one that shares its name with another is a breach."""
    taken = sys.stdlib_module_names | ALLOWED_ROOTS | LIBRARY_ROOTS | HARNESS_ROOTS | _AT_START
    own: set[str] = set()
    violations: list[Violation] = []
    for source in solution.sources:
        path = PurePosixPath(source.path)
        if path.suffix != ".py":
            continue
        name = path.parts[0].removesuffix(".py")
        if name in taken:
            detail = f"{source.path}:1: has the name of another module; rename the file"
            violations.append(Violation(rule=RULES["source-import"], detail=detail))
        else:
            own.add(name)
    return frozenset(own), violations
