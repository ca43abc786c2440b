"""The checklist of a reviewer as code: what each Definition has to have before anything is sent.

A check is a row: what it asks, how to bring what is missing, and a function that says what is.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from fib_tools.host.env import redact
from fib_tools.model.evidence import Evidence
from fib_tools.model.manifest import Manifest
from fib_tools.model.solution import Solution
from fib_tools.model.trace import EvaluationStatus, Trace
from fib_tools.op_types.sizes import SIZES
from fib_tools.publish.dossier import Dossier, Group, Payload, find_evidence_key
from fib_tools.publish.outward import Failure

__all__ = [
    "CHECKS",
    "Check",
    "Terms",
    "check_alone",
    "check_links",
    "check_secrets",
    "check_single_file",
    "run_checklist",
]

_BLOBS = ("workload.blob_",)
"""Rules of validation that are about blobs begin so."""
_KERNEL_TEST = "test_the_kernel_agrees_with_the_reference"
_SHOWN = 3
_BINARY = ".safetensors"
_LINK = re.compile(r"\]\(([^)\s]*)\)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """What a submission is held against, beside the Definition itself."""

    manifest: Manifest
    takes_dummy_weights: bool = False
    """Workloads of an engine with made-up weights are good enough; the pull request says so."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One row of the checklist."""

    id: str
    asks: str
    """For a reader of the pull request."""
    todo: str
    """How to bring what is missing; `{name}` is the Definition's name."""
    find: Callable[[Dossier, Terms], Iterator[str]]
    """Yields what is missing or wrong."""


def run_checklist(group: str, dossiers: Iterable[Dossier], terms: Terms) -> Iterator[Failure]:
    """Yield what is missing, in order of Definition and check."""
    for dossier in dossiers:
        for check in CHECKS:
            for found in check.find(dossier, terms):
                todo = check.todo.format(
                    name=dossier.name, model=terms.manifest.model, op_type=dossier.definition.op_type
                )
                yield Failure(group=group, definition=dossier.name, check=check.id, found=found, todo=todo)


def _find_invalid(dossier: Dossier, _terms: Terms) -> Iterator[str]:
    for finding in dossier.findings:
        if not finding.check.startswith(_BLOBS):
            yield f"{finding.check} in {finding.where}: {finding.message}"


def _find_unexecuted(dossier: Dossier, _terms: Terms) -> Iterator[str]:
    if dossier.not_executed:
        yield dossier.not_executed


def _find_tag_faults(dossier: Dossier, _terms: Terms) -> Iterator[str]:
    own = set(dossier.definition.tags)
    missing = [tag for tag in dossier.wanted_tags if tag not in own]
    if missing:
        yield f"without the tags {', '.join(missing)}"
    if dossier.apis and "status:verified" not in own:
        yield "not status:verified, though there is a kernel to verify it with"
    if not any(tag.startswith("status:") for tag in own):
        yield "without a status tag"


def _find_test_faults(dossier: Dossier, _terms: Terms) -> Iterator[str]:
    log = dossier.log
    if dossier.test is None:
        yield "there is no reference test"
    elif log is None:
        yield "its reference test was not run on a GPU"
    elif log.definition_hash != dossier.definition_hash:
        yield "its reference test ran before the Definition was changed"
    elif log.test_sha256 != hashlib.sha256(dossier.test).hexdigest():
        yield "another test ran than the one that stands there"
    elif log.status == "failed":
        yield f"its reference test failed: {log.reason}"
    elif dossier.apis:
        passed = {item.get("size") for item in log.records if _is_kernel_test(item) and item.get("outcome") == "passed"}
        missing = [size for size in SIZES if size not in passed]
        if missing:
            yield f"no kernel agreed with it at the sizes {', '.join(missing)}: {log.reason or 'none ran'}"


def _is_kernel_test(record: dict[str, object]) -> bool:
    return record.get("test") == _KERNEL_TEST


def _find_workload_faults(dossier: Dossier, terms: Terms) -> Iterator[str]:
    if not dossier.workloads:
        yield "it has no Workloads"
    good = {"real", "dummy"} if terms.takes_dummy_weights else {"real"}
    others = [workload for workload in dossier.workloads if workload.origin not in good]
    if others:
        origins = sorted({str(workload.origin or "an unknown origin") for workload in others})
        hint = "; --dummy-weights takes them, and says so" * (origins == ["dummy"])
        yield f"{len(others)} of {len(dossier.workloads)} Workloads are not of real inference but {', '.join(origins)}{hint}"


