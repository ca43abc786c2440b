"""Runs of the engine: one child each, with a clean environment, time limits, and nothing left running at the end.

<folder>/<run>/request.json    what was asked for            engine.log     all that the engine said
               progress.jsonl  what the child told           stages.json    seconds of each stage
               dumps/rank0/    Definitions after the hook    raw/rank0/     as FlashInfer dumps them
               calls/  notes/  kernels/                      done.json      only when it came to its end
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from fib_tools.capture.engine_process import EngineProcess
from fib_tools.capture.failures import find_engine_error, is_out_of_memory, reduce_memory
from fib_tools.capture.runs import EngineRun
from fib_tools.errors import FormatError
from fib_tools.host.env import redact
from fib_tools.host.files import read_limited, storage_errors, write_atomically
from fib_tools.host.packages import find_versions
from fib_tools.model.base import Model
from fib_tools.model.canonical import load_json

__all__ = ["EngineOptions", "RunOutcome", "Status", "list_versions", "load_outcome", "make_runs"]

Status = Literal["done", "partial", "failed", "timed out", "resumed"]
"""`partial`: some requests failed; `resumed`: an earlier run had done it."""

_CHILD = Path(__file__).with_name("_engine_child.py")
_HOOK = Path(__file__).with_name("dump_hook")
_TICK_SECONDS = 0.1
_SHUTDOWN_SECONDS = 60.0
"""After its last answer an engine has nothing to lose."""
_DOCUMENT_BYTES = 8 << 20
_LOG_BYTES = 1 << 20
_VERSIONED = ("sglang", "flashinfer-python", "torch")
_CLEARED = ("dumps", "raw", "calls", "notes", "kernels", "model")


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineOptions:
    """How runs are made."""

    environment: Mapping[str, str]
    """Of the children, before what each run adds."""
    descriptors: tuple[int, ...] = ()
    """Passed on to the children: with a GPU lease's, the GPUs stay held until the last of them has died."""
    jobs: int = 1
    """Runs side by side, as far as the GPU's memory allows: most of the time goes into compiling."""
    timeout: float = 1800.0
    """Seconds of one run."""
    stage_timeout: float = 900.0
    """Seconds of one stage: starting the engine, or one batch of requests with all that compiles for it."""
    deadline: float | None = None
    """`time.monotonic()` at which no further run starts and those under way are ended."""
    rerun: bool = False
    python: str = sys.executable
    child: Path = _CHILD
    report: Callable[[str], None] = field(default=lambda _text: None)
    tick: Callable[[], None] = field(default=lambda: None)
    """Called some ten times a second while engines run."""


class RunOutcome(Model):
    """How a run went."""

    name: str
    status: Status
    seconds: float
    stages: dict[str, float] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    error: str = ""
    """In the engine's own words."""
    notes: tuple[str, ...] = ()
    digest: str = ""


@dataclass(kw_only=True)
class _Attempt:
    """One child that works on a run."""

    run: EngineRun
    folder: Path
    process: EngineProcess
    started: float
    is_retry: bool
    entries: list[dict[str, Any]] = field(default_factory=list)
    stage: str = "launch"
    stage_started: float = 0.0
    notes: list[str] = field(default_factory=list)

    def read(self, now: float) -> None:
        """Take in what the child has told since."""
        for entry in self.process.read_progress():
            self.entries.append(entry)
            if entry.get("event") == "begin":
                self.stage, self.stage_started = str(entry.get("stage")), now
            elif entry.get("event") in {"end", "failed"}:
                self.stage, self.stage_started = f"after {entry.get('stage')}", now
            elif entry.get("event") == "note":
                self.notes.append(str(entry.get("text")))

    def find(self, event: str) -> dict[str, Any] | None:
        return next((entry for entry in self.entries if entry.get("event") == event), None)

    def stages(self) -> dict[str, float]:
        ended = [entry for entry in self.entries if entry.get("event") in {"end", "failed"}]
        return {str(entry["stage"]): float(entry["seconds"]) for entry in ended}


