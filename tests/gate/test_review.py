from __future__ import annotations

import copy
from typing import Any

import pytest

from fib_tools.gate.review import review_definition

_GOOD: dict[str, Any] = {
    "name": "toy_n8",
    "op_type": "toy",
    "axes": {"M": {"type": "var"}, "N": {"type": "const", "value": 8}},
    "inputs": {"x": {"shape": ["M", "N"], "dtype": "float32"}},
    "outputs": {"y": {"shape": ["M", "N"], "dtype": "float32"}},
    "reference": "import torch\n\n\ndef run(x):\n    return x * 2\n",
}


def _change(path: str, value: Any) -> dict[str, Any]:
    document = copy.deepcopy(_GOOD)
    *steps, last = path.split(".")
    place = document
    for step in steps:
        place = place[step]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return document


def test_a_good_definition_has_nothing_to_change() -> None:
    review = review_definition(_GOOD)
    assert review.problems == ()
    assert review.definition is not None


@pytest.mark.parametrize(
    ("path", "value", "field", "words"),
    [
        ("extra", 1, "extra", "remove it"),
        ("inputs.x.optional", True, "inputs.x.optional", "remove it"),
        ("reference", None, "reference", "add `reference`"),
        ("axes.N.value", "8", "axes.N.value", "integer"),
        ("axes.N.value", -1, "axes.N.value", "greater"),
        ("outputs.y.dtype", "uint8", "outputs.y.dtype", "use int8"),
        ("inputs.x.dtype", "complex64", "inputs.x.dtype", "float32"),
        ("inputs.x.shape", ["M", "K"], "inputs.x.shape", "declare 'K'"),
        ("outputs", {"x": _GOOD["inputs"]["x"]}, "outputs.x", "rename it"),
        ("outputs", {}, "outputs", "at least one"),
        ("constraints", ["M ** 2"], "constraints[0]", "Pow"),
        ("constraints", ["Q == 2"], "constraints[0]", "'Q'"),
        ("constraints", ["N == 9"], "constraints", "does not hold"),
        ("constraints", ["__import__('os')"], "constraints[0]", "integers, axis names"),
        ("tags", ["status:verified"], "tags[0]", "leave it out"),
        ("tags", ["a\nb"], "tags[0]", "one line"),
        ("tags", ["tp:eight"], "tags[0]", "one tag for each size"),
        ("op_type", "../x", "op_type", "small letters"),
        ("name", "toy/../n8", "name", "toy"),
        ("name", "toy_n9", "name", "toy_n8"),
        ("reference", "def run(x:\n", "reference, line 1", "syntax"),
        ("reference", "def walk(x):\n    return x\n", "reference", "def run(x): ..."),
        ("reference", "async def run(x):\n    return x\n", "reference", "plain top-level"),
        ("reference", "def run(x, y):\n    return x\n", "reference", "take the inputs"),
        ("reference", "def run(*x):\n    return x\n", "reference", "take the inputs"),
        ("reference", "def run(x):\n    return x\n" + "#" * 70000, "reference", "at most"),
        ("axes.Q", {"type": "var"}, "axes.Q", "no tensor"),
    ],
)
def test_a_fault_is_named_with_its_field_and_what_to_do(path: str, value: Any, field: str, words: str) -> None:
    problems = {item.field: item for item in review_definition(_change(path, value)).problems}
    assert field in problems, problems
    assert words in f"{problems[field].found} {problems[field].expected} {problems[field].todo}"


def test_all_faults_come_at_once() -> None:
    document = {
        **_GOOD,
        "extra": 1,
        "name": "toy_n9",
        "tags": ["tp:x"],
        "constraints": ["a b"],
        "reference": "run = 1\n",
    }
    fields = {item.field for item in review_definition(document).problems}
    assert fields == {"extra", "name", "tags[0]", "constraints[0]", "reference"}


@pytest.mark.parametrize(
    "document", [[], "x", None, 3, {"inputs": 3, "outputs": [], "axes": "x", "tags": 1}, {"name": 1}]
)
def test_what_is_no_definition_at_all_is_refused_and_nothing_else_happens(document: Any) -> None:
    review = review_definition(document)
    assert review.definition is None
    assert review.problems


def test_long_values_of_a_document_are_cut() -> None:
    for problem in review_definition(_change("axes.N.value", "9" * 100_000)).problems:
        assert len(problem.model_dump_json()) < 2000


def test_a_constraint_about_contents_is_left_to_the_reader() -> None:
    assert review_definition(_change("constraints", ["M == x[-1]"])).problems == ()
