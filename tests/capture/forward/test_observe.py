from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch.nn.attention import flex_attention

from fib_tools.capture.forward import masks
from fib_tools.capture.forward.call import Call, Unmapped
from fib_tools.capture.forward.observe import observe
from fib_tools.capture.forward.watch import Watch
from fib_tools.op_types.registry import get_kernel_type
from tiny_forward import ARCHITECTURES, make_model, make_prompt

ROUTED = {"moe_bf16": {"routing": "renormalize"}}
"""What a call of experts cannot show."""
ATTENTION = {"deepseek_v3": ("mla_ragged_prefill", "mla_paged_decode")}
WITH_EXPERTS = {"qwen3_moe", "mixtral", "deepseek_v3", "gpt_oss"}


def generate(model: Any, prompt: dict[str, torch.Tensor], tokens: int = 3, **options: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model.generate(**prompt, max_new_tokens=tokens, **{"do_sample": False, **options})
    return result


def calls(watch: Watch, kernel: str) -> list[Call]:
    return [tally.call for tally in watch.tallies if isinstance(tally.call, Call) and tally.call.kernel == kernel]


def counts(watch: Watch) -> Counter[str]:
    found: Counter[str] = Counter()
    for tally in watch.tallies:
        found[tally.call.kernel if isinstance(tally.call, Call) else f"no {tally.call.what}"] += tally.count
    return found


def test_everything_a_llama_computes_is_counted() -> None:
    model, prompt = make_model("llama"), make_prompt((12, 8))
    with observe(model) as watch:
        generate(model, prompt)
    assert counts(watch) == {
        "embedding": 3,
        "rmsnorm": 3,  # before the first layer of each step; the others have an addition before them
        "fused_add_rmsnorm": 12,
        "gemm": 3 * (2 * 7 + 1),
        "rope": 6,
        "gqa_ragged_prefill": 2,
        "gqa_paged_decode": 4,
        "silu": 6,
    }


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_an_architecture_is_seen_and_computes_the_same(kind: str) -> None:
    model, prompt = make_model(kind), make_prompt((12, 8))
    before = generate(model, prompt)
    with observe(model) as watch:
        assert torch.equal(generate(model, prompt), before)
    assert torch.equal(generate(model, prompt), before)
    seen = counts(watch)
    prefill, decode = ATTENTION.get(kind, ("gqa_ragged_prefill", "gqa_paged_decode"))
    assert (seen[prefill], seen[decode], seen["rope"]) == (2, 4, 6)
    assert seen["moe_bf16"] == (6 if kind in WITH_EXPERTS - {"deepseek_v3"} else 3 if kind == "deepseek_v3" else 0)
    assert seen["moe_routing"] == seen["moe_bf16"]
    assert [tally.call for tally in watch.tallies if isinstance(tally.call, Unmapped)] == []


@pytest.mark.parametrize(
    ("kind", "routing"),
    [
        ("qwen3_moe", {"num_experts": 8, "routing": "default"}),
        ("mixtral", {"num_experts": 4, "routing": "renormalize"}),
        ("gpt_oss", {"num_experts": 4, "routing": "renormalize"}),
        ("deepseek_v3", {"num_experts": 8, "routing": "ds", "norm_topk_prob": True, "n_group": 2, "topk_group": 1}),
    ],
)
def test_how_experts_are_chosen_is_told_by_their_weights(kind: str, routing: dict[str, Any]) -> None:
    model = make_model(kind)
    with observe(model) as watch, torch.no_grad():
        model(**make_prompt((5, 3)))
    (call,) = calls(watch, "moe_routing")
    assert call.parameters == {"top_k": 2, **routing}
    assert (call.axes, call.scalars) == (
        {"num_tokens": 8},
        {"routed_scaling_factor": 2.5 if kind == "deepseek_v3" else 1.0},
    )


class Router(torch.nn.Module):
    """Experts that a token gets, weighted in a way of its own."""

    num_experts, top_k = 4, 2

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.eye(4))

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        logits = torch.nn.functional.linear(hidden_states, self.weight)
        weights, chosen = torch.topk(logits.softmax(dim=-1).square(), self.top_k)
        return logits, weights, chosen


