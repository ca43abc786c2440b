"""Which names and expressions of a Python source stand for something imported.

After `import torch.cuda as c; pick = [c]; timer = pick[0].Event` the expression `timer` stands for `torch.cuda.Event`.
Order and scope are not followed: what a name may stand for anywhere in the file, it stands for.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator

__all__ = ["Aliases"]

_PASSES = 5
"""Each pass follows one more step of `a = torch; b = a; c = b`."""
_ELEMENT = "[]"
"""A path that begins with it stands inside a container."""
_TAKING_OUT = frozenset({"get", "pop", "popleft", "setdefault"})
_HANDING_ON = frozenset({"copy", "items", "values", "keys"})


class Aliases:
    """The paths of what is imported, by the names that lead there."""

    def __init__(self, tree: ast.Module) -> None:
        self._names: dict[str, set[str]] = defaultdict(set)
        self._attributes: dict[str, set[str]] = defaultdict(set)
        self._functions: dict[str, ast.FunctionDef | ast.AsyncFunctionDef] = {}
        self._being_followed: set[str] = set()
        nodes = list(ast.walk(tree))
        for node in nodes:
            self._read_import(node)
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                self._functions[node.name] = node
        for _ in range(_PASSES):
            before = self._size
            for node in nodes:
                self._read_binding(node)
            if self._size == before:
                break

    @property
    def _size(self) -> int:
        return sum(map(len, self._names.values())) + sum(map(len, self._attributes.values()))

    def resolve(self, node: ast.AST | None) -> frozenset[str]:
        """Find the dotted paths that an expression may stand for; none when it is no part of anything imported."""
        return frozenset(path for path in self._follow(node) if not path.startswith(_ELEMENT))

    def _follow(self, node: ast.AST | None) -> frozenset[str]:
        match node:
            case ast.Name(id=name):
                return frozenset(self._names.get(name, ()))
            case ast.Attribute(value=value, attr=attribute):
                return self._follow_attribute(value, attribute)
            case ast.Subscript(value=value):
                return _take_out(self._follow(value))
            case ast.List(elts=items) | ast.Tuple(elts=items) | ast.Set(elts=items):
                return frozenset(_ELEMENT + path for item in items for path in self._follow(item))
            case ast.Dict(values=values):
                return frozenset(_ELEMENT + path for value in values for path in self._follow(value))
            case ast.IfExp(body=first, orelse=second):
                return self._follow(first) | self._follow(second)
            case ast.BoolOp(values=values):
                return frozenset(path for value in values for path in self._follow(value))
            case ast.NamedExpr(value=value) | ast.Starred(value=value) | ast.Await(value=value):
                return self._follow(value)
            case ast.Call():
                return self._follow_call(node)
            case _:
                return frozenset()

    def _follow_attribute(self, value: ast.expr, attribute: str) -> frozenset[str]:
        bases = self._follow(value)
        if bases:
            return frozenset(f"{base}.{attribute}" for base in bases if not base.startswith(_ELEMENT))
        return frozenset(self._attributes.get(attribute, ()))

    def _follow_call(self, call: ast.Call) -> frozenset[str]:
        match call:
            case ast.Call(func=ast.Name(id="getattr"), args=[value, ast.Constant(value=str(attribute)), *_]):
                return self._follow_attribute(value, attribute)
            case ast.Call(func=ast.Name(id="next" | "iter" | "list" | "tuple" | "reversed"), args=[value, *_]):
                return self._follow(value) | _take_out(self._follow(value))
            case ast.Call(func=ast.Attribute(value=value, attr=method)) if method in _TAKING_OUT:
                return _take_out(self._follow(value))
            case ast.Call(func=ast.Attribute(value=value, attr=method)) if method in _HANDING_ON:
                return frozenset(path for path in self._follow(value) if path.startswith(_ELEMENT))
            case ast.Call(func=ast.Lambda(body=body)):
                return self._follow(body)
            case ast.Call(func=ast.Name(id=name)) if name in self._functions:
                return self._follow_returned(name)
            case _:
                return frozenset()

    def _follow_returned(self, function: str) -> frozenset[str]:
        if function in self._being_followed:
            return frozenset()
        self._being_followed.add(function)
        returned = [node.value for node in ast.walk(self._functions[function]) if isinstance(node, ast.Return)]
        paths = frozenset(path for value in returned for path in self._follow(value))
        self._being_followed.discard(function)
        return paths

    def _read_import(self, node: ast.AST) -> None:
        if isinstance(node, ast.Import):
            for alias in node.names:
                self._names[alias.asname or alias.name.partition(".")[0]].add(
                    alias.name if alias.asname else alias.name.partition(".")[0]
                )
        elif isinstance(node, ast.ImportFrom):
            module = f"{'.' * node.level}{node.module or ''}"
            for alias in node.names:
                self._names[alias.asname or alias.name].add(f"{module}.{alias.name}")

    def _read_binding(self, node: ast.AST) -> None:
        match node:
            case ast.Assign(targets=targets, value=value):
                for target in targets:
                    self._bind(target, value)
            case ast.AnnAssign(target=target, value=value) if value is not None:
                self._bind(target, value)
            case ast.NamedExpr(target=target, value=value):
                self._bind(target, value)
            case ast.For(target=target, iter=items) | ast.AsyncFor(target=target, iter=items):
                self._bind_paths(target, _take_out(self._follow(items)))
            case ast.comprehension(target=target, iter=items):
                self._bind_paths(target, _take_out(self._follow(items)))
            case ast.withitem(context_expr=value, optional_vars=target) if target is not None:
                self._bind(target, value)
            case _:
                self._read_call_or_class(node)

    def _read_call_or_class(self, node: ast.AST) -> None:
        match node:
            case ast.Call():
                self._read_call(node)
            case ast.arguments():
                self._bind_defaults(node)
            case ast.ClassDef(body=body):
                for name, value in _class_values(body):
                    self._attributes[name] |= self._follow(value)
            case _:
                pass

    def _read_call(self, call: ast.Call) -> None:
        match call.func:
            case ast.Lambda(args=parameters):
                self._bind_parameters(parameters, call)
            case ast.Name(id=name) | ast.Attribute(attr=name) if name in self._functions:
                self._bind_parameters(self._functions[name].args, call)
            case _:
                pass

    def _bind_parameters(self, parameters: ast.arguments, call: ast.Call) -> None:
        names = [parameter.arg for parameter in (*parameters.posonlyargs, *parameters.args)]
        if isinstance(call.func, ast.Attribute) and names[:1] == ["self"]:
            names = names[1:]
        for name, value in zip(names, call.args, strict=False):
            self._names[name] |= self._follow(value)
        for keyword in call.keywords:
            if keyword.arg is not None:
                self._names[keyword.arg] |= self._follow(keyword.value)

    def _bind_defaults(self, parameters: ast.arguments) -> None:
        placed = [*parameters.posonlyargs, *parameters.args]
        if parameters.defaults:
            for parameter, value in zip(placed[-len(parameters.defaults) :], parameters.defaults, strict=True):
                self._names[parameter.arg] |= self._follow(value)
        for parameter, default in zip(parameters.kwonlyargs, parameters.kw_defaults, strict=True):
            self._names[parameter.arg] |= self._follow(default)

    def _bind(self, target: ast.expr, value: ast.expr) -> None:
        match target, value:
            case (ast.Tuple(elts=targets) | ast.List(elts=targets), ast.Tuple(elts=values) | ast.List(elts=values)) if (
                len(targets) == len(values)
            ):
                for one, its_value in zip(targets, values, strict=True):
                    self._bind(one, its_value)
            case _:
                self._bind_paths(target, self._follow(value))

    def _bind_paths(self, target: ast.expr, paths: frozenset[str]) -> None:
        match target:
            case ast.Name(id=name):
                self._names[name] |= paths
            case ast.Attribute(attr=attribute):
                self._attributes[attribute] |= paths
            case ast.Subscript(value=ast.Name(id=name)):
                self._names[name] |= {_ELEMENT + path for path in paths}
            case ast.Tuple(elts=targets) | ast.List(elts=targets):
                for one in targets:
                    self._bind_paths(one, paths | _take_out(paths))
            case ast.Starred(value=inner):
                self._bind_paths(inner, paths)
            case _:
                pass


def _take_out(paths: frozenset[str]) -> frozenset[str]:
    return frozenset(path.removeprefix(_ELEMENT) for path in paths if path.startswith(_ELEMENT))


def _class_values(body: list[ast.stmt]) -> Iterator[tuple[str, ast.expr]]:
    for statement in body:
        if isinstance(statement, ast.Assign):
            yield from ((target.id, statement.value) for target in statement.targets if isinstance(target, ast.Name))
