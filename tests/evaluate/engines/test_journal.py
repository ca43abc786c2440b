from __future__ import annotations

import os
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from engine_worlds import World
from fib_tools.dataset.store import Dataset
from fib_tools.errors import FormatError, LockedError, StorageError
from fib_tools.evaluate.engines.engine import Outcome
from fib_tools.evaluate.engines.items import Plan
from fib_tools.evaluate.engines.journal import Conflict, Journal, find_reusable
from fib_tools.model.evidence import Evidence, Gpu
from fib_tools.model.trace import EvaluationStatus

NOW = datetime(2026, 11, 21, 12, 0, 0, tzinfo=timezone.utc)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return World.make(tmp_path, {"a": ["x", "y"]}).plan("H200")


def prepare(plan: Plan, *, resume: bool = False) -> Journal:
    return Journal.prepare(Path(plan.dataset) / "runs", plan, resume=resume, now=NOW)


def outcomes(plan: Plan, **more: Any) -> list[Outcome]:
    """Make a result for each evaluation of the plan."""
    made = []
    for item in plan.items:
        for ref in item.solutions:
            subject = item.subject(ref, plan.hardware)
            seen: dict[str, Any] = {"subject": subject, "status": "PASSED", "gpu": Gpu(name="H200"), "timestamp": "now"}
            evidence = Evidence.model_validate({**seen, **more})
            made.append(Outcome(item=item, solution=ref, key=evidence.key, evidence=evidence, place="gpu0"))
    return made


def failed(outcome: Outcome) -> Outcome:
    return Outcome(
        item=outcome.item, solution=outcome.solution, key=outcome.key, evidence=None, failure="died", place="gpu0"
    )


def test_what_was_recorded_is_finished_and_the_rest_remains(plan: Plan) -> None:
    first, second, third, _ = outcomes(plan)
    with prepare(plan) as journal:
        assert journal.remaining() == plan.items
        assert all(journal.record(each) for each in (third, first))
        assert list(journal.results()) == [first.evidence, third.evidence]
    with prepare(plan, resume=True) as again:
        assert again.folder == journal.folder
        assert set(again.finished) == {first.key, third.key}
        assert [(item.workload, [ref.name for ref in item.solutions]) for item in again.remaining()] == [
            ("w0", ["a_s1"]),
            ("w1", ["a_s1"]),
        ]
        assert [item.workload for item in again.remaining({second.key})] == ["w1"]
        assert list(again.results()) == [first.evidence, third.evidence]


def test_another_plan_or_a_run_that_is_not_resumed_has_a_folder_of_its_own(plan: Plan) -> None:
    other = plan.model_copy(update={"hardware": "B200"})
    other.__dict__.pop("hash", None)
    first, second = prepare(plan), prepare(plan)
    assert second.folder.name == f"{first.folder.name}.2"
    assert first.folder.name == f"20261121-120000-{plan.hash[:12]}"
    assert prepare(plan, resume=True).folder == second.folder
    assert prepare(other, resume=True).folder not in {first.folder, second.folder}


def test_a_run_whose_plan_cannot_be_read_is_not_resumed(plan: Plan) -> None:
    first = prepare(plan)
    (first.folder / "plan.json").write_text("{", encoding="utf-8")
    assert prepare(plan, resume=True).folder != first.folder


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.99])
def test_half_a_line_is_cut_off_and_only_its_evaluation_is_lost(plan: Plan, kept: float) -> None:
    first, second, *_ = outcomes(plan)
    with prepare(plan) as journal:
        journal.record(first)
        whole = (journal.folder / "results.jsonl").stat().st_size
        journal.record(second)
    path = journal.folder / "results.jsonl"
    data = path.read_bytes()
    path.write_bytes(data[: whole + int(kept * (len(data) - whole))])
    with prepare(plan, resume=True) as again:
        assert set(again.finished) == {first.key}
        assert again.record(second)
    assert path.read_bytes() == data


