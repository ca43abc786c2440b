from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from engine_worlds import World, definition, solution, workload
from fib_tools.evaluate.engines.items import (
    BlobHasher,
    Bound,
    Bundle,
    Plan,
    find_task,
    hash_definition,
    hash_workload,
    plan_items,
)
from fib_tools.model.base import read_strict, to_document
from fib_tools.model.canonical import canonical_bytes, load_json
from fib_tools.model.definition import DType
from fib_tools.model.workload import Workload
from fib_tools.op_types.tolerance import Policy, Tolerance, chosen, exact, requantised, routed, sampled, summed


def no_blob(_path: str) -> str:
    raise AssertionError


def test_a_plan_has_an_item_for_each_workload_with_definitions_together(tmp_path: Path) -> None:
    world = World.make(tmp_path, {"b": ["x", "y"], "a": ["x"], "none": []})
    plan = world.plan("H200")
    assert [(item.definition, item.workload, len(item.solutions)) for item in plan.items] == [
        ("b", "w0", 2),
        ("b", "w1", 2),
        ("a", "w0", 1),
        ("a", "w1", 1),
    ]
    assert plan.evaluations == len(set(plan.keys)) == 6


def test_many_solutions_of_a_definition_are_measured_in_heats_each_on_all_workloads(tmp_path: Path) -> None:
    plan = World.make(tmp_path, {"a": [str(number) for number in range(10)]}).plan("H200")
    assert [(item.heat, item.workload, len(item.solutions)) for item in plan.items] == [
        (0, "w0", 8),
        (0, "w1", 8),
        (1, "w0", 2),
        (1, "w1", 2),
    ]
    assert len(set(plan.keys)) == 20


def test_a_plan_comes_back_from_its_document_with_the_same_hash(tmp_path: Path) -> None:
    plan = World.make(tmp_path, {"a": ["x"]}).plan("H200")
    again = read_strict(Plan, load_json(canonical_bytes(plan), where="plan"), where="plan")
    assert again == plan
    assert again.hash == plan.hash


def test_a_plans_hash_depends_on_its_items_and_options_and_not_on_where_the_dataset_lies(tmp_path: Path) -> None:
    world = World.make(tmp_path, {"a": ["x"]})
    plan = world.plan("H200")
    assert read_strict(Plan, {**to_document(plan), "dataset": "/elsewhere"}, where="plan").hash == plan.hash
    assert world.plan("H200", silence_seconds=1.0).hash != plan.hash
    assert World.make(tmp_path, {"a": ["y"]}).plan("H200").hash != plan.hash


def test_texts_for_people_do_not_change_what_a_definition_is_and_the_order_of_its_inputs_does() -> None:
    plain = definition("a")
    document = plain.model_dump(mode="json", exclude_none=True)
    told = {**document, "description": "Copies.", "tags": ["x:y"], "name": "b"}
    told["axes"] = {"n": {"type": "var", "description": "Rows."}}
    assert hash_definition(type(plain).model_validate(told)) == hash_definition(plain)
    two = {**document, "inputs": {"x": document["inputs"]["x"], "z": document["inputs"]["x"]}}
    turned = {**two, "inputs": dict(reversed(list(two["inputs"].items())))}
    assert hash_definition(type(plain).model_validate(two)) != hash_definition(type(plain).model_validate(turned))


def test_a_workload_is_another_when_its_blob_has_other_bytes(tmp_path: Path) -> None:
    spec = {"type": "safetensors", "path": "./blob/x.safetensors", "tensor_key": "x"}
    with_blob = Workload.model_validate({"axes": {"n": 1}, "inputs": {"x": spec}, "uuid": "w"})
    hashes = {hash_workload(with_blob, BlobHasher(tmp_path))}
    (tmp_path / "blob").mkdir()
    for content in (b"1", b"2"):
        (tmp_path / "blob/x.safetensors").write_bytes(content)
        hashes.add(hash_workload(with_blob, BlobHasher(tmp_path)))
    assert len(hashes) == 3
    assert hash_workload(workload(0), no_blob) == hash_workload(workload(0).model_copy(update={"uuid": "v"}), no_blob)


def test_a_blob_is_read_once(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"1")
    hasher = BlobHasher(tmp_path)
    first = hasher("x")
    (tmp_path / "x").unlink()
    assert hasher("x") == first != hasher("y") == hasher("../x")


def test_an_item_without_what_is_finished_keeps_the_rest(tmp_path: Path) -> None:
    (item, _) = World.make(tmp_path, {"a": ["x", "y"]}).items
    first, second = item.solutions
    left = item.without({item.key(first, "H200")}, "H200")
    assert left is not None
    assert left.solutions == (second,)
    assert item.without({item.key(ref, "H200") for ref in item.solutions}, "H200") is None
    assert item.find_solution(item.key(second, "H200"), "H200") == second
    assert item.find_solution(item.key(second, "H200"), "B200") is None


def test_names_do_not_count_in_a_key_and_what_runs_does(tmp_path: Path) -> None:
    def key(name: str, source: str) -> str:
        bundle = Bundle(definition=definition("a"), workloads=(workload(0),), solutions=(solution(name, "a", source),))
        (item,) = plan_items([bundle], hash_blob=BlobHasher(tmp_path))
        return item.key(item.solutions[0], "H200")

    assert key("one", "x") == key("two", "x") != key("one", "y")


def test_a_task_has_the_documents_of_its_item(tmp_path: Path) -> None:
    world = World.make(tmp_path, {"a": ["x", "y"]})
    item = world.items[1]
    second = item.model_copy(update={"solutions": item.solutions[1:]})
    task = find_task(second, world.load("a"))
    assert task.workload.uuid == "w1"
    assert [each.sources[0].content for each in task.solutions] == ["y"]


@pytest.mark.parametrize("policy", [exact, summed, chosen, sampled, routed(requantised)])
def test_a_tolerance_is_the_same_when_it_was_a_document(policy: Policy) -> None:
    tolerance = policy(DType.BFLOAT16)
    assert Bound.of(tolerance).to_tolerance() == tolerance
    assert {field.name for field in fields(Tolerance)} == set(Bound.model_fields)
