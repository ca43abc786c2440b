from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from fib_tools.model.base import to_document
from fib_tools.model.definition import Definition
from fib_tools.op_types.axes import choose_axes
from fib_tools.op_types.base import MetaTensor, TemplateCall
from fib_tools.op_types.inputs import generate_inputs
from fib_tools.op_types.registry import get_kernel_type

if TYPE_CHECKING:
    import torch

Run = Callable[..., "tuple[torch.Tensor, ...]"]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A Definition, inputs made for it, and what its reference returned."""

    definition: Definition
    axes: Mapping[str, int]
    inputs: Mapping[str, Any]
    outputs: Mapping[str, torch.Tensor]


def _run(definition: Definition, *inputs: Any) -> tuple[torch.Tensor, ...]:
    import torch

    namespace: dict[str, Any] = {}
    exec(compile(definition.reference, definition.name, "exec"), namespace)  # noqa: S102  # our own reference
    torch.manual_seed(0)
    outputs = namespace["run"](*inputs)
    return outputs if isinstance(outputs, tuple) else (outputs,)


@pytest.fixture
def run_reference() -> Run:
    """Run a Definition's reference on given inputs, seeded, and give its outputs as a tuple."""
    return _run


@pytest.fixture
def try_kernel() -> Callable[..., Trial]:
    """Build a kernel's Definition, make inputs, run the reference."""

    def attempt(kernel: str, sizes: Mapping[str, int] | None = None, **parameters: Any) -> Trial:
        definition = get_kernel_type(kernel).build(parameters)
        axes = choose_axes(definition, sizes)
        inputs = generate_inputs(definition, axes)
        outputs = _run(definition, *inputs.values())
        return Trial(
            definition=definition,
            axes=axes,
            inputs=inputs,
            outputs=dict(zip(definition.outputs, outputs, strict=True)),
        )

    return attempt


@pytest.fixture
def check_conformance(try_kernel: Callable[..., Trial]) -> Callable[..., None]:
    """Hold a kernel to everything that any kernel must do."""

    def check(kernel: str, name: str, sizes: Mapping[str, int] | None = None, **parameters: Any) -> None:
        trial = try_kernel(kernel, sizes, **parameters)
        definition = trial.definition
        assert definition.name == name
        assert definition.op_type == get_kernel_type(kernel).op_type
        _assert_described(definition)
        _assert_accepted_by_flashinfer_bench(definition)
        _assert_declared(trial)
        _assert_inputs_untouched(trial)
        if get_kernel_type(kernel).template:
            _assert_template_agrees(kernel, trial, parameters)

    return check


def _assert_described(definition: Definition) -> None:
    assert definition.description
    described = {**definition.axes, **definition.inputs, **definition.outputs}
    assert [name for name, item in described.items() if not item.description] == []


def _assert_accepted_by_flashinfer_bench(definition: Definition) -> None:
    from flashinfer_bench.data import Definition as PeerDefinition

    document = to_document(definition)
    peer = PeerDefinition.model_validate(document)
    assert list(peer.inputs) == list(definition.inputs)
    assert list(peer.outputs) == list(definition.outputs)
    bound = {axis for spec in definition.inputs.values() for axis in spec.shape or ()}
    assert set(definition.var_axes) <= bound, "an axis that no input binds has no length in a call"


def _assert_declared(trial: Trial) -> None:
    import torch

    for name, spec in trial.definition.outputs.items():
        output = trial.outputs[name]
        assert tuple(output.shape) == tuple(trial.axes[axis] for axis in spec.shape or ()), name
        assert str(output.dtype) == f"torch.{spec.dtype.value}", name
        assert not output.is_floating_point() or bool(torch.isfinite(output.float()).all()), name


def _assert_inputs_untouched(trial: Trial) -> None:
    import torch

    again = generate_inputs(trial.definition, trial.axes)
    for name, value in trial.inputs.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, again[name]), name


