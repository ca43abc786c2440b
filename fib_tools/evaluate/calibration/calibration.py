"""Tolerances from evidence: as wide as trusted kernels need with a margin, as narrow as injected faults demand.

A `Calibration` lies at `calibrations/<op_type>/<definition>.json` of the workspace. It belongs to one text of the
Definition: another reference has another hash, and what was measured for it does not count.

A trusted error is that of a real kernel, or of the reference itself, against the reference in float64. Bounds are
4 times the worst of them beyond the format's own last rounding (2 times where a fault would pass otherwise), rounded up
to powers of two. What is a small part of that rounding may be 16 times as large: at other sizes a library runs other
kernels, which sum in another order, and of millions of values some are farther off than of the thousands measured here.
Without a real kernel (on a CPU, or where there is none) nothing is known about honest kernels: the op_type's policy
stays, and the faults are judged by it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from fib_tools.evaluate.calibration.faults import REQUIRED
from fib_tools.evaluate.calibration.profiles import HIT_RATIOS, LEAST_ATOL, UNBOUNDED, ErrorProfile, list_rtols, unit_of
from fib_tools.evaluate.judge.comparison import limit_bias
from fib_tools.host.files import read_limited, storage_errors, write_atomically
from fib_tools.host.paths import confine
from fib_tools.model.base import Model, read_strict
from fib_tools.model.canonical import canonical_bytes, content_hash, load_json
from fib_tools.model.definition import Definition, DType
from fib_tools.op_types.base import KernelType
from fib_tools.op_types.registry import find_op_type
from fib_tools.op_types.tolerance import Tolerance, exact, sampled, summed

__all__ = [
    "Calibration",
    "Case",
    "FaultResult",
    "OutputCalibration",
    "calibrate",
    "find_calibration",
    "find_tolerances",
    "hash_kernel",
    "save_calibration",
]

FOLDER = "calibrations"
_LIMIT = 16 << 20
_MARGINS = (4.0, 2.0)
"""Of bounds over trusted errors; two is the least, since the kernel and the reference it is compared with both err."""
_FAR_MARGIN, _FAR = 16.0, 256.0
"""Of a float32 output's bounds, which every fault is over by so much: longer calls than those that were measured err more,
and no rounding of the format has room for it."""
_MINOR_MARGIN, _MINOR_PART = 16.0, 1 / 32
"""Of an atol that is at most this part of the output format's rounding."""
_CHANCE = ("torch.multinomial", "torch.rand", "torch.bernoulli", "exponential_", "normal_")
_NUMBERS = (DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16, DType.FLOAT8_E4M3FN, DType.FLOAT8_E5M2)


class Case(Model):
    """What was measured with one seed, size and distribution."""

    axes: dict[str, int]
    seed: int
    distribution: str
    trusted: dict[str, dict[str, ErrorProfile]]
    """By source (an API, or `reference`), then by output: the error against float64."""
    agreement: dict[str, dict[str, ErrorProfile]]
    """The same against the reference as it is: what the evaluator will see."""
    faults: dict[str, dict[str, ErrorProfile]]
    """By fault, then by output: the error against the reference as it is."""


class OutputCalibration(Model):
    """The bounds of one output, and how much of them was used."""

    dtype: DType
    rtol: float
    atol: float
    hit_ratio: float
    how: str = "values"
    basis: Literal["kernels", "policy"]
    """Whether the bounds follow from errors of real kernels, or are the op_type's."""
    source: str
    trusted: dict[str, float] = Field(default_factory=dict)
    """By trusted source: its worst error as a share of the bound."""
    least_fault: float | None = None
    """The error of the least fault that is caught here, as a multiple of the bound."""

    @property
    def tolerance(self) -> Tolerance:
        """The bounds as the evaluator takes them."""
        return Tolerance(rtol=self.rtol, atol=self.atol, hit_ratio=self.hit_ratio, how=self.how, source=self.source)


class FaultResult(Model):
    """Whether one injected fault is caught."""

    name: str
    required: bool
    """Bounds that let it pass are no bounds."""
    state: Literal["caught", "missed", "within rounding", "no effect"]
    """`within rounding`: no output is farther off than its neighbouring number."""
    strength: float
    """Its error as a multiple of the bound, in the output that shows it best, in the middle one of all cases."""
    output: str = ""


