from __future__ import annotations

from typing import Annotated

import pytest
from pydantic import Field

from fib_tools.model.base import Model
from fib_tools.model.schema import DOCUMENTS, json_schema


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_schema_forbids_unknown_fields_and_explains_the_known_ones(name: str) -> None:
    schema = json_schema(name)
    assert schema["$schema"].endswith("2020-12/schema")
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) == set(DOCUMENTS[name].model_fields)
    assert any("description" in field for field in schema["properties"].values())


def test_the_schema_of_a_definition_names_the_element_types() -> None:
    assert "float8_e4m3fn" in json_schema("definition")["$defs"]["DType"]["enum"]


def test_a_class_without_a_source_has_a_schema_without_texts() -> None:
    kind = type("Typed", (Model,), {"__annotations__": {"size": int}, "__module__": "__main__"})
    assert kind.model_json_schema()["properties"] == {"size": {"title": "Size", "type": "integer"}}


def test_fields_have_the_texts_below_them_also_those_of_a_base() -> None:
    class Base(Model):
        size: int
        """How large it is."""
        told: Annotated[int, Field(description="As told.")]
        """Not this."""

    class Derived(Base):
        name: str = ""
        """What it is called."""

    fields = Derived.model_json_schema()["properties"]
    assert {name: field["description"] for name, field in fields.items()} == {
        "size": "How large it is.",
        "told": "As told.",
        "name": "What it is called.",
    }
