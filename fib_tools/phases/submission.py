"""One submitted Definition at the gate: reviewed, executed, compared with what there is, staged."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fib_tools.errors import SourceError
from fib_tools.gate.agreement import (
    Agreement,
    compare_function,
    compare_references,
    find_interface_differences,
    may_be_same,
)
from fib_tools.gate.execute import Execution, open_sandbox
from fib_tools.gate.gate import Admission, AdmissionStatus, Candidate, admit
from fib_tools.gate.identity import compare, signature
from fib_tools.gate.recognise import recognise
from fib_tools.gate.review import find_signature_problems, review_definition, shorten
from fib_tools.host.env import redact
from fib_tools.host.sandbox import Sandbox
from fib_tools.model.base import to_document
from fib_tools.model.definition import Definition
from fib_tools.model.manifest import ManualDefinition
from fib_tools.model.report import Problem
from fib_tools.model.tags import Tag, merge_tags
from fib_tools.op_types.registry import find_op_type, list_kernel_types, list_op_types
from fib_tools.phases.admissions import stage
from fib_tools.phases.admit import AdmitResult, Status
from fib_tools.phases.context import Context
from fib_tools.phases.manifests import find_manifest, model_slug, save_manifest
from fib_tools.sources.packages import Package, find_package

__all__ = ["PROVENANCE", "Submission", "judge"]

PROVENANCE = str(Tag(key="provenance", value="manual"))
"""The tag of a Definition that no template and no dump gave."""

_FORWARD = "run_sglang"
_MOST_TWINS = 6
"""Definitions of one interface that are run for comparison."""
_MOST_PROBLEMS = 24
_UNTRIED = "not compared with SGLang: "


@dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    """What was submitted."""

    document: Any
    model: str | None = None
    fills: str | None = None
    forward: str | None = None
    """Source with `run_sglang`."""
    sglang_path: Path | None = None
    is_dry: bool = False


@dataclass(kw_only=True)
class _Case:
    """What is known of a submission so far."""

    definition: Definition
    problems: list[Problem]
    notes: list[str] = field(default_factory=list)
    existing: str | None = None
    execution: Execution | None = None
    compared: str = f"{_UNTRIED}no sglang_forward was given"


def judge(context: Context, submission: Submission) -> AdmitResult:
    """Take a submission through every check, and stage it if nothing is to change; the caller holds the lock."""
    review = review_definition(submission.document)
    if review.definition is None:
        return _refuse_document(submission, review.problems)
    tags = [PROVENANCE, *(_tags_of(submission.model)), "status:unverified"]
    tagged = review.definition.model_copy(update={"tags": merge_tags(review.definition.tags, tags)})
    case = _Case(definition=tagged, problems=list(review.problems), notes=list(_remarks(tagged)))
    standing, _ = context.dataset.load_definitions(context.tell_if_slow("reading the dataset"))
    package = _find_sglang(context, submission)
    paths = () if package is None else (package.folder.parent,)
    context.progress("starting the sandbox", 0, 0)
    with open_sandbox(paths) as sandbox:
        _run_gate(context, case, standing, sandbox=sandbox)
        if case.execution is not None and case.execution.executed:
            _compare_with_ours(context, case, standing, sandbox=sandbox)
            if submission.forward is not None and case.existing is None:
                context.progress("comparing with SGLang", 0, 0)
                _compare_with_sglang(case, submission.forward, package, sandbox=sandbox)
    return _settle(context, submission, case)


def _refuse_document(submission: Submission, problems: tuple[Problem, ...]) -> AdmitResult:
    document = submission.document if isinstance(submission.document, dict) else {}
    return AdmitResult(
        status="refused",
        name=shorten(str(document.get("name", "definition")), 160),
        op_type=shorten(str(document.get("op_type", "")), 160),
        problems=problems[:_MOST_PROBLEMS],
        compared=f"{_UNTRIED}it is not a Definition yet",
    )


def _tags_of(model: str | None) -> Iterator[str]:
    if model is not None:
        yield str(Tag(key="model", value=model_slug(model)))


def _remarks(definition: Definition) -> Iterator[str]:
    """Say what is not wrong and could be better."""
    specs = {**definition.inputs, **definition.outputs, **definition.axes}
    silent = [name for name, item in specs.items() if not item.description]
    silent += [] if definition.description else ["the Definition itself"]
    if silent:
        yield f"no description of {shorten(', '.join(silent), 200)}"
    if find_op_type(definition.op_type) is None:
        near = difflib.get_close_matches(definition.op_type, [item.name for item in list_op_types()], n=1, cutoff=0.7)
        hint = f"; did you mean {near[0]}?" if near else ""
        yield f"the op_type {definition.op_type} is new: its inputs are made by the general rules{hint}"


def _find_sglang(context: Context, submission: Submission) -> Package | None:
    """Find SGLang's source if it is needed.

    Raises:
        SourceError: the folder that was named holds none.
    """
    if submission.forward is None:
        return None
    root = submission.sglang_path or context.workspace.find_clone("sglang")
    package = find_package("sglang", root)
    if package is None and submission.sglang_path is not None:
        todo = "name the package's folder, a clone or an unpacked wheel"
        raise SourceError("no sglang package here", where=str(root), todo=todo)
    return package


def _run_gate(context: Context, case: _Case, standing: Mapping[str, Definition], *, sandbox: Sandbox) -> None:
    """Pass the gate without staging: identity, and a trial run."""
    definition = case.definition
    context.progress(f"executing the reference of {definition.name}", 0, 0)
    namesake = standing.get(definition.name)
    is_other = namesake is not None and signature(namesake) != signature(definition)
    if namesake is not None and is_other:
        differences = "; ".join(compare(definition, namesake).differences)
        case.problems.append(
            Problem(
                field="name",
                found=f"the name of another kernel in the dataset: {shorten(differences, 200)}",
                expected="a name of its own",
                todo="add a word that says what sets it apart; nothing is overwritten",
            )
        )
    index = {name: item for name, item in standing.items() if not (is_other and name == definition.name)}
    report = context.tell_if_slow("comparing with the dataset")
    candidates = [Candidate(definition=definition)]
    found = list(admit(candidates, index=index, stage=lambda _: None, sandbox=sandbox, report=report))
    _take_admission(case, found[0])


def _take_admission(case: _Case, admission: Admission) -> None:
    case.execution = admission.execution
    if admission.status is AdmissionStatus.EXISTING:
        case.existing = admission.existing
        case.notes += [finding.message for finding in admission.findings]
    elif admission.status is AdmissionStatus.REFUSED:
        known = {problem.field for problem in case.problems}
        for finding in admission.findings:
            name = {"gate.constraint": "constraints", "gate.name": "name"}.get(finding.check, "reference")
            if name == "reference" or name not in known:
                case.problems.append(_from_gate(name, finding.message))


def _from_gate(name: str, message: str) -> Problem:
    expected = "every input in order, the declared outputs in shape and dtype, the same twice, inputs left alone"
    todo = "correct the reference, or what the Definition declares"
    return Problem(field=name, found=redact(shorten(message)), expected=expected, todo=todo)


def _compare_with_ours(context: Context, case: _Case, standing: Mapping[str, Definition], *, sandbox: Sandbox) -> None:
    """Compare with our canonical Definition of the kernel, and look for the same kernel under another name."""
    definition = case.definition
    found = recognise(definition)
    if found is not None:
        canonical = found.build()
        context.progress(f"comparing with {canonical.name}", 0, 0)
        case.problems += _find_contradictions(definition, canonical, found.kernel, sandbox=sandbox)
        return
    for twin, is_standing in _list_twins(definition, standing):
        context.progress(f"comparing with {twin.name}", 0, 0)
        if not compare_references(definition, twin, sandbox=sandbox).agrees:
            continue
        if is_standing:
            case.existing = twin.name
            case.notes.append(f"it takes the same tensors as {twin.name} and gives the same results")
        else:
            # advice about a name that it may not have would mislead
            case.problems = [item for item in case.problems if item.field != "name"]
            case.problems.append(_imitation(definition, twin))
        return


def _find_contradictions(
    definition: Definition, canonical: Definition, kernel: str, *, sandbox: Sandbox
) -> Iterator[Problem]:
    todo = f"take what {canonical.name} has (fib define writes it), or another name if it is another kernel"
    expected = f"the {kernel} kernel of these sizes, as fib-tools defines it"
    differences = find_interface_differences(definition, canonical)
    for text in differences:
        yield Problem(field=text.partition(" ")[0], found=shorten(text), expected=expected, todo=todo)
    if differences:
        return
    agreement = compare_references(definition, canonical, sandbox=sandbox)
    if not agreement.agrees:
        reason = shorten(agreement.reason or agreement.unavailable or "it differs")
        yield Problem(field="reference", found=reason, expected=expected, todo=todo)


def _list_twins(definition: Definition, standing: Mapping[str, Definition]) -> list[tuple[Definition, bool]]:
    """List Definitions that take and give the same tensors: of the dataset, then our kernel types in these sizes."""
    twins = [(item, True) for item in standing.values() if may_be_same(definition, item)]
    for kernel in list_kernel_types():
        # asks the recogniser for this kernel type whatever name and op_type say
        found = recognise({**to_document(definition), "fib_kernel": kernel.id, "fib_axes": {}})
        if found is not None and may_be_same(definition, built := found.build()):
            twins.append((built, False))
    twins.sort(key=lambda item: (item[0].op_type != definition.op_type, not item[1]))
    return twins[:_MOST_TWINS]


def _imitation(definition: Definition, twin: Definition) -> Problem:
    return Problem(
        field="name",
        found=f"{definition.name}, which computes what {twin.name} computes",
        expected=f"one Definition a kernel: {twin.name}",
        todo=f"let fib define write {twin.name}, or submit it under that name",
    )


def _compare_with_sglang(case: _Case, source: str, package: Package | None, *, sandbox: Sandbox) -> None:
    definition = case.definition
    inputs = list(definition.inputs)
    problems = list(find_signature_problems("sglang_forward", source, function=_FORWARD, inputs=inputs))
    modules = () if problems else _list_imports(source)
    if not problems and not modules:
        problems.append(
            Problem(
                field="sglang_forward",
                found="no import of sglang",
                expected="a call of SGLang's own layer",
                todo="import the layer from sglang and call its forward_native, or leave sglang_forward out",
            )
        )
    case.problems += problems
    if problems:
        case.compared = f"{_UNTRIED}sglang_forward has to change"
        return
    if package is None:
        case.compared = f"{_UNTRIED}no SGLang source here; run: fib clone --only sglang, or pass --sglang-path"
        return
    agreement = compare_function(definition, source, _FORWARD, modules=modules, sandbox=sandbox)
    _take_agreement(case, agreement, f"SGLang {package.version}")


def _take_agreement(case: _Case, agreement: Agreement, what: str) -> None:
    if agreement.unavailable is not None:
        case.compared = f"{_UNTRIED}{shorten(agreement.unavailable)}"
    elif agreement.agrees:
        case.compared = f"agrees with {what}: {shorten(agreement.describe())}"
    else:
        case.compared = f"differs from {what}"
        case.problems.append(
            Problem(
                field="reference",
                found=shorten(agreement.reason or "it differs"),
                expected=f"what {what} computes, within rounding",
                todo="correct the reference, or run_sglang if it calls something else",
            )
        )


def _list_imports(source: str) -> tuple[str, ...]:
    """List the modules of SGLang that a source imports, at any depth."""
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.append(node.module)
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
    return tuple(dict.fromkeys(name for name in found if name.split(".")[0] == "sglang"))


def _settle(context: Context, submission: Submission, case: _Case) -> AdmitResult:
    """Stage what nothing speaks against, record it, and report."""
    definition, execution = case.definition, case.execution
    path = manifest = None
    status: Status = "existing" if case.existing else "refused" if case.problems else "would define"
    if status == "would define" and not submission.is_dry:
        stage(context, definition)
        status = "defined"
        path = str(context.dataset.root / "definitions" / definition.op_type / f"{definition.name}.json")
        manifest = _record(context, submission, case)
    return AdmitResult(
        status=status,
        name=definition.name,
        op_type=definition.op_type,
        path=path,
        existing=case.existing,
        problems=() if case.existing else tuple(case.problems[:_MOST_PROBLEMS]),
        executed=execution.executed if execution else None,
        seconds=round(execution.seconds, 4) if execution else None,
        axes=execution.axes if execution else {},
        compared=case.compared,
        tags=tuple(definition.tags) if status != "existing" else (),
        notes=tuple(case.notes),
        manifest=manifest,
    )


def _record(context: Context, submission: Submission, case: _Case) -> str | None:
    """Write the Definition down in the model's manifest, if there is one."""
    if submission.model is None:
        return None
    slug = model_slug(submission.model)
    found = find_manifest(context.workspace, slug)
    if found is None:
        case.notes.append(f"{slug} has no manifest here that could record it; run: fib inventory {slug}")
        return None
    name, manifest = found
    entry = ManualDefinition(
        name=case.definition.name,
        op_type=case.definition.op_type,
        fills=submission.fills,
        executed=bool(case.execution and case.execution.executed),
        compared=case.compared,
    )
    others = [item for item in manifest.manual if item.name != entry.name]
    save_manifest(context.workspace, name, manifest.model_copy(update={"manual": (*others, entry)}))
    return name
