"""FlashInfer's traced APIs, read off its source without importing it.

A traced API is a function or method decorated with `@flashinfer_api(trace=<template or dispatcher>)`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from fib_tools.errors import MissingDependencyError, SourceError
from fib_tools.model.base import Model
from fib_tools.sources.cache import load_or_build
from fib_tools.sources.packages import Package, SourceFile, find_package, list_files, parse_files, read_files

__all__ = ["Parameter", "PublicFunction", "TracedApi", "TracedApis", "load_traced_apis"]

# Raised whenever the analysis finds more or other things in the same source.
_ANALYSIS = 1
_DECORATORS = {"flashinfer_api": False, "flashinfer_experimental_api": True}
_DECORATED = re.compile(rb"flashinfer_(?:experimental_)?api\b")
_ALIAS_TABLE = "_TRACE_FI_API_ALIASES"
# A dispatcher is a function among the templates: a public one, or one that a factory of dispatchers made.
_DISPATCHER = re.compile(rb"^def ([a-z]\w*)\(|^(\w+) = \w*dispatch\w*\(", re.MULTILINE)
_TEXT_LIMIT = 200


class Parameter(Model):
    """One parameter of a traced API's signature."""

    name: str
    kind: str
    """`positional`, `keyword`, `*` or `**`."""
    annotation: str | None = None
    default: str | None = None
    """The default's source text; none when the parameter is required."""


class PublicFunction(Model):
    """A function or method that FlashInfer publishes as part of its API."""

    fi_api: str
    """The name that tags and trace templates use."""
    module: str
    """Where it is defined."""
    name: str
    """Its qualified name in the module, such as `BatchAttention.run`."""
    file: str
    line: int
    is_experimental: bool = False


class TracedApi(PublicFunction):
    """A published function that has a trace template."""

    template: str
    """The name of the template, or of the function that picks one by the call's arguments."""
    is_dispatcher: bool = False
    parameters: tuple[Parameter, ...] = ()


class TracedApis(Model):
    """What one version of FlashInfer can trace."""

    version: str
    commit: str | None = None
    apis: tuple[TracedApi, ...]
    untraced: tuple[PublicFunction, ...] = ()
    """Published functions without a template."""
    unreadable: tuple[str, ...] = ()
    """Files that could not be parsed."""

    def find(self, fi_api: str) -> TracedApi | None:
        """Find a traced API by its full name."""
        return next((api for api in self.apis if api.fi_api == fi_api), None)

    def get(self, fi_api: str) -> TracedApi:
        """As `find`, for an API that must be traced.

        Raises:
            SourceError: this version has no template for it.
        """
        api = self.find(fi_api)
        if api is None:
            raise SourceError(f"no trace template for {fi_api!r}", where=f"flashinfer {self.version}")
        return api


def load_traced_apis(root: Path | None = None, *, cache_dir: Path | None = None) -> TracedApis:
    """Read the traced APIs of the installed FlashInfer, or of the one that a folder holds.

    Raises:
        MissingDependencyError: FlashInfer is not installed.
        SourceError: the folder holds no FlashInfer.
    """
    package = get_package(root)
    path = None
    if cache_dir is not None:
        path = cache_dir / f"flashinfer-{package.version}-{package.fingerprint[:16]}-{_ANALYSIS}.json"
    return load_or_build(TracedApis, path, lambda: _scan(package))


def get_package(root: Path | None = None) -> Package:
    """Locate FlashInfer's source; raises as `load_traced_apis` does."""
    package = find_package("flashinfer", root)
    if package is None and root is None:
        raise MissingDependencyError(
            "flashinfer-python", purpose="reading its trace templates", install="pip install flashinfer-python"
        )
    if package is None:
        raise SourceError(
            "no flashinfer package here",
            where=str(root),
            todo="name the package's folder, a clone or an unpacked wheel",
        )
    return package


def _dispatcher_names(text: bytes) -> list[str]:
    return [(match[1] or match[2]).decode() for match in _DISPATCHER.finditer(text)]


class _Published(NamedTuple):
    function: ast.FunctionDef | ast.AsyncFunctionDef
    name: str
    is_experimental: bool
    template: str


