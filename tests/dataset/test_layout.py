from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fib_tools.dataset.layout import Kind, Location, find_location, format_location
from fib_tools.errors import PathError

PATHS = [
    "definitions/rmsnorm/rmsnorm_h7168.json",
    "workloads/gqa_paged/gqa_paged_decode_h32_kv8_d128_ps1.jsonl",
    "solutions/baseline/moe/moe_x/flashinfer_wrapper_1.json",
    "traces/baseline/moe/moe_x.jsonl",
    "traces/moe/moe_x.jsonl",
    "blob/workloads/gqa_paged/d/d_1.safetensors",
    "tests/references/test_rmsnorm_h7168.py",
    "evidence/0a/0a1b2c.json",
    "provenance/moe/moe_x.json",
    "logs/moe/moe_x/reference_test.json",
]


@pytest.mark.parametrize("path", PATHS)
def test_a_path_of_the_layout_comes_back_from_its_location(path: str) -> None:
    location = find_location(path)
    assert location is not None
    assert str(location) == path


@given(
    st.builds(
        Location,
        kind=st.sampled_from([kind for kind in Kind if kind is not Kind.EVIDENCE]),
        **dict.fromkeys(
            ("definition", "op_type", "author", "file"), st.from_regex(r"[a-z][a-z0-9_]{0,9}", fullmatch=True)
        ),
    )
)
def test_any_location_is_found_again_at_its_path(location: Location) -> None:
    found = find_location(format_location(location))
    assert found is not None
    assert format_location(found) == format_location(location)
    assert (found.kind, found.definition) == (location.kind, location.definition)


@pytest.mark.parametrize(
    "path",
    [
        "definitions/x.json",
        "README.md",
        "definitions/a/b/c.json",
        "workloads/a/b.json",
        "tests/references/conftest.py",
        "evidence/0b/0a1b.json",
    ],
)
def test_other_paths_have_no_location(path: str) -> None:
    assert find_location(path) is None


def test_a_name_that_leaves_its_folder_makes_no_path() -> None:
    with pytest.raises(PathError):
        format_location(Location(kind=Kind.DEFINITION, op_type="..", definition="x"))
