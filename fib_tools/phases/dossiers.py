"""Dossiers from the dataset and the manifest: everything that the checklist and the reviewers look at, gathered once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from fib_tools.checks.dataset import check_dataset
from fib_tools.checks.view import DatasetView, open_view
from fib_tools.dataset.layout import Kind, Location
from fib_tools.dataset.store import Dataset
from fib_tools.errors import FormatError
from fib_tools.evaluate.engines.items import hash_definition, hash_solution
from fib_tools.gate.execute import execute_many
from fib_tools.model.definition import Definition
from fib_tools.model.evidence import Evidence
from fib_tools.model.manifest import Manifest, ManifestKernel
from fib_tools.model.reference_log import REFERENCE_LOG, ReferenceLog
from fib_tools.model.report import Finding, Severity
from fib_tools.model.solution import BASELINE
from fib_tools.model.tags import Tag
from fib_tools.model.trace import Trace
from fib_tools.model.workload import SafetensorsInput, Workload
from fib_tools.phases.candidates import list_tags
from fib_tools.phases.context import Context
from fib_tools.phases.reference_test_file import find_ground_truth
from fib_tools.publish.dossier import Dossier, Payload, find_evidence_key
from fib_tools.publish.submission_texts import write_provenance

__all__ = ["gather_dossiers"]

_CONFTEST = "tests/references/conftest.py"


def gather_dossiers(context: Context, manifest: Manifest, definitions: Sequence[Definition]) -> tuple[Dossier, ...]:
    """Gather what there is of some Definitions; their references are executed anew."""
    dataset = context.dataset
    context.progress("checking the dataset", 0, 0)
    view = open_view(dataset, names=[definition.name for definition in definitions])
    findings = _sort_findings(check_dataset(view))
    reasons: dict[str, str] = {}
    for done, (name, execution) in enumerate(execute_many(definitions), start=1):
        context.progress(f"executing: {name}", done, len(definitions))
        reasons[name] = "" if execution.executed else execution.reason or "the reference did not run"
    gathering = _Gathering(dataset=dataset, view=view, manifest=manifest)
    return tuple(
        gathering.gather(definition, findings.get(definition.name, []), reasons[definition.name])
        for definition in definitions
    )


def _sort_findings(findings: Iterable[Finding]) -> dict[str, list[Finding]]:
    """Sort errors by Definition."""
    found: dict[str, list[Finding]] = {}
    for finding in findings:
        if finding.severity is Severity.ERROR and finding.definition:
            found.setdefault(finding.definition, []).append(finding)
    return found


@dataclass(frozen=True, kw_only=True)
class _Gathering:
    """Reads one Definition's files."""

    dataset: Dataset
    view: DatasetView
    manifest: Manifest

    def gather(self, definition: Definition, findings: list[Finding], not_executed: str) -> Dossier:
        name, op_type = definition.name, definition.op_type
        kernel = next((item for item in self.manifest.kernels if (item.definition or item.name) == name), None)
        truth = find_ground_truth(definition)
        traces = self._load_traces(definition)
        solutions, _ = self.dataset.read_solutions(op_type, name)
        baselines = tuple(solution for solution in solutions if solution.author == BASELINE)
        workloads = self._load_workloads(definition)
        log = self._find_log(definition, findings)
        dossier = Dossier(
            definition=definition,
            kernel=kernel,
            manual=next((item for item in self.manifest.manual if item.name == name), None),
            findings=tuple(findings),
            not_executed=not_executed,
            wanted_tags=self._list_wanted_tags(kernel),
            apis=tuple(dict.fromkeys(wrapper.api for wrapper in truth.wrappers)),
            no_kernel=truth.reason,
            test=self._read(_place(Kind.TEST, definition)),
            definition_hash=hash_definition(definition),
            log=log,
            workloads=workloads,
            baselines=baselines,
            solution_hashes={solution.name: hash_solution(solution) for solution in baselines},
            traces=traces,
            evidence=self._load_evidence(traces),
        )
        paths = _list_paths(dossier)
        standing = [Payload(path=path, source=self.dataset.root / path) for path in paths if self._has(path)]
        provenance = Payload(path=_place(Kind.PROVENANCE, definition), source=write_provenance(self.manifest, dossier))
        return replace(dossier, payloads=(*standing, provenance))

    def _has(self, path: str) -> bool:
        return (self.dataset.root / path).is_file()

    def _read(self, path: str) -> bytes | None:
        return self.dataset.read(path) if self._has(path) else None

    def _list_wanted_tags(self, kernel: ManifestKernel | None) -> tuple[str, ...]:
        if kernel is None:
            return (str(Tag(key="model", value=self.manifest.model)),)
        tags = list_tags(self.manifest, kernel, kernel.fi_name)
        return tuple(tag for tag in tags if not tag.startswith("status:"))

    def _find_log(self, definition: Definition, findings: list[Finding]) -> ReferenceLog | None:
        try:
            return self.dataset.find_log(definition.op_type, definition.name)
        except FormatError as error:
            where = _place(Kind.LOG, definition)
            findings.append(Finding(severity=Severity.ERROR, check="log.unreadable", where=where, message=error.what))
            return None

    def _load_workloads(self, definition: Definition) -> tuple[Workload, ...]:
        """Load those that can be read; the others are findings."""
        return tuple(trace.workload for trace in self._read_lines(_place(Kind.WORKLOADS, definition)))

    def _load_traces(self, definition: Definition) -> tuple[Trace, ...]:
        return tuple(self._read_lines(_place(Kind.TRACES, definition)))

    def _read_lines(self, path: str) -> Iterator[Trace]:
        lines = self.view.lines(path) if self._has(path) else ()
        yield from (line.trace for line in lines if line.trace is not None)

    def _load_evidence(self, traces: Iterable[Trace]) -> dict[str, Evidence]:
        keys = dict.fromkeys(key for trace in traces if (key := find_evidence_key(trace)))
        found = {}
        for key in keys:
            evidence = self.dataset.find_evidence(key)
            if evidence is not None:
                found[key] = evidence
        return found


def _place(kind: Kind, definition: Definition, *, file: str = REFERENCE_LOG) -> str:
    at = {"op_type": definition.op_type, "definition": definition.name}
    author = BASELINE if kind in {Kind.TRACES, Kind.SOLUTION} else ""
    return str(Location(kind=kind, author=author, file=file, **at))


def _list_paths(dossier: Dossier) -> list[str]:
    """List where a Definition's files lie, those that a reviewer needs."""
    definition = dossier.definition
    own = [_place(kind, definition) for kind in (Kind.DEFINITION, Kind.TEST, Kind.WORKLOADS, Kind.TRACES, Kind.LOG)]
    solutions = [_place(Kind.SOLUTION, definition, file=solution.name) for solution in dossier.baselines]
    evidence = [str(Location(kind=Kind.EVIDENCE, file=key)) for key in dossier.evidence]
    blobs = {
        spec.path.removeprefix("./")
        for workload in dossier.workloads
        for spec in workload.inputs.values()
        if isinstance(spec, SafetensorsInput)
    }
    return [*own, _CONFTEST, *solutions, *sorted(evidence), *sorted(blobs)]
