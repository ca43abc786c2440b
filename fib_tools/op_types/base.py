"""What one kernel type knows about itself, and the small words its file is written in.

Each file of this package describes one op_type: the parameter classes of its kernel types, how they become a
Definition, which FlashInfer API and template arguments they have, and how valid inputs are made.
The registry finds the files by itself, so a new op_type is one new file.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

from fib_tools.model.base import Model
from fib_tools.model.definition import AxisConst, AxisVar, Definition, DType, TensorSpec
from fib_tools.op_types.ground_truth import GroundTruth, no_kernel
from fib_tools.op_types.input_request import InputRequest
from fib_tools.op_types.tolerance import Policy, Tolerance, exact, summed
from fib_tools.op_types.work_request import Work, WorkRequest

__all__ = [
    "InputRule",
    "KernelType",
    "MetaTensor",
    "OpType",
    "Parameters",
    "TemplateCall",
    "const",
    "scalar",
    "source",
    "tensor",
    "var",
]


class Parameters(Model):
    """The parameters of a kernel type: everything that makes two of its kernels different."""

    silent: ClassVar[Mapping[str, Any]] = {}
    """Parameters that the published names leave out, with the value that such a name means.

    Two kernels that differ only in these compete for one name; `qualifier` tells them apart.
    """

    def qualifier(self) -> str:
        """Spell the silent parameters that differ from what the plain name means, such as `eps1e-05`."""
        return self._spell(name for name, plain in self.silent.items() if getattr(self, name) != plain)

    def plain_qualifier(self) -> str:
        """Spell what the plain name means, such as `eps1e-06`: for when another kernel has taken that name."""
        return self._spell(name for name in self.silent if isinstance(getattr(self, name), (int, float)))

    def _spell(self, names: Iterable[str]) -> str:
        parts = [f"{name}{getattr(self, name)}" for name in names]
        return "_".join(part.replace("_", "").replace(" ", "") for part in parts)


P = TypeVar("P", bound=Parameters)


@dataclass(frozen=True, kw_only=True, slots=True)
class MetaTensor:
    """A tensor of a template call: shape and torch dtype name, no storage."""

    shape: tuple[int, ...]
    dtype: str = "bfloat16"


@dataclass(frozen=True, kw_only=True, slots=True)
class TemplateCall:
    """How to call FlashInfer's trace template of an API, so that it describes this kernel."""

    fi_api: str
    arguments: Mapping[str, Any]
    """By parameter name: MetaTensor, tuple of MetaTensor, or a plain value."""
    selector: Mapping[str, Any] = field(default_factory=dict)
    """Arguments that a dispatcher chooses the template by, such as `routing_method_type`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KernelType(Generic[P]):
    """A family of kernels that differ in parameters only."""

    id: str
    """Unique over all op_types, such as `gqa_paged_decode`."""
    op_type: str
    """The folder of its Definitions."""
    summary: str
    """One line that says what it computes."""
    parameters: type[P]
    define: Callable[[P], Definition]
    """Build the Definition under the dataset's canonical name, without model, tp or status tags."""
    fi_api: str | None = None
    """The FlashInfer API that computes it; None when FlashInfer has none."""
    fi_covers: Callable[[P], bool] | None = None
    """Whether the API computes it with these parameters; None: with all."""
    template: Callable[[P], TemplateCall | None] | None = None
    """None, or giving None, when the API has no trace template that can describe this kernel."""
    sglang_symbols: tuple[str, ...] = ()
    """What SGLang calls for it, dotted, such as `sgl_kernel.rmsnorm`."""
    ground_truth: Callable[[P], GroundTruth] | None = None
    """The real kernels that compute it, as wrappers with the reference's interface."""
    policy: Policy = summed
    """How near those come to the reference, by the element type of an output."""
    policies: Mapping[str, Policy] = field(default_factory=dict)
    """The same for single outputs, by name."""

    def find_fi_api(self, parameters: Mapping[str, Any]) -> str | None:
        """Find the FlashInfer API that computes the kernel with these parameters."""
        if self.fi_covers is None or self.fi_covers(self.parameters.model_validate(dict(parameters))):
            return self.fi_api
        return None

    def find_template_call(self, parameters: Mapping[str, Any]) -> TemplateCall | None:
        """Find the call that makes FlashInfer's trace template describe the kernel with these parameters."""
        return self.template(self.parameters.model_validate(dict(parameters))) if self.template else None

    def find_ground_truth(self, parameters: Mapping[str, Any]) -> GroundTruth:
        """Find the real kernels with these parameters, or the reason why there are none."""
        if self.ground_truth is None:
            return no_kernel(f"this project knows no kernel of {self.id} to call on its own")
        return self.ground_truth(self.parameters.model_validate(dict(parameters)))

    def find_tolerance(self, output: str, dtype: DType) -> Tolerance:
        """Find how near a kernel must come in this output; integers are the same or not."""
        policy = self.policies.get(output, self.policy if dtype.value[0] == "f" or dtype is DType.BFLOAT16 else exact)
        return policy(dtype)

    def build(self, parameters: Mapping[str, Any]) -> Definition:
        """Build the Definition from plain parameter values."""
        return self.define(self.parameters.model_validate(dict(parameters)))


