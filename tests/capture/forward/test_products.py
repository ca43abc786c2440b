from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from fib_tools.capture.forward.call import Call, Unmapped
from fib_tools.capture.forward.observe import observe
from fib_tools.op_types.registry import find_kernel_type, get_kernel_type
from tiny_forward import ARCHITECTURES, OTHERS, make_model, make_prompt

ROWS, WEIGHT, BIAS = torch.ones(2, 3, 4), torch.nn.Parameter(torch.ones(4, 5)), torch.ones(5)
HEADS = torch.ones(2, 4, 6, 8)


def watch_one(function: Callable[[], Any]) -> Call | Unmapped:
    """Call a function while no model is watched."""
    with observe() as watch, torch.no_grad():
        function()
    (tally,) = watch.tallies
    assert tally.count == 1
    return tally.call


def generate(kind: str) -> Counter[str]:
    """Count what a model calls; of what is no call of a kernel type, by what it would be."""
    model: Any = make_model(kind)
    with observe(model) as watch, torch.no_grad():
        model.generate(**make_prompt((12, 8)), max_new_tokens=2, min_new_tokens=2, do_sample=False)
    found: Counter[str] = Counter()
    for tally in watch.tallies:
        call = tally.call
        found[call.kernel if isinstance(call, Call) else f"no {call.what}: {call.kernel}"] += tally.count
    return found


def gemm(*, bias: bool, rows: int = 6) -> Call:
    parameters = {"n": 5, "k": 4, "dtype": "float32", "bias": bias}
    return Call(kernel="gemm", parameters=parameters, axes={"M": rows})


@pytest.mark.parametrize(
    ("function", "wanted"),
    [
        (lambda: ROWS @ WEIGHT, gemm(bias=False)),
        (lambda: torch.matmul(ROWS, WEIGHT), gemm(bias=False)),
        (lambda: ROWS.matmul(torch.nn.Parameter(torch.ones(5, 4)).t()), gemm(bias=False)),
        (lambda: torch.mm(ROWS[0], mat2=WEIGHT), gemm(bias=False, rows=3)),
        (lambda: torch.addmm(BIAS, ROWS[0], WEIGHT), gemm(bias=True, rows=3)),
        (lambda: BIAS.addmm(mat1=ROWS[0], mat2=WEIGHT), gemm(bias=True, rows=3)),
        (
            lambda: torch.bmm(ROWS, torch.nn.Parameter(torch.ones(2, 4, 5))),
            Call(kernel="bmm", parameters={"n": 5, "k": 4, "dtype": "float32", "b": 2}, axes={"M": 3}),
        ),
    ],
)
def test_a_product_with_weights_is_one_kernel_by_any_name(function: Callable[[], Any], wanted: Call) -> None:
    found = watch_one(function)
    assert found == wanted
    assert set(get_kernel_type(wanted.kernel).build(wanted.parameters).var_axes) == set(wanted.axes)


