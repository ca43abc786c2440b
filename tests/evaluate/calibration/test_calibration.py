from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from fib_tools.errors import FormatError
from fib_tools.evaluate.calibration._calibrate_child import measure
from fib_tools.evaluate.calibration.calibration import (
    Calibration,
    Case,
    FaultResult,
    OutputCalibration,
    calibrate,
    find_calibration,
    find_tolerances,
    hash_kernel,
    save_calibration,
)
from fib_tools.evaluate.calibration.faults import OUTPUT_FAULTS
from fib_tools.evaluate.calibration.profiles import HIT_RATIOS, UNBOUNDED, list_rtols, measure_profile
from fib_tools.evaluate.judge.comparison import compare_call_outputs
from fib_tools.model.base import read_strict, to_document
from fib_tools.model.definition import Definition, DType
from fib_tools.op_types.registry import get_kernel_type
from fib_tools.op_types.tolerance import Tolerance, exact, rounded, summed

_KERNEL = """
import torch

def run(hidden_states, weight):
    x = hidden_states.float()
    return (torch.nn.functional.rms_norm(x, x.shape[-1:], eps=1e-6) * weight.float()).to(hidden_states.dtype)
"""
_ROUGH = """
import torch

def run(hidden_states, weight):
    x = hidden_states.float()
    rough = (x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + 1e-6)).bfloat16()
    return (rough.float() + 0.5 * x.square().mean(dim=-1, keepdim=True).sqrt()).mul(weight.float()).to(hidden_states.dtype)
"""


def _norm(hidden_size: int = 64) -> Definition:
    return get_kernel_type("rmsnorm").build({"hidden_size": hidden_size})


def _measure(definition: Definition, kernels: Mapping[str, str] | None = None, **payload: Any) -> dict[str, Any]:
    policies = find_tolerances(definition, None)
    values = [name for name, policy in policies.items() if policy.how == "values" and policy.rtol]
    same = [name for name, policy in policies.items() if policy.how == "values" and not policy.rtol]
    cases = [
        {"axes": {}, "seed": seed, "distribution": distribution, "breaks_source": True}
        for seed in (0, 1)
        for distribution in ("typical", "tiny")
    ]
    whole = {"document": to_document(definition), "kernels": dict(kernels or {}), "values": values, "same": same}
    return measure({**whole, "cases": cases, "device": "cpu", **payload})


def _cases(answer: Mapping[str, Any]) -> list[Case]:
    return [read_strict(Case, case, where="case") for case in answer["cases"]]


@pytest.fixture(scope="module")
def norm_cases() -> list[Case]:
    return _cases(_measure(_norm(), {"torch.rms_norm": _KERNEL}))


def _calibrate(cases: list[Case], device: Any = "cuda") -> Calibration:
    definition = _norm()
    return calibrate(definition, find_tolerances(definition, get_kernel_type("rmsnorm")), cases, device=device)


def _faults(calibration: Calibration) -> dict[str, FaultResult]:
    return {fault.name.partition(":")[0]: fault for fault in calibration.faults}


def test_bounds_of_a_norm_are_one_rounding_and_catch_every_fault(norm_cases: list[Case]) -> None:
    calibration = _calibrate(norm_cases)
    output = calibration.outputs["output"]
    assert (output.rtol, output.hit_ratio, output.basis) == (2**-7, 1.0, "kernels")
    assert output.atol <= 2**-18
    assert calibration.refused == []
    assert {source: share <= 1 for source, share in output.trusted.items()} == {
        "reference": True,
        "torch.rms_norm": True,
    }
    states = {name: fault.state for name, fault in _faults(calibration).items()}
    required = {"scaled", "noisy", "swapped-rows", "zeros", "stale", "half-sum", "dropped-term"}
    assert {name: states[name] for name in required} == dict.fromkeys(required, "caught")
    assert output.least_fault is not None
    assert output.least_fault > 1


def test_calibrated_bounds_pass_the_trusted_kernel_and_refuse_the_half_sum(norm_cases: list[Case]) -> None:
    tolerance = _calibrate(norm_cases).outputs["output"].tolerance
    x = torch.randn(8, 1, 512, generator=torch.Generator().manual_seed(9))
    want, got, half = (
        (x * torch.rsqrt(part.square().mean(-1, keepdim=True) + 1e-6)) for part in (x, x.double(), x[..., :256])
    )
    assert compare_call_outputs(got.bfloat16(), want.bfloat16(), tolerance).is_right
    assert not compare_call_outputs(half.bfloat16(), want.bfloat16(), tolerance).is_right


