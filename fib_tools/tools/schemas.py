"""JSON schemas of arguments and answers, without what only lengthens them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from functools import cache
from typing import Any

from pydantic import BaseModel

from fib_tools.errors import RequestError
from fib_tools.model.summary import Result
from fib_tools.tools.answer import Answer
from fib_tools.tools.wording import reword

__all__ = ["answer_schema", "arguments_schema", "check_fields"]


def arguments_schema(kind: type[BaseModel]) -> dict[str, Any]:
    """Describe what a caller may pass; what has no value can only be left out."""
    schema: dict[str, Any] = _trim(kind.model_json_schema(), _drop_null)
    return {"type": "object", "properties": {}, **schema}


def answer_schema(result: type[Result] | None) -> dict[str, Any]:
    """Describe an answer, whose result may lack any part of the whole one; None: of any operation."""
    schema = deepcopy(_frame())
    if result is None:
        return schema
    whole = _trim(result.model_json_schema(mode="serialization"), _drop_required)
    definitions = {**schema.pop("$defs", {}), **whole.pop("$defs", {})}
    schema["properties"]["result"] = {**whole, "description": schema["properties"]["result"]["description"]}
    return {**schema, "$defs": definitions} if definitions else schema


def _trim(schema: Any, change: Any) -> Any:
    """Drop titles at every depth, put texts into the words of tools, and change each schema on the way up."""
    if isinstance(schema, list):
        return [_trim(item, change) for item in schema]
    if not isinstance(schema, dict):
        return schema
    trimmed: dict[str, Any] = {}
    for name, value in schema.items():
        if name in {"properties", "$defs"}:
            trimmed[name] = {key: _trim(inner, change) for key, inner in value.items()}
        elif name == "description" and isinstance(value, str):
            trimmed[name] = reword(value)
        elif not (name == "title" and isinstance(value, str)):
            trimmed[name] = value if name in {"enum", "const", "default"} else _trim(value, change)
    return change(trimmed)


def _drop_null(schema: dict[str, Any]) -> dict[str, Any]:
    choices = schema.get("anyOf")
    if choices is None or {"type": "null"} not in choices:
        return schema
    kept = [choice for choice in choices if choice != {"type": "null"}]
    rest = {name: value for name, value in schema.items() if name != "anyOf" and (name, value) != ("default", None)}
    return {**kept[0], **rest} if len(kept) == 1 else {"anyOf": kept, **rest}


def _drop_required(schema: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in schema.items() if name not in {"required", "default"}}


@cache
def _frame() -> dict[str, Any]:
    frame: dict[str, Any] = _trim(Answer.model_json_schema(mode="serialization"), _drop_required)
    return frame


def check_fields(schema: Mapping[str, Any], fields: Sequence[str]) -> None:
    """Refuse a path that no result of this schema has; one that a result leaves out because it is empty is fine.

    Raises:
        RequestError: with the parts there are.
    """
    result = schema["properties"]["result"]
    for field in fields:
        if not _leads_somewhere(result, field.split("."), schema):
            known = ", ".join(_list_paths(result, schema))
            raise RequestError(f"the result has no part {field!r}", where="fields", todo=f"use {known}")


def _leads_somewhere(part: Mapping[str, Any], steps: Sequence[str], root: Mapping[str, Any]) -> bool:
    part = _resolve(part, root)
    if not steps:
        return True
    if "items" in part:
        return _leads_somewhere(part["items"], steps, root)
    choices = part.get("anyOf", ())
    if choices:
        return any(_leads_somewhere(choice, steps, root) for choice in choices)
    if steps[0] in part.get("properties", {}):
        return _leads_somewhere(part["properties"][steps[0]], steps[1:], root)
    values = part.get("additionalProperties", False)
    return _leads_somewhere(values, steps[1:], root) if isinstance(values, dict) else bool(values)


def _list_paths(part: Mapping[str, Any], root: Mapping[str, Any]) -> Iterator[str]:
    """List the parts of a result and the parts of those."""
    for name, inner in part.get("properties", {}).items():
        yield name
        yield from (f"{name}.{deeper}" for deeper in _resolve(inner, root).get("properties", {}))


def _resolve(part: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    reference = part.get("$ref")
    found: Mapping[str, Any] = root["$defs"][reference.rpartition("/")[2]] if reference else part
    return found
