"""How experts compute, as reference source: one routed expert at a time, in float32, rounded once at the end.

Only what a routed expert multiplies by is decoded, in blocks of 128 rows. Experts of other devices are skipped: their
part of the sum is added by the all-reduce. What a kernel rounds between the two products is not imitated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from textwrap import dedent

from fib_tools.op_types.base import source
from fib_tools.op_types.low_bit import DECODE_E2M1, DECODE_E4M3
from fib_tools.op_types.moe_parameters import MoeParameters
from fib_tools.op_types.moe_routing_sources import routing_constants, write_route

__all__ = [
    "BF16",
    "FP8_BLOCK",
    "FP8_TENSOR",
    "MXFP4",
    "NVFP4",
    "W4A16",
    "Arithmetic",
    "activation_sentence",
    "write_moe",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Arithmetic:
    """How one number format is decoded and multiplied."""

    functions: tuple[str, ...]
    """Source of what the others need, the last one `linear(x, weight[, scale])`."""
    hidden: str
    """The expression that gives float32 activations."""
    has_scales: bool
    """Whether weights have scales of their own."""
    output_scales: tuple[str, str, str] | None = None
    """Names of the scales of up, gate and down, where products are scaled after the sum."""


_ROWS_E4M3 = """
    def linear(x, weight):
        return torch.cat([x @ decode_e4m3(rows).T for rows in weight.split(128)], dim=-1)
"""

_BLOCKS_E4M3 = """
    def linear(x, weight, scale):
        features = x.shape[-1]
        parts = []
        for rows, row_scale in zip(weight.split(128), scale):
            parts.append((x * row_scale.repeat_interleave(128)[:features]) @ decode_e4m3(rows).T)
        return torch.cat(parts, dim=-1)
"""

_ROWS = """
    def linear(x, weight):
        return torch.cat([x @ rows.to(torch.float32).T for rows in weight.split(128)], dim=-1)
