"""A Definition with everything that a reviewer of it is shown."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from fib_tools.model.definition import Definition
from fib_tools.model.evidence import Evidence
from fib_tools.model.manifest import ManifestKernel, ManualDefinition
from fib_tools.model.reference_log import ReferenceLog
from fib_tools.model.report import Finding
from fib_tools.model.solution import Solution
from fib_tools.model.trace import EvaluationStatus, Trace
from fib_tools.model.workload import Workload

__all__ = ["Dossier", "Group", "Payload", "find_evidence_key", "make_groups", "name_group"]

_CHUNK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Payload:
    """A file as it is sent."""

    path: str
    """In the repository."""
    source: Path | bytes

    @cached_property
    def size(self) -> int:
        """Count its bytes."""
        return len(self.source) if isinstance(self.source, bytes) else self.source.stat().st_size

    @cached_property
    def git_oid(self) -> str:
        """Hash it as git does."""
        digest = hashlib.sha1(f"blob {self.size}\0".encode(), usedforsecurity=False)
        for chunk in self._chunks():
            digest.update(chunk)
        return digest.hexdigest()

    @cached_property
    def sha256(self) -> str:
        """Hash it as git-lfs does."""
        digest = hashlib.sha256()
        for chunk in self._chunks():
            digest.update(chunk)
        return digest.hexdigest()

    def read(self) -> bytes:
        """Read it whole."""
        return self.source if isinstance(self.source, bytes) else self.source.read_bytes()

    def _chunks(self) -> Iterator[bytes]:
        if isinstance(self.source, bytes):
            yield self.source
            return
        with self.source.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                yield chunk


@dataclass(frozen=True, kw_only=True)
class Dossier:
    """What is known of one Definition, as the dataset and the manifest have it."""

    definition: Definition
    kernel: ManifestKernel | None = None
    """Of the model's inventory."""
    manual: ManualDefinition | None = None
    """By Path B."""
    findings: tuple[Finding, ...] = ()
    """Errors that validation found."""
    not_executed: str = ""
    """Why its reference did not do what it declares, if so."""
    wanted_tags: tuple[str, ...] = ()
    apis: tuple[str, ...] = ()
    """The real kernels that it could be compared with, dotted, the best first."""
    no_kernel: str = ""
    """Why there is none."""
    test: bytes | None = None
    definition_hash: str = ""
    log: ReferenceLog | None = None
    workloads: tuple[Workload, ...] = ()
    baselines: tuple[Solution, ...] = ()
    solution_hashes: Mapping[str, str] = field(default_factory=dict)
    """Of the baselines, as evidence names them, by name."""
    traces: tuple[Trace, ...] = ()
    """Of the baselines."""
    evidence: Mapping[str, Evidence] = field(default_factory=dict)
    """By key."""
    payloads: tuple[Payload, ...] = ()

    @property
    def name(self) -> str:
        """The Definition's name."""
        return self.definition.name

    def find_fastest(self) -> Trace | None:
        """Find the passed Trace that gains most over the reference."""
        passed = [trace for trace in self.traces if _passed(trace)]
        return max(passed, key=_speedup, default=None)


def _passed(trace: Trace) -> bool:
    return trace.evaluation is not None and trace.evaluation.status is EvaluationStatus.PASSED


def _speedup(trace: Trace) -> float:
    performance = trace.evaluation.performance if trace.evaluation else None
    return performance.speedup_factor if performance else 0.0


def find_evidence_key(trace: Trace) -> str:
    """Find the key of the evidence that a Trace sums up; empty if it names none."""
    return "" if trace.evaluation is None else trace.evaluation.environment.libs.get("evidence", "")


@dataclass(frozen=True, kw_only=True)
class Group:
    """Definitions that share a pull request."""

    key: str
    """`model`, `op_type-gqa_paged` or `definition-rmsnorm_h512`: with the model it names branches and marks texts."""
    title: str
    """What they are, for a reader: `gqa_paged`, or empty for all of a model."""
    dossiers: tuple[Dossier, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its Definitions."""
        return tuple(dossier.name for dossier in self.dossiers)

    def list_payloads(self) -> tuple[Payload, ...]:
        """List the files of all, each once, in order of path."""
        by_path = {payload.path: payload for dossier in self.dossiers for payload in dossier.payloads}
        return tuple(by_path[path] for path in sorted(by_path))


def name_group(grouping: str, definition: Definition) -> tuple[str, str]:
    """Name the group of a Definition: its key and its title."""
    if grouping == "model":
        return "model", ""
    title = definition.op_type if grouping == "op_type" else definition.name
    return f"{grouping}-{title}", title


def make_groups(grouping: str, dossiers: Iterable[Dossier]) -> list[Group]:
    """Group Definitions by what shares a pull request: `model`, `op_type` or `definition`."""
    found: dict[tuple[str, str], list[Dossier]] = {}
    for dossier in dossiers:
        found.setdefault(name_group(grouping, dossier.definition), []).append(dossier)
    return [Group(key=key, title=title, dossiers=tuple(each)) for (key, title), each in sorted(found.items())]
