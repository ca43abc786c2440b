"""quantize: activations to e4m3 or e2m1 with their scales.

How scales round is taken from FlashInfer's CUDA sources (`quantization_utils.cuh`), since formats leave it open: the
e8m0 scale of MXFP8 is rounded up, so that nothing saturates; the e4m3 scale of NVFP4 to the nearest. Values round to
the nearest, ties to even. Scales lie row by row; kernels may store them in tiles.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

from pydantic import Field

from fib_tools.model.definition import AxisConst, Definition, TensorSpec
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
from fib_tools.op_types.ground_truth import BLACKWELL, GroundTruth, Wrapper, no_kernel
from fib_tools.op_types.low_bit import count_blocks, spread
from fib_tools.op_types.tolerance import codes

__all__ = ["OP_TYPE", "QuantizeParameters"]

_ROWS = 4


class QuantizeParameters(Parameters):
    """The length of a row."""

    hidden_size: int = Field(gt=0, multiple_of=2)
    dtype: str = "bfloat16"


_FP8_GROUP = """
    @torch.no_grad()
    def run(input):
        features = input.shape[-1]
        blocks = F.pad(input.to(torch.float32), (0, -features % 128)).unflatten(-1, (-1, 128))
        scale = blocks.abs().amax(dim=-1).clamp(min=1e-10) / 448.0
        values = (blocks / scale[..., None]).clamp(-448.0, 448.0).flatten(-2)[..., :features]
        return values.to(torch.float8_e4m3fn), scale
"""

_FP8_TENSOR = """
    @torch.no_grad()
    def run(input):
        x = input.to(torch.float32)
        scale = x.abs().amax().clamp(min=1e-10) / 448.0
        return (x / scale).clamp(-448.0, 448.0).to(torch.float8_e4m3fn), scale
"""

_NVFP4 = """
    def encode_e2m1(x):
        # A code counts the values below; the bounds lie half way, and a tie goes to the code that is even.
        size = x.abs()
        code = (size > 0.25).to(torch.uint8) + (size >= 0.75) + (size > 1.25) + (size >= 1.75)
        code = code + (size > 2.5) + (size >= 3.5) + (size > 5.0)
        return (code + 8 * torch.signbit(x)).to(torch.uint8)


    @torch.no_grad()
    def run(input, global_scale):
        features = input.shape[-1]
        blocks = F.pad(input.to(torch.float32), (0, -features % 16)).unflatten(-1, (-1, 16))
        largest = blocks.abs().amax(dim=-1)
        scale = (largest / 6.0 * global_scale).clamp(max=448.0).to(torch.float8_e4m3fn)
        width = scale.to(torch.float32)
        factor = torch.where(width > 0, global_scale / width, 0.0)
        codes = encode_e2m1(blocks * factor[..., None]).flatten(-2)[..., :features]
        return (codes[..., 0::2] | codes[..., 1::2] << 4).view(torch.int8), scale
