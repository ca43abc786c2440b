"""Which layer is of which kind: the many ways configs say so, in one list of layers."""

from __future__ import annotations

from typing import Any, NamedTuple

from fib_tools.architecture.facts_reader import LIMITS, FieldReader
from fib_tools.architecture.facts_schema import MixerKind, MlpKind
from fib_tools.architecture.quirks import Quirk

__all__ = ["EXPERT_COUNT_FIELDS", "LayerPlan", "read_layer_plans"]

EXPERT_COUNT_FIELDS = ("n_routed_experts", "num_local_experts", "num_experts", "moe_num_experts")

_LAYER_TYPES = {
    "full_attention": MixerKind.FULL,
    "attention": MixerKind.FULL,
    "sliding_attention": MixerKind.SLIDING,
    "chunked_attention": MixerKind.CHUNKED,
    "linear_attention": MixerKind.GDN,
    "mamba": MixerKind.MAMBA2,
    "moe": MixerKind.NONE,
    "mlp": MixerKind.NONE,
    "compressed_sparse_attention": MixerKind.COMPRESSED_SPARSE,
    "heavily_compressed_attention": MixerKind.COMPRESSED_HEAVY,
}
_PATTERN_LETTERS = {
    "M": (MixerKind.MAMBA2, MlpKind.NONE),
    "*": (MixerKind.FULL, MlpKind.NONE),
    "-": (MixerKind.NONE, MlpKind.DENSE),
    "E": (MixerKind.NONE, MlpKind.MOE),
}
_COMPRESS_RATES = {0: MixerKind.SLIDING, 4: MixerKind.COMPRESSED_SPARSE, 128: MixerKind.COMPRESSED_HEAVY}


class LayerPlan(NamedTuple):
    """A layer before its facts are read."""

    mixer: MixerKind
    mlp: MlpKind
    has_rope: bool = True
    kv_heads: int | None = None
    """Where every layer has its own number (DeciLM)."""
    intermediate_size: int | None = None
    """The same."""


def read_layer_plans(reader: FieldReader, quirk: Quirk, *, hidden_size: int) -> tuple[LayerPlan, ...]:
    """Read the kind of each layer.

    Raises:
        ConfigError: naming the list that is too short, or the entry that means nothing.
    """
    pattern = reader.find_text("hybrid_override_pattern", fact="layers")
    if pattern is not None:
        return _plan_pattern(reader, pattern)
    count = reader.get_int(
        "num_hidden_layers", "n_layers", "num_layers", "n_layer", fact="num_layers", limit=LIMITS["layers"]
    )
    blocks = reader.find_list("block_configs", fact="layers")
    if blocks is not None:
        return _plan_blocks(reader, blocks, count=count, hidden_size=hidden_size)
    mixers = _read_mixers(reader, quirk, count)
    mlps = _read_mlps(reader, count)
    rope = _read_rope_layers(reader, quirk, mixers)
    return tuple(LayerPlan(mixer, mlp, has_rope) for mixer, mlp, has_rope in zip(mixers, mlps, rope, strict=True))


def _plan_pattern(reader: FieldReader, pattern: str) -> tuple[LayerPlan, ...]:
    count = reader.find_int("num_hidden_layers", fact="num_layers", limit=LIMITS["layers"])
    if count is not None and count != len(pattern):
        raise reader.fail("hybrid_override_pattern", f"{len(pattern)} letters, but num_hidden_layers is {count}")
    unknown = sorted(set(pattern) - set(_PATTERN_LETTERS))
    if unknown:
        raise reader.fail("hybrid_override_pattern", f"letters that mean nothing: {''.join(unknown)!r}")
    return tuple(LayerPlan(*_PATTERN_LETTERS[letter], has_rope=False) for letter in pattern)


def _plan_blocks(reader: FieldReader, blocks: list[Any], *, count: int, hidden_size: int) -> tuple[LayerPlan, ...]:
    if len(blocks) != count:
        raise reader.fail("block_configs", f"{len(blocks)} entries, but num_hidden_layers is {count}")
    heads = reader.get_int("num_attention_heads", fact="num_heads", limit=LIMITS["heads"])
    plans = []
    for index, block in enumerate(blocks):
        where = f"block_configs[{index}]"
        if not isinstance(block, dict) or not all(isinstance(block.get(part), dict) for part in ("attention", "ffn")):
            raise reader.fail(where, "not an object with attention and ffn")
        attention, ffn = (
            FieldReader(block[part], path=f"{reader.where(where)}.{part}", defaults={}, reason="DeciLM")
            for part in ("attention", "ffn")
        )
        plans.append(_plan_block(attention, ffn, heads=heads, hidden_size=hidden_size))
    return tuple(plans)


