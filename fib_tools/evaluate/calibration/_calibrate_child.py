"""What runs in the sandbox for a calibration: reference, float64, kernels and faults on the same inputs, as numbers.

The payload: `document` (the Definition), `kernels` (source by API), `values` (outputs whose errors are measured), `same`
(those that are the same or not), `cases` (`axes`, `seed`, `distribution`, and `breaks_source`: whether faults of the
source are tried), `caches` (folders of compilers) and `device`. The answer: `cases`, and `unavailable` with the reason of
each kernel, fault or case that could not be measured. Faults of the source are tried on the CPU, always: an index that is
off by one ends a CUDA context.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fib_tools.errors import FibError
from fib_tools.evaluate._runner.caches import keep_caches_here
from fib_tools.evaluate.calibration.faults import OUTPUT_FAULTS, list_source_faults, widen
from fib_tools.evaluate.calibration.profiles import measure_profile, measure_same
from fib_tools.model.base import read_lenient, to_document
from fib_tools.model.definition import Definition
from fib_tools.op_types.axes import choose_axes
from fib_tools.op_types.inputs import plan_inputs

__all__ = ["Subject", "measure", "measure_confined"]

_MESSAGE_LENGTH = 300
_STALE = 1 << 20
"""Added to a case's seed: the inputs of another call."""

_Run = Callable[..., Any]
_Outputs = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """What is measured."""

    definition: Definition
    values: frozenset[str]
    same: frozenset[str]
    device: str
    unavailable: dict[str, str]

    def load(self, source: str, what: str) -> _Run | None:
        """Load a module's `run`; None, and a note of why, if that fails."""
        namespace: dict[str, Any] = {"__name__": what}
        try:
            exec(compile(source, f"{what}.py", "exec"), namespace)  # noqa: S102  # confined child
        except Exception as error:  # noqa: BLE001  # any source may raise anything; the answer says what
            self.unavailable[what] = _describe(error)
            return None
        found: _Run = namespace["run"]
        return found

    def call(self, run: _Run | None, what: str, inputs: Mapping[str, Any], *, is_wide: bool = False) -> _Outputs:
        """Give the outputs by name, from the same state of torch's generator; none, and a note of why, if that fails."""
        if run is None:
            return {}
        torch.manual_seed(0)
        own = [_own(value, is_wide=is_wide) for value in inputs.values()]
        try:
            with torch.no_grad():
                result = run(*own)
        except Exception as error:  # noqa: BLE001  # any source may raise anything; the answer says what
            self.unavailable[what] = _describe(error)
            return {}
        values = list(result) if isinstance(result, (tuple, list)) else [result]
        outputs = dict(zip(self.definition.outputs, values, strict=False))
        if len(values) != len(self.definition.outputs) or not all(isinstance(v, torch.Tensor) for v in values):
            self.unavailable[what] = f"gives {len(values)} values for {len(self.definition.outputs)} tensors"
            return {}
        return outputs

    def profile(self, what: str, got: _Outputs, want: _Outputs) -> dict[str, Any]:
        """Measure each output; none, and a note of why, if one has another shape."""
        profiles = {}
        for name, left in got.items():
            right, dtype = want[name], self.definition.outputs[name].dtype
            if left.shape != right.shape:
                self.unavailable[what] = f"{name} is {list(left.shape)}, the reference's is {list(right.shape)}"
                return {}
            if name in self.values:
                profiles[name] = to_document(measure_profile(left.to(right.dtype), right, dtype))
            elif name in self.same:
                profiles[name] = to_document(measure_same(left, right))
        return profiles


def measure_confined(payload: dict[str, Any]) -> dict[str, Any]:
    """Measure every case in a process of its own, whose compilers' folders are set."""
    keep_caches_here(payload["caches"])
    return measure(payload)


def measure(payload: dict[str, Any]) -> dict[str, Any]:
    """Measure every case."""
    definition = read_lenient(Definition, payload["document"], where=payload["document"].get("name", "definition"))
    unavailable: dict[str, str] = {}
    subject = Subject(
        definition=definition,
        values=frozenset(payload["values"]),
        same=frozenset(payload["same"]),
        device=payload["device"],
        unavailable=unavailable,
    )
    runs = _Runs(subject, payload["kernels"])
    cases = []
    for case in payload["cases"]:
        try:
            cases.append(_measure_case(subject, runs, case))
        except (FibError, RuntimeError, ValueError) as error:
            unavailable[f"case {case['axes']} {case['distribution']} {case['seed']}"] = _describe(error)
    gpu = torch.cuda.get_device_name() if subject.device == "cuda" else ""
    return {"cases": cases, "unavailable": unavailable, "gpu": gpu, "libs": {"torch": torch.__version__}}


