from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from fib_tools.op_types.registry import get_kernel_type

SMALL = {"num_heads": 4, "head_dim": 8, "d_state": 16, "num_groups": 2, "dtype": "float32"}


@pytest.mark.parametrize("kernel", ["mamba_ssu_decode", "mamba_chunk_scan"])
def test_a_state_space_conforms_under_its_canonical_name(kernel: str, check_conformance: Callable[..., None]) -> None:
    sizes = {"num_heads": 64, "head_dim": 64, "d_state": 128, "num_groups": 8}
    check_conformance(kernel, f"{kernel}_h64_d64_s128_ng8", **sizes)


def test_decode_is_the_state_update_of_transformers(try_kernel: Callable[..., Any]) -> None:
    import torch
    from transformers.models.nemotron_h.modeling_nemotron_h import mamba2_selective_state_update

    trial = try_kernel("mamba_ssu_decode", **SMALL)
    inputs = trial.inputs
    slots = inputs["state_batch_indices"].long()
    state = inputs["state"][slots].clone()
    output = mamba2_selective_state_update(
        state,
        *(inputs[name] for name in ("x", "dt", "A", "B", "C")),
        D=inputs["D"],
        dt_bias=inputs["dt_bias"],
        dt_softplus=True,
    )
    torch.testing.assert_close(trial.outputs["output"], output)
    torch.testing.assert_close(trial.outputs["new_state"][slots], state)


def test_slots_of_nobody_are_left_alone_and_padding_is_zero(
    try_kernel: Callable[..., Any], run_reference: Callable[..., Any]
) -> None:
    import torch

    trial = try_kernel("mamba_ssu_decode", **SMALL)
    indices = torch.tensor([3, -1, 1], dtype=torch.int32)
    output, pool = run_reference(trial.definition, *{**trial.inputs, "state_batch_indices": indices}.values())
    changed = [not torch.equal(new, old) for new, old in zip(pool, trial.inputs["state"], strict=True)]
    assert changed == [False, True, False, True, False]
    assert not output[1].any()


def test_the_scan_is_the_chunked_form_of_transformers_for_each_sequence(try_kernel: Callable[..., Any]) -> None:
    import torch
    from transformers.models.nemotron_h.modeling_nemotron_h import mamba2_chunk_scan

    trial = try_kernel("mamba_chunk_scan", {"total_seq_len": 70, "num_seqs": 2, "len_cu_seqlens": 3}, **SMALL)
    inputs = trial.inputs
    bounds = inputs["cu_seqlens"].tolist()
    for sequence in range(2):
        span = slice(bounds[sequence], bounds[sequence + 1])
        output, state = mamba2_chunk_scan(
            inputs["x"][None, span],
            inputs["dt"][None, span],
            inputs["A"],
            inputs["B"][None, span],
            inputs["C"][None, span],
            chunk_size=16,
            D=inputs["D"],
            dt_bias=inputs["dt_bias"],
            initial_states=inputs["initial_states"][sequence][None],
            dt_softplus=True,
            return_final_states=True,
        )
        torch.testing.assert_close(trial.outputs["output"][span], output[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(trial.outputs["final_states"][sequence], state[0], rtol=1e-4, atol=1e-5)


def test_a_scan_of_one_token_each_is_decode(try_kernel: Callable[..., Any], run_reference: Callable[..., Any]) -> None:
    import torch

    scan = try_kernel("mamba_chunk_scan", {"total_seq_len": 3, "num_seqs": 3, "len_cu_seqlens": 4}, **SMALL)
    inputs = scan.inputs
    heads, dim, dstate = 4, 8, 16
    output, pool = run_reference(
        get_kernel_type("mamba_ssu_decode").build(SMALL),
        inputs["initial_states"],
        inputs["x"],
        inputs["dt"][..., None].expand(3, heads, dim),
        inputs["A"][:, None, None].expand(heads, dim, dstate),
        inputs["B"],
        inputs["C"],
        inputs["D"][:, None].expand(heads, dim),
        inputs["dt_bias"][:, None].expand(heads, dim),
        torch.arange(3, dtype=torch.int32),
    )
    torch.testing.assert_close(output, scan.outputs["output"])
    torch.testing.assert_close(pool, scan.outputs["final_states"])


@pytest.mark.parametrize("kernel", ["mamba_ssu_decode", "mamba_chunk_scan"])
def test_one_rounding_separates_the_output_from_float64(
    kernel: str, try_kernel: Callable[..., Any], run_reference: Callable[..., Any], ulps: Callable[..., float]
) -> None:
    trial = try_kernel(kernel, **{**SMALL, "dtype": "bfloat16"})
    reference = trial.definition.reference.replace("float32", "float64")
    reference = reference.replace("torch.zeros_like(x)", "torch.zeros_like(x, dtype=torch.float64)")
    reference = reference.replace(".to(x.dtype)", ".to(torch.float64)")
    exact = run_reference(trial.definition.model_copy(update={"reference": reference}), *trial.inputs.values())[0]
    large = exact.abs() > 1e-3
    assert large.float().mean() > 0.5
    assert ulps(trial.outputs["output"][large], exact[large]) < 0.51


def test_trial_inputs_have_one_value_a_head_and_share_its_storage(try_kernel: Callable[..., Any]) -> None:
    inputs = try_kernel("mamba_ssu_decode", **SMALL).inputs
    assert inputs["A"].stride()[1:] == (0, 0)
    assert inputs["dt"].stride()[-1] == inputs["D"].stride()[-1] == inputs["dt_bias"].stride()[-1] == 0
    assert (inputs["A"] < 0).all()


def test_heads_that_do_not_share_evenly_are_refused() -> None:
    with pytest.raises(ValidationError, match="4 heads cannot share 3 groups evenly"):
        get_kernel_type("mamba_ssu_decode").build({**SMALL, "num_groups": 3})


def test_the_chunk_size_is_silent_since_it_changes_rounding_only() -> None:
    kernel = get_kernel_type("mamba_chunk_scan")
    wide = kernel.parameters.model_validate({**SMALL, "chunk_size": 256})
    assert kernel.define(wide).name == "mamba_chunk_scan_h4_d8_s16_ng2"
    assert wide.qualifier() == "chunksize256"
