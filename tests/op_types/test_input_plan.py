from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from fib_tools.errors import RequestError
from fib_tools.model.definition import AxisConst, AxisVar, Definition, DType
from fib_tools.op_types.axes import choose_axes
from fib_tools.op_types.base import scalar, tensor
from fib_tools.op_types.input_request import torch_dtype
from fib_tools.op_types.inputs import Distribution, InputPlan, generate_inputs, list_distributions, plan_inputs
from fib_tools.op_types.registry import get_kernel_type, list_kernel_types
from kernel_examples import KERNEL_EXAMPLES

each_kernel = pytest.mark.parametrize("kernel_id", list(KERNEL_EXAMPLES))


def _plan(kernel_id: str, sizes: Mapping[str, int] | None = None, **options: Any) -> tuple[Definition, InputPlan]:
    definition = get_kernel_type(kernel_id).build(KERNEL_EXAMPLES[kernel_id])
    options = {"seed": 1, "device": "cpu", **options}
    return definition, plan_inputs(definition, choose_axes(definition, sizes), **options)


def _bits(value: Any) -> Any:
    return value.contiguous().view(-1).view(torch.uint8).tolist() if isinstance(value, torch.Tensor) else value


def test_there_is_an_example_of_every_kernel_type() -> None:
    assert set(KERNEL_EXAMPLES) == {kernel.id for kernel in list_kernel_types()}


@each_kernel
def test_every_input_is_as_declared_and_in_calling_order(kernel_id: str) -> None:
    definition, plan = _plan(kernel_id)
    axes = choose_axes(definition)
    made = plan.make(7)
    assert list(made) == list(definition.inputs)
    for name, spec in definition.inputs.items():
        if spec.shape is not None:
            assert tuple(made[name].shape) == tuple(axes[axis] for axis in spec.shape), name
            assert made[name].dtype == torch_dtype(spec.dtype), name
        else:
            assert not isinstance(made[name], torch.Tensor), name


@each_kernel
def test_the_same_seeds_give_the_same_bits_in_another_plan(kernel_id: str) -> None:
    (_, first), (_, second) = _plan(kernel_id), _plan(kernel_id)
    first.make(3)
    for name, value in first.make(2**63 + 5).items():
        assert _bits(value) == _bits(second.make(2**63 + 5)[name]), name


@each_kernel
def test_every_value_is_new_in_each_call_and_structure_is_the_same_elsewhere(kernel_id: str) -> None:
    definition, plan = _plan(kernel_id)
    first, second = plan.make(1), plan.make(2)
    for name, spec in definition.inputs.items():
        assert (_bits(first[name]) != _bits(second[name])) == (name in plan.values), name
        if spec.shape is not None:
            assert first[name].data_ptr() != second[name].data_ptr(), name


@each_kernel
def test_numbers_are_finite_in_every_distribution(kernel_id: str) -> None:
    definition, _ = _plan(kernel_id)
    for distribution in list_distributions(definition):
        made = _plan(kernel_id, distribution=distribution)[1].make(5)
        for name, value in made.items():
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                assert value.float().isfinite().all(), (distribution, name)


@each_kernel
def test_structure_depends_on_the_plans_seed_alone(kernel_id: str) -> None:
    definition, plan = _plan(kernel_id, seed=9)
    _, other = _plan(kernel_id, seed=9, distribution=list_distributions(definition)[-1])
    for name in set(definition.inputs) - plan.values:
        assert _bits(plan.make(1)[name]) == _bits(other.make(2)[name]), name


def test_addresses_of_structure_do_not_come_back_when_memory_is_freed() -> None:
    _, plan = _plan("gqa_paged_decode")
    seen = {plan.make(seed)["kv_indptr"].data_ptr() % (1 << 16) for seed in range(200)}
    assert len(seen) > 150


def test_no_value_repeats_beyond_the_block_of_a_trial() -> None:
    definition = _define(x=tensor("bfloat16", "rows columns", "x"), y=tensor("float8_e4m3fn", "rows columns", "y"))
    made = plan_inputs(definition, {"rows": 150_000, "columns": 16}, seed=0, device="cpu").make(0)
    for value in made.values():
        values = value.float()
        assert abs(values.mean().item()) < 0.01
        assert abs(values.std().item() - 1) < 0.02
        assert not values[:10].equal(values[65536:65546])


def test_a_cpu_shares_storage_over_the_budget() -> None:
    definition = _define(x=tensor("float32", "rows columns", "x"))
    made = plan_inputs(definition, {"rows": 1000, "columns": 16}, seed=0, device="cpu", byte_budget=1024).make(0)["x"]
    assert tuple(made.shape) == (1000, 16)
    assert made.stride() == (0, 1)