class _Runs:
    """The functions that are called on each case."""

    def __init__(self, subject: Subject, kernels: Mapping[str, str]) -> None:
        text = subject.definition.reference
        reference = subject.load(text, "reference")
        if reference is None:
            raise ValueError(f"the reference cannot be loaded: {subject.unavailable['reference']}")
        self.reference = reference
        self.wide = subject.load(widen(text), "float64")
        self.kernels = {api: run for api, source in kernels.items() if (run := subject.load(source, api))}
        faults = {fault.name: subject.load(fault.source, fault.name) for fault in list_source_faults(text)}
        self.faults = {name: run for name, run in faults.items() if run}


def _measure_case(subject: Subject, runs: _Runs, case: Mapping[str, Any]) -> dict[str, Any]:
    definition = subject.definition
    axes = choose_axes(definition, case["axes"])
    plan = plan_inputs(definition, axes, seed=case["seed"], device=subject.device, distribution=case["distribution"])
    inputs = plan.make(case["seed"])
    right = subject.call(runs.reference, "reference", inputs)
    other = subject.call(runs.reference, "reference", plan.make(case["seed"] + _STALE))
    if not right or not other:
        raise ValueError(f"the reference failed: {subject.unavailable['reference']}")
    trusted, agreement = _measure_trusted(subject, runs, inputs, right)
    return {
        "axes": {name: axes[name] for name in definition.var_axes},
        "seed": case["seed"],
        "distribution": case["distribution"],
        "trusted": trusted,
        "agreement": agreement,
        "faults": {
            **(_break_source(subject, runs, case) if case["breaks_source"] else {}),
            **_break_outputs(subject, right, other),
        },
    }


def _measure_trusted(
    subject: Subject, runs: _Runs, inputs: Mapping[str, Any], right: _Outputs
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Measure kernels and the reference against float64, rounded as declared, and both against the reference."""
    exact = subject.call(runs.wide, "float64", inputs, is_wide=True)
    exact = {name: value.to(right[name].dtype) for name, value in exact.items()}
    made = {api: subject.call(run, api, inputs) for api, run in runs.kernels.items()}
    trusted = {
        api: subject.profile(api, got, exact) for api, got in {"reference": right, **made}.items() if exact and got
    }
    agreement = {api: subject.profile(api, got, right) for api, got in {"reference": exact, **made}.items() if got}
    return _drop_empty(trusted), _drop_empty(agreement)


def _break_source(subject: Subject, runs: _Runs, case: Mapping[str, Any]) -> dict[str, Any]:
    axes = choose_axes(subject.definition, case["axes"])
    plan = plan_inputs(subject.definition, axes, seed=case["seed"], device="cpu", distribution=case["distribution"])
    inputs = plan.make(case["seed"])
    right = subject.call(runs.reference, "reference", inputs)
    made = {name: subject.call(run, name, inputs) for name, run in runs.faults.items()}
    return _drop_empty({name: subject.profile(name, got, right) for name, got in made.items() if got})


def _break_outputs(subject: Subject, right: _Outputs, other: _Outputs) -> dict[str, Any]:
    """Break one output at a time, of those that are numbers."""
    found: dict[str, Any] = {}
    for name in sorted(subject.values):
        for kind, change in OUTPUT_FAULTS.items():
            wrong = change(right[name], other[name])
            if wrong is not None:
                profile = measure_profile(wrong, right[name], subject.definition.outputs[name].dtype)
                found[f"{kind}:{name}"] = {name: to_document(profile)}
    return found


def _drop_empty(found: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: profiles for name, profiles in found.items() if profiles}


def _own(value: Any, *, is_wide: bool) -> Any:
    """Give a call storage of its own, unless that is shared so that it fits into memory."""
    if not isinstance(value, torch.Tensor):
        return value
    if is_wide and value.dtype == torch.float32:
        return value.double()
    return value if 0 in value.stride() else value.clone()


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:_MESSAGE_LENGTH]}"
