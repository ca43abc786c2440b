"""Softmax attention: head counts and widths, scale, window, norms and gates of each kind of layer."""

from __future__ import annotations

import math

from fib_tools.architecture.facts_layers import LayerPlan
from fib_tools.architecture.facts_reader import LIMITS, FieldReader
from fib_tools.architecture.facts_rope import RopeReader
from fib_tools.architecture.facts_schema import (
    AttentionFacts,
    IndexerFacts,
    MixerKind,
    MlaFacts,
    OutputLoraFacts,
    QkNorm,
    RopeFacts,
)
from fib_tools.architecture.quirks import Quirk

__all__ = ["AttentionReader"]

_COMPRESS_RATE = {MixerKind.COMPRESSED_SPARSE: 4, MixerKind.COMPRESSED_HEAVY: 128}
_WINDOWED = (MixerKind.SLIDING, MixerKind.COMPRESSED_SPARSE, MixerKind.COMPRESSED_HEAVY)


class AttentionReader:
    """Builds the attention facts of each kind of layer that a model has."""

    def __init__(self, reader: FieldReader, quirk: Quirk, *, hidden_size: int) -> None:
        self._reader = reader
        self._quirk = quirk
        self._hidden_size = hidden_size
        self._rope = RopeReader(reader, quirk)

    def read(self, plan: LayerPlan, *, key: str) -> AttentionFacts:
        """Read the attention of one kind of layer; facts are recorded under `attentions.<key>`."""
        if self._reader.has("kv_lora_rank"):
            return self._read_mla(plan, key)
        return self._read_plain(plan, key)

    def _read_plain(self, plan: LayerPlan, key: str) -> AttentionFacts:
        fact = f"attentions.{key}"
        heads, kv_heads, head_dim, v_head_dim = self._read_heads(plan, fact)
        has_bias = self._reader.find_bool("attention_bias", "qkv_bias", "use_bias", fact=f"{fact}.qkv_bias") or False
        is_latent = self._reader.has("o_lora_rank")
        return AttentionFacts(
            kind=plan.mixer,
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            v_head_dim=v_head_dim,
            sm_scale=self._read_scale(head_dim, fact),
            window=self._read_window(plan, fact),
            chunk=self._read_chunk(plan, fact),
            softcap=self._reader.find_float("attn_logit_softcapping", fact=f"{fact}.softcap", high=1e6),
            has_sinks=self._has_sinks(plan, fact),
            qk_norm=self._read_qk_norm(plan, fact),
            qkv_bias=has_bias if self._quirk.qkv_bias is None else self._quirk.qkv_bias,
            output_bias=has_bias if self._quirk.output_bias is None else self._quirk.output_bias,
            has_output_gate=self._has_output_gate(fact),
            rope=self._read_rope(plan, head_dim, fact),
            compress_rate=_COMPRESS_RATE.get(plan.mixer),
            indexer=self._read_indexer(fact) if plan.mixer is MixerKind.COMPRESSED_SPARSE else None,
            output_lora=self._read_output_lora(fact) if is_latent else None,
            q_lora_rank=self._find_q_lora(fact) if is_latent else None,
        )

    def _read_heads(self, plan: LayerPlan, fact: str) -> tuple[int, int, int, int]:
        reader = self._reader
        prefix = "swa_" if plan.mixer is MixerKind.SLIDING else ""
        names = {
            name: (f"{prefix}{name}",) if prefix and reader.has(f"{prefix}{name}") else (name,)
            for name in ("num_attention_heads", "num_key_value_heads", "head_dim", "v_head_dim")
        }
        heads = reader.get_int(*names["num_attention_heads"], fact=f"{fact}.num_heads", limit=LIMITS["heads"])
        kv_heads = plan.kv_heads or reader.find_int(
            *names["num_key_value_heads"], fact=f"{fact}.num_kv_heads", limit=LIMITS["heads"]
        )
        if kv_heads is None:
            reader.explain(f"{fact}.num_kv_heads", "num_attention_heads: num_key_value_heads is not given")
            kv_heads = heads
        if heads % kv_heads:
            raise reader.fail("num_key_value_heads", f"{kv_heads} does not divide num_attention_heads={heads}")
        head_dim = self._read_head_dim(names["head_dim"], heads, fact)
        v_head_dim = reader.find_int(*names["v_head_dim"], fact=f"{fact}.v_head_dim", limit=LIMITS["head_dim"])
        return heads, kv_heads, head_dim, v_head_dim or head_dim

    def _read_head_dim(self, names: tuple[str, ...], heads: int, fact: str) -> int:
        fact = f"{fact}.head_dim"
        head_dim = self._reader.find_int(*names, "attention_head_dim", fact=fact, limit=LIMITS["head_dim"])
        if head_dim is not None:
            return head_dim
        if self._hidden_size % heads:
            raise self._reader.fail(
                "num_attention_heads",
                f"{heads} does not divide hidden_size={self._hidden_size}, and there is no head_dim",
            )
        self._reader.explain(fact, f"hidden_size / num_attention_heads = {self._hidden_size}/{heads}")
        return self._hidden_size // heads

    def _read_scale(self, head_dim: int, fact: str) -> float:
        fact = f"{fact}.sm_scale"
        multiplier = self._reader.find_float("attention_multiplier", fact=fact, high=1e6)
        if multiplier is not None:
            return multiplier
        scalar = self._reader.find_float("query_pre_attn_scalar", fact=fact, high=1e9)
        if scalar is None:
            self._reader.explain(fact, f"1/sqrt(head_dim) = {head_dim}**-0.5")
        return 1.0 / math.sqrt(scalar or head_dim)

    def _read_window(self, plan: LayerPlan, fact: str) -> int | None:
        if plan.mixer not in _WINDOWED:
            return None
        window = self._reader.get_int(
            "sliding_window", "sliding_window_size", fact=f"{fact}.window", limit=LIMITS["positions"]
        )
        return window + 1 if self._quirk.window_excludes_query else window

    def _read_chunk(self, plan: LayerPlan, fact: str) -> int | None:
        if plan.mixer is not MixerKind.CHUNKED:
            return None
        return self._reader.get_int("attention_chunk_size", fact=f"{fact}.chunk", limit=LIMITS["positions"])

    def _has_sinks(self, plan: LayerPlan, fact: str) -> bool:
        name = "add_swa_attention_sink_bias" if plan.mixer is MixerKind.SLIDING else "add_full_attention_sink_bias"
        given = self._reader.find_bool(name, fact=f"{fact}.has_sinks")
        return self._quirk.has_sinks if given is None else given

    def _has_output_gate(self, fact: str) -> bool:
        given = self._reader.find_bool("attn_output_gate", fact=f"{fact}.has_output_gate")
        return self._quirk.has_output_gate if given is None else given

    def _read_qk_norm(self, plan: LayerPlan, fact: str) -> QkNorm:
        field = self._quirk.qk_norm_field
        if field and self._reader.find_bool(field, fact=f"{fact}.qk_norm") is False:
            return QkNorm.NONE
        if self._quirk.qk_norm is QkNorm.L2 and not plan.has_rope:
            return QkNorm.NONE  # Llama-4 normalises after RoPE, in the layers that have it.
        if field is None and self._quirk.qk_norm is not QkNorm.NONE:
            self._reader.explain(f"{fact}.qk_norm", f"the model_type: {self._quirk.reason}")
        return self._quirk.qk_norm

    def _read_rope(self, plan: LayerPlan, head_dim: int, fact: str) -> RopeFacts | None:
        if not plan.has_rope:
            return None
        if self._reader.has("qk_rope_head_dim"):
            rotary = self._reader.get_int("qk_rope_head_dim", fact=f"{fact}.rope.rotary_dim", limit=LIMITS["head_dim"])
            return self._compressed_rope(plan, rotary, fact).model_copy(update={"head_dim": head_dim})
        is_local = plan.mixer is MixerKind.SLIDING
        return self._rope.read(head_dim=head_dim, fact=f"{fact}.rope", is_local=is_local)

    def _compressed_rope(self, plan: LayerPlan, rotary: int, fact: str) -> RopeFacts:
        rope = self._rope.read(head_dim=rotary, fact=f"{fact}.rope", whole=True)
        theta = None
        if plan.mixer is not MixerKind.SLIDING:
            theta = self._reader.find_float("compress_rope_theta", fact=f"{fact}.rope.theta")
        if theta is None:
            return rope.model_copy(update={"scaling": "none", "factor": None, "attention_factor": 1.0})
        return rope.model_copy(update={"theta": theta, "attention_factor": 1.0})

    def _find_q_lora(self, fact: str) -> int | None:
        return self._reader.find_int("q_lora_rank", fact=f"{fact}.q_lora_rank", limit=LIMITS["hidden"])

    def _read_output_lora(self, fact: str) -> OutputLoraFacts:
        return OutputLoraFacts(
            groups=self._reader.get_int("o_groups", fact=f"{fact}.output_lora.groups", limit=LIMITS["heads"]),
            rank=self._reader.get_int("o_lora_rank", fact=f"{fact}.output_lora.rank", limit=LIMITS["hidden"]),
        )

    def _read_indexer(self, fact: str) -> IndexerFacts | None:
        fact = f"{fact}.indexer"
        if not self._reader.has("index_topk"):
            return None
        is_interleaved = self._reader.find_bool("indexer_rope_interleave", fact=f"{fact}.is_neox")
        return IndexerFacts(
            num_heads=self._reader.get_int("index_n_heads", fact=f"{fact}.num_heads", limit=LIMITS["heads"]),
            head_dim=self._reader.get_int("index_head_dim", fact=f"{fact}.head_dim", limit=LIMITS["head_dim"]),
            topk=self._reader.get_int("index_topk", fact=f"{fact}.topk", limit=LIMITS["positions"]),
            is_neox=not is_interleaved,
        )

    def _read_mla(self, plan: LayerPlan, key: str) -> AttentionFacts:
        fact = f"attentions.{key}"
        reader = self._reader
        heads = reader.get_int("num_attention_heads", fact=f"{fact}.num_heads", limit=LIMITS["heads"])
        mla = self._read_mla_dims(fact)
        self._check_qk_head_dim(mla)
        reader.explain(f"{fact}.sm_scale", f"qk_nope_head_dim + qk_rope_head_dim = {mla.qk_head_dim}, YaRN's mscale")
        has_bias = reader.find_bool("attention_bias", fact=f"{fact}.qkv_bias") or False
        rope = (
            self._rope.read(head_dim=mla.qk_rope_head_dim, fact=f"{fact}.rope", whole=True) if plan.has_rope else None
        )
        return AttentionFacts(
            kind=plan.mixer,
            num_heads=heads,
            num_kv_heads=heads,
            head_dim=mla.qk_head_dim,
            v_head_dim=mla.v_head_dim,
            sm_scale=self._rope.mla_scale(mla.qk_head_dim),
            qkv_bias=has_bias,
            output_bias=has_bias,
            rope=rope,
            mla=mla,
            indexer=self._read_indexer(fact),
        )

    def _read_mla_dims(self, fact: str) -> MlaFacts:
        reader, fact = self._reader, f"{fact}.mla"
        nope = reader.get_int("qk_nope_head_dim", fact=f"{fact}.qk_nope_head_dim", limit=LIMITS["head_dim"])
        v_head_dim = reader.find_int("v_head_dim", fact=f"{fact}.v_head_dim", limit=LIMITS["head_dim"])
        if v_head_dim is None:
            heads = reader.get_int("num_attention_heads", fact=f"{fact}.v_head_dim", limit=LIMITS["heads"])
            v_head_dim = self._hidden_size // heads
            if v_head_dim == 0:
                raise reader.fail("num_attention_heads", f"{heads} heads are more than hidden_size={self._hidden_size}")
            reader.explain(f"{fact}.v_head_dim", "hidden_size / num_attention_heads")
        return MlaFacts(
            q_lora_rank=reader.find_int("q_lora_rank", fact=f"{fact}.q_lora_rank", limit=LIMITS["hidden"]),
            kv_lora_rank=reader.get_int("kv_lora_rank", fact=f"{fact}.kv_lora_rank", limit=LIMITS["hidden"]),
            qk_nope_head_dim=nope,
            qk_rope_head_dim=reader.get_int(
                "qk_rope_head_dim", fact=f"{fact}.qk_rope_head_dim", limit=LIMITS["head_dim"]
            ),
            v_head_dim=v_head_dim,
        )

    def _check_qk_head_dim(self, mla: MlaFacts) -> None:
        given = self._reader.find_int("qk_head_dim", fact="qk_head_dim", limit=LIMITS["head_dim"])
        if given is not None and given != mla.qk_head_dim:
            raise self._reader.fail(
                "qk_head_dim", f"{given} is not qk_nope_head_dim + qk_rope_head_dim = {mla.qk_head_dim}"
            )