@pytest.mark.parametrize("dtype", list(DType))
def test_every_element_type_can_be_made_fresh(dtype: DType) -> None:
    definition = _define(x=tensor(dtype.value, "rows columns", "x"), y=tensor(dtype.value, "", "y"))
    made = plan_inputs(definition, {"rows": 33, "columns": 16}, seed=0, device="cpu").make(0)
    assert (made["x"].shape, made["x"].dtype) == ((33, 16), torch_dtype(dtype))
    assert made["y"].shape == ()


def test_packed_words_and_bytes_are_values() -> None:
    assert _plan("gemm_w4a16")[1].values == {"A", "B", "B_scale"}
    assert "k_index_cache_fp8" in _plan("dsa_topk_indexer")[1].values
    assert _plan("embedding")[1].values == {"weight"}


def test_tables_of_angles_differ_and_stay_on_the_circle() -> None:
    _, plan = _plan("rope_with_cos_sin_cache")
    table = plan.make(3)["cos_sin_cache"]
    cos, sin = table.chunk(2, dim=-1)
    torch.testing.assert_close(cos.square() + sin.square(), torch.ones_like(cos))
    assert not table[0].equal(plan.make(4)["cos_sin_cache"][0])


def test_one_value_a_head_stays_spread_over_it() -> None:
    steps = _plan("mamba_ssu_decode")[1].make(1)["dt"]
    assert steps.stride()[-1] == 0


def _define(*, op_type: str = "unheard_of", **inputs: Any) -> Definition:
    return Definition(
        name="trial",
        op_type=op_type,
        axes={"rows": AxisVar(), "columns": AxisConst(value=16)},
        inputs=inputs,
        outputs={},
        reference="def run():\n    pass\n",
    )


AXES = {"rows": 4, "columns": 16}


def _perturb(value: torch.Tensor, seed: int, dtype: str) -> torch.Tensor:
    spec = tensor(dtype, "rows columns", "x")
    axes = {"rows": value.shape[0], "columns": value.shape[1]}
    made = plan_inputs(_define(x=spec), axes, seed=0, device="cpu", fixed={"x": value}).make(seed)["x"]
    assert isinstance(made, torch.Tensor)
    return made


@pytest.mark.parametrize(
    ("dtype", "units"), [("float32", 8), ("bfloat16", 2), ("float16", 2), ("float8_e4m3fn", 1), ("float8_e5m2", 1)]
)
def test_a_given_tensor_moves_by_a_few_units_and_differently_for_each_seed(dtype: str, units: int) -> None:
    given = torch.randn(64, 16, generator=torch.Generator().manual_seed(0)).to(torch_dtype(DType(dtype)))
    words = {1: torch.int8, 2: torch.int16, 4: torch.int32}[given.itemsize]
    made = [_perturb(given, seed, dtype) for seed in range(4)]
    for value in made:
        distance = (value.view(words).to(torch.int32) - given.view(words).to(torch.int32)).abs()
        assert 1 <= distance.max() <= units
        assert (distance > 0).float().mean() > 0.3
        assert value.float().sign().equal(given.float().sign())
    assert len({str(_bits(value)) for value in made}) == 4
    assert _bits(made[1]) == _bits(_perturb(given, 1, dtype))


def test_zeros_infinities_and_ties_of_a_given_tensor_stay() -> None:
    given = torch.full((4, 16), 0.3)
    given[0, :5] = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan])
    given[1, 3] = torch.finfo(torch.float32).max
    made = _perturb(given, 3, "float32")
    assert made[0, :5].view(torch.int32).equal(given[0, :5].view(torch.int32))
    assert made[1, 3] == given[1, 3]
    assert made[2:].unique().numel() == 1
    assert made[2, 0] != given[2, 0]


def test_rows_that_sum_to_one_still_do() -> None:
    given = torch.softmax(torch.randn(8, 4096, generator=torch.Generator().manual_seed(0)), dim=-1)
    spec = tensor("float32", "rows columns", "x")
    axes = {"rows": 8, "columns": 4096}
    made = plan_inputs(_define(x=spec), axes, seed=0, device="cpu", fixed={"x": given}).make(1)["x"]
    torch.testing.assert_close(made.sum(dim=-1), torch.ones(8), rtol=0, atol=1e-6)


def test_a_mask_of_zeros_and_ones_is_given_as_it_is_at_another_address() -> None:
    given = torch.eye(4, 16)
    made = _perturb(given, 3, "float32")
    assert made.equal(given)
    assert made.data_ptr() != given.data_ptr()


def test_what_the_workload_gives_is_what_other_inputs_are_made_for() -> None:
    definition = get_kernel_type("gqa_paged_decode").build(KERNEL_EXAMPLES["gqa_paged_decode"])
    offsets = torch.tensor([0, 2, 2, 17], dtype=torch.int32)
    plan = plan_inputs(
        definition, choose_axes(definition), seed=0, device="cpu", fixed={"kv_indptr": offsets, "sm_scale": 0.25}
    )
    made = plan.make(0)
    assert made["kv_indptr"].tolist() == [0, 2, 2, 17]
    assert made["kv_last_page_len"][1] == 0
    assert made["sm_scale"] == 0.25