def test_weights_that_come_about_in_another_way_are_no_kernel() -> None:
    router = Router()
    with observe(router) as watch, torch.no_grad():
        router(torch.randn(3, 4, generator=torch.Generator().manual_seed(0)))
    found = [tally.call for tally in watch.tallies if isinstance(tally.call, Unmapped)]
    assert [(call.kernel, call.reason) for call in found] == [
        ("moe_routing", "its weights are those of no routing that is known")
    ]
    assert calls(watch, "gemm") != []


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_call_is_one_of_a_definition_with_these_axes(kind: str) -> None:
    model = make_model(kind)
    with observe(model) as watch:
        generate(model, make_prompt((12, 8)), do_sample=True, top_k=5, top_p=0.9)
    for tally in watch.tallies:
        assert isinstance(tally.call, Call)
        call = tally.call
        definition = get_kernel_type(call.kernel).build({**call.parameters, **ROUTED.get(call.kernel, {})})
        assert set(call.axes) == set(definition.var_axes), definition.name
        lengths = {**call.axes, **definition.const_axes}
        for name, values in call.given.items():
            (axis,) = definition.inputs[name].shape or ()
            assert len(values) == lengths[axis], name
        assert {*call.given, *call.scalars} <= {*definition.inputs}


def test_padding_is_no_token_of_attention() -> None:
    model = make_model("llama")
    with observe(model, page_size=4) as watch:
        generate(model, make_prompt((12, 8)), tokens=2)
    (prefill,), (decode,) = calls(watch, "gqa_ragged_prefill"), calls(watch, "gqa_paged_decode")
    assert prefill.given == {"qo_indptr": (0, 12, 20), "kv_indptr": (0, 12, 20)}
    assert (prefill.axes["total_q"], prefill.parameters["causal"]) == (20, True)
    # 13 and 9 tokens: four pages with one token in the last, three with one
    assert decode.given["kv_indptr"] == (0, 4, 7)
    assert decode.given["kv_last_page_len"] == (1, 1)
    assert decode.given["kv_indices"] == tuple(range(7))


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_every_attention_of_transformers_is_seen_alike(implementation: str) -> None:
    model = make_model("llama", attn_implementation=implementation)
    with observe(model) as watch:
        generate(model, make_prompt((5, 5)), tokens=2)
    (prefill,) = calls(watch, "gqa_ragged_prefill")
    assert prefill.given["qo_indptr"] == (0, 5, 10)
    assert prefill.parameters["causal"]
    assert counts(watch)["softmax"] == 0, "what attention computes inside is its own"


def test_a_mask_of_another_form_is_told() -> None:
    model, prompt = make_model("llama"), make_prompt((6,))
    mask = torch.ones(1, 1, 6, 6, dtype=torch.bool).tril()
    mask[0, 0, 4, 1] = False
    with observe(model) as watch, torch.no_grad():
        model(input_ids=prompt["input_ids"], attention_mask=mask)
        model(input_ids=prompt["input_ids"], attention_mask=torch.ones_like(mask))
    (unmapped,) = [tally for tally in watch.tallies if isinstance(tally.call, Unmapped)]
    assert unmapped.call == Unmapped(
        what="attention",
        reason="its mask is neither causal nor full",
        kernel="gqa_ragged_prefill",
        shapes=((1, 4, 6, 16), (1, 2, 6, 16)),
    )
    assert [call.parameters["causal"] for call in calls(watch, "gqa_ragged_prefill")] == [False]


def test_windows_caps_and_sinks_are_constants_of_the_kernel() -> None:
    model = make_model("gpt_oss")
    with observe(model) as watch:
        generate(model, make_prompt((12, 8)), tokens=1)
    windows = [call.parameters["window_left"] for call in calls(watch, "gqa_ragged_prefill")]
    assert windows == [7, -1]
    assert all(call.parameters["sinks"] for call in calls(watch, "gqa_ragged_prefill"))
    (experts,) = calls(watch, "moe_bf16")
    assert (experts.parameters["activation"], experts.parameters["expert_bias"]) == ("swiglu_oai", True)


def test_norms_are_told_apart_by_what_they_compute() -> None:
    for kind, norm in (("llama", "rmsnorm"), ("gemma3_text", "gemma_rmsnorm")):
        model = make_model(kind)
        with observe(model) as watch:
            generate(model, make_prompt((4,)), tokens=1)
        assert calls(watch, norm)
        assert not calls(watch, "rmsnorm" if norm != "rmsnorm" else "gemma_rmsnorm")


