"""A reference's Python source, read with `ast` and never run here."""

from __future__ import annotations

import ast
import builtins
import symtable
from dataclasses import dataclass

from fib_tools.gate.fixes.draft import RefusedError

__all__ = ["Function", "find_undefined", "function_dump", "last_import_line", "parse_module", "read_function"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Function:
    """The function of a source that is the reference."""

    name: str
    line: int
    required: tuple[str, ...]
    """Parameters without a default, in order."""
    defaulted: tuple[str, ...]
    """Parameters with a default, keyword-only ones and those that are read out of `**kwargs` included."""
    positional: tuple[str, ...]
    """Those that can be bound by position."""
    takes_any: bool
    """It swallows keywords it does not know."""
    returned_count: int | None
    """Values returned: 0 when it returns nothing, None when the source does not tell."""

    @property
    def parameters(self) -> tuple[str, ...]:
        """Every parameter by name."""
        return (*self.required, *self.defaulted)


def parse_module(source: str, *, what: str = "the reference") -> ast.Module:
    """Parse a module's source.

    Raises:
        RefusedError: when it is not Python.
    """
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise RefusedError(f"{what} is not Python: {error}") from error


def read_function(source: str) -> Function:
    """Find the reference in a source: `run` where there is one, else the last top-level function.

    Raises:
        RefusedError: when there is no function.
    """
    functions = [node for node in parse_module(source).body if isinstance(node, ast.FunctionDef)]
    named = [node for node in functions if node.name == "run"]
    if not functions:
        raise RefusedError("the reference defines no function")
    node = (named or functions)[-1]
    arguments = node.args
    positional = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args)]
    first_default = len(positional) - len(arguments.defaults)
    keyword = list(zip((item.arg for item in arguments.kwonlyargs), arguments.kw_defaults, strict=True))
    return Function(
        name=node.name,
        line=node.lineno,
        required=(*positional[:first_default], *(name for name, default in keyword if default is None)),
        defaulted=(
            *positional[first_default:],
            *(name for name, default in keyword if default is not None),
            *_read_from_keywords(node),
        ),
        positional=tuple(positional),
        takes_any=arguments.kwarg is not None,
        returned_count=_count_returned(node),
    )


def _read_from_keywords(function: ast.FunctionDef) -> list[str]:
    """Name what a function takes out of its `**kwargs` by `kwargs.get("name")` or `kwargs["name"]`."""
    rest = function.args.kwarg.arg if function.args.kwarg else None
    found: list[str] = []
    for node in ast.walk(function) if rest else ():
        target: ast.expr | None = None
        key: ast.expr | None = None
        if isinstance(node, ast.Subscript):
            target, key = node.value, node.slice
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get":
            target, key = node.func.value, node.args[0] if node.args else None
        is_rest = isinstance(target, ast.Name) and target.id == rest
        if is_rest and isinstance(key, ast.Constant) and isinstance(key.value, str) and key.value.isidentifier():
            found.append(key.value)
    return list(dict.fromkeys(found))


def _count_returned(function: ast.FunctionDef) -> int | None:
    """Count the values that every `return` of a function gives; a call or a name may be a tuple of any size."""
    counts = {_count_value(node.value) for node in _returns(function)}
    if not counts:
        return 0
    return counts.pop() if len(counts) == 1 else None


def _returns(scope: ast.AST) -> list[ast.Return]:
    found: list[ast.Return] = []
    for node in ast.iter_child_nodes(scope):
        if isinstance(node, ast.Return):
            found.append(node)
        elif not isinstance(node, (ast.FunctionDef, ast.Lambda, ast.ClassDef)):
            found += _returns(node)
    return found


def _count_value(value: ast.expr | None) -> int | None:
    if value is None:
        return 0
    if isinstance(value, ast.Tuple):
        return None if any(isinstance(item, ast.Starred) for item in value.elts) else len(value.elts)
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute):
        return 1  # a method of a tensor or of torch, such as `x.to(dtype)`
    return None


def find_undefined(source: str) -> tuple[str, ...]:
    """Name what a source uses and neither defines, imports, nor has from Python."""
    table = symtable.symtable(source, "reference", "exec")
    top = {
        symbol.get_name()
        for symbol in table.get_symbols()
        if symbol.is_assigned() or symbol.is_imported() or symbol.is_namespace()
    }
    used = {symbol.get_name() for symbol in table.get_symbols() if symbol.is_referenced()}
    pending = table.get_children()
    while pending:
        scope = pending.pop()
        pending += scope.get_children()
        used |= {item.get_name() for item in scope.get_symbols() if item.is_global() and item.is_referenced()}
    return tuple(sorted(name for name in used - top if not hasattr(builtins, name)))


def function_dump(source: str, name: str) -> str | None:
    """Write a function in a form that is equal for equal code, whatever its comments; None when it is not there."""
    tree = parse_module(source)
    found = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
    return ast.dump(found[-1]) if found else None


def last_import_line(source: str) -> int:
    """Return the last line of the leading imports, 0 when there are none."""
    last = 0
    for node in parse_module(source).body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            last = node.end_lineno or node.lineno
        elif not isinstance(node, ast.Expr):
            break
    return last
