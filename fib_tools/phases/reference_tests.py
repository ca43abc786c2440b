"""Reference tests: a pytest file for each Definition, and what came of running them.

On a GPU the reference is compared with the real kernel; a Definition that passes there is marked `status:verified`.
On a CPU the reference alone is checked: what it returns, twice the same, and how far it is from itself in float64.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import Field

from fib_tools.dataset.layout import Kind, Location
from fib_tools.dataset.store import Dataset
from fib_tools.errors import FormatError, PathError, RequestError
from fib_tools.evaluate.engines.items import hash_definition
from fib_tools.host.files import storage_errors, write_atomically
from fib_tools.host.packages import find_versions
from fib_tools.host.paths import confine
from fib_tools.model.canonical import canonical_bytes
from fib_tools.model.definition import Definition
from fib_tools.model.reference_log import ReferenceLog
from fib_tools.model.summary import Result, Summary, Table
from fib_tools.op_types.sizes import SIZES
from fib_tools.phases.context import Context
from fib_tools.phases.reference_runs import Record, TestRun, has_gpu, run_tests
from fib_tools.phases.reference_test_file import find_ground_truth, is_ours, read_conftest, write_test
from fib_tools.phases.request import check_definitions, check_op_types

__all__ = ["TestEntry", "TestsResult", "make_log", "write_or_run_tests"]

_REPORT = "reference_tests.json"
_KERNEL_TEST = "test_the_kernel_agrees_with_the_reference"
_SHOWN = 30
_VERIFIED = "status:verified"
_LIBRARIES = ("torch", "flashinfer-python", "sglang", "triton")


class TestEntry(Result):
    """What became of one Definition's test."""

    __test__ = False  # pytest would take it for a test
    name: str
    op_type: str
    status: Literal["written", "updated", "unchanged", "kept", "would write", "refused", "passed", "failed", "skipped"]
    """`kept`: somebody edited the file; `passed`: against a kernel; `skipped`: what could run passed, but no kernel ran."""
    reason: str = ""
    kernel: str = ""
    """The real kernel that the reference is, or was, compared with."""
    verified: bool = False
    """`status:verified` was set, or stood there, after this run on a GPU."""
    records: tuple[dict[str, Any], ...] = ()
    """Every test of it: size, outcome, metrics."""


class TestsResult(Result):
    """The tests that were written or run."""

    __test__ = False  # pytest would take it for a test
    rows = "entries"
    row_fields = ("name", "status", "reason", "kernel")

    action: Literal["write", "run"]
    dataset: str
    device: str = ""
    entries: tuple[TestEntry, ...]
    report: str = ""
    """The JSON file that holds all of this: the evidence of `status:verified`."""

    @property
    def has_errors(self) -> bool:
        """A failed test is an error, and so is a Definition for which no test can be written."""
        return any(entry.status in {"failed", "refused"} for entry in self.entries)

    def summary(self) -> Summary:
        """Show what failed, then what was skipped or kept, then how many there are of each."""
        order = ("failed", "refused", "kept", "skipped", "would write")
        ranked = [entry for status in order for entry in self.entries if entry.status == status]
        rows = tuple((entry.name, entry.status, entry.reason) for entry in ranked[:_SHOWN])
        tables = (Table(title="tests", columns=("definition", "status", "reason"), rows=rows),) if rows else ()
        more = (f"... and {len(ranked) - _SHOWN} more",) if len(ranked) > _SHOWN else ()
        counts: dict[str, int] = {}
        for entry in self.entries:
            counts[entry.status] = counts.get(entry.status, 0) + 1
        said = ", ".join(f"{count} {status}" for status, count in counts.items()) or "nothing selected"
        where = f"; report: {self.report}" if self.report else ""
        return Summary(
            tables=tables, lines=(*more, f"{self.dataset}: {said}{f' on {self.device}' * bool(self.device)}{where}")
        )


