"""mhc: manifold-constrained hyper-connections, several residual streams that are mixed before and after each sublayer.

Xie et al., mHC: Manifold-Constrained Hyper-Connections (2025), as DeepSeek-V4 has it. Projected streams give three
weights: of the sum that enters the sublayer, of its output in each stream, and of the streams in each other; the last
is made doubly stochastic by Sinkhorn's iteration, which starts with a softmax over rows and ends with columns.
FlashInfer's `mhc_pre_big_fuse.cu` computes the same steps, for four streams.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from fib_tools.model.definition import AxisConst, AxisVar, Definition
from fib_tools.model.naming import format_name
from fib_tools.op_types.base import (
    KernelType,
    MetaTensor,
    OpType,
    Parameters,
    TemplateCall,
    const,
    source,
    tensor,
    var,
)
from fib_tools.op_types.ground_truth import GroundTruth, Wrapper, no_kernel
from fib_tools.op_types.input_request import InputRequest
from fib_tools.op_types.rules import positive, random
from fib_tools.op_types.work_request import Work, WorkRequest

if TYPE_CHECKING:
    import torch

__all__ = ["OP_TYPE", "MhcHeadParameters", "MhcPostParameters", "MhcPreParameters", "MhcPrenormGemmParameters"]

_FLASHINFER_STREAMS = 4
_ROWS = 4


class MhcPrenormGemmParameters(Parameters):
    """The projection of all streams of a token onto their weights."""

    n: int = Field(gt=0)
    k: int = Field(gt=0)
    """Streams times hidden_size."""
    dtype: str = "bfloat16"


class MhcPostParameters(Parameters):
    """The streams that a sublayer's output is added to."""

    hc: int = Field(default=_FLASHINFER_STREAMS, gt=0)
    """Streams of the residual."""
    hidden_size: int = Field(gt=0)
    stream_dtype: str = "bfloat16"
    """Not `dtype`, which is read off a dump's first tensor: weights are float32 whatever the streams are."""


class MhcHeadParameters(MhcPostParameters):
    """The streams that become one at the end, and the constants of their weights."""

    silent: ClassVar[Mapping[str, Any]] = {"eps": 1e-6, "hc_eps": 1e-6}

    eps: float = Field(default=1e-6, gt=0)
    """Of the mean square that the projected streams are divided by."""
    hc_eps: float = Field(default=1e-6, gt=0)
    """Added to the weights, and in `mhc_pre_big_fuse` to the sums of Sinkhorn's iteration."""


class MhcPreParameters(MhcHeadParameters):
    """The streams that enter a sublayer, and the constants of their weights."""

    silent: ClassVar[Mapping[str, Any]] = {"eps": 1e-6, "hc_eps": 1e-6, "sinkhorn_iters": 20, "post_mult": 2.0}

    sinkhorn_iters: int = Field(default=20, gt=0)
    post_mult: float = Field(default=2.0, gt=0)
    """What the weights of the sublayer's output are multiplied by."""


def _axes(parameters: MhcPostParameters) -> dict[str, AxisConst | AxisVar]:
    return {
        "num_tokens": var("Tokens."),
        "hc": const(parameters.hc, "Streams of the residual."),
        "hidden_size": const(parameters.hidden_size, "Features of a stream."),
    }


_STREAMS = "num_tokens hc hidden_size"

_PRENORM_GEMM = """
    @torch.no_grad()
    def run(x, fn):
        rows = x.to(torch.float32)
        return rows @ fn.T, rows.square().sum(dim=-1)
"""


def _define_prenorm_gemm(parameters: MhcPrenormGemmParameters) -> Definition:
    return Definition(
        name=format_name("mhc_prenorm_gemm", ("n", parameters.n), ("k", parameters.k)),
        description="The streams of each token projected in float32, with the sum of their squares, by which the norm "
        "that comes before the projection is applied after it.",
        op_type="mhc",
        axes={
            "num_tokens": var("Tokens."),
            "k": const(parameters.k, "Features of all streams of a token."),
            "n": const(parameters.n, "Weights of a token."),
        },
        inputs={
            "x": tensor(parameters.dtype, "num_tokens k", "The streams of each token, one after the other."),
            "fn": tensor("float32", "n k", "The learned projection."),
        },
        outputs={
            "dot_mix": tensor("float32", "num_tokens n", "x @ fn.T."),
            "sqrsum": tensor("float32", "num_tokens", "The sum of squares of each row of x."),
        },
        reference=source(_PRENORM_GEMM),
    )


