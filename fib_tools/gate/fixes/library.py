"""FlashInfer's own source as the place where a reference's undefined names are looked up, by `ast` and without import.

Only a FlashInfer whose reference is the same code may fill in another's gaps: a helper of another version may compute
something else.
"""

from __future__ import annotations

import ast
import re
import sys
from functools import cache, cached_property
from pathlib import Path

from fib_tools.errors import FibError
from fib_tools.gate.fixes.draft import RefusedError
from fib_tools.gate.fixes.source import find_undefined, function_dump
from fib_tools.host.files import read_limited
from fib_tools.sources.packages import Package, find_package

__all__ = ["Collected", "Library", "find_library"]

_FILE_LIMIT = 4 << 20
_TEMPLATES = "flashinfer.trace.templates"
_API_DECORATORS = frozenset({"flashinfer_api", "flashinfer_experimental_api"})
_MAX_NAMES = 200
_IMPORTABLE = frozenset({*sys.stdlib_module_names, "torch", "numpy"})


class _Module:
    def __init__(self, name: str, text: str, *, is_package: bool) -> None:
        self.name = name
        self.text = text
        self.package = name if is_package else name.rpartition(".")[0]

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @cached_property
    def names(self) -> dict[str, ast.stmt]:
        """The statement that defines or imports each module-level name, the first one where branches differ."""
        found: dict[str, ast.stmt] = {}
        pending: list[ast.stmt] = list(self.tree.body)
        while pending:
            node = pending.pop(0)
            for name in _bound_names(node):
                found.setdefault(name, node)
            if isinstance(node, (ast.If, ast.Try)):
                pending = [*node.body, *node.orelse, *pending]
        return found

    def segment(self, node: ast.stmt) -> str:
        """A statement's source, with the decorators that are not FlashInfer's own."""
        lines = self.text.splitlines()[node.lineno - 1 : node.end_lineno]
        kept = [
            "@" + ast.unparse(item)
            for item in getattr(node, "decorator_list", [])
            if _decorator_name(item) not in _API_DECORATORS
        ]
        return "\n".join([*kept, *lines])


def _decorator_name(node: ast.expr) -> str:
    target = node.func if isinstance(node, ast.Call) else node
    return target.id if isinstance(target, ast.Name) else target.attr if isinstance(target, ast.Attribute) else ""


