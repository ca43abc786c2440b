"""Needs of what only the trace shows, for architectures that no table describes."""

from __future__ import annotations

from dataclasses import replace

from fib_tools.architecture.fusion import FusedLinear, column, replicated, row
from fib_tools.architecture.inventory_evidence import Claim, Sight
from fib_tools.architecture.inventory_linears import need_gemm
from fib_tools.architecture.inventory_needs import Site
from fib_tools.architecture.structure_schema import OpCall, OpKind
from fib_tools.model.kernel import ParameterValue

__all__ = ["need_traced_call"]

_COLUMN_ROLES = ("q", "k", "v", "qkv", "gate", "up", "gate_up", "q_b", "kv_b", "in_proj")
_ROW_ROLES = ("o", "down", "out_proj")
_NORMS = ("rmsnorm", "gemma_rmsnorm", "rmsnorm_noweight", "layernorm")


def need_traced_call(site: Site, op: OpCall) -> bool:
    """Note the kernel of a traced call as far as its shape tells; False for a call that tells too little."""
    claim = Claim(module=op.module, sights=(Sight(kind=op.kind, attributes=tuple(op.attributes.items())),))
    structure = site.evidence.structure
    if structure is not None and op.group is not None:
        claim = replace(claim, layers=frozenset(structure.layer_groups[op.group].layers))
    if op.kind == OpKind.LINEAR:
        return _need_linear(site, op, claim)
    if op.kind == OpKind.NORM and op.attributes.get("kind") in _NORMS:
        parameters: dict[str, ParameterValue] = {
            "hidden_size": op.attributes.get("size"),
            "eps": op.attributes.get("eps"),
        }
        if op.attributes["kind"] == "layernorm":
            parameters["bias"] = bool(op.attributes.get("has_bias", True))
        site.need(str(op.attributes["kind"]), parameters, claim)
        return True
    if op.kind == OpKind.ROPE:
        return _need_rope(site, op, claim)
    return False


def _need_rope(site: Site, op: OpCall, claim: Claim) -> bool:
    attention = next(iter(site.facts.attentions.values()), None)
    if attention is None:
        return False
    parameters: dict[str, ParameterValue] = {
        "head_dim": op.attributes.get("head_dim"),
        "rotary_dim": op.attributes.get("rotary_dim"),
        "num_qo_heads": attention.num_heads,
        "num_kv_heads": attention.num_kv_heads,
        "is_neox": op.attributes.get("is_neox"),
    }
    site.need("rope_with_cos_sin_cache", parameters, claim)
    return True


def _need_linear(site: Site, op: OpCall, claim: Claim) -> bool:
    n, k = op.attributes.get("n"), op.attributes.get("k")
    if not isinstance(n, int) or not isinstance(k, int):
        return False
    linear = _cut(op, (op.module, op.role or "", n), k, tp=site.point.tp)
    scheme = site.quantization.get_scheme(op.module.replace("*", str(min(claim.layers, default=0))))
    need_gemm(site, replace(linear, bias=bool(op.attributes.get("bias"))), scheme, replace(claim, tp=site.point.tp))
    if op.role is None and site.point.tp > 1:
        site.note(f"{op.module}: the trace does not tell how it is cut, so every GPU holds it whole")
    return True


def _cut(op: OpCall, part: tuple[str, str, int], k: int, *, tp: int) -> FusedLinear:
    name = op.module.rpartition(".")[2]
    if op.role in _COLUMN_ROLES:
        return column(name, (part,), k, tp=tp)
    if op.role in _ROW_ROLES:
        return row(name, part, k, tp=tp)
    return replicated(name, (part,), k)
