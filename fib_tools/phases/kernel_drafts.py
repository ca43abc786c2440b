"""The same search with somebody else as the searcher, a coding agent or a person: a brief, a verdict, and what was tried.

Drafts of one Definition, language and device stand in one run, `<workspace>/optimize/drafts-<definition>-<language>-<device>`,
whoever sends them: the searcher is free, the verdict is not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from fib_tools.dataset.store import Dataset
from fib_tools.draft.attempt import Ask, AskKind, Attempt, Draft, are_apart, find_best
from fib_tools.draft.brief import write_brief, write_contract
from fib_tools.draft.elsewhere import list_elsewhere
from fib_tools.draft.feedback import write_feedback, write_history, write_log
from fib_tools.draft.machine import check_language, check_machine
from fib_tools.draft.run_folder import RunFolder, SearchPlan
from fib_tools.draft.solution import name_author
from fib_tools.draft.target import Target
from fib_tools.errors import FibError, PathError, RequestError
from fib_tools.host.files import read_limited
from fib_tools.host.hardware import find_hardware
from fib_tools.host.locks import hold
from fib_tools.host.paths import check_component, confine
from fib_tools.llm.prices import Price
from fib_tools.model.solution import Language
from fib_tools.model.summary import Result, Summary
from fib_tools.phases.context import Context
from fib_tools.phases.drafting import (
    find_definition,
    find_elsewhere,
    find_runs,
    keep_solution,
    list_runs,
    make_bench,
    measure_target,
    open_judging,
    open_memory,
    shorten_name,
)

__all__ = [
    "DraftResult",
    "EvaluationResult",
    "KernelBriefResult",
    "get_evaluation",
    "get_kernel_brief",
    "submit_solution",
]

_LIMIT = 200_000
_CALL = re.compile(r"\w\(")
_FREE = Price(input=0, output=0, cache_write=0, cache_read=0)
_ANYBODY = "anybody"

_Definition = Annotated[str, Field(description="The Definition, by name.")]
_Language = Annotated[
    Literal["triton", "cuda", "python", "tilelang"], Field(description="What the Solution is written in.")
]
_Device = Annotated[
    Literal["cuda", "cpu"], Field(description="Where it runs; a CPU is good for learning, with the language python.")
]
_Workloads = Annotated[
    int | None, Field(ge=1, description="At most so many Workloads, the first ones; all if left out.")
]


class KernelBriefResult(Result):
    """Everything that a drafter must know."""

    is_text = True
    advice = ("next",)

    definition: str
    hardware: str
    contract: str
    """What an answer is, and what is forbidden."""
    brief: str
    """The kernel, the device, the sizes, and what there is to beat."""
    tried: str = ""
    """What was tried in this workspace, a line each."""
    failures: tuple[str, ...] = ()
    """What went wrong in searches for it."""
    next: str

    def summary(self) -> Summary:
        """Show it as it is."""
        tried = (f"Tried:\n{self.tried}",) if self.tried else ()
        return Summary(lines=(self.contract, self.brief, *tried, *self.failures, self.next))


class DraftResult(Result):
    """The verdict on one draft."""

    definition: str
    attempt: int
    """Its number."""
    technique: str
    status: Literal["right", "wrong", "not evaluated"]
    feedback: str
    """What came of it, with values, times and shares of the limit."""
    score: float | None = None
    """How many times as fast as the baseline, or as the reference where none runs; the geometric mean."""
    best_attempt: int | None = None
    best_score: float | None = None
    rivals: tuple[int, ...] = ()
    """Attempts whose times are not told apart from the best one's."""
    sizes: str = ""
    """On how many Workloads it was judged, if not on all."""
    solution: str = ""
    """Its name in the dataset: one that is right on all Workloads and the fastest so far is kept there, with its Traces."""
    author: str = ""
    """Whose that Solution is: the same source may have been there already."""
    files: tuple[str, ...] = ()
    """Of Traces, new or changed."""

    @property
    def has_errors(self) -> bool:
        """Tell whether it is not right."""
        return self.status != "right"

    def summary(self) -> Summary:
        """Show the feedback, and the best so far."""
        where = f" on {self.sizes}" if self.sizes else ""
        best = (
            f"best so far{where}: attempt {self.best_attempt}, {self.best_score:.3f} x"
            if self.best_score
            else f"none is right{where} yet"
        )
        if self.rivals:
            best += f", not told apart from {', '.join(map(str, self.rivals))}"
        kept = (f"kept as {self.solution} by {self.author}",) if self.solution else ()
        head = f"attempt {self.attempt}, {self.technique}: {self.status}{where}"
        return Summary(lines=(head, self.feedback, best, *kept))


