"""The inventory held against what the engine did: each kernel confirmed, corrected, new, seen elsewhere or not seen."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from fib_tools.capture.evidence import OtherCall
from fib_tools.capture.runs import EngineRun, NotCovered
from fib_tools.model.manifest import ManifestKernel
from fib_tools.phases.dumps import Dump
from fib_tools.phases.trace_evidence import find_evidence
from fib_tools.phases.trace_parameters import is_size, list_differing, read_parameters
from fib_tools.phases.trace_reasons import Reasons
from fib_tools.phases.trace_result import KernelLine

__all__ = ["Shown", "Verdict", "compare_kernels"]

_PLANNED = re.compile(r": \w+, as planned$")
"""A repair that fills in what the dump leaves open; it corrects nothing."""


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
    reasons = Reasons(
        runs=runs,
        not_covered=not_covered,
        failures=failures or {},
        others=others,
        matched=tuple(dict(matches).values()),
    )
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


def _find_differences(kernel: ManifestKernel, item: Shown) -> list[str] | None:
    """List the parameters that differ; None when it is another kernel type."""
    found = item.dump.normalised.recognised
    if found is None or found.kernel != kernel.kernel:
        return None
    ours, theirs = read_parameters(kernel.kernel, kernel.parameters), read_parameters(found.kernel, found.parameters)
    return [
        f"{name}: ours {ours.get(name)!r}, the engine's {theirs.get(name)!r}" for name in list_differing(ours, theirs)
    ]


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
            if differences is not None and len(differences) == 1 and not is_size(differences[0].partition(":")[0]):
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


def _line_of_missing(kernel: ManifestKernel, others: Sequence[OtherCall], reasons: Reasons) -> KernelLine:
    evidence = find_evidence(kernel, others)
    name = kernel.definition or kernel.name
    if evidence is not None:
        detail = f"{evidence.kernel} {evidence.describe()}"
        return KernelLine(name=name, op_type=kernel.op_type, status="seen", detail=detail, runs=(evidence.run,))
    return KernelLine(name=name, op_type=kernel.op_type, status="not seen", detail=reasons.explain(kernel))
