"""Which page sizes the paged kernels of a model are asked for: SGLang's defaults and the backends that force another.

The rows are read from SGLang 0.5.23. A page size of the user or of a serving point comes first, except where the
engine overrides it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fib_tools.architecture.facts_schema import MixerKind, ModelFacts
from fib_tools.architecture.parallelism import ServingPoint

__all__ = ["PageRule", "PageSizes", "choose_page_sizes"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PageRule:
    """One reason for a page size."""

    page_size: int
    applies: Callable[[ModelFacts, ServingPoint], bool]
    reason: str
    is_forced: bool = False
    """The engine overrides what the user asks for, so no other size occurs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PageSizes:
    """The page sizes of a model at a serving point, with the reason for each."""

    reasons: dict[int, str]

    @property
    def sizes(self) -> tuple[int, ...]:
        """In ascending order."""
        return tuple(sorted(self.reasons))


_BLACKWELL = ("B200", "B300", "GB200", "GB300")


def _may_be_blackwell(point: ServingPoint) -> bool:
    return point.hardware is None or point.hardware in _BLACKWELL


def _has_mla(facts: ModelFacts) -> bool:
    return any(attention.mla for attention in facts.attentions.values())


def _is_dsa(facts: ModelFacts) -> bool:
    return any(attention.indexer and attention.mla for attention in facts.attentions.values())


def _is_compressed(facts: ModelFacts) -> bool:
    kinds = (MixerKind.COMPRESSED_SPARSE, MixerKind.COMPRESSED_HEAVY)
    return any(attention.kind in kinds for attention in facts.attentions.values())


_RULES = (
    PageRule(
        page_size=64,
        applies=lambda facts, _: _is_dsa(facts),
        reason="sglang/srt/arg_groups/model_overrides/deepseek_v2.py:171 sets 64 for DSA",
        is_forced=True,
    ),
    PageRule(
        page_size=256,
        applies=lambda facts, _: _is_compressed(facts),
        reason="sglang/srt/arg_groups/model_overrides/deepseek_v4.py:51 sets 256 for DeepSeek-V4",
        is_forced=True,
    ),
    PageRule(
        page_size=1,
        applies=lambda _, __: True,
        reason="sglang/srt/arg_groups/overrides.py:1362 defaults to 1",
    ),
    PageRule(
        page_size=64,
        applies=lambda facts, _: _has_mla(facts),
        reason="sglang/srt/arg_groups/overrides.py:1154 sets 64 for flashmla, and 1163 for trtllm_mla",
    ),
    PageRule(
        page_size=64,
        applies=lambda facts, point: not _has_mla(facts) and _may_be_blackwell(point),
        reason="sglang/srt/arg_groups/overrides.py:1187 sets 64 for trtllm_mha, the backend on Blackwell",
    ),
)


def choose_page_sizes(facts: ModelFacts, point: ServingPoint, requested: tuple[int, ...] = ()) -> PageSizes:
    """Give the page sizes to define kernels for: those asked for, else those of the engine."""
    matching = [rule for rule in _RULES if rule.applies(facts, point)]
    forced = [rule for rule in matching if rule.is_forced]
    if requested:
        return PageSizes(reasons=dict.fromkeys(requested, "asked for"))
    if forced:
        return PageSizes(reasons={rule.page_size: rule.reason for rule in forced})
    if point.page_size is not None:
        return PageSizes(reasons={point.page_size: f"--page-size of {point.source}"})
    reasons: dict[int, str] = {}
    for rule in matching:
        reasons.setdefault(rule.page_size, rule.reason)
    return PageSizes(reasons=reasons)
