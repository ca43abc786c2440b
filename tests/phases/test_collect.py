from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from fib_tools.capture.collection import collector, following, receipt
from fib_tools.capture.collection.dumps import list_call_folders
from fib_tools.dataset import store
from fib_tools.dataset.store import Dataset
from fib_tools.errors import FormatError, RequestError
from fib_tools.model.definition import Definition
from fib_tools.op_types.registry import get_kernel_type
from fib_tools.operations import get_operation
from fib_tools.phases import collect as collecting
from fib_tools.phases.collect_result import CollectResult
from fib_tools.phases.context import Context
from fib_tools.phases.validate import validate_dataset
from level10 import Recording

NORM = get_kernel_type("rmsnorm").build({"hidden_size": 8, "eps": 1e-5})
DECODE = get_kernel_type("gqa_paged_decode").build(
    {"num_qo_heads": 4, "num_kv_heads": 2, "head_dim": 8, "page_size": 1}
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run of two layers: a prefill and three decodes."""
    recording = Recording(tmp_path / "dumps")
    recording.rmsnorm(9)
    recording.rmsnorm(9)
    for step in range(3):
        recording.plan_decode([4 + step, 5 + step])
        recording.rmsnorm(2)
        recording.run_decode(2)
        recording.run_decode(2)
    recording.rmsnorm(3, hidden_size=16)
    return recording.folder


@pytest.fixture
def ready(context: Context) -> Context:
    for definition in (NORM, DECODE):
        context.dataset.write_definition(definition)
    return context


def collect(context: Context, folder: Path, **options: Any) -> CollectResult:
    result = get_operation("collect").run(context, {"from_dir": folder, "origin": "dummy", **options})
    assert isinstance(result, CollectResult)
    return result


def lines(context: Context, definition: Definition) -> list[dict[str, Any]]:
    path = context.dataset.root / "workloads" / definition.op_type / f"{definition.name}.jsonl"
    return [json.loads(line)["workload"] for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_calls_of_a_run_become_workloads_that_the_validator_and_the_references_accept(
    ready: Context, folder: Path
) -> None:
    result = collect(ready, folder)
    assert [(item.definition, item.status, item.calls, item.workloads, item.blobs) for item in result.entries] == [
        (DECODE.name, "written", 6, 3, 3),
        (NORM.name, "written", 5, 2, 0),
    ]
    assert not result.has_errors
    assert sorted((item["axes"]["batch_size"], item["count"]) for item in lines(ready, NORM)) == [(2, 3), (9, 2)]
    assert {item["origin"] for item in lines(ready, DECODE)} == {"dummy"}
    assert [item.check for item in validate_dataset(ready, checks=("workload", "layout")).findings] == []
    assert [(item.function, item.calls) for item in result.refused] == [("rmsnorm", 1)]


def test_the_real_distribution_stands_beside_the_chosen(ready: Context, folder: Path) -> None:
    result = collect(ready, folder, num_samples=1, op_types=("gqa_paged",))
    (entry,) = result.entries
    (pages,) = [item for item in entry.spreads if item.axis == "num_kv_indices"]
    assert str(pages.calls) == "9 / 11 / 13 / 13"
    assert pages.chosen is not None
    assert pages.chosen.least == pages.chosen.most
    assert [item["count"] for item in lines(ready, DECODE)] == [6], "it stands for all calls"
    assert "lengths" in [table.title for table in result.summary().tables]


def test_collecting_again_changes_nothing(ready: Context, folder: Path) -> None:
    collect(ready, folder)
    before = {path: path.read_bytes() for path in ready.dataset.root.rglob("*") if path.is_file()}
    assert {item.status for item in collect(ready, folder).entries} == {"unchanged"}
    assert {path: path.read_bytes() for path in ready.dataset.root.rglob("*") if path.is_file()} == before


def test_counts_of_calls_that_are_gone_add_up(ready: Context, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "again")
    collect(ready, folder, consume=True)
    collect(ready, tmp_path / "again", consume=True)
    assert sorted((item["axes"]["batch_size"], item["count"]) for item in lines(ready, NORM)) == [(2, 6), (9, 4)]


def test_a_dry_run_writes_and_removes_nothing(ready: Context, folder: Path) -> None:
    result = collect(ready, folder, dry_run=True)
    assert {item.status for item in result.entries} == {"would write"}
    assert not (ready.dataset.root / "workloads").exists()
    assert not (ready.dataset.root / "blob").exists()
    assert len(list(folder.iterdir())) == 15
    with pytest.raises(RequestError, match="a dry run removes nothing"):
        collect(ready, folder, dry_run=True, consume=True)


def test_calls_are_removed_when_their_workloads_are_written(ready: Context, folder: Path) -> None:
    (other,) = sorted(folder.iterdir())[-1:]
    result = collect(ready, folder, consume=True)
    assert list(folder.iterdir()) == [other]
    assert len(lines(ready, DECODE)) == 3
    assert f"calls that are part of no Workload, and stay in {folder}: 1" in result.summary().lines


def test_calls_that_became_no_workload_stay_with_their_plans(ready: Context, tmp_path: Path) -> None:
    recording = Recording(tmp_path / "mixed")
    recording.plan_decode([3])
    recording.run_decode(1)
    plan = recording.plan_decode([4])
    recording.run_decode(1)
    refused = recording.run_decode(1, heads=8)
    unread = recording.rmsnorm(2)
    (unread / "metadata.jsonl").write_text("half a li\n", encoding="utf-8")
    unused = recording.plan_decode([5], self_id=2)
    other = recording.call("gelu", "(x)", torch.ones(1), module="flashinfer.activation")
    staying = sorted([plan, refused, unread, unused, other])
    assert collect(ready, recording.folder, consume=True).staying == 5
    assert sorted(recording.folder.iterdir()) == staying
    again = collect(ready, recording.folder, consume=True)
    assert (again.entries, sorted(recording.folder.iterdir())) == ((), staying)


def test_calls_whose_workload_the_reference_fails_on_stay(ready: Context, folder: Path) -> None:
    broken = NORM.model_copy(
        update={"reference": NORM.reference.replace("x = hidden", "assert hidden_states.shape[0] < 5\n    x = hidden")}
    )
    other = replace(ready, dataset_override=ready.workspace.root / "other")
    other.dataset.write_definition(broken)
    first, second, *_ = sorted(folder.iterdir())
    collect(other, folder, consume=True, op_types=("rmsnorm",))
    assert {first, second} < set(folder.iterdir())
    assert [item["count"] for item in lines(other, NORM)] == [3]


def test_what_is_followed_is_removed_whatever_became_of_it(ready: Context, folder: Path) -> None:
    assert collect(ready, folder, follow=0.1, consume=True).staying == 0
    assert list(folder.iterdir()) == []


class Killed(BaseException):
    """The process ends here."""


def kill_at(patch: pytest.MonkeyPatch, step: int) -> None:
    """End the process before a change to the disk, or in the middle of removing a call."""
    steps = itertools.count()
    changes = ((receipt, "write_atomically"), (store, "write_atomically"), (receipt, "remove_call"))
    for module, name in (
        *changes,
        (collecting, "remove_call"),
        (following, "remove_call"),
        (receipt, "storage_errors"),
    ):
        patch.setattr(module, name, partial(_change_unless_killed, getattr(module, name), steps, step))


def _change_unless_killed(do: Any, steps: Iterator[int], last: int, path: Path, *rest: Any) -> Any:
    if next(steps) != last:
        return do(path, *rest)
    if path.is_dir():
        (path / "metadata.jsonl").unlink()
    raise Killed


def copy_calls(tmp_path: Path, name: str) -> Path:
    """Copy what one plan() ran, and a norm."""
    recording = Recording(tmp_path / name)
    recording.plan_decode([4, 5])
    recording.run_decode(2)
    recording.rmsnorm(2)
    recording.run_decode(2)
    return recording.folder


def follow_in_steps(patch: pytest.MonkeyPatch, calls: int) -> None:
    """Have so many calls lie there at one time, and counted when two of them are new."""
    patch.setattr(collector, "list_call_folders", lambda folder: list_call_folders(folder)[:calls])
    patch.setattr(following, "_STEP_CALLS", 2)
    patch.setattr(following, "_PAUSE_SECONDS", 0.001)


@pytest.mark.parametrize(("options", "steps"), [({"consume": True}, 10), ({"follow": 0.01}, 13)])
def test_a_kill_at_any_point_neither_loses_a_call_nor_counts_one_twice(
    ready: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], steps: int
) -> None:
    monkeypatch.setattr(collecting, "_execute", lambda *_: {})
    if "follow" in options:
        follow_in_steps(monkeypatch, calls=3)
    for step in itertools.count():
        folder = copy_calls(tmp_path, f"dumps-{step}")
        try:
            with monkeypatch.context() as patch:
                kill_at(patch, step)
                collect(ready, folder, **options)
            break
        except Killed:
            collect(ready, copy_calls(tmp_path, f"others-{step}"), **options)
            collect(ready, folder, **options)
        counted = [item["count"] for definition in (DECODE, NORM) for item in lines(ready, definition)]
        assert (step, counted) == (step, [4 * (step + 1), 2 * (step + 1)])
        assert not [path for path in folder.iterdir() if "plan" not in path.name]
        assert not (ready.workspace.root / ".counted.json").exists()
    assert step == steps


def test_what_is_counted_in_steps_is_chosen_as_a_whole(
    ready: Context, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder, tmp_path / "again")
    whole = replace(ready, dataset_override=ready.workspace.root / "other")
    whole.dataset.write_definition(DECODE)
    collect(whole, tmp_path / "again", consume=True, num_samples=1)
    follow_in_steps(monkeypatch, calls=4)
    result = collect(ready, folder, follow=0.01, num_samples=1)
    assert [(item.status, item.calls, item.workloads, item.blobs) for item in result.entries] == [
        ("written", 6, 1, 1),
        ("written", 5, 1, 0),
    ]
    assert lines(ready, DECODE) == lines(whole, DECODE)
    (blob,) = (ready.dataset.root / "blob").rglob("*.safetensors")
    assert str(blob).endswith(lines(ready, DECODE)[0]["inputs"]["kv_indptr"]["path"])
    assert list(folder.iterdir()) == []


def test_a_receipt_removes_nothing_but_calls(ready: Context, folder: Path) -> None:
    ready.workspace.create()
    (folder / "mine").mkdir()
    note = {"dataset": str(ready.dataset.root), "op_type": "rmsnorm", "definition": NORM.name, "workloads": []}
    (ready.workspace.root / ".counted.json").write_text(json.dumps({**note, "calls": [str(folder / "mine")]}))
    collect(ready, folder, consume=True)
    assert (folder / "mine").is_dir()


def test_a_workload_that_the_reference_fails_on_is_not_written(ready: Context, folder: Path) -> None:
    broken = NORM.model_copy(
        update={"reference": NORM.reference.replace("x = hidden", "assert hidden_states.shape[0] < 5\n    x = hidden")}
    )
    other = replace(ready, dataset_override=ready.workspace.root / "other")
    other.dataset.write_definition(broken)
    result = collect(other, folder)
    (entry,) = result.entries
    assert (entry.status, entry.workloads, len(entry.rejected)) == ("written", 1, 1)
    assert "AssertionError" in entry.rejected[0]
    assert result.has_errors
    assert [item["axes"] for item in lines(other, NORM)] == [{"batch_size": 2}]


def test_where_the_calls_come_from_has_to_be_said(ready: Context, folder: Path) -> None:
    with pytest.raises(RequestError, match="no dump says where its calls come from"):
        get_operation("collect").run(ready, {"from_dir": folder})
    with pytest.raises(RequestError, match="origin cannot be 'made up'"):
        collect(ready, folder, origin="made up")


def test_a_selection_that_selects_nothing_is_refused(ready: Context, folder: Path) -> None:
    with pytest.raises(RequestError, match="no Definition 'none'"):
        collect(ready, folder, definitions=("none",))
    with pytest.raises(RequestError, match="no Definition of a known kernel type"):
        collect(ready, folder, op_types=("gemm",))


def test_a_workload_file_that_cannot_be_added_to_is_found_before_a_call_is_removed(
    ready: Context, folder: Path
) -> None:
    path = ready.dataset.root / "workloads" / "rmsnorm" / f"{NORM.name}.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("half a li", encoding="utf-8")
    with pytest.raises(FormatError, match="not JSON"):
        collect(ready, folder, follow=0.1)
    assert len(list(folder.iterdir())) == 15


def test_definitions_without_a_call_are_named(ready: Context, folder: Path) -> None:
    ready.dataset.write_definition(get_kernel_type("silu_and_mul").build({"intermediate_size": 8}))
    assert collect(ready, folder).not_seen == ("silu_and_mul_i8",)


def test_nothing_is_left_in_the_workspace(ready: Context, folder: Path) -> None:
    collect(ready, folder)
    left = {path.name for path in ready.workspace.root.iterdir()}
    assert not [name for name in left if "tmp" in name]
    assert Dataset.open(ready.dataset.root)


def test_a_folder_that_gives_nothing_is_an_error(ready: Context, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = collect(ready, tmp_path / "empty")
    assert result.has_errors
    *_, looked_for, made_by, _ = result.summary().lines
    assert looked_for.startswith(f"{tmp_path / 'empty'} has no call in it: at log level 10 FlashInfer makes a folder")
    assert f"FLASHINFER_LOGLEVEL=10 FLASHINFER_DUMP_DIR={tmp_path / 'empty'}" in made_by
    example = tmp_path / "empty" / looked_for.partition("such as ")[2].partition(",")[0]
    example.mkdir()
    assert list_call_folders(example.parent) == [example]


def test_the_load_of_experts_is_told_and_routing_that_was_made_up_is_synthetic(ready: Context, tmp_path: Path) -> None:
    kernel = get_kernel_type("moe_bf16")
    experts = {"num_experts": 8, "top_k": 2, "num_local_experts": 8, "hidden_size": 16, "intermediate_size": 8}
    definition = kernel.build({**experts, "routing": "renormalize"})
    ready.dataset.write_definition(definition)
    ids = torch.tensor([[5, 2], [2, 7], [2, 0]], dtype=torch.int32)
    Recording(tmp_path / "moe").experts(ids, torch.full((3, 2), 0.5))
    result = collect(ready, tmp_path / "moe")
    (entry,) = result.entries
    assert (entry.status, entry.workloads, entry.rejected) == ("written", 1, ())
    assert str(entry.load) == "4 of 8 experts idle, the busiest has 4 times the mean"
    assert [item["origin"] for item in lines(ready, definition)] == ["dummy"]
    collect(ready, tmp_path / "moe", expert_skew=1.0)
    assert sorted(item["origin"] for item in lines(ready, definition)) == ["dummy", "synthetic"]