def _find_blob_faults(dossier: Dossier, _terms: Terms) -> Iterator[str]:
    for finding in dossier.findings:
        if finding.check.startswith(_BLOBS):
            yield f"{finding.where}: {finding.message}"


def _find_baseline_faults(dossier: Dossier, _terms: Terms) -> Iterator[str]:
    if not dossier.apis:
        return  # a request for the kernel goes with it
    if not dossier.baselines:
        yield f"it has no baseline, and {dossier.apis[0]} could be one"
    for solution in dossier.baselines:
        if _is_reference(solution, dossier.definition.reference):
            yield f"{solution.name} is a copy of the reference"
        elif not any(_calls(solution, api) for api in dossier.apis):
            yield f"{solution.name} calls none of {', '.join(dossier.apis)}"


def _is_reference(solution: Solution, reference: str) -> bool:
    return any(_read_run(source.content) == _read_run(reference) for source in solution.sources)


def _read_run(source: str) -> str:
    """Read what `run` does, whatever comments and spaces say; a source that is no Python reads as itself."""
    try:
        body = ast.parse(source).body
    except SyntaxError:
        return source
    functions = (node for node in body if isinstance(node, ast.FunctionDef))
    return next((ast.dump(node) for node in functions if node.name == "run"), source)


def _calls(solution: Solution, api: str) -> bool:
    """Tell whether a source takes an API, by its name or its class's, or what lies beneath it in the same module."""
    package, *parts = api.split(".")
    wanted = next((part for part in parts if part[:1].isupper()), parts[-1] if parts else package)
    text = "\n".join(source.content for source in solution.sources)
    has_package = re.search(rf"^\s*(?:import|from)\s+{package}\b", text, re.MULTILINE)
    has_module = re.search(rf"^\s*from\s+{re.escape(api.rpartition('.')[0])}\s", text, re.MULTILINE)
    return bool(has_module) or (bool(has_package) and wanted in re.findall(r"\w+", text))


def _find_trace_faults(dossier: Dossier, _terms: Terms) -> Iterator[str]:
    if dossier.apis and not dossier.traces:
        yield "its baselines have no Traces"
    wrong = [trace for trace in dossier.traces if _status(trace) is not EvaluationStatus.PASSED]
    if wrong:
        said = sorted({f"{trace.solution}: {getattr(_status(trace), 'value', 'no evaluation')}" for trace in wrong})
        yield f"{len(wrong)} Traces did not pass: {_shorten(said)}"
    if dossier.traces:
        covered: dict[str, set[str]] = {}
        for trace in dossier.traces:
            covered.setdefault(trace.solution or "", set()).add(trace.workload.uuid)
        lacking = min(len({item.uuid for item in dossier.workloads} - uuids) for uuids in covered.values())
        if lacking:
            yield f"no baseline was measured on every Workload: {lacking} of {len(dossier.workloads)} are left out"
    unfounded = [reason for trace in dossier.traces if (reason := _doubt(trace, dossier))]
    if unfounded:
        yield f"{len(unfounded)} Traces: {_shorten(sorted(set(unfounded)))}"


def _status(trace: Trace) -> EvaluationStatus | None:
    return trace.evaluation.status if trace.evaluation else None


def _doubt(trace: Trace, dossier: Dossier) -> str:
    """Say why a Trace cannot be believed, if so."""
    key = find_evidence_key(trace)
    evidence: Evidence | None = dossier.evidence.get(key)
    if evidence is None:
        return f"{trace.solution}: no evidence is kept"
    if not evidence.gpu.capability:
        return f"{trace.solution}: measured on a CPU"
    known = dossier.solution_hashes.get(trace.solution or "")
    if known != evidence.subject.solution_hash:
        return f"{trace.solution}: the evidence is of another Solution than the one that stands there"
    return ""


def _find_provenance_faults(dossier: Dossier, terms: Terms) -> Iterator[str]:
    if dossier.kernel is None and dossier.manual is None:
        yield "the manifest does not say where it comes from"
    if not terms.manifest.config_sha256 or not terms.manifest.sources:
        yield "the manifest does not say which config and which sources its facts are from"