class EvaluationResult(Result):
    """What was said of drafts."""

    is_text = True

    definition: str
    attempts: int
    tried: str = ""
    """A line for each of the newest."""
    best_attempt: int | None = None
    best_score: float | None = None
    attempt: int | None = None
    """The one that the rest is about."""
    feedback: str = ""
    source: str = ""
    elsewhere: str = ""
    """Drafts in other languages or on other devices, where there is none in this."""
    searches: tuple[str, ...] = ()
    """What runs of fib optimize have come to, a line each."""

    def summary(self) -> Summary:
        """Show what was asked for."""
        if self.attempt is None:
            found = (self.tried or self.elsewhere, *self.searches)
            return Summary(lines=tuple(filter(None, found)) or ("nothing was tried",))
        return Summary(lines=(self.feedback, self.source))


def get_kernel_brief(
    context: Context,
    definition: _Definition,
    *,
    language: _Language = "triton",
    device: _Device = "cuda",
    workloads: _Workloads = None,
) -> KernelBriefResult:
    """Brief whoever drafts a kernel: the contract, reference, sizes, limits, what there is to beat, what was tried.

    Nothing is measured: a baseline's times are those that the dataset has evidence on, from fib bench.
    """
    check_language(Language(language), device)
    bench = make_bench(context, definition, device=device).take_first(workloads)
    target = measure_target(bench, Language(language), only_known=True)
    path = _find_folder(context, definition, language, device)
    folder = RunFolder(path) if path.is_dir() else None
    attempts = folder.attempts if folder else []
    target = target.take_reference_times(folder.find_reference_times() if folder else {})
    measured = (
        ""
        if target.baseline_ms or device == "cpu"
        else f"fib bench {definition} --authors baseline measures what there is to beat. "
    )
    return KernelBriefResult(
        definition=definition,
        hardware=target.hardware,
        contract=write_contract(target),
        brief=write_brief(target, list_elsewhere(target, find_elsewhere(bench.dataset, target))),
        tried=write_history(attempts),
        failures=tuple(open_memory(context, target).recall(besides=path.name)),
        next=f"{measured}Send the whole source to fib draft; its feedback says what to change.",
    )