def _scan(package: Package) -> TracedApis:
    files = list_files(package)
    aliases: dict[str, str] = {}
    published: list[tuple[SourceFile, _Published]] = []
    unreadable: list[str] = []
    for file, tree in parse_files(package, files, containing=_DECORATED):
        if tree is None:
            unreadable.append(file.path)
            continue
        aliases.update(_read_aliases(tree))
        imported = _imported_names(tree)
        published += [
            (file, found._replace(template=imported.get(found.template, found.template)))
            for found in _find_published(tree)
        ]
    templates = [file for file in files if file.path.startswith("flashinfer/trace/")]
    dispatchers = {name for text in read_files(package, templates) for name in _dispatcher_names(text)}
    return _collect(package, published, aliases=aliases, dispatchers=dispatchers, unreadable=tuple(unreadable))


def _collect(
    package: Package,
    published: list[tuple[SourceFile, _Published]],
    *,
    aliases: dict[str, str],
    dispatchers: set[str],
    unreadable: tuple[str, ...],
) -> TracedApis:
    apis: list[TracedApi] = []
    untraced: list[PublicFunction] = []
    for file, found in published:
        full_name = f"{file.module}.{found.name}"
        function = PublicFunction(
            fi_api=aliases.get(full_name, full_name),
            module=file.module,
            name=found.name,
            file=file.path,
            line=found.function.lineno,
            is_experimental=found.is_experimental,
        )
        if not found.template:
            untraced.append(function)
        else:
            apis.append(
                TracedApi(
                    **dict(function),
                    template=found.template,
                    is_dispatcher=found.template in dispatchers,
                    parameters=tuple(_parameters(found.function.args)),
                )
            )
    return TracedApis(
        version=package.version,
        commit=package.commit,
        apis=tuple(sorted(apis, key=lambda api: api.fi_api)),
        untraced=tuple(sorted(untraced, key=lambda function: function.fi_api)),
        unreadable=unreadable,
    )


def _find_published(scope: ast.AST, prefix: str = "") -> Iterator[_Published]:
    """Functions and methods with one of FlashInfer's decorators; conditional definitions count, nested ones too."""
    for node in ast.iter_child_nodes(scope):
        if isinstance(node, ast.ClassDef):
            yield from _find_published(node, f"{prefix}{node.name}.")
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for decorator in node.decorator_list:
                call = decorator if isinstance(decorator, ast.Call) else None
                name = _last_name(call.func if call else decorator)
                if name in _DECORATORS:
                    template = _template_name(call) if call else ""
                    yield _Published(node, prefix + node.name, _DECORATORS[name], template)
            yield from _find_published(node, f"{prefix}{node.name}.<locals>.")
        elif isinstance(node, ast.stmt):
            yield from _find_published(node, prefix)


def _last_name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def _template_name(call: ast.Call) -> str:
    for keyword in call.keywords:
        if keyword.arg == "trace" and not (isinstance(keyword.value, ast.Constant) and keyword.value.value is None):
            return _last_name(keyword.value) or ast.unparse(keyword.value)[:_TEXT_LIMIT]
    return ""


def _imported_names(tree: ast.Module) -> dict[str, str]:
    """The local names that stand for another name in the module they come from."""
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return {alias.asname: alias.name for node in imports for alias in node.names if alias.asname}


def _read_aliases(tree: ast.Module) -> dict[str, str]:
    """FlashInfer's own table of APIs that moved and kept their name."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and [_last_name(target) for target in node.targets] == [_ALIAS_TABLE]:
            return dict(_string_pairs(node.value))
    return {}


def _string_pairs(node: ast.expr) -> Iterator[tuple[str, str]]:
    for key, value in zip(node.keys, node.values, strict=True) if isinstance(node, ast.Dict) else ():
        if isinstance(key, ast.Constant) and isinstance(value, ast.Constant):
            yield str(key.value), str(value.value)


def _parameters(arguments: ast.arguments) -> Iterator[Parameter]:
    positional = [*arguments.posonlyargs, *arguments.args]
    required = len(positional) - len(arguments.defaults)
    for index, argument in enumerate(positional):
        yield _parameter(argument, "positional", arguments.defaults[index - required] if index >= required else None)
    if arguments.vararg:
        yield _parameter(arguments.vararg, "*", None)
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        yield _parameter(argument, "keyword", default)
    if arguments.kwarg:
        yield _parameter(arguments.kwarg, "**", None)


def _parameter(argument: ast.arg, kind: str, default: ast.expr | None) -> Parameter:
    return Parameter(
        name=argument.arg,
        kind=kind,
        annotation=ast.unparse(argument.annotation)[:_TEXT_LIMIT] if argument.annotation else None,
        default=ast.unparse(default)[:_TEXT_LIMIT] if default else None,
    )
