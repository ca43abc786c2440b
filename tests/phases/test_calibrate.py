from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest

from fib_tools.errors import ChildTimeoutError, RequestError
from fib_tools.evaluate.calibration import calibration as evaluate_calibration
from fib_tools.evaluate.calibration.calibration import find_calibration, find_tolerances, save_calibration
from fib_tools.host.sandbox import Outcome
from fib_tools.model.definition import Definition
from fib_tools.op_types.registry import get_kernel_type
from fib_tools.phases import calibrate
from fib_tools.phases.calibrate import CalibrateResult, calibrate_definitions
from fib_tools.phases.context import Context


def _norm(hidden_size: int = 64) -> Definition:
    return get_kernel_type("rmsnorm").build({"hidden_size": hidden_size})


@pytest.fixture
def dataset(context: Context) -> Context:
    for definition in (_norm(), _norm(128)):
        context.dataset.write_definition(definition)
    return context


def test_a_definition_is_calibrated_in_the_sandbox_and_kept(dataset: Context) -> None:
    result = calibrate_definitions(dataset, definitions=("rmsnorm_h64",), device="cpu", seeds=1)
    entry = result.entries[0]
    assert (entry.status, entry.basis, entry.reason) == ("calibrated", "policy", "")
    assert entry.path.endswith("calibrations/rmsnorm/rmsnorm_h64.json")
    kept = find_calibration(dataset.workspace.root, _norm())
    assert kept is not None
    assert kept == entry.calibration
    assert kept.distributions == ["outliers", "shifted", "tiny", "typical"]
    assert kept.sources == ["reference"]
    assert not result.has_errors
    table = result.summary().tables[0]
    assert table.rows[0][:3] == ("rmsnorm_h64", "calibrated", "policy")
    assert result.summary().lines[-1].endswith("1 calibrated on cpu")


def test_what_was_measured_before_is_kept_unless_the_request_is_another(dataset: Context) -> None:
    def status(**asked: Any) -> list[str]:
        chosen = {"definitions": ("rmsnorm_h64",), "device": "cpu", "seeds": 1, **asked}
        return [entry.status for entry in calibrate_definitions(dataset, **chosen).entries]

    assert status() == ["calibrated"]
    written = find_calibration(dataset.workspace.root, _norm())
    assert status() == ["kept"]
    assert find_calibration(dataset.workspace.root, _norm()) == written
    assert status(definitions=None, all=True) == ["kept", "calibrated"]
    assert status(fresh=True) == ["calibrated"]
    assert status(dry_run=True) == ["kept"]
    assert status(seeds=2, dry_run=True) == ["would calibrate"]
    other = _norm().model_copy(update={"reference": _norm().reference + "\n# another text\n"})
    (dataset.dataset.root / "definitions/rmsnorm/rmsnorm_h64.json").unlink()
    dataset.dataset.write_definition(other)
    assert status(dry_run=True) == ["would calibrate"]


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(dataset: Context) -> None:
    result = calibrate_definitions(dataset, all=True, device="cpu", dry_run=True)
    assert [(entry.name, entry.status) for entry in result.entries] == [
        ("rmsnorm_h128", "would calibrate"),
        ("rmsnorm_h64", "would calibrate"),
    ]
    assert not (dataset.workspace.root / "calibrations").exists()


