"""Reading a config.json into facts.

>>> facts = read_facts(config, name="Qwen/Qwen3-8B")
>>> facts.attentions["full"].num_kv_heads
8
>>> facts.provenance["attentions.full.num_kv_heads"]
'num_key_value_heads=8'
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fib_tools.architecture.facts_attention import AttentionReader
from fib_tools.architecture.facts_layers import LayerPlan, read_layer_plans
from fib_tools.architecture.facts_linear import read_linear
from fib_tools.architecture.facts_moe import ACTIVATION_FIELDS, read_moe
from fib_tools.architecture.facts_quantization import read_quantization
from fib_tools.architecture.facts_reader import LIMITS, FieldReader
from fib_tools.architecture.facts_schema import (
    AttentionFacts,
    HyperConnectionFacts,
    LayerFacts,
    LinearFacts,
    MlpFacts,
    MlpKind,
    ModelFacts,
    NormFacts,
)
from fib_tools.architecture.quirks import SHAPE_FIELDS, Quirk, find_quirk
from fib_tools.errors import ConfigError

__all__ = ["find_backbone", "read_facts"]

_BACKBONES = ("text_config", "llm_config", "language_config", "thinker_config")
_SIDE_TOWERS = {"vision_config": "the vision tower", "audio_config": "the audio tower"}
_OUTER_FIELDS = ("quantization_config", "tie_word_embeddings", "torch_dtype", "dtype")
_EPS_FIELDS = (
    "rms_norm_eps",
    "layer_norm_epsilon",
    "layernorm_epsilon",
    "norm_eps",
    "layer_norm_eps",
    "norm_epsilon",
)


def find_backbone(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the path and the fields of the text backbone, fields of the whole model filled in.

    Raises:
        ConfigError: when a nested config is not an object.
    """
    for path in _BACKBONES:
        nested = config.get(path)
        if nested is None:
            continue
        if not isinstance(nested, Mapping):
            raise ConfigError("not an object", where=path, todo="correct the model's config.json")
        inner_path, inner = find_backbone(nested)
        outer = {name: config[name] for name in _OUTER_FIELDS if config.get(name) is not None}
        return f"{path}.{inner_path}".rstrip("."), {**outer, **inner}
    return "", dict(config)


def read_facts(config: Mapping[str, Any], *, name: str, hf_quant_config: Mapping[str, Any] | None = None) -> ModelFacts:
    """Read the facts of a model from its config; `name` is its repository or slug.

    Raises:
        ConfigError: naming the field that is missing, contradictory, or out of all bounds.
    """
    path, backbone = find_backbone(config)
    model_type = _read_model_type(config, backbone)
    row = find_quirk(model_type)
    quirk = row or Quirk(model_types=(model_type,), reason="an unknown model_type, read as a plain decoder")
    reader = FieldReader(backbone, path=path, defaults=quirk.defaults, reason=f"default of {model_type}")
    return _assemble(
        reader,
        quirk,
        name=name,
        architecture=_read_architecture(config, backbone),
        quantization=read_quantization(reader, name=name, hf_quant_config=hf_quant_config),
        model_type=model_type,
        is_known=row is not None,
        text_path=path,
        out_of_scope=_list_out_of_scope(config),
        notes=_collect_notes(quirk, is_known=row is not None),
    )


def _read_model_type(config: Mapping[str, Any], backbone: Mapping[str, Any]) -> str:
    value = backbone.get("model_type") or config.get("model_type")
    if not isinstance(value, str) or not 0 < len(value) <= 128:
        raise ConfigError(
            f"no model_type that can be read: {str(value)[:80]!r}", where="model_type", todo="add it to the config.json"
        )
    return value


def _read_architecture(config: Mapping[str, Any], backbone: Mapping[str, Any]) -> str:
    for source in (config, backbone):
        names = source.get("architectures")
        if isinstance(names, list) and names and isinstance(names[0], str) and 0 < len(names[0]) <= 256:
            return names[0]
    return "unknown"


