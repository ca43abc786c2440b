"""What a source does, apart from how it is written: comments, layout, annotations and the names of local variables."""

from __future__ import annotations

import ast
import hashlib

from fib_tools.evaluate.rules.native_tokens import read_tokens
from fib_tools.model.solution import Language

__all__ = ["digest_source"]

_NATIVE = frozenset({Language.CPP, Language.CUDA})
_Function = (ast.FunctionDef, ast.AsyncFunctionDef)


def digest_source(source: str, language: Language) -> str:
    """Hash a source; a Python text that cannot be parsed is taken as it stands."""
    if language in _NATIVE:
        text = " ".join(token.text for token in read_tokens(source))
    else:
        try:
            text = _dump(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            text = source
    return hashlib.sha256(text.encode()).hexdigest()


def _dump(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, (*_Function, ast.ClassDef, ast.Module)):
            _drop_docstring(node)
        if isinstance(node, _Function):
            _drop_hints(node)
            _rename(node)
    return ast.dump(tree)


def _drop_docstring(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module) -> None:
    first = node.body[0] if node.body else None
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        node.body[:1] = []


def _drop_hints(node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
    """Drop what says types to readers; `constexpr` says something to Triton."""
    node.returns = None
    for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs):
        if argument.annotation is not None and "constexpr" not in ast.dump(argument.annotation):
            argument.annotation = None


def _rename(function: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
    """Number the local variables in the order of their appearance; arguments can be passed by name, and keep theirs."""
    names: dict[str, str] = {}
    for node in ast.walk(function):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.setdefault(node.id, f"_{len(names)}")
    shared = {
        name for node in ast.walk(function) if isinstance(node, (ast.Global, ast.Nonlocal)) for name in node.names
    }
    for node in ast.walk(function):
        if isinstance(node, ast.Name) and node.id in names and node.id not in shared:
            node.id = names[node.id]