class Calibration(Model):
    """The tolerances of one Definition, and the evidence for them."""

    definition: str
    definition_hash: str
    op_type: str
    device: Literal["cpu", "cuda"]
    gpu: str = ""
    cases: int = Field(ge=0)
    axes: list[dict[str, int]]
    seeds: list[int]
    distributions: list[str]
    outputs: dict[str, OutputCalibration]
    faults: list[FaultResult]
    sources: list[str]
    """What was trusted: APIs of real kernels, and `reference`."""
    unavailable: dict[str, str] = Field(default_factory=dict)
    """Kernels and faults that could not be measured, and why."""
    refused: list[str] = Field(default_factory=list)
    """Why these bounds are not to be used; nothing if they are."""
    libs: dict[str, str] = Field(default_factory=dict)
    request: str = ""
    """A hash of all that the measurement follows from: who asks for the same again, has it already."""

    @property
    def basis(self) -> Literal["kernels", "policy"]:
        """Whether any bounds follow from errors of real kernels."""
        return "kernels" if any(output.basis == "kernels" for output in self.outputs.values()) else "policy"


def hash_kernel(definition: Definition) -> str:
    """Hash what a Definition computes: its interface and reference; not its tags or its words."""
    parts = {
        "axes": {name: definition.const_axes.get(name) for name in definition.axes},
        "constraints": definition.constraints,
        "inputs": [[name, spec.shape, spec.dtype.value] for name, spec in definition.inputs.items()],
        "outputs": [[name, spec.shape, spec.dtype.value] for name, spec in definition.outputs.items()],
        "reference": definition.reference,
    }
    return content_hash(parts)


def find_tolerances(
    definition: Definition, kernel: KernelType[Any] | None, calibration: Calibration | None = None
) -> dict[str, Tolerance]:
    """Find the bounds of every output: the calibration's if it may be used, else the policy of the kernel type.

    A foreign Definition, whose kernel type is not known, has the policy that its op_type has for such an output.
    """
    found = {name: _find_policy(definition, kernel, name) for name in definition.outputs}
    if calibration is not None and not calibration.refused and calibration.definition_hash == hash_kernel(definition):
        found.update(
            {
                name: output.tolerance
                for name, output in calibration.outputs.items()
                if name in found and output.how == found[name].how
            }
        )
    return found


def _find_policy(definition: Definition, kernel: KernelType[Any] | None, output: str) -> Tolerance:
    dtype = definition.outputs[output].dtype
    if kernel is not None:
        return kernel.find_tolerance(output, dtype)
    is_number = dtype.value.startswith("float") or dtype is DType.BFLOAT16
    if not is_number:
        draws = any(word in definition.reference for word in _CHANCE)
        return _find_named(definition, output) or (sampled(dtype) if draws else exact(dtype))
    return _find_named(definition, output) or _find_widest(definition, output) or summed(dtype)


def _find_named(definition: Definition, output: str) -> Tolerance | None:
    """Find the policy that some kernel of the op_type has for an output of this name."""
    op_type = find_op_type(definition.op_type)
    dtype = definition.outputs[output].dtype
    named = [kernel.policies[output] for kernel in (op_type.kernels if op_type else ()) if output in kernel.policies]
    return named[0](dtype) if named else None


def _find_widest(definition: Definition, output: str) -> Tolerance | None:
    """Take the widest bounds among the op_type's kernels: which of them it is, nobody knows."""
    op_type = find_op_type(definition.op_type)
    dtype = definition.outputs[output].dtype
    found = [kernel.policy(dtype) for kernel in (op_type.kernels if op_type else ())]
    return max(found, key=lambda item: (item.rtol + item.atol, -item.hit_ratio), default=None)


def calibrate(
    definition: Definition,
    policies: Mapping[str, Tolerance],
    cases: Sequence[Case],
    *,
    device: Literal["cpu", "cuda"],
    unavailable: Mapping[str, str] | None = None,
    **known: Any,
) -> Calibration:
    """Choose the bounds of every output from what was measured, and judge the faults by them.

    Integers, experts and draws keep their policy, and so does everything without a real kernel on a GPU.
    """
    sources = sorted({source for case in cases for source in case.trusted})
    kernels = [source for source in sources if source != "reference"] if device == "cuda" else []
    outputs = {
        name: _calibrate_output(name, definition.outputs[name].dtype, policies[name], cases, has_kernels=bool(kernels))
        for name in definition.outputs
    }
    faults = _judge_faults(outputs, cases)
    return Calibration(
        definition=definition.name,
        definition_hash=hash_kernel(definition),
        op_type=definition.op_type,
        device=device,
        cases=len(cases),
        axes=_unique(case.axes for case in cases),
        seeds=sorted({case.seed for case in cases}),
        distributions=sorted({case.distribution for case in cases}),
        outputs={name: _with_least_fault(name, output, faults) for name, output in outputs.items()},
        faults=faults,
        sources=sources,
        unavailable=dict(unavailable or {}),
        refused=_refuse(outputs, faults),
        **known,
    )


