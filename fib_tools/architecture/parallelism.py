"""How a model is cut over GPUs: the serving points people use and SGLang's rules of divisibility.

A serving point is one way to run a model, such as TP=8 with 4-way data-parallel attention. Attention is cut by
`attention_tp` (tp / dp with DP attention), and so is the embedding of most models (`inventory_ends.py` knows those
that keep it whole); the experts are cut by `ep` and then by tp / ep, and everything else, the LM head too, by `tp`.
The rules and their words follow SGLang 0.5.23: `layers/linear.py` (QKVParallelLinear), `layers/quantization/fp8.py`
(validate_block_quant_shapes), `layers/vocab_parallel_embedding.py`, `layers/moe/fused_moe_triton/layer.py`.
"""

from __future__ import annotations

from collections.abc import Callable

from pydantic import Field

from fib_tools.errors import ParallelismError
from fib_tools.model.base import Model, NonEmpty
from fib_tools.sources.cookbook import ServingConfig

__all__ = [
    "ServingPoint",
    "check_fp8_block",
    "cut_experts",
    "cut_kv_heads",
    "cut_mxfp4_width",
    "cut_query_heads",
    "cut_size",
    "cut_vocabulary",
    "get_serving_point",
    "list_allowed",
]

_VOCABULARY_PADDING = 64
"""DEFAULT_VOCAB_PADDING_SIZE of SGLang."""

_MXFP4_BLOCK = 32
"""How many weights of MXFP4 share a scale."""

_LARGEST_TP = 1024
"""No deployment known cuts one layer over more GPUs; it bounds the values that errors list."""


class ServingPoint(Model):
    """One way to serve a model: how it is cut, on what hardware, in which quantisation, and who says so."""

    tp: int = Field(default=1, ge=1, le=_LARGEST_TP)
    ep: int = Field(default=1, ge=1, le=_LARGEST_TP)
    dp: int = Field(default=1, ge=1, le=_LARGEST_TP)
    enable_dp_attention: bool = False
    page_size: int | None = Field(default=None, ge=1, le=4096)
    """The page size that the point asks for; None where the engine chooses."""
    hardware: str | None = None
    quantization: str | None = None
    """Such as `fp8`; None for what the checkpoint says."""
    attention_backend: str | None = None
    kv_cache_dtype: str | None = None
    draft_tokens: int | None = Field(default=None, ge=1, le=1024)
    """How many tokens are verified at once, with speculative decoding."""
    drafts_itself: bool = False
    """The drafts come from the model's own MTP layers, not from another model."""
    source: NonEmpty = "default"
    requested: bool = False
    """True: the user asked for it by name, so a refusal is an error and not a line of the report."""

    @property
    def has_dp_attention(self) -> bool:
        """Whether attention is cut over fewer GPUs than the rest; one data-parallel rank changes nothing."""
        return self.enable_dp_attention and self.dp > 1

    @property
    def attention_tp(self) -> int:
        """Over how many GPUs one attention layer is cut."""
        if not self.enable_dp_attention:
            return self.tp
        return cut_size(self.tp, self.dp, what="tp", by="dp")

    @property
    def expert_tp(self) -> int:
        """Over how many GPUs one expert is cut."""
        return cut_size(self.tp, self.ep, what="tp", by="ep")

    def describe(self) -> str:
        """Spell the point shortly, such as `tp8 ep4 dp2-attention`."""
        words = [f"tp{self.tp}"]
        if self.ep > 1:
            words.append(f"ep{self.ep}")
        if self.has_dp_attention:
            words.append(f"dp{self.dp}-attention")
        return " ".join(words)


def get_serving_point(config: ServingConfig) -> ServingPoint:
    """Turn a configuration of the cookbook into a serving point."""
    draft_tokens = config.speculative.get("num-draft-tokens", "")
    return ServingPoint(
        tp=config.tp,
        ep=config.ep,
        dp=config.dp or 1,
        enable_dp_attention=config.enable_dp_attention,
        page_size=config.page_size,
        hardware=config.hardware,
        quantization=config.quantization,
        attention_backend=config.attention_backend,
        kv_cache_dtype=config.kv_cache_dtype,
        draft_tokens=int(draft_tokens) if draft_tokens.isdigit() else None,
        drafts_itself=bool(config.speculative) and "draft-model-path" not in config.speculative,
        source=config.source,
    )