def _bound_names(node: ast.stmt) -> list[str]:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
        return [node.target.id]
    if isinstance(node, ast.Import):
        return [alias.asname or alias.name.partition(".")[0] for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [alias.asname or alias.name for alias in node.names]
    return []


class Collected:
    """Source blocks in an order in which each follows what it needs."""

    def __init__(self) -> None:
        self.imports: list[str] = []
        self.blocks: list[str] = []
        self.names: list[str] = []
        self.seen: set[str] = set()
        self.followed: set[tuple[str, str]] = set()
        """Re-exports that were gone after, as (module, name)."""


class Library:
    """One FlashInfer's modules, parsed as they are needed."""

    def __init__(self, package: Package) -> None:
        self.version = package.version
        self._root = package.folder.parent
        self._modules: dict[str, _Module | None] = {}

    def find_home(self, function: str, source: str) -> str | None:
        """Find the template module that holds the same function with the same code."""
        wanted = function_dump(source, function)
        for path in sorted((self._root / "flashinfer" / "trace" / "templates").glob("*.py")):
            module = self._load(f"{_TEMPLATES}.{path.stem}")
            if module is None or not re.search(rf"^def {re.escape(function)}\(", module.text, re.MULTILINE):
                continue
            if function_dump(module.text, function) == wanted:
                return module.name
        return None

    def collect(self, names: tuple[str, ...], home: str, collected: Collected) -> None:
        """Gather the source of names as the module `home` understands them, with all they need in turn.

        Raises:
            RefusedError: for a name that is not there, or that is no plain Python.
        """
        for name in names:
            self._resolve(name, home, collected)

    def _resolve(self, name: str, module_name: str, collected: Collected) -> None:
        if name in collected.seen:
            return
        if len(collected.seen) > _MAX_NAMES:
            raise RefusedError(f"the reference needs more than {_MAX_NAMES} helpers")
        collected.seen.add(name)
        module = self._load(module_name)
        node = module.names.get(name) if module else None
        if module is None or node is None:
            raise RefusedError(f"the reference uses {name}, which {module_name} does not define")
        if isinstance(node, ast.ImportFrom):
            self._follow(name, node, module, collected)
        elif isinstance(node, ast.Import):
            self._import(ast.unparse(node), node.names[0].name, collected)
        elif _is_api(node):
            self._substitute(name, module, collected)
        else:
            self._add(name, node, module, collected)

    def _add(self, name: str, node: ast.stmt, module: _Module, collected: Collected) -> None:
        """Put what a statement needs at once before it, and what only its functions need, when called, after it."""
        segment = module.segment(node)
        needed = find_undefined(f"from __future__ import annotations\n{segment}")
        eager = _eager_names(node)
        for item in needed:
            if item in eager:
                self._resolve(item, module.name, collected)
        collected.blocks.append(segment)
        collected.names.append(name)
        for item in needed:
            self._resolve(item, module.name, collected)

    def _follow(self, name: str, node: ast.ImportFrom, module: _Module, collected: Collected) -> None:
        alias = next(item for item in node.names if (item.asname or item.name) == name)
        source = _absolute(node, module)
        if not source.startswith("flashinfer"):
            self._import(f"from {source} import {ast.unparse(alias)}", source, collected)
            return
        inner = f"{source}.{alias.name}" if self._load(f"{source}.{alias.name}") else source
        if inner != source:
            raise RefusedError(f"the reference uses the module {inner}")
        if (source, alias.name) in collected.followed:
            raise RefusedError(f"the modules of FlashInfer import {alias.name} from each other")
        collected.followed.add((source, alias.name))
        collected.seen.discard(alias.name)
        self._resolve(alias.name, source, collected)
        if alias.asname and alias.asname != alias.name:
            collected.blocks.append(f"{alias.asname} = {alias.name}")

    def _import(self, line: str, module: str, collected: Collected) -> None:
        if module.partition(".")[0] not in _IMPORTABLE:
            raise RefusedError(f"the reference imports {module}")
        if line not in collected.imports:
            collected.imports.append(line)

    def _substitute(self, name: str, module: _Module, collected: Collected) -> None:
        """Put an API's own reference in the place of its kernel, which needs a GPU."""
        reference = self._find_reference(f"{name}_trace")
        if reference is None:
            raise RefusedError(f"the reference calls FlashInfer's kernel {module.name}.{name}")
        home, function = reference
        self._resolve(function, home, collected)
        if function != name:
            collected.blocks.append(f"{name} = {function}")

    def _find_reference(self, template: str) -> tuple[str, str] | None:
        for path in sorted((self._root / "flashinfer" / "trace" / "templates").glob("*.py")):
            module = self._load(f"{_TEMPLATES}.{path.stem}")
            node = module.names.get(template) if module and template in module.text else None
            if module is None or not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Call):
                continue
            for keyword in node.value.keywords:
                if keyword.arg == "reference" and isinstance(keyword.value, ast.Name):
                    return module.name, keyword.value.id
        return None

    def _load(self, name: str) -> _Module | None:
        if name not in self._modules:
            base = self._root / Path(*name.split("."))
            package = base / "__init__.py"
            path = package if package.is_file() else base.with_suffix(".py")
            text = read_limited(path, _FILE_LIMIT).decode(errors="replace") if path.is_file() else None
            self._modules[name] = None if text is None else _Module(name, text, is_package=path == package)
        return self._modules[name]


def _is_api(node: ast.stmt) -> bool:
    decorators = getattr(node, "decorator_list", [])
    return any(_decorator_name(item) in _API_DECORATORS for item in decorators)


def _eager_names(node: ast.stmt) -> set[str]:
    """Name what is evaluated when a statement runs: all of it, but of functions only decorators and defaults."""
    if isinstance(node, ast.FunctionDef):
        parts: list[ast.AST | None] = [*node.decorator_list, *node.args.defaults, *node.args.kw_defaults]
    elif isinstance(node, ast.ClassDef):
        inner = {name for item in node.body for name in _eager_names(item)}
        return inner | {item.id for base in node.bases for item in ast.walk(base) if isinstance(item, ast.Name)}
    else:
        parts = [node]
    return {item.id for part in parts if part for item in ast.walk(part) if isinstance(item, ast.Name)}


def _absolute(node: ast.ImportFrom, module: _Module) -> str:
    if not node.level:
        return node.module or ""
    parts = module.package.split(".")
    base = parts[: len(parts) - node.level + 1]
    return ".".join([*base, *([node.module] if node.module else [])])


@cache
def find_library() -> Library | None:
    """Find the installed FlashInfer's source; None when it is not installed or cannot be read."""
    try:
        package = find_package("flashinfer")
    except FibError:
        return None
    return Library(package) if package else None
