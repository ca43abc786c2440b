"""The checklist of phase 4: each thing that a reviewer would ask for holds a group back, and its remedy is named."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import submittable
from bench_dataset import CPU
from fib_tools.gate.execute import Execution
from fib_tools.model.manifest import Manifest, ManualDefinition
from fib_tools.model.trace import EvaluationStatus
from fib_tools.operations import get_operation
from fib_tools.phases import dossiers
from fib_tools.phases.context import Context, Workspace
from fib_tools.phases.manifests import find_manifest, save_manifest
from fib_tools.phases.reference_tests import write_or_run_tests
from fib_tools.phases.serving_options import ServingOptions, find_origin
from fib_tools.phases.submit_result import SubmitResult
from fib_tools.publish.checklist import CHECKS
from fib_tools.publish.outward import Failure
from fib_tools.render import print_summary
from submittable import EMBEDDING, MODEL, NORM

Break = Callable[[Context], None]


@pytest.fixture
def ready(submittable_workspace: Path, tmp_path: Path) -> Context:
    shutil.copytree(submittable_workspace, tmp_path / "work")
    return Context(workspace=Workspace(root=tmp_path / "work"), offline=True)


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Leave out the sandbox; what stands here by name did not run, and why."""
    reasons: dict[str, str] = {}

    def execute(documents: Any, **_: Any) -> Iterator[tuple[str, Execution]]:
        for document in documents:
            reason = reasons.get(document.name)
            yield document.name, Execution(executed=reason is None, reason=reason)

    monkeypatch.setattr(dossiers, "execute_many", execute)
    return reasons


def submit(context: Context, **options: Any) -> SubmitResult:
    result = get_operation("submit").run(context, {"model": MODEL, **options})
    assert isinstance(result, SubmitResult)
    return result


