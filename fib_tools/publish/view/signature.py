"""What a Definition declares: its call, tensors, axes and constraints."""

from __future__ import annotations

from collections.abc import Mapping

from fib_tools.model.definition import AxisConst, Definition, TensorSpec
from fib_tools.publish.markup import Html, join, tag
from fib_tools.publish.view.cells import list_table

__all__ = ["show_axes", "show_call", "show_constraints", "show_tensors"]


def show_call(definition: Definition) -> Html:
    """Write how it is called: the names in calling order."""
    given = join((tag("span", name, class_="nw") for name in definition.inputs), ", ")
    made = join((tag("span", name, class_="nw") for name in definition.outputs), ", ")
    return tag("p", tag("code", tag("b", "run"), "(", given, ") → ", made), class_="call")


def show_tensors(definition: Definition) -> Html:
    """List inputs and outputs with shapes and dtypes."""
    rows = []
    for way, tensors in (("in", definition.inputs), ("out", definition.outputs)):
        for name, spec in tensors.items():
            head = join([tag("code", name), tag("span", way, class_=f"chip {way}")], " ")
            rows.append((head, _shape(spec, definition), tag("code", spec.dtype.value), spec.description or ""))
    columns = ("tensor", "shape", "dtype", "what it is")
    return list_table(columns, rows, label=f"Inputs and outputs of {definition.name}")


def _shape(spec: TensorSpec, definition: Definition) -> Html:
    if spec.shape is None:
        return tag("span", "scalar", class_="dim")
    axes = []
    for name in spec.shape:
        axis = definition.axes[name]
        if isinstance(axis, AxisConst):
            axes.append(tag("span", name, tag("span", "="), tag("b", str(axis.value)), class_="ax const"))
        else:
            axes.append(tag("span", name, class_="ax var"))
    return tag("code", "[", join(axes, ", "), "]", class_="shape")


def show_axes(definition: Definition, seen: Mapping[str, str]) -> Html:
    """List the axes; `seen` says which lengths Workloads give those that are var."""
    rows = []
    for name, axis in definition.axes.items():
        if isinstance(axis, AxisConst):
            head, length = tag("code", name), tag("b", f"{axis.value:,}")
        else:
            head, length = tag("code", name, class_="ax var"), tag("span", seen.get(name, "var"), class_="dim")
        rows.append((head, length, axis.description or ""))
    return list_table(("axis", "length", "what it is"), rows, label=f"Axes of {definition.name}")


def show_constraints(definition: Definition) -> list[Html]:
    """List what holds for every Workload; nothing where nothing is said."""
    if not definition.constraints:
        return []
    items = (tag("li", tag("code", text)) for text in definition.constraints)
    return [tag("h3", "Constraints"), tag("ul", *items, class_="constraints")]
