"""What the attention op_types share: the softmax core of their references, its variants, and their input rules.

The core follows Dao et al., FlashAttention (2022), in plain form: logits, log-sum-exp, weighted sum of values.
Masks, soft cap and sinks mean what FlashInfer's `DefaultAttention` and `AttentionSink` variants compute.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fib_tools.model.definition import AxisVar, TensorSpec
from fib_tools.op_types.base import InputRule, scalar, source, tensor, var
from fib_tools.op_types.input_request import InputRequest
from fib_tools.op_types.rules import constant, positive

if TYPE_CHECKING:
    import torch

__all__ = [
    "FP8_SUFFIXES",
    "INPUT_CODE",
    "INPUT_RULES",
    "INTEGER",
    "MLA_PLAIN_SCALE",
    "WITHOUT_OUTLIERS",
    "Core",
    "find_declared_scale",
    "indptr_axis",
    "last_page_lengths",
    "lse_output",
    "paged_inputs",
    "paged_keys",
    "ragged_keys",
    "settle_scale",
    "sm_scale_input",
    "softmax_scale",
    "write_reference",
]

INTEGER = "int32"
"""FlashInfer's index type for offsets and page ids."""

FP8_SUFFIXES: Mapping[str, str] = {"float8_e4m3fn": "kvfp8", "float8_e5m2": "kvfp8e5m2"}
"""How a name says that the cache holds fp8."""

MLA_PLAIN_SCALE = (128 + 64) ** -0.5
"""The softmax scale that the name of an MLA kernel means: DeepSeek's head of 128 plain and 64 rotary elements."""

_ROWS = 128
"""Queries that a reference takes at once, so that the logits of a long prefill stay within memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Core:
    """The variant of attention that a reference computes."""

    causal: bool = False
    window_left: int = -1
    chunk: int | None = None
    soft_cap: float = 0.0
    sinks: bool = False

    @property
    def is_masked(self) -> bool:
        """Tell whether some queries do not see all keys of their sequence."""
        return self.causal or self.window_left >= 0 or self.chunk is not None

    @property
    def arguments(self) -> str:
        """What a call of `attend` passes after q, k and v."""
        return ", ".join([*(["positions"] if self.is_masked else []), "sm_scale", *(["sinks"] if self.sinks else [])])

    @property
    def constants(self) -> dict[str, Any]:
        """The module constants that the reference needs."""
        window = {"WINDOW_LEFT": self.window_left} if self.window_left >= 0 else {}
        chunk = {"CHUNK": self.chunk} if self.chunk is not None else {}
        return {**window, **chunk, **({"SOFT_CAP": self.soft_cap} if self.soft_cap else {})}

    @property
    def sentences(self) -> str:
        """Say in the Definition's description what the variant is."""
        said = {
            "A query sees the keys up to its own position, the last query standing at the last key.": self.causal,
            f"It sees at most {self.window_left} keys before its position.": self.window_left >= 0,
            f"It sees only keys of its own chunk of {self.chunk} positions.": self.chunk is not None,
            f"Logits are {self.soft_cap} * tanh(logits / {self.soft_cap}).": self.soft_cap > 0,
            "Each head's sink is one more logit, with no value; the lse counts it.": self.sinks,
            "A query that sees nothing has output 0 and lse -inf.": not self.sinks,
        }
        return " ".join(sentence for sentence, holds in said.items() if holds)

    def source(self) -> str:
        """Write `attend`, the softmax core, with the lines this variant needs and no others."""
        said = (
            f"Attend from q[rows, heads, d]{', at `positions`,' if self.is_masked else ''} to the keys of a sequence."
        )
        lines = [
            f"def attend(q, k, v, {self.arguments}):",
            f'    """{said}"""',
            "    rows, heads, dim = q.shape",
            "    kv_heads = k.shape[1]",
            "    grouped = q.to(torch.float32).reshape(rows, kv_heads, heads // kv_heads, dim)",
            '    logits = torch.einsum("rhgd,khd->rhgk", grouped, k) * sm_scale',
            *(["    logits = SOFT_CAP * torch.tanh(logits / SOFT_CAP)"] if self.soft_cap else []),
            *(self._mask_lines() if self.is_masked else []),
            *self._softmax_lines(),
            '    output = torch.einsum("rhgk,khd->rhgd", weights, v)',
            "    return output.reshape(rows, heads, v.shape[-1]), lse.reshape(rows, heads) / math.log(2)",
        ]
        return "\n".join(lines)

    def _mask_lines(self) -> list[str]:
        terms = [
            *(["key <= row"] if self.causal else []),
            *(["key >= row - WINDOW_LEFT"] if self.window_left >= 0 else []),
            *(["key // CHUNK == row // CHUNK"] if self.chunk is not None else []),
        ]
        visible = terms[0] if len(terms) == 1 else " & ".join(f"({term})" for term in terms)
        return [
            "    key = torch.arange(k.shape[0], device=q.device)",
            "    row = positions[:, None]",
            f"    visible = {visible}",
            "    logits = logits.masked_fill(~visible[:, None, None, :], -torch.inf)",
        ]

    def _softmax_lines(self) -> list[str]:
        if self.sinks:
            return [
                "    sink = sinks.to(torch.float32).reshape(1, kv_heads, -1, 1).expand(rows, -1, -1, 1)",
                "    lse = torch.logsumexp(torch.cat([logits, sink], dim=-1), dim=-1)",
                "    weights = torch.exp(logits - lse[..., None])",
            ]
        return [
            "    lse = torch.logsumexp(logits, dim=-1)",
            "    weights = torch.exp(logits - torch.where(torch.isneginf(lse), 0.0, lse)[..., None])",
        ]


