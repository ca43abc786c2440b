"""Serving runs of SGLang that show one set of per-rank shapes each: what is overridden, asked for and left out.

A run is a document, so that it can be planned on one machine and made on another:

{"name": "tp8", "tp": 8, "gpus": 1, "overrides": {"num_hidden_layers": 2, "num_attention_heads": 8}, ...}
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from fib_tools.model.base import Model, NonEmpty
from fib_tools.model.canonical import content_hash
from fib_tools.op_types.registry import list_kernel_types

__all__ = [
    "FLASHINFER_PAGE",
    "PAGE_REASON",
    "SLOW_TO_COMPILE",
    "Batch",
    "EngineRun",
    "NotCovered",
    "RunPlan",
    "Sequence",
    "Variant",
    "list_batches",
    "make_run",
]

Variant = Literal["default", "paged"]
"""`paged`: attention goes to the paged kernels alone, which SGLang otherwise takes for cached prefixes only."""

FLASHINFER_PAGE = 1
PAGE_REASON = (
    "SGLang's FlashInfer backends address single tokens, a page size of 1, whatever --page-size says "
    "(layers/attention/flashinfer_backend.py, begin_forward)"
)

_CACHED_PREFIX = 129
_LONG_PREFIX = 400
_LONG_REQUESTS = 3
_PREFIX_THRESHOLD = 300
"""More cached tokens than the short prefixes have together, fewer than one long one has: each takes MLA's other way,
however the scheduler groups the requests."""
_KV_CHUNK = 420
"""Fewer tokens than a request with a long prefix has, so that SGLang attends to it in chunks."""
_SHORT_PROMPT = 21
"""SGLang gives FlashInfer's FP8 products fewer than 32 rows, and some products of MLA are of prefills alone."""
_WATCHED = ("sglang.", "sgl_kernel.", "deep_gemm.")
_WATCHED_BESIDES = ("sglang.kernels.ops.gemm.dsv3_router_gemm.dsv3_router_gemm",)
"""What computes a kernel type in place of its own functions."""
_PAGED_BATCHES = 2
"""How many of the batches, from the first, show something else when attention is paged throughout."""

SLOW_TO_COMPILE = ("cutlass_fused_moe", "fp8_blockscale_gemm_sm90")
"""Kernels that compile for minutes, or need a compiler of their own: they are traced, and do not run."""

_ARGUMENTS: dict[str, Any] = {
    "attention_backend": "flashinfer",
    "sampling_backend": "flashinfer",
    "grammar_backend": "none",
    "disable_cuda_graph": True,
    "disable_flashinfer_autotune": True,
    "skip_tokenizer_init": True,
    "max_total_tokens": 16384,
    "context_length": 4096,
    "mem_fraction_static": 0.7,
    "mm_feature_transport": "cpu",
    "random_seed": 17,
    "watchdog_timeout": 3600,  # the first request waits for compilers, which is no hang
    "log_level": "info",
}
"""Of SGLang's engine; names that a version does not know are left out by the child, which says so."""

_ENVIRONMENT = {
    "FLASHINFER_TRACE_DUMP": "1",
    "SGLANG_KERNEL_API_LOGLEVEL": "3",
    "SGLANG_ENABLE_JIT_DEEPGEMM": "0",
    "SGLANG_CHUNKED_PREFIX_CACHE_THRESHOLD": str(_PREFIX_THRESHOLD),
    "SGLANG_MAX_KV_CHUNK_CAPACITY": str(_KV_CHUNK),
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONUNBUFFERED": "1",
}


_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


class Sequence(Model):
    """One prompt: pieces of made-up tokens, of which equal ones at the beginning are a prefix that can be cached; or real."""

    pieces: tuple[tuple[int, int], ...] = ()
    """Seed and length of each."""
    tokens: tuple[int, ...] = ()
    """Of a real prompt."""
    max_new_tokens: int | None = None
    """In place of the batch's."""

    @property
    def length(self) -> int:
        """How many tokens it has."""
        return len(self.tokens) + sum(length for _, length in self.pieces)


class Batch(Model):
    """Requests that are sent together."""

    name: NonEmpty
    sequences: tuple[Sequence, ...]
    sampling: dict[str, float | int]


class NotCovered(Model):
    """What the runs cannot show, and why."""

    subject: NonEmpty
    reason: NonEmpty
    kernels: tuple[str, ...] = ()
    """Ids of kernel types."""
    modules: tuple[str, ...] = ()
    """Parts of the names of their modules; none stands for all."""


