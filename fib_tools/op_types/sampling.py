"""sampling: from the logits of the last tokens to token ids, and the filters on the way.

A filter keeps a set of tokens, never a part of a tie, as FlashInfer's thresholds do (Ye et al., Sorting-Free GPU
Kernels for LLM Sampling, 2025):
top-k keeps what is at least the k-th largest; top-p keeps a token while all strictly larger ones sum to less than p
(Holtzman et al., 2020); min-p keeps what is at least min_p times the largest (Nguyen et al., 2024).
References draw with `torch.multinomial` from torch's global generator, so that `torch.manual_seed` repeats a run; two
correct kernels agree in distribution, not in samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from fib_tools.model.definition import Definition, TensorSpec
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
from fib_tools.op_types.ground_truth import GroundTruth, Wrapper
from fib_tools.op_types.input_request import InputRequest
from fib_tools.op_types.rules import positive
from fib_tools.op_types.speculative_sampling import CHAIN_SPECULATIVE_SAMPLING
from fib_tools.op_types.tolerance import filtered, rounded, sampled
from fib_tools.op_types.work_request import Work, WorkRequest

if TYPE_CHECKING:
    import torch

__all__ = ["OP_TYPE", "SamplingParameters", "TopKTopPParameters"]

_MAX_TRIAL_TOP_K = 64


class SamplingParameters(Parameters):
    """The vocabulary of one sampler."""

    vocab_size: int = Field(gt=0)


class TopKTopPParameters(SamplingParameters):
    """The vocabulary, and which distribution top-p sees."""

    filter_apply_order: Literal["top_k_first", "joint"] = "top_k_first"
    """`top_k_first`: top-p sees what top-k left, renormalised; `joint`: both see the given probabilities."""


_TOP_K = """
def keep_top_k(probs, top_k):
    vocab_size = probs.shape[-1]
    k = torch.where((top_k > 0) & (top_k < vocab_size), top_k, vocab_size).to(torch.int64)
    threshold = probs.sort(dim=-1, descending=True).values.gather(-1, k[:, None] - 1)
    return torch.where(probs >= threshold, probs, 0.0)
"""

_TOP_P = """
def keep_top_p(probs, top_p):
    ordered = probs.sort(dim=-1, descending=True).values
    before = F.pad(ordered.to(torch.float64).cumsum(dim=-1)[:, :-1], (1, 0))
    kept = (before < top_p[:, None]).sum(dim=-1, keepdim=True).clamp(min=1)
    threshold = torch.where(top_p[:, None] < 1.0, ordered.gather(-1, kept - 1), 0.0)
    return torch.where(probs >= threshold, probs, 0.0)
"""

_RENORM = """
def renormalize(probs):
    probs = probs.to(torch.float64)
    return (probs / probs.sum(dim=-1, keepdim=True)).to(torch.float32)
"""

_RUN = """
@torch.no_grad()
def run({arguments}):
    return {result}