def _list_out_of_scope(config: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(f"{part} ({field})" for field, part in _SIDE_TOWERS.items() if config.get(field))


def _collect_notes(quirk: Quirk, *, is_known: bool) -> tuple[str, ...]:
    first = () if is_known else (quirk.reason,)
    return (*first, *quirk.notes)


def _assemble(reader: FieldReader, quirk: Quirk, **given: Any) -> ModelFacts:
    hidden_size = reader.get_int("hidden_size", "n_embd", "d_model", fact="hidden_size", limit=LIMITS["hidden"])
    plans = read_layer_plans(reader, quirk, hidden_size=hidden_size)
    attentions, linears, keys = _read_mixers(reader, quirk, plans, hidden_size=hidden_size)
    activation = reader.find_text(*_activation_fields(reader), fact="mlp.activation") or "silu"
    layers = _read_layers(reader, plans, keys)
    has_experts = any(plan.mlp is MlpKind.MOE for plan in plans)
    moe = read_moe(reader, quirk, activation=activation) if has_experts else None
    facts: dict[str, Any] = {
        "hidden_size": hidden_size,
        "vocab_size": reader.get_int("vocab_size", fact="vocab_size", limit=LIMITS["vocab"]),
        "tied_embeddings": reader.find_bool("tie_word_embeddings", fact="tied_embeddings") or False,
        "num_layers": len(plans),
        "layers": layers,
        "attentions": attentions,
        "linears": linears,
        "mlp": _read_mlp(reader, quirk, activation),
        "moe": moe,
        "norm": _read_norm(reader, quirk),
        "hyper_connections": _read_hyper_connections(reader),
        "final_softcap": reader.find_float("final_logit_softcapping", fact="final_softcap", high=1e6),
        "lm_head_bias": reader.find_bool("lm_head_bias", fact="lm_head_bias") or False,
        "num_mtp_layers": _read_mtp(reader),
        "max_position_embeddings": reader.find_int(
            "max_position_embeddings", fact="max_position_embeddings", limit=LIMITS["positions"]
        ),
        "dtype": reader.find_text(*_dtype_fields(reader), fact="dtype") or "bfloat16",
    }
    used = reader.used
    dead = tuple(sorted(field for field in reader.names() if field in SHAPE_FIELDS - used and reader.has(field)))
    return ModelFacts(**given, **facts, provenance=reader.provenance, dead_fields=dead)


def _activation_fields(reader: FieldReader) -> tuple[str, ...]:
    # Gemma's hidden_act is a leftover that its code does not read.
    return next(((field,) for field in ACTIVATION_FIELDS if reader.has(field)), ("hidden_act",))


def _dtype_fields(reader: FieldReader) -> tuple[str, ...]:
    return ("dtype",) if reader.has("dtype") else ("torch_dtype",)


def _read_mixers(
    reader: FieldReader, quirk: Quirk, plans: tuple[LayerPlan, ...], *, hidden_size: int
) -> tuple[dict[str, AttentionFacts], dict[str, LinearFacts], list[str | None]]:
    attentions: dict[str, AttentionFacts] = {}
    linears: dict[str, LinearFacts] = {}
    keys: list[str | None] = []
    builder = AttentionReader(reader, quirk, hidden_size=hidden_size)
    for plan in plans:
        key = _name_mixer(plan, quirk)
        keys.append(key)
        if key is None or key in attentions or key in linears:
            continue
        if plan.mixer.is_linear:
            linears[key] = read_linear(reader, plan.mixer, hidden_size=hidden_size)
        else:
            attentions[key] = builder.read(plan, key=key)
    return attentions, linears, keys


def _name_mixer(plan: LayerPlan, quirk: Quirk) -> str | None:
    if not plan.mixer.is_attention:
        return plan.mixer.value if plan.mixer.is_linear else None
    suffix = "" if plan.has_rope or not quirk.has_rope else "_nope"
    heads = "" if plan.kv_heads is None else f"_kv{plan.kv_heads}"
    return f"{plan.mixer.value}{suffix}{heads}"


def _read_layers(reader: FieldReader, plans: tuple[LayerPlan, ...], keys: list[str | None]) -> tuple[LayerFacts, ...]:
    has_moe = any(plan.mlp is MlpKind.MOE for plan in plans)
    layers = []
    for index, (plan, key) in enumerate(zip(plans, keys, strict=True)):
        width = plan.intermediate_size
        if plan.mlp is MlpKind.DENSE and width is None:
            width = _read_dense_width(reader, has_moe=has_moe)
        layers.append(LayerFacts(index=index, mixer=plan.mixer, attention=key, mlp=plan.mlp, intermediate_size=width))
    return tuple(layers)


def _read_dense_width(reader: FieldReader, *, has_moe: bool) -> int:
    # Llama-4 keeps the width of its dense layers apart from that of its experts.
    field = "intermediate_size_mlp" if has_moe and reader.has("intermediate_size_mlp") else "intermediate_size"
    return reader.get_int(field, "n_inner", fact="layers.intermediate_size", limit=LIMITS["intermediate"])


def _read_mlp(reader: FieldReader, quirk: Quirk, activation: str) -> MlpFacts:
    has_bias = reader.find_bool("mlp_bias", fact="mlp.has_bias") or False
    return MlpFacts(activation=activation, is_gated=quirk.is_mlp_gated, has_bias=has_bias)


def _read_norm(reader: FieldReader, quirk: Quirk) -> NormFacts:
    eps = reader.find_float(*_EPS_FIELDS, fact="norm.eps", high=1.0)
    if eps is None:
        raise reader.fail("rms_norm_eps", f"the field is missing (looked for {' or '.join(_EPS_FIELDS)})")
    return NormFacts(kind=quirk.norm, eps=eps, layout=quirk.norm_layout, has_bias=quirk.norm_bias)


def _read_hyper_connections(reader: FieldReader) -> HyperConnectionFacts | None:
    streams = reader.find_int("hc_mult", fact="hyper_connections.streams", limit=LIMITS["small"])
    if streams is None:
        return None
    iterations = reader.get_int("hc_sinkhorn_iters", fact="hyper_connections.iterations", limit=LIMITS["small"])
    eps = reader.find_float("hc_eps", fact="hyper_connections.eps", high=1.0)
    return HyperConnectionFacts(
        streams=streams, sinkhorn_iterations=iterations, **({} if eps is None else {"eps": eps})
    )


def _read_mtp(reader: FieldReader) -> int:
    if reader.find_bool("use_mtp", fact="num_mtp_layers") is False:
        return 0
    fields = ("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_modules")
    return reader.find_int(*fields, fact="num_mtp_layers", limit=LIMITS["layers"], low=0) or 0
