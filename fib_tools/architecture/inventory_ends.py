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

_EMBEDDING_OF_MOST = (
    "the cut of the embedding with DP attention is that of most model files in SGLang 0.5.23; a few older ones "
    "(models/llama.py) do not ask for the attention TP, and SGLANG_ENABLE_EMBED_REPLICATION keeps it whole for DeepSeek"
)

_KEEPS_EMBEDDING_WHOLE = (
    "BailingMoeV2_5",
    "BailingMoeV3",
    "DeepseekV4",
    "ExaoneMoE",
    "ExaoneMoe",
    "InternS2Mobius",
    "Qwen3_5",
    "SarvamMLA",
    "Step3p5",
)
"""Beginnings of the architectures whose file in SGLang 0.5.23 says `enable_tp=not is_dp_attention_enabled()`, such as
`models/deepseek_v4.py:3773` and `models/qwen3_5.py:1872`.
"""


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
    """Note the embedding and the LM head, both cut along the padded vocabulary, though not always alike."""
    _need_embedding(site)
    _need_lm_head(site)
    cap = site.facts.final_softcap
    if cap is not None:
        function = Sight(kind=OpKind.ACTIVATION, attributes=(("function", "tanh"), ("size", site.facts.vocab_size)))
        site.explain(function, f"logits are capped at {cap} by a tanh, an elementwise operation of its own")


def _need_embedding(site: Site) -> None:
    facts, point = site.facts, site.point
    is_whole = facts.architecture.startswith(_KEEPS_EMBEDDING_WHOLE)
    tp = 1 if point.has_dp_attention and is_whole else point.attention_tp
    embedding: dict[str, ParameterValue] = {
        "vocab_size": cut_vocabulary(facts.vocab_size, tp),
        "hidden_size": facts.hidden_size,
    }
    top = site.prefix.rpartition(".")[0]
    claim = Claim(module=f"{top}.embed_tokens", facts=("vocab_size", "hidden_size"), tp=tp)
    if point.has_dp_attention:
        claim = replace(claim, engine=_describe_embedding(is_whole=is_whole))
        _note_dp_attention(site, embedding_tp=tp)
        if not is_whole:
            site.note(_EMBEDDING_OF_MOST)
    site.need("embedding", embedding, replace(claim, sights=(Sight(kind=OpKind.EMBEDDING),)))


def _describe_embedding(*, is_whole: bool) -> str:
    if is_whole:
        return "with DP attention every GPU has the whole embedding: enable_tp=not is_dp_attention_enabled()"
    return (
        "with DP attention the embedding is cut by the attention TP: "
        "sglang/srt/layers/vocab_parallel_embedding.py:185, use_attn_tp_group"
    )


def _note_dp_attention(site: Site, *, embedding_tp: int) -> None:
    point = site.point
    cut = point.attention_tp
    embedding = "and the embedding are" if embedding_tp == cut else "are"
    whole = "" if embedding_tp == cut else "; the embedding is whole on every GPU and carries tp 1"
    site.note(
        f"{point.describe()}: attention kernels {embedding} cut by an attention TP of {cut} (tp {point.tp} / dp "
        f"{point.dp}) and carry tp {cut}{whole}; the LM head stays cut by tp {point.tp}"
    )


def _need_lm_head(site: Site) -> None:
    facts, tp = site.facts, site.point.tp
    rows = cut_vocabulary(facts.vocab_size, tp)
    claim = Claim(facts=("vocab_size", "hidden_size"), tp=tp)
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
