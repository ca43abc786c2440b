"""Each rule finds its fault in a dataset that is otherwise without one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from example_dataset import BLOB, safetensors, write
from fib_tools.checks.dataset import FAMILIES, check_dataset, list_rules
from fib_tools.checks.definitions import NOT_EXECUTED
from fib_tools.checks.view import open_view
from fib_tools.dataset.store import Dataset
from fib_tools.errors import RequestError
from fib_tools.model.report import Severity

D = "definitions/copy/copy_n4.json"
W = "workloads/copy/copy_n4.jsonl"
S = "solutions/baseline/copy/copy_n4/wrapper.json"
T = "traces/baseline/copy/copy_n4.jsonl"


def found(root: Path, **options: Any) -> set[str]:
    view = open_view(Dataset(root), op_types=options.pop("op_types", None), names=options.pop("names", None))
    return {finding.check for finding in check_dataset(view, **options)}


def put(*steps: Any) -> Callable[[Any], None]:
    """Set the value at a path of keys."""
    *keys, last, value = steps

    def edit(document: Any) -> None:
        for key in keys:
            document = document[key]
        document[last] = value

    return edit


def drop(*keys: Any) -> Callable[[Any], None]:
    def edit(document: Any) -> None:
        for key in keys[:-1]:
            document = document[key]
        del document[keys[-1]]

    return edit


def unbind(definition: Any) -> None:
    definition["axes"]["m"] = {"type": "var", "description": "Free."}
    definition["outputs"]["y"]["shape"] = ["m"]


def again(line: Any) -> Any:
    return [*line, *line]


def test_a_good_dataset_has_no_findings(good: Path) -> None:
    assert found(good) == set()


BLOB_INPUT = (0, "workload", "inputs", "indptr")

CHANGED: list[tuple[str, str, Callable[[Any], Any]]] = [
    ("layout.name_differs", D, put("name", "other_n4")),
    ("layout.op_type_differs", D, put("op_type", "other")),
    ("definition.unreadable", D, drop("reference")),
    ("definition.unknown_field", D, put("inputs", "x", "optional", False)),
    ("definition.constraint_false", D, put("constraints", ["n == 5"])),
    ("definition.constraints_clash", D, put("constraints", ["rows == 2", "rows == 3"])),
    ("definition.constraint_name", D, put("constraints", ["rows == offsets[-1]"])),
    ("definition.constraint_unchecked", D, put("constraints", ["n == 9**9"])),
    ("definition.run_arity", D, put("reference", "def run(x, indptr):\n    return x\n")),
    ("definition.run_arity", D, put("reference", "def run(x, indptr, *, scale):\n    return x\n")),
    ("definition.run_names", D, put("reference", "def run(x, scale, indptr):\n    return x\n")),
    ("definition.description_missing", D, drop("inputs", "x", "description")),
    ("definition.axis_unused", D, put("axes", "m", {"type": "const", "value": 4, "description": "Unused."})),
    ("definition.axis_unbound", D, unbind),
    ("definition.axis_zero", D, put("axes", "n", "value", 0)),
    ("definition.tag_malformed", D, put("tags", [":x", "status:verified"])),
    ("definition.status_missing", D, put("tags", [])),
    ("definition.name_number", D, put("axes", "n", "value", 8)),
    ("workload.unreadable", W, lambda lines: [*lines, {"definition": "copy_n4"}]),
    ("workload.not_a_workload", W, put(0, "solution", "wrapper")),
    ("workload.definition_differs", W, put(0, "definition", "other")),
    ("workload.axis_missing", W, drop(0, "workload", "axes", "rows")),
    ("workload.axis_unknown", W, put(0, "workload", "axes", "n", 4)),
    ("workload.axis_not_positive", W, put(0, "workload", "axes", "rows", 0)),
    ("workload.constraint_false", W, put(0, "workload", "axes", "rows", 7)),
    ("workload.input_missing", W, drop(0, "workload", "inputs", "x")),
    ("workload.input_unknown", W, put(0, "workload", "inputs", "z", {"type": "random"})),
    ("workload.scalar_for_tensor", W, put(0, "workload", "inputs", "x", {"type": "scalar", "value": 1})),
    ("workload.tensor_for_scalar", W, put(0, "workload", "inputs", "scale", {"type": "random"})),
    ("workload.blob_missing", W, put(*BLOB_INPUT, "path", "blob/workloads/copy/copy_n4/none.safetensors")),
    ("workload.blob_missing", W, put(*BLOB_INPUT, "path", "../../etc/passwd")),
    ("workload.blob_key_missing", W, put(*BLOB_INPUT, "tensor_key", "other")),
    ("workload.uuid_duplicate", W, again),
    ("workload.content_duplicate", W, lambda lines: [*lines, {**lines[0], "workload": {**lines[0]["workload"], "uuid": "two"}}]),
    ("workload.blob_orphan", W, put(*BLOB_INPUT, "path", "blob/workloads/copy/copy_n4/none.safetensors")),
    ("solution.unreadable", S, drop("spec")),
    ("solution.field_differs", S, put("author", "me")),
    ("solution.syntax", S, put("sources", 0, "content", "def run(:")),
    ("solution.entry_missing", S, put("spec", "entry_point", "main.py::go")),
    ("trace.unreadable", T, lambda lines: [*lines, {"workload": 1}]),
    ("trace.definition_differs", T, put(0, "definition", "other")),
    ("trace.no_evaluation", T, drop(0, "evaluation")),
    ("trace.solution_unknown", T, put(0, "solution", "ghost")),
    ("trace.uuid_unknown", T, put(0, "workload", "uuid", "ghost")),
    ("trace.workload_differs", T, put(0, "workload", "axes", "rows", 9)),
    ("trace.coverage", T, lambda _lines: []),
]  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "path", "edit"), CHANGED, ids=[f"{row[0]}-{index}" for index, row in enumerate(CHANGED)]
)
def test_a_changed_document_breaks_the_rule(
    rewrite: Callable[..., Path], rule: str, path: str, edit: Callable[[Any], Any]
) -> None:
    assert rule in found(rewrite(path, edit))


def _remove(path: str) -> Callable[[Path], None]:
    return lambda root: (root / path).unlink()


def _add(path: str, content: Any = "x") -> Callable[[Path], None]:
    return lambda root: write(root, path, content)


def _link_out(root: Path) -> None:
    (root / "definitions/copy/out.json").symlink_to("/etc/hostname")


def _foreign(root: Path) -> None:
    source = (root / S).read_text(encoding="utf-8").replace('"baseline"', '"me"').replace('"wrapper"', '"mine"')
    write(root, "solutions/me/copy/copy_n4/mine.json", source)
    write(root, T, (root / T).read_text(encoding="utf-8").replace('"wrapper"', '"mine"'))


def _copy(source: str, target: str, *replace: tuple[str, str]) -> Callable[[Path], None]:
    def place(root: Path) -> None:
        text = (root / source).read_text(encoding="utf-8")
        for old, new in replace:
            text = text.replace(old, new)
        write(root, target, text)

    return place


PLACED: list[tuple[str, Callable[[Path], None]]] = [
    ("layout.misplaced", _add("definitions/copy_n4.json", "{}")),
    ("layout.misplaced", _add("workloads/copy/copy_n4.json", "{}")),
    ("layout.stray", _add("definitions/copy/notes.txt")),
    ("layout.stray", _add("blob/.DS_Store")),
    ("layout.link_out", _link_out),
    ("layout.bad_name", _add("definitions/copy/a b.json", "{}")),
    ("layout.duplicate_definition", _copy(D, "definitions/other/copy_n4.json")),
    ("layout.op_type_differs", _copy(W, "workloads/other/copy_n4.jsonl")),
    ("layout.orphan", _copy(W, "workloads/copy/ghost.jsonl")),
    ("layout.orphan", _add("tests/references/test_ghost.py")),
    ("layout.old_traces", _copy(T, "traces/copy/copy_n4.jsonl")),
    ("workload.none", _remove(W)),
    ("workload.blob_missing", _remove(BLOB)),
    ("workload.blob_missing", _add(BLOB, b"\x00")),
    ("workload.blob_missing", _add(BLOB, b"\x08\0\0\0\0\0\0\0notjson!")),
    ("workload.blob_missing", _add(BLOB, b"\x02\0\0\0\0\0\0\0[]")),
    ("workload.blob_missing", _add(BLOB, safetensors({"indptr": ("I32", [3], 12)})[:-1])),
    ("workload.blob_shape", _add(BLOB, safetensors({"indptr": ("I32", [4], 16)}))),
    ("workload.blob_dtype", _add(BLOB, safetensors({"indptr": ("I64", [3], 24)}))),
    ("solution.name_duplicate", _copy(S, "solutions/me/copy/copy_n4/wrapper.json", ('"baseline"', '"me"'))),
    ("baseline.missing", _remove(S)),
    ("baseline.trace_missing", _remove(T)),
    ("baseline.not_passing", _copy(T, T, ('"PASSED"', '"INCORRECT_NUMERICAL"'), (', "performance": {"latency_ms": 1.0, "reference_latency_ms": 2.0, "speedup_factor": 2.0}', ""))),
    ("baseline.foreign_solution", _foreign),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "place"), PLACED, ids=[f"{row[0]}-{index}" for index, row in enumerate(PLACED)])
def test_a_file_out_of_order_breaks_the_rule(good: Path, rule: str, place: Callable[[Path], None]) -> None:
    place(good)
    assert rule in found(good)


def test_every_rule_has_a_test_that_breaks_it() -> None:
    by_running = {NOT_EXECUTED.id}  # tests/phases/test_validate.py breaks it
    broken = {row[0] for row in CHANGED} | {row[0] for row in PLACED}
    assert {rule.id for rule in list_rules()} == broken | by_running


def test_rule_ids_begin_with_the_name_of_their_family() -> None:
    for family in FAMILIES:
        assert {rule.id.partition(".")[0] for rule in family.rules} == {family.name}


def test_only_the_chosen_families_and_rules_speak(good: Path) -> None:
    (good / T).unlink()
    (good / BLOB).unlink()
    assert found(good, checks=("baseline",)) == {"baseline.trace_missing"}
    assert found(good, checks=("workload.blob_missing",)) == {"workload.blob_missing"}
    with pytest.raises(RequestError, match="no check 'colour'"):
        found(good, checks=("colour",))


def test_filters_choose_whose_findings_are_wanted(good: Path) -> None:
    (good / BLOB).unlink()
    assert found(good, names=("other",)) == set()
    assert found(good, op_types=("copy",)) == found(good, names=("copy_n4",)) == {"workload.blob_missing"}


def test_a_workload_of_two_gigabyte_claims_is_an_unreadable_blob_and_no_crash(good: Path) -> None:
    write(good, BLOB, b"\xff" * 8)
    assert "workload.blob_missing" in found(good)


def test_findings_say_what_to_do(good: Path) -> None:
    (good / BLOB).unlink()
    view = open_view(Dataset(good))
    finding = next(iter(check_dataset(view)))
    assert (finding.severity, finding.where, finding.definition) == (Severity.ERROR, f"{W}:1 indptr", "copy_n4")
    assert finding.todo == "add the file"