def test_draws_are_seen_with_the_filters_before_them() -> None:
    model = make_model("llama")
    with observe(model) as watch:
        generate(model, make_prompt((4, 4)), tokens=1, do_sample=True, top_k=5, top_p=0.5)
        generate(model, make_prompt((4, 4)), tokens=1, do_sample=True, top_k=0, top_p=0.5)
        generate(model, make_prompt((4, 4)), tokens=1, do_sample=True, top_k=0)
    (both,), (top_p,) = calls(watch, "top_k_top_p_sampling_from_probs"), calls(watch, "top_p_sampling_from_probs")
    assert both.given == {"top_k": (5, 5), "top_p": (0.5, 0.5)}
    assert top_p.given == {"top_p": (0.5, 0.5)}
    assert [tally.call.reason for tally in watch.tallies if isinstance(tally.call, Unmapped)] == [
        "no kernel type draws 1 of [2, 256] after no filter"
    ]


def test_everything_is_put_back_also_after_an_error() -> None:
    model, functional = make_model("qwen3_moe"), torch.nn.functional
    named = [(functional, "linear"), (functional, "softmax"), (torch, "topk"), (torch, "multinomial")]
    named += [(torch, "bmm"), (torch.Tensor, "__matmul__"), (functional, "scaled_dot_product_attention")]
    named += [(torch._VF, "lstm"), (functional, "layer_norm"), (torch.Tensor, "addmm")]
    places = [*named, (torch.Tensor, "__add__"), *((type(module), "forward") for module in model.modules())]
    before = [vars(owner).get(name) for owner, name in places]

    def watch_and_fail() -> None:
        with observe(model):
            assert vars(functional)["linear"] is not before[0]
            raise RuntimeError("over")

    with pytest.raises(RuntimeError, match="over"):
        watch_and_fail()
    assert [vars(owner).get(name) for owner, name in places] == before


def test_a_rotary_embedding_of_one_tensor_at_a_time_is_told_of() -> None:
    model = make_model("gptj", rotary_dim=8)
    with observe(model) as watch:
        generate(model, make_prompt((4,)), tokens=1)
    (told,) = [tally for tally in watch.tallies if isinstance(tally.call, Unmapped) and tally.call.what == "rope"]
    assert told.count == 4, "queries and keys of two layers"
    assert told.call.reason.startswith("it does not take q, k, cos, sin")


def test_models_that_are_made_meanwhile_are_seen_too() -> None:
    with observe(new_ones=True) as watch:
        generate(make_model("llama"), make_prompt((4,)), tokens=1)
    assert counts(watch)["fused_add_rmsnorm"] == 4


def test_padding_behind_the_tokens_is_no_token_either() -> None:
    model, prompt = make_model("llama"), make_prompt((12, 12))
    prompt["attention_mask"][1, 8:] = 0
    with observe(model) as watch, torch.no_grad():
        model(**prompt)
    (prefill,) = calls(watch, "gqa_ragged_prefill")
    assert prefill.given == {"qo_indptr": (0, 12, 20), "kv_indptr": (0, 12, 20)}
    assert prefill.parameters["causal"]


def test_the_free_room_of_a_static_cache_is_no_key() -> None:
    model = make_model("llama")
    with observe(model) as watch:
        generate(model, make_prompt((6, 6)), tokens=3, cache_implementation="static")
    for prefill in calls(watch, "gqa_ragged_prefill"):
        assert (prefill.axes["total_q"], prefill.axes["total_kv"]) == (12, 12)
    assert [call.axes["num_kv_indices"] for call in calls(watch, "gqa_paged_decode")] == [2, 2]


def test_every_thread_counts_its_own_calls() -> None:
    model, prompt = make_model("llama"), make_prompt((4,))
    with observe(model) as watch:
        generate(model, prompt, tokens=1)
    once = counts(watch)
    with observe(model) as watch, ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: generate(model, prompt, tokens=1), range(8)))
    assert counts(watch) == {name: 8 * count for name, count in once.items()}


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradients_of_checkpointed_blocks_are_what_they_are(reentrant: bool) -> None:  # noqa: FBT001  # a parameter
    model = make_model("llama")
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": reentrant})
    model.enable_input_require_grads()
    model.train()

    def find_gradient() -> torch.Tensor:
        model.zero_grad()
        model(**make_prompt((4,)), use_cache=False).logits.float().sum().backward()
        gradient: torch.Tensor = model.get_input_embeddings().weight.grad.clone()
        return gradient

    plain = find_gradient()
    with observe(model) as watch:
        watched = find_gradient()
    assert torch.equal(plain, watched)
    assert counts(watch)["rmsnorm"]


def test_code_that_torch_compiles_runs_as_it_would() -> None:
    model, prompt = make_model("llama"), make_prompt((4,))
    with torch.no_grad():
        before = model(**prompt).logits
        with observe(model):
            compiled = torch.compile(model, backend="eager")
            assert torch.equal(compiled(**prompt).logits, before)