def make_runs(runs: Sequence[EngineRun], folder: Path, options: EngineOptions) -> tuple[RunOutcome, ...]:
    """Make the runs below a folder, some side by side; a run that fails stops no other, an interrupt ends all.

    Raises:
        StorageError: the disk refuses.
    """
    outcomes: dict[str, RunOutcome] = {}
    waiting: list[tuple[EngineRun, bool]] = []
    for run in runs:
        standing = None if options.rerun else load_outcome(folder / run.name)
        if standing is not None and standing.status == "done" and _is_same(standing, run):
            outcomes[run.name] = standing.model_copy(update={"status": "resumed"})
        else:
            waiting.append((run, False))
    active: list[_Attempt] = []
    try:
        while waiting or active:
            while waiting and len(active) < options.jobs and not _is_over(options):
                run, is_retry = waiting.pop(0)
                active.append(_start(run, folder / run.name, options, is_retry=is_retry))
            if waiting and not active:
                outcomes |= {run.name: _not_started(run) for run, _ in waiting}
                break
            for attempt, outcome in _step(active, options):
                active.remove(attempt)
                again = None if attempt.is_retry or _is_over(options) else _plan_retry(attempt, outcome)
                if again is None:
                    _settle(attempt, outcome, options)
                    outcomes[attempt.run.name] = outcome
                else:
                    options.report(f"{attempt.run.name}: out of memory, again with less")
                    waiting.insert(0, (again, True))
            options.tick()
            time.sleep(_TICK_SECONDS if active else 0)
    finally:
        for attempt in active:
            attempt.process.end()
    return tuple(outcomes[run.name] for run in runs)


def load_outcome(folder: Path) -> RunOutcome | None:
    """Load how a run in this folder ended; None when none did."""
    try:
        data = load_json(read_limited(folder / "done.json", _DOCUMENT_BYTES), where=str(folder / "done.json"))
        return RunOutcome.model_validate(data)
    except (FormatError, ValueError):
        return None


def list_versions() -> dict[str, str]:
    """List the versions of the packages that a dump depends on, as installed here."""
    return find_versions(_VERSIONED)


def _is_over(options: EngineOptions) -> bool:
    return options.deadline is not None and time.monotonic() >= options.deadline


def _not_started(run: EngineRun) -> RunOutcome:
    return RunOutcome(name=run.name, status="timed out", seconds=0.0, error="no time was left to start it")


def _is_same(standing: RunOutcome, run: EngineRun) -> bool:
    here = list_versions()
    return standing.digest == _digest(run) and all(standing.versions.get(name) == here[name] for name in here)


def _digest(run: EngineRun) -> str:
    """Identify a run and the hook that it is made with."""
    hashed = hashlib.sha256(run.digest.encode())
    for path in (_CHILD, *sorted(_HOOK.glob("*.py"))):
        hashed.update(path.read_bytes())
    return hashed.hexdigest()


def _start(run: EngineRun, folder: Path, options: EngineOptions, *, is_retry: bool) -> _Attempt:
    with storage_errors(folder):
        for name in _CLEARED:
            shutil.rmtree(folder / name, ignore_errors=True)
        for name in ("progress.jsonl", "done.json", "stages.json"):
            (folder / name).unlink(missing_ok=True)
        (folder / "kernels").mkdir(parents=True, exist_ok=True)
    request = {
        **run.model_dump(mode="json", exclude={"points", "not_covered"}),
        "progress": str((folder / "progress.jsonl").resolve()),
        "model_folder": str((folder / "model").resolve()),
    }
    write_atomically(folder / "request.json", json.dumps(request, indent=2).encode())
    options.report(f"{run.name}: starting the engine")
    now = time.monotonic()
    process = EngineProcess(
        [options.python, "-B", str(options.child), str((folder / "request.json").resolve())],
        folder=folder,
        environment=_child_environment(run, folder, options),
        descriptors=options.descriptors,
    )
    return _Attempt(run=run, folder=folder, process=process, started=now, stage_started=now, is_retry=is_retry)