class EngineRun(Model):
    """One start of the engine, from which the shapes of one rank can be read."""

    name: NonEmpty
    """Safe as a folder's name, such as `tp8-ep4-paged`."""
    points: tuple[NonEmpty, ...] = ()
    """The serving points whose shapes it shows, as text."""
    tp: int = Field(ge=1)
    ep: int = Field(default=1, ge=1)
    attention_tp: int = Field(ge=1)
    page_size: int = Field(default=1, ge=1)
    variant: Variant = "default"
    gpus: int = Field(ge=1)
    """1 where the shapes come from overrides, else tp."""
    config: dict[str, Any]
    """The model's config.json with the overrides."""
    overrides: dict[str, Any]
    """What was changed in it, by dotted path."""
    weights: str | None = None
    """A folder or repository of real weights; None for dummy ones."""
    arguments: dict[str, Any]
    environment: dict[str, str]
    skipped: tuple[str, ...] = ()
    """Functions of FlashInfer that are traced and do not run."""
    watched: tuple[str, ...] = ()
    """Functions of SGLang whose calls are recorded, as dotted names."""
    batches: tuple[Batch, ...]
    vocab_size: int = Field(ge=2)
    not_covered: tuple[NotCovered, ...] = ()

    @property
    def digest(self) -> str:
        """Identify what is asked of the engine: equal runs show equal things."""
        return content_hash(self.model_dump(mode="json", exclude={"points", "not_covered"}))


class RunPlan(Model):
    """The runs of a model."""

    model: NonEmpty
    runs: tuple[EngineRun, ...]
    not_covered: tuple[NotCovered, ...] = ()


def list_batches() -> tuple[Batch, ...]:
    """List requests that take every path: prefill, cached prefixes short and long, decode, and each way to sample."""

    def sequence(*pieces: tuple[int, int]) -> Sequence:
        return Sequence(pieces=pieces)

    lengths = {1: 5, 2: 67, 3: _CACHED_PREFIX, 4: _LONG_PREFIX}
    greedy = {"temperature": 0.0, "max_new_tokens": 4}
    drawn = {"temperature": 0.8, "max_new_tokens": 3}
    short = tuple(sequence((3, _CACHED_PREFIX), (10 + index, 20 + index)) for index in range(2))
    long = tuple(sequence((4, _LONG_PREFIX), (20 + index, 30 + index)) for index in range(_LONG_REQUESTS))
    fresh = tuple(sequence((30 + index, 40 + index)) for index in range(3))
    return (
        Batch(name="greedy", sequences=tuple(sequence(item) for item in lengths.items()), sampling=greedy),
        Batch(name="cached prefix", sequences=short, sampling=greedy),
        Batch(name="long cached prefix", sequences=long, sampling=greedy),
        Batch(name="short prompt", sequences=(sequence((5, _SHORT_PROMPT)),), sampling=greedy),
        Batch(name="plain sampling", sequences=fresh, sampling=drawn),
        Batch(name="top-k and top-p", sequences=fresh, sampling={**drawn, "top_k": 20, "top_p": 0.9}),
        Batch(name="min-p", sequences=fresh, sampling={**drawn, "top_k": 20, "top_p": 0.9, "min_p": 0.05}),
    )


def make_run(run: dict[str, Any], *, is_mla: bool, is_fp8_block: bool, is_plain_moe: bool) -> EngineRun:
    """Complete a run with the arguments, environment and requests that lead the engine to FlashInfer's kernels."""
    arguments = {**_ARGUMENTS, "page_size": run.get("page_size", 1)}
    environment = dict(_ENVIRONMENT)
    if is_plain_moe:
        arguments["moe_runner_backend"] = "flashinfer_cutlass"
    if is_fp8_block:
        arguments["fp8_gemm_runner_backend"] = "flashinfer_deepgemm"
    if run.get("variant") == "paged" and is_mla:
        arguments["flashinfer_mla_disable_ragged"] = True
    elif run.get("variant") == "paged":
        environment["SGLANG_FLASHINFER_USE_PAGED"] = "1"
    if run["gpus"] > 1:
        arguments |= {"tp_size": run["tp"], "ep_size": run["ep"]}
        dp = run["tp"] // run["attention_tp"]
        arguments |= {"dp_size": dp, "enable_dp_attention": True} if dp > 1 else {}
    if run.get("weights") is None:
        arguments["load_format"] = "dummy"
    else:
        environment = {name: value for name, value in environment.items() if name not in _OFFLINE}
    return EngineRun(
        **run,
        arguments=arguments,
        environment=environment,
        skipped=SLOW_TO_COMPILE,
        watched=_list_watched(),
        batches=list_batches()[: _PAGED_BATCHES if run.get("variant") == "paged" else None],
    )


def _list_watched() -> tuple[str, ...]:
    """List what SGLang calls for the kernel types, outside of FlashInfer."""
    symbols = {symbol for kernel in list_kernel_types() for symbol in kernel.sglang_symbols}
    return tuple(sorted({*_WATCHED_BESIDES, *(symbol for symbol in symbols if symbol.startswith(_WATCHED))}))