def submit_solution(
    context: Context,
    definition: _Definition,
    *,
    source: Annotated[
        str, Field(min_length=1, description="The whole source file as text, or the path of a file that holds it.")
    ],
    technique: Annotated[
        str, Field(min_length=1, max_length=60, description="What it does differently, in two to five words.")
    ],
    language: _Language = "triton",
    device: _Device = "cuda",
    workloads: _Workloads = None,
    gpus: Annotated[int, Field(ge=1, le=64, description="How many GPUs evaluate.")] = 1,
    time_limit: Annotated[
        float, Field(ge=1, le=3600, description="Seconds for its calls on one Workload; four times that for the first.")
    ] = 30,
    author: Annotated[
        str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,59}$", description="Who drafted it: a folder in the dataset.")
    ] = "agent",
) -> DraftResult:
    """Judge one drafted Solution: rules, outputs on all Workloads, times; each right one that is the fastest so far is kept.

    One that does the same as an earlier draft has its verdict, and is not evaluated again, unless on more Workloads.

    Exit status 0: it is right on the Workloads that were asked for; 1: it is not.
    """
    name_author(author)
    check_machine(Language(language), device, find_hardware(device)[1])
    text = _read_source(context, source)
    whole = make_bench(context, definition, device=device, gpus=gpus, time_limit=time_limit)
    bench = whole.take_first(workloads)
    folder = _open_folder(context, definition, language, device, lambda: measure_target(whole, Language(language)))
    with hold(folder.path / "lock", purpose=f"a draft of {definition}"):
        folder = RunFolder(folder.path)
        for waiting in folder.waiting:
            own = make_bench(context, definition, device=device, gpus=gpus, time_limit=waiting.time_limit or time_limit)
            open_judging(context, own.take_first(workloads), folder, own.tell).judge([waiting])
        draft = Draft(
            number=len(folder.drafts),
            ask=Ask(kind=AskKind.FIRST),
            author=author,
            technique=" ".join(technique.split()),
            source=text,
            time_limit=time_limit,
        )
        folder.keep_draft(draft)
        open_judging(context, bench, folder, bench.tell).judge([draft])
        attempt = folder.attempts[-1]
        leader = find_best(folder.attempts, whole.workloads)
        kept = (
            keep_solution(whole, attempt.solution, folder.find_evidence(attempt))
            if attempt.solution and leader and leader.number == attempt.number
            else None
        )
        best = find_best(folder.attempts, bench.workloads)
        right = [each for each in (made.narrow(bench.workloads) for made in folder.attempts) if each.passed]
        judged = next((each for each in folder.attempts if each.number == attempt.repeated), attempt)
    return DraftResult(
        definition=definition,
        attempt=attempt.number,
        technique=attempt.technique,
        status="right" if judged.passed else "wrong" if judged.results else "not evaluated",
        feedback=(f"{attempt.problem.capitalize()}.\n" if judged is not attempt else "") + write_feedback(judged),
        score=judged.score or None,
        best_attempt=best.number if best else None,
        best_score=best.score if best else None,
        rivals=tuple(
            each.number for each in right if best and each.number != best.number and not are_apart(best, each)
        ),
        sizes=judged.sizes if judged.untried else "",
        solution=kept.solution.name if kept else "",
        author=kept.solution.author if kept else "",
        files=kept.files if kept else (),
    )


def get_evaluation(
    context: Context,
    definition: _Definition,
    *,
    attempt: Annotated[
        int | None, Field(ge=0, description="A draft's number; all, in a line each, if left out.")
    ] = None,
    language: _Language = "triton",
    device: _Device = "cuda",
) -> EvaluationResult:
    """Show what was tried for a Definition, or one draft with its verdict and its source."""
    dataset = Dataset.open(context.dataset.root)
    op_type = find_definition(dataset, definition).op_type
    path = _find_folder(context, definition, language, device)
    folder = RunFolder(path) if path.is_dir() else None
    attempts = folder.attempts if folder else []
    tried = write_log(attempts, folder.waiting) if folder else ""
    best = find_best(attempts, [workload.uuid for workload in dataset.load_workloads(op_type, definition)])
    chosen: Attempt | None = None
    if attempt is not None:
        chosen = next((each for each in attempts if each.number == attempt), None)
        if chosen is None:
            there = (
                f"take one from 0 to {attempts[-1].number}"
                if attempts
                else tried or _find_others(context, definition, language, device)
            )
            raise RequestError(
                f"no verdict on a draft {attempt} of {definition}", where=str(path), todo=there or "nothing was tried"
            )
    return EvaluationResult(
        definition=definition,
        attempts=len(attempts),
        tried=tried if chosen is None else "",
        elsewhere="" if tried else _find_others(context, definition, language, device),
        searches=tuple(_list_searches(context, definition)) if chosen is None else (),
        best_attempt=best.number if best else None,
        best_score=best.score if best else None,
        attempt=attempt,
        feedback=write_feedback(chosen) if chosen else "",
        source=chosen.solution.sources[0].content if chosen and chosen.solution else "",
    )