def _assert_template_agrees(kernel: str, trial: Trial, parameters: Mapping[str, Any]) -> None:
    kind = get_kernel_type(kernel)
    assert kind.template is not None
    call = kind.template(kind.parameters.model_validate(parameters))
    assert call.fi_api == kind.fi_api
    described = _describe(call)
    ours = trial.definition
    fixed = {name: axis["value"] for name, axis in described["axes"].items() if axis["type"] == "const"}
    assert set(fixed.values()) <= {*ours.const_axes.values(), *(fixed[name] for name in fixed if name in ours.var_axes)}
    shared = fixed.keys() & ours.const_axes.keys()
    assert {name: fixed[name] for name in shared} == {name: ours.const_axes[name] for name in shared}
    for name, spec in described["inputs"].items():
        if name in ours.inputs:
            assert (name, spec["dtype"]) == (name, ours.inputs[name].dtype.value)
            assert _rank(spec["shape"]) == _rank(ours.inputs[name].shape), name
        elif not spec.get("optional"):
            assert spec["dtype"] != "unknown", f"{name} is not in the call"
    dtypes = [spec["dtype"] for spec in described["outputs"].values() if not spec.get("optional")]
    assert dtypes == [spec.dtype.value for spec in ours.outputs.values()][: len(dtypes)]


def _rank(shape: list[str] | None) -> int | None:
    return None if shape is None else len(shape)


def _describe(call: TemplateCall) -> dict[str, Any]:
    """Let FlashInfer's template describe the call, and check every shape against the axes, which it does not."""
    import torch

    def as_meta(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(as_meta(item) for item in value)
        if isinstance(value, MetaTensor):
            return torch.empty(value.shape, dtype=getattr(torch, value.dtype), device="meta")
        return value

    module, _, name = call.fi_api.rpartition(".")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # FlashInfer's own imports warn
        api = getattr(importlib.import_module(module), name)
    arguments = {key: as_meta(value) for key, value in call.arguments.items()}
    described: dict[str, Any] = api.fi_trace(**arguments)
    lengths: dict[str, int] = {}
    for key, spec in described["inputs"].items():
        value = arguments.get(_PARAMETER.get((call.fi_api, key), key))
        if isinstance(value, torch.Tensor) and spec["shape"] is not None:
            assert len(spec["shape"]) == value.dim(), key
            for axis, length in zip(spec["shape"], value.shape, strict=True):
                assert lengths.setdefault(axis, length) == length, (key, axis)
    for axis, declared in described["axes"].items():
        if declared["type"] == "const":
            assert lengths.get(axis, declared["value"]) == declared["value"], axis
    return described


_PREFILL = "flashinfer.gdn_prefill.chunk_gated_delta_rule"
_PARAMETER: Mapping[tuple[str, str], str] = {
    (_PREFILL, "state"): "initial_state",
    (_PREFILL, "a"): "g",
    (_PREFILL, "b"): "beta",
    **{
        (f"flashinfer.norm.{name}", "hidden_states"): "input"
        for name in ("rmsnorm", "gemma_rmsnorm", "fused_add_rmsnorm", "gemma_fused_add_rmsnorm")
    },
}
"""Where a template reads an input from a parameter of another name."""


def ulp_distance(actual: torch.Tensor, exact: torch.Tensor) -> float:
    """Return the largest error in units of the last place of `actual`'s type, at the exact value's magnitude."""
    import torch

    exact = exact.to(torch.float64)
    info = torch.finfo(actual.dtype)
    exponent = torch.floor(torch.log2(exact.abs().clamp(min=info.tiny)))
    ulp = torch.exp2(exponent) * info.eps
    return float(((actual.to(torch.float64) - exact).abs() / ulp).max())


@pytest.fixture
def ulps() -> Callable[[torch.Tensor, torch.Tensor], float]:
    """Measure how many units of the last place lie between an output and the exact value."""
    return ulp_distance
