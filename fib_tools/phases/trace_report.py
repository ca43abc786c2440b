"""The inventory held against what the engine did: each kernel confirmed, corrected, new, seen elsewhere or not seen."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fib_tools.capture.evidence import OtherCall
from fib_tools.capture.runs import FLASHINFER_PAGE, PAGE_REASON, EngineRun, NotCovered
from fib_tools.model.manifest import FiStatus, ManifestKernel, SglStatus
from fib_tools.op_types.registry import find_kernel_type, get_kernel_type
from fib_tools.phases.dumps import Dump
from fib_tools.phases.trace_result import KernelLine

__all__ = ["Shown", "Verdict", "compare_kernels"]

_DTYPES = ("dtype", "state_dtype")
"""Parameters that FlashInfer does not route by, and that dumps of dummy weights share."""
_CLOSE = 1e-5
"""Relative; a scale that was computed in another order of operations."""
_PLANNED = re.compile(r": \w+, as planned$")
"""A repair that fills in what the dump leaves open; it corrects nothing."""
_WEIGHTS: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("gemm", "torch.linear"): ("n", "k"),
    ("gemm", "torch.matmul"): ("k", "n"),
    ("bmm", "torch.bmm"): ("b", "k", "n"),
    ("embedding", "torch.embedding"): ("vocab_size", "hidden_size"),
}
"""Which of torch's functions computes a kernel, and what its weight's lengths are."""
_LENGTH = re.compile(r"\d+")


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """One dump, and the run that it came from."""

    dump: Dump
    run: EngineRun

    @property
    def fi_name(self) -> str:
        """FlashInfer's own name, as its unrepaired dump has it."""
        return str(self.dump.raw.data.get("fib_raw_name") or self.dump.raw.data["name"])

    @property
    def repairs(self) -> tuple[str, ...]:
        """What FlashInfer's dump had wrong."""
        found = self.dump.normalised.recognised
        noted = [str(note) for note in self.dump.raw.data.get("fib_repairs") or ()]
        repairs = noted or list(found.repairs if found else ())
        return tuple(note for note in repairs if not _PLANNED.search(note))


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """The lines of the report, and which kernel of the inventory each dump is."""

    lines: tuple[KernelLine, ...]
    matches: Mapping[int, ManifestKernel]
    """By the dump's place."""
    witnesses: Mapping[str, str]
    """What was seen of a kernel, by its name."""


def compare_kernels(
    kernels: Sequence[ManifestKernel],
    shown: Sequence[Shown],
    others: Sequence[OtherCall],
    *,
    runs: Sequence[EngineRun],
    not_covered: Sequence[NotCovered] = (),
    failures: Mapping[str, str] | None = None,
) -> Verdict:
    """Hold the kernels of a model against the dumps and the other calls of its runs."""
    matches = {
        place: kernel
        for place, item in enumerate(shown)
        if (kernel := next((kernel for kernel in kernels if _is_kernel(kernel, item)), None)) is not None
    }
    matched = {kernel.name for kernel in matches.values()}
    differing, rest = _pair_differing(
        [kernel for kernel in kernels if kernel.name not in matched],
        [item for place, item in enumerate(shown) if place not in matches],
    )
    by_kernel: dict[str, list[Shown]] = {}
    for place, kernel in matches.items():
        by_kernel.setdefault(kernel.name, []).append(shown[place])
    reasons = _Reasons(runs=runs, not_covered=not_covered, failures=failures or {})
    lines: list[KernelLine] = []
    for kernel in kernels:
        if kernel.name in by_kernel:
            lines.append(_line_of_match(kernel, by_kernel[kernel.name]))
        elif kernel.name in differing:
            lines.append(differing[kernel.name])
        else:
            lines.append(_line_of_missing(kernel, others, reasons))
    lines += _list_new(rest)
    witnesses = {
        line.name: _describe_witness(line) for line in lines if line.status in {"confirmed", "corrected", "seen"}
    }
    return Verdict(lines=tuple(lines), matches=matches, witnesses=witnesses)