CHECKS: tuple[Check, ...] = (
    Check(
        id="valid",
        asks="the Definition and all that belongs to it is valid",
        todo="run: fib validate --definitions {name}, and mend what it finds",
        find=_find_invalid,
    ),
    Check(
        id="executed",
        asks="the reference was executed and returns what it declares",
        todo="run: fib validate --definitions {name} --execute, and correct the reference",
        find=_find_unexecuted,
    ),
    Check(
        id="tags",
        asks="the tags name the API, the model, the ways of serving and the status",
        todo="run: fib define {model} for its tags, and fib tests run --definitions {name} on a GPU for its status",
        find=_find_tag_faults,
    ),
    Check(
        id="reference test",
        asks="the reference test passed on a GPU against the real kernel, and its output is attached",
        todo="run on a GPU: fib tests write --definitions {name}, then fib tests run --definitions {name}",
        find=_find_test_faults,
    ),
    Check(
        id="workloads",
        asks="the Workloads were collected from real inference",
        todo="run on a GPU: fib collect {model} --weights DIR --prompts FILE --definitions {name}; "
        "and take those of another origin out of workloads/{op_type}/{name}.jsonl",
        find=_find_workload_faults,
    ),
    Check(
        id="blobs",
        asks="every blob that a Workload names is there",
        todo="bring the blobs back, or run on a GPU: fib collect {model} --weights DIR --prompts FILE "
        "--definitions {name}",
        find=_find_blob_faults,
    ),
    Check(
        id="baseline",
        asks="the baseline wraps the real kernel and is no copy of the reference",
        todo="run: fib baselines --definitions {name}",
        find=_find_baseline_faults,
    ),
    Check(
        id="traces",
        asks="a baseline passed on every Workload, and each Trace has its evidence",
        todo="run on a GPU: fib bench {name} --authors baseline",
        find=_find_trace_faults,
    ),
    Check(
        id="provenance",
        asks="the sources of every fact are named",
        todo="run: fib onboard {model}",
        find=_find_provenance_faults,
    ),
)


def check_single_file(group: str, paths: Iterable[str], document: str) -> Iterator[Failure]:
    """Check that a coverage pull request changes the document and nothing else."""
    others = sorted(set(paths) - {document})
    if others:
        yield Failure(
            group=group,
            check="single file",
            found=f"the branch also changes {_shorten(others)}",
            todo=f"take out of the branch what is not {document}, or delete the branch and run this again",
        )


def check_secrets(group: str, payloads: Iterable[Payload]) -> Iterator[Failure]:
    """Check that no text holds what looks like a token: what was sent cannot be taken back."""
    for payload in payloads:
        text = "" if payload.path.endswith(_BINARY) else payload.read().decode(errors="replace")
        if redact(text) != text:
            todo = f"take it out of {payload.path} with what wrote it there, and revoke it; then run fib submit again"
            yield Failure(
                group=group, check="secrets", found=f"{payload.path} holds what looks like a token", todo=todo
            )


def check_alone(group: Group, manifest: Manifest, repo: str) -> Iterator[Failure]:
    """Check that no Definition is in an open pull request of another group."""
    for item in manifest.submissions:
        both = sorted(set(item.definitions) & set(group.names))
        is_other = item.kind == "dataset" and item.repo == repo and item.subject != group.key
        if both and is_other and item.status == "open":
            todo = "run fib submit with the --group of that one, which also tells whether it was merged"
            yield Failure(group=group.key, check="one pull request", found=f"{_shorten(both)} in {item.url}", todo=todo)


def check_links(group: str, texts: Iterable[str], manifest: Manifest) -> Iterator[Failure]:
    """Check that the model is linked, and that every link leads somewhere on the web."""
    dead = sorted(
        {link for text in texts for link in _LINK.findall(text) if not link.startswith(("https://", "http://"))}
    )
    found = f"links that lead nowhere: {_shorten(dead)}" if dead else ""
    if not manifest.repo_id:
        found = "the model has no Hugging Face repository to link"
    if found:
        todo = f"run: fib onboard {manifest.model} --hf-repo-id ORG/NAME"
        yield Failure(group=group, check="links", found=found, todo=todo)


def _shorten(items: list[str]) -> str:
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more
