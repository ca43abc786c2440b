"""The Definitions most like one that is wanted: by the words of name, op_type, fi_api, axes and summary."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, get_args, get_origin

from fib_tools.errors import FibError
from fib_tools.model.base import Model
from fib_tools.model.definition import AxisConst, Definition, TensorSpec
from fib_tools.model.tags import find_tag_values
from fib_tools.op_types.base import KernelType
from fib_tools.op_types.registry import list_kernel_types
from fib_tools.phases.facts_digest import SECTIONS, rank_sections
from fib_tools.sources.sglang_source import find_words

__all__ = ["Neighbour", "find_nearest"]

_EXAMPLE_SIZE = 64
_WEIGHTS = (4.0, 4.0, 2.0, 1.0)
"""Of words in the name, the op_type, the fi_api, and the rest: summary, axes, tensors."""


_FAMILY = 0.5
"""For being about the same part of a model."""


class Neighbour(Model):
    """A Definition to take after, without its reference."""

    name: str
    op_type: str
    where: str
    """`dataset`, `this model`, or `example`: a kernel type of fib-tools in sizes of an example."""
    summary: str
    axes: str
    """`batch_size var, hidden_size 7168`."""
    inputs: str
    """`hidden_states bfloat16[batch_size,hidden_size]; ...` in calling order."""
    outputs: str


def find_nearest(
    words: Collection[str], dataset: Mapping[str, Definition], own: Iterable[Definition], *, most: int = 2
) -> tuple[Neighbour, ...]:
    """Find the Definitions that share most words, one a kernel type: those of this model before others."""
    everything = list(_all(dataset, own))
    rated = [(_rate(words, item, where), -place, item, where) for place, (item, where) in enumerate(everything)]
    rated.sort(key=lambda entry: entry[:2], reverse=True)
    ordered = [entry for section in rank_sections(words) for entry in _best_of(section, rated)] + rated
    chosen: dict[str, Neighbour] = {}
    for score, _, item, where in ordered:
        stem = "_".join(find_words(item.name))
        if score > 0 and stem not in chosen:
            chosen[stem] = _describe(item, where)
    return tuple(chosen.values())[:most]


_Rated = tuple[float, int, Definition, str]


def _best_of(section: str, rated: Iterable[_Rated]) -> list[_Rated]:
    """Find the best of a family, such as the linear attentions, so that each family asked for is shown."""
    about = SECTIONS[section]
    family = (entry for entry in rated if set(find_words(entry[2].name, entry[2].op_type)) & set(about))
    return list(islice(family, 1))


def _all(dataset: Mapping[str, Definition], own: Iterable[Definition]) -> Iterator[tuple[Definition, str]]:
    yield from ((item, "this model") for item in own)
    yield from ((item, "dataset") for item in dataset.values())
    for kernel in list_kernel_types():
        example = _build_example(kernel)
        if example is not None:
            yield example, "example"


def _build_example(kernel: KernelType[Any]) -> Definition | None:
    """Build a kernel type in any sizes, to show its interface; None where it does not take these."""
    fields = kernel.parameters.model_fields.items()
    values = {name: _example_value(info.annotation) for name, info in fields if info.is_required()}
    try:
        built = kernel.build(values)
    except (FibError, ValueError):
        return None
    return built.model_copy(update={"description": built.description or kernel.summary})


def _example_value(annotation: Any) -> Any:
    if get_origin(annotation) is None:
        return {str: "bfloat16", bool: False, float: 1e-6}.get(annotation, _EXAMPLE_SIZE)
    first = get_args(annotation)[0]
    return first if isinstance(first, str) else _EXAMPLE_SIZE


def _rate(words: Collection[str], definition: Definition, where: str) -> float:
    texts = (
        definition.name,
        definition.op_type,
        " ".join(find_tag_values(definition.tags, "fi_api")),
        " ".join((definition.description or "", *definition.axes, *definition.inputs, *definition.outputs)),
    )
    found = [set(find_words(text)) for text in texts]
    score = sum(weight * sum(word in known for word in words) for weight, known in zip(_WEIGHTS, found, strict=True))
    score += _FAMILY * any(set(SECTIONS[section]) & (found[0] | found[1]) for section in rank_sections(words))
    longer = len(found[0] - set(words))
    return score - 0.1 * longer + (0.5 if where == "this model" else 0) if score else 0


def _describe(definition: Definition, where: str) -> Neighbour:
    axes = (
        f"{name} {axis.value}" if isinstance(axis, AxisConst) else f"{name} var"
        for name, axis in definition.axes.items()
    )
    return Neighbour(
        name=definition.name,
        op_type=definition.op_type,
        where=where,
        summary=(definition.description or "").partition(". ")[0][:160],
        axes=", ".join(axes),
        inputs=_signature(definition.inputs),
        outputs=_signature(definition.outputs),
    )


def _signature(tensors: Mapping[str, TensorSpec]) -> str:
    shapes = {name: "" if spec.shape is None else f"[{','.join(spec.shape)}]" for name, spec in tensors.items()}
    return "; ".join(f"{name} {spec.dtype.value}{shapes[name]}" for name, spec in tensors.items())
