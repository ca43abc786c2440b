"""Definition, Workload, Solution and Trace: what they refuse, what they keep, and their bytes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from fib_tools.errors import FormatError
from fib_tools.model.base import find_unknown_fields, read_lenient, read_strict, to_document
from fib_tools.model.canonical import canonical_bytes, content_hash, format_line, load_json
from fib_tools.model.definition import Definition
from fib_tools.model.solution import BuildSpec, Language, Solution, SourceFile
from fib_tools.model.trace import Correctness, Environment, Evaluation, EvaluationStatus, Performance, Trace
from fib_tools.model.workload import (
    RandomInput,
    SafetensorsInput,
    ScalarInput,
    Workload,
    workload_content,
    workload_uuid,
)

RMSNORM: dict[str, Any] = {
    "name": "rmsnorm_h7168",
    "description": "Root mean square normalisation.",
    "op_type": "rmsnorm",
    "tags": ["status:unverified"],
    "axes": {"batch_size": {"type": "var"}, "hidden_size": {"type": "const", "value": 7168}},
    "constraints": ["batch_size > 0"],
    "inputs": {
        "hidden_states": {"shape": ["batch_size", "hidden_size"], "dtype": "bfloat16"},
        "eps": {"shape": None, "dtype": "float32"},
    },
    "outputs": {"output": {"shape": ["batch_size", "hidden_size"], "dtype": "bfloat16"}},
    "reference": "def run(hidden_states, eps):\n    return hidden_states\n",
}


def changed(**changes: Any) -> dict[str, Any]:
    return {**RMSNORM, **changes}


def test_a_definition_is_written_as_it_was_read() -> None:
    definition = read_strict(Definition, RMSNORM, where="rmsnorm")
    assert to_document(definition) == RMSNORM
    assert canonical_bytes(definition) == canonical_bytes(RMSNORM)
    assert canonical_bytes(definition).endswith(b"}\n")


def test_the_axes_of_a_definition_are_told_apart() -> None:
    definition = read_strict(Definition, RMSNORM, where="rmsnorm")
    assert (definition.const_axes, definition.var_axes) == ({"hidden_size": 7168}, ("batch_size",))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"outputs": {"eps": {"shape": [], "dtype": "float32"}}}, "both inputs and outputs"),
        ({"outputs": {"output": {"shape": ["rows"], "dtype": "float32"}}}, "undeclared axis 'rows'"),
        ({"constraints": ["batch_size =="]}, "constraint"),
        ({"reference": "def go(): pass"}, "named run"),
        ({"reference": "async def run(): pass"}, "named run"),
        ({"reference": "def run(:"}, "reference is not Python"),
        ({"inputs": {"x": {"shape": [], "dtype": "uint8"}}}, "inputs.x.dtype"),
        ({"axes": {"batch_size": {"type": "var"}, "hidden_size": {"type": "const", "value": -1}}}, "hidden_size"),
        ({"name": ""}, "name"),
        ({"extra": 1}, "extra"),
    ],
)
def test_a_definition_that_breaks_a_rule_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        read_strict(Definition, changed(**changes), where="rmsnorm")


def test_unknown_fields_of_others_are_kept_named_and_written_back() -> None:
    document = changed(init="def init(): ...", check={"rtol": 1e-2})
    document["inputs"] = {"hidden_states": {**RMSNORM["inputs"]["hidden_states"], "optional": True, "param": "input"}}
    definition = read_lenient(Definition, document, where="dump")
    assert find_unknown_fields(definition) == [
        "init",
        "check",
        "inputs.hidden_states.optional",
        "inputs.hidden_states.param",
    ]
    assert json.loads(canonical_bytes(definition)) == document


def test_axes_without_a_type_and_numbers_in_strings_are_understood() -> None:
    definition = read_lenient(
        Definition, changed(axes={"batch_size": {}, "hidden_size": {"value": "7168"}}), where="peer"
    )
    assert definition.const_axes == {"hidden_size": 7168}


def test_a_document_is_frozen() -> None:
    definition = read_strict(Definition, RMSNORM, where="rmsnorm")
    with pytest.raises(ValidationError, match="frozen"):
        definition.name = "other"  # type: ignore[misc]


def test_a_list_of_many_problems_is_cut_and_says_so() -> None:
    bad = changed(inputs={f"x{index}": {"shape": [], "dtype": "?"} for index in range(12)})
    with pytest.raises(FormatError, match="and 4 more"):
        read_strict(Definition, bad, where="rmsnorm")


def test_infinities_and_nan_are_written_as_the_strings_that_the_peer_reads() -> None:
    correctness = Correctness(max_relative_error=float("inf"), max_absolute_error=float("nan"))
    assert json.loads(canonical_bytes(correctness)) == {"max_relative_error": "Infinity", "max_absolute_error": "NaN"}
    assert read_lenient(Correctness, {"max_relative_error": "Infinity"}, where="peer").max_relative_error == float(
        "inf"
    )
    assert json.loads(canonical_bytes([-float("inf")])) == ["-Infinity"]


def test_the_hash_of_content_does_not_hang_on_the_order_of_keys() -> None:
    assert content_hash({"a": 1, "b": [2]}) == content_hash({"b": [2], "a": 1}) != content_hash({"a": 1, "b": [3]})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "a": 2}', "twice"),
        ('{"a": }', "not JSON"),
        ("[" * 100 + "]" * 100, "deeper"),
        ("[" * 100_000, "not JSON"),
        (b"\xff\xfe\xff", "not JSON"),
        ("1" * 5000, "not JSON"),
    ],
)
def test_json_that_cannot_be_trusted_is_refused(text: str | bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        load_json(text, where="input")


def test_a_workloads_uuid_follows_from_its_content() -> None:
    inputs = {"x": RandomInput(), "s": ScalarInput(value=0.5), "i": SafetensorsInput(path="blob/a", tensor_key="i")}
    first = workload_uuid("rmsnorm_h4", {"batch_size": 1}, inputs)
    assert first == workload_uuid("rmsnorm_h4", {"batch_size": 1}, dict(reversed(inputs.items())))
    assert first != workload_uuid("rmsnorm_h4", {"batch_size": 2}, inputs)
    assert first != workload_uuid("rmsnorm_h8", {"batch_size": 1}, inputs)


def test_where_and_how_often_a_workload_occurs_does_not_make_it_another() -> None:
    plain = Workload(axes={"n": 1}, inputs={"x": RandomInput()}, uuid="u")
    said = plain.model_copy(update={"count": 7, "origin": "dummy", "scales": {"x": 0.5}})
    assert workload_content(plain) == workload_content(said)
    assert not {"count", "origin", "scales"} & to_document(plain).keys()


def solution(**changes: Any) -> Solution:
    spec = BuildSpec(language=Language.PYTHON, target_hardware=["H200"], entry_point="main.py::run")
    fields = {
        "name": "s",
        "definition": "d",
        "author": "a",
        "spec": spec,
        "sources": [SourceFile(path="main.py", content="x")],
    }
    return Solution(**{**fields, **changes})


def test_a_solutions_hash_changes_with_the_calling_style() -> None:
    other = solution().spec.model_copy(update={"destination_passing_style": False})
    assert solution().hash != solution(spec=other).hash
    assert solution().hash == solution(name="renamed", description="text").hash


@pytest.mark.parametrize("path", ["/etc/passwd", "../x.py", "a/../../x.py", "a\\b.py", "a\0.py"])
def test_a_source_that_leaves_its_folder_is_refused(path: str) -> None:
    with pytest.raises(ValidationError, match="leaves"):
        SourceFile(path=path, content="x")


@pytest.mark.parametrize(
    ("hardware", "capability", "fits"),
    [
        (["sm90"], 90, True),
        (["sm90"], 100, False),
        (["sm_90a", "sm100"], 90, True),
        (["sm90"], 0, True),
        (["cuda"], 100, True),
        (["NVIDIA H100", "sm90"], 100, True),
    ],
)
def test_only_a_solution_that_names_capabilities_is_unfit_for_another_gpu(
    hardware: list[str], capability: int, *, fits: bool
) -> None:
    spec = BuildSpec(language=Language.PYTHON, target_hardware=hardware, entry_point="main.py::run")
    assert spec.fits(capability) is fits


def test_a_solution_names_an_entry_that_it_has() -> None:
    with pytest.raises(ValidationError, match=r"file::function"):
        BuildSpec(language=Language.PYTHON, target_hardware=["H200"], entry_point="main.py")
    with pytest.raises(ValidationError, match="not among the sources"):
        solution(sources=[SourceFile(path="other.py", content="x")])
    with pytest.raises(ValidationError, match="same path"):
        solution(sources=[SourceFile(path="main.py", content="x")] * 2)


@pytest.mark.parametrize("status", list(EvaluationStatus))
def test_an_evaluation_has_the_parts_that_its_status_demands(status: EvaluationStatus) -> None:
    passed = status is EvaluationStatus.PASSED
    measured = passed or status is EvaluationStatus.INCORRECT_NUMERICAL
    where = {"status": status, "environment": Environment(hardware="H200"), "timestamp": "now"}
    Evaluation(**where, correctness=Correctness() if measured else None, performance=Performance() if passed else None)
    with pytest.raises(ValidationError, match="correctness"):
        Evaluation(
            **where, correctness=None if measured else Correctness(), performance=Performance() if passed else None
        )


def test_a_negative_error_is_refused() -> None:
    with pytest.raises(ValidationError, match="negative"):
        Correctness(max_absolute_error=-1)


def test_a_trace_without_solution_and_evaluation_is_a_workload_line() -> None:
    trace = Trace(definition="d", workload=Workload(axes={"n": 1}, inputs={}, uuid="u"))
    assert trace.is_workload
    assert format_line(trace) == '{"definition": "d", "workload": {"axes": {"n": 1}, "inputs": {}, "uuid": "u"}}'


def test_half_a_character_is_refused_and_a_whole_one_is_not() -> None:
    assert load_json(r'["\ud83d\ude00"]', where="input") == ["\U0001f600"]
    for text in (r'["\ud83d"]', rb'{"\uDE00": 1}'):
        with pytest.raises(FormatError, match="surrogate"):
            load_json(text, where="input")
