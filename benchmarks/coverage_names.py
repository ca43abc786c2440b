"""What a kernel's name may say of a model: sizes that follow from config.json, TP and EP by the rules written here.

It shares no code with the inventory: a config is read by its raw fields, a name is cut by patterns, and every number in it
has to come out of a rule. `check_name` says which rule is broken, or nothing.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

__all__ = ["Config", "check_name"]

Numbers = dict[str, int]
Linear = tuple[int, int]


class Config:
    """The numbers of a config, by its fields."""

    def __init__(self, path: Path) -> None:
        document = json.loads(path.read_text(encoding="utf-8"))
        self.name = path.stem
        self.fields: dict[str, Any] = {**document, **(document.get("text_config") or {})}
        self.hidden = self.number("hidden_size")
        self.heads = self.number("num_attention_heads")
        # Gemma3TextConfig's default of vocab_size, transformers 5: the published config leaves it out
        self.vocab = self.number("vocab_size", default=262208 if self.model_type == "gemma3_text" else 0)
        self.experts = self.number("num_experts", "n_routed_experts", "num_local_experts", default=0)
        self.top_k = self.number("num_experts_per_tok", default=0)
        self.expert_width = self.number("moe_intermediate_size", "intermediate_size", default=0)

    @property
    def model_type(self) -> str:
        return str(self.fields.get("model_type"))

    def number(self, *names: str, default: int | None = None) -> int:
        """Read the first of these fields that is set."""
        for name in names:
            if isinstance(self.fields.get(name), int | float):
                return int(self.fields[name])
        if default is None:
            raise KeyError(f"{self.name} has none of {names}")
        return default

    @property
    def blocks(self) -> list[dict[str, Any]]:
        """DeciLM's own list of layers."""
        return list(self.fields.get("block_configs") or ())

    def attentions(self) -> Iterator[tuple[int, int, int, int]]:
        """Query heads, KV heads, head width and value width of each kind of softmax attention."""
        width = self.number("head_dim", "attention_head_dim", default=self.hidden // self.heads)
        groups = {block["attention"]["n_heads_in_group"] for block in self.blocks} - {None}
        for kv in {self.heads // group for group in groups} or {self.number("num_key_value_heads", default=self.heads)}:
            yield self.heads, kv, width, self.number("v_head_dim", default=width)
        if "swa_num_attention_heads" in self.fields:  # MiMo-V2's layers with a window have heads of their own
            swa = ("num_attention_heads", "num_key_value_heads", "head_dim", "v_head_dim")
            heads, kv, width, value = (self.number(f"swa_{name}") for name in swa)
            yield heads, kv, width, value

    def widths(self) -> set[int]:
        """Widths of dense MLPs."""
        found = {self.number(name, default=0) for name in ("intermediate_size", "intermediate_size_mlp")}
        for block in self.blocks:  # DeciLM: two thirds of the multiple, rounded up to 256
            if block["ffn"]["ffn_mult"]:
                found.add(math.ceil(int(2 * block["ffn"]["ffn_mult"] * self.hidden / 3) / 256) * 256)
        return found - {0}

    def shared_width(self) -> int:
        """Width of the shared experts together; a Llama-4 layer has one, as wide as a routed one."""
        own = self.number("shared_expert_intermediate_size", "moe_shared_expert_intermediate_size", default=0)
        shared = 1 if self.model_type == "llama4_text" else self.number("n_shared_experts", default=0)
        return own or shared * self.expert_width

    @property
    def is_mla(self) -> bool:
        return "kv_lora_rank" in self.fields

    @property
    def has_output_gate(self) -> bool:
        """Qwen3-Next and Qwen3.5: the query projection is twice as wide, the second half is a gate."""
        return self.model_type == "qwen3_next" or bool(self.fields.get("attn_output_gate"))

    def mla(self) -> tuple[int, int, int, int, int]:
        """Widths of compressed keys, rope, nope and values, and the rank of queries (0: none)."""
        nope = self.number("qk_nope_head_dim")
        value = self.number("v_head_dim", default=self.hidden // self.heads)  # MiniCPM3Config's rule
        ranks = self.number("kv_lora_rank"), self.number("qk_rope_head_dim")
        return *ranks, nope, value, self.number("q_lora_rank", default=0)


def _vocab(config: Config, tp: int) -> int:
    """Rows of embedding and LM head: SGLang pads to 64, and to 64 x TP where that does not divide."""
    padded = math.ceil(config.vocab / 64) * 64
    return (padded if padded % tp == 0 else math.ceil(config.vocab / (64 * tp)) * 64 * tp) // tp


def _kv(heads: int, tp: int) -> int:
    """KV heads on one GPU: cut, and held by several GPUs where there are fewer heads than GPUs."""
    return max(1, heads // tp)


def _linears(config: Config, tp: int) -> Iterator[Linear]:
    """Rows and columns of every plain linear layer on one of TP GPUs, fused as SGLang fuses them."""
    hidden = config.hidden
    yield _vocab(config, tp), hidden
    if config.is_mla:
        yield from _mla_linears(config, tp)
    elif "o_groups" in config.fields:
        yield from _v4_linears(config, tp)
    else:
        for heads, kv, width, value in config.attentions():
            queries = heads // tp * width * (2 if config.has_output_gate else 1)
            yield queries + _kv(kv, tp) * (width + value), hidden
            yield hidden, heads // tp * value
    for width in (*config.widths(), config.shared_width()):
        yield 2 * width // tp, hidden
        yield width // tp, hidden  # without a gate: up_proj alone
        yield hidden, width // tp
    yield config.experts, hidden  # the router
    yield 1, hidden  # the gate of the shared experts
    yield hidden, 2 * hidden  # eh_proj of MTP layers: two hidden states side by side
    if "index_n_heads" in config.fields:
        heads, width = config.number("index_n_heads"), config.number("index_head_dim")
        yield from ((heads * width, config.number("q_lora_rank")), (width, hidden), (heads, hidden))
    yield from _recurrent_linears(config, tp)


def _mla_linears(config: Config, tp: int) -> Iterator[Linear]:
    ckv, rope, nope, value, rank = config.mla()
    heads, hidden = config.heads // tp, config.hidden
    yield rank + ckv + rope, hidden
    yield ckv + rope, hidden
    yield rank, hidden
    yield heads * (nope + rope), rank or hidden
    yield heads * (nope + value), ckv
    yield hidden, heads * value


def _v4_linears(config: Config, tp: int) -> Iterator[Linear]:
    """DeepSeek-V4: one KV head beside the query's rank, a grouped output, compressors twice as wide where they overlap."""
    width, rank = config.number("head_dim"), config.number("q_lora_rank")
    yield rank + width, config.hidden
    yield config.heads // tp * width, rank
    yield config.hidden, config.number("o_groups") // tp * config.number("o_lora_rank")
    for compressed in (width, config.number("index_head_dim")):
        for ratio in set(config.fields["compress_ratios"]) - {0}:
            yield 2 * compressed * (2 if ratio == 4 else 1), config.hidden


def _recurrent_linears(config: Config, tp: int) -> Iterator[Linear]:
    if "linear_num_value_heads" in config.fields:
        keys = config.number("linear_num_key_heads") // tp * config.number("linear_key_head_dim")
        heads = config.number("linear_num_value_heads") // tp
        values = heads * config.number("linear_value_head_dim")
        yield from ((2 * keys + 2 * values, config.hidden), (2 * heads, config.hidden), (config.hidden, values))
    if "mamba_num_heads" in config.fields:
        heads, inner, states = _mamba(config, tp)
        yield from ((2 * inner + states + heads, config.hidden), (config.hidden, inner))


def _mamba(config: Config, tp: int) -> tuple[int, int, int]:
    """Heads, their width in all, and the width of B and C, on one of TP GPUs."""
    heads = config.number("mamba_num_heads") // tp
    states = 2 * max(1, config.number("n_groups") // tp) * config.number("ssm_state_size")
    return heads, heads * config.number("mamba_head_dim"), states


def _any(options: Iterator[bool] | list[bool], what: str) -> str:
    return "" if any(options) else what


def _gqa(config: Config, n: Numbers, tp: int, _ep: int) -> str:
    kinds = list(config.attentions())
    same = (
        n["h"] == heads // tp and n["kv"] == _kv(kv, tp) and n["d"] == width and n.get("vo", width) == value
        for heads, kv, width, value in kinds
    )
    return _any(same, f"heads/{tp}, KV heads/{tp}, widths: {kinds}") or _options(config, n)


def _options(config: Config, n: Numbers) -> str:
    """Window, chunk and cap, which the config states; FlashInfer counts the keys to the left of the query.

    SGLang 0.5.23 takes one off the window (gpt_oss.py:132, gemma3_causal.py:65), but not MiMo-V2's (mimo_v2.py:891).
    """
    window = config.number("sliding_window", default=0)
    left = window if config.model_type == "mimo_v2_flash" else window - 1
    rules = {
        "w": left,
        "chunk": config.number("attention_chunk_size", default=0),
        "cap": config.number("attn_logit_softcapping", default=0),
    }
    return next((f"{axis}: {rule}" for axis, rule in rules.items() if n.get(axis, rule) != rule), "")


def _cache(config: Config, n: Numbers, tp: int, _ep: int) -> str:
    same = (
        n["kv"] == _kv(kv, tp) and (n["d"], n.get("vo", n["d"])) == (width, value)
        for _, kv, width, value in config.attentions()
    )
    return _any(same, f"KV heads/{tp} and widths: {list(config.attentions())}")


def _merge(config: Config, n: Numbers, tp: int, _ep: int) -> str:
    values = {config.mla()[3]} if config.is_mla else {value for *_, value in config.attentions()}
    heads = {config.heads // tp}
    return _any([n["h"] in heads and n["d"] in values], f"heads/{tp} {heads} and value width {values}")


def _mla(config: Config, n: Numbers, tp: int, _ep: int) -> str:
    ckv, rope, nope, value, _ = config.mla()
    rules = {"h": config.heads // tp, "ckv": ckv, "kpe": rope, "qk": nope + rope, "vo": value}
    rules["topk"] = config.number("index_topk", default=0)
    return _equal(n, rules)


def _equal(n: Numbers, rules: Numbers) -> str:
    return next((f"{axis} should be {rule}" for axis, rule in rules.items() if n.get(axis, rule) != rule), "")


def _gemm(config: Config, n: Numbers, tp: int, _ep: int) -> str:
    return _any([(n["n"], n["k"]) in set(_linears(config, tp))], f"no linear layer of this size with TP {tp}")


def _bmm(config: Config, n: Numbers, tp: int, _ep: int) -> str:
    if config.is_mla:  # the two halves of kv_b_proj, absorbed
        ckv, _, nope, value, _ = config.mla()
        return _any(
            [(n["b"], n["n"], n["k"]) in ((config.heads // tp, ckv, nope), (config.heads // tp, value, ckv))],
            "kv_b_proj",
        )
    groups = config.number("o_groups")
    per_group = config.heads // groups * config.number("head_dim")
    return _equal(n, {"b": groups // tp, "n": config.number("o_lora_rank"), "k": per_group})


def _moe(config: Config, n: Numbers, tp: int, ep: int) -> str:
    local = tp // ep if tp >= ep else 1
    width = config.expert_width
    rules = {"topk": config.top_k, "e": config.experts // ep, "h": config.hidden, "i": width // local}
    if config.fields.get("quantization_config", {}).get("quant_method") == "mxfp4":
        rules["i"] = math.ceil(width / 32 / local) * 32  # whole blocks of 32 (sglang/srt/models/gpt_oss.py:958)
    rules |= {"ng": config.number("n_group", default=0), "kg": config.number("topk_group", default=0)}
    rules["limit"] = config.number("swiglu_limit", default=0)
    return _equal(n, rules)


def _routing(config: Config, n: Numbers, tp: int, _ep: int) -> str:
    return _moe(config, n, tp, 1)


def _input_width(config: Config, n: Numbers, tp: int, _ep: int) -> str:
    return _any([n["k"] in {k for _, k in _linears(config, tp)}], "no linear layer reads this width")


def _activation(config: Config, n: Numbers, tp: int, _ep: int) -> str:
    widths = {width // tp for width in (*config.widths(), config.shared_width())}
    return _any([n["i"] in widths], f"MLP width/{tp}: {widths}")


def _norm(config: Config, n: Numbers, tp: int, _ep: int) -> str:
    widths = {config.hidden}
    if config.is_mla:
        widths |= {config.mla()[0], config.mla()[4]}
    for heads, kv, width, _ in [] if config.is_mla else config.attentions():
        widths |= {width, heads // tp * width, _kv(kv, tp) * width, config.number("q_lora_rank", default=width)}
    widths.add(config.number("index_head_dim", default=config.hidden))
    return _any([n["h"] in widths], f"hidden size, head widths or ranks: {widths}")


def _gated_norm(config: Config, n: Numbers, tp: int, _ep: int) -> str:
    if "mamba_num_heads" in config.fields:
        inner = _mamba(config, 1)[1]
        return _equal(n, {"h": inner // tp, "g": inner // config.number("n_groups")})
    return _equal(n, {"h": config.number("linear_value_head_dim")})


def _rope(config: Config, n: Numbers, _tp: int, _ep: int) -> str:
    pairs = set()
    if "qk_rope_head_dim" in config.fields:
        rope = config.number("qk_rope_head_dim")
        pairs |= {(rope, rope), (config.number("index_head_dim", default=rope), rope)}
    else:
        share = config.fields.get(
            "partial_rotary_factor", (config.fields.get("rope_parameters") or {}).get("partial_rotary_factor", 1)
        )
        for _, _, width, _ in config.attentions():
            pairs.add((width, config.number("rotary_dim", default=int(width * share))))
    return _any([(n["d"], n["rd"]) in pairs], f"head width and rotated part: {pairs}")


def _sampling(config: Config, n: Numbers, _tp: int, _ep: int) -> str:
    return _equal(n, {"v": config.vocab})


def _embedding(config: Config, n: Numbers, tp: int, _ep: int) -> str:
    return _equal(n, {"v": _vocab(config, tp), "d": config.hidden})


def _gdn(config: Config, n: Numbers, tp: int, _ep: int) -> str:
    heads = {"qk": config.number("linear_num_key_heads") // tp, "v": config.number("linear_num_value_heads") // tp}
    return _equal(n, {**heads, "d": config.number("linear_key_head_dim")})


def _ssm(config: Config, n: Numbers, tp: int, _ep: int) -> str:
    groups = max(1, config.number("n_groups") // tp)
    sizes = {"d": config.number("mamba_head_dim"), "s": config.number("ssm_state_size"), "ng": groups}
    return _equal(n, {**sizes, "h": config.number("mamba_num_heads") // tp})


def _conv(config: Config, n: Numbers, tp: int, _ep: int) -> str:
    if "mamba_num_heads" in config.fields:
        _, inner, states = _mamba(config, tp)
        return _equal(n, {"c": inner + states, "w": config.number("conv_kernel")})
    keys = config.number("linear_num_key_heads") * config.number("linear_key_head_dim")
    values = config.number("linear_num_value_heads") * config.number("linear_value_head_dim")
    return _equal(n, {"c": (2 * keys + values) // tp, "w": config.number("linear_conv_kernel_dim")})


def _indexer(config: Config, n: Numbers, _tp: int, _ep: int) -> str:
    sizes = {"h": config.number("index_n_heads"), "d": config.number("index_head_dim")}
    return _equal(n, {**sizes, "topk": config.number("index_topk")})


def _v4_attention(config: Config, n: Numbers, tp: int, _ep: int) -> str:
    """Pages of compressed entries hold as many tokens as those of the window, at four or 128 tokens an entry."""
    rules = {"h": config.heads // tp, "d": config.number("head_dim"), "win": config.number("sliding_window")}
    rules["topk"] = config.number("index_topk")
    pages = {n.get("ps", 0) // ratio for ratio in config.fields["compress_ratios"] if ratio}
    return _equal(n, rules) or _any([n.get("cps") in {None, *pages}], f"page of entries: {pages}")


def _compress(config: Config, n: Numbers, _tp: int, _ep: int) -> str:
    widths = {config.number("head_dim"), config.number("index_head_dim")}
    return _any([n["d"] in widths and n["r"] in config.fields["compress_ratios"]], f"{widths}, compress_ratios")


def _streams(config: Config, n: Numbers, _tp: int, _ep: int) -> str:
    """Hyper-connections: weights into a sublayer, out of it, and a mixing matrix of the streams."""
    streams = config.number("hc_mult")
    mixes = streams * (streams + 2)
    return _equal(n, {"hc": streams, "h": config.hidden, "mix": mixes, "n": mixes, "k": streams * config.hidden})


def _hash(config: Config, n: Numbers, _tp: int, _ep: int) -> str:
    return _equal(n, {"e": config.experts, "k": config.top_k, "v": config.vocab})


Rule = Callable[[Config, Numbers, int, int], str]
_GQA = r"gqa_(?:paged_decode|paged_prefill_causal|paged_prefill_full|ragged_prefill_causal)"
_ROUTINGS = "default|renorm|renormalize|ds|ds_routing|llama4|sparsemixer|sigmoid_bias|sqrtsoftplus_bias|given"
_RULES: tuple[tuple[str, str, Rule], ...] = (
    (_GQA, "h kv d vo? ps? w? chunk? cap? kvfp8? sinks?", _gqa),
    ("append_paged_kv_cache", "kv d vo? ps kvfp8?", _cache),
    ("merge_state", "h d", _merge),
    (r"mla_(?:paged_decode|paged_prefill_causal)|dsa_sparse_attention", "h ckv kpe topk? ps kvfp8?", _mla),
    ("mla_ragged_prefill_(?:causal|full)", "h qk vo", _mla),
    ("append_paged_mla_kv_cache", "ckv kpe ps kvfp8?", _mla),
    (r"gemm(?:_bias|_fp8_block_scale|_fp8_channel|_fp8_per_tensor|_nvfp4|_w4a16)?", "n k", _gemm),
    ("bmm", "b n k", _bmm),
    (
        rf"moe_(?:bf16|fp8_block_scale|fp8_per_tensor|mxfp4|nvfp4|w4a16)_(?:{_ROUTINGS})",
        "topk ng? kg? e h i limit? relu2? swiglu_oai? bias?",
        _moe,
    ),
    (rf"moe_routing_(?:{_ROUTINGS})", "topk ng? kg? e", _routing),
    ("hash_topk", "e k v", _hash),
    ("fp8_quantize_1x128|nvfp4_quantize", "k", _input_width),
    ("silu_and_mul|gelu_tanh_and_mul|gelu_and_mul|relu2", "i", _activation),
    ("(?:gemma_)?(?:fused_add_)?rmsnorm|rmsnorm_noweight|layernorm", "h", _norm),
    ("rmsnorm_gated(?:_gate_first)?", "h g?", _gated_norm),
    ("rope_with_cos_sin_cache_(?:neox|gptj)_style", "d rd", _rope),
    (r"(?:chain_speculative|softmax)_sampling|(?:top|min)_\w+?", "v", _sampling),
    ("embedding", "v d", _embedding),
    ("gdn_(?:decode|prefill|mtp)", "qk v d k_last?", _gdn),
    ("mamba_(?:chunk_scan|ssu_decode)", "h d s ng", _ssm),
    ("causal_conv1d_(?:decode|prefill)(?:_bias)?", "c w", _conv),
    ("dsa_topk_indexer_fp8", "h d topk ps", _indexer),
    ("dsv4_(?:window|compressed)_attention", "h d win topk? all? ps cps?", _v4_attention),
    ("kv_compress", "d r overlap?", _compress),
    ("mhc_(?:head|post|pre_big_fuse|prenorm_gemm)", "hc? h? mix? n? k?", _streams),
)
_FLAGS = ("kvfp8", "sinks", "relu2", "swiglu_oai", "bias", "k_last", "all", "overlap")


def _compile(stem: str, axes: str) -> re.Pattern[str]:
    parts = []
    for axis in axes.split():
        name = axis.rstrip("?")
        value = "" if name in _FLAGS else rf"(?P<{name}>\d+)"
        parts.append(f"(?:_{name}{value}){'?' if axis.endswith('?') else ''}")
    return re.compile(f"(?:{stem}){''.join(parts)}")


_PATTERNS = tuple((_compile(stem, axes), rule) for stem, axes, rule in _RULES)


def check_name(config: Config, name: str, tp: int, ep: int, page_sizes: tuple[int, ...]) -> str:
    """Say what in a name contradicts the config at this TP and EP; empty if every number follows from it."""
    for pattern, rule in _PATTERNS:
        match = pattern.fullmatch(name)
        if match is None:
            continue
        numbers = {axis: int(value) for axis, value in match.groupdict().items() if value is not None}
        if numbers.get("ps", 0) not in (page_sizes or (0,)):
            return f"ps: the row says page size {page_sizes}"
        try:
            return rule(config, numbers, tp, ep)
        except KeyError as error:
            return f"the config lacks what such a kernel needs: {error}"
    return "no rule knows this name"