def change(context: Context, pattern: str, edit: Callable[[Any], None]) -> None:
    """Edit the documents of a file, one or a line each."""
    (path,) = context.dataset.root.glob(pattern)
    text = path.read_text(encoding="utf-8")
    documents = [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else [json.loads(text)]
    for document in documents:
        edit(document)
    lines = [json.dumps(document) for document in documents]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def remove(pattern: str) -> Break:
    def act(context: Context) -> None:
        for path in [*context.dataset.root.glob(pattern)]:
            path.unlink()

    return act


def edit(pattern: str, act: Callable[[Any], None]) -> Break:
    return lambda context: change(context, pattern, act)


def alter_manifest(**update: Any) -> Break:
    def act(context: Context) -> None:
        found = find_manifest(context.workspace, MODEL)
        assert found is not None
        save_manifest(context.workspace, found[0], found[1].model_copy(update=update))

    return act


def measure(**changes: Any) -> Break:
    def act(context: Context) -> None:
        definition = context.dataset.find_definition(NORM)
        assert definition is not None
        submittable.add_traces(context.dataset, definition, timestamp="2026-11-22T12:00:00Z", **changes)

    return act


def fail_test(context: Context) -> None:
    log = f"logs/rmsnorm/{NORM}/reference_test.json"
    change(context, log, lambda document: document.update(status="failed", reason="off by 2"))


def keep_one_trace(context: Context) -> None:
    path = context.dataset.root / f"traces/baseline/rmsnorm/{NORM}.jsonl"
    path.write_text(path.read_text(encoding="utf-8").splitlines()[0] + "\n", encoding="utf-8")


def touch_test(context: Context) -> None:
    path = context.dataset.root / f"tests/references/test_{NORM}.py"
    path.write_text(path.read_text() + "# laxer\n")


def copy_reference(document: Any) -> None:
    source = "import flashinfer\n\ndef run(*inputs):\n    return inputs[0]\n"
    document["sources"] = [{"path": "main.py", "content": source}]


BREAKS: dict[str, tuple[str, Break, str]] = {
    "a constraint that is false": (
        "valid",
        edit(f"definitions/rmsnorm/{NORM}.json", lambda doc: doc.update(constraints=["hidden_size == 1"])),
        "definition.constraint_false in",
    ),
    "a tag that is missing": (
        "tags",
        edit(f"definitions/rmsnorm/{NORM}.json", lambda doc: doc["tags"].remove(f"model:{MODEL}")),
        f"without the tags model:{MODEL}",
    ),
    "a status that nobody verified": (
        "tags",
        edit(f"definitions/rmsnorm/{NORM}.json", lambda doc: doc["tags"].remove("status:verified")),
        "not status:verified",
    ),
    "no test": ("reference test", remove(f"tests/references/test_{NORM}.py"), "there is no reference test"),
    "a test that was not run": ("reference test", remove(f"logs/rmsnorm/{NORM}/*"), "was not run on a GPU"),
    "a test that failed": ("reference test", fail_test, "its reference test failed: off by 2"),
    "a test that was changed": ("reference test", touch_test, "another test ran than the one that stands there"),
    "a log that is no log": (
        "valid",
        edit(f"logs/rmsnorm/{NORM}/*", lambda doc: doc.pop("status")),
        "log.unreadable in",
    ),
    "a log of another Definition": (
        "reference test",
        edit(f"logs/rmsnorm/{NORM}/*", lambda doc: doc.update(definition_hash="0")),
        "before the Definition was changed",
    ),
    "a size at which no kernel ran": (
        "reference test",
        edit(f"logs/rmsnorm/{NORM}/*", lambda doc: doc["records"].pop()),
        "no kernel agreed with it at the sizes large",
    ),
    "no Workloads": ("workloads", remove(f"workloads/rmsnorm/{NORM}.jsonl"), "it has no Workloads"),
    "Workloads that were made up": (
        "workloads",
        edit(f"workloads/rmsnorm/{NORM}.jsonl", lambda doc: doc["workload"].update(origin="synthetic")),
        "2 of 2 Workloads are not of real inference but synthetic",
    ),
    "Workloads of unknown origin": (
        "workloads",
        edit(f"workloads/rmsnorm/{NORM}.jsonl", lambda doc: doc["workload"].pop("origin")),
        "an unknown origin",
    ),
    "a blob that is missing": ("blobs", remove(f"blob/workloads/embedding/{EMBEDDING}/*"), ".safetensors"),
    "no baseline": ("baseline", remove(f"solutions/baseline/rmsnorm/{NORM}/*"), "it has no baseline, and"),
    "a baseline that calls nothing": (
        "baseline",
        edit(f"solutions/baseline/rmsnorm/{NORM}/*", copy_reference),
        "calls none of flashinfer.norm.rmsnorm",
    ),
    "no Traces": ("traces", remove(f"traces/baseline/rmsnorm/{NORM}.jsonl"), "its baselines have no Traces"),
    "a Trace that did not pass": (
        "traces",
        measure(status=EvaluationStatus.INCORRECT_NUMERICAL),
        "2 Traces did not pass: flashinfer_wrapper",
    ),
    "Traces of a CPU": ("traces", measure(gpu=CPU), "measured on a CPU"),
    "no evidence": ("traces", remove("evidence/*/*.json"), "no evidence is kept"),
    "unmeasured Workloads": ("traces", keep_one_trace, "1 of 2 are left out"),
    "a token in a log": (
        "secrets",
        edit(f"logs/rmsnorm/{NORM}/*", lambda doc: doc.update(reason="with hf_" + "x" * 20)),
        f"logs/rmsnorm/{NORM}/reference_test.json holds what looks like a token",
    ),
    "no sources": ("provenance", alter_manifest(sources={}), "does not say which config"),
    "no repository": ("links", alter_manifest(repo_id=None), "no Hugging Face repository to link"),
}


@pytest.mark.usefixtures("executed")
@pytest.mark.parametrize("name", BREAKS)
def test_what_a_reviewer_would_ask_for_holds_the_group_back(ready: Context, name: str) -> None:
    check, damage, said = BREAKS[name]
    assert submit(ready).failures == ()
    damage(ready)
    result = submit(ready)
    found = [failure for failure in result.failures if failure.check == check]
    assert any(said in failure.found for failure in found), result.failures
    assert all("fib " in failure.todo for failure in found)
    assert result.has_errors
    assert [(entry.kind, entry.status) for entry in result.entries] == [("dataset", "blocked"), ("coverage", "blocked")]
    assert result.requests == ()


def test_a_reference_that_does_not_run_holds_the_group_back(ready: Context, executed: dict[str, str]) -> None:
    executed[NORM] = "it divides by zero"
    (failure,) = submit(ready).failures
    assert (failure.definition, failure.check, failure.found) == (NORM, "executed", "it divides by zero")
    assert failure.todo.startswith(f"run: fib validate --definitions {NORM} --execute")


def test_the_references_are_really_executed(ready: Context) -> None:
    assert submit(ready).failures == ()
    change(
        ready, f"definitions/rmsnorm/{NORM}.json", lambda doc: doc.update(reference="def run(*inputs):\n    return 1\n")
    )
    assert "executed" in {failure.check for failure in submit(ready, definitions=(NORM,)).failures}


def test_each_check_has_a_row_that_breaks_it() -> None:
    assert {check.id for check in CHECKS} | {"links", "secrets"} == {check for check, _, _ in BREAKS.values()} | {
        "executed"
    }


@pytest.mark.usefixtures("executed")
def test_only_the_group_that_lacks_something_is_held_back(ready: Context) -> None:
    remove(f"logs/rmsnorm/{NORM}/*")(ready)
    result = submit(ready, group="definition")
    assert [(entry.kind, entry.subject, entry.status) for entry in result.entries] == [
        ("dataset", f"definition-{EMBEDDING}", "would open"),
        ("coverage", f"definition-{EMBEDDING}", "would open"),
        ("dataset", f"definition-{NORM}", "blocked"),
        ("coverage", f"definition-{NORM}", "blocked"),
        ("kernel request", "embedding", "would open"),
    ]
    assert not submit(ready, definitions=(EMBEDDING,)).has_errors


@pytest.mark.usefixtures("executed")
def test_made_up_weights_are_taken_when_that_is_said_and_the_pull_request_says_so(ready: Context) -> None:
    for pattern in (f"workloads/rmsnorm/{NORM}.jsonl", f"traces/baseline/rmsnorm/{NORM}.jsonl"):
        change(ready, pattern, lambda document: document["workload"].update(origin="dummy"))
    (failure,) = submit(ready).failures
    assert "--dummy-weights" in failure.found
    result = submit(ready, dummy_weights=True)
    assert not result.has_errors
    assert "2 Workloads were collected from an engine with made-up weights" in result.requests[0].body


@pytest.mark.usefixtures("executed")
def test_a_definition_written_by_hand_is_submitted_too(ready: Context) -> None:
    def by_hand(manifest: Manifest) -> Manifest:
        kernels = tuple(kernel for kernel in manifest.kernels if kernel.name != NORM)
        manual = ManualDefinition(name=NORM, op_type="rmsnorm", executed=True, compared="agrees with SGLang")
        return manifest.model_copy(update={"kernels": kernels, "manual": (manual,)})

    found = find_manifest(ready.workspace, MODEL)
    assert found is not None
    save_manifest(ready.workspace, found[0], by_hand(found[1]))
    result = submit(ready)
    assert not result.has_errors
    assert result.entries[0].definitions == 2


@pytest.mark.usefixtures("executed")
def test_a_summary_names_what_is_missing_once_for_all_that_lack_it(ready: Context) -> None:
    remove("logs/*/*/*")(ready)
    summary = submit(ready).summary()
    (held, _) = summary.tables
    assert [row[:2] for row in held.rows] == [(f"{EMBEDDING} and 1 more", "reference test")]
    assert summary.lines[0].endswith(f"then fib tests run --definitions {EMBEDDING},{NORM}")


def test_what_to_do_is_never_cut_off() -> None:
    todo = "run: fib tests run " + "very " * 40 + "long"
    failure = Failure(group="model", definition="d" * 60, check="reference test", found="not run", todo=todo)
    result = SubmitResult(model=MODEL, manifest_path="m.json", sent=False, entries=(), failures=(failure,))
    console = Console(file=io.StringIO(), width=80)
    print_summary(result.summary(), console)
    assert isinstance(console.file, io.StringIO)
    assert f"what to do for {'d' * 60} (reference test): {todo}\n" in console.file.getvalue()


@pytest.mark.usefixtures("executed")
def test_the_end_says_how_many_are_held_back_and_what_yes_would_do(ready: Context) -> None:
    remove(f"logs/rmsnorm/{NORM}/*")(ready)
    assert submit(ready).summary().lines[-1] == "nothing was sent, and --yes would send nothing; 2 held back"
    some = submit(ready, group="definition").summary().lines[-1]
    assert some.startswith("nothing was sent: 3 would be opened or updated, by ")
    assert some.endswith(" requests; --yes sends them; 2 held back")


def test_the_advice_for_workloads_brings_what_the_check_takes() -> None:
    todos = [check.todo for check in CHECKS if "fib collect" in check.todo]
    assert len(todos) == 2
    plain = find_origin(ServingOptions())
    named = find_origin(ServingOptions(weights="DIR", prompts=Path("FILE")))
    assert (plain, named) == ("dummy", "real")
    assert all(" --weights DIR --prompts FILE " in todo for todo in todos)


def test_a_run_on_a_gpu_leaves_its_log_and_others_do_not(ready: Context) -> None:
    remove("logs/*/*/*")(ready)
    write_or_run_tests(ready, "run", definitions=(NORM,), device="cpu")
    assert ready.dataset.find_log("rmsnorm", NORM) is None
    submittable.pass_tests(ready)
    log = ready.dataset.find_log("rmsnorm", NORM)
    assert log is not None
    assert (log.status, log.gpu, log.kernel) == ("passed", "NVIDIA H200", "flashinfer.norm.rmsnorm")
    assert log.libs["torch"]
