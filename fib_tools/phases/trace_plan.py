"""Which runs of the engine show a model's kernels: one for each set of per-rank shapes, on the GPUs there are.

Overrides are read back as facts before they are used: a cut that a config cannot express is left out, with its reason.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fib_tools.architecture.facts import find_backbone, read_facts
from fib_tools.architecture.facts_schema import AttentionFacts, MlpKind, ModelFacts
from fib_tools.architecture.parallelism import ServingPoint, cut_kv_heads, cut_query_heads
from fib_tools.architecture.quantization import QuantizationScheme
from fib_tools.capture.overrides import Shares, apply_overrides, cut_layers, cut_sizes
from fib_tools.capture.runs import (
    FLASHINFER_PAGE,
    PAGE_REASON,
    EngineRun,
    NotCovered,
    RunPlan,
    Variant,
    make_run,
)
from fib_tools.errors import ConfigError, ParallelismError

__all__ = ["TraceSubject", "plan_runs"]

_STAND_INS = {"kimi_k2": "deepseek_v3"}
"""Model types whose configuration is code in their repository, and the type of the same fields that transformers has."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TraceSubject:
    """The model whose kernels are to be seen."""

    model: str
    config: Mapping[str, Any]
    facts: ModelFacts
    points: tuple[ServingPoint, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Cut:
    """One set of per-rank shapes."""

    attention_tp: int
    tp: int
    ep: int

    @property
    def name(self) -> str:
        words = [f"tp{self.tp}", *([f"ep{self.ep}"] if self.ep > 1 else [])]
        dp = self.tp // self.attention_tp
        return "-".join([*words, *([f"dp{dp}"] if dp > 1 else [])])


def plan_runs(
    subject: TraceSubject, *, gpus: int = 1, weights: str | None = None, page_sizes: Sequence[int] = ()
) -> RunPlan:
    """Plan the runs of a model: real tensor parallelism where the GPUs suffice, else one rank's shapes on one GPU."""
    points: dict[_Cut, list[str]] = {}
    for point in subject.points:
        cut = _Cut(attention_tp=point.attention_tp, tp=point.tp, ep=point.ep)
        points.setdefault(cut, []).append(point.describe())
    runs: list[EngineRun] = []
    missing: list[NotCovered] = list(_list_page_sizes(subject, page_sizes))
    for cut, names in points.items():
        try:
            runs += _plan_cut(subject, cut, gpus=gpus, weights=weights, points=tuple(dict.fromkeys(names)))
        except (ParallelismError, ConfigError) as error:
            missing.append(NotCovered(subject=", ".join(dict.fromkeys(names)), reason=str(error)))
    # the variants come last: by then what they share with the others is compiled
    runs.sort(key=lambda run: run.variant != "default")
    return RunPlan(model=subject.model, runs=tuple(runs), not_covered=tuple(missing))


def _plan_cut(
    subject: TraceSubject, cut: _Cut, *, gpus: int, weights: str | None, points: tuple[str, ...]
) -> Iterator[EngineRun]:
    is_real = cut.tp <= gpus
    if weights is not None and not is_real:
        raise ParallelismError(f"real weights are not cut by overrides, and tp {cut.tp} needs as many GPUs")
    path, backbone = find_backbone(subject.config)
    prefix = f"{path}." if path else ""
    overrides = {} if is_real else cut_sizes(backbone, _share(subject.facts, cut))
    overrides |= cut_layers({**backbone, **overrides}, _read_kinds(subject, prefix))
    dotted = {f"{prefix}{name}": value for name, value in overrides.items()}
    config = _prepare(subject.config)
    changed = apply_overrides(config, dotted)
    if not is_real:
        _check(subject.facts, read_facts(changed, name=subject.facts.name), cut)
    described = {
        "points": points,
        "tp": cut.tp,
        "ep": cut.ep,
        "attention_tp": cut.attention_tp,
        "gpus": cut.tp if is_real else 1,
        "config": changed,
        "overrides": {**_list_preparations(subject.config, config), **dotted} if weights is None else dotted,
        "weights": weights,
        "vocab_size": subject.facts.vocab_size,
        "not_covered": () if is_real else tuple(_list_inexpressible(subject.facts, backbone, cut)),
    }
    scheme = subject.facts.quantization.scheme
    for variant in _list_variants(subject.facts):
        name = cut.name if variant == "default" else f"{cut.name}-{variant}"
        yield make_run(
            {**described, "name": name, "variant": variant},
            is_mla=_has_mla(subject.facts),
            is_fp8_block=scheme is QuantizationScheme.FP8_BLOCK,
            is_plain_moe=subject.facts.moe is not None and scheme is QuantizationScheme.NONE,
        )


def _prepare(config: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what leads to code of the repository, which is never run."""
    kept = {name: value for name, value in config.items() if name != "auto_map"}
    kind = kept.get("model_type")
    return {**kept, "model_type": _STAND_INS[kind]} if kind in _STAND_INS else kept


def _list_preparations(config: Mapping[str, Any], prepared: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in prepared.items() if config.get(name) != value}


def _has_mla(facts: ModelFacts) -> bool:
    return any(attention.mla for attention in facts.attentions.values())


def _list_variants(facts: ModelFacts) -> tuple[Variant, ...]:
    """With MLA a short cached prefix goes to the paged kernel; other attention takes it for the prefix alone."""
    return ("default",) if _has_mla(facts) or not facts.attentions else ("default", "paged")


def _share(facts: ModelFacts, cut: _Cut) -> Shares:
    attention = _get_attention(facts)
    heads = cut_query_heads(attention.num_heads, attention.num_kv_heads, cut.attention_tp)
    kv_heads = cut_kv_heads(attention.num_heads, attention.num_kv_heads, cut.attention_tp)
    return Shares(
        attention_tp=cut.attention_tp,
        tp=cut.tp,
        ep=cut.ep,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=None if attention.mla else attention.head_dim,
    )


def _get_attention(facts: ModelFacts) -> AttentionFacts:
    """Return the attention whose heads the config counts.

    Raises:
        ParallelismError: layers have different numbers, which one override cannot say.
    """
    counts = {(item.num_heads, item.num_kv_heads, item.head_dim) for item in facts.attentions.values()}
    if len(counts) != 1:
        raise ParallelismError("the layers have attention with different heads, which one override cannot say")
    return next(iter(facts.attentions.values()))


def _read_kinds(subject: TraceSubject, prefix: str) -> Any:
    """Read off a changed backbone what kind each layer is of."""

    def read(backbone: Mapping[str, Any]) -> Sequence[Hashable]:
        changes = {f"{prefix}{name}": value for name, value in backbone.items()}
        facts = read_facts(apply_overrides(subject.config, changes), name=subject.facts.name)
        return [(layer.mixer, layer.attention, layer.mlp, layer.intermediate_size) for layer in facts.layers]

    return read


def _check(whole: ModelFacts, cut_facts: ModelFacts, cut: _Cut) -> None:
    """Read the overridden config as a model, and compare it with the share of one rank.

    Raises:
        ParallelismError: naming what is not as it should be.
    """
    wrong = [
        f"{what} {found} and not {wanted}" for what, found, wanted in _compare(whole, cut_facts, cut) if found != wanted
    ]
    if wrong:
        raise ParallelismError(f"the overridden config would have {'; '.join(wrong)}", where=whole.name)


def _compare(whole: ModelFacts, found: ModelFacts, cut: _Cut) -> Iterator[tuple[str, object, object]]:
    yield "kinds of layers", _list_kinds(found), _list_kinds(whole)
    for key, attention in whole.attentions.items():
        other = found.attentions.get(key)
        yield f"{key}: attention", other is not None, True
        if other is not None:
            yield f"{key}: heads", other.num_heads * cut.attention_tp, attention.num_heads
            kv_heads = cut_kv_heads(attention.num_heads, attention.num_kv_heads, cut.attention_tp)
            yield f"{key}: KV heads", other.num_kv_heads, kv_heads
            yield f"{key}: head_dim", (other.head_dim, other.v_head_dim), (attention.head_dim, attention.v_head_dim)
            yield f"{key}: window", other.window, attention.window
    for key, linear in whole.linears.items():
        recurrent = found.linears.get(key)
        heads = (recurrent.num_key_heads, recurrent.num_value_heads) if recurrent else None
        yield f"{key}: heads", heads, _divide_linear(linear.num_key_heads, linear.num_value_heads, cut)
    if whole.moe is not None and found.moe is not None:
        yield "experts", found.moe.num_experts * cut.ep, whole.moe.num_experts
        yield "expert width", found.moe.intermediate_size * (cut.tp // cut.ep), whole.moe.intermediate_size
    yield "hidden_size", found.hidden_size, whole.hidden_size
    yield "vocab_size", found.vocab_size, whole.vocab_size


def _divide_linear(keys: int, values: int, cut: _Cut) -> tuple[float, float]:
    return keys / cut.attention_tp, values / cut.attention_tp


def _list_kinds(facts: ModelFacts) -> list[tuple[str, str | None, str]]:
    return sorted({(layer.mixer.value, layer.attention, layer.mlp.value) for layer in facts.layers}, key=str)


def _list_inexpressible(facts: ModelFacts, backbone: Mapping[str, Any], cut: _Cut) -> Iterator[NotCovered]:
    if cut.tp == 1:
        return
    where = f"one GPU stands in for {cut.tp}"
    yield NotCovered(
        subject=f"vocabulary cut by tp {cut.tp}",
        kernels=("embedding", "gemm"),
        modules=("embed_tokens", "lm_head"),
        reason=f"{where}: the LM head and the embedding are whole, since sampling needs the whole vocabulary",
    )
    if cut.ep > 1:
        yield NotCovered(
            subject=f"router with ep {cut.ep}",
            kernels=("moe_routing", "gemm"),
            modules=(".gate", ".router"),
            reason=f"{where}: the config counts the experts of one rank, so the router is of {cut.ep} times fewer",
        )
    has_field = any(name in backbone for name in ("shared_expert_intermediate_size",))
    if cut.ep > 1 and facts.moe is not None and facts.moe.num_shared_experts and not has_field:
        yield NotCovered(
            subject=f"shared experts with ep {cut.ep}",
            kernels=("gemm_fp8_block", "gemm", "silu_and_mul", "fp8_quantize_1x128"),
            modules=("shared_expert",),
            reason=f"{where}: their width follows from that of the routed experts, which EP leaves whole",
        )
    if cut.attention_tp != cut.tp and any(layer.mlp is MlpKind.DENSE for layer in facts.layers):
        yield NotCovered(
            subject=f"exchange between {cut.tp // cut.attention_tp} data-parallel ranks",
            reason=f"{where}: nothing is gathered or scattered; shapes of the kernels are those of one rank",
        )


def _list_page_sizes(subject: TraceSubject, requested: Iterable[int]) -> Iterator[NotCovered]:
    wanted = {*requested, *(point.page_size for point in subject.points if point.page_size)}
    for size in sorted(wanted - {FLASHINFER_PAGE}):
        yield NotCovered(subject=f"page size {size}", reason=PAGE_REASON)
