"""The dump while it is being repaired: the fixes of this package change it in turn and record what they changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Draft", "RefusedError", "read_draft"]

_HOOKED = "fib_"
"""How fields begin that the hook of a trace-dump wrote for the gate."""
_NAMED = ("name", "description", "op_type", "tags", "axes", "constraints", "inputs", "outputs", "reference")


class RefusedError(Exception):
    """A dump that cannot be made a Definition; caught by `normalise`, which reports the reason."""


@dataclass(kw_only=True, slots=True)
class Draft:
    """A dump in repair."""

    name: str
    op_type: str
    description: str | None
    tags: list[str]
    axes: dict[str, dict[str, Any]]
    constraints: list[str]
    inputs: dict[str, dict[str, Any]]
    outputs: dict[str, dict[str, Any]]
    reference: str
    extra: dict[str, Any]
    """Fields the schema does not know, such as `init` and `check`; kept, but for what was written for the gate."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """Plain arguments of the call, where it is known."""
    absent: frozenset[str] | None = None
    """Inputs that the call did not pass; None when the call is not known."""
    baked: dict[str, Any] = field(default_factory=dict)
    """Values of inputs that are constants of this kernel, for the wrapper to pass."""
    views: dict[str, str] = field(default_factory=dict)
    """Inputs that the schema cannot type, by name: the torch dtype that the reference wants to see."""
    output_views: dict[str, str] = field(default_factory=dict)
    """Outputs that the schema cannot type: the torch dtype of the same width that they are handed out in."""
    output_casts: dict[str, str] = field(default_factory=dict)
    """Outputs that are rounded to a torch dtype."""
    renamed: dict[str, str] = field(default_factory=dict)
    """Outputs that had an input's name: new name to old."""
    dropped: set[str] = field(default_factory=set)
    """Inputs left out, by API parameter; a reference that requires one gets None, as the API's default is."""
    changes: list[str] = field(default_factory=list)

    def change(self, text: str) -> None:
        """Record one repair."""
        if text not in self.changes:
            self.changes.append(text)

    def drop_input(self, name: str, why: str) -> None:
        """Leave an input out."""
        self.dropped.update((name, self.parameter_of(name)))
        del self.inputs[name]
        self.change(f"input {name} dropped: {why}")

    def parameter_of(self, name: str) -> str:
        """Name the API parameter that an input stands for."""
        return str(self.inputs[name].get("param") or name)

    @property
    def const_values(self) -> dict[str, int]:
        """The const axes that have a value."""
        return {name: axis["value"] for name, axis in self.axes.items() if axis.get("value") is not None}

    def axes_of_inputs(self) -> set[str]:
        """The axes that some tensor input has."""
        return {axis for spec in self.inputs.values() for axis in spec["shape"] or ()}

    def to_document(self) -> dict[str, Any]:
        """Write the Definition's document, unknown fields last."""
        document: dict[str, Any] = {"name": self.name}
        if self.description:
            document["description"] = self.description
        document |= {"op_type": self.op_type, "tags": self.tags, "axes": self.axes}
        if self.constraints:
            document["constraints"] = self.constraints
        document |= {"inputs": self.inputs, "outputs": self.outputs, "reference": self.reference}
        return {**document, **self.extra}


def read_draft(raw: Mapping[str, Any], *, values: Mapping[str, Any], absent: frozenset[str] | None) -> Draft:
    """Read a raw dump whose parts have the right types already.

    Raises:
        RefusedError: when it has no outputs or no reference.
    """
    if not raw.get("outputs"):
        raise RefusedError("not a dump: it has no outputs")
    if not (raw.get("reference") or "").strip():
        raise RefusedError("no reference: FlashInfer has none for this API")
    return Draft(
        name=raw["name"],
        op_type=raw["op_type"],
        description=raw.get("description") or None,
        tags=list(raw.get("tags") or ()),
        axes={name: dict(axis) for name, axis in raw["axes"].items()},
        constraints=list(raw.get("constraints") or ()),
        inputs={name: dict(spec) for name, spec in raw["inputs"].items()},
        outputs={name: dict(spec) for name, spec in raw["outputs"].items()},
        reference=raw["reference"],
        extra={name: value for name, value in raw.items() if name not in _NAMED and not name.startswith(_HOOKED)},
        values=values,
        absent=absent,
    )
