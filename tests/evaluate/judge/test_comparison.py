from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fib_tools.evaluate.calibration.faults import OUTPUT_FAULTS
from fib_tools.evaluate.judge import measures
from fib_tools.evaluate.judge.comparison import (
    OutputVerdict,
    compare_call_outputs,
    compare_outputs,
    limit_bias,
    limit_misses,
)
from fib_tools.model.definition import DType
from fib_tools.op_types.tolerance import Tolerance, chosen, codes, exact, filtered, requantised, rounded, routed, summed

CALLS = 20
ROUNDED = rounded(DType.BFLOAT16)


def _draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _norm(x: torch.Tensor, terms: int | None = None, *, scale: float = 1.0) -> torch.Tensor:
    wide = x.float()
    mean = wide[..., :terms].square().mean(dim=-1, keepdim=True)
    return (wide * torch.rsqrt(mean + 1e-6) * scale).bfloat16()


def _norm_in_float64(x: torch.Tensor) -> torch.Tensor:
    wide = x.double()
    return (wide / (wide.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()).bfloat16()


def test_an_honest_kernel_passes_and_its_errors_are_told() -> None:
    x = _draw(CALLS, 16, 512).bfloat16()
    verdict = compare_call_outputs(_norm_in_float64(x), _norm(x), ROUNDED)
    assert verdict.is_right
    assert verdict.places == ()
    assert verdict.errors.misses == 0
    assert verdict.errors.values == x.numel()
    assert verdict.errors.max_relative <= 2**-7
    assert 0.99 < verdict.errors.rms < 1.01
    assert verdict.errors.source == ROUNDED.source


def test_a_kernel_with_bfloat16_factors_passes_as_sums_do() -> None:
    a, b = _draw(CALLS, 8, 256), _draw(256, 64, seed=1) / 16
    want = (a.bfloat16().double() @ b.bfloat16().double()).bfloat16()
    got = (a.bfloat16().float() @ b.bfloat16().float()).bfloat16().float().mul(1.0).bfloat16()
    assert compare_call_outputs(got, want, summed(DType.BFLOAT16)).is_right


def test_the_mean_of_half_a_row_is_refused_at_batch_one() -> None:
    """The peer let it pass 4 of 172 times; here each of the calls of one evaluation has inputs of its own."""
    for seed in range(20):
        x = _draw(CALLS, 1, 7168, seed=seed).bfloat16()
        verdict = compare_call_outputs(_norm(x, 3584), _norm(x), ROUNDED)
        assert not verdict.is_right
        assert len(verdict.wrong_calls) > 5


def test_zeros_are_refused_where_the_reference_is_small() -> None:
    want = (_draw(2, 4, 64) * 1e-4).bfloat16()
    verdict = compare_call_outputs(torch.zeros_like(want), want, summed(DType.BFLOAT16))
    assert verdict.wrong_calls == (0, 1)


POLICIES = {"rounded": ROUNDED, "summed": summed(DType.BFLOAT16), "requantised": requantised(DType.BFLOAT16)}
BLIND = {("scaled", "requantised")}
"""One percent is within what a rounding to e4m3 in between does to a product."""


@pytest.mark.parametrize(
    ("fault", "policy"),
    [(fault, policy) for fault in OUTPUT_FAULTS for policy in POLICIES if (fault, policy) not in BLIND],
)
def test_injected_faults_of_an_output_are_refused(fault: str, policy: str) -> None:
    tolerance = POLICIES[policy]
    want, other = _draw(CALLS, 8, 256).bfloat16(), _draw(CALLS, 8, 256, seed=1).bfloat16()
    wrong = torch.stack([OUTPUT_FAULTS[fault](right, stale) for right, stale in zip(want, other, strict=True)])  # type: ignore[misc]
    assert len(compare_call_outputs(wrong, want, tolerance).wrong_calls) == CALLS


def test_one_wrong_call_of_many_is_named_with_its_worst_values() -> None:
    want = _draw(CALLS, 4, 32).bfloat16()
    got = want.clone()
    got[7, 2, 5] = 9.0
    got[7, 0, 1] = 5.0
    verdict = compare_call_outputs(got, want, ROUNDED)
    assert verdict.wrong_calls == (7,)
    assert [(place.call, place.index, place.got) for place in verdict.places[:2]] == [
        (7, (2, 5), 9.0),
        (7, (0, 1), 5.0),
    ]
    assert verdict.places[0].want == float(want[7, 2, 5])
    assert verdict.reasons[0] == "1 of 20 calls are wrong (7)"
    assert "2 of 128 values are out of bounds" in verdict.reasons[1]


def test_a_wrong_scale_within_every_values_bound_is_refused() -> None:
    want = _draw(3, 64, 64)
    verdict = compare_call_outputs(want * 1.006, want, Tolerance(rtol=2**-6, atol=2**-6))
    assert verdict.errors.misses == 0
    assert "+0.600% too large" in " ".join(verdict.reasons)


def test_a_scale_that_few_values_scatter_by_is_no_bias() -> None:
    one_step = torch.tensor([[1.0078125, 1.0]] * 2).bfloat16()
    assert compare_call_outputs(one_step, torch.ones_like(one_step), ROUNDED).is_right
    assert limit_bias(ROUNDED, 1.0) == ROUNDED.rtol
    assert limit_bias(ROUNDED, 1e6) == ROUNDED.rtol / 4


def test_small_outputs_of_many_calls_are_judged_together() -> None:
    want = _draw(400, 1, 4)
    verdict = compare_call_outputs(want * 1.006, want, Tolerance(rtol=2**-6, atol=2**-6))
    assert len(verdict.wrong_calls) == 400
    assert verdict.reasons[0].startswith("all in all +0.600%")


def test_integers_are_the_same_or_wrong() -> None:
    for dtype in (torch.int8, torch.int32, torch.int64):
        want = torch.arange(-60, 60, dtype=dtype).reshape(2, 3, 20)
        assert compare_call_outputs(want.clone(), want, exact(DType.INT32)).is_right
        got = want.clone()
        got[1, 2, 3] += 1
        verdict = compare_call_outputs(got, want, exact(DType.INT32))
        assert verdict.wrong_calls == (1,)
        assert verdict.errors.max_absolute == 1
        assert verdict.places[0].index == (2, 3)


def test_a_large_integer_off_by_one_is_refused() -> None:
    want = torch.full((1, 4), 2**53, dtype=torch.int64)
    assert not compare_call_outputs(want + 1, want, exact(DType.INT64)).is_right


def test_booleans_are_compared() -> None:
    want = torch.tensor([[True, False, True]])
    assert compare_call_outputs(want.clone(), want, exact(DType.BOOL)).is_right
    assert compare_call_outputs(~want, want, exact(DType.BOOL)).errors.misses == 3


def test_equal_infinities_and_nans_are_right_and_nothing_else_is() -> None:
    inf, nan = torch.inf, torch.nan
    want = torch.tensor([[-inf, 1.0, nan, inf]])
    tolerance = rounded(DType.FLOAT32)
    assert compare_call_outputs(want.clone(), want, tolerance).is_right
    for wrong in (
        [0.0, 1.0, nan, inf],
        [-inf, nan, nan, inf],
        [-inf, 1.0, 0.0, inf],
        [inf, 1.0, nan, inf],
        [-inf, inf, nan, inf],
    ):
        verdict = compare_call_outputs(torch.tensor([wrong]), want, tolerance)
        assert verdict.errors.misses == 1
        assert not verdict.is_right


def test_a_row_of_infinities_does_not_loosen_the_bound_of_others() -> None:
    want = torch.full((1, 2, 4), -torch.inf)
    want[0, 1] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    got = want.clone()
    got[0, 1, 0] = 1.1
    assert compare_call_outputs(got, want, rounded(DType.FLOAT32)).errors.misses == 1


def test_codes_may_differ_at_ties_but_not_in_a_row() -> None:
    tolerance = codes(DType.FLOAT8_E4M3FN)
    want = _draw(4, 64, 1024).to(torch.float8_e4m3fn)
    got = want.view(torch.uint8).clone()
    flat = got.view(-1)
    flat[::400] ^= 1
    assert compare_call_outputs(got.view(torch.float8_e4m3fn), want, tolerance).is_right
    row = want.view(torch.uint8).clone()
    row[2, 5, :200] ^= 1
    verdict = compare_call_outputs(row.view(torch.float8_e4m3fn), want, tolerance)
    assert verdict.wrong_calls == (2,)
    assert "200 of the 1024 values of one row" in verdict.reasons[1]


def test_a_small_share_of_misses_is_judged_as_a_count() -> None:
    tolerance = filtered(DType.FLOAT32)
    assert limit_misses(1 << 17, tolerance) == 1
    assert limit_misses(1 << 30, ROUNDED) == 0
    assert limit_misses(128, chosen(DType.INT32)) == 1


def test_packed_float4_is_compared_by_value() -> None:
    want = torch.tensor([[0x21, 0x43]], dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    got = torch.tensor([[0x21, 0x53]], dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    verdict = compare_call_outputs(got, want, exact(DType.FLOAT4_E2M1))
    assert verdict.errors.misses == 1
    assert verdict.errors.values == 4
    assert (verdict.places[0].got, verdict.places[0].want) == (3.0, 2.0)
    assert verdict.places[0].index == (1,)
    assert compare_call_outputs(want.clone(), want, exact(DType.FLOAT4_E2M1)).is_right


@pytest.mark.parametrize(("dtype", "step"), [("float8_e4m3fn", 2**-9), ("float8_e5m2", 2**-16), ("float16", 2**-24)])
def test_the_neighbour_of_a_subnormal_number_is_one_rounding_away(dtype: str, step: float) -> None:
    want = torch.zeros(1, 4, 64)
    want[..., 0], want[..., 1] = step, 2.0
    off = {steps: want.clone() for steps in (1, 2)}
    for steps, got in off.items():
        got[0, 2, 0] += steps * step
        got[0, 3, 2] -= steps * step  # where the reference has 0
    kind = getattr(torch, dtype)
    tolerance = replace(rounded(DType(dtype)), atol=0.0)
    assert compare_call_outputs(off[1].to(kind), want.to(kind), tolerance).is_right
    verdict = compare_call_outputs(off[2].to(kind), want.to(kind), tolerance)
    assert verdict.errors.misses == 2
    assert {place.index for place in verdict.places[:2]} == {(2, 0), (3, 2)}


def test_scalars_and_empty_outputs_are_compared() -> None:
    assert compare_call_outputs(torch.ones(3), torch.ones(3), ROUNDED).is_right
    assert compare_call_outputs(torch.tensor([1.0, 2.0]), torch.ones(2), ROUNDED).wrong_calls == (1,)
    empty = torch.ones(3, 0, 8)
    assert compare_call_outputs(empty, empty, ROUNDED).is_right


def test_another_shape_or_type_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="cannot be compared"):
        compare_call_outputs(torch.ones(2, 3), torch.ones(2, 4), ROUNDED)
    with pytest.raises(ValueError, match="cannot be compared"):
        compare_call_outputs(torch.ones(2, 3), torch.ones(2, 3).bfloat16(), ROUNDED)


def test_outputs_of_slots_with_gaps_between_are_compared() -> None:
    arena = torch.zeros(3, 100)
    got = arena[:, :32].unflatten(1, (4, 8))
    assert compare_call_outputs(got, torch.zeros(3, 4, 8), ROUNDED).is_right
    arena[1, 31] = 1
    assert compare_call_outputs(got, torch.zeros(3, 4, 8), ROUNDED).places[0].index == (3, 7)


@pytest.mark.parametrize("chunk", [400, 4000, 40000])
def test_chunks_change_nothing(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    want = _draw(5, 6, 8)
    got = want + 0.02 * _draw(5, 6, 8, seed=1)
    tolerance = Tolerance(rtol=0.01, atol=0.01, hit_ratio=0.9)
    whole = compare_call_outputs(got, want, tolerance)
    monkeypatch.setattr(measures, "_CHUNK_BYTES", chunk)
    parts = compare_call_outputs(got, want, tolerance)
    assert _rough(parts) == _rough(whole)
    assert parts.places == whole.places
    assert whole.places


def _rough(verdict: OutputVerdict) -> list[tuple[object, ...]]:
    return [
        (call.misses, call.row_misses, call.absolute, call.relative, round(call.bias, 9), round(call.total, 9))
        for call in verdict.calls
    ]


class _Count(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.kernels = 0
        self.transfers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN204
        name = func.__name__.partition(".")[0]
        self.transfers += name in {"_local_scalar_dense", "item"}
        self.kernels += name not in {
            "view",
            "_unsafe_view",
            "slice",
            "unsqueeze",
            "expand",
            "select",
            "empty",
            "detach",
            "alias",
        }
        return func(*args, **(kwargs or {}))


def test_the_number_of_kernels_does_not_grow_with_the_calls() -> None:
    counts = []
    for calls in (1, 20):
        want = _draw(calls, 16, 64).bfloat16()
        with _Count() as count:
            compare_call_outputs(want.clone(), want, ROUNDED)
        counts.append(count.kernels)
        assert count.transfers == 0
    assert counts[0] == counts[1]
    assert counts[0] <= 50


def test_experts_come_in_any_order() -> None:
    ids = torch.stack([torch.randperm(64, generator=torch.Generator().manual_seed(seed))[:8] for seed in range(40)])
    weights = torch.rand(40, 8, generator=torch.Generator().manual_seed(0))
    want = {"w": weights.view(2, 20, 8), "ids": ids.int().view(2, 20, 8)}
    got = {name: value.flip(-1) for name, value in want.items()}
    tolerances = {"w": chosen(DType.FLOAT32), "ids": chosen(DType.INT32)}
    assert compare_outputs(got, want, tolerances).is_right
    swapped = {**got, "w": want["w"]}
    verdict = compare_outputs(swapped, want, tolerances)
    assert verdict.outputs["ids"].is_right
    assert not verdict.outputs["w"].is_right


def test_one_expert_exchanged_at_a_tie_is_one_miss_and_one_chosen_twice_is_none_the_better() -> None:
    want = {"ids": torch.arange(64, dtype=torch.int32).view(1, 8, 8)}
    tolerances = {"ids": chosen(DType.INT32)}
    tie = {"ids": want["ids"].clone()}
    tie["ids"][0, 3, 0] = 99
    verdict = compare_outputs(tie, want, tolerances)
    assert verdict.outputs["ids"].errors.misses == 1
    assert verdict.is_right
    twice = {"ids": want["ids"].clone()}
    twice["ids"][0, :, 0] = twice["ids"][0, :, 1]
    verdict = compare_outputs(twice, want, tolerances)
    assert verdict.outputs["ids"].errors.misses == 8
    assert not verdict.is_right


def test_one_expert_exchanged_in_every_call_is_no_tie() -> None:
    want = {"ids": torch.arange(64, dtype=torch.int32).repeat(CALLS).view(CALLS, 8, 8)}
    got = {"ids": want["ids"].clone()}
    got["ids"][:, 3, 0] = 99
    verdict = compare_outputs(got, want, {"ids": chosen(DType.INT32)})
    assert verdict.outputs["ids"].reasons[0].startswith("20 of 1280 values")


def test_weights_that_are_shares_change_with_an_expert_exchanged_at_a_tie() -> None:
    tolerances = {"weights": chosen(DType.FLOAT32), "ids": chosen(DType.INT32)}
    ids = torch.arange(512, dtype=torch.int32).view(1, 64, 8)
    weights = torch.linspace(0.2, 0.9, 512).view(1, 64, 8)
    want = {"weights": weights / weights.sum(dim=-1, keepdim=True), "ids": ids}
    other = weights.clone()
    other[0, 3, 5] *= 1.5
    got = {"weights": other / other.sum(dim=-1, keepdim=True), "ids": ids.clone()}
    got["ids"][0, 3, 5] = 999
    verdict = compare_outputs(got, want, tolerances)
    assert verdict.is_right, verdict.detail
    assert verdict.outputs["weights"].errors.misses == 1
    got["ids"][0, 3, 5] = ids[0, 3, 5]
    verdict = compare_outputs(got, want, tolerances)
    assert not verdict.is_right
    assert verdict.outputs["weights"].errors.misses == 8


def test_one_token_of_hundreds_may_have_another_expert() -> None:
    want = _draw(8, 48, 512).bfloat16()
    got, policy = want.clone(), routed(requantised)
    got[5, 44] = -got[5, 44]
    assert compare_call_outputs(got, want, policy(DType.BFLOAT16)).is_right
    assert not compare_call_outputs(got, want, requantised(DType.BFLOAT16)).is_right
    few = compare_call_outputs(got[4:7, 20:], want[4:7, 20:], policy(DType.BFLOAT16))
    assert few.wrong_calls == (1,), "84 rows are too few for one at a near tie"


@pytest.mark.parametrize("wrong", [((5, 44), (5, 45)), ((5, 44), (6, 44))], ids=["two rows", "two calls"])
def test_more_than_one_token_is_no_near_tie(wrong: tuple[tuple[int, int], ...]) -> None:
    want = _draw(8, 48, 512).bfloat16()
    got = want.clone()
    for place in wrong:
        got[place] = -got[place]
    verdict = compare_call_outputs(got, want, routed(requantised)(DType.BFLOAT16))
    assert set(verdict.wrong_calls) == {call for call, _ in wrong}


def test_a_call_of_another_scale_is_no_near_tie() -> None:
    want = _draw(8, 48, 512).bfloat16()
    got = want.clone()
    got[5] *= 1.03
    assert compare_call_outputs(got, want, routed(requantised)(DType.BFLOAT16)).wrong_calls == (5,)


def test_a_list_with_padding_is_matched_as_often_as_it_holds_each_id() -> None:
    want = {"ids": torch.tensor([[[-1, -1, 5, 7]]])}
    got = {"ids": torch.tensor([[[5, -1, 7, 5]]])}
    verdict = compare_outputs(got, want, {"ids": exact(DType.INT64)})
    assert not verdict.is_right
    loose = Tolerance(rtol=0, atol=0, hit_ratio=0.999, how="choice")
    assert compare_outputs(got, want, {"ids": loose}).outputs["ids"].errors.misses == 1


def test_draws_are_left_to_the_statistical_test() -> None:
    tolerances = {"samples": Tolerance(rtol=0, atol=0, how="samples"), "y": ROUNDED}
    want = {"samples": torch.tensor([[1]]), "y": torch.ones(1, 2)}
    got = {"samples": torch.tensor([[2]]), "y": torch.ones(1, 2)}
    verdict = compare_outputs(got, want, tolerances)
    assert list(verdict.outputs) == ["y"]
    assert verdict.is_right
    assert verdict.detail == ""


@pytest.mark.parametrize("chunk", [None, 4 * 40])
def test_the_detail_shows_the_first_wrong_value_and_the_worst(
    monkeypatch: pytest.MonkeyPatch, chunk: int | None
) -> None:
    if chunk is not None:
        monkeypatch.setattr(measures, "_CHUNK_BYTES", chunk)
    want = torch.ones(2, 3, 4)
    got = want.clone()
    got[1, 1, 2], got[1, 2, 3] = 1.5, 9.0
    verdict = compare_outputs({"a": got}, {"a": want}, {"a": ROUNDED})
    assert "; first at call 1 [1, 2]: got 1.5, want 1; worst at call 1 [2, 3]: got 9, want 1, " in verdict.detail


def test_a_bias_without_a_value_out_of_bounds_has_no_first_one() -> None:
    want = torch.ones(1, 64, 64)
    bound = Tolerance(rtol=2**-6, atol=0.0)
    verdict = compare_outputs({"a": want * 1.01}, {"a": want}, {"a": bound})
    assert "too large" in verdict.detail
    assert "first at" not in verdict.detail


def test_the_detail_names_each_wrong_output() -> None:
    want = {"a": torch.ones(2, 2, 4), "b": torch.zeros(2, 3, dtype=torch.int32)}
    got = {"a": want["a"] * 2, "b": want["b"] + 1}
    verdict = compare_outputs(got, want, {"a": ROUNDED, "b": exact(DType.INT32)})
    assert verdict.wrong_calls == (0, 1)
    lines = verdict.detail.splitlines()
    assert lines[0].startswith("a: 2 of 2 calls are wrong (0, 1); call 0: 8 of 8 values are out of bounds")
    assert "worst at call 0 [" in lines[0]
    assert lines[1].startswith("b: ")
    assert "first at call 0 [0]: got 1, want 0" in lines[1]
    assert set(verdict.errors) == {"a", "b"}