def cut_size(total: int, parts: int, *, what: str, by: str = "TP") -> int:
    """Divide a size over GPUs.

    Raises:
        ParallelismError: when it does not divide; it lists the values that do.
    """
    if total % parts:
        allowed = list_allowed(lambda count: total % count == 0)
        raise ParallelismError(f"{what}={total} cannot be cut by {by} {parts}", todo=f"use {by} {_format(allowed)}")
    return total // parts


def cut_query_heads(total: int, kv_total: int, tp: int) -> int:
    """Divide the query heads; the error lists the TP values that both kinds of heads allow.

    Raises:
        ParallelismError: when the heads do not divide.
    """
    if total % tp:
        raise _heads_error(f"{total} query heads", total, kv_total, tp)
    return total // tp


def cut_kv_heads(total: int, kv_total: int, tp: int) -> int:
    """Divide the KV heads of a model with `total` query heads; with more GPUs than KV heads each head is replicated.

    Raises:
        ParallelismError: when neither divides the other.
    """
    if kv_total % tp and tp % kv_total:
        raise _heads_error(f"{kv_total} KV heads", total, kv_total, tp)
    return max(1, kv_total // tp)


def _heads_error(subject: str, total: int, kv_total: int, tp: int) -> ParallelismError:
    allowed = list_allowed(lambda count: total % count == 0 and (kv_total % count == 0 or count % kv_total == 0))
    return ParallelismError(
        f"{subject} cannot be cut by attention TP {tp}",
        where="num_attention_heads, num_key_value_heads",
        todo=f"use an attention TP of {_format(allowed)}",
    )


def cut_experts(total: int, point: ServingPoint) -> int:
    """Divide the routed experts over the expert-parallel GPUs.

    Raises:
        ParallelismError: when they do not divide, or ep does not divide tp.
    """
    if point.tp % point.ep:
        allowed = list_allowed(lambda count: point.tp % count == 0 and total % count == 0)
        raise ParallelismError(
            f"tp={point.tp} cannot be cut by EP {point.ep}", where="ep", todo=f"use EP {_format(allowed)}"
        )
    return cut_size(total, point.ep, what="num_experts", by="EP")


def cut_mxfp4_width(total: int, parts: int) -> int:
    """Divide the width of an MXFP4 expert in whole blocks of scales, so that the last GPU may hold less than the share.

    Raises:
        ParallelismError: when the width itself does not divide, which SGLang asserts first.

    Source: SGLang 0.5.23, `models/gpt_oss.py:992` and `layers/moe/fused_moe_triton/layer.py:427`.
    """
    return _round_up(cut_size(total, parts, what="moe_intermediate_size", by="TP / EP"), _MXFP4_BLOCK)


def cut_vocabulary(vocabulary: int, tp: int) -> int:
    """Give the rows of the embedding or LM head on one GPU; SGLang pads to 64, and to 64 x tp where 64 is not enough."""
    padding = _VOCABULARY_PADDING
    if _round_up(vocabulary, padding) % tp:
        padding *= tp
    return _round_up(vocabulary, padding) // tp


def check_fp8_block(size: int, block: int, *, what: str, tp: int) -> None:
    """Refuse a share that is no whole number of scale blocks, as SGLang does when it makes the weights.

    Raises:
        ParallelismError: with the TP values that keep blocks whole.
    """
    if size % block:
        allowed = list_allowed(lambda count: size * tp % count == 0 and (size * tp // count) % block == 0)
        advice = f"use TP {_format(allowed)}" if allowed else "use a checkpoint without block scales"
        raise ParallelismError(f"{what}: a share of {size} is not a multiple of the fp8 block {block}", todo=advice)


def list_allowed(is_allowed: Callable[[int], bool], *, limit: int = 128) -> tuple[int, ...]:
    """List the counts up to a limit that a rule allows."""
    return tuple(count for count in range(1, limit + 1) if is_allowed(count))


def _format(allowed: tuple[int, ...]) -> str:
    shown = ", ".join(str(count) for count in allowed[:12])
    return shown + (", ..." if len(allowed) > 12 else "")


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
