"""dsv4_attention: DeepSeek-V4's attention to a sliding window of tokens and to compressed entries before it.

DeepSeek-AI, DeepSeek-V4 (2026): all heads share one key, which is the value too, and each has a sink. A query's window
and the entries it sees are named by slot, page * page_size + offset, each in a cache of its own, so decode and prefill
are one kernel. Keys are stored rotated; what turns the output back is a kernel of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, model_validator

from fib_tools.model.definition import AxisConst, AxisVar, Definition, TensorSpec
from fib_tools.model.naming import format_name
from fib_tools.op_types.attention import (
    INTEGER,
    WITHOUT_OUTLIERS,
    lse_output,
    settle_scale,
    sm_scale_input,
    softmax_scale,
)
from fib_tools.op_types.base import InputRule, KernelType, OpType, Parameters, const, source, tensor, var
from fib_tools.op_types.ground_truth import GroundTruth, no_kernel
from fib_tools.op_types.input_request import InputRequest
from fib_tools.op_types.rules import draw_distinct
from fib_tools.op_types.work_request import Work, WorkRequest

if TYPE_CHECKING:
    import torch

__all__ = ["OP_TYPE", "Dsv4CompressedParameters", "Dsv4WindowParameters"]


class Dsv4WindowParameters(Parameters):
    """The heads and the window of one attention."""

    silent: ClassVar[Mapping[str, Any]] = {"sm_scale": None}

    num_qo_heads: int = Field(gt=0)
    head_dim: int = Field(default=512, gt=0)
    window: int = Field(gt=0)
    """Tokens that a query sees, its own included."""
    page_size: int = Field(gt=0)
    sm_scale: float | None = Field(default=None, gt=0)
    """None for 1 / sqrt(head_dim)."""
    dtype: str = "bfloat16"

    @model_validator(mode="before")
    @classmethod
    def _settle_defaults(cls, data: Any) -> Any:
        """Write the scale that follows from the head as None, so that equal kernels have equal parameters."""
        if not isinstance(data, dict) or not isinstance(data.get("sm_scale"), (int, float)):
            return data
        head_dim = data.get("head_dim", cls.model_fields["head_dim"].default)
        if not isinstance(head_dim, int) or head_dim <= 0:
            return data
        plain = head_dim**-0.5
        return {**data, "sm_scale": None if settle_scale(data["sm_scale"], plain) == plain else data["sm_scale"]}

    @property
    def scale(self) -> float:
        """The softmax scale."""
        return settle_scale(self.sm_scale, self.head_dim**-0.5)

    def pieces(self) -> list[str | tuple[str, int]]:
        """Spell the parameters for a name."""
        return [*self.window_pieces(), ("ps", self.page_size)]

    def window_pieces(self) -> list[str | tuple[str, int]]:
        """Spell what every form has in front."""
        return [("h", self.num_qo_heads), ("d", self.head_dim), ("win", self.window)]


class Dsv4CompressedParameters(Dsv4WindowParameters):
    """The compressed entries beside the window."""

    topk: int | None = Field(default=None, gt=0)
    """Most entries that an indexer chooses for a query; None where a query sees all before it."""
    compressed_page_size: int = Field(gt=0)

    @property
    def entry_axis(self) -> str:
        """The axis of the entries of a query."""
        return "max_compressed" if self.topk is None else "topk"

    def pieces(self) -> list[str | tuple[str, int]]:
        """Spell the parameters for a name."""
        chosen: str | tuple[str, int] = "all" if self.topk is None else ("topk", self.topk)
        sizes = [("ps", self.page_size), ("cps", self.compressed_page_size)]
        return [*self.window_pieces(), chosen, *sizes]


_WINDOW = """
    @torch.no_grad()
    def run(q, window_cache, window_indices, sinks, sm_scale):
        output = torch.zeros_like(q)
        lse = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
        for t in range(q.shape[0]):
            keys = gather(window_cache, window_indices[t])
            output[t], lse[t] = attend(q[t], keys, sinks, sm_scale)
        return output, lse