def write_reference(
    core: Core, *, inputs: Iterable[str], keys: str, decode: bool, queries: tuple[str, ...] = ("q",), width: str
) -> str:
    """Write a whole reference.

    `keys` are the lines that set `keys`, `values` and `length` for sequence `b`; `width` is the expression of the output's.
    """
    query = ", ".join(f"{name}[rows]" for name in queries)
    query = query if len(queries) == 1 else f"torch.cat([{query}], dim=-1)"
    call = f"output[rows], lse[rows] = attend({query}, keys, values, {core.arguments})"
    first = queries[0]
    body = "\n".join([keys, *(_decode_lines if decode else _prefill_lines)(core, call, f"{first}.device")])
    lines = [
        "@torch.no_grad()",
        f"def run({', '.join(inputs)}):",
        f"    output = torch.zeros(*{first}.shape[:2], {width}, dtype={first}.dtype, device={first}.device)",
        f"    lse = torch.full({first}.shape[:2], -torch.inf, dtype=torch.float32, device={first}.device)",
        f"    for b in range({f'{first}.shape[0]' if decode else 'qo_indptr.shape[0] - 1'}):",
        textwrap.indent(body, "        "),
        "    return output, lse",
    ]
    return source(f"{core.source()}\n\n\n" + "\n".join(lines), **core.constants)


def _decode_lines(core: Core, call: str, device: str) -> list[str]:
    position = f"positions = torch.arange(length - 1, length, device={device})"
    return ["rows = slice(b, b + 1)", *([position] if core.is_masked else []), call]


def _prefill_lines(core: Core, call: str, device: str) -> list[str]:
    position = f"    positions = torch.arange(rows.start, rows.stop, device={device}) - last + length"
    return [
        "first, last = int(qo_indptr[b]), int(qo_indptr[b + 1])",
        f"for start in range(first, last, {_ROWS}):",
        f"    rows = slice(start, min(start + {_ROWS}, last))",
        *([position] if core.is_masked else []),
        f"    {call}",
    ]


def paged_keys(page_size: int, cache: str) -> str:
    """Write the lines that find the pages of sequence `b` and its length in tokens."""
    lines = ["pages = kv_indices[int(kv_indptr[b]) : int(kv_indptr[b + 1])].to(torch.int64)"]
    if page_size == 1:
        return "\n".join([*lines, "length = pages.numel()"])
    full = f"(pages.numel() - 1) * {cache}.shape[1] + int(kv_last_page_len[b])"
    return "\n".join([*lines, f"length = {full} if pages.numel() else 0"])


def ragged_keys(core: Core) -> str:
    """Write the lines that find the keys of sequence `b`, and where masks need it its length."""
    held = "held = slice(int(kv_indptr[b]), int(kv_indptr[b + 1]))"
    return f"{held}\nlength = held.stop - held.start" if core.is_masked else held


