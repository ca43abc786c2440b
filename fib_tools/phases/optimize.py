"""Optimising: a model drafts Solutions of one Definition, the evaluator judges them, and the best is kept with its Traces."""

from __future__ import annotations

import secrets
import shlex
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Annotated

from pydantic import Field

from fib_tools.draft.attempt import Attempt, find_best
from fib_tools.draft.bench import Bench
from fib_tools.draft.brief import write_brief, write_contract
from fib_tools.draft.card import write_card
from fib_tools.draft.machine import check_machine
from fib_tools.draft.providers import open_drafter
from fib_tools.draft.run_folder import RunFolder, SearchPlan
from fib_tools.draft.search import Ending, Limits, Search
from fib_tools.draft.solution import name_author
from fib_tools.draft.strategies import Beam, Evolve, Refine, Strategy
from fib_tools.draft.target import Target
from fib_tools.errors import RequestError
from fib_tools.host.files import write_atomically
from fib_tools.host.hardware import find_hardware
from fib_tools.host.locks import hold
from fib_tools.host.paths import check_component, confine
from fib_tools.model.evidence import Evidence
from fib_tools.model.solution import Language
from fib_tools.model.trace import EvaluationStatus
from fib_tools.phases.context import Context
from fib_tools.phases.drafting import (
    Kept,
    find_runs,
    keep_solution,
    list_runs,
    make_bench,
    measure_target,
    open_judging,
    shorten_name,
)
from fib_tools.phases.optimize_result import OptimizeResult, OptimizeRow
from fib_tools.phases.search_options import SEARCH_DEFAULTS, SearchOptions

__all__ = ["optimize_kernel"]

_MAX_TOKENS = 16_000
_LATEST = "latest"


def optimize_kernel(
    context: Context,
    definition: Annotated[str, Field(description="The Definition, by name.")],
    options: SearchOptions = SEARCH_DEFAULTS,
    *,
    max_usd: Annotated[float, Field(gt=0, le=1000, description="What the run may cost in all, in USD.")] = 1.0,
    max_evals: Annotated[int, Field(ge=1, le=10_000, description="How many drafts it may have in all.")] = 40,
    resume: Annotated[str | None, Field(description='Go on with a run, by its name, or "latest".')] = None,
    dry_run: Annotated[bool, Field(description="Write the brief, and ask nobody.")] = False,
) -> OptimizeResult:
    """Search for a faster Solution: a model drafts, the evaluator judges; needs ANTHROPIC_API_KEY, or OPENAI_API_KEY.

    Every draft, verdict and token is kept in the run's folder; a killed run goes on with --resume. The model is asked over
    the network with --offline too, which speaks of sources of facts.

    Exit status 0: a right Solution was found; 1: none was.
    """
    runs = find_runs(context)
    folder = _find_run(runs, definition, resume) if resume is not None else None
    device = options.device if folder is None else "cpu" if folder.plan.target.is_cpu else "cuda"
    whole = make_bench(context, definition, device=device, gpus=options.gpus, time_limit=options.time_limit)
    bench = whole.take_first(options.workloads)
    if dry_run:
        return _show_brief(context, measure_target(bench, Language(options.language), only_known=True))
    place = _spell_place(context, options)
    with ExitStack() as held:
        if folder is not None:
            _check_hardware(folder.plan, device)
            bench = whole.narrow({shape.workload for shape in folder.plan.target.shapes})
            plan = folder.plan
            drafter = held.enter_context(
                open_drafter(plan.provider, is_batch=plan.is_batch, tell=bench.tell, place=place)
            )
        else:
            price = options.find_price()
            name_author(options.choose_model())
            check_machine(Language(options.language), options.device, find_hardware(options.device)[1])
            # who has no key is told before anything is measured
            drafter = held.enter_context(
                open_drafter(options.provider, is_batch=options.batch, tell=bench.tell, place=place)
            )
            target = measure_target(bench, Language(options.language))
            plan = SearchPlan(
                run=f"{datetime.now().astimezone():%Y%m%d-%H%M%S}-{shorten_name(definition)}-{secrets.token_hex(2)}",
                target=target,
                strategy=options.strategy,
                width=options.width,
                seed=options.seed,
                provider=options.provider,
                is_batch=options.batch,
                model=options.choose_model(),
                price=price,
                max_tokens=_MAX_TOKENS,
            )
            folder = RunFolder.create(confine(runs, check_component(plan.run)), plan, write_brief(target))
        held.enter_context(hold(folder.path / "lock", purpose=f"the search {folder.plan.run}"))
        folder = RunFolder(folder.path)
        judging = open_judging(
            context, bench, folder, lambda text: context.progress(text, len(folder.attempts), max_evals)
        )
        search = Search(_make_strategy(folder.plan), drafter=drafter, judging=judging)
        ending = search.run(Limits(evaluations=max_evals, usd=max_usd))
        evaluations = max_evals * 2 if ending is Ending.EVALUATIONS else max_evals
        usd = max_usd * 2 if ending is Ending.BUDGET else max_usd
        go_on = (
            f"fib optimize {definition} --resume {folder.plan.run}{place} --max-evals {evaluations} --max-usd {usd:g}"
        )
        return _conclude(whole, folder, ending).model_copy(update={"go_on": go_on})