def _unique(items: Iterable[dict[str, int]]) -> list[dict[str, int]]:
    found: list[dict[str, int]] = []
    for item in items:
        if item not in found:
            found.append(item)
    return found


def _calibrate_output(
    name: str, dtype: DType, policy: Tolerance, cases: Sequence[Case], *, has_kernels: bool
) -> OutputCalibration:
    measured = dtype in _NUMBERS and policy.how == "values" and policy.rtol + policy.atol > 0
    trusted = [profiles[name] for case in cases for profiles in case.trusted.values() if name in profiles]
    chosen = policy if not measured else _snap(policy, dtype)
    if measured and has_kernels and trusted:
        chosen = _choose_bounds(name, dtype, trusted, cases)
    shares: dict[str, float] = {}
    for case in cases if measured else ():
        for source, profiles in case.agreement.items():
            if name in profiles:
                shares[source] = max(shares.get(source, 0.0), profiles[name].strength(dtype, chosen))
    is_chosen = measured and has_kernels and bool(trusted)
    bounds = chosen if is_chosen else policy
    return OutputCalibration(
        dtype=dtype,
        rtol=bounds.rtol,
        atol=bounds.atol,
        hit_ratio=bounds.hit_ratio,
        how=bounds.how,
        basis="kernels" if is_chosen else "policy",
        source=bounds.source,
        trusted={source: round(share, 6) for source, share in shares.items()},
    )


def _snap(policy: Tolerance, dtype: DType) -> Tolerance:
    """Move a policy's bounds to those that profiles were measured at: never to narrower ones."""
    if dtype not in _NUMBERS:
        return policy
    rtol = next((rtol for rtol in list_rtols(dtype) if rtol >= policy.rtol), list_rtols(dtype)[-1])
    ratio = max((ratio for ratio in HIT_RATIOS if ratio <= policy.hit_ratio), default=HIT_RATIOS[-1])
    return replace(policy, rtol=rtol, hit_ratio=ratio)


def _choose_bounds(name: str, dtype: DType, trusted: Sequence[ErrorProfile], cases: Sequence[Case]) -> Tolerance:
    """Choose bounds that catch as many of the faults as any, with the widest margin and the strictest share of hits."""
    fitted = [(margin, _fit(dtype, ratio, trusted, margin)) for margin in _MARGINS for ratio in HIT_RATIOS]
    usable = [(margin, bounds) for margin, bounds in fitted if bounds.atol < UNBOUNDED] or fitted[-1:]

    def rank(candidate: tuple[float, Tolerance]) -> tuple[int, float, float]:
        margin, bounds = candidate
        caught = sum(strength > 1 for strength in _list_required(name, dtype, bounds, cases))
        return caught, margin, bounds.hit_ratio

    best = max(usable, key=rank)[1]
    if dtype is not DType.FLOAT32:
        return best
    wide = _fit(dtype, best.hit_ratio, trusted, _FAR_MARGIN)
    has_room = min(_list_required(name, dtype, wide, cases), default=0.0) >= _FAR
    return wide if has_room and wide.atol < UNBOUNDED else best


def _fit(dtype: DType, ratio: float, trusted: Sequence[ErrorProfile], margin: float) -> Tolerance:
    """Find the narrowest bounds, powers of two, of which trusted errors use one part in `margin`."""
    row = HIT_RATIOS.index(ratio)
    rtols = list_rtols(dtype)
    worst = [max(profile.used[row][column] for profile in trusted) for column in range(len(rtols))]
    options = [
        (rtol, _power_of_two(max(margin * atol, _add_minor(atol, dtype, margin), LEAST_ATOL)))
        for rtol, atol in zip(rtols, worst, strict=True)
        if ratio < 1 or rtol >= 2 * unit_of(dtype)
    ]
    unbiased = [option for option in options if _allows_bias(option[0], ratio, trusted, margin)]
    rtol, atol = min(unbiased, key=sum, default=(options[-1][0], UNBOUNDED))
    source = f"{margin:g} times the worst error of trusted kernels against float64, beyond the format's own rounding"
    return Tolerance(rtol=rtol, atol=atol, hit_ratio=ratio, source=source)


def _add_minor(atol: float, dtype: DType, margin: float) -> float:
    """Widen an error that is far below the format's rounding; not where every bit counts to catch the faults."""
    return min(_MINOR_MARGIN * atol, _MINOR_PART * unit_of(dtype)) if margin == _MARGINS[0] else 0.0