def paged_inputs(page_size: int) -> dict[str, TensorSpec]:
    """Declare the page table; pages of one token need no lengths."""
    inputs = {
        "kv_indptr": tensor(INTEGER, "len_indptr", "Where the pages of each sequence begin in kv_indices."),
        "kv_indices": tensor(INTEGER, "num_kv_indices", "The pages of all sequences, one after the other."),
    }
    if page_size > 1:
        said = "Tokens in the last page of each sequence, 1 to page_size."
        inputs["kv_last_page_len"] = tensor(INTEGER, "batch_size", said)
    return inputs


def indptr_axis() -> AxisVar:
    """Declare the length of an indptr."""
    return var("Length of the indptr tensors: sequences plus one.")


def sm_scale_input(value: float) -> TensorSpec:
    """Declare the softmax scale; the value that the model uses stands in the description."""
    return scalar("float32", f"Factor on the logits before softmax; the model's is sm_scale = {value!r}.")


def lse_output(rows: str) -> TensorSpec:
    """Declare the log-sum-exp output over axes such as `batch_size num_qo_heads`."""
    return tensor("float32", rows, "Base-2 log-sum-exp of the scaled logits.")


def settle_scale(value: float | None, plain: float) -> float:
    """Return `plain` for None and for what differs from it by rounding only, so that equal kernels compare equal."""
    return plain if value is None or math.isclose(value, plain, rel_tol=1e-6) else value


_DECLARED = re.compile(r"\bsm_scale = ([0-9][0-9.eE+-]*[0-9])")


def find_declared_scale(description: str | None) -> float | None:
    """Find the scale that the description of an input states of its model."""
    found = _DECLARED.search(description or "")
    return float(found[1]) if found else None


def softmax_scale(*axes: str, extra: int = 0) -> InputRule:
    """Make the scale that the description declares, else 1 / sqrt of the first of `axes` there is, plus `extra`."""

    def rule(request: InputRequest) -> Any:
        declared = find_declared_scale(request.spec.description)
        if declared is not None:
            return constant(declared)(request)
        dim = next((request.axes[name] for name in axes if name in request.axes), 1)
        return constant((dim + extra) ** -0.5)(request)

    return rule


def last_page_lengths(request: InputRequest) -> torch.Tensor:
    """Make lengths of last pages, long enough for each sequence to hold its queries; 0 where there is no page."""
    import torch

    page_size = request.axes.get("page_size", 1)
    count = request.shape[0]
    pages = _lengths(request, "kv_indptr") or [1] * count
    queries = _lengths(request, "qo_indptr") or [1] * count
    least = [max(1, min(page_size, rows - (held - 1) * page_size)) for rows, held in zip(queries, pages, strict=True)]
    drawn = request.integers(0, 1 << 30).tolist()
    lengths = [
        low + extra % (page_size + 1 - low) if held else 0 for low, extra, held in zip(least, drawn, pages, strict=True)
    ]
    return torch.tensor(lengths, dtype=request.dtype, device=request.device)


def _lengths(request: InputRequest, name: str) -> list[int] | None:
    offsets = request.made.get(name)
    if offsets is None or offsets.numel() != request.shape[0] + 1:
        return None
    lengths: list[int] = offsets.diff().tolist()
    return lengths


INPUT_RULES: Mapping[str, InputRule] = {
    "kv_last_page_len": last_page_lengths,
    "k_scale": positive(0.25, 0.75),
    "v_scale": positive(0.25, 0.75),
    "ckv_scale": positive(0.25, 0.75),
    "kpe_scale": positive(0.25, 0.75),
}

WITHOUT_OUTLIERS = frozenset({"q", "q_nope", "q_pe", "v", "v_cache", "ckv_cache", "window_cache", "compressed_cache"})
"""Outliers of queries would meet those of keys: scores of thousands, of which float32 holds 2^-12, and exponentials of that.
Those of values cancel between two keys, and what is left has an error of their size. Keys have them in large models too:
scores of some tens. Latents are keys and values, and come from an RMSNorm, which leaves none of 2^7."""

INPUT_CODE: Mapping[str, str] = {
    "kv_last_page_len": "draw.last_page_lengths(kv_indptr, {page_size}{queries})",
    "kv_indices": "draw.distinct({num_kv_indices}, {num_pages})",
    **dict.fromkeys(("k_scale", "v_scale", "ckv_scale", "kpe_scale"), "0.5"),
}
"""How reference tests make them."""
