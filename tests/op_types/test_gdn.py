from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from pydantic import ValidationError

from fib_tools.op_types.registry import get_kernel_type

SMALL = {"num_q_heads": 2, "num_v_heads": 4, "head_size": 16, "dtype": "float32"}
KERNELS = ("gdn_decode", "gdn_prefill", "gdn_mtp")


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("q", "v"), [(16, 32), (4, 8), (2, 2)])
def test_a_gated_delta_rule_conforms_under_its_canonical_name(
    kernel: str, q: int, v: int, check_conformance: Callable[..., None]
) -> None:
    check_conformance(kernel, f"{kernel}_qk{q}_v{v}_d128_k_last", num_q_heads=q, num_v_heads=v, head_size=128)


def test_queries_and_keys_taken_as_they_are_change_the_name(check_conformance: Callable[..., None]) -> None:
    sizes = {"num_q_heads": 4, "num_v_heads": 8, "head_size": 128, "use_qk_l2norm": False}
    check_conformance("gdn_decode", "gdn_decode_qk4_v8_d128_k_last_rawqk", **sizes)


@pytest.mark.parametrize(
    ("kernel", "inputs", "outputs"),
    [
        ("gdn_decode", "q k v state A_log a dt_bias b scale", "output new_state"),
        ("gdn_prefill", "q k v state A_log a dt_bias b cu_seqlens scale", "output new_state"),
        (
            "gdn_mtp",
            "q k v initial_state initial_state_indices A_log a dt_bias b scale",
            "output final_state intermediate_states",
        ),
    ],
)
def test_tensors_stand_in_the_order_of_the_published_interface(kernel: str, inputs: str, outputs: str) -> None:
    definition = get_kernel_type(kernel).build(SMALL)
    assert " ".join(definition.inputs) == inputs
    assert " ".join(definition.outputs) == outputs


def _gates(inputs: dict[str, Any]) -> tuple[Any, Any]:
    """Compute transformers' g (a logarithm) and beta from the raw gates, as its layer does."""
    import torch

    g = -inputs["A_log"].exp() * torch.nn.functional.softplus(inputs["a"] + inputs["dt_bias"])
    return g, inputs["b"].sigmoid()


def _recurrent(inputs: dict[str, Any], state: Any, *, unit: bool = True) -> tuple[Any, Any]:
    """Run transformers' recurrence on [batch, tokens, ...]; its state is [K, V], ours [V, K]."""
    from transformers.models.qwen3_next.modeling_qwen3_next import torch_recurrent_gated_delta_rule

    g, beta = _gates(inputs)
    output, after = torch_recurrent_gated_delta_rule(
        inputs["q"],
        inputs["k"],
        inputs["v"],
        g,
        beta,
        initial_state=state.transpose(-1, -2).contiguous(),
        output_final_state=True,
        use_qk_l2norm_in_kernel=unit,
    )
    return output, after.transpose(-1, -2)


@pytest.mark.parametrize("unit", [True, False])
def test_decode_is_the_recurrence_of_transformers(
    unit: bool,  # noqa: FBT001  # a parameter of the test, not of an interface
    try_kernel: Callable[..., Any],
) -> None:
    import torch

    trial = try_kernel("gdn_decode", **SMALL, use_qk_l2norm=unit)
    output, state = _recurrent(trial.inputs, trial.inputs["state"], unit=unit)
    torch.testing.assert_close(trial.outputs["output"], output)
    torch.testing.assert_close(trial.outputs["new_state"], state)


