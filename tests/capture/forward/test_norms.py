from __future__ import annotations

from typing import Any

import torch

from fib_tools.capture.forward.call import Call, Unmapped
from fib_tools.capture.forward.observe import observe

ROWS = torch.randn(3, 8)


class AnyRMSNorm(torch.nn.Module):
    """One class for norms with and without a weight, and with an offset to it."""

    def __init__(self, *, weight: float | None = None, offset: float = 0.0, eps: float | None = 1e-6) -> None:
        super().__init__()
        self.weight = None if weight is None else torch.nn.Parameter(torch.full((8,), weight))
        self.offset = offset
        if eps is not None:
            self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)
        return y if self.weight is None else y * (self.weight + self.offset)


class ClassRMSNorm(AnyRMSNorm):
    """Its eps is an attribute of the class."""

    eps = 1e-5


class CentredNorm(AnyRMSNorm):
    """No weight, and no RMSNorm."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(-1, keepdim=True)


def watch_norms(*norms: torch.nn.Module) -> list[Call | Unmapped]:
    model = torch.nn.Sequential(*norms)
    with torch.no_grad(), observe(model) as watch:
        for norm in norms:
            norm(ROWS)
    return [tally.call for tally in watch.tallies]


def read_kernels(*norms: torch.nn.Module) -> list[str]:
    return [call.kernel for call in watch_norms(*norms)]


def test_norms_of_one_class_are_told_apart() -> None:
    norms = (AnyRMSNorm(weight=0.5), AnyRMSNorm(), AnyRMSNorm(weight=0.5, offset=1.0))
    wanted = ["rmsnorm", "rmsnorm_noweight", "gemma_rmsnorm"]
    assert read_kernels(*norms) == wanted
    assert read_kernels(*reversed(norms)) == wanted[::-1]


def test_a_norm_without_a_weight_has_the_sizes_of_its_rows() -> None:
    (call,) = watch_norms(AnyRMSNorm())
    parameters: dict[str, Any] = {"hidden_size": 8, "eps": 1e-6, "dtype": "float32"}
    assert call == Call(kernel="rmsnorm_noweight", parameters=parameters, axes={"batch_size": 3})
    (missed,) = watch_norms(CentredNorm())
    assert isinstance(missed, Unmapped)
    assert missed.reason == "it has no weight, and is not x / rms"


def test_a_norm_whose_eps_is_not_found_is_missed() -> None:
    (missed,) = watch_norms(AnyRMSNorm(weight=0.5, eps=None))
    assert isinstance(missed, Unmapped)
    assert (missed.kernel, missed.reason[:11]) == ("rmsnorm", "its eps is ")
    (call,) = watch_norms(ClassRMSNorm(weight=0.5, eps=None))
    assert isinstance(call, Call)
    assert call.parameters["eps"] == 1e-5