"""

_COMPRESSED = """
    @torch.no_grad()
    def run(q, window_cache, window_indices, compressed_cache, compressed_indices, sinks, sm_scale):
        output = torch.zeros_like(q)
        lse = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
        for t in range(q.shape[0]):
            tokens = gather(window_cache, window_indices[t])
            entries = gather(compressed_cache, compressed_indices[t])
            output[t], lse[t] = attend(q[t], torch.cat([tokens, entries]), sinks, sm_scale)
        return output, lse
"""

_CORE = """
    def gather(cache, slots):
        return cache.flatten(0, 1)[slots[slots >= 0].to(torch.int64)].to(torch.float32)


    def attend(q, keys, sinks, sm_scale):
        logits = q.to(torch.float32) @ keys.T * sm_scale
        lse = torch.logsumexp(torch.cat([logits, sinks[:, None]], dim=-1), dim=-1)
        return torch.exp(logits - lse[:, None]) @ keys, lse / math.log(2)


"""


def _axes(parameters: Dsv4WindowParameters) -> dict[str, AxisConst | AxisVar]:
    return {
        "num_tokens": var("Queries, of decode or prefill."),
        "num_qo_heads": const(parameters.num_qo_heads, "Query heads on this device."),
        "head_dim": const(parameters.head_dim, "Width of a query, a key and a value."),
        "window": const(parameters.window, "Most tokens of a window, the query's own included."),
        "page_size": const(parameters.page_size, "Tokens a page of the window's cache holds."),
        "num_pages": var("Pages of the window's cache."),
    }


def _compressed_axes(parameters: Dsv4CompressedParameters) -> dict[str, AxisConst | AxisVar]:
    topk = parameters.topk
    entries = const(topk, "Most entries that are chosen for a query.") if topk else var("Most entries a query sees.")
    return {
        **_axes(parameters),
        parameters.entry_axis: entries,
        "compressed_page_size": const(parameters.compressed_page_size, "Entries a page of the compressed cache holds."),
        "num_compressed_pages": var("Pages of the compressed cache."),
    }


def _inputs(parameters: Dsv4WindowParameters, extra: Mapping[str, TensorSpec]) -> dict[str, TensorSpec]:
    dtype = parameters.dtype
    said = "Slots of the tokens that each query sees, page * page_size + offset; -1 is none."
    return {
        "q": tensor(dtype, "num_tokens num_qo_heads head_dim", "The queries, rotated."),
        "window_cache": tensor(dtype, "num_pages page_size head_dim", "Tokens: one key for all heads, also the value."),
        "window_indices": tensor(INTEGER, "num_tokens window", said),
        **extra,
        "sinks": tensor("float32", "num_qo_heads", "One more logit for each head, with no value."),
        "sm_scale": sm_scale_input(parameters.scale),
    }


def _outputs(parameters: Dsv4WindowParameters) -> dict[str, TensorSpec]:
    return {
        "output": tensor(parameters.dtype, "num_tokens num_qo_heads head_dim", "The attention output, still rotated."),
        "lse": lse_output("num_tokens num_qo_heads"),
    }


_SINK = "Each head's sink is one more logit, with no value; the lse counts it. A query that sees nothing has output 0."


def _define_window(parameters: Dsv4WindowParameters) -> Definition:
    return Definition(
        name=format_name("dsv4_window_attention", *parameters.pieces()),
        description=f"Attention of each query to a window of tokens, whose one key is the value too. {_SINK}",
        op_type="dsv4_attention",
        axes=_axes(parameters),
        inputs=_inputs(parameters, {}),
        outputs=_outputs(parameters),
        reference=source(_join(_WINDOW)),
    )


def _define_compressed(parameters: Dsv4CompressedParameters) -> Definition:
    chosen = "those compressed entries that are chosen for it" if parameters.topk else "all compressed entries it sees"
    said = "Slots of the entries of each query, page * compressed_page_size + offset; -1 is none."
    cache = "num_compressed_pages compressed_page_size head_dim"
    extra = {
        "compressed_cache": tensor(
            parameters.dtype, cache, "Compressed entries: one key for all heads, also the value."
        ),
        "compressed_indices": tensor(INTEGER, f"num_tokens {parameters.entry_axis}", said),
    }
    return Definition(
        name=format_name("dsv4_compressed_attention", *parameters.pieces()),
        description=f"One softmax of each query over a window of tokens and {chosen}; a key is the value too. {_SINK}",
        op_type="dsv4_attention",
        axes=_compressed_axes(parameters),
        inputs=_inputs(parameters, extra),
        outputs=_outputs(parameters),
        reference=source(_join(_COMPRESSED)),
    )


def _join(run: str) -> str:
    return f"{_CORE.rstrip()}\n\n{run}"


_API = "flashinfer.mla._core.trtllm_batch_decode_sparse_mla_dsv4"
_API_HEAD_DIM, _API_WINDOW, _API_HEADS = 512, 128, (8, 16, 32, 64, 128)


def _is_covered(parameters: Dsv4WindowParameters) -> bool:
    """FlashInfer's API, which has no trace template, is written for DeepSeek-V4's head and window."""
    is_sized = parameters.head_dim == _API_HEAD_DIM and parameters.window == _API_WINDOW
    return is_sized and parameters.num_qo_heads in _API_HEADS


def _ground_truth(_parameters: Dsv4WindowParameters) -> GroundTruth:
    what = "FlashInfer's kernel needs Blackwell and gives no log-sum-exp; on sm_120 it takes packed 584-byte records"
    return no_kernel(f"{what}, which are not this Definition's caches")


def _slots(pages: str, page_size: str) -> InputRule:
    """Choose distinct slots for each query: the first as many as there can be, the second one, the others some."""

    def rule(request: InputRequest) -> torch.Tensor:
        import torch

        rows, columns = request.shape
        slots = request.axes.get(pages, 1) * request.axes.get(page_size, 1)
        most = min(columns, slots)
        indices = torch.full((rows, columns), -1, dtype=request.dtype)
        counts = [most, 1, *request.integers(1, most + 1, (max(rows - 2, 0),)).tolist()][:rows]
        for row, count in enumerate(counts):
            indices[row, :count] = draw_distinct(count, slots, generator=request.generator).to(request.dtype)
        return indices.to(request.device)

    return rule


_SYMBOLS = (
    "sglang.kernels.ops.attention.flash_mla_interface.flash_mla_with_kvcache",
    "sglang.kernels.ops.attention.flash_mla_interface.flash_mla_sparse_fwd",
    "flashinfer.mla.trtllm_batch_decode_sparse_mla_dsv4",
)


def _work(request: WorkRequest) -> Work | None:
    """Count the tokens and entries that some query sees, each once."""
    if not request.has("q", "window_cache", "window_indices", "sinks"):
        return None
    pairs, read = 0, request.read("q", "sinks")
    for kind in ("window", "compressed"):
        if request.has(f"{kind}_cache", f"{kind}_indices"):
            pairs += int((request.integers(f"{kind}_indices") >= 0).sum())
            read += request.read_rows(f"{kind}_cache", request.count_distinct(f"{kind}_indices"), leading=2)
    _, heads, width = request.shape("q")
    return Work(read=read, written=request.written(), flops=4 * pairs * heads * width, unit=request.unit("q"))


OP_TYPE = OpType(
    name="dsv4_attention",
    kernels=(
        KernelType(
            id="dsv4_window_attention",
            op_type="dsv4_attention",
            summary="attention to a window of tokens with one key that is the value too",
            parameters=Dsv4WindowParameters,
            define=_define_window,
            fi_api=_API,
            fi_covers=_is_covered,
            sglang_symbols=_SYMBOLS,
            ground_truth=_ground_truth,
        ),
        KernelType(
            id="dsv4_compressed_attention",
            op_type="dsv4_attention",
            summary="attention to a window of tokens and to compressed entries",
            parameters=Dsv4CompressedParameters,
            define=_define_compressed,
            fi_api=_API,
            fi_covers=_is_covered,
            sglang_symbols=_SYMBOLS,
            ground_truth=_ground_truth,
        ),
    ),
    input_rules={
        "window_indices": _slots("num_pages", "page_size"),
        "compressed_indices": _slots("num_compressed_pages", "compressed_page_size"),
        "sm_scale": softmax_scale("head_dim"),
    },
    axis_sizes={"num_pages": 3, "num_compressed_pages": 9, "max_compressed": 11},
    without_outliers=WITHOUT_OUTLIERS,
    work=_work,
)