def write_or_run_tests(
    context: Context,
    action: Annotated[
        Literal["write", "run"], Field(description="write: put the test files into the dataset; run: run them.")
    ],
    *,
    definitions: Annotated[tuple[str, ...] | None, Field(description="Only these Definitions, by name.")] = None,
    op_types: Annotated[tuple[str, ...] | None, Field(description="Only Definitions of these op_types.")] = None,
    all: Annotated[bool, Field(description="Every Definition of the dataset.")] = False,  # noqa: A002  # users know --all
    device: Annotated[
        Literal["auto", "cpu", "cuda"], Field(description="Where to run; auto takes a GPU where torch sees one.")
    ] = "auto",
    tolerance: Annotated[
        float | None,
        Field(
            gt=0, le=1, description="Use this as rtol and, in units of the RMS, atol instead of the calibrated bounds."
        ),
    ] = None,
    sizes: Annotated[
        tuple[Literal["small", "medium", "large"], ...] | None,
        Field(description="Only these sizes; all on a GPU, small on a CPU if left out."),
    ] = None,
    time_limit: Annotated[
        int,
        Field(
            ge=1, le=7200, description="Seconds for the tests of one Definition, the compiling of its kernel included."
        ),
    ] = 900,
    dry_run: Annotated[bool, Field(description="Say what would be written or run, and do nothing.")] = False,
) -> TestsResult:
    """Write or run the tests that compare each Definition's reference with the real kernel.

    On a CPU they run confined. On a GPU they run with your rights, but without tokens: agents may only write them.

    Exit status 0: nothing failed (skipped is allowed, and says why); 1: a test failed; 2: it could not be run.
    """
    dataset = Dataset.open(context.dataset.root)
    chosen, broken = _select(dataset, definitions, op_types, everything=all)
    if action == "write":
        entries = (*broken, *_write_all(context, dataset, chosen, dry_run=dry_run))
        return TestsResult(action=action, dataset=str(dataset.root), entries=entries)
    where = ("cuda" if has_gpu() else "cpu") if device == "auto" else device
    if where == "cuda" and context.is_confined and not dry_run:
        what = "on a GPU the tests run code of the dataset with the rights of the user, so an agent may not start them"
        raise RequestError(what, todo="run in a shell: fib tests run, or pass --device cpu")
    options = (
        *(("--tolerance", f"{tolerance!r}") if tolerance else ()),
        *(("--sizes", ",".join(sizes)) if sizes else ()),
    )
    files = _find_files(dataset, chosen)
    if dry_run:
        entries = tuple(_entry(definition, status="skipped", reason=f"would run on {where}") for definition in chosen)
        return TestsResult(action=action, dataset=str(dataset.root), device=where, entries=entries)
    entries = (*broken, *_run_all(context, chosen, files, device=where, options=options, time_limit=time_limit))
    if where == "cuda" and tolerance is None:
        entries = _mark_verified(dataset, chosen, entries)
        if sizes is None:
            _write_logs(dataset, chosen, entries)
    return _save(context, TestsResult(action=action, dataset=str(dataset.root), device=where, entries=entries))


def _select(
    dataset: Dataset, names: tuple[str, ...] | None, op_types: tuple[str, ...] | None, *, everything: bool
) -> tuple[list[Definition], list[TestEntry]]:
    """Choose Definitions, and name those of the choice that cannot be read."""
    if not (names or op_types or everything):
        raise RequestError("no Definition is selected", todo="pass names, --op-types, or --all")
    check_op_types(op_types)
    loaded, faults = dataset.load_definitions()
    broken = [_broken(fault) for fault in faults]
    broken = [
        entry for entry in broken if (not names or entry.name in names) and (not op_types or entry.op_type in op_types)
    ]
    check_definitions(names or (), {*loaded, *(entry.name for entry in broken)}, where=str(dataset.root))
    chosen = [
        definition
        for name, definition in sorted(loaded.items())
        if (not names or name in names) and (not op_types or definition.op_type in op_types)
    ]
    return chosen, broken


def _broken(fault: FormatError | PathError) -> TestEntry:
    """Report a file that holds no Definition under the name that its path gives it."""
    path = PurePosixPath((fault.where or "").partition(".json")[0])
    return TestEntry(name=path.name, op_type=path.parent.name, status="refused", reason=str(fault))


def _path(dataset: Dataset, name: str) -> Path:
    return confine(dataset.root, *str(Location(kind=Kind.TEST, definition=name)).split("/"))


def _entry(definition: Definition, **own: Any) -> TestEntry:
    return TestEntry(name=definition.name, op_type=definition.op_type, **own)


def _write_all(context: Context, dataset: Dataset, chosen: list[Definition], *, dry_run: bool) -> list[TestEntry]:
    context.progress(f"writing {len(chosen)} tests", 0, 0)
    entries = [_write_one(dataset, definition, dry_run=dry_run) for definition in chosen]
    if chosen and not dry_run:
        shared = confine(dataset.root, "tests", "references", "conftest.py")
        status, reason = _put(shared, read_conftest())
        if status == "kept":
            entries.append(TestEntry(name="conftest.py", op_type="", status=status, reason=reason))
    return entries


def _write_one(dataset: Dataset, definition: Definition, *, dry_run: bool) -> TestEntry:
    truth = find_ground_truth(definition)
    kernel = truth.wrappers[0].api if truth.wrappers else ""
    try:
        text = write_test(definition)
    except FormatError as error:
        return _entry(definition, status="refused", reason=str(error), kernel=kernel)
    if dry_run:
        return _entry(definition, status="would write", reason=truth.reason, kernel=kernel)
    status, reason = _put(_path(dataset, definition.name), text)
    return _entry(definition, status=status, reason=reason or ("" if kernel else truth.reason), kernel=kernel)


def _put(path: Path, text: str) -> tuple[Literal["written", "updated", "unchanged", "kept"], str]:
    """Write a file unless somebody changed the one that stands there."""
    standing = path.read_bytes().decode(errors="replace") if path.is_file() else None
    if standing == text:
        return "unchanged", ""
    if standing is not None and not is_ours(standing):
        return "kept", "edited by hand; delete it to have it written anew"
    with storage_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.encode())
    return ("written" if standing is None else "updated"), ""


