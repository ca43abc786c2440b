"""The one base of every document class, and the way from a class to a document and back.

Our own documents refuse fields they do not know.
Documents of others are read with `read_lenient`: unknown fields stay in `model_extra` and come back out in `to_document`.
"""

from __future__ import annotations

from datetime import datetime
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fib_tools.errors import FormatError
from fib_tools.model.texts import read_texts

if TYPE_CHECKING:
    from pydantic import GetJsonSchemaHandler
    from pydantic.json_schema import JsonSchemaValue
    from pydantic_core import CoreSchema

__all__ = [
    "Model",
    "ModelT",
    "NonEmpty",
    "NonNegative",
    "find_unknown_fields",
    "read_lenient",
    "read_strict",
    "to_document",
]

NonEmpty = Annotated[str, Field(min_length=1)]
NonNegative = Annotated[int, Field(ge=0)]

ModelT = TypeVar("ModelT", bound="Model")


class Model(BaseModel):
    """A frozen document that refuses unknown fields; in its schema, fields have the texts that stand below them."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        ser_json_inf_nan="strings",
        defer_build=True,  # a command that never uses a class does not pay for its validator
    )

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler(core_schema)
        fields = handler.resolve_ref_schema(schema).get("properties", {})
        for name, text in read_texts(cls).items():
            if name in fields:
                fields[name].setdefault("description", text)
        return schema


def read_strict(kind: type[ModelT], data: Any, *, where: str) -> ModelT:
    """Read one of our own documents: exact types, no unknown field.

    Raises:
        FormatError: naming `where` and every field that is wrong.
    """
    try:
        return kind.model_validate(data, extra="forbid")
    except (ValidationError, RecursionError) as error:
        raise FormatError(f"not a valid {kind.__name__}: {_explain(error)}", where=where) from error


def read_lenient(kind: type[ModelT], data: Any, *, where: str) -> ModelT:
    """Read a document that another tool wrote: unknown fields are kept, numbers in strings are taken as numbers.

    Raises:
        FormatError: naming `where` and every field that is wrong.
    """
    try:
        return kind.model_validate(data, extra="allow")
    except (ValidationError, RecursionError) as error:
        raise FormatError(f"not a valid {kind.__name__}: {_explain(error)}", where=where) from error


def _explain(error: ValidationError | RecursionError) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    problems = error.errors(include_url=False, include_input=False, include_context=False)
    lines = [
        f"{'.'.join(str(step) for step in problem['loc']) or 'document'}: {problem['msg']}" for problem in problems
    ]
    more = f" (and {len(lines) - 8} more)" if len(lines) > 8 else ""
    return "; ".join(lines[:8]) + more


def to_document(value: Any) -> Any:
    """Turn a model into plain JSON values: fields in the class's order, unset optionals left out, unknown fields kept."""
    if isinstance(value, Model):
        return _model_document(value)
    if isinstance(value, dict):
        return {str(to_document(key)): to_document(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_document(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, datetime):
        return value.isoformat()
    return value


def _model_document(model: Model) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        if value is None and not field.is_required():
            continue
        if not field.is_required() and isinstance(value, (list, tuple, dict)) and not value:
            continue
        document[name] = to_document(value)
    document.update({name: to_document(item) for name, item in (model.model_extra or {}).items()})
    return document


def find_unknown_fields(value: Any, path: str = "") -> list[str]:
    """Name the fields, as dotted paths, that a lenient reading kept and this schema does not know."""
    if isinstance(value, Model):
        found = [f"{path}{name}" for name in (value.model_extra or {})]
        for name in type(value).model_fields:
            found += find_unknown_fields(getattr(value, name), f"{path}{name}.")
        return found
    if isinstance(value, dict):
        return [entry for key, item in value.items() for entry in find_unknown_fields(item, f"{path}{key}.")]
    if isinstance(value, (list, tuple)):
        return [entry for index, item in enumerate(value) for entry in find_unknown_fields(item, f"{path}{index}.")]
    return []
