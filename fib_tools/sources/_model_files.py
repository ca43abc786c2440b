"""SGLang's model files: which architectures they serve, and which projections they fuse and cut."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import NamedTuple

from fib_tools.sources._exports import import_base, statements
from fib_tools.sources.packages import Package, SourceFile, list_files, parse_files

__all__ = ["Linear", "ModelFile", "Stacked", "read_model_files"]

_FOLDER = "sglang/srt/models/"
# Where TP cuts a weight, its layer's class says how; an embedding and a head are cut by the vocabulary.
_CUT = re.compile(r"Parallel\w*Linear$|^ReplicatedLinear$|^ParallelLMHead$|^VocabParallelEmbedding$")
_STACKED = re.compile(r"(?<!bitsandbytes_)(?:stacked_params_mapping|STACKED_PARAMS_MAPPING)$")


class Linear(NamedTuple):
    """An attribute of a module class and the linear layer it is given."""

    line: int
    class_name: str
    attribute: str
    linear: str


class Stacked(NamedTuple):
    """A weight of the checkpoint that is loaded into a part of a fused parameter."""

    line: int
    parameter: str
    weight: str
    shard: str


class ModelFile(NamedTuple):
    """What one model file says."""

    path: str
    architectures: tuple[tuple[str, int], ...]
    """Class names with the lines of their definitions."""
    imports: tuple[str, ...]
    """Other model files it takes classes from."""
    linears: tuple[Linear, ...]
    stacked: tuple[Stacked, ...]


def read_model_files(package: Package) -> list[ModelFile]:
    """Read all model files of SGLang, those that say nothing left out."""
    files = [file for file in list_files(package) if file.path.startswith(_FOLDER)]
    paths = {file.module: file.path for file in files}
    found = [_read(file, tree, paths) for file, tree in parse_files(package, files) if tree is not None]
    return [file for file in found if file.architectures or file.linears or file.stacked]


def _read(file: SourceFile, tree: ast.Module, paths: dict[str, str]) -> ModelFile:
    imported: set[str] = set()
    linears: set[Linear] = set()
    stacked: set[Stacked] = set()
    for owner, node in _walk(tree):
        if isinstance(node, ast.ImportFrom):
            base = import_base(file, node)
            candidates = [base, *(f"{base}.{alias.name}" for alias in node.names)]
            imported.update(paths[module] for module in candidates if module in paths)
        elif isinstance(node, ast.Assign):
            linears.update(_linears(owner, node))
            stacked.update(_stacked(node))
    return ModelFile(
        path=file.path,
        architectures=tuple(sorted(_architectures(tree))),
        imports=tuple(sorted(imported - {file.path})),
        linears=tuple(sorted(linears)),
        stacked=tuple(sorted(stacked)),
    )


def _walk(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """All nodes with the name of the outermost class around them."""
    for node in ast.iter_child_nodes(tree):
        owner = node.name if isinstance(node, ast.ClassDef) else ""
        for inner in ast.walk(node):
            yield owner, inner


def _architectures(tree: ast.Module) -> Iterator[tuple[str, int]]:
    lines: dict[str, int] = {}
    for node in statements(tree.body):
        if isinstance(node, ast.ClassDef):
            lines[node.name] = node.lineno
    for node in statements(tree.body):
        if isinstance(node, (ast.Assign, ast.AugAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(target, ast.Name) and target.id == "EntryClass" for target in targets):
                for name in ast.walk(node.value):
                    if isinstance(name, ast.Name):
                        yield name.id, lines.get(name.id, node.lineno)


def _linears(owner: str, node: ast.Assign) -> Iterator[Linear]:
    for target in node.targets:
        if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self":
            for name in _built_classes(node.value):
                if _CUT.search(name):
                    yield Linear(node.lineno, owner, target.attr, name)


def _built_classes(value: ast.expr) -> Iterator[str]:
    if isinstance(value, ast.IfExp):
        yield from _built_classes(value.body)
        yield from _built_classes(value.orelse)
    elif isinstance(value, ast.Call):
        yield value.func.id if isinstance(value.func, ast.Name) else getattr(value.func, "attr", "")


def _stacked(node: ast.Assign) -> Iterator[Stacked]:
    names = [getattr(target, "id", getattr(target, "attr", "")) for target in node.targets]
    if not any(_STACKED.search(name) for name in names) or not isinstance(node.value, (ast.List, ast.Tuple)):
        return
    for row in node.value.elts:
        values = [cell.value for cell in getattr(row, "elts", ()) if isinstance(cell, ast.Constant)]
        if len(values) == 3:
            yield Stacked(row.lineno, str(values[0]).strip("."), str(values[1]).strip("."), str(values[2]))
