"""A model as a tree of its modules, with the kernels that each calls and what the dataset has of them.

The kernels come from the model's manifest; without one, from the bundled config and the cookbook's ways of serving; of a
model that neither knows, from the tags of Definitions alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from fib_tools.architecture.facts import read_facts
from fib_tools.architecture.facts_schema import ModelFacts
from fib_tools.architecture.inventory import build_inventory, list_serving_points
from fib_tools.model.kernel import KernelNeed
from fib_tools.model.manifest import DefineStatus, Manifest, ManifestKernel
from fib_tools.op_types.registry import find_kernel_type
from fib_tools.publish.view.catalogue import Entry
from fib_tools.sources.registry import ModelEntry, find_model

__all__ = ["Coverage", "ModelKernel", "ModelView", "Node", "build_tree", "view_model"]

Coverage = Literal["measured", "workloads", "definition", "missing"]
"""What the dataset has of a kernel: evaluations, Workloads, the Definition alone, or nothing."""

_OUTSIDE = "elsewhere in the model"
_DEEPEST = 24
"""Steps of a module's path; a real one has half a dozen."""


@dataclass(frozen=True, kw_only=True)
class ModelKernel:
    """A kernel of a model, as it is served."""

    name: str
    op_type: str
    modules: tuple[str, ...]
    layers: int = 0
    tp: tuple[int, ...] = ()
    ep: tuple[int, ...] = ()
    page_sizes: tuple[int, ...] = ()
    stages: tuple[str, ...] = ()
    entry: Entry | None = None
    """What the dataset has of it."""

    @property
    def coverage(self) -> Coverage:
        """Say how far it has come."""
        if self.entry is None:
            return "missing"
        return "measured" if self.entry.evaluations else "workloads" if self.entry.workloads else "definition"


@dataclass(frozen=True, kw_only=True)
class ModelView:
    """All that there is to show of a model."""

    slug: str
    repo_id: str = ""
    source: str = ""
    """Where its kernels are known from."""
    facts: ModelFacts | None = None
    serving: tuple[str, ...] = ()
    kernels: tuple[ModelKernel, ...] = ()
    open: tuple[tuple[str, str], ...] = ()
    """What was refused or is not explained, and why."""


@dataclass
class Node:
    """A module, the modules in it, and the kernels that it calls itself."""

    name: str
    layers: int = 0
    kernels: list[ModelKernel] = field(default_factory=list)
    children: dict[str, Node] = field(default_factory=dict)

    def count(self) -> int:
        """Count the kernels in it and below; one that two modules call counts in both."""
        return len(self.kernels) + sum(child.count() for child in self.children.values())


def view_model(slug: str, tagged: Sequence[Entry], names: Mapping[str, Entry], manifest: Manifest | None) -> ModelView:
    """Gather what is known of a model; `tagged` are the Definitions with its tag, `names` all of the dataset."""
    known = find_model(slug)
    facts = _read_facts(known)
    if manifest is not None:
        kernels = _from_manifest(manifest, names)
        refused = [(item.subject, item.reason) for item in manifest.refused]
        refused += [(f"{item.operation} in {item.module}", item.detail) for item in manifest.unexplained]
        refused += [(kernel.name, kernel.define_reason) for kernel in manifest.kernels if _is_refused(kernel, names)]
        serving, source = manifest.serving, "its manifest in the workspace"
    elif facts is not None and known is not None:
        kernels, serving = _from_inventory(facts, known, names)
        refused, source = [], "its bundled config, for the sgl-cookbook's configurations"
    else:
        kernels, serving, refused, source = [], (), [], "the tags of Definitions"
    listed = {kernel.entry.definition.name for kernel in kernels if kernel.entry is not None}
    kernels += [_from_tag(entry) for entry in tagged if entry.definition.name not in listed]
    repo_id = (manifest.repo_id if manifest else None) or (known.repo_id if known else "")
    return ModelView(
        slug=slug,
        repo_id=repo_id,
        source=source,
        facts=facts,
        serving=tuple(serving),
        kernels=tuple(kernels),
        open=tuple(refused),
    )


def _read_facts(known: ModelEntry | None) -> ModelFacts | None:
    config = known.config if known else None
    return None if known is None or config is None else read_facts(config, name=known.repo_id)


def _from_manifest(manifest: Manifest, names: Mapping[str, Entry]) -> list[ModelKernel]:
    return [
        _make_kernel(kernel.definition or kernel.name, kernel.op_type, kernel, names)
        for kernel in manifest.kernels
        if not _is_refused(kernel, names)
    ]


def _is_refused(kernel: ManifestKernel, names: Mapping[str, Entry]) -> bool:
    """Tell whether the gate let it not through, and nothing of its name is there."""
    return kernel.define_status is DefineStatus.REFUSED and (kernel.definition or kernel.name) not in names


def _from_inventory(
    facts: ModelFacts, known: ModelEntry, names: Mapping[str, Entry]
) -> tuple[list[ModelKernel], tuple[str, ...]]:
    inventory = build_inventory(facts, list_serving_points(known.repo_id))
    kernels = []
    for need in inventory.needs:
        kernel_type = find_kernel_type(need.kernel)
        if kernel_type is None:
            continue
        definition = kernel_type.build(need.parameters)
        kernels.append(_make_kernel(definition.name, definition.op_type, need, names))
    return kernels, tuple(dict.fromkeys(point.describe() for point in inventory.points))


def _make_kernel(
    name: str, op_type: str, served: ManifestKernel | KernelNeed, names: Mapping[str, Entry]
) -> ModelKernel:
    return ModelKernel(
        name=name,
        op_type=op_type,
        modules=_cut(served.module),
        layers=served.layers,
        tp=served.tp,
        ep=served.ep,
        page_sizes=served.page_sizes,
        stages=served.stages,
        entry=names.get(name),
    )


def _from_tag(entry: Entry) -> ModelKernel:
    return ModelKernel(name=entry.definition.name, op_type=entry.definition.op_type, modules=(_OUTSIDE,), entry=entry)


def _cut(modules: str) -> tuple[str, ...]:
    """Take the modules that call a kernel apart: an inventory names them with commas between."""
    return tuple(modules.split(", ")) if modules else (_OUTSIDE,)


def build_tree(kernels: Iterable[ModelKernel]) -> Node:
    """Hang every kernel under the modules that call it; a module that holds one other alone is joined with it."""
    root = Node(name="")
    for kernel in kernels:
        for module in kernel.modules:
            node = root
            for step in module.split(".", _DEEPEST) if module != _OUTSIDE else (module,):
                node = node.children.setdefault(step, Node(name=step))
                node.layers = max(node.layers, kernel.layers)
            node.kernels.append(kernel)
    root.children = {child.name: child for child in map(_join, root.children.values())}
    return root


def _join(node: Node) -> Node:
    children = [_join(child) for child in node.children.values()]
    if len(children) == 1 and not node.kernels:
        (child,) = children
        return Node(
            name=f"{node.name}.{child.name}", layers=child.layers, kernels=child.kernels, children=child.children
        )
    node.children = {child.name: child for child in children}
    return node
