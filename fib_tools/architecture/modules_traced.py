"""Holding the modules that transformers ran against the tree: where each has its place, and whether the layers agree."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from fib_tools.architecture.modules import ModelModule
from fib_tools.architecture.structure_schema import Structure
from fib_tools.model.base import Model, NonEmpty
from fib_tools.model.kernel import Disagreement, Witness, WitnessSource

__all__ = ["TracedModule", "compare_layers", "format_layers", "place_traced_modules"]

_SYNONYMS = {
    "activation_fn": "act_fn",
    "block_sparse_moe": "mlp",
    "embeddings": "embed_tokens",
    "feed_forward": "mlp",
    "norm_f": "norm",
    "router": "gate",
    "shared_expert": "shared_experts",
}
"""Names of the same module, as model files of transformers and of SGLang differ."""
_FUSED = dict.fromkeys(("q_a_proj", "kv_a_proj_with_mqa"), "fused_qkv_a_proj_with_mqa")
"""What SGLang 0.5.23 fuses in its loader and no list of stacked parameters says (deepseek_weight_loader.py:482-487)."""
_ELSEWHERE = (
    "no module of this name in SGLang's tree: kernels of other modules explain its calls, or they are elementwise"
)


class TracedModule(Model):
    """A module of transformers, and what it is in the tree."""

    module: NonEmpty
    """With `*` for layer numbers."""
    layers: tuple[int, ...] = ()
    keys: tuple[str, ...] = ()
    """The modules of the tree that it is, or is a part of."""
    is_part: bool = False
    """It is fused with others in them, or inside of them."""
    remark: str = ""
    """Why it has no place."""


def place_traced_modules(
    modules: Sequence[ModelModule], structure: Structure, fused: Mapping[str, str]
) -> tuple[TracedModule, ...]:
    """Find each traced module in the tree: by its path, by what SGLang fuses it into, or in what it lies inside of.

    `fused` says of names of the checkpoint which parameter they are loaded into, such as `q_proj` into `qkv_proj`.
    """
    groups: dict[str, set[int]] = {}
    for op in structure.ops:
        groups.setdefault(op.module, set()).update(() if op.group is None else structure.layer_groups[op.group].layers)
    return tuple(_place(name, tuple(sorted(layers)), modules, fused) for name, layers in groups.items() if name)


def _place(
    name: str, layers: tuple[int, ...], modules: Sequence[ModelModule], fused: Mapping[str, str]
) -> TracedModule:
    path = _fold(name)
    block, _, last = path.rpartition(".")
    keys = _find(modules, path)
    if keys:
        return TracedModule(module=name, layers=layers, keys=keys)
    parts = _find(modules, f"{block}.{fused.get(last) or _FUSED.get(last)}")
    around = [module for module in modules if module.type == "layer" and path.startswith(f"{_fold(module.path)}.")]
    keys = parts or tuple(module.key for module in around)
    return TracedModule(module=name, layers=layers, keys=keys, is_part=bool(keys), remark="" if keys else _ELSEWHERE)


def _find(modules: Iterable[ModelModule], path: str) -> tuple[str, ...]:
    return tuple(module.key for module in modules if _fold(module.path) == path)


def _fold(path: str) -> str:
    """Write a path in the one name of each module."""
    return ".".join(_SYNONYMS.get(part, part) for part in path.split("."))


def compare_layers(modules: Sequence[ModelModule], traced: Iterable[TracedModule]) -> tuple[Disagreement, ...]:
    """Spell the modules that the trace saw in other layers than the tree has them in."""
    by_key = {module.key: module for module in modules}
    found = []
    for item in traced:
        layers = {layer for key in item.keys for layer in by_key[key].layers}
        is_whole = all(by_key[key].type == "layer" for key in item.keys)  # a block may call something in a few layers
        if item.keys and (layers != set(item.layers) if is_whole else not layers.issuperset(item.layers)):
            found.append(
                Disagreement(
                    subject=f"layers of {item.module}",
                    statements=(
                        Witness(source=WitnessSource.CONFIG, detail=format_layers(sorted(layers))),
                        Witness(source=WitnessSource.TRACE, detail=format_layers(item.layers)),
                    ),
                    chosen="the config's, since SGLang builds from it",
                )
            )
    return tuple(found)


def format_layers(layers: Sequence[int]) -> str:
    """Write layer numbers in short: `0-2, 5`; `none` for a module outside of the layers."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1][1:] = [layer]
        else:
            runs.append([layer])
    return ", ".join("-".join(map(str, run)) for run in runs) or "none"
