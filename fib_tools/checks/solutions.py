"""Solutions: fields that match the path, sources that parse, an entry point that exists, one author to a name."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from fib_tools.checks.rules import Family, error
from fib_tools.checks.view import DatasetView
from fib_tools.dataset.layout import Kind, Location
from fib_tools.model.report import Finding
from fib_tools.model.solution import Language, Solution, SourceFile

__all__ = ["SOLUTIONS"]

_UNREADABLE = error("solution.unreadable", "the file does not hold a Solution", "mend or remove it")
_FIELD = error("solution.field_differs", "a field differs from the path", "rename the file or the field")
_SYNTAX = error("solution.syntax", "a Python source that does not parse", "correct it")
_ENTRY = error("solution.entry_missing", "the entry file does not define the entry function", "correct entry_point")
_TWICE = error("solution.name_duplicate", "one name under two authors, so traces cannot tell them apart", "rename one")


def _check(view: DatasetView) -> Iterator[Finding]:
    for path, kind, problem in view.unreadable:
        if kind is Kind.SOLUTION:
            yield _UNREADABLE.at(path, problem)
    seen: dict[tuple[str, str], str] = {}
    for path, location, solution in view.solutions:
        if not view.wants(location.definition):
            continue
        findings = (*_check_fields(path, location, solution), *_check_sources(path, solution))
        yield from (finding.model_copy(update={"definition": location.definition}) for finding in findings)
        other = seen.setdefault((solution.definition, solution.name), path)
        if other != path:
            yield _TWICE.at(path, f"{solution.name} stands also at {other}", definition=location.definition)


def _check_fields(path: str, location: Location, solution: Solution) -> Iterator[Finding]:
    pairs = (
        ("name", solution.name, location.file),
        ("definition", solution.definition, location.definition),
        ("author", solution.author, location.author),
    )
    for field, said, place in pairs:
        if said != place:
            yield _FIELD.at(path, f"{field} is {said!r}, the path says {place!r}")


def _check_sources(path: str, solution: Solution) -> Iterator[Finding]:
    entry_file, _, entry = solution.spec.entry_point.partition("::")
    for source in solution.sources:
        if not source.path.endswith(".py"):
            continue
        try:
            tree = ast.parse(source.content)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as problem:
            yield _SYNTAX.at(path, f"{source.path}: {problem}")
            continue
        if source.path == entry_file and not _defines(tree, entry) and _is_python(solution, source):
            yield _ENTRY.at(path, f"{entry_file} does not define {entry}")


def _is_python(solution: Solution, source: SourceFile) -> bool:
    return solution.spec.language in {Language.PYTHON, Language.TRITON, Language.TILELANG} and bool(source.content)


def _defines(tree: ast.Module, name: str) -> bool:
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)) and node.name == name:
            return True
        if isinstance(node, (ast.Import, ast.ImportFrom)) and any((i.asname or i.name) == name for i in node.names):
            return True
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return True
    return False


SOLUTIONS = Family(name="solution", rules=(_UNREADABLE, _FIELD, _SYNTAX, _ENTRY, _TWICE), check=_check)
