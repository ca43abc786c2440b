from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.models.qwen3_next import modeling_qwen3_next as modeling

from fib_tools.capture.forward.call import Call, Unmapped
from fib_tools.capture.forward.observe import observe
from fib_tools.op_types.registry import get_kernel_type
from tiny_forward import make_model, make_prompt

HEADS = {"num_q_heads": 2, "num_v_heads": 4, "head_size": 16, "use_qk_l2norm": True, "dtype": "bfloat16"}
RULES = ("chunk_gated_delta_rule", "recurrent_gated_delta_rule")


def find_calls(model: Any, kernel: str, *batches: tuple[int, ...], tokens: int = 3) -> list[tuple[Any, int]]:
    with torch.no_grad(), observe(model) as watch:
        for lengths in batches:
            model.generate(**make_prompt(lengths), max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)
    return [(tally.call, tally.count) for tally in watch.tallies if tally.call.kernel == kernel]


def watch_one(what: str, **changes: Any) -> Call | Unmapped:
    """Call a function of the modeling file, and give what it was taken for."""
    inputs = make_inputs(1 if what == RULES[1] else 5) | changes
    with observe(make_model("qwen3_next")) as watch:
        getattr(modeling, f"torch_{what}")(**inputs)
    (tally,) = watch.tallies
    return tally.call


def make_inputs(tokens: int, batch: int = 2) -> dict[str, Any]:
    torch.manual_seed(0)
    q, k = (torch.randn(batch, tokens, 2, 16) for _ in range(2))
    v, gate = torch.randn(batch, tokens, 4, 16), torch.rand(batch, tokens, 4)
    state = torch.randn(batch, 4, 16, 16)
    tokens_of = {"query": q, "key": k, "value": v, "g": -gate, "beta": gate}
    return {**tokens_of, "initial_state": state, "use_qk_l2norm_in_kernel": True}


def test_the_delta_rule_over_prompts_has_the_sequences_that_attention_has() -> None:
    found = find_calls(make_model("qwen3_next"), "gdn_prefill", (12, 8), (12, 4, 3))
    assert found == [
        (
            Call(
                kernel="gdn_prefill",
                parameters=HEADS,
                axes={"total_seq_len": starts[-1], "num_seqs": len(starts) - 1, "len_cu_seqlens": len(starts)},
                given={"cu_seqlens": starts},
                scalars={"scale": 0.25},
            ),
            1,
        )
        for starts in ((0, 12, 20), (0, 12, 16, 19))
    ]


def test_batches_of_one_size_are_told_apart_as_attention_does() -> None:
    found = find_calls(make_model("qwen3_next"), "gdn_prefill", (12, 8), (12, 4), (12, 8))
    assert sorted((call.given["cu_seqlens"], count) for call, count in found) == [((0, 12, 16), 1), ((0, 12, 20), 2)]


def test_the_delta_rule_of_a_token_has_a_state_for_each_sequence() -> None:
    (found,) = find_calls(make_model("qwen3_next"), "gdn_decode", (12, 8))
    call = Call(kernel="gdn_decode", parameters=HEADS, axes={"batch_size": 2}, scalars={"scale": 0.25})
    assert found == (call, 2)


def test_where_no_attention_tells_of_padding_all_tokens_count() -> None:
    call = watch_one(RULES[0])
    assert isinstance(call, Call)
    assert call.given == {"cu_seqlens": (0, 5, 10)}


@pytest.mark.parametrize("what", RULES)
def test_the_definition_of_a_call_computes_what_the_call_does(what: str) -> None:
    call = watch_one(what)
    assert isinstance(call, Call)
    kernel = get_kernel_type(call.kernel)
    namespace: dict[str, Any] = {}
    exec(kernel.define(kernel.parameters.model_validate(dict(call.parameters))).reference, namespace)  # noqa: S102
    inputs = make_inputs(1 if what == RULES[1] else 5)
    a, b = torch.randn_like(inputs["g"]), torch.randn_like(inputs["g"])
    rate, bias = torch.rand(4), torch.rand(4)
    inputs |= {"g": -rate.exp() * torch.nn.functional.softplus(a + bias), "beta": b.sigmoid()}
    wanted, wanted_state = getattr(modeling, f"torch_{what}")(**inputs, output_final_state=True)
    rows, offsets = [inputs["query"], inputs["key"], inputs["value"], a, b], []
    states = inputs["initial_state"].transpose(-1, -2).contiguous()
    if what == RULES[0]:
        rows, offsets = [each.flatten(0, 1) for each in rows], [torch.tensor(call.given["cu_seqlens"])]
    q, k, v, a, b = rows
    got, state = namespace["run"](q, k, v, states, rate, a, bias, b, *offsets, call.scalars["scale"])
    torch.testing.assert_close(got.reshape(wanted.shape), wanted, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(state.transpose(-1, -2), wanted_state, rtol=1e-3, atol=1e-4)


def test_a_scale_that_a_call_passes_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modeling, "torch_chunk_gated_delta_rule", lambda **_: None)  # as the package fla has it
    for scale, wanted in ((1, 1.0), (0.5, 0.5), (None, 0.25)):
        call = watch_one(RULES[0], scale=scale)
        assert isinstance(call, Call)
        assert call.scalars == {"scale": wanted}


def test_a_state_that_is_passed_by_position_is_seen() -> None:
    inputs = make_inputs(1)
    with observe(make_model("qwen3_next")) as watch:
        modeling.torch_recurrent_gated_delta_rule(*inputs.values())
        modeling.torch_recurrent_gated_delta_rule(*list(inputs.values())[:5], None)
    seen = [tally.call for tally in watch.tallies]
    assert [type(call) for call in seen] == [Call, Unmapped]


