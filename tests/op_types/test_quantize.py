from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest

from fib_tools.op_types.quantize import QuantizeParameters
from fib_tools.op_types.registry import get_kernel_type

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


def _quantize(run_reference: Callable[..., Any], kernel: str, rows: Any, *more: Any) -> Any:
    return run_reference(get_kernel_type(kernel).build({"hidden_size": rows.shape[-1]}), rows, *more)


def _unpack(packed: Any) -> Any:
    import torch

    codes = packed.view(torch.uint8).long()
    return torch.tensor(E2M1, dtype=torch.float64)[torch.stack([codes % 16, codes // 16], dim=-1).flatten(1)]


@pytest.fixture
def rows() -> Any:
    """Rows of very different sizes, one of them zero."""
    import torch

    values = torch.randn(6, 256, generator=torch.Generator().manual_seed(1))
    return (values * torch.tensor([1e-6, 1.0, 300.0, 0.0, 1e4, 0.1])[:, None]).bfloat16()


@pytest.mark.parametrize("kernel", ["fp8_quantize_1x128", "fp8_quantize_tensor"])
def test_a_quantiser_conforms_under_its_canonical_name(kernel: str, check_conformance: Callable[..., None]) -> None:
    check_conformance(kernel, f"{kernel}_k7168", hidden_size=7168)


@pytest.mark.parametrize("kernel", ["nvfp4_quantize", "mxfp8_quantize"])
def test_a_template_gives_our_row_length_and_dtypes_with_bytes_unsigned(
    kernel: str, try_kernel: Callable[..., Any]
) -> None:
    import torch

    kind, trial = get_kernel_type(kernel), try_kernel(kernel, hidden_size=7168)
    assert trial.definition.name == f"{kernel}_k7168"
    assert kind.template is not None
    call = kind.template(QuantizeParameters(hidden_size=7168))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import flashinfer

    metas = {
        name: torch.empty(item.shape, dtype=getattr(torch, item.dtype), device="meta")
        for name, item in call.arguments.items()
    }
    described = getattr(flashinfer, kernel).fi_trace(**metas)
    assert f"fi_api:{kind.fi_api}" in described["tags"]
    assert described["axes"]["K"]["value"] == 7168
    assert next(spec["shape"] for spec in described["inputs"].values()) == ["M", "K"]
    assert "unknown" not in [spec["dtype"] for name, spec in described["inputs"].items() if name != "sf_vec_size"]
    theirs = next(iter(described["outputs"].values()))
    ours = trial.definition.outputs["quantized"]
    assert (theirs["shape"], theirs["dtype"].removeprefix("u")) == (ours.shape, ours.dtype.value)


def test_group_quantisation_moves_a_value_by_a_sixteenth_at_most(run_reference: Callable[..., Any], rows: Any) -> None:
    quantized, scale = _quantize(run_reference, "fp8_quantize_1x128", rows)
    x = rows.double()
    back = quantized.double() * scale.double().repeat_interleave(128, dim=1)
    subnormal = scale.double().repeat_interleave(128, dim=1) * 2**-9
    assert ((back - x).abs() <= x.abs() / 16 * 1.01 + subnormal).all()
    largest = quantized.double().unflatten(1, (2, 128)).abs().amax(dim=-1)
    assert (largest[x.abs().sum(1) > 0] == 448).all()
    assert (back[3] == 0).all()


def test_tensor_quantisation_has_one_scale_from_the_largest(run_reference: Callable[..., Any], rows: Any) -> None:
    quantized, scale = _quantize(run_reference, "fp8_quantize_tensor", rows)
    assert scale.item() == pytest.approx(rows.double().abs().max().item() / 448, rel=1e-6)
    x, step = rows.double(), scale.double()
    assert ((quantized.double() * step - x).abs() <= x.abs() / 16 * 1.01 + step * 2**-9).all()


def test_nvfp4_scales_round_to_nearest_and_values_to_the_nearest_of_e2m1(
    run_reference: Callable[..., Any], rows: Any
) -> None:
    import torch

    x = rows[[1, 3, 5]].double()
    largest = x.abs().max()
    global_scale = (448 * 6 / largest).float()
    packed, scale = _quantize(run_reference, "nvfp4_quantize", rows[[1, 3, 5]], global_scale)
    wanted = x.unflatten(1, (-1, 16)).abs().amax(-1) / 6 * global_scale.double()
    nearest = wanted.float().to(torch.float8_e4m3fn)
    assert torch.equal(scale.float(), nearest.float())
    step = scale.double().repeat_interleave(16, dim=1) / global_scale.double()
    values = _unpack(packed)
    table = torch.tensor(E2M1, dtype=torch.float64)
    usable = step > 0
    best = (x[usable][:, None] - table * step[usable][:, None]).abs().amin(dim=-1)
    error = (x - values * step).abs()[usable]
    assert (error <= best * (1 + 1e-6) + 1e-12).all()
    assert (values[1] == 0).all()


def test_a_tie_of_e2m1_goes_to_the_even_code(run_reference: Callable[..., Any]) -> None:
    import torch

    ties = torch.tensor(
        [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0, -0.25, -0.75, -1.25, -1.75, -2.5, -3.5, -5.0, -6.0]
    )
    packed, scale = _quantize(run_reference, "nvfp4_quantize", ties[None].bfloat16(), torch.tensor(1.0))
    assert scale.float().item() == 1.0
    evens = [0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0, 6.0]
    assert _unpack(packed).flatten().tolist() == [*evens, *(-value for value in evens)]


def test_the_first_value_of_a_pair_is_in_the_low_half(run_reference: Callable[..., Any]) -> None:
    import torch

    row = torch.tensor([[6.0, 0.5] + [0.0] * 14]).bfloat16()
    packed, _ = _quantize(run_reference, "nvfp4_quantize", row, torch.tensor(1.0))
    assert packed[0, 0].item() == 0x17


def test_mxfp8_scales_are_the_power_of_two_at_or_above(run_reference: Callable[..., Any]) -> None:
    import torch

    tops = torch.tensor([448.0, 450.0, 446.0, 1.75, 1.76, 0.0, 3.4e38, 1e-38])
    row = torch.zeros(1, 32 * len(tops))
    row[0, ::32] = tops
    quantized, scale = _quantize(run_reference, "mxfp8_quantize", row.bfloat16())
    assert scale.view(torch.uint8)[0, :6].tolist() == [127, 128, 127, 119, 120, 0]
    assert (quantized.float().abs() <= 448).all()
    back = quantized.double() * torch.exp2(scale.view(torch.uint8).double() - 127).repeat_interleave(32, dim=1)
    x = row.bfloat16().double()
    assert ((back - x).abs()[:, : 32 * 7] <= x.abs()[:, : 32 * 7] / 16 * 1.01).all()


def test_mxfp8_never_saturates(run_reference: Callable[..., Any], rows: Any) -> None:
    import torch

    quantized, scale = _quantize(run_reference, "mxfp8_quantize", rows)
    step = torch.exp2(scale.view(torch.uint8).double() - 127).repeat_interleave(32, dim=1)
    x = rows.double()
    assert ((quantized.double() * step - x).abs() <= x.abs() / 16 * 1.01 + step * 2**-10).all()
    largest = quantized.double().unflatten(1, (-1, 32)).abs().amax(dim=-1)[x.abs().sum(1) > 0]
    assert (largest > 222).all()


@pytest.mark.parametrize("kernel", ["fp8_quantize_1x128", "mxfp8_quantize"])
def test_a_short_last_block_has_its_own_scale(kernel: str, run_reference: Callable[..., Any]) -> None:
    import torch

    row = torch.ones(1, 200).bfloat16()
    row[0, 192:] = 64.0
    quantized, scale = _quantize(run_reference, kernel, row)
    assert tuple(quantized.shape) == (1, 200)
    assert tuple(scale.shape) == ((1, 2) if kernel == "fp8_quantize_1x128" else (1, 7))
