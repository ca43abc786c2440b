"""Rotary embedding: base, width, style and scaling, and what scaling does to the scores."""

from __future__ import annotations

import math

from fib_tools.architecture.facts_reader import LIMITS, FieldReader
from fib_tools.architecture.facts_schema import RopeFacts
from fib_tools.architecture.quirks import Quirk

__all__ = ["RopeReader"]

_PLAIN = ("default", "none")


class RopeReader:
    """The rope fields of a config, in their old place (rope_theta, rope_scaling) or their new one (rope_parameters)."""

    def __init__(self, reader: FieldReader, quirk: Quirk) -> None:
        self._reader = reader
        self._quirk = quirk
        parameters = reader.find_object("rope_parameters", fact="rope.scaling")
        scaling = reader.find_object("rope_scaling", fact="rope.scaling") if parameters is None else None
        self._scaling = parameters or scaling

    def read(self, *, head_dim: int, fact: str, is_local: bool = False, whole: bool = False) -> RopeFacts:
        """Read the rope of one kind of layer; `is_local` asks for the base of the sliding layers."""
        fields = ("rope_local_base_freq", "swa_rope_theta") if is_local else ()
        local = self._reader.find_float(*fields, fact=f"{fact}.theta") if fields else None
        theta = local or self._read_theta(fact)
        # Gemma-3 scales the rope of its full layers only.
        is_scaled = local is None or not self._reader.has("rope_local_base_freq")
        kind = self._read_kind() if is_scaled else "none"
        rotary_dim = head_dim if whole else self._read_rotary_dim(head_dim, fact)
        return RopeFacts(
            theta=theta,
            rotary_dim=rotary_dim,
            head_dim=head_dim,
            is_neox=self._quirk.is_neox,
            scaling=kind,
            factor=self._read_factor() if kind not in ("none", "mrope") else None,
            attention_factor=self._attention_factor(kind),
        )

    def mla_scale(self, head_dim: int) -> float:
        """Scale of MLA scores: 1/sqrt(head_dim), times mscale squared where YaRN sets mscale_all_dim."""
        scale = 1.0 / math.sqrt(head_dim)
        if self._scaling is None or self._read_kind() in _PLAIN:
            return scale
        all_dim = self._scaling.find_float("mscale_all_dim", fact="mscale_all_dim", low=-1.0, high=100.0)
        return scale * _mscale(self._read_factor() or 1.0, all_dim) ** 2 if all_dim else scale

    def _read_theta(self, fact: str) -> float:
        nested = self._scaling.find_float("rope_theta", fact="theta") if self._scaling else None
        if nested is not None:
            self._reader.explain(f"{fact}.theta", f"rope_parameters.rope_theta={nested:g}")
            return nested
        theta = self._reader.find_float("rope_theta", "rotary_emb_base", fact=f"{fact}.theta")
        if theta is None:
            self._reader.explain(f"{fact}.theta", "10000, the default of every family")
        return theta or 10_000.0

    def _read_kind(self) -> str:
        if self._scaling is None:
            return "none"
        # transformers keeps the old field beside the new one, and the new one counts.
        kind = self._scaling.find_text("rope_type", fact="kind") or self._scaling.find_text("type", fact="kind")
        kind = kind or "none"
        if self._scaling.has("mrope_section"):
            return "mrope"
        return {"default": "none", "su": "longrope", "deepseek_yarn": "yarn"}.get(kind, kind)

    def _read_factor(self) -> float | None:
        return self._scaling.find_float("factor", fact="factor", high=1e6) if self._scaling else None

    def _read_rotary_dim(self, head_dim: int, fact: str) -> int:
        fact = f"{fact}.rotary_dim"
        rotary = self._reader.find_int("rotary_dim", fact=fact, limit=LIMITS["head_dim"])
        if rotary is None:
            nested = self._scaling.find_float("partial_rotary_factor", fact=fact, high=1.0) if self._scaling else None
            part = nested or self._reader.find_float("partial_rotary_factor", "rotary_pct", fact=fact, high=1.0) or 1.0
            rotary = int(head_dim * part)
        if rotary > head_dim or rotary % 2 or rotary == 0:
            raise self._reader.fail("rotary_dim", f"{rotary} values of a head of {head_dim} cannot be turned in pairs")
        return rotary

    def _attention_factor(self, kind: str) -> float:
        if self._scaling is None:
            return 1.0
        given = self._scaling.find_float("attention_factor", fact="attention_factor", high=100.0)
        if given is not None:
            return given
        factor = self._read_factor() or 1.0
        if kind == "yarn":
            first = self._scaling.find_float("mscale", fact="mscale", low=-1.0, high=100.0)
            second = self._scaling.find_float("mscale_all_dim", fact="mscale_all_dim", low=-1.0, high=100.0)
            return _mscale(factor, first) / _mscale(factor, second) if first and second else _mscale(factor, 1.0)
        return self._longrope_factor() if kind == "longrope" else 1.0

    def _longrope_factor(self) -> float:
        positions, limit = "original_max_position_embeddings", LIMITS["positions"]
        original = self._scaling.find_int(positions, fact=positions, limit=limit) if self._scaling else None
        original = original or self._reader.find_int(positions, fact=positions, limit=limit)
        longest = self._reader.find_int("max_position_embeddings", fact="max_position_embeddings", limit=limit)
        if not original or not longest or longest <= original or original < 2:
            return 1.0
        return math.sqrt(1 + math.log(longest / original) / math.log(original))


def _mscale(factor: float, mscale: float | None) -> float:
    """YaRN's attention temperature, as in DeepSeek's and transformers' yarn_get_mscale."""
    return 0.1 * (mscale or 0.0) * math.log(factor) + 1.0 if factor > 1 else 1.0