def test_given_codes_are_copied() -> None:
    codes = torch.arange(64, dtype=torch.int8).reshape(4, 16)
    plan = plan_inputs(_define(x=tensor("int8", "rows columns", "x")), AXES, seed=0, device="cpu", fixed={"x": codes})
    assert plan.make(1)["x"].equal(codes)
    assert plan.values == {"x"}


@pytest.mark.parametrize(
    ("fixed", "message"),
    [
        ({"z": 1.0}, "'z' is no input"),
        ({"x": 1.0}, "'x' is a tensor, and float is given"),
        ({"s": torch.zeros(1)}, "'s' is a scalar, and Tensor is given"),
        ({"x": torch.zeros(4, 15)}, r"'x' is \(4, 15\) of torch.float32, not \(4, 16\)"),
        ({"x": torch.zeros(4, 16, dtype=torch.float16)}, "of torch.float16, not"),
    ],
)
def test_what_does_not_fit_the_definition_is_refused(fixed: dict[str, Any], message: str) -> None:
    definition = _define(x=tensor("float32", "rows columns", "x"), s=scalar("float32", "s"))
    with pytest.raises(RequestError, match=message):
        plan_inputs(definition, AXES, seed=0, device="cpu", fixed=fixed)


def test_outliers_are_a_few_in_each_row_and_128_times_larger() -> None:
    typical, outliers = (
        _plan("rmsnorm", {"batch_size": 50}, distribution=kind)[1].make(4)["hidden_states"].float()
        for kind in (Distribution.TYPICAL, Distribution.OUTLIERS)
    )
    moved = typical != outliers
    assert moved.sum(dim=-1).tolist() == [1] * 50
    torch.testing.assert_close(outliers[moved], typical[moved] * 128)


def test_of_attention_only_keys_have_outliers() -> None:
    outliers = _plan("gqa_paged_decode", {"batch_size": 3}, distribution="outliers")[1].make(4)
    largest = {name: outliers[name].abs().max().item() for name in ("q", "k_cache", "v_cache")}
    assert largest["k_cache"] > 128
    assert max(largest["q"], largest["v_cache"]) < 8


def test_distributions_that_make_no_difference_are_not_listed() -> None:
    listed = {
        kernel: [each.value for each in list_distributions(get_kernel_type(kernel).build(KERNEL_EXAMPLES[kernel]))]
        for kernel in ("rmsnorm", "dsv4_window_attention", "moe_routing")
    }
    assert listed["rmsnorm"] == ["typical", "outliers", "tiny", "shifted"]
    assert listed["dsv4_window_attention"] == ["typical", "tiny", "shifted"]
    assert listed["moe_routing"] == ["typical"]


def test_tiny_and_shifted_values_have_their_moments() -> None:
    sizes = {"batch_size": 2000}
    tiny, shifted = (
        _plan("rmsnorm", sizes, distribution=kind)[1].make(4)["hidden_states"].float() for kind in ("tiny", "shifted")
    )
    assert tiny.std().item() == pytest.approx(2**-10, rel=0.02)
    assert shifted.mean().item() == pytest.approx(4.0, abs=0.02)
    assert shifted.std().item() == pytest.approx(1.0, rel=0.02)


def test_weights_scales_and_probabilities_stay_typical() -> None:
    for kernel_id, name in [("rmsnorm", "weight"), ("gemm", "B"), ("moe_mxfp4", "gemm1_weights_scale")]:
        typical, shifted = (
            _plan(kernel_id, distribution=kind)[1].make(4)[name].float().mean() for kind in ("typical", "shifted")
        )
        assert abs(typical - shifted) < 1, name


@pytest.mark.parametrize(
    "kernel_id", ["embedding", "gemm_fp8_block", "moe_routing", "hash_topk", "top_p_sampling_from_probs"]
)
def test_kernels_without_plain_activations_have_one_distribution(kernel_id: str) -> None:
    assert list_distributions(_plan(kernel_id)[0]) == (Distribution.TYPICAL,)


@pytest.mark.parametrize("kernel_id", ["rmsnorm", "gemm", "gqa_paged_decode", "moe_bf16", "fp8_quantize_1x128"])
def test_kernels_of_plain_activations_have_all(kernel_id: str) -> None:
    assert list_distributions(_plan(kernel_id)[0]) == tuple(Distribution)


def test_a_plan_makes_the_structure_of_a_trial() -> None:
    definition, plan = _plan("gqa_paged_prefill", seed=0)
    trial = generate_inputs(definition, choose_axes(definition))
    made = plan.make(0)
    for name in ("qo_indptr", "kv_indptr"):
        assert made[name][-1] == trial[name][-1]
        assert (made[name].diff() >= 0).all()
