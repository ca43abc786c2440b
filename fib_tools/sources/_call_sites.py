"""Where SGLang calls FlashInfer's traced APIs: directly, through its own re-exports, on wrapper objects, or by handing them on."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator

from fib_tools.sources._exports import Definition, ExportGraph
from fib_tools.sources._values import FileValues
from fib_tools.sources.flashinfer import TracedApis
from fib_tools.sources.packages import Package, SourceFile, list_files, parse_files

__all__ = ["SGL_KERNEL_APIS", "CallSites", "find_call_sites"]

# sgl-kernel compiles these from FlashInfer's own headers and publishes them under these names.
SGL_KERNEL_APIS = {
    "fused_add_rmsnorm": "flashinfer.norm.fused_add_rmsnorm",
    "gelu_and_mul": "flashinfer.activation.gelu_and_mul",
    "gelu_tanh_and_mul": "flashinfer.activation.gelu_tanh_and_mul",
    "gemma_fused_add_rmsnorm": "flashinfer.norm.gemma_fused_add_rmsnorm",
    "gemma_rmsnorm": "flashinfer.norm.gemma_rmsnorm",
    "min_p_sampling_from_probs": "flashinfer.sampling.min_p_sampling_from_probs",
    "rmsnorm": "flashinfer.norm.rmsnorm",
    "silu_and_mul": "flashinfer.activation.silu_and_mul",
    "top_k_renorm_prob": "flashinfer.sampling.top_k_renorm_probs",
    "top_k_top_p_sampling_from_probs": "flashinfer.sampling.top_k_top_p_sampling_from_probs",
    "top_p_renorm_prob": "flashinfer.sampling.top_p_renorm_probs",
}
# The old halves of the wrappers' interface call these; newer FlashInfer keeps them as thin methods.
_METHOD_ALIASES = {"forward": "run", "forward_return_lse": "run", "run_return_lse": "run", "begin_forward": "plan"}
_ROUNDS = 3
_SKIPPED = ("sglang/test/",)
_IMPORTED = re.compile(
    rb"(?:import|from)\s+(?:flashinfer|sgl_kernel)\b|(?:LazyImport|import_module)\(\s*[\"'](?:flashinfer|sgl_kernel)\b"
)

Sites = dict[str, set[tuple[str, int]]]


class CallSites:
    """The call sites gathered so far, by API."""

    def __init__(self) -> None:
        self.direct: Sites = defaultdict(set)
        self.through_sgl_kernel: Sites = defaultdict(set)


def find_call_sites(package: Package, graph: ExportGraph, traced: TracedApis) -> CallSites:
    """Search SGLang's source for uses of FlashInfer's traced APIs."""
    return _Search(package, graph, traced).run()


class _Search:
    def __init__(self, package: Package, graph: ExportGraph, traced: TracedApis) -> None:
        self._package = package
        self._flashinfer = graph
        self._sglang = ExportGraph(package)
        self._apis = {f"{api.module}.{api.name}": api.fi_api for api in traced.apis}
        self._methods = {api.name.rpartition(".")[2] for api in traced.apis if "." in api.name}
        self._exported: dict[Definition, frozenset[str]] = {}
        self._exported_names: set[str] = set()
        self._sites = CallSites()

    def run(self) -> CallSites:
        files = [file for file in list_files(self._package) if not file.path.startswith(_SKIPPED)]
        pattern = _IMPORTED
        # The first round learns what SGLang's own modules re-export, the next ones find who uses that.
        for _ in range(_ROUNDS):
            known = set(self._exported_names)
            for file, tree in parse_files(self._package, files, containing=pattern):
                if tree is not None:
                    self._search_file(file, tree)
            new = self._exported_names - known
            if not new:
                break
            pattern = _importing(new)
        return self._sites

    def _search_file(self, file: SourceFile, tree: ast.Module) -> None:
        values = FileValues(file, tree, is_class=self._is_class)
        calls = [node for node in values.nodes if isinstance(node, ast.Call)]
        passed_on = {id(node) for parent in values.nodes for node in _handed_on(parent)}
        for node in values.nodes:
            if isinstance(node, ast.Call):
                self._note_uses(file, node.lineno, self._called(values, node))
            elif isinstance(node, (ast.Name, ast.Attribute)) and id(node) in passed_on:
                self._note_uses(file, node.lineno, values.evaluate(node))
        self._note_strays(file, calls, values)
        self._note_exports(file, tree, values)

    def _note_strays(self, file: SourceFile, calls: list[ast.Call], values: FileValues) -> None:
        """An instance that left its file on someone else's attribute may come back as anything this file calls."""
        if not values.built:
            return
        used = {value.rpartition(".")[0] for call in calls for value in values.evaluate(call.func)}
        for call in calls:
            if isinstance(call.func, ast.Attribute) and not values.evaluate(call.func.value):
                self._note_uses(file, call.lineno, (f"{instance}.{call.func.attr}" for instance in values.built - used))

    def _called(self, values: FileValues, call: ast.Call) -> Iterator[str]:
        for value in values.evaluate(call.func):
            yield f"{value}.__call__" if value.endswith("()") else value

    def _note_uses(self, file: SourceFile, line: int, values: Iterable[str]) -> None:
        for value in values:
            for target in self._targets(value):
                if target.startswith("sgl_kernel."):
                    api = SGL_KERNEL_APIS.get(target.removeprefix("sgl_kernel."))
                    found = self._sites.through_sgl_kernel
                else:
                    api = self._find_api(target)
                    found = self._sites.direct
                if api:
                    found[api].add((file.path, line))

    def _find_api(self, target: str) -> str | None:
        owner, separator, method = target.rpartition("().")
        definition = self._flashinfer.resolve(owner if separator else target)
        if definition is None:
            return None
        if not separator:
            return self._apis.get(f"{definition.module}.{definition.name}")
        for name in (method, _METHOD_ALIASES.get(method, method)):
            found = self._flashinfer.find_method(definition, name)
            if found in self._apis:
                return self._apis[found]
        return None

    def _is_class(self, value: str) -> bool:
        return any(self._is_traced_class(target) for target in self._targets(value))

    def _is_traced_class(self, target: str) -> bool:
        """Tell whether a name means a class of FlashInfer with a traced method, its own or a base's."""
        if not target.startswith("flashinfer.") or "()" in target:
            return False
        definition = self._flashinfer.resolve(target)
        if definition is None or not definition.name:
            return False
        return any(self._flashinfer.find_method(definition, method) in self._apis for method in self._methods)

    def _targets(self, value: str) -> Iterator[str]:
        """The names outside SGLang that a value means; a name of SGLang means what its module bound to it."""
        if value.startswith(("flashinfer.", "sgl_kernel.")):
            yield value
        elif value.startswith("sglang."):
            owner, instance, rest = value.partition("()")
            if owner.rpartition(".")[2] in self._exported_names:
                definition = self._sglang.resolve(owner)
                for target in self._exported.get(definition, ()) if definition else ():
                    yield target + instance + rest

    def _note_exports(self, file: SourceFile, tree: ast.Module, values: FileValues) -> None:
        """Remember the module's names that it binds itself to a part of FlashInfer, other modules may import them."""
        for name in _bound_names(tree):
            targets = frozenset(target for value in values.of(name) for target in self._targets(value))
            useful = {target for target in targets if self._is_export(target)}
            if useful:
                key = Definition(file.module, name)
                self._exported[key] = self._exported.get(key, frozenset()) | useful
                self._exported_names.add(name)

    def _is_export(self, target: str) -> bool:
        if target.startswith("sgl_kernel."):
            return target.removeprefix("sgl_kernel.") in SGL_KERNEL_APIS
        return "()" not in target and (self._find_api(target) is not None or self._is_traced_class(target))


def _handed_on(node: ast.AST) -> list[ast.expr]:
    """The expressions that a node hands to someone else, who may call them."""
    if isinstance(node, ast.Call):
        return [*node.args, *(keyword.value for keyword in node.keywords)]
    if isinstance(node, (ast.List, ast.Tuple)):
        return node.elts
    if isinstance(node, ast.Dict):
        return node.values
    return [node.value] if isinstance(node, ast.Return) and node.value else []


def _bound_names(tree: ast.Module) -> set[str]:
    """Names a module's top level imports or assigns, conditional ones included; functions' own names are left out."""
    names: set[str] = set()
    pending: list[ast.AST] = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names.update(alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.Assign):
            names.update(target.id for target in node.targets if isinstance(target, ast.Name))
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.expr)):
            pending.extend(ast.iter_child_nodes(node))
    return names


def _importing(names: Iterable[str]) -> re.Pattern[bytes]:
    """The pattern of an import of one of the names from a module of SGLang."""
    words = b"|".join(sorted(name.encode() for name in names))
    start = rb"\bfrom\s+(?:sglang|\.)[\w.]*\s+import\s+(?:\([^)]*?|[^(\n]*?)"
    return re.compile(start + rb"\b(?:" + words + rb")\b")