def test_a_last_line_of_zeros_from_a_power_cut_is_cut_off(plan: Plan) -> None:
    first, *_ = outcomes(plan)
    with prepare(plan) as journal:
        journal.record(first)
    with (journal.folder / "results.jsonl").open("ab") as stream:
        stream.write(bytes(500) + b"\n")
    with prepare(plan, resume=True) as again:
        assert set(again.finished) == {first.key}


def test_damage_before_the_last_line_is_said_and_nothing_is_thrown_away(plan: Plan) -> None:
    with prepare(plan) as journal:
        for each in outcomes(plan):
            journal.record(each)
    path = journal.folder / "results.jsonl"
    path.write_bytes(b"[" + path.read_bytes()[1:])
    size = path.stat().st_size
    with pytest.raises(FormatError), prepare(plan, resume=True):
        pass
    assert path.stat().st_size == size


def test_the_first_of_two_results_for_one_address_counts_and_a_difference_is_kept(plan: Plan) -> None:
    first, *_ = outcomes(plan)
    other, *_ = outcomes(plan, status="TIMEOUT", rule="timeout")
    same, *_ = outcomes(plan, timestamp="later")
    with prepare(plan) as journal:
        assert [journal.record(each) for each in (first, same, other)] == [True, False, False]
        assert journal.conflicts == [Conflict(key=first.key, first="PASSED", second="TIMEOUT timeout")]
        assert list(journal.results()) == [first.evidence]


def test_a_failure_of_the_machinery_is_told_and_tried_again_by_the_next_run(plan: Plan) -> None:
    first, second, *_ = outcomes(plan)
    with prepare(plan) as journal:
        journal.record(failed(first))
        journal.record(failed(second))
    with prepare(plan, resume=True) as again:
        assert [(failure.key, failure.reason) for failure in again.failures] == [
            (first.key, "died"),
            (second.key, "died"),
        ]
        assert again.remaining() == plan.items
        again.record(second)
        assert [failure.key for failure in again.failures] == [first.key]


def test_a_measurement_that_drifted_is_made_again(plan: Plan) -> None:
    drifted = outcomes(plan, status="RUNTIME_ERROR", rule="drift")
    with prepare(plan) as journal:
        journal.record(drifted[0])
    with prepare(plan, resume=True) as again:
        assert again.remaining() == plan.items


def test_a_run_is_held_by_one_process_at_a_time(plan: Plan) -> None:
    with prepare(plan), pytest.raises(LockedError), prepare(plan, resume=True):
        pass


def test_a_full_disk_leaves_what_was_recorded_before(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, *_ = outcomes(plan)

    def write_half(descriptor: int, data: bytes, place: int) -> int:
        if len(data) < 100:
            raise OSError(28, "No space left on device")
        return os.write(descriptor, data[:-50]) if not os.lseek(descriptor, place, os.SEEK_SET) else len(data) - 50

    with prepare(plan) as journal:
        journal.record(first)
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", write_half)
            with pytest.raises(StorageError, match="No space"):
                journal.record(second)
        journal.record(second)
    with prepare(plan, resume=True) as again:
        assert set(again.finished) == {first.key, second.key}


def test_evidence_that_the_dataset_has_is_reusable_unless_it_is_damaged_or_drifted(plan: Plan, tmp_path: Path) -> None:
    dataset = Dataset(tmp_path)
    good, damaged, drifted, _ = (each.evidence for each in outcomes(plan))
    assert good
    assert damaged
    assert drifted
    dataset.write_evidence(good)
    dataset.write_evidence(damaged)
    (tmp_path / f"evidence/{damaged.key[:2]}/{damaged.key}.json").write_text("{}", encoding="utf-8")
    dataset.write_evidence(drifted.model_copy(update={"rule": "drift", "status": EvaluationStatus.RUNTIME_ERROR}))
    assert list(find_reusable(dataset, plan)) == [good]
    (tmp_path / f"evidence/{damaged.key[:2]}/{damaged.key}.json").write_bytes(
        (tmp_path / f"evidence/{good.key[:2]}/{good.key}.json").read_bytes()
    )
    with pytest.raises(FormatError, match="another evaluation"):
        dataset.find_evidence(damaged.key)