@pytest.mark.parametrize(
    ("function", "what", "kernel", "reason"),
    [
        (lambda: ROWS @ torch.ones(4, 5), "matmul", "", "neither factor is a weight"),
        (lambda: WEIGHT @ torch.ones(5, 2), "matmul", "gemm", "the weight comes first, and tokens are columns"),
        (lambda: torch.bmm(ROWS, ROWS.mT), "bmm", "", "neither factor is a weight"),
        (lambda: torch.addmm(torch.ones(3, 5), ROWS[0], WEIGHT), "addmm", "gemm", "it adds [3, 5], which is no bias"),
        (
            lambda: torch.addmm(BIAS, ROWS[0], WEIGHT, alpha=2),
            "addmm",
            "gemm",
            "it scales the product or what it adds",
        ),
        (lambda: torch.einsum("bik,kn->bin", ROWS, WEIGHT), "einsum 'bik,kn->bin'", "", None),
        (lambda: functional.conv2d(torch.ones(1, 3, 8, 8), torch.ones(2, 3, 4, 4)), "conv2d", "", None),
        (
            lambda: torch.nn.Conv1d(4, 4, 3, groups=4)(torch.ones(1, 4, 9)),
            "conv1d",
            "causal_conv1d_prefill",
            "it is not seen whether it is causal",
        ),
        (lambda: functional.layer_norm(ROWS, (4,)), "layer_norm", "layernorm", "it has no weight"),
        (lambda: functional.rms_norm(ROWS, (4,)), "rms_norm", "rmsnorm", None),
        (lambda: torch.nn.GRU(4, 5)(ROWS), "gru", "", None),
    ],
)
def test_what_is_no_call_of_a_kernel_type_is_told_with_its_shapes(
    function: Callable[[], Any], what: str, kernel: str, reason: str | None
) -> None:
    found = watch_one(function)
    assert isinstance(found, Unmapped)
    assert (found.what, found.kernel) == (what, kernel)
    assert reason in {None, found.reason}
    assert found.shapes
    assert kernel == "" or find_kernel_type(kernel) is not None


def test_a_column_times_a_row_is_not_worth_counting() -> None:
    with observe() as watch:
        torch.ones(4, 1) @ torch.ones(1, 5)
    assert watch.tallies == ()


