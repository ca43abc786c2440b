"""How a checkpoint is quantised, in the words of each tool that writes checkpoints."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fib_tools.architecture.facts_reader import LIMITS, FieldReader
from fib_tools.architecture.quantization import QuantizationFacts, QuantizationScheme, QuantizationWitness
from fib_tools.architecture.quirks import DEFAULT_EXCLUDED

__all__ = ["read_quantization"]

_MAX_PATTERN = 512
_MAX_WILDCARDS = 6
_NAMES: tuple[tuple[str, QuantizationScheme], ...] = (
    ("nvfp4", QuantizationScheme.NVFP4),
    ("fp4", QuantizationScheme.NVFP4),
    ("mxfp4", QuantizationScheme.MXFP4),
    ("fp8", QuantizationScheme.FP8_TENSOR),
    ("awq", QuantizationScheme.W4A16),
    ("gptq", QuantizationScheme.W4A16),
    ("w4a16", QuantizationScheme.W4A16),
)
"""Words of a repository's name; the first that is a word of it counts."""
_GROUP_SIZES = {QuantizationScheme.NVFP4: 16, QuantizationScheme.MXFP4: 32, QuantizationScheme.MXFP8: 32}


def read_quantization(
    reader: FieldReader, *, name: str, hf_quant_config: Mapping[str, Any] | None
) -> QuantizationFacts:
    """Read the quantisation from the config, else from hf_quant_config.json, else from the repository's name."""
    section = reader.find_object("quantization_config", fact="quantization")
    if section is not None:
        facts = _read_section(section)
    elif hf_quant_config is not None:
        outer = FieldReader(hf_quant_config, path="hf_quant_config.json", defaults={}, reason="hf_quant_config.json")
        facts = _read_modelopt(outer.find_object("quantization", fact="quantization") or outer)
        facts = facts.model_copy(update={"witness": QuantizationWitness.HF_QUANT_CONFIG})
    else:
        facts = _read_name(name)
    if reader.find_text("expert_dtype", fact="quantization.expert_scheme") == "fp4":
        facts = facts.model_copy(update={"expert_scheme": QuantizationScheme.MXFP4})
    return facts


def _read_section(section: FieldReader) -> QuantizationFacts:
    method = section.find_text("quant_method", fact="method") or ""
    if method == "fp8":
        return _read_fp8(section)
    if method == "compressed-tensors":
        return _read_compressed_tensors(section)
    if method.startswith("modelopt"):
        return _read_modelopt(section)
    if method in ("mxfp4", "awq", "gptq"):
        scheme = QuantizationScheme.MXFP4 if method == "mxfp4" else QuantizationScheme.W4A16
        size = section.find_int("group_size", "q_group_size", fact="group_size", limit=LIMITS["hidden"])
        return _build(section, scheme, ("modules_to_not_convert",), size=size)
    return _build(section, QuantizationScheme.UNKNOWN, ("modules_to_not_convert", "ignore"), size=None)


def _read_fp8(section: FieldReader) -> QuantizationFacts:
    block = section.find_list("weight_block_size", fact="block", limit=2)
    names = ("modules_to_not_convert", "ignored_layers")
    if block is None:
        return _build(section, QuantizationScheme.FP8_TENSOR, names, size=None)
    if len(block) != 2 or any(type(size) is not int or not 1 <= size <= 4096 for size in block):
        raise section.fail("weight_block_size", f"{block!r} is not a pair of small numbers")
    return _build(section, QuantizationScheme.FP8_BLOCK, names, size=block[1])


def _read_compressed_tensors(section: FieldReader) -> QuantizationFacts:
    groups = section.find_object("config_groups", fact="groups")
    names = groups.names() if groups is not None else ()
    group = groups.find_object(names[0], fact="group") if groups is not None and names else None
    weights = group.find_object("weights", fact="weights") if group is not None else None
    if group is None or weights is None:
        return _build(section, QuantizationScheme.UNKNOWN, ("ignore",), size=None)
    size = weights.find_int("group_size", fact="group_size", limit=LIMITS["hidden"], low=-1)
    scheme = _scheme_of_weights(weights, has_activations=group.has("input_activations"))
    return _build(section, scheme, ("ignore",), size=size if size and size > 0 else None)