def test_the_machine_is_looked_at_once_for_all_definitions(dataset: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []
    monkeypatch.setattr(calibrate, "has_gpu", lambda: True)
    monkeypatch.setattr(calibrate, "find_hardware", lambda device: (looked.append(device) or "NVIDIA H200", 90))
    result = calibrate_definitions(dataset, all=True, device="cuda", dry_run=True)
    assert [entry.status for entry in result.entries] == ["would calibrate", "would calibrate"]
    assert looked == ["cuda"]


def test_a_reference_that_fails_is_an_error_of_its_own_entry(dataset: Context) -> None:
    broken = _norm(32).model_copy(update={"reference": "def run(hidden_states, weight):\n    raise OSError('no')\n"})
    dataset.dataset.write_definition(broken)
    result = calibrate_definitions(dataset, definitions=("rmsnorm_h32",), device="cpu", seeds=1)
    assert result.entries[0].status == "failed"
    assert "OSError: no" in result.entries[0].reason
    assert result.has_errors


def test_what_the_child_answers_is_not_trusted(dataset: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    answers: Iterator[Any] = iter(({"cases": [{"axes": "no"}]}, {"cases": 3}, None))

    class Liar:
        def run_many(self, _entry: str, payloads: Any, **_: Any) -> Iterator[Outcome]:
            list(payloads)
            value = next(answers)
            error = None if value else ChildTimeoutError("the job ran past 1 s")
            yield Outcome(index=0, value=value, error=error, output="", seconds=0.0, protections=None)

    monkeypatch.setattr(calibrate, "_open_sandbox", lambda _device: nullcontext(Liar()))
    reasons = [
        calibrate_definitions(dataset, definitions=("rmsnorm_h64",), device="cpu").entries[0].reason for _ in range(3)
    ]
    assert "not a valid Case" in reasons[0]
    assert "nothing could be measured" in reasons[1]
    assert "ran past 1 s" in reasons[2]


def test_bounds_from_real_kernels_are_not_replaced_by_a_run_without(dataset: Context) -> None:
    policies = find_tolerances(_norm(), None)
    first = evaluate_calibration.calibrate(_norm(), policies, [], device="cuda")
    outputs = {name: output.model_copy(update={"basis": "kernels"}) for name, output in first.outputs.items()}
    measured = first.model_copy(update={"outputs": outputs})
    save_calibration(dataset.workspace.root, _norm(), measured)
    entry = calibrate_definitions(dataset, definitions=("rmsnorm_h64",), device="cpu", seeds=1).entries[0]
    assert entry.path == ""
    assert entry.reason == "one that real kernels were measured for stays"
    assert find_calibration(dataset.workspace.root, _norm()) == measured


def test_a_gpu_that_is_not_there_is_refused(dataset: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "has_gpu", lambda: False)
    with pytest.raises(RequestError, match="sees no GPU"):
        calibrate_definitions(dataset, all=True, device="cuda")


def test_a_wrong_choice_is_refused(dataset: Context) -> None:
    with pytest.raises(RequestError, match="no Definition is selected"):
        calibrate_definitions(dataset)
    with pytest.raises(RequestError, match="no Definition 'rmsnorm_h1'"):
        calibrate_definitions(dataset, definitions=("rmsnorm_h1",))
    with pytest.raises(RequestError, match="no op_type"):
        calibrate_definitions(dataset, op_types=("nonsense",))
    with pytest.raises(RequestError, match="there is no dataset"):
        calibrate_definitions(replace(dataset, dataset_override=dataset.workspace.root / "none"), all=True)


def test_on_a_gpu_real_kernels_are_measured_at_more_sizes() -> None:
    payload = calibrate._make_payload(_norm(), "cuda", 2)
    assert list(payload["kernels"]) == ["flashinfer.norm.rmsnorm"]
    assert payload["values"] == ["output"]
    assert {case["axes"]["batch_size"] for case in payload["cases"]} == {3, 16}
    assert len(payload["cases"]) == 2 * 2 * 4
    assert calibrate._make_payload(_norm(), "cpu", 2)["kernels"] == {}


def test_experts_and_draws_are_not_measured_and_codes_are_the_same_or_not() -> None:
    page = get_kernel_type("append_paged_kv_cache").build({"num_kv_heads": 2, "head_dim": 64, "page_size": 16})
    payload = calibrate._make_payload(page, "cpu", 1)
    assert payload["values"] == []
    assert payload["same"] == list(page.outputs)
    sampler = get_kernel_type("top_k_sampling_from_probs").build({"vocab_size": 128})
    assert calibrate._make_payload(sampler, "cpu", 1)["same"] == []


def test_an_empty_result_says_so() -> None:
    result = CalibrateResult(dataset="here", device="cpu", entries=())
    assert result.summary().lines == ("here: nothing selected on cpu",)