"""

_DRAW = "torch.multinomial({probs}, 1).squeeze(-1)"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Form:
    """One operation on rows of the vocabulary: what it is given besides the rows, and what `run` returns."""

    id: str
    summary: str
    per_row: tuple[str, ...]
    result: str
    parts: tuple[str, ...] = ()
    rows: str = "probs"
    output: str = "samples"
    has_template: bool = False
    """Whether the template knows the per-row tensors; where it declares one scalar for all rows it does not."""
    api: str = ""
    sglang_symbols: tuple[str, ...] = ()

    @property
    def fi_api(self) -> str:
        return f"flashinfer.sampling.{self.api or self.id}"


_DESCRIPTIONS: Mapping[str, tuple[str, str]] = {
    "top_k": ("int32", "How many tokens to keep in each row; 0 or less, or the vocabulary or more, keeps all."),
    "top_p": ("float32", "The probability to cover in each row; 1 keeps all, 0 the largest only."),
    "min_p": ("float32", "The share of the row's largest probability that a token must have, in [0, 1]."),
    "temperature": ("float32", "The divisor of each row's logits, above 0."),
    "probs": ("float32", "Probabilities of the next token, one distribution a row."),
    "logits": ("float32", "Logits of the next token."),
    "samples": ("int64", "The token drawn in each row."),
    "renormalized": ("float32", "The probabilities kept, each row summing to 1; 0 elsewhere."),
    "output": ("float32", "Probabilities, each row summing to 1."),
}

_FORMS = (
    _Form(
        id="top_k_sampling_from_probs",
        summary="draw from the k most probable tokens",
        per_row=("top_k",),
        parts=(_TOP_K,),
        result=_DRAW.format(probs="keep_top_k(probs, top_k)"),
        has_template=True,
    ),
    _Form(
        id="top_p_sampling_from_probs",
        summary="draw from the most probable tokens that together reach p",
        per_row=("top_p",),
        parts=(_TOP_P,),
        result=_DRAW.format(probs="keep_top_p(probs, top_p)"),
        has_template=True,
    ),
    _Form(
        id="top_k_top_p_sampling_from_probs",
        summary="draw from the tokens that both top-k and top-p keep",
        per_row=("top_k", "top_p"),
        parts=(_TOP_K, _TOP_P, _RENORM),
        result=_DRAW.format(probs="keep_top_p(renormalize(keep_top_k(probs, top_k)), top_p)"),
        has_template=True,
        sglang_symbols=("flashinfer.sampling.top_k_top_p_sampling_from_probs",),
    ),
    _Form(
        id="min_p_sampling_from_probs",
        summary="draw from the tokens with at least min_p times the largest probability",
        per_row=("min_p",),
        result=_DRAW.format(
            probs="torch.where(probs >= min_p[:, None] * probs.amax(dim=-1, keepdim=True), probs, 0.0)"
        ),
        sglang_symbols=("flashinfer.sampling.min_p_sampling_from_probs",),
    ),
    _Form(
        id="top_k_renorm_probs",
        summary="keep the k most probable tokens and renormalise",
        per_row=("top_k",),
        parts=(_TOP_K, _RENORM),
        output="renormalized",
        result="renormalize(keep_top_k(probs, top_k))",
        sglang_symbols=("sgl_kernel.top_k_renorm_prob",),
    ),
    _Form(
        id="top_p_renorm_probs",
        summary="keep the most probable tokens that together reach p and renormalise",
        per_row=("top_p",),
        parts=(_TOP_P, _RENORM),
        output="renormalized",
        result="renormalize(keep_top_p(probs, top_p))",
        sglang_symbols=("sgl_kernel.top_p_renorm_prob",),
    ),
    _Form(
        id="softmax_sampling",
        summary="softmax of logits / temperature",
        per_row=("temperature",),
        rows="logits",
        output="output",
        result="torch.softmax(logits.to(torch.float64) / temperature[:, None], dim=-1).to(torch.float32)",
        api="softmax",
        sglang_symbols=("flashinfer.sampling.softmax",),
    ),
)

_JOINT = _Form(
    id="top_k_top_p_sampling_from_probs_joint",
    summary="draw from the tokens that both top-k and top-p keep, each seeing the given probabilities",
    per_row=("top_k", "top_p"),
    parts=(_TOP_K, _TOP_P),
    result=_DRAW.format(probs="torch.minimum(keep_top_k(probs, top_k), keep_top_p(probs, top_p))"),
)


def _spec(name: str, axes: str) -> TensorSpec:
    dtype, description = _DESCRIPTIONS[name]
    return tensor(dtype, axes, description)


def _define(form: _Form, parameters: SamplingParameters) -> Definition:
    if isinstance(parameters, TopKTopPParameters) and parameters.filter_apply_order == "joint":
        form = _JOINT
    arguments = (form.rows, *form.per_row)
    run = _RUN.format(arguments=", ".join(arguments), result=form.result)
    drawn = form.output == "samples"
    seeded = "; the reference draws from torch's global generator" if drawn else ""
    return Definition(
        name=format_name(form.id, ("v", parameters.vocab_size)),
        description=f"For each row: {form.summary}{seeded}.",
        op_type="sampling",
        axes={
            "batch_size": var("Rows: sequences that want a token."),
            "vocab_size": const(parameters.vocab_size, "Tokens of the vocabulary."),
        },
        inputs={
            form.rows: _spec(form.rows, "batch_size vocab_size"),
            **{name: _spec(name, "batch_size") for name in form.per_row},
        },
        outputs={form.output: _spec(form.output, "batch_size" if drawn else "batch_size vocab_size")},
        reference=source("\n\n".join(part.strip() + "\n" for part in (*form.parts, run))),
    )


def _template(form: _Form, parameters: SamplingParameters) -> TemplateCall:
    arguments: dict[str, Any] = {form.rows: MetaTensor(shape=(4, parameters.vocab_size), dtype="float32")}
    for name in form.per_row:
        arguments[name] = MetaTensor(shape=(4,), dtype=_DESCRIPTIONS[name][0])
    if isinstance(parameters, TopKTopPParameters):
        arguments["filter_apply_order"] = parameters.filter_apply_order
    return TemplateCall(fi_api=form.fi_api, arguments=arguments)


def _ground_truth(form: _Form, parameters: SamplingParameters) -> GroundTruth:
    arguments = ", ".join((form.rows, *form.per_row))
    order = isinstance(parameters, TopKTopPParameters) and parameters.filter_apply_order
    call = f"{form.fi_api}({arguments}{', filter_apply_order=FILTER_APPLY_ORDER' if order else ''})"
    # samples come as int32, the reference's are torch.multinomial's int64
    result = f"{call}.to(torch.int64)" if form.output == "samples" else call
    wrapper = Wrapper(
        kind="flashinfer",
        api=form.fi_api,
        imports=("import flashinfer",),
        constants={"FILTER_APPLY_ORDER": order} if order else {},
        body=f"@torch.no_grad()\ndef run({arguments}):\n    return {result}",
    )
    return GroundTruth(wrappers=(wrapper,))


def _kernel(form: _Form) -> KernelType[Any]:
    return KernelType(
        id=form.id,
        op_type="sampling",
        summary=form.summary,
        parameters=TopKTopPParameters if form.per_row == ("top_k", "top_p") else SamplingParameters,
        define=partial(_define, form),
        fi_api=form.fi_api,
        template=partial(_template, form) if form.has_template else None,
        sglang_symbols=form.sglang_symbols,
        ground_truth=partial(_ground_truth, form),
        policy=rounded if form.rows == "logits" else filtered,
        policies={"samples": sampled},
    )


def _make_distribution(request: InputRequest) -> torch.Tensor:
    import torch

    return torch.softmax(2.0 * request.normal().to(torch.float32), dim=-1)


def _make_top_k(request: InputRequest) -> Any:
    most = min(_MAX_TRIAL_TOP_K, request.axes.get("vocab_size", 1))
    return int(request.integers(1, most + 1, ())) if request.spec.shape is None else request.integers(1, most + 1)


def _make_token_ids(request: InputRequest) -> torch.Tensor:
    return request.integers(0, request.axes.get("vocab_size", 1))


def _work(request: WorkRequest) -> Work | None:
    """Count every probability once; of drafted tokens, one row of the target for each sequence, where its chain ends."""
    if not request.has("draft_probs", "draft_token_ids", "target_probs"):
        rows = [name for name in ("probs", "logits") if request.has(name)]
        return Work(read=request.read(*rows), written=request.written()) if rows else None
    return Work(
        read=request.read_rows("target_probs", request.shape("target_probs")[0], leading=2), written=request.written()
    )


OP_TYPE = OpType(
    name="sampling",
    kernels=(*(_kernel(form) for form in _FORMS), CHAIN_SPECULATIVE_SAMPLING),
    input_rules={
        "probs": _make_distribution,
        "draft_probs": _make_distribution,
        "target_probs": _make_distribution,
        "draft_token_ids": _make_token_ids,
        "top_k": _make_top_k,
        "top_p": positive(0.3, 1.0),
        "min_p": positive(0.01, 0.3),
        "temperature": positive(0.5, 1.5),
    },
    input_code={
        **dict.fromkeys(("probs", "draft_probs", "target_probs"), "draw.distribution({shape})"),
        "logits": "draw.normal({shape}, {dtype}, scale=4.0)",
        "draft_token_ids": "draw.integers({shape}, 0, {vocab_size}, {dtype})",
        "top_k": "draw.integers({shape}, 1, min({vocab_size}, 64) + 1, {dtype})",
        "top_p": "draw.uniform({shape}, 0.3, 1.0)",
        "min_p": "draw.uniform({shape}, 0.01, 0.3)",
        "temperature": "draw.uniform({shape}, 0.5, 1.5)",
    },
    test_sizes={"batch_size": (16, 128), "num_speculative": (2, 5)},
    axis_sizes={"num_speculative": 4},
    work=_work,
)
