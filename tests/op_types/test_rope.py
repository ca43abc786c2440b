from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from fib_tools.op_types.axes import choose_axes
from fib_tools.op_types.inputs import generate_inputs
from fib_tools.op_types.registry import get_kernel_type

SIZES = {"num_qo_heads": 32, "num_kv_heads": 8}


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ({"head_dim": 128, "rotary_dim": 128}, "rope_with_cos_sin_cache_neox_style_d128_rd128"),
        ({"head_dim": 128, "rotary_dim": 64}, "rope_with_cos_sin_cache_neox_style_d128_rd64"),
        ({"head_dim": 64, "rotary_dim": 64, "is_neox": False}, "rope_with_cos_sin_cache_gptj_style_d64_rd64"),
        ({"head_dim": 80, "rotary_dim": 20}, "rope_with_cos_sin_cache_neox_style_d80_rd20"),
    ],
)
def test_rope_conforms_under_its_canonical_name(
    parameters: dict[str, Any], name: str, check_conformance: Callable[..., None]
) -> None:
    check_conformance("rope_with_cos_sin_cache", name, **SIZES, **parameters)


def test_models_with_other_head_counts_share_the_definition() -> None:
    kernel = get_kernel_type("rope_with_cos_sin_cache")
    sizes = {"head_dim": 128, "rotary_dim": 128}
    many, few = (kernel.build({**sizes, "num_qo_heads": q, "num_kv_heads": k}) for q, k in ((32, 8), (4, 1)))
    assert many == few


@pytest.mark.parametrize("is_neox", [True, False])
def test_rope_is_a_rotation_of_complex_numbers(
    is_neox: bool,  # noqa: FBT001  # a parameter of the test, not of an interface
    try_kernel: Callable[..., Any],
    ulps: Callable[..., float],
) -> None:
    import torch

    trial = try_kernel("rope_with_cos_sin_cache", head_dim=32, rotary_dim=16, is_neox=is_neox, **SIZES)
    cosine, sine = trial.inputs["cos_sin_cache"][trial.inputs["positions"]].double().chunk(2, dim=-1)
    turn = torch.complex(cosine, sine)[:, None]
    for name in ("q", "k"):
        heads = trial.inputs[name].double().reshape(len(turn), -1, 32)
        turning = heads[..., :16].unflatten(-1, (2, 8) if is_neox else (8, 2))
        pair_axis = -2 if is_neox else -1
        turned = torch.complex(turning.select(pair_axis, 0), turning.select(pair_axis, 1)) * turn
        exact = torch.stack([turned.real, turned.imag], dim=pair_axis).flatten(start_dim=-2)
        output = trial.outputs[f"{name}_out"].reshape(heads.shape)
        # Where the two products cancel, float32 keeps fewer places than the result has.
        torch.testing.assert_close(output[..., :16].double(), exact, rtol=2**-8, atol=1e-6)
        assert torch.equal(output[..., 16:].double(), heads[..., 16:])
        assert ulps(output[..., 16:], heads[..., 16:]) == 0


def test_neox_style_is_that_of_llama(run_reference: Callable[..., Any]) -> None:
    import torch
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    inputs, (q, k, cosine, sine), run = _prepared(run_reference, is_neox=True)
    expected = apply_rotary_pos_emb(q, k, torch.cat([cosine, cosine], -1)[None], torch.cat([sine, sine], -1)[None])
    for output, wanted in zip(run, expected, strict=True):
        torch.testing.assert_close(output, wanted[0].transpose(0, 1).reshape(output.shape))
    assert not torch.equal(run[0], inputs["q"])


def test_gptj_style_is_that_of_glm(run_reference: Callable[..., Any]) -> None:
    import torch
    from transformers.models.glm.modeling_glm import apply_rotary_pos_emb

    _, (q, k, cosine, sine), run = _prepared(run_reference, is_neox=False)
    expected = apply_rotary_pos_emb(q, k, torch.cat([cosine, cosine], -1)[None], torch.cat([sine, sine], -1)[None])
    for output, wanted in zip(run, expected, strict=True):
        torch.testing.assert_close(output, wanted[0].transpose(0, 1).reshape(output.shape))


def _prepared(run_reference: Callable[..., Any], *, is_neox: bool) -> Any:
    parameters = {"head_dim": 32, "rotary_dim": 32, "is_neox": is_neox, "dtype": "float32", **SIZES}
    definition = get_kernel_type("rope_with_cos_sin_cache").build(parameters)
    inputs = generate_inputs(definition, choose_axes(definition))
    cosine, sine = inputs["cos_sin_cache"][inputs["positions"]].chunk(2, dim=-1)
    q, k = (inputs[name].reshape(len(cosine), -1, 32).transpose(0, 1)[None] for name in ("q", "k"))
    return inputs, (q, k, cosine, sine), run_reference(definition, *inputs.values())


def test_heads_of_any_size_divide_the_rows_of_a_trial() -> None:
    for head_dim in (64, 72, 80, 96, 112, 128, 192, 256, 576):
        definition = get_kernel_type("rope_with_cos_sin_cache").build({"head_dim": head_dim, "rotary_dim": 64, **SIZES})
        axes = choose_axes(definition)
        assert axes["num_q_heads_x_head_size"] % head_dim == 0
        assert axes["num_k_heads_x_head_size"] % head_dim == 0


def test_more_turning_elements_than_the_head_has_are_refused() -> None:
    with pytest.raises(ValidationError, match="rotary_dim 128 is more than head_dim 64"):
        get_kernel_type("rope_with_cos_sin_cache").build({"head_dim": 64, "rotary_dim": 128, **SIZES})


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ({"rotary_dim": 128}, "rope_h32_d128"),
        ({"rotary_dim": 64}, "rope_h32_d128_rd64"),
        ({"rotary_dim": 128, "is_neox": False}, "rope_gptj_style_h32_d128"),
    ],
)
def test_rope_of_tokens_conforms_under_its_canonical_name(
    parameters: dict[str, Any], name: str, check_conformance: Callable[..., None]
) -> None:
    check_conformance("rope", name, num_heads=32, head_dim=128, **parameters)


def test_rope_of_tokens_is_that_of_llama(try_kernel: Callable[..., Any]) -> None:
    import torch
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    trial = try_kernel("rope", num_heads=4, head_dim=32, rotary_dim=32, dtype="float32")
    q, k = (trial.inputs[name].transpose(0, 1)[None] for name in ("q", "k"))
    cos, sin = (torch.cat([trial.inputs[name]] * 2, dim=-1)[None] for name in ("cos", "sin"))
    for output, wanted in zip(trial.outputs.values(), apply_rotary_pos_emb(q, k, cos, sin), strict=True):
        torch.testing.assert_close(output, wanted[0].transpose(0, 1))


def test_rope_of_tokens_is_recognised_with_all_that_it_is() -> None:
    from fib_tools.gate.recognise import recognise

    for parameters in ({"rotary_dim": 64}, {"rotary_dim": 32}, {"rotary_dim": 64, "is_neox": False}):
        kernel = get_kernel_type("rope")
        found = recognise(kernel.build({"num_heads": 8, "head_dim": 64, **parameters}))
        assert found is not None
        assert found.kernel == "rope"
        assert found.parameters.items() >= {"num_heads": 8, "head_dim": 64, "is_neox": True, **parameters}.items()
