from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

SMALL = {"channels": 12, "width": 4, "dtype": "float32"}
KERNELS = ("causal_conv1d_decode", "causal_conv1d_prefill")
VARIANTS = ({}, {"bias": True}, {"activation": "none"}, {"bias": True, "activation": "none"})


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    ("variant", "words"), list(zip(VARIANTS, ("", "_bias", "_linear", "_bias_linear"), strict=True)), ids=str
)
def test_a_convolution_conforms_and_names_what_changes_it(
    kernel: str, variant: dict[str, Any], words: str, check_conformance: Callable[..., None]
) -> None:
    check_conformance(kernel, f"{kernel}{words}_c8192_w4", channels=8192, width=4, **variant)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_decode_is_the_update_of_transformers(variant: dict[str, Any], try_kernel: Callable[..., Any]) -> None:
    import torch
    from transformers.models.qwen3_next.modeling_qwen3_next import causal_conv1d_update

    trial = try_kernel("causal_conv1d_decode", **SMALL, **variant)
    inputs = trial.inputs
    slots = inputs["conv_state_indices"].long()
    state = inputs["conv_state"][slots].clone()
    activation = None if variant.get("activation") == "none" else "silu"
    output = causal_conv1d_update(inputs["x"][..., None], state, inputs["weight"], inputs.get("bias"), activation)
    torch.testing.assert_close(trial.outputs["output"], output[..., 0])
    assert torch.equal(trial.outputs["new_conv_state"][slots], state)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_prefill_is_the_convolution_of_transformers_for_each_sequence(
    variant: dict[str, Any], try_kernel: Callable[..., Any], run_reference: Callable[..., Any]
) -> None:
    import torch
    from transformers.models.qwen3_next.modeling_qwen3_next import causal_conv1d_fn

    trial = try_kernel("causal_conv1d_prefill", {"num_seqs": 5, "total_seq_len": 23}, **SMALL, **variant)
    known = [True, False, True, False, True]
    inputs = {**trial.inputs, "has_initial_state": torch.tensor(known)}
    filtered, states = run_reference(trial.definition, *inputs.values())
    bounds = inputs["query_start_loc"].tolist()
    activation = None if variant.get("activation") == "none" else "silu"
    for sequence, slot in enumerate(inputs["cache_indices"].tolist()):
        tokens = inputs["x"][:, bounds[sequence] : bounds[sequence + 1]]
        before = inputs["conv_states"][slot] * known[sequence]
        whole = torch.cat([before, tokens], dim=1)
        output = causal_conv1d_fn(whole[None], inputs["weight"], inputs.get("bias"), activation)[0, :, 3:]
        mine = filtered[:, bounds[sequence] : bounds[sequence + 1]]
        torch.testing.assert_close(mine, output, rtol=1e-5, atol=1e-6)
        assert torch.equal(states[slot], whole[:, -3:])


def test_prefill_then_decode_is_prefill_of_all(
    try_kernel: Callable[..., Any], run_reference: Callable[..., Any]
) -> None:
    import torch

    one = {"num_seqs": 1, "len_query_start_loc": 2, "state_cache_size": 1, "batch_size": 1}
    whole = try_kernel("causal_conv1d_prefill", {**one, "total_seq_len": 9}, **SMALL)
    decode = try_kernel("causal_conv1d_decode", one, **SMALL)
    inputs = {**whole.inputs, "x": whole.inputs["x"][:, :8], "query_start_loc": torch.tensor([0, 8])}
    _, states = run_reference(whole.definition, *inputs.values())
    last, states = run_reference(
        decode.definition, whole.inputs["x"][:, 8][None], states, whole.inputs["weight"], torch.tensor([0])
    )
    torch.testing.assert_close(last[0], whole.outputs["output"][:, 8])
    assert torch.equal(states, whole.outputs["new_conv_states"])


def test_padding_is_zero_and_leaves_the_pool_alone(
    try_kernel: Callable[..., Any], run_reference: Callable[..., Any]
) -> None:
    import torch

    none = torch.full((3,), -1, dtype=torch.int32)
    decode = try_kernel("causal_conv1d_decode", **SMALL)
    output, pool = run_reference(decode.definition, *{**decode.inputs, "conv_state_indices": none}.values())
    assert not output.any()
    assert torch.equal(pool, decode.inputs["conv_state"])
    prefill = try_kernel("causal_conv1d_prefill", **SMALL)
    output, pool = run_reference(prefill.definition, *{**prefill.inputs, "cache_indices": none}.values())
    assert not output.any()
    assert torch.equal(pool, prefill.inputs["conv_states"])


def test_one_rounding_separates_the_output_from_float64(
    try_kernel: Callable[..., Any], run_reference: Callable[..., Any], ulps: Callable[..., float]
) -> None:
    trial = try_kernel("causal_conv1d_decode", channels=64, width=4)
    reference = trial.definition.reference.replace("float32", "float64").replace(".to(x.dtype)", "")
    reference = reference.replace("torch.zeros_like(x)", "torch.zeros_like(x, dtype=torch.float64)")
    exact = run_reference(trial.definition.model_copy(update={"reference": reference}), *trial.inputs.values())[0]
    large = exact.abs() > 1e-3
    assert large.float().mean() > 0.5
    assert ulps(trial.outputs["output"][large], exact[large]) < 0.51