InputRule = Callable[[InputRequest], Any]
"""Make one input, a tensor or a scalar."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OpType:
    """One op_type: its kernel types, and how the inputs of its Definitions, ours or others', are made."""

    name: str
    kernels: tuple[KernelType[Any], ...]
    input_rules: Mapping[str, InputRule] = field(default_factory=dict)
    """By input name, before the rules that hold for every op_type."""
    axis_sizes: Mapping[str, int] = field(default_factory=dict)
    """Small lengths of var axes for a trial run, by axis name, before the general ones."""
    input_code: Mapping[str, str] = field(default_factory=dict)
    """How a reference test writes an input down, by its name, before the general ways; see `input_code`."""
    test_sizes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Medium and large lengths of var axes for reference tests, by axis name, before the general ones."""
    packed: frozenset[str] = frozenset()
    """Inputs of wide integers that hold packed numbers, so that their content is free; bytes always are."""
    typical: frozenset[str] = frozenset()
    """Plain random activations for which other distributions mean nothing, such as logits that choose experts."""
    without_outliers: frozenset[str] = frozenset()
    """Plain random activations whose outliers make the result depend on roundings that every kernel does differently."""
    work: Callable[[WorkRequest], Work | None] | None = None
    """The least that any kernel must do; None, or giving None, for what holds without knowing the op_type."""


def const(value: int, description: str) -> AxisConst:
    """Declare a const axis."""
    return AxisConst(value=value, description=description)


def var(description: str) -> AxisVar:
    """Declare a var axis."""
    return AxisVar(description=description)


def tensor(dtype: str, axes: str, description: str) -> TensorSpec:
    """Declare a tensor; `axes` are axis names with spaces between, empty for a 0-d tensor."""
    return TensorSpec(shape=axes.split(), dtype=DType(dtype), description=description)


def scalar(dtype: str, description: str) -> TensorSpec:
    """Declare a scalar input."""
    return TensorSpec(shape=None, dtype=DType(dtype), description=description)


def source(body: str, **constants: object) -> str:
    """Put a reference together: imports, constants of the model as module constants, then the body with `def run`."""
    text = textwrap.dedent(body).strip() + "\n"
    imports = ["import torch"]
    if "math." in text:
        imports.insert(0, "import math")
    if "F." in text:
        imports.append("import torch.nn.functional as F")
    header = [f"{name} = {value!r}" for name, value in constants.items()]
    blocks = ["\n".join(imports), *(["\n".join(header)] if header else []), text]
    return "\n\n".join(blocks[:-1]) + "\n\n\n" + blocks[-1]
