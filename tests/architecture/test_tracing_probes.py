from __future__ import annotations

from typing import Any

import pytest
import torch

from fib_tools.architecture.tracing_probes import probe_mask, probe_norm, probe_rope


class _Norm(torch.nn.Module):
    def __init__(self, size: int, *, offset: float = 0.0, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(size))
        self.offset = offset
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * (self.weight + self.offset)


class _Scale(_Norm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight


@pytest.mark.parametrize("eps", [1e-5, 1e-6])
def test_plain_and_gemma_norms_differ_in_what_a_zero_weight_does(eps: float) -> None:
    plain, gemma = _Norm(48, eps=eps).to("meta"), _Norm(48, offset=1.0, eps=eps).to("meta")
    assert probe_norm(plain, size=48, inputs=1)[:2] == ("rmsnorm", eps)
    assert probe_norm(gemma, size=48, inputs=1)[:2] == ("gemma_rmsnorm", eps)


def test_layernorm_is_told_by_its_mean() -> None:
    found = probe_norm(torch.nn.LayerNorm(32, eps=1e-5, device="meta"), size=32, inputs=1)
    assert (found.kind, found.eps, found.has_bias) == ("layernorm", 1e-5, True)


def test_a_norm_that_cannot_be_asked_is_unknown() -> None:
    assert probe_norm(_Norm(16).to("meta"), size=16, inputs=3).kind == "unknown"


def test_a_module_that_is_named_norm_and_is_none_is_unknown() -> None:
    assert probe_norm(_Scale(16).to("meta"), size=16, inputs=1).kind == "unknown"


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda _b, _h, q, k: k <= q, {"causal": True, "window": None, "chunk": None}),
        (lambda _b, _h, q, k: (k <= q) & (k > q - 128), {"causal": True, "window": 128, "chunk": None}),
        (lambda _b, _h, q, k: (k <= q) & (k // 96 == q // 96), {"causal": True, "window": None, "chunk": 96}),
        (lambda _b, _h, q, k: (k <= q) | (k > q), {"causal": False, "window": None, "chunk": None}),
    ],
)
def test_a_mask_is_learned_by_asking_it(function: Any, expected: dict[str, Any]) -> None:
    assert probe_mask(function, 96) == expected


def test_a_mask_that_holds_a_tensor_without_values_is_asked_with_zeros() -> None:
    padding = torch.zeros(1, dtype=torch.long, device="meta")

    def mask(b: Any, _h: Any, q: Any, k: Any) -> Any:
        return (k <= q) & ((k - padding[b]) // 64 == (q - padding[b]) // 64)

    assert probe_mask(mask, 64)["chunk"] == 64


def _neox(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    width = cos.shape[-1]
    turned, rest = x[..., :width], x[..., width:]
    half = torch.cat((-turned[..., width // 2 :], turned[..., : width // 2]), dim=-1)
    return torch.cat((turned * cos + half * sin, rest), dim=-1)


def _gptj(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    even, odd = x[..., ::2], x[..., 1::2]
    pairs = (even * cos[..., ::2] - odd * sin[..., ::2], even * sin[..., ::2] + odd * cos[..., ::2])
    return torch.stack(pairs, dim=-1).flatten(-2)


@pytest.mark.parametrize(("function", "width", "is_neox"), [(_neox, 16, True), (_neox, 8, True), (_gptj, 16, False)])
def test_rope_style_and_width_are_told_by_which_inputs_pair(function: Any, width: int, is_neox: bool) -> None:  # noqa: FBT001  # a parameter of the test
    heads = torch.empty((1, 4, 7, 16), device="meta")
    tables = [torch.empty((1, 1, 7, width), device="meta") for _ in range(2)]
    found = probe_rope(function, (heads, *tables), {})
    assert (found["head_dim"], found["rotary_dim"], found["is_neox"]) == (16, width, is_neox)
