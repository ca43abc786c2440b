"""Needs outside the mixers and MLPs: hidden-state norms, embedding, LM head, sampling, multi-token prediction."""

from __future__ import annotations

from dataclasses import replace

from fib_tools.architecture.facts_schema import NormKind
from fib_tools.architecture.fusion import Cut, FusedLinear, LinearPart, replicated
from fib_tools.architecture.fusion_norms import list_hidden_norms
from fib_tools.architecture.inventory_evidence import Claim, Sight
from fib_tools.architecture.inventory_linears import need_gemm
from fib_tools.architecture.inventory_needs import Site
from fib_tools.architecture.parallelism import cut_vocabulary
from fib_tools.architecture.quantization import QuantizationScheme
from fib_tools.architecture.structure_schema import OpKind
from fib_tools.model.kernel import ParameterValue

__all__ = ["need_ends", "need_hidden_norms", "need_mtp", "need_sampling"]

_SAMPLING = (
    "top_k_sampling_from_probs",
    "top_p_sampling_from_probs",
    "top_k_top_p_sampling_from_probs",
    "min_p_sampling_from_probs",
    "top_k_renorm_probs",
    "top_p_renorm_probs",
    "softmax_sampling",
)

_DEFAULT_DRAFT_TOKENS = 4
"""`--speculative-num-draft-tokens` in every MTP configuration of the cookbook: the root and three guesses."""


def need_hidden_norms(site: Site) -> None:
    """Note the norms of the hidden state, fused with the residual add where SGLang fuses them."""
    norm = site.facts.norm
    sight = Sight(kind=OpKind.NORM, attributes=(("size", site.facts.hidden_size), ("kind", norm.kind.value)))
    parameters: dict[str, ParameterValue] = {"hidden_size": site.facts.hidden_size, "eps": norm.eps}
    if norm.kind == NormKind.LAYERNORM:
        parameters["bias"] = norm.has_bias
    top = site.prefix.rpartition(".")[0]
    for hidden in list_hidden_norms(site.facts):
        module = site.path(hidden.name) if hidden.layers else f"{top}.{hidden.name}"
        claim = Claim(module=module, layers=hidden.layers, facts=("hidden_size", "norm.eps"), sights=(sight,))
        if hidden.is_fused:
            claim = replace(claim, engine="the residual add before the norm is part of it")
        site.need(_norm_kernel(norm.kind, is_fused=hidden.is_fused), parameters, claim)


def _norm_kernel(kind: NormKind, *, is_fused: bool) -> str:
    if kind == NormKind.LAYERNORM:
        return "layernorm"
    prefix = "gemma_" if kind == NormKind.GEMMA_RMSNORM else ""
    return f"{prefix}{'fused_add_' if is_fused else ''}rmsnorm"


def need_ends(site: Site) -> None:
    """Note the embedding and the LM head, both cut along the padded vocabulary."""
    facts, tp = site.facts, site.point.tp
    rows = cut_vocabulary(facts.vocab_size, tp)
    top = site.prefix.rpartition(".")[0]
    embedding: dict[str, ParameterValue] = {"vocab_size": rows, "hidden_size": facts.hidden_size}
    claim = Claim(module=f"{top}.embed_tokens", facts=("vocab_size", "hidden_size"), tp=tp)
    site.need("embedding", embedding, replace(claim, sights=(Sight(kind=OpKind.EMBEDDING),)))
    part = LinearPart(path="lm_head", role="lm_head", total=facts.vocab_size, local=rows)
    linear = FusedLinear(
        name="lm_head",
        parts=(part,),
        total_k=facts.hidden_size,
        k=facts.hidden_size,
        cut=Cut.COLUMN,
        bias=facts.lm_head_bias,
        checks_blocks=False,
    )
    scheme = QuantizationScheme.NONE if facts.tied_embeddings else site.quantization.get_scheme("lm_head")
    sight = Sight(kind=OpKind.LINEAR, attributes=(("n", facts.vocab_size), ("k", facts.hidden_size)))
    need_gemm(site, linear, scheme, replace(claim, module="lm_head", sights=(sight,), attribute="lm_head"))
    if facts.final_softcap is not None:
        cap = Sight(kind=OpKind.ACTIVATION, attributes=(("function", "tanh"), ("size", facts.vocab_size)))
        site.explain(cap, f"logits are capped at {facts.final_softcap} by a tanh, an elementwise operation of its own")


def need_sampling(site: Site) -> None:
    """Note the sampling family over the whole vocabulary, which every GPU gathers."""
    claim = Claim(
        module="sampler", facts=("vocab_size",), engine="sampling follows every model, on the gathered logits"
    )
    for kernel in _SAMPLING:
        site.need(kernel, {"vocab_size": site.facts.vocab_size}, claim)
    joint: dict[str, ParameterValue] = {"vocab_size": site.facts.vocab_size, "filter_apply_order": "joint"}
    engine = "SGLang filters by top-k and top-p at once, sglang/srt/layers/sampler.py:439"
    site.need("top_k_top_p_sampling_from_probs", joint, replace(claim, engine=engine))


def need_mtp(site: Site) -> None:
    """Note what multi-token prediction adds to kernels that the last layer already has."""
    facts, point = site.facts, site.point
    if not facts.num_mtp_layers and not point.draft_tokens:
        return
    tokens = (point.draft_tokens or _DEFAULT_DRAFT_TOKENS) - 1
    engine = "speculative decoding accepts or rejects a chain of draft tokens"
    if tokens:
        parameters: dict[str, ParameterValue] = {"vocab_size": facts.vocab_size, "num_speculative_tokens": tokens}
        site.need(
            "chain_speculative_sampling", parameters, Claim(module="sampler", facts=("vocab_size",), engine=engine)
        )
    draft_model = site.evidence.find_draft_model() if point.drafts_itself else None
    if not facts.num_mtp_layers and draft_model is None:
        return
    claim = Claim(
        module="mtp.eh_proj",
        facts=("num_mtp_layers", "hidden_size"),
        engine=f"the MTP layer joins the normed embedding and hidden state{f' ({draft_model})' if draft_model else ''}",
    )
    joint = replicated("eh_proj", (("mtp.eh_proj", "eh_proj", facts.hidden_size),), 2 * facts.hidden_size)
    need_gemm(site, joint, QuantizationScheme.NONE, claim)
    if facts.norm.kind != NormKind.LAYERNORM:
        norms: dict[str, ParameterValue] = {"hidden_size": facts.hidden_size, "eps": facts.norm.eps}
        kernel = _norm_kernel(facts.norm.kind, is_fused=False)
        for name in ("enorm", "hnorm"):
            site.need(kernel, norms, replace(claim, module=f"mtp.{name}"))