def _find_others(context: Context, definition: str, language: str, device: str) -> str:
    """Say where there are drafts of a Definition, if not in this language on this device; empty if nowhere."""
    found = find_runs(context).glob(f"drafts-{shorten_name(definition)}-*/run.json")
    folders = [RunFolder(each.parent) for each in sorted(found)]
    others = [
        _count_attempts(each) for each in folders if each.attempts and each.plan.target.definition.name == definition
    ]
    return f"none for {language} on {find_hardware(device)[0]}; {', '.join(others)}" if others else ""


def _list_searches(context: Context, definition: str) -> Iterator[str]:
    """Say what runs of `fib optimize` have come to; each has a card in its folder."""
    runs = find_runs(context)
    for name in list_runs(runs, definition):
        try:
            folder = RunFolder(runs / name)
        except FibError as error:
            yield f"fib optimize, run {name}: it cannot be read: {error.what}"
            continue
        if folder.plan.target.definition.name != definition:  # shortened, two may be called alike
            continue
        best = find_best(folder.attempts)
        found = f"the best is attempt {best.number}, {best.technique}, {best.score:.3f} x" if best else "none is right"
        yield f"fib optimize, run {name}: {_count_attempts(folder)}; {found}; {folder.path}"


def _count_attempts(folder: RunFolder) -> str:
    target = folder.plan.target
    return f"{len(folder.attempts)} for {target.language.value} on {target.hardware}"


def _find_folder(context: Context, definition: str, language: str, device: str) -> Path:
    hardware, _ = find_hardware(device)
    where = re.sub(r"[^a-z0-9]+", "-", hardware.casefold()).strip("-") or device
    name = f"drafts-{shorten_name(check_component(definition))}-{language}-{where}"
    return confine(find_runs(context), name)


def _open_folder(
    context: Context, definition: str, language: str, device: str, make_target: Callable[[], Target]
) -> RunFolder:
    """Open the run of all drafts, or begin it, which measures what there is to beat."""
    path = _find_folder(context, definition, language, device)
    context.workspace.create()
    lock = path.with_name(f"{path.name}.lock")  # for each Definition: others begin meanwhile
    with hold(lock, purpose=f"measuring what drafts for {definition} have to beat"):
        if path.is_dir():
            return RunFolder(path)
        target = make_target()
        plan = SearchPlan(run=path.name, target=target, strategy="by hand", model=_ANYBODY, price=_FREE, max_tokens=0)
        return RunFolder.create(path, plan, write_brief(target))


def _is_path(context: Context, text: str) -> bool:
    """Tell a file's name from a source, which calls something even if it is only a line."""
    if "\n" in text or len(text) > _LIMIT:
        return False
    try:
        return not _CALL.search(text) or context.check_readable(Path(text)).exists()
    except (OSError, PathError):  # longer than a name can be, or nowhere that this caller may read
        return False


def _read_source(context: Context, text: str) -> str:
    """Take the source, or read the file that the text names.

    Raises:
        RequestError: it is empty, too long, or no text.
        PathError: the file is not one that this caller may name.
    """
    if _is_path(context, text):
        path = context.check_readable(Path(text))
        try:
            text = read_limited(path, _LIMIT).decode()
        except UnicodeDecodeError as error:
            raise RequestError("the source is not UTF-8", where=str(path), todo="send a text") from error
    if len(text) > _LIMIT:
        raise RequestError(f"the source has {len(text)} characters", where="source", todo="write a shorter one")
    if "\0" in text or not text.strip():
        what = "the source holds a NUL" if "\0" in text else "the source is empty"
        raise RequestError(what, where="source", todo="send the whole file")
    return text