def _describe_witness(line: KernelLine) -> str:
    where = f"run {', '.join(line.runs)}"
    return f"{line.detail} ({where})" if line.status == "seen" else f"{', '.join(line.fi_names)} ({where})"


def _parameters(kernel: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    kernel_type = find_kernel_type(kernel)
    values = kernel_type.parameters.model_validate(dict(parameters)).model_dump() if kernel_type else parameters
    return {name: value for name, value in values.items() if name not in _DTYPES}


def _find_differences(kernel: ManifestKernel, item: Shown) -> list[str] | None:
    """List the parameters that differ; None when it is another kernel type."""
    found = item.dump.normalised.recognised
    if found is None or found.kernel != kernel.kernel:
        return None
    ours, theirs = _parameters(kernel.kernel, kernel.parameters), _parameters(found.kernel, found.parameters)
    return [
        f"{name}: ours {ours.get(name)!r}, the engine's {theirs.get(name)!r}"
        for name in sorted({*ours, *theirs})
        if not _is_equal(ours.get(name), theirs.get(name))
    ]


def _is_equal(first: Any, second: Any) -> bool:
    if isinstance(first, float) and isinstance(second, float):
        return math.isclose(first, second, rel_tol=_CLOSE)
    return bool(first == second)


def _is_kernel(kernel: ManifestKernel, item: Shown) -> bool:
    return _find_differences(kernel, item) == []


def _line_of_match(kernel: ManifestKernel, items: Sequence[Shown]) -> KernelLine:
    repairs = tuple(dict.fromkeys(note for item in items for note in item.repairs))
    names = tuple(dict.fromkeys(item.fi_name for item in items))
    return KernelLine(
        name=kernel.definition or kernel.name,
        op_type=kernel.op_type,
        status="corrected" if repairs else "confirmed",
        detail=f"FlashInfer dumps {', '.join(names)}; {'; '.join(repairs)}" if repairs else "",
        runs=tuple(dict.fromkeys(item.run.name for item in items)),
        fi_names=names,
    )


def _pair_differing(
    kernels: Sequence[ManifestKernel], shown: Sequence[Shown]
) -> tuple[dict[str, KernelLine], list[Shown]]:
    """Pair what is left on both sides where one parameter alone differs: there the inventory is wrong."""
    found: dict[str, KernelLine] = {}
    rest = list(shown)
    for item in shown:
        for kernel in kernels:
            differences = None if kernel.name in found else _find_differences(kernel, item)
            # a var size such as the page size makes another kernel of the list, not a wrong one
            if differences is not None and len(differences) == 1 and not _is_size(differences[0]):
                found[kernel.name] = KernelLine(
                    name=kernel.definition or kernel.name,
                    op_type=kernel.op_type,
                    status="differs",
                    detail=differences[0],
                    runs=(item.run.name,),
                    fi_names=(item.fi_name,),
                )
                rest.remove(item)
                break
    return found, rest


def _is_size(difference: str) -> bool:
    name = difference.partition(":")[0]
    return name in {"n", "k", "b", "page_size", "causal", "intermediate_size", "hidden_size", "kv_dtype"} or (
        name.startswith("num_")
    )


def _list_new(shown: Iterable[Shown]) -> Iterator[KernelLine]:
    groups: dict[tuple[str, str], list[Shown]] = {}
    for item in shown:
        groups.setdefault((item.dump.definition.name, _find_artefact(item)), []).append(item)
    for (name, artefact), items in groups.items():
        yield KernelLine(
            name=name,
            op_type=items[0].dump.definition.op_type,
            status="set aside" if artefact else "new",
            detail=artefact or "; ".join(dict.fromkeys(note for item in items for note in item.repairs)),
            runs=tuple(dict.fromkeys(item.run.name for item in items)),
            fi_names=tuple(dict.fromkeys(item.fi_name for item in items)),
        )


def _find_artefact(item: Shown) -> str:
    """Say why a shape may be there for the sake of the overrides alone."""
    found = item.dump.normalised.recognised
    kernel = found.kernel if found else ""
    return next((missing.reason for missing in item.run.not_covered if kernel in missing.kernels), "")


def _line_of_missing(kernel: ManifestKernel, others: Sequence[OtherCall], reasons: _Reasons) -> KernelLine:
    evidence = _find_evidence(kernel, others)
    name = kernel.definition or kernel.name
    if evidence is not None:
        detail = f"{evidence.kernel} {evidence.describe()}"
        return KernelLine(name=name, op_type=kernel.op_type, status="seen", detail=detail, runs=(evidence.run,))
    return KernelLine(name=name, op_type=kernel.op_type, status="not seen", detail=reasons.explain(kernel))


def _find_evidence(kernel: ManifestKernel, others: Sequence[OtherCall]) -> OtherCall | None:
    """Find a call outside of FlashInfer's traces that computes this kernel, in these sizes."""
    for call in others:
        order = _WEIGHTS.get((kernel.kernel, call.kernel))
        if order is not None:
            lengths = [kernel.parameters.get(name) for name in order]
            if lengths == list(call.weight) and bool(kernel.parameters.get("bias")) == call.bias:
                return call
        elif not call.weight and _is_symbol_of(kernel, call) and _has_size(kernel, call):
            return call
    return None


def _is_symbol_of(kernel: ManifestKernel, call: OtherCall) -> bool:
    kernel_type = find_kernel_type(kernel.kernel)
    tail = call.kernel.rpartition(".")[2]
    return kernel_type is not None and any(symbol.rpartition(".")[2] == tail for symbol in kernel_type.sglang_symbols)


def _has_size(kernel: ManifestKernel, call: OtherCall) -> bool:
    """Tell whether the widest row of the kernel's inputs is as wide as a row of the call's tensors."""
    definition = get_kernel_type(kernel.kernel).build(kernel.parameters)
    lasts = [spec.shape[-1] for spec in definition.inputs.values() if spec.shape]
    widest = max((definition.const_axes.get(axis, 0) for axis in lasts), default=0)
    lengths = {int(found) for text in call.tensors.values() for found in _LENGTH.findall(text.partition("[")[2])}
    return widest in lengths


@dataclass(frozen=True, kw_only=True, slots=True)
class _Reasons:
    """Why a kernel was not seen."""

    runs: Sequence[EngineRun]
    not_covered: Sequence[NotCovered]
    failures: Mapping[str, str]

    def explain(self, kernel: ManifestKernel) -> str:
        """Give the first reason that holds."""
        if kernel.parameters.get("page_size") not in (None, FLASHINFER_PAGE):
            return PAGE_REASON
        if kernel.sgl_status is not SglStatus.INTEGRATED:
            untraced = "FlashInfer has none, or does not trace it" if not kernel.fi_trace_template else ""
            return "; ".join(text for text in ("SGLang does not call FlashInfer for it", untraced) if text)
        if kernel.fi_status is FiStatus.MISSING or not kernel.fi_trace_template:
            return "FlashInfer does not trace it"
        if kernel.parameters.get("kv_dtype"):
            return "the runs keep the KV cache in the model's own type"
        return self._explain_runs(kernel)

    def _explain_runs(self, kernel: ManifestKernel) -> str:
        own = [run for run in self.runs if {run.tp, run.attention_tp} & set(kernel.tp)]
        own = [run for run in own if not kernel.ep or run.ep in kernel.ep]
        if not own:
            said = "; ".join(f"{item.subject}: {item.reason}" for item in self.not_covered)
            return f"no run has its shapes{': ' if said else ''}{said}"
        found = {run.name: self._explain_run(run, kernel) for run in own}
        silent = [name for name, reason in found.items() if not reason]
        if silent:
            return f"nothing that {', '.join(silent)} did led to it"
        return "; ".join(dict.fromkeys(found.values()))

    def _explain_run(self, run: EngineRun, kernel: ManifestKernel) -> str:
        """Say why this run cannot have shown it; empty when it could."""
        reason = next((item.reason for item in run.not_covered if kernel.kernel in item.kernels), "")
        return reason or (f"{run.name}: {self.failures[run.name]}" if run.name in self.failures else "")