def test_layernorm_is_a_norm_by_function_and_by_hand() -> None:
    class HandLayerNorm(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.eps = torch.nn.Parameter(torch.linspace(1, 2, 4)), 1e-6

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            centred = rows - rows.mean(dim=-1, keepdim=True)
            return self.weight * centred * torch.rsqrt(centred.square().mean(dim=-1, keepdim=True) + self.eps)

    by_hand = HandLayerNorm()
    with observe(by_hand) as watch, torch.no_grad():
        by_hand(ROWS)
        torch.nn.LayerNorm(4)(ROWS)
    sizes = {"hidden_size": 4, "dtype": "float32"}
    assert [tally.call for tally in watch.tallies] == [
        Call(kernel="layernorm", parameters={**sizes, "eps": 1e-6, "bias": False}, axes={"batch_size": 6}),
        Call(kernel="layernorm", parameters={**sizes, "eps": 1e-5, "bias": True}, axes={"batch_size": 6}),
    ]


@pytest.mark.parametrize(
    ("options", "causal"),
    [
        ({}, False),
        ({"is_causal": True}, True),
        ({"attn_mask": torch.ones(6, 6, dtype=torch.bool).tril()}, True),
        ({"attn_mask": torch.zeros(2, 1, 6, 6).masked_fill(~torch.ones(6, 6).tril().bool(), float("-inf"))}, True),
    ],
)
def test_attention_that_a_model_calls_of_torch_itself_is_attention(options: dict[str, Any], *, causal: bool) -> None:
    found = watch_one(lambda: functional.scaled_dot_product_attention(HEADS, HEADS, HEADS, **options))
    assert isinstance(found, Call)
    assert (found.kernel, found.parameters["causal"]) == ("gqa_ragged_prefill", causal)
    assert found.given == {"qo_indptr": (0, 6, 12), "kv_indptr": (0, 6, 12)}


def test_attention_with_a_bias_is_not_taken_for_one_without() -> None:
    bias = torch.linspace(-1, 1, 36).reshape(6, 6)
    found = watch_one(lambda: functional.scaled_dot_product_attention(HEADS, HEADS, HEADS, attn_mask=bias))
    assert isinstance(found, Unmapped)
    assert (found.kernel, found.reason) == ("gqa_ragged_prefill", "a bias is added to its scores, as ALiBi and T5 do")
    flat = watch_one(lambda: functional.scaled_dot_product_attention(HEADS[0], HEADS[0], HEADS[0]))
    assert isinstance(flat, Unmapped)


@pytest.mark.parametrize("kind", [*ARCHITECTURES, *OTHERS])
def test_nothing_that_multiplies_is_passed_over(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fib_tools.capture.forward.observe._is_plain", lambda _: False)  # so that each call is entered
    model: Any = make_model(kind)
    passed: Counter[str] = Counter()

    class Look(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            del types
            if func.overloadpacket in flop_registry:
                passed["seen" if watch.is_inside else str(func)] += 1
            return func(*args, **(kwargs or {}))

    with observe(model) as watch, torch.no_grad(), Look():
        model.generate(**make_prompt((12, 8)), max_new_tokens=2, min_new_tokens=2, do_sample=False)
    assert passed.keys() == {"seen"}


def test_what_older_models_compute_is_matched() -> None:
    assert generate("gpt2") == {
        "embedding": 4,
        "layernorm": 2 * 5,
        "gemm": 2 * (2 * 4 + 1),
        "gqa_ragged_prefill": 2,
        "gqa_paged_decode": 2,
        "gelu_tanh": 4,
    }
    falcon = generate("falcon")
    assert {"layernorm", "gemm", "gqa_ragged_prefill", "gelu"} < falcon.keys()
    assert not [name for name in falcon if name.startswith("no ")]


@pytest.mark.parametrize(
    ("kind", "missed"),
    [
        ("bloom", {"no baddbmm: ", "no bmm: "}),
        (
            "qwen3_next",
            {
                "no Qwen3NextRMSNormGated: rmsnorm_gated",
            },
        ),
        (
            "mamba2",
            {
                "no mamba2_chunk_scan: mamba_chunk_scan",
                "no mamba2_selective_state_update: mamba_ssu_decode",
                "no MambaRMSNormGated: rmsnorm_gated",
            },
        ),
    ],
)
def test_what_is_missed_of_newer_models_is_named(kind: str, missed: set[str]) -> None:
    assert {name for name in generate(kind) if name.startswith("no ")} == missed


def test_a_layer_that_keeps_a_state_is_told_and_its_products_are_seen() -> None:
    class Mixer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.A_log, self.projection = torch.nn.Parameter(torch.ones(4)), torch.nn.Linear(4, 5)

        def forward(self, rows: torch.Tensor) -> Any:
            return self.projection(rows * self.A_log.exp())

    mixer = Mixer()
    with observe(mixer) as watch, torch.no_grad():
        mixer(ROWS)
    told, product = sorted((tally.call for tally in watch.tallies), key=lambda call: isinstance(call, Call))
    assert told == Unmapped(what="Mixer", reason="what it makes of its state is not seen", shapes=((2, 3, 4),))
    assert product == gemm(bias=True)


def test_the_axis_of_time_is_no_hidden_size() -> None:
    conv, projection = torch.nn.Conv1d(4, 4, 3, groups=4, padding=2), torch.nn.Linear(9, 7)
    with observe(conv, projection) as watch, torch.no_grad():
        turned = conv(torch.ones(2, 4, 9))[:, :, :9]
        functional.silu(turned)  # 9 is by chance what the projection takes
        functional.silu(turned[:, :, :5])
        functional.silu(torch.ones(2, 3, 7))
        functional.silu(torch.ones(2, 3, 8))
    found = [tally.call for tally in watch.tallies if tally.call.kernel == "silu"]
    assert [call.axes["num_tokens"] for call in found if isinstance(call, Call)] == [6]
    missed = [call.shapes for call in found if isinstance(call, Unmapped)]
    assert missed == [((2, 4, 9),), ((2, 4, 5),), ((2, 3, 8),)]


def test_half_of_a_projection_is_a_hidden_size_too() -> None:
    gate_and_up = torch.nn.Linear(4, 10)
    with observe() as watch, torch.no_grad():
        functional.silu(gate_and_up(ROWS).chunk(2, dim=-1)[0])
    assert [tally.call.kernel for tally in watch.tallies if isinstance(tally.call, Call)] == ["gemm", "silu"]
