"""JSON schemas of the documents, for editors and for tools in other languages; field texts are the attribute docstrings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fib_tools.model.base import Model
from fib_tools.model.definition import Definition
from fib_tools.model.manifest import Manifest
from fib_tools.model.report import Finding
from fib_tools.model.solution import Solution
from fib_tools.model.trace import Trace
from fib_tools.model.workload import Workload

__all__ = ["DOCUMENTS", "json_schema"]

DOCUMENTS: Mapping[str, type[Model]] = {
    "definition": Definition,
    "finding": Finding,
    "manifest": Manifest,
    "solution": Solution,
    "trace": Trace,
    "workload": Workload,
}
"""By the name of the schema's file."""


def json_schema(name: str) -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of a document, as this project writes it."""
    schema = DOCUMENTS[name].model_json_schema(mode="validation")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
