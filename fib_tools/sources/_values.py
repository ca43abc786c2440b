"""What the names of one Python file may stand for, whatever the scope and the order: imports, aliases, instances, values passed on.

A value is a dotted name such as `flashinfer.norm.rmsnorm`; with `()` behind it, it is an instance of that class.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Callable, Iterator

from fib_tools.sources._exports import import_base
from fib_tools.sources.packages import SourceFile

__all__ = ["FileValues"]

_ROUNDS = 8
# A name that seems to stand for more than this is a container of everything, and says nothing.
_MAX_VALUES = 24
_LAZY_IMPORTS = {"LazyImport", "lazy_import"}
_READERS = {"get", "pop", "popitem", "copy", "values", "items", "setdefault"}
_WRITERS = {"append", "extend", "add", "insert", "setdefault", "update"}

# The nodes that say what a name stands for; imports say it once and for all.
_TELLING = (
    ast.AnnAssign,
    ast.Assign,
    ast.AsyncFor,
    ast.AsyncFunctionDef,
    ast.Call,
    ast.For,
    ast.FunctionDef,
    ast.NamedExpr,
    ast.arg,
    ast.comprehension,
)

Values = frozenset[str]
_NOTHING: Values = frozenset()


class FileValues:
    """The possible values of names and attributes in one file, gathered without regard to scope."""

    def __init__(self, file: SourceFile, tree: ast.Module, *, is_class: Callable[[str], bool]) -> None:
        self._file = file
        self._is_class = is_class
        self._known: dict[str, Values] = defaultdict(frozenset)
        self._changed = False
        self.built: set[str] = set()
        """The instances that the file itself creates."""
        self._parameters: dict[str, list[str]] = {}
        self._returns: dict[str, list[ast.expr]] = defaultdict(list)
        self.nodes = list(ast.walk(tree))
        for node in self.nodes:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                self._parameters[node.name] = [
                    argument.arg for argument in node.args.args if argument.arg not in {"self", "cls"}
                ]
                self._returns[node.name] += _returned(node)
        self._gather()

    def of(self, name: str) -> Values:
        """What a plain name may stand for."""
        return self._known.get(name, _NOTHING)

    def evaluate(self, node: ast.AST | None) -> Values:
        """What an expression may stand for."""
        if isinstance(node, ast.Name):
            return self.of(node.id)
        if isinstance(node, ast.Attribute):
            return self.of(f".{node.attr}") | {f"{base}.{node.attr}" for base in self.evaluate(node.value)}
        if isinstance(node, ast.Call):
            return self._evaluate_call(node)
        if isinstance(node, (ast.Subscript, ast.Starred, ast.Await, ast.NamedExpr)):
            return self.evaluate(node.value)
        return frozenset().union(*(self.evaluate(part) for part in _parts(node)))

    def _evaluate_call(self, call: ast.Call) -> Values:
        name = _last_name(call.func)
        texts = [str(argument.value) for argument in call.args if isinstance(argument, ast.Constant)]
        if name in _LAZY_IMPORTS and len(texts) > 1:
            return frozenset({f"{texts[0]}.{texts[1]}"})
        if name == "import_module" and texts:
            return frozenset({texts[0]})
        if name in {"partial", "list", "tuple", "getattr"} and call.args:
            base = self.evaluate(call.args[0])
            return base if name != "getattr" or len(texts) == 0 else frozenset(f"{value}.{texts[0]}" for value in base)
        found = frozenset(f"{value}()" for value in self.evaluate(call.func) if self._is_class(value))
        self.built |= found
        if name in _READERS and isinstance(call.func, ast.Attribute):
            found |= self.evaluate(call.func.value)
        return found | self.of(f"return {name}")

    def _gather(self) -> None:
        for node in self.nodes:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                self._note_import(node)
        telling = [node for node in self.nodes if isinstance(node, _TELLING)]
        for _ in range(_ROUNDS):
            self._changed = False
            for node in telling:
                self._note(node)
            if not self._changed:
                return

    def _note_import(self, node: ast.Import | ast.ImportFrom) -> None:
        if isinstance(node, ast.ImportFrom):
            base = import_base(self._file, node)
            for alias in node.names:
                self._learn(alias.asname or alias.name, frozenset({f"{base}.{alias.name}"}))
        else:
            for alias in node.names:
                bound = alias.asname or alias.name.partition(".")[0]
                self._learn(bound, frozenset({alias.name if alias.asname else bound}))

    def _note(self, node: ast.AST) -> None:
        if isinstance(node, ast.Call):
            self._note_call(node)
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                self._assign(target, node.value)
        elif isinstance(node, ast.NamedExpr):
            self._assign(node.target, node.value)
        elif isinstance(node, (ast.For, ast.AsyncFor, ast.comprehension)):
            self._assign(node.target, node.iter)
        elif isinstance(node, ast.AnnAssign):
            values = self._instances(node.annotation) | self.evaluate(node.value)
            self._learn_target(node.target, values)
            if isinstance(node.target, ast.Name):  # a field of a dataclass is read as an attribute
                self._learn(f".{node.target.id}", values)
        elif isinstance(node, ast.arg):
            self._learn(node.arg, self._instances(node.annotation))
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            returned = self._instances(node.returns).union(
                *(self.evaluate(value) for value in self._returns[node.name])
            )
            self._learn(f"return {node.name}", returned)

    def _note_call(self, call: ast.Call) -> None:
        name = _last_name(call.func)
        if name in _WRITERS and isinstance(call.func, ast.Attribute):
            for argument in call.args:
                self._learn_target(call.func.value, self.evaluate(argument))
        for parameter, argument in zip(self._parameters.get(name, ()), call.args, strict=False):
            self._learn(parameter, self.evaluate(argument))
        for keyword in call.keywords:
            if keyword.arg and name in self._parameters:
                self._learn(keyword.arg, self.evaluate(keyword.value))

    def _assign(self, target: ast.expr, value: ast.expr) -> None:
        pair = isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts)
        if pair and isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for left, right in zip(target.elts, value.elts, strict=True):
                self._assign(left, right)
        else:
            self._learn_target(target, self.evaluate(value))

    def _learn_target(self, target: ast.expr, values: Values) -> None:
        if isinstance(target, ast.Name):
            self._learn(target.id, values)
        elif isinstance(target, ast.Attribute):
            self._learn(f".{target.attr}", values)
        elif isinstance(target, (ast.Subscript, ast.Starred)):
            self._learn_target(target.value, values)
        elif isinstance(target, (ast.Tuple, ast.List)):
            for element in target.elts:
                self._learn_target(element, values)

    def _learn(self, name: str, values: Values) -> None:
        known = self._known[name]
        both = known | values
        if len(both) > len(known) and len(both) <= _MAX_VALUES:
            self._known[name] = both
            self._changed = True

    def _instances(self, annotation: ast.expr | None) -> Values:
        """The classes an annotation names, as instances; `List[X]` and `X | None` hold an X."""
        if annotation is None:
            return _NOTHING
        if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
            annotation = _parse_annotation(annotation.value)
        values = [self.evaluate(node) for node in ast.walk(annotation) if isinstance(node, (ast.Name, ast.Attribute))]
        return frozenset(f"{value}()" for value in frozenset().union(*values) if self._is_class(value))


def _returned(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.expr]:
    """What a function returns, functions inside it left out."""
    found: list[ast.expr] = []
    pending: list[ast.AST] = list(function.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Return) and node.value:
            found.append(node.value)
        elif isinstance(node, ast.stmt) and not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            pending.extend(child for child in ast.iter_child_nodes(node) if not isinstance(child, ast.expr))
        elif isinstance(node, (ast.ExceptHandler, ast.match_case)):
            pending.extend(node.body)
    return found


def _parts(node: ast.AST | None) -> Iterator[ast.AST | None]:
    """The sub-expressions whose values an expression hands on."""
    if isinstance(node, (ast.List, ast.Tuple, ast.Set)):
        yield from node.elts
    elif isinstance(node, ast.Dict):
        yield from node.values
    elif isinstance(node, ast.IfExp):
        yield from (node.body, node.orelse)
    elif isinstance(node, ast.BoolOp):
        yield from node.values
    elif isinstance(node, (ast.ListComp, ast.SetComp, ast.GeneratorExp)):
        yield node.elt
    elif isinstance(node, ast.DictComp):
        yield node.value
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        yield from (node.left, node.right)


def _last_name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def _parse_annotation(text: str) -> ast.expr:
    try:
        return ast.parse(text, mode="eval").body
    except SyntaxError:
        return ast.Constant(None)