def _scheme_of_weights(weights: FieldReader, *, has_activations: bool) -> QuantizationScheme:
    bits = weights.find_int("num_bits", fact="bits", limit=64)
    kind = weights.find_text("type", fact="type")
    strategy = weights.find_text("strategy", fact="strategy")
    if bits == 4 and kind == "float":
        return QuantizationScheme.NVFP4 if strategy == "tensor_group" else QuantizationScheme.MXFP4
    if bits == 4 and kind == "int" and not has_activations:
        return QuantizationScheme.W4A16
    if bits == 8 and kind == "int":
        return QuantizationScheme.INT8
    by_strategy = {
        "block": QuantizationScheme.FP8_BLOCK,
        "channel": QuantizationScheme.FP8_CHANNEL,
        "tensor": QuantizationScheme.FP8_TENSOR,
    }
    return by_strategy.get(strategy or "", QuantizationScheme.UNKNOWN) if bits == 8 else QuantizationScheme.UNKNOWN


def _read_modelopt(section: FieldReader) -> QuantizationFacts:
    algorithm = (section.find_text("quant_algo", fact="algorithm") or "").upper()
    schemes = {
        "FP8": QuantizationScheme.FP8_TENSOR,
        "NVFP4": QuantizationScheme.NVFP4,
        "FP8_PB_WO": QuantizationScheme.FP8_BLOCK,
        "MXFP8": QuantizationScheme.MXFP8,
        "W4A16_AWQ": QuantizationScheme.W4A16,
    }
    size = section.find_int("group_size", fact="group_size", limit=LIMITS["hidden"])
    scheme = schemes.get(algorithm, QuantizationScheme.UNKNOWN)
    return _build(section, scheme, ("exclude_modules", "ignore"), size=size)


def _build(
    section: FieldReader, scheme: QuantizationScheme, names: tuple[str, ...], *, size: int | None
) -> QuantizationFacts:
    excluded: list[str] = [_exclude(name) for name in DEFAULT_EXCLUDED]
    for name in names:
        for entry in section.find_list(name, fact="excluded", limit=1 << 16) or []:
            pattern = _exclude(entry) if isinstance(entry, str) else None
            if pattern is None or len(pattern) > _MAX_PATTERN:
                raise section.fail(name, "not a list of short module patterns")
            excluded.append(pattern)
    return QuantizationFacts(
        scheme=scheme,
        group_size=size or _GROUP_SIZES.get(scheme),
        is_dynamic=section.find_text("activation_scheme", fact="activation_scheme") != "static",
        excluded=tuple(dict.fromkeys(excluded)),
        kv_cache=_read_kv_cache(section),
        witness=QuantizationWitness.CONFIG,
    )


def _read_kv_cache(section: FieldReader) -> str | None:
    if section.has("kv_cache_scheme"):
        return "fp8"
    algorithm = section.find(("kv_cache_quant_algo",), fact="kv_cache")
    return str(algorithm[1])[:16].lower() if algorithm is not None else None


def _exclude(entry: str) -> str:
    """Turn a name, a name with `*`, or a `re:` pattern into a regular expression on module paths.

    A pattern of a config is untrusted: of `re:` patterns only a few `.*` and groups without repetition are taken over,
    so that none can backtrack without end; any other is taken literally.
    """
    if entry.startswith("re:"):
        return _take_over(entry[3:])
    parts = entry.split("*") if entry.count("*") <= _MAX_WILDCARDS else [entry]
    literal = ".*".join(re.escape(part) for part in parts)
    return rf"(?:.*\.)?{literal}(?:\..*)?$"


def _take_over(pattern: str) -> str:
    is_plain = re.fullmatch(r"(?:[\w|()$^\\.-]|\.\*)*", pattern) is not None
    is_plain = is_plain and pattern.count("*") <= _MAX_WILDCARDS and pattern.count("(") <= _MAX_WILDCARDS
    try:
        re.compile(pattern)
    except re.error:
        is_plain = False
    return pattern if is_plain else re.escape(pattern)


def _read_name(name: str) -> QuantizationFacts:
    words = re.split(r"[^a-z0-9]+", name.lower())
    scheme = next((scheme for word, scheme in _NAMES if word in words), None)
    if scheme is None:
        return QuantizationFacts()
    return QuantizationFacts(
        scheme=scheme,
        group_size=_GROUP_SIZES.get(scheme),
        excluded=tuple(_exclude(name) for name in DEFAULT_EXCLUDED),
        witness=QuantizationWitness.NAME,
    )