def test_a_convolution_that_goes_on_from_a_state_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    def convolve_on(x: Any, weight: Any, bias: Any = None, seq_idx: Any = None, initial_states: Any = None) -> None:
        """Do nothing: the package causal_conv1d has these arguments."""

    monkeypatch.setattr(modeling, "causal_conv1d_fn", convolve_on)
    rows, taps, state = torch.randn(2, 8, 5), torch.randn(8, 4), torch.randn(2, 8, 3)
    with observe(make_model("qwen3_next")) as watch:
        modeling.causal_conv1d_fn(rows, taps, None, None, state)
        modeling.causal_conv1d_fn(rows, taps)
    seen = [tally.call for tally in watch.tallies]
    assert [type(call) for call in seen] == [Unmapped, Call]
    assert isinstance(seen[0], Unmapped)
    assert "a continued prefill" in seen[0].reason


@pytest.mark.parametrize(
    ("what", "changes", "reason"),
    [
        (RULES[1], {"initial_state": None}, "not of one token with a state before it"),
        (RULES[0], {"value": torch.randn(2, 5, 4, 8), "initial_state": None}, "heads have other sizes"),
    ],
)
def test_other_delta_rules_are_missed_with_their_shapes(what: str, changes: dict[str, Any], reason: str) -> None:
    found = watch_one(what, **changes)
    assert isinstance(found, Unmapped)
    assert reason in found.reason
    assert len(found.shapes) >= 5


def test_sequences_that_are_packed_into_one_are_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modeling, "torch_chunk_gated_delta_rule", lambda **_: None)  # as the package fla has it
    found = watch_one(RULES[0], cu_seqlens=torch.tensor([0, 2, 5]))
    assert isinstance(found, Unmapped)
    assert found.reason == "its sequences are packed into one"


def test_a_batch_that_attention_has_not_is_missed() -> None:
    model: Any = make_model("qwen3_next")
    model.lm_head.register_forward_hook(lambda *_: modeling.torch_chunk_gated_delta_rule(**make_inputs(5)) and None)
    with torch.no_grad(), observe(model) as watch:
        model(**make_prompt((12, 8)))
    missed = [
        tally.call for tally in watch.tallies if isinstance(tally.call, Unmapped) and tally.call.kernel == "gdn_prefill"
    ]
    assert [(each.what, each.shapes) for each in missed] == [("gdn_prefill", ((2, 5),))]


CHANNELS = {"channels": 128, "width": 4, "activation": "silu", "bias": False, "dtype": "bfloat16"}


def test_the_convolution_before_it_has_a_state_for_each_sequence() -> None:
    model = make_model("qwen3_next")
    (prefill,) = find_calls(model, "causal_conv1d_prefill", (12, 8))
    given = {"query_start_loc": (0, 12, 20), "cache_indices": (0, 1), "has_initial_state": (0, 0)}
    axes = {"total_seq_len": 20, "num_seqs": 2, "len_query_start_loc": 3, "state_cache_size": 2}
    assert prefill == (Call(kernel="causal_conv1d_prefill", parameters=CHANNELS, axes=axes, given=given), 1)
    (decode,) = find_calls(model, "causal_conv1d_decode", (12, 8))
    axes, given = {"batch_size": 2, "state_cache_size": 2}, {"conv_state_indices": (0, 1)}
    assert decode == (Call(kernel="causal_conv1d_decode", parameters=CHANNELS, axes=axes, given=given), 2)


def convolve(what: str, **options: Any) -> tuple[Call | Unmapped, torch.Tensor, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    inputs = {"weight": torch.randn(8, 4), "bias": torch.randn(8)}
    tokens = {"hidden_states": torch.randn(2, 8, 1 if what == "causal_conv1d_update" else 5)}
    if what == "causal_conv1d_update":
        tokens["conv_state"] = torch.randn(2, 8, 4)
    kept = {name: each.clone() for name, each in (tokens | inputs).items()}
    with observe(make_model("qwen3_next")) as watch:
        made = getattr(modeling, what)(**tokens, **inputs, **options)
    (tally,) = watch.tallies
    return tally.call, made, kept


def test_the_definition_of_a_convolution_computes_what_the_call_does() -> None:
    for what, kind in (("causal_conv1d_fn", "prefill"), ("causal_conv1d_update", "decode")):
        call, wanted, inputs = convolve(what, activation="silu")
        assert isinstance(call, Call)
        kernel = get_kernel_type(f"causal_conv1d_{kind}")
        namespace: dict[str, Any] = {}
        exec(kernel.define(kernel.parameters.model_validate(dict(call.parameters))).reference, namespace)  # noqa: S102
        given = {name: torch.tensor(values, dtype=torch.int32) for name, values in call.given.items()}
        if kind == "prefill":
            given["has_initial_state"] = given["has_initial_state"].bool()
            rows = inputs.pop("hidden_states").transpose(0, 1).flatten(1)
            output, _ = namespace["run"](rows, *inputs.values(), torch.randn(2, 8, 3), *given.values())
            output = output.reshape(8, 2, 5).transpose(0, 1)
        else:
            rows, pool = inputs.pop("hidden_states").squeeze(-1), inputs.pop("conv_state")[..., 1:]
            output, _ = namespace["run"](rows, pool, *inputs.values(), *given.values())
            output = output.unsqueeze(-1)
        torch.testing.assert_close(output, wanted, rtol=1e-4, atol=1e-5)


def test_a_convolution_of_another_kind_is_missed() -> None:
    found, _, _ = convolve("causal_conv1d_fn", activation="gelu")
    assert isinstance(found, Unmapped)
    assert found.reason.startswith("no kernel type has 'gelu'")