_PRE = """
    @torch.no_grad()
    def run(dot_mix, sqrsum, residual, mhc_scale, mhc_base):
        tokens, hc, hidden_size = residual.shape
        mix = dot_mix * torch.rsqrt(sqrsum / (hc * hidden_size) + EPS)[:, None]
        scale = mhc_scale.repeat_interleave(torch.tensor([hc, hc, hc * hc], device=mhc_scale.device))
        pre, post, comb = (mix * scale + mhc_base).split([hc, hc, hc * hc], dim=-1)
        pre = torch.sigmoid(pre) + HC_EPS
        post = torch.sigmoid(post) * POST_MULT
        comb = torch.softmax(comb.reshape(tokens, hc, hc), dim=-1) + HC_EPS
        comb = comb / (comb.sum(dim=-2, keepdim=True) + HC_EPS)
        for _ in range(SINKHORN_ITERS - 1):
            comb = comb / (comb.sum(dim=-1, keepdim=True) + HC_EPS)
            comb = comb / (comb.sum(dim=-2, keepdim=True) + HC_EPS)
        layer_input = (pre[..., None] * residual.to(torch.float32)).sum(dim=1)
        return post[..., None], comb, layer_input.to(residual.dtype)
"""


def _define_pre(parameters: MhcPreParameters) -> Definition:
    hc = parameters.hc
    width = hc * (2 + hc)
    return Definition(
        name=format_name("mhc_pre_big_fuse", ("hc", hc), ("h", parameters.hidden_size), ("mix", width)),
        description="The weights of a sublayer from the projected streams, and the weighted sum of the streams that "
        f"enters it: sigmoids and a doubly stochastic matrix after {parameters.sinkhorn_iters} steps of Sinkhorn's "
        f"iteration; norm eps = {parameters.eps}, eps = {parameters.hc_eps}, output weights up to "
        f"{parameters.post_mult}.",
        op_type="mhc",
        axes={
            **_axes(parameters),
            "mhc_mix": const(width, "Weights of a token: of the sum, of the output, of the streams."),
            "scale_size": const(3, "One scale for each of the three."),
            "one": const(1, "A weight for all features."),
        },
        constraints=["mhc_mix == hc * (2 + hc)"],
        inputs={
            "dot_mix": tensor("float32", "num_tokens mhc_mix", "The streams, projected without their norm."),
            "sqrsum": tensor("float32", "num_tokens", "The sum of squares of all streams of a token."),
            "residual": tensor(parameters.stream_dtype, _STREAMS, "The streams."),
            "mhc_scale": tensor("float32", "scale_size", "What each kind of weight is multiplied by."),
            "mhc_base": tensor("float32", "mhc_mix", "Added to the weights before sigmoid and softmax."),
        },
        outputs={
            "post_mix": tensor("float32", "num_tokens hc one", "The weight of the sublayer's output in each stream."),
            "comb_mix": tensor(
                "float32", "num_tokens hc hc", "The weight of an old stream (row) in a new one (column)."
            ),
            "layer_input": tensor(parameters.stream_dtype, "num_tokens hidden_size", "What enters the sublayer."),
        },
        reference=source(
            _PRE,
            EPS=parameters.eps,
            HC_EPS=parameters.hc_eps,
            SINKHORN_ITERS=parameters.sinkhorn_iters,
            POST_MULT=parameters.post_mult,
        ),
    )


_POST = """
    @torch.no_grad()
    def run(x, residual, post_layer_mix, comb_res_mix):
        mixed = torch.einsum("ton,toh->tnh", comb_res_mix, residual.to(torch.float32))
        return (mixed + post_layer_mix[..., None] * x.to(torch.float32)[:, None]).to(residual.dtype)
"""


def _define_post(parameters: MhcPostParameters) -> Definition:
    return Definition(
        name=format_name("mhc_post", ("hc", parameters.hc), ("h", parameters.hidden_size)),
        description="The streams after a sublayer: the old ones mixed, and its output added to each by weight.",
        op_type="mhc",
        axes=_axes(parameters),
        inputs={
            "x": tensor(parameters.stream_dtype, "num_tokens hidden_size", "The output of the sublayer."),
            "residual": tensor(parameters.stream_dtype, _STREAMS, "The streams before it."),
            "post_layer_mix": tensor("float32", "num_tokens hc", "The weight of the output in each stream."),
            "comb_res_mix": tensor(
                "float32", "num_tokens hc hc", "The weight of an old stream (row) in a new one (column)."
            ),
        },
        outputs={"out": tensor(parameters.stream_dtype, _STREAMS, "The streams from here on.")},
        reference=source(_POST),
    )


