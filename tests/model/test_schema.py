from __future__ import annotations

import pytest

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