def _find_files(dataset: Dataset, chosen: list[Definition]) -> dict[str, Path]:
    found = {definition.name: _path(dataset, definition.name) for definition in chosen}
    return {name: path for name, path in found.items() if path.is_file()}


def _run_all(
    context: Context,
    chosen: list[Definition],
    files: Mapping[str, Path],
    *,
    device: str,
    options: tuple[str, ...],
    time_limit: float,
) -> list[TestEntry]:
    entries: dict[str, TestEntry] = {}
    context.progress(f"running {len(files)} test files on {device}", 0, len(files))
    by_name = {definition.name: definition for definition in chosen}
    for done, run in enumerate(run_tests(files, device=device, options=options, time_limit=time_limit), start=1):
        entries[run.name] = _judge(by_name[run.name], run)
        context.progress(f"{run.name}: {entries[run.name].status}", done, len(files))
    unwritten = "no test file; run: fib tests write"
    return [
        entries.get(definition.name) or _entry(definition, status="skipped", reason=unwritten) for definition in chosen
    ]


def _judge(definition: Definition, run: TestRun) -> TestEntry:
    """Give one verdict: failed if anything failed, passed if the kernel agreed at some size and failed at none."""
    records = tuple(dict(record) for record in run.records)
    failed = [record for record in records if record.get("outcome") == "failed"]
    kernels = [record for record in records if record.get("test") == _KERNEL_TEST]
    passed = [record for record in kernels if record.get("outcome") == "passed"]
    kernel = str(next((record["kernel"] for record in kernels if record.get("kernel")), ""))
    if run.problem or failed:
        return _entry(
            definition, status="failed", reason=run.problem or _explain(failed[0]), kernel=kernel, records=records
        )
    if passed:
        metrics = " | ".join(str(line) for line in passed[-1].get("metrics", ()))
        return _entry(definition, status="passed", reason=metrics, kernel=kernel, records=records)
    why = next((str(record.get("reason")) for record in kernels if record.get("reason")), "no kernel test ran")
    return _entry(definition, status="skipped", reason=why, kernel=kernel, records=records)


def _explain(record: Record) -> str:
    return f"{record.get('test')}[{record.get('size')}]: {str(record.get('reason', '')).strip()}"


def _mark_verified(dataset: Dataset, chosen: list[Definition], entries: tuple[TestEntry, ...]) -> tuple[TestEntry, ...]:
    """Tag what agreed with a real kernel on this GPU in a test as it was written; nothing is untagged."""
    by_name = {definition.name: definition for definition in chosen}
    shared = dataset.root / "tests" / "references" / "conftest.py"
    if not (shared.is_file() and shared.read_bytes() == read_conftest().encode()):
        return entries  # whoever changed how tests judge has not verified anything
    marked = []
    for entry in entries:
        is_unchanged = entry.status == "passed" and is_ours(
            _path(dataset, entry.name).read_bytes().decode(errors="replace")
        )
        if is_unchanged and {record.get("size") for record in _passed(entry)} >= set(SIZES):
            tags = [*by_name[entry.name].tags, _VERIFIED]
            dataset.write_definition(by_name[entry.name].model_copy(update={"tags": tags}))
            marked.append(entry.model_copy(update={"verified": True}))
        else:
            marked.append(entry)
    return tuple(marked)


def _passed(entry: TestEntry) -> list[dict[str, Any]]:
    return [
        record for record in entry.records if record.get("test") == _KERNEL_TEST and record.get("outcome") == "passed"
    ]


def _write_logs(dataset: Dataset, chosen: list[Definition], entries: tuple[TestEntry, ...]) -> None:
    """Keep what the tests said beside the Definitions, for those who review them."""
    definitions = {definition.name: definition for definition in chosen}
    libs = find_versions(_LIBRARIES)
    for entry in entries:
        if entry.records:
            test = _path(dataset, entry.name).read_bytes()
            dataset.write_log(entry.op_type, make_log(definitions[entry.name], entry, test, libs))


def make_log(definition: Definition, entry: TestEntry, test: bytes, libs: Mapping[str, str]) -> ReferenceLog:
    """Say what a test came to, and of what."""
    return ReferenceLog(
        definition=definition.name,
        definition_hash=hash_definition(definition),
        test_sha256=hashlib.sha256(test).hexdigest(),
        status="failed" if entry.status == "failed" else "passed" if entry.status == "passed" else "skipped",
        reason=entry.reason,
        kernel=entry.kernel,
        gpu=next((str(record["gpu"]) for record in entry.records if record.get("gpu")), ""),
        libs=dict(libs),
        records=entry.records,
    )


def _save(context: Context, result: TestsResult) -> TestsResult:
    path = context.workspace.root / _REPORT
    context.workspace.create()
    named = result.model_copy(update={"report": str(path)})
    write_atomically(path, canonical_bytes(named))
    return named