def test_prefill_is_the_chunked_form_of_transformers_for_each_sequence(try_kernel: Callable[..., Any]) -> None:
    import torch
    from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule

    trial = try_kernel("gdn_prefill", {"total_seq_len": 150, "num_seqs": 3, "len_cu_seqlens": 4}, **SMALL)
    bounds = trial.inputs["cu_seqlens"].tolist()
    assert max(end - start for start, end in pairwise(bounds)) > 32, "more than one chunk"
    g, beta = _gates(trial.inputs)
    for sequence in range(3):
        span = slice(bounds[sequence], bounds[sequence + 1])
        output, state = torch_chunk_gated_delta_rule(
            *(trial.inputs[name][None, span] for name in "qkv"),
            g[None, span],
            beta[None, span],
            chunk_size=32,
            initial_state=trial.inputs["state"][sequence][None].transpose(-1, -2).contiguous(),
            output_final_state=True,
            use_qk_l2norm_in_kernel=True,
        )
        torch.testing.assert_close(trial.outputs["output"][span], output[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            trial.outputs["new_state"][sequence], state[0].transpose(-1, -2), rtol=1e-4, atol=1e-5
        )


def test_an_empty_sequence_keeps_its_state(run_reference: Callable[..., Any], try_kernel: Callable[..., Any]) -> None:
    import torch

    trial = try_kernel("gdn_prefill", **SMALL)
    inputs = {**trial.inputs, "cu_seqlens": torch.tensor([0, 4, 4, 11])}
    _, state = run_reference(trial.definition, *inputs.values())
    assert torch.equal(state[1], trial.inputs["state"][1])


def test_drafted_tokens_leave_every_state_of_the_recurrence(try_kernel: Callable[..., Any]) -> None:
    import torch

    trial = try_kernel("gdn_mtp", **SMALL)
    slots = trial.inputs["initial_state_indices"].long()
    output, state = _recurrent(trial.inputs, trial.inputs["initial_state"][slots])
    torch.testing.assert_close(trial.outputs["output"], output)
    torch.testing.assert_close(trial.outputs["final_state"][slots], state)
    torch.testing.assert_close(trial.outputs["intermediate_states"][:, -1], state)
    short = {**trial.inputs, **{name: trial.inputs[name][:, :2] for name in ("q", "k", "v", "a", "b")}}
    _, earlier = _recurrent(short, trial.inputs["initial_state"][slots])
    torch.testing.assert_close(trial.outputs["intermediate_states"][:, 1], earlier)


def test_padding_leaves_the_pool_alone_and_its_rows_zero(
    run_reference: Callable[..., Any], try_kernel: Callable[..., Any]
) -> None:
    import torch

    trial = try_kernel("gdn_mtp", **SMALL)
    indices = torch.tensor([2, -1, 0], dtype=torch.int32)
    output, pool, between = run_reference(
        trial.definition, *{**trial.inputs, "initial_state_indices": indices}.values()
    )
    before = trial.inputs["initial_state"]
    changed = [not torch.equal(new, old) for new, old in zip(pool, before, strict=True)]
    assert changed == [True, False, True, False, False]
    assert not output[1].any()
    assert not between[1].any()


@pytest.mark.parametrize("kernel", KERNELS)
def test_one_rounding_separates_the_output_from_float64(
    kernel: str, try_kernel: Callable[..., Any], run_reference: Callable[..., Any], ulps: Callable[..., float]
) -> None:
    import torch

    trial = try_kernel(kernel, num_q_heads=2, num_v_heads=4, head_size=32)
    reference = trial.definition.reference.replace("float32", "float64").replace(".to(q.dtype)", ".to(torch.float64)")
    exact = run_reference(trial.definition.model_copy(update={"reference": reference}), *trial.inputs.values())[0]
    rounded = trial.outputs["output"]
    assert rounded.dtype == torch.bfloat16
    large = exact.abs() > 1e-3
    assert large.float().mean() > 0.5
    assert ulps(rounded[large], exact[large]) < 0.51


def test_the_state_keeps_the_key_dimension_last(
    run_reference: Callable[..., Any], try_kernel: Callable[..., Any]
) -> None:
    import torch

    trial = try_kernel("gdn_decode", {"batch_size": 1}, **SMALL)
    one_hot = torch.zeros_like(trial.inputs["k"])
    one_hot[..., 3] = 1.0
    inputs = {**trial.inputs, "k": one_hot, "state": torch.zeros_like(trial.inputs["state"])}
    _, state = run_reference(trial.definition, *inputs.values())
    assert state.abs().sum(dim=-2).nonzero()[:, -1].unique().tolist() == [3]


def test_heads_that_do_not_share_evenly_are_refused() -> None:
    with pytest.raises(ValidationError, match="3 value heads cannot share 2 query heads evenly"):
        get_kernel_type("gdn_decode").build({"num_q_heads": 2, "num_v_heads": 3, "head_size": 16})