"""

_HALVES = """
    def linear(x, weight, scale):
        # The low half of a byte is an even feature, the high half the odd one after it.
        even, odd = x[:, 0::2], x[:, 1::2]
        parts = []
        for rows, row_scale in zip(weight.split(128), scale.split(128)):
            low, high = decode_halves(rows)
            factor = decode_scale(row_scale).repeat_interleave(GROUP_SIZE // 2, dim=-1)[:, : rows.shape[-1]]
            parts.append(even @ (low * factor).T + odd @ (high * factor).T)
        return torch.cat(parts, dim=-1)
"""

_HALVES_E2M1 = """
    def decode_halves(packed):
        codes = packed.view(torch.uint8).to(torch.int16)
        return decode_e2m1(codes & 15), decode_e2m1(codes >> 4)
"""

_HALVES_INT4 = """
    def decode_halves(packed):
        codes = packed.to(torch.int16)
        return (codes << 12 >> 12).to(torch.float32), (codes >> 4).to(torch.float32)
"""

_SCALE_PLAIN = """
    def decode_scale(scale):
        return scale.to(torch.float32)
"""

_SCALE_E8M0 = """
    def decode_scale(scale):
        return torch.exp2(scale.view(torch.uint8).to(torch.float32) - 127)
"""

_ROWS_NVFP4 = """
    def decode_rows(packed, scale):
        values = torch.stack(decode_halves(packed), dim=-1).flatten(1)
        return values * decode_scale(scale).repeat_interleave(GROUP_SIZE, dim=-1)[:, : values.shape[-1]]
"""

_PLAIN_HIDDEN = "hidden_states.to(torch.float32)"

BF16 = Arithmetic(functions=(_ROWS,), hidden=_PLAIN_HIDDEN, has_scales=False)
FP8_BLOCK = Arithmetic(
    functions=(DECODE_E4M3, _BLOCKS_E4M3),
    hidden="decode_e4m3(hidden_states) * hidden_states_scale.T.repeat_interleave(128, dim=1)[:, : hidden_states.shape[1]]",
    has_scales=True,
)
FP8_TENSOR = Arithmetic(
    functions=(DECODE_E4M3, _ROWS_E4M3),
    hidden="decode_e4m3(hidden_states)",
    has_scales=False,
    output_scales=("output1_scales_scalar", "output1_scales_gate_scalar", "output2_scales_scalar"),
)
NVFP4 = Arithmetic(
    functions=(DECODE_E2M1, _HALVES_E2M1, _SCALE_PLAIN, _ROWS_NVFP4, _HALVES),
    hidden="decode_rows(hidden_states, hidden_states_scale)",
    has_scales=True,
    output_scales=("output1_scale_scalar", "output1_scale_gate_scalar", "output2_scale_scalar"),
)
MXFP4 = Arithmetic(functions=(DECODE_E2M1, _HALVES_E2M1, _SCALE_E8M0, _HALVES), hidden=_PLAIN_HIDDEN, has_scales=True)
W4A16 = Arithmetic(functions=(_HALVES_INT4, _SCALE_PLAIN, _HALVES), hidden=_PLAIN_HIDDEN, has_scales=True)


_ACTIVATIONS: Mapping[str, str] = {
    "swiglu": "gate * torch.sigmoid(gate) * up",
    "swiglu_oai": "gate * torch.sigmoid(1.702 * gate) * (up + 1)",
    "gelu": "torch.nn.functional.gelu(gate) * up",
    "gelu_tanh": 'torch.nn.functional.gelu(gate, approximate="tanh") * up',
}

_RUN = """
@torch.no_grad()
def run(
{arguments}
):
    weights, experts = route({routed}, routed_scaling_factor)
    x = {hidden}
    first, count = int(local_expert_offset), gemm1_weights.shape[0]
    output = torch.zeros(x.shape[0], gemm2_weights.shape[1], dtype=torch.float32, device=x.device)
    for expert in experts.unique().tolist():
        local = expert - first
        if not 0 <= local < count:
            continue
        token, slot = torch.where(experts == expert)
        weight = weights[token, slot, None]
{products}
    return output.to(torch.bfloat16)
"""


def activation_sentence(parameters: MoeParameters) -> str:
    """Say what stands between the two products."""
    if not parameters.is_gated:
        return "Between the products: relu(x)^2."
    formula = _ACTIVATIONS[parameters.activation].replace("torch.nn.functional.", "").replace("torch.", "")
    limit = parameters.clamp_limit
    clamp = f", with gate clamped to at most {limit:g} and up to +-{limit:g}" if limit is not None else ""
    return f"Between the products: {formula}{clamp}. The first half of gemm1_weights' rows makes up, the second gate."


def _linear(arithmetic: Arithmetic, parameters: MoeParameters, number: int, x: str) -> str:
    name = f"gemm{number}"
    scale = f", {name}_weights_scale[local]" if arithmetic.has_scales else ""
    bias = f" + {name}_bias[local].to(torch.float32)" if parameters.expert_bias else ""
    return f"linear({x}, {name}_weights[local]{scale}){bias}"


def _activation_lines(arithmetic: Arithmetic, parameters: MoeParameters) -> list[str]:
    scales = arithmetic.output_scales
    if not parameters.is_gated:
        before, after = (f" * {scales[1]}[local]", f" * {scales[0]}[local]") if scales else ("", "")
        return [f"inner = torch.relu(inner{before}).square(){after}"]
    lines = ["up, gate = inner.chunk(2, dim=-1)"]
    if scales:
        lines.append(f"up, gate = up * {scales[0]}[local], gate * {scales[1]}[local]")
    limit = parameters.clamp_limit
    if limit is not None:
        lines.append(f"up, gate = up.clamp(-{limit}, {limit}), gate.clamp(max={limit})")
    return [*lines, f"inner = {_ACTIVATIONS[parameters.activation]}"]


def _product_lines(arithmetic: Arithmetic, parameters: MoeParameters) -> list[str]:
    """Write the body for one expert; Llama 4 weights the expert's input, all others its output."""
    weights_input = parameters.routing == "llama4"
    lines = [f"inner = {_linear(arithmetic, parameters, 1, 'x[token] * weight' if weights_input else 'x[token]')}"]
    lines += _activation_lines(arithmetic, parameters)
    lines.append(f"part = {_linear(arithmetic, parameters, 2, 'inner')}")
    if arithmetic.output_scales:
        lines.append(f"part = part * {arithmetic.output_scales[2]}[local]")
    lines.append(f"output.index_add_(0, token, {'part' if weights_input else 'part * weight'})")
    return lines


def _routed(parameters: MoeParameters) -> str:
    """Write what `route` takes before the scaling factor."""
    if parameters.is_given:
        return "topk_weights, topk_ids.to(torch.int64)"
    return f"routing_logits.to(torch.float32){', routing_bias.to(torch.float32)' if parameters.has_bias else ''}"


def write_moe(arithmetic: Arithmetic, parameters: MoeParameters, *, arguments: list[str], group_size: int) -> str:
    """Write the reference of a fused MoE that takes `arguments`."""
    run = _RUN.format(
        arguments="\n".join(f"    {name}," for name in arguments),
        routed=_routed(parameters),
        hidden=arithmetic.hidden,
        products="\n".join(f"        {line}" for line in _product_lines(arithmetic, parameters)),
    )
    functions = [dedent(text).strip() for text in arithmetic.functions]
    body = "\n\n\n".join([write_route(parameters), *functions, run.strip()])
    constants = routing_constants(parameters)
    if "GROUP_SIZE" in body:
        constants["GROUP_SIZE"] = group_size
    return source(body, **constants)
