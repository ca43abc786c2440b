"""What the Python sources of a Solution must not do, read off their syntax trees; nothing is run."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterable

from fib_tools.errors import FormatError
from fib_tools.evaluate.rules.rules import RULES, Violation
from fib_tools.evaluate.rules.source_aliases import Aliases
from fib_tools.evaluate.rules.source_native import check_native
from fib_tools.evaluate.rules.source_tables import (
    ALLOWED_DUNDERS,
    ALLOWED_ROOTS,
    BROAD_ERRORS,
    COMPILER_OPTIONS,
    DENIED_BUILTINS,
    DENIED_NAMES,
    DENIED_PATHS,
    FRAME_ATTRIBUTES,
    HARNESS_ROOTS,
    LIBRARY_ROOTS,
    OUTSIDE_MODULES,
    PATCHING_METHODS,
    TENSOR_CLASSES,
)

__all__ = ["check_python"]

_ATTRIBUTE_CALLS = frozenset({"getattr", "setattr", "delattr", "hasattr"})
_INLINE_BUILDS = frozenset({"torch.utils.cpp_extension.load_inline", "tvm_ffi.cpp.load_inline"})
_INLINE_TEXTS = frozenset({"cpp_sources", "cuda_sources", "cpp_source", "cuda_source"})
_INLINE_ARGUMENTS = _INLINE_TEXTS | {
    *("name", "functions", "extra_cflags", "extra_cuda_cflags", "with_cuda", "verbose"),
    *("no_implicit_headers", "use_pch", "keep_intermediates"),
}


def check_python(path: str, text: str, *, own_modules: frozenset[str], may_use_library: bool) -> list[Violation]:
    """Find every breach in one Python source.

    Raises:
        FormatError: the text is not Python.
    """
    tree = _parse(path, text)
    checker = _Checker(path, tree, own_modules, may_use_library=may_use_library)
    try:
        checker.visit(tree)
    except RecursionError as error:
        raise FormatError("nested too deeply to be read", where=path, todo="write shorter expressions") from error
    return checker.violations


def _parse(path: str, text: str) -> ast.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a wrong escape in a docstring is no fault of the kernel
            return ast.parse(text, filename=path)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None)
        where = f"{path}:{line}" if line else path
        raise FormatError(f"not Python: {getattr(error, 'msg', error)}", where=where, todo="correct it") from error


class _Checker(ast.NodeVisitor):
    """Walks one tree and gathers breaches."""

    def __init__(self, path: str, tree: ast.Module, own_modules: frozenset[str], *, may_use_library: bool) -> None:
        self.violations: list[Violation] = []
        self._path = path
        self._aliases = Aliases(tree)
        self._own_modules = own_modules
        self._may_use_library = may_use_library
        self._locals: list[frozenset[str]] = []
        self._docstrings = frozenset(_docstrings(tree))
        self._texts = _constant_texts(tree)
        self._assigned = frozenset(_assigned_names(tree))

    def _report(self, rule: str, node: ast.AST, found: str, todo: str) -> None:
        line = getattr(node, "lineno", 1)
        violation = Violation(rule=RULES[rule], detail=f"{self._path}:{line}: {found}; {todo}")
        if violation not in self.violations:
            self.violations.append(violation)

    def visit_Import(self, node: ast.Import) -> None:
        """Check `import a.b`."""
        for alias in node.names:
            self._check_module(node, alias.name)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        """Check `from a import b`."""
        if node.level:
            return
        module = node.module or ""
        self._check_module(node, module)
        if module.partition(".")[0] in self._own_modules:
            return
        for alias in node.names:
            if alias.name == "*":
                self._report("source-import", node, f"takes all names of {module}", "name those that you use")
            else:
                self._check_path(node, f"{module}.{alias.name}")
                self._check_attribute_name(node, alias.name)

    def _check_module(self, node: ast.AST, module: str) -> None:
        root = module.partition(".")[0]
        if root in HARNESS_ROOTS:
            self._report("source-harness", node, f"imports {module}", "a kernel knows nothing of its evaluator")
        elif root in LIBRARY_ROOTS:
            if not self._may_use_library:
                self._report("source-library", node, f"imports {module}", "write the kernel yourself")
        elif root not in self._own_modules and root not in ALLOWED_ROOTS:
            self._report(
                "source-import",
                node,
                f"imports {module}, which a kernel has no use for",
                "compute with torch, Triton or a C++/CUDA source",
            )
        self._check_path(node, module)

    def _check_path(self, node: ast.AST, path: str) -> None:
        parts = path.split(".")
        for length in range(2, len(parts) + 1):
            prefix = ".".join(parts[:length])
            rule = DENIED_PATHS.get(prefix)
            if rule and not (rule == "source-library" and self._may_use_library):
                self._report(rule, node, f"uses {prefix}", "do without it")
                return
        if parts[0] in ALLOWED_ROOTS | LIBRARY_ROOTS and (outside := OUTSIDE_MODULES.intersection(parts[1:])):
            name = min(outside)
            self._report("source-import", node, f"reaches {name} through {parts[0]}", "do without it")

    def _check_attribute_name(self, node: ast.AST, name: str) -> None:
        is_dunder = name.startswith("__") and name.endswith("__") and len(name) > 4
        if (is_dunder and name not in ALLOWED_DUNDERS) or name in FRAME_ATTRIBUTES:
            self._report("source-dynamic", node, f"uses the attribute {name}", "do without it")

    def visit_Attribute(self, node: ast.Attribute) -> None:
        """Check an attribute that is read, set or deleted."""
        self._check_attribute_name(node, node.attr)
        for path in sorted(self._aliases.resolve(node)):
            self._check_path(node, path)
        if not isinstance(node.ctx, ast.Load):
            self._check_store(node, node.value, node.attr)
        self.generic_visit(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        """Check an element that is set in something imported."""
        if not isinstance(node.ctx, ast.Load):
            self._check_store(node, node.value, None)
        self.generic_visit(node)

    def _check_store(self, node: ast.AST, target: ast.expr, attribute: str | None) -> None:
        owners = sorted(self._aliases.resolve(target))
        owners = [owner for owner in owners if not f"{owner}.".startswith(COMPILER_OPTIONS)]
        if not owners and isinstance(target, ast.Call) and isinstance(target.func, ast.Name):
            owners = [f"{target.func.id}(...)"] if target.func.id == "type" else []
        if owners:
            what = f"{owners[0]}.{attribute}" if attribute else f"an element of {owners[0]}"
            self._report("source-patch", node, f"changes {what}", "leave what you imported as it is")

    def visit_Call(self, node: ast.Call) -> None:
        """Check a call of a function that takes names as text, swallows errors, makes classes or compiles C++."""
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name in _ATTRIBUTE_CALLS:
            self._check_attribute_call(node, name)
            for child in (*node.args, *(keyword.value for keyword in node.keywords)):
                self.visit(child)
            return
        if name == "type" and len(node.args) > 1:
            self._report("source-dynamic", node, "makes a class with type()", "write a class statement")
        paths = self._aliases.resolve(node.func)
        if "contextlib.suppress" in paths and any(self._is_broad(argument) for argument in node.args):
            self._report_fallback(node, "suppresses every error")
        if paths & _INLINE_BUILDS:
            self._check_inline_build(node)
        self.generic_visit(node)

    def _check_attribute_call(self, node: ast.Call, name: str) -> None:
        attribute = node.args[1] if len(node.args) > 1 else None
        if not (isinstance(attribute, ast.Constant) and isinstance(attribute.value, str)):
            self._report("source-dynamic", node, f"calls {name} with a computed name", "write the attribute itself")
            return
        self._check_attribute_name(node, attribute.value)
        for path in sorted(self._aliases.resolve(node.args[0])):
            self._check_path(node, f"{path}.{attribute.value}")
        if name in {"setattr", "delattr"}:
            self._check_store(node, node.args[0], attribute.value)

    def _check_inline_build(self, node: ast.Call) -> None:
        todo = 'pass C++ and CUDA text as literals, or write a Solution of language "cuda"'
        if len(node.args) > 1 or any(keyword.arg not in _INLINE_ARGUMENTS for keyword in node.keywords):
            self._report("source-dynamic", node, "compiles with unusual arguments", todo)
        for keyword in node.keywords:
            texts = [literal for part in _list_items(keyword.value) for literal in [self._find_text(part)]]
            if keyword.arg not in _INLINE_TEXTS:
                continue
            if None in texts:
                self._report("source-dynamic", node, f"compiles {keyword.arg} that is computed", todo)
            for text in filter(None, texts):
                self.violations += check_native(f"{self._path}:{node.lineno}:{keyword.arg}", text)

    def _find_text(self, node: ast.expr) -> str | None:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return node.value
        return self._texts.get(node.id) if isinstance(node, ast.Name) else None

    def visit_Name(self, node: ast.Name) -> None:
        """Check a builtin that leads to code, files or names at run time, also where it is only mentioned."""
        if node.id in DENIED_NAMES:
            self._report("source-dynamic", node, f"uses {node.id}", "do without it")
        if isinstance(node.ctx, ast.Store):
            self._check_attribute_name(node, node.id)
        is_local = any(node.id in names for names in self._locals)
        if isinstance(node.ctx, ast.Load) and node.id in DENIED_BUILTINS | _ATTRIBUTE_CALLS and not is_local:
            self._report("source-dynamic", node, f"uses {node.id}", "write what it would do as plain code")

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        """Check a function, with the names that it binds itself."""
        self._visit_function(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        """Check an async function."""
        self._visit_function(node)

    def visit_Lambda(self, node: ast.Lambda) -> None:
        """Check a lambda."""
        self._visit_function(node)

    def _visit_function(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> None:
        if not isinstance(node, ast.Lambda):
            if node.name in PATCHING_METHODS:
                self._report("source-patch", node, f"defines {node.name}", "return plain tensors")
            else:
                self._check_attribute_name(node, node.name)
            for outer in (*node.decorator_list, node.returns):
                if outer is not None:
                    self.visit(outer)
        self.visit(node.args)
        self._locals.append(_bound_names(node))
        for statement in node.body if isinstance(node.body, list) else [node.body]:
            self.visit(statement)
        self._locals.pop()

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        """Check what a class derives from."""
        for base in node.bases:
            if self._aliases.resolve(base) & TENSOR_CLASSES:
                self._report("source-patch", node, f"{node.name} derives from Tensor", "return plain tensors")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        """Check a text for the name of an evaluator."""
        if isinstance(node.value, str) and id(node) not in self._docstrings:
            named = [name for name in sorted(HARNESS_ROOTS) if name in node.value]
            if named:
                self._report("source-harness", node, f"names {named[0]}", "a kernel knows nothing of its evaluator")

    def visit_Try(self, node: ast.Try) -> None:
        """Check whether errors are swallowed."""
        self._check_try(node)

    def visit_TryStar(self, node: ast.AST) -> None:
        """Check the handlers of `except*`."""
        self._check_try(node)

    def _check_try(self, node: ast.AST) -> None:
        for handler in getattr(node, "handlers", ()):
            if (handler.type is None or self._is_broad(handler.type)) and not _raises(handler.body):
                self._report_fallback(handler, "catches every error and carries on")
        if any(isinstance(inner, ast.Return) for step in getattr(node, "finalbody", ()) for inner in ast.walk(step)):
            self._report_fallback(node, "returns from finally, which swallows every error")
        self.generic_visit(node)

    def _is_broad(self, errors: ast.expr) -> bool:
        names = {inner.id for inner in ast.walk(errors) if isinstance(inner, ast.Name)}
        names |= {inner.attr for inner in ast.walk(errors) if isinstance(inner, ast.Attribute)}
        return bool(names & (BROAD_ERRORS | self._assigned))  # a name that was assigned may stand for any error

    def _report_fallback(self, node: ast.AST, found: str) -> None:
        self._report("source-fallback", node, found, "let the error out, or catch the one that you expect")

    def visit_MatchClass(self, node: ast.MatchClass) -> None:
        """Check attributes that a pattern takes out."""
        for name in node.kwd_attrs:
            self._check_attribute_name(node, name)
        self.generic_visit(node)

    def visit_Match(self, node: ast.Match) -> None:
        """Check that nothing imported is taken apart by a pattern."""
        if self._aliases.resolve(node.subject):
            self._report("source-dynamic", node, "matches on something imported", "write the attribute itself")
        self.generic_visit(node)


def _docstrings(tree: ast.Module) -> Iterable[int]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                yield id(first.value)


def _assigned_names(tree: ast.Module) -> Iterable[str]:
    return (node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load))


def _constant_texts(tree: ast.Module) -> dict[str, str]:
    """Find the names that are bound once in the file, at its top level, to a literal text."""
    bound = list(_assigned_names(tree))
    texts: dict[str, str] = {}
    for statement in tree.body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=str(text))) if bound.count(name) == 1:
                texts[name] = text
            case _:
                pass
    return texts


def _list_items(node: ast.expr) -> list[ast.expr]:
    return node.elts if isinstance(node, (ast.List, ast.Tuple)) else [node]


def _bound_names(function: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> frozenset[str]:
    """Find the names that are local to a function, so that they cannot mean a builtin."""
    names: set[str] = set()
    not_local: set[str] = set()
    pending: list[ast.AST] = [function.args]
    pending += function.body if isinstance(function.body, list) else [function.body]
    while pending:
        node = pending.pop()
        match node:
            case ast.arg(arg=name) | ast.Name(id=name, ctx=ast.Store()):
                names.add(name)
            case ast.Global(names=listed) | ast.Nonlocal(names=listed):
                not_local.update(listed)
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
                continue  # what an inner scope binds is its own
            case ast.Lambda() | ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp():
                continue
            case _:
                pass
        pending += ast.iter_child_nodes(node)
    return frozenset(names - not_local)


def _raises(body: list[ast.stmt]) -> bool:
    return any(isinstance(statement, ast.Raise) for statement in body)
