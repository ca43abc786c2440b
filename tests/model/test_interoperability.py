"""flashinfer-bench 0.1.2 is the oracle: it reads what we write, and we read what it writes, to the same values."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

import strategies
from fib_tools.model.base import Model, read_lenient, read_strict, to_document
from fib_tools.model.canonical import canonical_bytes, format_line, load_json
from fib_tools.model.definition import Definition
from fib_tools.model.solution import Solution
from fib_tools.model.trace import Trace
from fib_tools.model.workload import Workload

relaxed = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(scope="module")
def peer() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from flashinfer_bench import data
    return data


def _same(ours: Model, theirs: Any) -> None:
    expected = json.loads(theirs.model_dump_json(exclude_unset=False))
    again = json.loads(type(theirs).model_validate_json(canonical_bytes(ours)).model_dump_json(exclude_unset=False))
    assert again == expected
    read_back = read_lenient(
        type(ours), load_json(theirs.model_dump_json(exclude_unset=True), where="peer"), where="peer"
    )
    assert canonical_bytes(read_back) == canonical_bytes(ours)


@relaxed
@given(definition=strategies.definitions())
def test_the_peer_reads_our_definitions_to_the_same_values_and_we_read_its(peer: Any, definition: Definition) -> None:
    theirs = peer.Definition.model_validate_json(canonical_bytes(definition))
    assert list(theirs.inputs) == list(definition.inputs)
    assert list(theirs.outputs) == list(definition.outputs)
    assert theirs.const_axes == definition.const_axes
    assert tuple(theirs.var_axes) == definition.var_axes
    _same(definition, theirs)


@relaxed
@given(trace=strategies.traces)
def test_the_peer_reads_our_traces_to_the_same_values_and_we_read_its(peer: Any, trace: Trace) -> None:
    _same(trace, peer.Trace.model_validate_json(format_line(trace)))


@relaxed
@given(solution=strategies.solutions())
def test_the_peer_reads_our_solutions_to_the_same_values_and_we_read_its(peer: Any, solution: Solution) -> None:
    _same(solution, peer.Solution.model_validate_json(canonical_bytes(solution)))


def test_what_the_peer_saves_with_fields_left_unset_reads_to_the_same_definition(peer: Any, tmp_path: Path) -> None:
    saved = peer.Definition(
        name="copy", op_type="copy", axes={"M": peer.AxisVar(), "N": peer.AxisConst(value=4)},
        inputs={"x": peer.TensorSpec(shape=["M", "N"], dtype="float32")},
        outputs={"y": peer.TensorSpec(shape=["M", "N"], dtype="float32")}, reference="def run(x):\n    return x\n",
    )  # fmt: skip
    peer.save_json_file(saved, tmp_path / "copy.json")
    document = json.loads((tmp_path / "copy.json").read_text(encoding="utf-8"))
    assert document["axes"]["M"] == {}
    ours = read_lenient(Definition, document, where="copy.json")
    assert to_document(ours)["axes"] == {"M": {"type": "var"}, "N": {"type": "const", "value": 4}}


def test_the_peer_reads_a_workload_that_says_where_and_how_often_it_occurs(peer: Any) -> None:
    line = {"axes": {"n": 1}, "inputs": {"x": {"type": "random"}}, "uuid": "u", "count": 7, "origin": "real"}
    line["scales"] = {"x": 0.25}
    ours = read_strict(Workload, line, where="ours")
    assert (ours.count, ours.origin, ours.scales) == (7, "real", {"x": 0.25})
    theirs = peer.Workload.model_validate(line)
    assert (theirs.axes, theirs.uuid) == ({"n": 1}, "u")