def _spell_place(context: Context, options: SearchOptions) -> str:
    """Write the options that a run's folder does not hold: where it lies, and how it evaluates if not by default."""
    found = f" --workspace {shlex.quote(str(context.workspace.root))}"
    if context.dataset_override is not None:
        found += f" --dataset {shlex.quote(str(context.dataset_override))}"
    chosen = {
        "--gpus": (options.gpus, SEARCH_DEFAULTS.gpus),
        "--time-limit": (options.time_limit, SEARCH_DEFAULTS.time_limit),
    }
    return found + "".join(f" {name} {value:g}" for name, (value, default) in chosen.items() if value != default)


def _show_brief(context: Context, target: Target) -> OptimizeResult:
    """Write the brief to a file, for whoever wants to draft by hand."""
    context.workspace.create()
    brief = f"{write_contract(target)}\n{write_brief(target)}"
    path = confine(context.workspace.root, f"brief-{check_component(target.definition.name)}.md")
    write_atomically(path, brief.encode())
    return OptimizeResult(
        definition=target.definition.name,
        hardware=target.hardware,
        baseline=target.baseline,
        brief_bytes=len(brief.encode()),
        brief=brief,
        brief_path=str(path),
    )


def _make_strategy(plan: SearchPlan) -> Strategy:
    match plan.strategy:
        case "beam":
            return Beam(width=plan.width)
        case "evolve":
            return Evolve(seed=plan.seed, islands=plan.width)
    return Refine()


def _find_run(runs: Path, definition: str, name: str) -> RunFolder:
    """Find a run to go on with.

    Raises:
        RequestError: there is none of this name, or it is about another Definition.
    """
    if name == _LATEST:
        found = list_runs(runs, definition)
        if not found:
            raise RequestError(
                f"no run about {definition} can go on", where=str(runs), todo="begin one without --resume"
            )
        folder = RunFolder(runs / found[-1])
    else:
        path = confine(runs, check_component(name))
        if not (path / "run.json").is_file():
            raise RequestError(f"no run {name!r}", where=str(runs), todo='check the name, or pass "latest"')
        folder = RunFolder(path)
    about = folder.plan.target.definition.name
    if about != definition:
        raise RequestError(f"the run {folder.plan.run} is about {about}", where="--resume", todo="name that Definition")
    return folder


def _check_hardware(plan: SearchPlan, device: str) -> None:
    hardware, _ = find_hardware(device)
    if hardware != plan.target.hardware:
        todo = "go on with it there, or begin a run here: figures of two devices do not compare"
        raise RequestError(f"the run {plan.run} is on {plan.target.hardware}, this is {hardware}", todo=todo)


def _keep(whole: Bench, folder: RunFolder, best: Attempt) -> Kept | None:
    """Keep a Solution that is right on all Workloads; of a search on some of them, it is judged on all now."""
    if best.solution is None:
        return None
    evidence: Sequence[Evidence] = folder.find_evidence(best)
    if {each.subject.workload for each in evidence} != whole.workloads:
        whole.tell(f"evaluating {best.solution.name} on all {len(whole.workloads)} Workloads")
        evidence = whole.evaluate([best.solution]).get(best.solution.hash, ())
    passed = {each.subject.workload for each in evidence if each.status is EvaluationStatus.PASSED}
    return keep_solution(whole, best.solution, evidence) if passed == whole.workloads else None


def _conclude(whole: Bench, folder: RunFolder, ending: Ending) -> OptimizeResult:
    """Keep the best Solution and its Traces in the dataset, and write the card."""
    plan, best = folder.plan, find_best(folder.attempts)
    kept = _keep(whole, folder, best) if best else None
    card = write_card(plan, folder.attempts, ending=ending.value, usd=folder.ledger.usd)
    tokens = folder.ledger.tokens
    return OptimizeResult(
        run=plan.run,
        ending=ending.value,
        definition=plan.target.definition.name,
        hardware=plan.target.hardware,
        baseline=plan.target.baseline,
        best=kept.solution.name if kept else "",
        author=kept.solution.author if kept else "",
        technique=best.technique if best else "",
        score=best.score if best else None,
        is_apart=best is None or best.is_apart,
        attempts=tuple(_to_row(attempt) for attempt in folder.attempts),
        tokens_in=tokens.prompt,
        tokens_out=tokens.output,
        usd=folder.ledger.usd,
        brief_bytes=len(write_brief(plan.target).encode()),
        card=str(folder.write_card(card)),
        folder=str(folder.path),
        files=kept.files if kept else (),
    )


def _to_row(attempt: Attempt) -> OptimizeRow:
    wrong = attempt.first_wrong
    status = "PASSED" if attempt.passed else wrong.status.value if wrong else "NOT EVALUATED"
    return OptimizeRow(
        attempt=attempt.number,
        kind=attempt.ask.kind.value,
        parents=attempt.ask.parents,
        technique=attempt.technique,
        status=status,
        rule=wrong.rule if wrong else "",
        score=attempt.score or None,
        detail=wrong.detail if wrong else attempt.problem,
    )