def _child_environment(run: EngineRun, folder: Path, options: EngineOptions) -> dict[str, str]:
    paths = [str(_HOOK.resolve()), options.environment.get("PYTHONPATH", "")]
    return {
        **options.environment,
        **run.environment,
        "PYTHONPATH": ":".join(path for path in paths if path),
        "FIB_DUMP_DIR": str(folder.resolve()),
        "FIB_DUMP_SKIP": ",".join(run.skipped),
        "FIB_DUMP_WATCH": ",".join(run.watched),
        "SGLANG_KERNEL_API_LOGDEST": str(folder.resolve() / "kernels" / "%i.log"),
    }


def _step(active: Sequence[_Attempt], options: EngineOptions) -> Iterator[tuple[_Attempt, RunOutcome]]:
    """Look at every child once; yield those that have come to an end, by themselves or not."""
    for attempt in list(active):
        now = time.monotonic()
        before = attempt.stage
        attempt.read(now)
        if attempt.stage != before and not attempt.stage.startswith("after"):
            options.report(f"{attempt.run.name}: {attempt.stage}")
        status = attempt.process.poll()
        excess = None if status is not None else _find_excess(attempt, options, now)
        if status is None and excess is None:
            continue
        attempt.process.end()
        attempt.read(now)
        yield attempt, _judge(attempt, status=status, excess=excess, now=now)


def _find_excess(attempt: _Attempt, options: EngineOptions, now: float) -> str | None:
    """Say which limit a child has run past."""
    in_stage = now - attempt.stage_started
    if attempt.find("done") is not None:
        return "the shutdown took too long" if in_stage > _SHUTDOWN_SECONDS else None
    if in_stage > options.stage_timeout:
        return f"{attempt.stage!r} ran past {options.stage_timeout:g} s"
    if now - attempt.started > options.timeout:
        return f"the run went past {options.timeout:g} s, in {attempt.stage!r}"
    return f"the time for all runs was over, in {attempt.stage!r}" if _is_over(options) else None


def _judge(attempt: _Attempt, *, status: int | None, excess: str | None, now: float) -> RunOutcome:
    done = attempt.find("done")
    failures = [str(text) for text in (done or {}).get("failures", ())]
    found: Status = "done" if done is not None else "timed out" if excess else "failed"
    error = ""
    if failures:
        found, error = "partial", "; ".join(failures)
    elif done is None:
        error = _explain(attempt, status=status, excess=excess)
    versions = attempt.find("versions") or {}
    return RunOutcome(
        name=attempt.run.name,
        status=found,
        seconds=round(now - attempt.started, 1),
        stages=attempt.stages(),
        versions=dict(versions.get("versions", {})),
        error=redact(error),
        notes=tuple(attempt.notes),
        digest=_digest(attempt.run),
    )


def _explain(attempt: _Attempt, *, status: int | None, excess: str | None) -> str:
    """Say why there is no result: the limit that was passed, and what the engine said last."""
    said = find_engine_error(attempt.process.read_log(_LOG_BYTES))
    told = (attempt.find("crashed") or {}).get("error")
    reason = excess or told or f"the engine ended with status {status} in {attempt.stage!r}"
    return f"{reason}\n{said}" if said and said not in reason else reason


def _plan_retry(attempt: _Attempt, outcome: RunOutcome) -> EngineRun | None:
    """Ask for less memory when that was the reason."""
    if outcome.status not in {"failed", "partial"}:
        return None
    text = f"{outcome.error}\n{attempt.process.read_log(_LOG_BYTES)}"
    if not is_out_of_memory(text):
        return None
    return attempt.run.model_copy(update={"arguments": reduce_memory(attempt.run.arguments, text)})


def _settle(attempt: _Attempt, outcome: RunOutcome, options: EngineOptions) -> None:
    """Leave the record of a run in its folder."""
    document = outcome.model_dump(mode="json")
    write_atomically(attempt.folder / "stages.json", json.dumps(document, indent=2).encode())
    if outcome.status == "done":
        write_atomically(attempt.folder / "done.json", json.dumps(document, indent=2).encode())
    options.report(f"{outcome.name}: {outcome.status} after {outcome.seconds:g} s")