def _plan_block(attention: FieldReader, ffn: FieldReader, *, heads: int, hidden_size: int) -> LayerPlan:
    for part in (attention, ffn):
        if part.find_bool("replace_with_linear", fact="replace"):
            raise part.fail("replace_with_linear", "layers replaced by a linear one are not supported")
    group = attention.find_int("n_heads_in_group", fact="group", limit=heads)
    is_idle = bool(attention.find_bool("no_op", fact="no_op")) or group is None
    if group is not None and heads % group:
        raise attention.fail("n_heads_in_group", f"{group} does not divide {heads} heads")
    mixer = MixerKind.NONE if is_idle else MixerKind.FULL
    kv_heads = None if is_idle or group is None else heads // group
    if ffn.find_bool("no_op", fact="no_op"):
        return LayerPlan(mixer, MlpKind.NONE, kv_heads=kv_heads)
    mult = ffn.get_float("ffn_mult", fact="ffn_mult", high=64.0)
    # DeciLM's rule: two thirds of the multiple, rounded up to the next 256.
    width = -(-int(2 * mult * hidden_size / 3) // 256) * 256
    return LayerPlan(mixer, MlpKind.DENSE, kv_heads=kv_heads, intermediate_size=width)


def _read_mixers(reader: FieldReader, quirk: Quirk, count: int) -> list[MixerKind]:
    mixers = _by_layer_types(reader, quirk, count)
    if mixers is not None:
        return mixers
    for read in (_by_codes, _by_compress_ratios, _by_kda_layers, _by_interval, _by_chunks):
        mixers = read(reader, count)
        if mixers is not None:
            return mixers
    return _by_window(reader, quirk, count)


def _cut(reader: FieldReader, name: str, entries: list[Any], count: int) -> list[Any]:
    if len(entries) < count:
        raise reader.fail(name, f"{len(entries)} entries, but there are {count} layers")
    return entries[:count]


def _by_layer_types(reader: FieldReader, quirk: Quirk, count: int) -> list[MixerKind] | None:
    entries = reader.find_list("layer_types", fact="layers")
    if entries is None:
        return None
    unknown = [entry for entry in entries if not isinstance(entry, str) or entry not in _LAYER_TYPES]
    if unknown:
        raise reader.fail("layer_types", f"a kind of layer that means nothing here: {unknown[0]!r}")
    kinds = [_LAYER_TYPES[entry] for entry in _cut(reader, "layer_types", entries, count)]
    return [quirk.linear_kind if kind is MixerKind.GDN else kind for kind in kinds]


def _by_codes(reader: FieldReader, count: int) -> list[MixerKind] | None:
    for name, kinds in (
        ("hybrid_layer_pattern", (MixerKind.FULL, MixerKind.SLIDING)),
        ("attn_type_list", (MixerKind.LIGHTNING, MixerKind.FULL)),
    ):
        entries = reader.find_list(name, fact="layers")
        if entries is None:
            continue
        cut = _cut(reader, name, entries, count)
        if any(type(entry) is not int or entry not in (0, 1) for entry in cut):
            raise reader.fail(name, "not a list of 0 and 1")
        return [kinds[entry] for entry in cut]
    return None


def _by_compress_ratios(reader: FieldReader, count: int) -> list[MixerKind] | None:
    entries = reader.find_list("compress_ratios", fact="layers")
    if entries is None:
        return None
    cut = _cut(reader, "compress_ratios", entries, count)
    if any(type(entry) is not int or entry not in _COMPRESS_RATES for entry in cut):
        raise reader.fail("compress_ratios", f"not a list of {sorted(_COMPRESS_RATES)}")
    return [_COMPRESS_RATES[entry] for entry in cut]


def _by_kda_layers(reader: FieldReader, count: int) -> list[MixerKind] | None:
    linear = reader.find_object("linear_attn_config", fact="linears.kda")
    if linear is None:
        return None
    layers = linear.find_list("kda_layers", fact="layers") or []
    # Kimi-Linear counts layers from 1.
    return [MixerKind.KDA if index + 1 in layers else MixerKind.FULL for index in range(count)]


def _by_interval(reader: FieldReader, count: int) -> list[MixerKind] | None:
    interval = reader.find_int("full_attention_interval", fact="layers", limit=LIMITS["layers"])
    if interval is None:
        return None
    return [MixerKind.GDN if (index + 1) % interval else MixerKind.FULL for index in range(count)]


def _by_chunks(reader: FieldReader, count: int) -> list[MixerKind] | None:
    if not reader.has("no_rope_layer_interval") or not reader.has("attention_chunk_size"):
        return None
    return [MixerKind.CHUNKED if with_rope else MixerKind.FULL for with_rope in _llama4_rope(reader, count)]


def _llama4_rope(reader: FieldReader, count: int) -> list[bool]:
    listed = reader.find_list("no_rope_layers", fact="layers.rope")
    if listed:
        return [bool(entry) for entry in _cut(reader, "no_rope_layers", listed, count)]
    interval = reader.get_int("no_rope_layer_interval", fact="layers.rope", limit=LIMITS["layers"])
    return [bool((index + 1) % interval) for index in range(count)]


def _by_window(reader: FieldReader, quirk: Quirk, count: int) -> list[MixerKind]:
    full = [MixerKind.FULL] * count
    if not reader.has("sliding_window") or quirk.window_rule == "never":
        return full
    # Configs without the switch mean that the window is on, except where the family starts it after some layers.
    is_on = reader.find_bool("use_sliding_window", fact="window.on")
    if is_on is False or (is_on is None and quirk.window_rule == "after_max_window_layers"):
        return full
    window = reader.get_int("sliding_window", fact="window", limit=LIMITS["positions"])
    positions = reader.find_int("max_position_embeddings", fact="max_position_embeddings", limit=LIMITS["positions"])
    if positions is not None and window >= positions:
        reader.explain("window", f"sliding_window={window} is no less than max_position_embeddings={positions}: none")
        return full
    return [_slide(reader, quirk, index) for index in range(count)]


def _slide(reader: FieldReader, quirk: Quirk, index: int) -> MixerKind:
    if quirk.window_rule == "even":
        is_sliding = index % 2 == 0
    elif quirk.window_rule == "after_max_window_layers":
        start = reader.find_int("max_window_layers", fact="window.start", limit=LIMITS["positions"], low=0)
        is_sliding = index >= (start or 0)
    elif quirk.window_rule == "pattern":
        interval = _read_window_interval(reader)
        is_sliding = bool(interval) and bool((index + 1) % interval)
    else:
        is_sliding = True
    return MixerKind.SLIDING if is_sliding else MixerKind.FULL


def _read_window_interval(reader: FieldReader) -> int:
    found = reader.find(("sliding_window_pattern",), fact="window.interval")
    if found is not None and isinstance(found[1], str):
        # EXAONE-4 writes the period out, such as LLLG.
        return len(found[1])
    return reader.find_int("sliding_window_pattern", fact="window.interval", limit=LIMITS["layers"]) or 0


def _read_rope_layers(reader: FieldReader, quirk: Quirk, mixers: list[MixerKind]) -> list[bool]:
    if not quirk.has_rope:
        return [False] * len(mixers)
    if reader.has("no_rope_layer_interval"):
        return _llama4_rope(reader, len(mixers))
    if quirk.rope_on_sliding_only and MixerKind.SLIDING in mixers:
        return [mixer is MixerKind.SLIDING for mixer in mixers]
    return [True] * len(mixers)


def _read_mlps(reader: FieldReader, count: int) -> list[MlpKind]:
    if reader.find_int(*EXPERT_COUNT_FIELDS, fact="moe.num_experts", limit=LIMITS["experts"], low=0) in (None, 0):
        return [MlpKind.DENSE] * count
    kinds = reader.find_list("mlp_layer_types", fact="layers.mlp")
    if kinds is not None:
        cut = _cut(reader, "mlp_layer_types", kinds, count)
        return [MlpKind.DENSE if entry == "dense" else MlpKind.MOE for entry in cut]
    listed = reader.find_list("moe_layer_freq", fact="layers.mlp") if _is_list(reader, "moe_layer_freq") else None
    if listed is not None:
        cut = _cut(reader, "moe_layer_freq", listed, count)
        return [MlpKind.MOE if entry else MlpKind.DENSE for entry in cut]
    return [_pick_mlp(reader, index) for index in range(count)]


def _is_list(reader: FieldReader, name: str) -> bool:
    found = reader.find((name,), fact="layers.mlp")
    return found is not None and isinstance(found[1], list)


def _pick_mlp(reader: FieldReader, index: int) -> MlpKind:
    dense_layers = reader.find_list("mlp_only_layers", fact="layers.mlp") or []
    first_dense = reader.find_int("first_k_dense_replace", fact="layers.mlp", limit=LIMITS["layers"], low=0) or 0
    every = reader.find_int("moe_layer_freq", fact="layers.mlp", limit=LIMITS["layers"]) or 1
    sparse_step = reader.find_int("decoder_sparse_step", fact="layers.mlp", limit=LIMITS["layers"]) or 1
    interleave = reader.find_int("interleave_moe_layer_step", fact="layers.mlp", limit=LIMITS["layers"]) or 1
    is_moe = (
        index not in dense_layers
        and index >= first_dense
        and index % every == 0
        and (index + 1) % sparse_step == 0
        and (index + 1) % interleave == 0
    )
    return MlpKind.MOE if is_moe else MlpKind.DENSE