def test_what_is_watched_keeps_its_name_by_which_compilers_know_it() -> None:
    model, functional = make_model("llama"), torch.nn.functional
    places = [(torch, "mm"), (torch, "bmm"), (functional, "scaled_dot_product_attention"), (torch.Tensor, "__add__")]
    with observe(model):
        assert [getattr(owner, name).__name__ for owner, name in places] == [name for _, name in places]


class Packed(torch.Tensor):
    """Has a product of its own, which calls torch's with what it unpacks."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is PLAIN_LINEAR:
            args = [each.as_subclass(torch.Tensor) if isinstance(each, cls) else each for each in args]
            return torch.nn.functional.linear(*args)
        return super().__torch_function__(func, types, args, kwargs)


PLAIN_LINEAR = torch.nn.functional.linear


@pytest.mark.parametrize("kind", [torch.Tensor, Packed])
def test_a_product_that_calls_another_is_one(kind: type[torch.Tensor]) -> None:
    model = torch.nn.Linear(8, 8, bias=False)
    model.weight = torch.nn.Parameter(torch.ones(8, 8).as_subclass(kind), requires_grad=False)
    with observe(model) as watch, torch.no_grad():
        assert torch.equal(model(torch.ones(2, 8)).as_subclass(torch.Tensor), torch.full((2, 8), 8.0))
    assert counts(watch)["gemm"] == 1


@pytest.mark.parametrize(("act", "kernel"), [("gelu", "gelu"), ("gelu_pytorch_tanh", "gelu_tanh")])
def test_a_function_that_a_module_took_from_torch_is_seen(act: str, kernel: str) -> None:
    model = make_model("llama", hidden_act=act)
    taken = vars(model.get_submodule("model.layers.0.mlp.act_fn"))["act"]
    with observe(model) as watch:
        generate(model, make_prompt((4,)), tokens=1)
    assert counts(watch)[kernel] == 2
    assert vars(model.get_submodule("model.layers.0.mlp.act_fn"))["act"] is taken


def test_the_activation_of_gemma2_is_seen() -> None:
    model = make_model("gemma2")
    with observe(model) as watch:
        generate(model, make_prompt((4,)), tokens=1)
    assert counts(watch)["gelu_tanh"] == 2


def test_a_mask_that_changes_in_place_is_another_mask() -> None:
    model, prompt = make_model("llama", num_hidden_layers=1), make_prompt((6, 6))
    mask = torch.ones(2, 1, 6, 6, dtype=torch.bool).tril()
    with observe(model) as watch, torch.no_grad():
        model(input_ids=prompt["input_ids"], attention_mask=mask)
        mask[1, :, :, :2] = False
        model(input_ids=prompt["input_ids"], attention_mask=mask)
        mask.zero_()
    assert [call.given["qo_indptr"] for call in calls(watch, "gqa_ragged_prefill")] == [(0, 6, 12), (0, 6, 10)]


def test_a_mask_that_is_a_function_of_places_is_read_as_any_other() -> None:
    padded = torch.ones(2, 6, dtype=torch.bool)
    padded[1, :2] = False

    def allow(batch: torch.Tensor, _: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return padded[batch, key] & (query >= key)

    mask = flex_attention.create_block_mask(allow, 2, None, 6, 6, device="cpu")
    lengths = masks.Masks().note(mask, 2, 6, 6).lengths
    assert (lengths.queries, lengths.keys) == ((6, 4), (6, 4))
    assert lengths.pairs == lengths.count_pairs(None, causal=True)


def test_masks_are_read_when_the_run_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[torch.Tensor] = []
    real = masks._read_mask  # to read on a GPU is to wait for it, which no result shows

    def note(mask: torch.Tensor, *sizes: int) -> masks.Lengths:
        read.append(mask)
        return real(mask, *sizes)

    monkeypatch.setattr(masks, "_read_mask", note)
    model = make_model("llama")
    with observe(model) as watch:
        generate(model, make_prompt((12, 8)), tokens=4)
        assert read == []
    assert len(calls(watch, "gqa_paged_decode")) == 3
    assert len(read) == 4, "one for each step, not one for each layer"


def test_many_masks_are_read_before_they_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masks, "_MOST_HELD", 1000)
    held = masks.Masks()
    noted = [held.note(torch.ones(1, 600, dtype=torch.bool), 1, 1, 600) for _ in range(3)]
    assert [each.is_read for each in noted] == [True, True, False]