def _calibrate_noise(noise: float) -> OutputCalibration:
    """Calibrate by one kernel that errs by `noise` of its row's root mean square."""
    definition = _norm()
    want = torch.randn(64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rms = want.square().mean(dim=-1, keepdim=True).sqrt()
    got = want + noise * rms * torch.sign(want)
    profile = measure_profile(got, want, DType.BFLOAT16)
    zeros = measure_profile(torch.zeros_like(want), want, DType.BFLOAT16)
    case = Case(
        axes={},
        seed=0,
        distribution="typical",
        trusted={"kernel": {"output": profile}},
        agreement={"kernel": {"output": profile}},
        faults={"zeros:output": {"output": zeros}},
    )
    return calibrate(definition, {"output": summed(DType.BFLOAT16)}, [case], device="cuda").outputs["output"]


def test_bounds_are_no_wider_than_four_times_the_worst_trusted_error() -> None:
    output = _calibrate_noise(2**-12)
    assert output.rtol == 2**-7
    assert 2**-11 <= output.atol <= 2**-10
    assert 0.2 < output.trusted["kernel"] < 0.6


@pytest.mark.parametrize(("noise", "most"), [(2**-19, 2**-15), (2**-16, 2**-13)])
def test_errors_far_below_the_formats_rounding_have_a_wider_margin(noise: float, most: float) -> None:
    output = _calibrate_noise(noise)
    assert output.rtol == 2**-7
    assert max(most / 2, 4 * noise) <= output.atol <= most
    assert output.least_fault is not None
    assert output.least_fault > 100


def test_where_every_fault_is_far_off_bounds_leave_room_for_longer_calls() -> None:
    definition = _norm()
    single = definition.model_copy(
        update={"outputs": {"output": definition.outputs["output"].model_copy(update={"dtype": DType.FLOAT32})}}
    )
    want = torch.randn(64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64).float()
    trusted = {"output": measure_profile(want + 2**-20 * torch.randn(64, 64), want, DType.FLOAT32)}
    worst = {}
    for name, fault in (("far", torch.zeros(64, 64)), ("near", want + 2**-16 * torch.randn(64, 64))):
        case = Case(
            axes={},
            seed=0,
            distribution="typical",
            trusted={"kernel": trusted},
            agreement={"kernel": trusted},
            faults={"zeros:output": {"output": measure_profile(fault, want, DType.FLOAT32)}},
        )
        calibration = calibrate(single, {"output": summed(DType.FLOAT32)}, [case], device="cuda")
        assert calibration.refused == []
        worst[name] = calibration.outputs["output"].trusted["kernel"]
    assert 1 / 32 < worst["far"] <= 1 / 8 < worst["near"] <= 1 / 2


def test_a_float32_kernel_whose_errors_all_agree_gets_bounds_that_it_keeps() -> None:
    definition = _norm()
    want = torch.randn(64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64).float()
    got = want.double() * (1 + 2**-18)  # an approximate function: its errors do not cancel
    profiles = {"output": measure_profile(got.float(), want, DType.FLOAT32)}
    halved = {"output": measure_profile(want * 0.98, want, DType.FLOAT32)}
    case = Case(
        axes={},
        seed=0,
        distribution="typical",
        trusted={"kernel": profiles},
        agreement={"kernel": profiles},
        faults={"scaled:output": halved},
    )
    single = definition.model_copy(
        update={"outputs": {"output": definition.outputs["output"].model_copy(update={"dtype": DType.FLOAT32})}}
    )
    calibration = calibrate(single, {"output": summed(DType.FLOAT32)}, [case], device="cuda")
    assert calibration.refused == []
    assert calibration.outputs["output"].rtol >= 2**-15
    assert _faults(calibration)["scaled"].state == "caught"


def test_without_a_real_kernel_the_policy_stays_and_faults_are_judged_by_it(norm_cases: list[Case]) -> None:
    calibration = _calibrate(norm_cases, device="cpu")
    policy = rounded(DType.BFLOAT16)
    output = calibration.outputs["output"]
    assert (output.rtol, output.atol, output.basis, output.source) == (
        policy.rtol,
        policy.atol,
        "policy",
        policy.source,
    )
    assert _faults(calibration)["half-sum"].state == "caught"
    assert calibration.refused == []


def test_a_kernel_that_is_wrong_widens_bounds_until_faults_pass_and_then_they_are_refused() -> None:
    calibration = _calibrate(_cases(_measure(_norm(), {"rough": _ROUGH})))
    assert any("is not caught" in reason for reason in calibration.refused)
    assert find_tolerances(_norm(), get_kernel_type("rmsnorm"), calibration) == {"output": rounded(DType.BFLOAT16)}


def test_what_cannot_be_measured_is_told() -> None:
    answer = _measure(
        _norm(), {"flashinfer.missing": "import no_such_module", "odd": "def run(x, w):\n    return x[:1]"}
    )
    assert answer["unavailable"]["flashinfer.missing"].startswith("ModuleNotFoundError")
    assert answer["unavailable"]["odd"].startswith("output is [1, 64]")
    assert set(answer["cases"][0]["trusted"]) == {"reference"}


def test_a_case_that_does_not_fit_is_left_out_and_told() -> None:
    bad = {"axes": {"batch_size": -3}, "seed": 0, "distribution": "typical", "breaks_source": False}
    answer = _measure(_norm(), cases=[bad])
    assert answer["cases"] == []
    assert any(key.startswith("case ") for key in answer["unavailable"])


def test_faults_of_the_source_are_left_out_where_they_are_not_asked_for() -> None:
    plain = {"axes": {}, "seed": 0, "distribution": "typical", "breaks_source": False}
    answer = _measure(_norm(), cases=[plain])
    assert {name.partition(":")[0] for name in answer["cases"][0]["faults"]} == set(OUTPUT_FAULTS)


def test_one_term_of_seven_thousand_is_within_rounding() -> None:
    definition = get_kernel_type("rmsnorm").build({"hidden_size": 7168})
    calibration = calibrate(definition, find_tolerances(definition, None), _cases(_measure(definition)), device="cpu")
    assert _faults(calibration)["dropped-term"].state == "within rounding"
    assert _faults(calibration)["half-sum"].state == "caught"


def test_integers_are_the_same_or_wrong_in_every_profile() -> None:
    definition = get_kernel_type("append_paged_kv_cache").build({"num_kv_heads": 2, "head_dim": 64, "page_size": 16})
    cases = _cases(_measure(definition))
    calibration = calibrate(definition, find_tolerances(definition, None), cases, device="cuda")
    assert all(output.tolerance.rtol == output.tolerance.atol == 0 for output in calibration.outputs.values())
    assert calibration.refused == []


def test_a_profile_tells_the_bounds_that_let_an_error_pass() -> None:
    want = torch.tensor([[1.0, -1.0, 1.0, -1.0]], dtype=torch.float64)
    got = want.clone()
    got[0, 0] = 1.5
    profile = measure_profile(got, want, DType.BFLOAT16)
    rtols = list_rtols(DType.BFLOAT16)
    assert profile.needed[0] == pytest.approx([0.5 - rtol for rtol in rtols])
    assert profile.absolute == 0.5
    assert profile.bias == pytest.approx(0.125)
    assert profile.strength(DType.BFLOAT16, Tolerance(rtol=2**-3, atol=0.25)) == pytest.approx((0.5 - 2**-3) / 0.25)
    assert profile.strength(DType.BFLOAT16, Tolerance(rtol=2**-3, atol=0.75)) == pytest.approx(0.125 / 0.125)


def test_a_profile_of_a_nan_or_a_lost_infinity_is_unbounded() -> None:
    want = torch.tensor([[1.0, -torch.inf, 2.0]])
    assert measure_profile(want.clone(), want, DType.FLOAT32).absolute == 0
    for wrong in ([1.0, 0.0, 2.0], [1.0, -torch.inf, torch.nan]):
        assert measure_profile(torch.tensor([wrong]), want, DType.FLOAT32).needed[0][0] == UNBOUNDED


def test_misses_of_a_share_do_not_widen_bounds_but_a_wrong_row_does() -> None:
    want = torch.ones(64, 1024, dtype=torch.float64)
    scattered = want.clone()
    scattered.view(-1)[::1000] = 3
    row = want.clone()
    row[5] = 3
    ratio = HIT_RATIOS.index(0.99)
    assert measure_profile(scattered, want, DType.FLOAT8_E4M3FN).needed[ratio][0] == 0
    assert measure_profile(row, want, DType.FLOAT8_E4M3FN).needed[ratio][0] > 1


@pytest.mark.parametrize(
    "dtype", [DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16, DType.FLOAT8_E4M3FN, DType.FLOAT8_E5M2]
)
def test_bounds_to_choose_from_begin_below_one_rounding(dtype: DType) -> None:
    rtols = list_rtols(dtype)
    assert list(rtols) == sorted(rtols)
    assert rtols[1] == 8 * rtols[0]
    assert len(rtols) >= 2


def test_a_foreign_definition_has_the_policy_of_its_op_type() -> None:
    norm = _norm()
    assert find_tolerances(norm, None) == {"output": rounded(DType.BFLOAT16)}
    unknown = norm.model_copy(update={"op_type": "something_else"})
    assert find_tolerances(unknown, None) == {"output": summed(DType.BFLOAT16)}
    sampler = get_kernel_type("top_k_sampling_from_probs").build({"vocab_size": 128})
    assert find_tolerances(sampler, None)["samples"].how == "samples"
    renamed = sampler.model_copy(update={"outputs": {"token": sampler.outputs["samples"]}})
    assert find_tolerances(renamed, None)["token"].how == "samples"
    lookup = sampler.model_copy(
        update={"reference": "def run(probs, top_k):\n    return probs.argmax(-1)\n", "op_type": "x"}
    )
    assert find_tolerances(lookup, None) == {"samples": exact(DType.INT64)}


def test_every_kernel_type_gives_its_own_policy_when_it_is_known() -> None:
    kernel = get_kernel_type("moe_routing")
    routing = kernel.build({"num_experts": 16, "top_k": 4, "routing": "ds", "n_group": 4, "topk_group": 2})
    assert {tolerance.how for tolerance in find_tolerances(routing, kernel).values()} == {"choice"}


def test_a_calibration_comes_back_as_it_was_written(tmp_path: Path, norm_cases: list[Case]) -> None:
    calibration = _calibrate(norm_cases)
    path = save_calibration(tmp_path, _norm(), calibration)
    assert path == tmp_path / "calibrations" / "rmsnorm" / "rmsnorm_h64.json"
    assert find_calibration(tmp_path, _norm()) == calibration
    tolerances = find_tolerances(_norm(), get_kernel_type("rmsnorm"), find_calibration(tmp_path, _norm()))
    assert tolerances == {"output": calibration.outputs["output"].tolerance}


def test_what_a_threshold_decides_keeps_its_policy(norm_cases: list[Case]) -> None:
    kernel = get_kernel_type("top_p_renorm_probs")
    renorm = kernel.build({"vocab_size": 64})
    policies = find_tolerances(renorm, kernel)
    assert {policy.how for policy in policies.values()} == {"filter"}
    calibration = _calibrate(norm_cases)
    old = calibration.model_copy(
        update={
            "definition_hash": hash_kernel(renorm),
            "outputs": dict.fromkeys(renorm.outputs, calibration.outputs["output"]),
        }
    )
    assert find_tolerances(renorm, kernel, old) == policies


def test_a_calibration_of_another_reference_does_not_count(tmp_path: Path, norm_cases: list[Case]) -> None:
    definition = _norm()
    calibration = _calibrate(norm_cases)
    save_calibration(tmp_path, definition, calibration)
    other = definition.model_copy(update={"reference": definition.reference + "\n"})
    assert find_calibration(tmp_path, other) is None
    assert find_tolerances(other, get_kernel_type("rmsnorm"), calibration) == {"output": rounded(DType.BFLOAT16)}
    retagged = definition.model_copy(update={"tags": ["status:verified"], "description": "other words"})
    assert hash_kernel(retagged) == hash_kernel(definition)
    assert find_calibration(tmp_path, retagged) == calibration


def test_a_broken_calibration_is_an_error(tmp_path: Path, norm_cases: list[Case]) -> None:
    path = save_calibration(tmp_path, _norm(), _calibrate(norm_cases))
    path.write_text('{"definition": "rmsnorm_h64"}', encoding="utf-8")
    with pytest.raises(FormatError, match="not a valid Calibration"):
        find_calibration(tmp_path, _norm())
    assert find_calibration(tmp_path / "elsewhere", _norm()) is None