def _allows_bias(rtol: float, ratio: float, trusted: Sequence[ErrorProfile], margin: float) -> bool:
    """Tell whether trusted biases use one part in `margin`: of approximate functions and of reciprocals all errors agree."""
    bounds = Tolerance(rtol=rtol, atol=0.0, hit_ratio=ratio)
    return all(margin * abs(profile.bias) <= limit_bias(bounds, profile.effective) for profile in trusted)


def _power_of_two(value: float) -> float:
    return UNBOUNDED if value >= UNBOUNDED else float(2.0 ** math.ceil(math.log2(value) - 1e-12))


def _kind(fault: str) -> str:
    return fault.partition(":")[0]


def _strengths(name: str, dtype: DType, tolerance: Tolerance, cases: Sequence[Case]) -> dict[str, float]:
    """Give each fault's strength in one output: that of the middle case, since an evaluation makes many calls."""
    found: dict[str, list[float]] = {}
    for case in cases:
        for fault, profiles in case.faults.items():
            if name in profiles:
                found.setdefault(fault, []).append(profiles[name].strength(dtype, tolerance))
    return {fault: statistics.median(values) for fault, values in found.items()}


def _list_required(name: str, dtype: DType, tolerance: Tolerance, cases: Sequence[Case]) -> list[float]:
    """List the strengths of the faults that have to be caught."""
    strengths = _strengths(name, dtype, tolerance, cases)
    return [strength for fault, strength in strengths.items() if _kind(fault) in REQUIRED]


def _judge_faults(outputs: Mapping[str, OutputCalibration], cases: Sequence[Case]) -> list[FaultResult]:
    names = list(dict.fromkeys(fault for case in cases for fault, profiles in case.faults.items() if profiles))
    by_output = {
        name: _strengths(name, output.dtype, _snap(output.tolerance, output.dtype), cases)
        for name, output in outputs.items()
        if output.how == "values"
    }
    results = [_judge_fault(fault, by_output, cases) for fault in names]
    return sorted(results, key=lambda result: (not result.required, result.name))


def _judge_fault(fault: str, by_output: Mapping[str, Mapping[str, float]], cases: Sequence[Case]) -> FaultResult:
    strengths = {name: table[fault] for name, table in by_output.items() if fault in table}
    output = max(strengths, key=strengths.__getitem__, default="")
    strength = min(strengths.get(output, 0.0), UNBOUNDED)
    profiles = [profile for case in cases for profile in case.faults.get(fault, {}).values()]
    state: Literal["caught", "missed", "within rounding", "no effect"] = "missed"
    if all(profile.absolute == 0 for profile in profiles):
        state = "no effect"
    elif strength > 1:
        state = "caught"
    elif all(profile.is_one_step for profile in profiles):
        state = "within rounding"
    required = _kind(fault) in REQUIRED
    return FaultResult(name=fault, required=required, state=state, strength=round(strength, 6), output=output)


def _with_least_fault(name: str, output: OutputCalibration, faults: Collection[FaultResult]) -> OutputCalibration:
    caught = [fault.strength for fault in faults if fault.output == name and fault.state == "caught"]
    return output.model_copy(update={"least_fault": min(caught)}) if caught else output


def _refuse(outputs: Mapping[str, OutputCalibration], faults: Collection[FaultResult]) -> list[str]:
    reasons = [
        f"{name}: {source} itself needs {share:.3g} times the bound"
        for name, output in outputs.items()
        for source, share in output.trusted.items()
        if share > 1
    ]
    reasons += [
        f"the fault {fault.name} is not caught: it reaches {fault.strength:.3g} of the bound"
        for fault in faults
        if fault.required and fault.state == "missed"
    ]
    return reasons


def _path(workspace: Path, definition: Definition) -> Path:
    return confine(workspace, FOLDER, definition.op_type, f"{definition.name}.json")


def save_calibration(workspace: Path, definition: Definition, calibration: Calibration) -> Path:
    """Write a calibration to its place, and say where that is."""
    path = _path(workspace, definition)
    with storage_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, canonical_bytes(calibration))
    return path


def find_calibration(workspace: Path, definition: Definition) -> Calibration | None:
    """Find the calibration of this text of the Definition; one that was made for another reference does not count.

    Raises:
        FormatError: the file holds something else.
    """
    path = _path(workspace, definition)
    if not path.is_file():
        return None
    where = f"{FOLDER}/{definition.op_type}/{definition.name}.json"
    found = read_strict(Calibration, load_json(read_limited(path, _LIMIT), where=where), where=where)
    return found if found.definition_hash == hash_kernel(definition) else None
