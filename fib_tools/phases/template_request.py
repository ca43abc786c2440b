"""A request to FlashInfer for a trace template: for an API whose kernel a Definition describes and whose calls it does not trace.

The text only; sending it is another step. What it proposes is code that FlashInfer's `TraceTemplate` takes.
"""

from __future__ import annotations

from fib_tools.model.base import Model, NonEmpty
from fib_tools.model.definition import AxisConst, Definition, TensorSpec
from fib_tools.model.naming import cut_name

__all__ = ["TemplateRequest", "format_template_request"]


class TemplateRequest(Model):
    """An issue, ready to be opened."""

    title: NonEmpty
    body: NonEmpty
    """Markdown."""


def format_template_request(definition: Definition, fi_api: str) -> TemplateRequest:
    """Ask for `@flashinfer_api(trace=...)` on an API, with the template that this Definition would come from."""
    name = fi_api.removeprefix("flashinfer.")
    consts = ", ".join(f"`{axis}`" for axis in definition.const_axes) or "none"
    lines = [
        f"`{fi_api}` computes `{definition.name}` of flashinfer-trace, but a call of it leaves no trace.",
        "It has no `@flashinfer_api(trace=...)`, so a dump of a serving engine misses this kernel.",
        "Nor can `trace_apply` put a Solution in its place.",
        "",
        "## What the template would say",
        "",
        definition.description or "",
        "",
        f"Constant for one kernel: {consts}. Everything else varies from call to call.",
        "",
        "```python",
        *_template(definition),
        "```",
        "",
        *_conditions(definition),
        "## Reference",
        "",
        "It runs on a CPU and on a GPU, and was executed with generated inputs of the shapes above.",
        "",
        "```python",
        definition.reference.strip(),
        "```",
        "",
        "## What would show that it is right",
        "",
        f"- `{name}` called on tensors of these shapes dumps a Definition whose axes, inputs and outputs are those above.",
        "- The reference and the kernel agree on the same inputs; the Definition's reference test compares them.",
    ]
    return TemplateRequest(title=f"Trace template for {name} ({definition.op_type})", body="\n".join(lines) + "\n")


def _template(definition: Definition) -> list[str]:
    prefix = "_".join(part.word for part in cut_name(definition.name).parts if part.number is None)
    lines = [
        "TraceTemplate(",
        f"    op_type={_quoted(definition.op_type)},",
        f"    name_prefix={_quoted(prefix)},",
        "    axes={",
    ]
    for name, axis in definition.axes.items():
        kind = "Const" if isinstance(axis, AxisConst) else "Var"
        lines.append(f"        {_quoted(name)}: {kind}(description={_quoted(axis.description or '')}),")
    for part, specs in (("inputs", definition.inputs), ("outputs", definition.outputs)):
        lines += [
            "    },",
            f"    {part}={{",
            *(f"        {_quoted(name)}: {_spec(spec)}," for name, spec in specs.items()),
        ]
    constraints = [f"    constraints={definition.constraints!r},"] if definition.constraints else []
    return [*lines, "    },", *constraints, "    reference=run,", ")"]


def _spec(spec: TensorSpec) -> str:
    dtype = f"dtype={_quoted(spec.dtype.value)}"
    if spec.shape is None:
        return f"Scalar({dtype})"
    return f"Tensor([{', '.join(map(_quoted, spec.shape))}], {dtype})"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ")
    return f'"{escaped}"'


def _conditions(definition: Definition) -> list[str]:
    """List what a template cannot read off shapes."""
    scalars = [name for name, spec in definition.inputs.items() if spec.shape is None]
    if not scalars:
        return []
    named = ", ".join(f"`{name}`" for name in scalars)
    return ["## What shapes do not show", "", f"The values of {named} belong to the call; a dump should keep them.", ""]