_HEAD = """
    @torch.no_grad()
    def run(residual, hc_fn, hc_scale, hc_base):
        streams = residual.to(torch.float32)
        rows = streams.flatten(1)
        mix = (rows @ hc_fn.T) * torch.rsqrt(rows.square().mean(dim=-1, keepdim=True) + EPS)
        pre = torch.sigmoid(mix * hc_scale + hc_base) + HC_EPS
        return (pre[..., None] * streams).sum(dim=1).to(residual.dtype)
"""


def _define_head(parameters: MhcHeadParameters) -> Definition:
    return Definition(
        name=format_name("mhc_head", ("hc", parameters.hc), ("h", parameters.hidden_size)),
        description="The streams of the last layer summed by weights of their own, before the final norm; "
        f"norm eps = {parameters.eps}, eps = {parameters.hc_eps}.",
        op_type="mhc",
        axes={
            **_axes(parameters),
            "hc_hidden_size": const(parameters.hc * parameters.hidden_size, "Features of all streams of a token."),
            "one": const(1, "One scale for all weights."),
        },
        constraints=["hc_hidden_size == hc * hidden_size"],
        inputs={
            "residual": tensor(parameters.stream_dtype, _STREAMS, "The streams."),
            "hc_fn": tensor("float32", "hc hc_hidden_size", "The learned projection of all streams."),
            "hc_scale": tensor("float32", "one", "What the projections are multiplied by."),
            "hc_base": tensor("float32", "hc", "Added to them before the sigmoid."),
        },
        outputs={"out": tensor(parameters.stream_dtype, "num_tokens hidden_size", "The hidden state.")},
        reference=source(_HEAD, EPS=parameters.eps, HC_EPS=parameters.hc_eps),
    )


_POST_API = "flashinfer.mhc.mhc_post"
_PRE_API = "flashinfer.mhc.mhc_pre_big_fuse"


def _is_covered(parameters: MhcPostParameters) -> bool:
    """FlashInfer's kernels are written for four streams of bfloat16."""
    return parameters.hc == _FLASHINFER_STREAMS and parameters.stream_dtype == "bfloat16"


def _post_template(parameters: MhcPostParameters) -> TemplateCall | None:
    if not _is_covered(parameters):
        return None
    hc, hidden_size = parameters.hc, parameters.hidden_size
    arguments = {
        "x": MetaTensor(shape=(_ROWS, hidden_size)),
        "residual": MetaTensor(shape=(_ROWS, hc, hidden_size)),
        "post_layer_mix": MetaTensor(shape=(_ROWS, hc), dtype="float32"),
        "comb_res_mix": MetaTensor(shape=(_ROWS, hc, hc), dtype="float32"),
    }
    return TemplateCall(fi_api=_POST_API, arguments=arguments)


def _pre_template(parameters: MhcPreParameters) -> TemplateCall | None:
    if not _is_covered(parameters):
        return None
    hc, hidden_size = parameters.hc, parameters.hidden_size
    width = hc * (2 + hc)
    arguments = {
        "dot_mix": MetaTensor(shape=(_ROWS, width), dtype="float32"),
        "sqrsum": MetaTensor(shape=(_ROWS,), dtype="float32"),
        "residual": MetaTensor(shape=(_ROWS, hc, hidden_size)),
        "mhc_scale": MetaTensor(shape=(3,), dtype="float32"),
        "mhc_base": MetaTensor(shape=(width,), dtype="float32"),
        "k": hc * hidden_size,
        "rms_eps": parameters.eps,
        "mhc_pre_eps": parameters.hc_eps,
        "mhc_sinkhorn_eps": parameters.hc_eps,
        "mhc_post_mult_value": parameters.post_mult,
        "sinkhorn_repeat": parameters.sinkhorn_iters,
    }
    return TemplateCall(fi_api=_PRE_API, arguments=arguments)


_PRE_KERNEL = """
    @torch.no_grad()
    def run(dot_mix, sqrsum, residual, mhc_scale, mhc_base):
        return flashinfer.mhc.mhc_pre_big_fuse(
            dot_mix, sqrsum, residual, mhc_scale, mhc_base, residual.shape[1] * residual.shape[2], rms_eps=EPS,
            mhc_pre_eps=HC_EPS, mhc_sinkhorn_eps=HC_EPS, mhc_post_mult_value=POST_MULT, sinkhorn_repeat=SINKHORN_ITERS,
        )
"""