"""

_MXFP8 = """
    @torch.no_grad()
    def run(input):
        features = input.shape[-1]
        blocks = F.pad(input.to(torch.float32), (0, -features % 32)).unflatten(-1, (-1, 32))
        mantissa, exponent = torch.frexp(blocks.abs().amax(dim=-1) / 448.0)
        code = torch.where(mantissa > 0.5, exponent, exponent - 1) + 127
        code = torch.where(mantissa > 0, code, 0).clamp(0, 254)
        values = torch.ldexp(blocks, 127 - code[..., None]).clamp(-448.0, 448.0).flatten(-2)[..., :features]
        return values.to(torch.float8_e4m3fn), code.to(torch.uint8).view(torch.int8)
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Form:
    """One of the quantisers."""

    id: str
    formula: str
    body: str
    block: int | None = None
    """Values that share a scale; None: all."""
    values: TensorSpec
    scale: TensorSpec
    extra: Mapping[str, TensorSpec] = field(default_factory=dict)
    fi_api: str | None = None
    arguments: Mapping[str, str] = field(default_factory=dict)
    """By parameter of the API: the input of ours that it is."""
    sglang_symbols: tuple[str, ...] = ()

    def axes(self, hidden_size: int) -> dict[str, AxisConst]:
        axes = {"K": const(hidden_size, "Values of a row.")}
        if self.block:
            axes["num_k_blocks"] = const(count_blocks(hidden_size, self.block), f"Blocks of {self.block} in a row.")
        if "K_packed" in (self.values.shape or ()):
            axes["K_packed"] = const(hidden_size // 2, "Bytes of a row.")
        return axes

    @property
    def constraints(self) -> list[str]:
        blocks = [f"num_k_blocks == (K + {self.block - 1}) // {self.block}"] if self.block else []
        return [*blocks, *(["K_packed == K // 2"] if "K_packed" in (self.values.shape or ()) else [])]


def _define(form: _Form, parameters: QuantizeParameters) -> Definition:
    return Definition(
        name=format_name(form.id, ("k", parameters.hidden_size)),
        description=f"Quantisation: {form.formula}.",
        op_type="quantize",
        axes={"M": var("Rows: tokens."), **form.axes(parameters.hidden_size)},
        constraints=form.constraints,
        inputs={"input": tensor(parameters.dtype, "M K", "The activations."), **form.extra},
        outputs={"quantized": form.values, "scale": form.scale},
        reference=source(form.body),
    )


def _template(form: _Form, parameters: QuantizeParameters) -> TemplateCall:
    shapes = {
        "input": MetaTensor(shape=(_ROWS, parameters.hidden_size), dtype=parameters.dtype),
        "global_scale": MetaTensor(shape=(1,), dtype="float32"),
    }
    return TemplateCall(
        fi_api=form.fi_api or "",
        arguments={name: shapes[ours] for name, ours in form.arguments.items()},
    )


_GROUP_KERNEL = """
    @torch.no_grad()
    def run(input):
        return per_token_group_quant_fp8(input, 128)
"""

_TENSOR_KERNEL = """
    @torch.no_grad()
    def run(input):
        quantized = torch.empty_like(input, dtype=torch.float8_e4m3fn)
        scale = torch.zeros(1, dtype=torch.float32, device=input.device)
        per_tensor_quant_fp8(input, quantized, scale, is_static=False)
        return quantized, scale[0]
"""

_KERNELS: Mapping[str, str] = {"fp8_quantize_1x128": _GROUP_KERNEL, "fp8_quantize_tensor": _TENSOR_KERNEL}
"""How SGLang's quantisers are called."""

_NVFP4_KERNEL = """
    @torch.no_grad()
    def run(input, global_scale):
        values, scale = nvfp4_quantize(input, global_scale.reshape(1), sfLayout=SfLayout.layout_linear)
        return values.view(torch.int8), scale.reshape(len(input), -1).view(torch.float8_e4m3fn)
"""

_MXFP8_KERNEL = """
    @torch.no_grad()
    def run(input):
        values, scale = mxfp8_quantize(input, is_sf_swizzled_layout=False)
        return values, scale.reshape(len(input), -1).view(torch.int8)
"""

_BLACKWELL_KERNELS: Mapping[str, tuple[str, str]] = {
    "nvfp4_quantize": ("from flashinfer import SfLayout, nvfp4_quantize", _NVFP4_KERNEL),
    "mxfp8_quantize": ("from flashinfer import mxfp8_quantize", _MXFP8_KERNEL),
}
"""How FlashInfer's quantisers are called, scales row by row."""


def _blackwell_ground_truth(form: _Form, parameters: QuantizeParameters) -> GroundTruth:
    reason = f"{form.fi_api} needs Blackwell (sm_100 and later)"
    if form.block and parameters.hidden_size % form.block:
        return no_kernel(f"{reason}, and rows of whole blocks, not of {parameters.hidden_size} values")
    line, body = _BLACKWELL_KERNELS[form.id]
    api = f"flashinfer.{form.id}"
    wrapper = Wrapper(kind="flashinfer", api=api, imports=(line,), body=body, capabilities=BLACKWELL)
    return GroundTruth(wrappers=(wrapper,), reason=reason)


def _ground_truth(form: _Form, parameters: QuantizeParameters) -> GroundTruth:
    if form.id in _BLACKWELL_KERNELS:
        return _blackwell_ground_truth(form, parameters)
    if form.block and parameters.hidden_size % form.block:
        return no_kernel(f"SGLang's kernel takes rows of whole blocks, not {parameters.hidden_size} values")
    api = form.sglang_symbols[0]
    module, _, name = api.rpartition(".")
    wrapper = Wrapper(kind="sglang", api=api, imports=(f"from {module} import {name}",), body=_KERNELS[form.id])
    return GroundTruth(wrappers=(wrapper,))


def _kernel(form: _Form) -> KernelType[QuantizeParameters]:
    return KernelType(
        id=form.id,
        op_type="quantize",
        summary=form.formula,
        parameters=QuantizeParameters,
        define=partial(_define, form),
        fi_api=form.fi_api,
        template=partial(_template, form) if form.fi_api else None,
        sglang_symbols=form.sglang_symbols,
        ground_truth=partial(_ground_truth, form),
        policy=codes,
    )


_E4M3 = tensor("float8_e4m3fn", "M K", "The quantised values.")

OP_TYPE = OpType(
    name="quantize",
    kernels=(
        _kernel(
            _Form(
                id="fp8_quantize_1x128",
                formula="e4m3 with a scale for 128 values, max(amax, 1e-10) / 448",
                body=_FP8_GROUP,
                block=128,
                values=_E4M3,
                scale=tensor("float32", "M num_k_blocks", "What 128 values of a row are to be multiplied by."),
                sglang_symbols=("sglang.kernels.ops.quantization.fp8_kernel.per_token_group_quant_fp8",),
            )
        ),
        _kernel(
            _Form(
                id="fp8_quantize_tensor",
                formula="e4m3 with one scale over all, max(amax, 1e-10) / 448",
                body=_FP8_TENSOR,
                values=_E4M3,
                scale=tensor("float32", "", "What the values are to be multiplied by."),
                sglang_symbols=("sglang.kernels.ops.quantization.per_tensor_quant_fp8.per_tensor_quant_fp8",),
            )
        ),
        _kernel(
            _Form(
                id="nvfp4_quantize",
                formula="e2m1, two to a byte, with an e4m3 scale for 16 values, amax / 6 * global_scale",
                body=_NVFP4,
                block=16,
                values=tensor("int8", "M K_packed", "The packed e2m1 codes, the first of two in the low half."),
                scale=tensor("float8_e4m3fn", "M num_k_blocks", "The scale of 16 values, times global_scale."),
                extra={"global_scale": tensor("float32", "", "What brings the scales into e4m3: 448 * 6 / amax.")},
                fi_api="flashinfer.quantization.fp4_quantization.nvfp4_quantize",
                arguments={"a": "input", "a_global_sf": "global_scale"},
                sglang_symbols=("flashinfer.fp4_quantize", "flashinfer.nvfp4_quantize"),
            )
        ),
        _kernel(
            _Form(
                id="mxfp8_quantize",
                formula="e4m3 with an e8m0 scale for 32 values, the power of two at or above amax / 448",
                body=_MXFP8,
                block=32,
                values=_E4M3,
                scale=tensor("int8", "M num_k_blocks", "The e8m0 bytes: 2^(byte - 127), read as unsigned."),
                fi_api="flashinfer.quantization.fp8_quantization.mxfp8_quantize",
                arguments={"input": "input"},
                sglang_symbols=("flashinfer.mxfp8_quantize",),
            )
        ),
    ),
    input_rules={"global_scale": spread(400.0, 600.0)},
    input_code={"global_scale": "draw.uniform({shape}, 400.0, 600.0)"},
    axis_sizes={"M": 6},
)
