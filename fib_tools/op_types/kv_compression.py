"""kv_compression: windows of tokens pooled into one entry of a long-range cache, as DeepSeek-V4 does.

DeepSeek-AI, DeepSeek-V4 (2026): an entry is sum_j softmax_j(score_j + bias_j) * kv_j over the tokens of its window,
each feature with weights of its own. Where windows overlap, a token has two series of kv and score: the first counts
in the entry of the next window, the second in that of its own, so that an entry pools twice as many tokens.
The norm and the rotary embedding of an entry follow as kernels of their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from fib_tools.model.definition import Definition
from fib_tools.model.naming import format_name
from fib_tools.op_types.base import KernelType, OpType, Parameters, const, source, tensor, var
from fib_tools.op_types.input_request import InputRequest
from fib_tools.op_types.rules import random
from fib_tools.op_types.work_request import Work, WorkRequest

if TYPE_CHECKING:
    import torch

__all__ = ["OP_TYPE", "KvCompressParameters"]

_INTEGER = "int32"


class KvCompressParameters(Parameters):
    """The entries of one compressor."""

    head_dim: int = Field(gt=0)
    compress_rate: int = Field(gt=0)
    """Tokens of a window, and from the start of one to that of the next."""
    overlap: bool = False
    dtype: str = "float32"
    """SGLang's projection has float32 outputs, which it keeps until the entry is normed."""

    @property
    def series(self) -> int:
        """How many kv and score a token has for each feature."""
        return 2 if self.overlap else 1


_COMPRESS = """
    @torch.no_grad()
    def run(kv_score, position_bias, window_rows):
        entries, span = window_rows.shape
        rate, width = position_bias.shape
        series = 2 if OVERLAP else 1
        absent = window_rows < 0
        rows = kv_score[window_rows.clamp(min=0).to(torch.int64)].to(torch.float32)
        kv, score = rows.split(width, dim=-1)
        score = score.unflatten(1, (series, rate)) + position_bias.to(torch.float32)
        # Series i of a token counts in part i of a span: the window before, then the entry's own.
        parts = [part.unflatten(-1, (series, -1)) for part in (kv.unflatten(1, (series, rate)), score)]
        kv, score = (torch.cat([part[:, i, :, i] for i in range(series)], dim=1) for part in parts)
        score = score.masked_fill(absent[..., None], -torch.inf)
        weights = torch.softmax(score, dim=1).masked_fill(absent[..., None], 0.0)
        return (weights * kv).sum(dim=1).to(kv_score.dtype)
"""


def _define(parameters: KvCompressParameters) -> Definition:
    series, rate, dim = parameters.series, parameters.compress_rate, parameters.head_dim
    overlap = "overlap" if parameters.overlap else ""
    parts = "the window before, by its first series, then its own, by the second" if overlap else "those of its window"
    return Definition(
        name=format_name("kv_compress", ("d", dim), ("r", rate), overlap),
        description=f"Pool {rate * series} tokens into each entry: {parts}. Each feature is a sum of kv weighted by a "
        "softmax over score plus a bias of the position in the window. An entry without tokens is 0.",
        op_type="kv_compression",
        axes={
            "num_rows": var("Tokens whose projections are at hand, of this step and kept from before."),
            "num_entries": var("Entries to make."),
            "head_dim": const(dim, "Features of an entry."),
            "compress_rate": const(rate, "Tokens of a window."),
            "span": const(series * rate, "Tokens that an entry pools."),
            "series_width": const(series * dim, "Features of all series of a token."),
            "kv_score_width": const(2 * series * dim, "kv of all series, then score of all series."),
        },
        constraints=[
            "span % compress_rate == 0",
            "series_width == span // compress_rate * head_dim",
            "kv_score_width == 2 * series_width",
        ],
        inputs={
            "kv_score": tensor(
                parameters.dtype, "num_rows kv_score_width", "The projections of tokens, kv then score."
            ),
            "position_bias": tensor(
                "float32", "compress_rate series_width", "Added to the score, by place in a window."
            ),
            "window_rows": tensor(
                _INTEGER, "num_entries span", "The rows that each entry pools, in order of position; -1 is none."
            ),
        },
        outputs={"compressed": tensor(parameters.dtype, "num_entries head_dim", "The entries.")},
        reference=source(_COMPRESS, OVERLAP=parameters.overlap),
    )


def _window_rows(request: InputRequest) -> torch.Tensor:
    """Give each entry consecutive tokens; the first one has none before its window, as at the start of a sequence."""
    import torch

    entries, span = request.shape
    rows, rate = request.axes.get("num_rows", span), request.axes.get("compress_rate", span)
    starts = torch.randint(0, max(rows - span, 0) + 1, (entries, 1), generator=request.generator)
    made = (starts + torch.arange(span)) % rows
    made[:1, : span - rate] = -1
    return made.to(dtype=request.dtype, device=request.device)


def _work(request: WorkRequest) -> Work | None:
    """Count kv and score of the series by which a row counts in some entry, once for each of its series."""
    if not request.has("kv_score", "position_bias", "window_rows"):
        return None
    rows, rate = request.integers("window_rows"), request.shape("position_bias")[0]
    series = max(rows.shape[1] // max(rate, 1), 1)
    parts = [part[part >= 0].unique().numel() for part in rows.chunk(series, dim=1)]
    read = sum(request.read_rows("kv_score", count) for count in parts) // series
    return Work(read=read + request.read("position_bias"), written=request.written())


OP_TYPE = OpType(
    name="kv_compression",
    kernels=(
        KernelType(
            id="kv_compress",
            op_type="kv_compression",
            summary="windows of tokens pooled into one cache entry each",
            parameters=KvCompressParameters,
            define=_define,
            sglang_symbols=("sglang.kernels.ops.attention.dsv4.compress.compress_forward",),
        ),
    ),
    input_rules={"window_rows": _window_rows, "position_bias": random(0.5)},
    axis_sizes={"num_rows": 290, "num_entries": 5},
    work=_work,
)