_POST_KERNEL = """
    @torch.no_grad()
    def run(x, residual, post_layer_mix, comb_res_mix):
        return flashinfer.mhc.mhc_post(x, residual, post_layer_mix, comb_res_mix)
"""
_VECTOR = 8
"""Values that FlashInfer's kernels load at once."""


def _pre_ground_truth(parameters: MhcPreParameters) -> GroundTruth:
    constants = {
        "EPS": parameters.eps,
        "HC_EPS": parameters.hc_eps,
        "POST_MULT": parameters.post_mult,
        "SINKHORN_ITERS": parameters.sinkhorn_iters,
    }
    return _flashinfer(parameters, _PRE_API, _PRE_KERNEL, constants)


def _post_ground_truth(parameters: MhcPostParameters) -> GroundTruth:
    return _flashinfer(parameters, _POST_API, _POST_KERNEL, {})


def _flashinfer(parameters: MhcPostParameters, api: str, body: str, constants: Mapping[str, Any]) -> GroundTruth:
    if not _is_covered(parameters) or parameters.hidden_size % _VECTOR:
        return no_kernel(f"FlashInfer's kernel is for four streams of bfloat16, of multiples of {_VECTOR} features")
    wrapper = Wrapper(kind="flashinfer", api=api, imports=("import flashinfer",), constants=constants, body=body)
    return GroundTruth(wrappers=(wrapper,))


def _square_sums(request: InputRequest) -> torch.Tensor:
    """Make sums as normal streams have, about one for each of their features."""
    features = request.axes.get("hc", 1) * request.axes.get("hidden_size", 1)
    made: torch.Tensor = positive(0.5 * features, 1.5 * features)(request)
    return made


def _projection(request: InputRequest) -> torch.Tensor:
    """Make weights whose products with normal rows are about one."""
    return request.normal(request.shape[-1] ** -0.5)


_SGLANG = "sglang.kernels.ops.layernorm"


def _work(request: WorkRequest) -> Work | None:
    """Count all tensors, and the projection of the streams where there is one."""
    streams, projection = ("x", "fn") if request.has("fn") else ("residual", "hc_fn")
    if not request.has(streams, projection):
        return None
    flops = 2 * math.prod(request.shape(streams)) * request.shape(projection)[0]
    return Work(read=request.read(*request.definition.inputs), written=request.written(), flops=flops, unit="tf32")


OP_TYPE = OpType(
    name="mhc",
    kernels=(
        KernelType(
            id="mhc_prenorm_gemm",
            op_type="mhc",
            summary="projection of all streams of a token, with the sum of their squares",
            parameters=MhcPrenormGemmParameters,
            define=_define_prenorm_gemm,
            sglang_symbols=("deep_gemm.tf32_hc_prenorm_gemm", f"{_SGLANG}.mhc.mhc_pre_gemm_sqrsum_tilelang"),
        ),
        KernelType(
            id="mhc_pre_big_fuse",
            op_type="mhc",
            summary="weights of the streams around a sublayer, and the sum of streams that enters it",
            parameters=MhcPreParameters,
            define=_define_pre,
            fi_api=_PRE_API,
            fi_covers=_is_covered,
            template=_pre_template,
            sglang_symbols=(_PRE_API, f"{_SGLANG}.mhc.mhc_pre_big_fuse_tilelang", f"{_SGLANG}.mhc.hc_split_sinkhorn"),
            ground_truth=_pre_ground_truth,
        ),
        KernelType(
            id="mhc_post",
            op_type="mhc",
            summary="streams mixed with each other and with the output of a sublayer",
            parameters=MhcPostParameters,
            define=_define_post,
            fi_api=_POST_API,
            fi_covers=_is_covered,
            template=_post_template,
            sglang_symbols=(_POST_API, f"{_SGLANG}.mhc.mhc_post"),
            ground_truth=_post_ground_truth,
        ),
        KernelType(
            id="mhc_head",
            op_type="mhc",
            summary="streams of the last layer summed into the hidden state",
            parameters=MhcHeadParameters,
            define=_define_head,
            sglang_symbols=(f"{_SGLANG}.mhc_head.fused_hc_head",),
        ),
    ),
    input_rules={
        "sqrsum": _square_sums,
        "fn": _projection,
        "hc_fn": _projection,
        "mhc_scale": positive(0.5, 1.5),
        "hc_scale": positive(0.5, 1.5),
        "mhc_base": random(0.5),
        "hc_base": random(0.5),
        "post_layer_mix": positive(0.5, 1.5),
        "comb_res_mix": positive(0.1, 0.4),
    },
    work=_work,
)
