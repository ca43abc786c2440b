"""Needs of linear layers: the GEMM in the checkpoint's quantisation and the quantisation of its activations."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import replace

from fib_tools.architecture.fusion import Cut, FusedLinear
from fib_tools.architecture.inventory_evidence import Claim, Sight
from fib_tools.architecture.inventory_needs import Site
from fib_tools.architecture.inventory_quantization import GEMM_KERNELS, QUANTIZE_KERNELS
from fib_tools.architecture.parallelism import check_fp8_block
from fib_tools.architecture.quantization import QuantizationScheme
from fib_tools.architecture.structure_schema import OpKind
from fib_tools.model.kernel import ParameterValue

__all__ = ["need_gemm", "need_linears"]

_RENAMED: Mapping[str, tuple[tuple[str, str], ...]] = {
    "nemotron_h": (("self_attn.", "mixer."), ("mlp.", "mixer.")),
    "mixtral": (("mlp.", "block_sparse_moe."),),
    "minimax_m2": (("mlp.", "block_sparse_moe."),),
    "phimoe": (("mlp.", "block_sparse_moe."),),
}
"""How paths under a layer are called in checkpoints that differ from the usual names."""

_BLOCK = 128


def need_linears(site: Site, linears: tuple[FusedLinear, ...], layers: frozenset[int], *, tp: int) -> None:
    """Note the GEMMs of a set of layers; where their quantisation differs from layer to layer, each kind apart."""
    for linear in linears:
        by_scheme: defaultdict[tuple[QuantizationScheme, ...], set[int]] = defaultdict(set)
        for layer in layers:
            by_scheme[_find_schemes(site, linear, layer)].add(layer)
        for schemes, indices in sorted(by_scheme.items()):
            _need_linear(site, linear, schemes, Claim(layers=frozenset(indices), tp=tp))


def _find_schemes(site: Site, linear: FusedLinear, layer: int) -> tuple[QuantizationScheme, ...]:
    if not linear.is_quantizable:
        return (QuantizationScheme.NONE,)
    paths = [f"{site.prefix}.{layer}.{rename(site, part.path)}" for part in linear.parts]
    schemes = tuple(site.quantization.get_scheme(path) for path in paths)
    return schemes if len(set(schemes)) > 1 else schemes[:1]


def rename(site: Site, path: str) -> str:
    """Give a path under a layer as this model's checkpoint has it."""
    for usual, own in _RENAMED.get(site.facts.model_type, ()):
        if f"{path}.".startswith(usual):
            return f"{own}{f'{path}.'.removeprefix(usual)}".removesuffix(".")
    return path


def _need_linear(site: Site, linear: FusedLinear, schemes: tuple[QuantizationScheme, ...], claim: Claim) -> None:
    if len(schemes) > 1:
        site.note(f"{linear.name}: its parts are quantised differently, so they are separate GEMMs")
        for part, scheme in zip(linear.parts, schemes, strict=True):
            name = part.path.rpartition(".")[2]
            _need_linear(site, replace(linear, name=name, parts=(part,)), (scheme,), claim)
        return
    folder = rename(site, linear.parts[0].path).rpartition(".")[0]
    need_gemm(
        site,
        linear,
        schemes[0],
        replace(
            claim,
            module=site.path(f"{folder}.{linear.name}"),
            facts=linear.facts,
            attribute=linear.name,
            stages=linear.stages,
            sights=_sights(linear),
        ),
    )


def _sights(linear: FusedLinear) -> tuple[Sight, ...]:
    modules = Counter(part.total for part in linear.parts)
    modules.update({n: 1 for n in (linear.total_n, *linear.splits) if n not in modules})
    return tuple(
        Sight(kind=OpKind.LINEAR, attributes=(("n", n), ("k", linear.total_k), ("bias", linear.bias)), modules=count)
        for n, count in modules.items()
    )


def need_gemm(site: Site, linear: FusedLinear, scheme: QuantizationScheme, claim: Claim) -> None:
    """Note one GEMM in a scheme.

    Raises:
        ParallelismError: when a share would cut an fp8 block, as SGLang refuses it.
    """
    kernel = GEMM_KERNELS.get(scheme)
    if kernel is None:
        site.leave_unexplained("gemm", claim.module, f"no kernel type for {scheme.value} weights")
        return
    parameters: dict[str, ParameterValue] = {"n": linear.n, "k": linear.k}
    if scheme == QuantizationScheme.NONE:
        parameters["bias"] = linear.bias
        site.need(kernel, parameters, claim)
        return
    if scheme == QuantizationScheme.FP8_BLOCK:
        block = site.quantization.group_size or _BLOCK
        _check_blocks(linear, block, tp=claim.tp or 1)
        parameters |= {"block_n": block, "block_k": block}
    if scheme == QuantizationScheme.W4A16:
        parameters["group_size"] = site.quantization.group_size or _BLOCK
    claim = replace(claim, quantization=scheme.value, facts=(*claim.facts, "quantization"))
    site.need(kernel, parameters, claim)
    if linear.bias:
        site.note(f"{linear.name}: the bias is added after the {scheme.value} GEMM")
    _need_quantize(site, linear, scheme, claim)


def _need_quantize(site: Site, linear: FusedLinear, scheme: QuantizationScheme, claim: Claim) -> None:
    kernel = QUANTIZE_KERNELS.get(scheme)
    if kernel is None:
        if scheme != QuantizationScheme.W4A16:
            site.note(f"{scheme.value}: the per-token quantisation of activations has no kernel type")
        return
    engine = "activations are quantised before the GEMM that reads them"
    site.need(kernel, {"hidden_size": linear.k}, replace(claim, engine=engine, sights=(), attribute=""))


def _check_blocks(linear: FusedLinear, block: int, *, tp: int) -> None:
    """Refuse what SGLang's `validate_block_quant_shapes` refuses."""
    if not linear.checks_blocks:
        return
    if linear.cut == Cut.ROW and linear.is_cut:
        check_fp8_block(linear.k, block, what=f"{linear.name} width", tp=tp)
    if linear.cut == Cut.COLUMN and (linear.is_cut or len(linear.parts) > 1):
        for part in linear.parts:
            check_fp8_block(part.local, block, what=part.path, tp=tp)
