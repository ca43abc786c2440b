from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

SMALL = {"num_heads": 3, "head_dim": 16, "dtype": "float32", "state_dtype": "float32"}


@pytest.mark.parametrize("kernel", ["kda_decode", "kda_prefill"])
def test_kimi_delta_attention_conforms_under_its_canonical_name(
    kernel: str, check_conformance: Callable[..., None]
) -> None:
    check_conformance(kernel, f"{kernel}_h32_d128", num_heads=32, head_dim=128)


def test_decode_is_the_recurrence_of_transformers(try_kernel: Callable[..., Any]) -> None:
    import torch
    from transformers.models.kimi_linear.modeling_kimi_linear import recurrent_kimi_delta_attention

    trial = try_kernel("kda_decode", **SMALL)
    output, state = recurrent_kimi_delta_attention(
        *(trial.inputs[name] for name in ("q", "k", "v", "g", "beta")),
        trial.inputs["initial_state"].transpose(-1, -2).contiguous(),
        output_final_state=True,
        use_qk_l2norm_in_kernel=True,
    )
    torch.testing.assert_close(trial.outputs["output"], output)
    torch.testing.assert_close(trial.outputs["final_state"], state.transpose(-1, -2))


def test_prefill_is_the_chunked_form_of_transformers_for_each_sequence(try_kernel: Callable[..., Any]) -> None:
    import torch
    from transformers.models.kimi_linear.modeling_kimi_linear import chunk_kimi_delta_attention

    trial = try_kernel("kda_prefill", {"total_seq_len": 90, "num_seqs": 2, "len_cu_seqlens": 3}, **SMALL)
    bounds = trial.inputs["cu_seqlens"].tolist()
    for sequence in range(2):
        span = slice(bounds[sequence], bounds[sequence + 1])
        output, state = chunk_kimi_delta_attention(
            *(trial.inputs[name][None, span] for name in ("q", "k", "v", "g", "beta")),
            chunk_size=16,
            initial_state=trial.inputs["initial_state"][sequence][None].transpose(-1, -2).contiguous(),
            output_final_state=True,
            use_qk_l2norm_in_kernel=True,
        )
        torch.testing.assert_close(trial.outputs["output"][span], output[0], rtol=1e-4, atol=1e-5)
        after = trial.outputs["final_state"][sequence]
        torch.testing.assert_close(after, state[0].transpose(-1, -2), rtol=1e-4, atol=1e-5)


def test_prefill_of_one_token_each_is_decode(try_kernel: Callable[..., Any], run_reference: Callable[..., Any]) -> None:
    import torch

    decode = try_kernel("kda_decode", {"batch_size": 3}, **SMALL)
    prefill = try_kernel("kda_prefill", {"total_seq_len": 3, "num_seqs": 3, "len_cu_seqlens": 4}, **SMALL)
    assert prefill.inputs["cu_seqlens"].tolist() == [0, 1, 2, 3]
    inputs = {name: prefill.inputs[name] for name in prefill.inputs if name in decode.inputs}
    rows = [value[:, None] if name in ("q", "k", "v", "g", "beta") else value for name, value in inputs.items()]
    output, state = run_reference(decode.definition, *rows)
    torch.testing.assert_close(output[:, 0], prefill.outputs["output"])
    torch.testing.assert_close(state, prefill.outputs["final_state"])


@pytest.mark.parametrize("kernel", ["kda_decode", "kda_prefill"])
def test_one_rounding_separates_the_output_from_float64(
    kernel: str, try_kernel: Callable[..., Any], run_reference: Callable[..., Any], ulps: Callable[..., float]
) -> None:
    trial = try_kernel(kernel, num_heads=3, head_dim=32)
    reference = trial.definition.reference.replace("float32", "float64").replace(".to(q.dtype)", ".to(torch.float64)")
    exact = run_reference(trial.definition.model_copy(update={"reference": reference}), *trial.inputs.values())[0]
    large = exact.abs() > 1e-3
    assert large.float().mean() > 0.5
    assert ulps(trial.outputs["output"][large], exact[large]) < 0.51


def test_each_key_element_decays_by_its_own_gate(
    try_kernel: Callable[..., Any], run_reference: Callable[..., Any]
) -> None:
    import torch

    trial = try_kernel("kda_decode", **SMALL)
    inputs = {**trial.inputs, "beta": torch.zeros_like(trial.inputs["beta"])}
    _, state = run_reference(trial.definition, *inputs.values())
    expected = trial.inputs["initial_state"] * trial.inputs["g"][:, 0].exp().unsqueeze(-2)
    torch.testing.assert_close(state, expected)
