"""Where a package's public names are defined: re-exports, aliases, star imports and inherited methods, read off the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import NamedTuple

from fib_tools.sources.packages import Package, SourceFile, list_files, parse_files

__all__ = ["Definition", "ExportGraph", "import_base", "statements"]

# Deeper chains of re-exports than this do not occur; a circle of imports ends here.
_MAX_STEPS = 16


class Definition(NamedTuple):
    """A place in the source that a dotted name leads to; a module has an empty name."""

    module: str
    name: str


class ExportGraph:
    """Answers what a dotted name of one package means; modules are parsed when they are first asked about."""

    def __init__(self, package: Package) -> None:
        self.package = package
        self._files = {file.module: file for file in list_files(package)}
        self._names: dict[str, dict[str, ast.AST | Definition]] = {}
        self._stars: dict[str, list[str]] = {}
        self._resolved: dict[str, Definition | None] = {}
        self._methods: dict[tuple[Definition, str], str | None] = {}

    @property
    def files(self) -> dict[str, SourceFile]:
        """The package's files by module."""
        return self._files

    def resolve(self, dotted: str) -> Definition | None:
        """Follow a dotted name to the function, class, assignment or module it stands for.

        Where a package binds a name that one of its modules has too, as `xqa` from `xqa.py`, the binding wins.
        """
        if dotted not in self._resolved:
            module, _, name = dotted.rpartition(".")
            bound = self._resolve_in(module, name, _MAX_STEPS) if dotted in self._files and module else None
            self._resolved[dotted] = bound or self._resolve(dotted, _MAX_STEPS)
        return self._resolved[dotted]

    def find_node(self, definition: Definition) -> ast.AST | None:
        """The statement that defines a name at the top of its module."""
        node = self._load(definition.module).get(definition.name)
        return node if isinstance(node, ast.AST) else None

    def find_method(self, definition: Definition, method: str) -> str | None:
        """The qualified name of the method that a call on a class's instance runs.

        An alias in the class's body (`begin_forward = plan`) stands for its method, an inherited one for the base's.
        """
        key = (definition, method)
        if key not in self._methods:
            self._methods[key] = None  # ends a circle of bases
            self._methods[key] = self._find_method(definition, method)
        return self._methods[key]

    def _find_method(self, definition: Definition, method: str) -> str | None:
        node = self.find_node(definition)
        if not isinstance(node, ast.ClassDef):
            return None
        for statement in node.body:
            if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)) and statement.name == method:
                return f"{definition.module}.{definition.name}.{method}"
            if isinstance(statement, ast.Assign) and any(_is_name(target, method) for target in statement.targets):
                alias = _aliased_method(statement.value)
                return self.find_method(definition, alias) if alias else None
        for base in node.bases:
            parent = self.resolve(f"{definition.module}.{ast.unparse(base)}")
            found = self.find_method(parent, method) if parent else None
            if found:
                return found
        return None

    def _resolve(self, dotted: str, steps: int) -> Definition | None:
        if dotted in self._files:
            return Definition(dotted, "")
        module, _, name = dotted.rpartition(".")
        if not module or steps == 0:
            return None
        parent = self._resolve(module, steps - 1)
        if parent is None or parent.name:
            return None
        return self._resolve_in(parent.module, name, steps - 1)

    def _resolve_in(self, module: str, name: str, steps: int) -> Definition | None:
        names = self._load(module)
        node = names.get(name)
        if isinstance(node, Definition):
            target = f"{node.module}.{node.name}" if node.name else node.module
            return self._resolve(target, steps) if steps else None
        if isinstance(node, ast.AST):
            return Definition(module, name)
        if f"{module}.{name}" in self._files:
            return Definition(f"{module}.{name}", "")
        for source in self._stars[module] if steps else ():
            found = self._resolve_in(source, name, steps - 1) if source in self._files else None
            if found:
                return found
        return None

    def _load(self, module: str) -> dict[str, ast.AST | Definition]:
        if module not in self._names:
            self._names[module], self._stars[module] = {}, []
            file = self._files[module]
            for _, tree in parse_files(self.package, [file]):
                for node in statements(tree.body if tree else []):
                    self._bind(file, node)
        return self._names[module]

    def _bind(self, file: SourceFile, node: ast.stmt) -> None:
        names = self._names[file.module]
        if isinstance(node, ast.ImportFrom):
            base = import_base(file, node)
            self._stars[file.module] += [base for alias in node.names if alias.name == "*"]
            names.update({alias.asname or alias.name: Definition(base, alias.name) for alias in node.names})
        elif isinstance(node, ast.Import):
            names.update({alias.asname: Definition(alias.name, "") for alias in node.names if alias.asname})
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names[node.name] = node
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    same = isinstance(node.value, ast.Name) and node.value.id != target.id
                    names[target.id] = Definition(file.module, ast.unparse(node.value)) if same else node


def statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a module or class, those under `if`, `try` and `with` included; fallbacks come first, so the main way wins."""
    for node in body:
        if isinstance(node, ast.If):
            yield from statements([*node.orelse, *node.body])
        elif isinstance(node, ast.Try):
            handlers = [statement for handler in node.handlers for statement in handler.body]
            yield from statements([*handlers, *node.orelse, *node.finalbody, *node.body])
        elif isinstance(node, ast.With):
            yield from statements(node.body)
        else:
            yield node


def import_base(file: SourceFile, node: ast.ImportFrom) -> str:
    """The absolute module that a `from ... import` names."""
    if node.level == 0:
        return node.module or ""
    parts = file.module.split(".")
    parents = parts[: len(parts) - node.level + (1 if file.is_package else 0)]
    return ".".join([*parents, *([node.module] if node.module else [])])


def _is_name(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _aliased_method(value: ast.expr) -> str | None:
    """The method behind `forward = run` and `run_return_lse = functools.partialmethod(run, ...)`."""
    if isinstance(value, ast.Call) and value.args:
        return _aliased_method(value.args[0])
    return value.id if isinstance(value, ast.Name) else None
