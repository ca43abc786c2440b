"""Workloads from an engine that this command starts: SGLang serves the model, and its calls are taken in as they come."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from fib_tools.capture.collection.collector import Collector
from fib_tools.capture.collection.following import Follower
from fib_tools.capture.engine import RunOutcome, make_runs
from fib_tools.capture.runs import Batch, EngineRun, NotCovered
from fib_tools.capture.traffic import Encode, make_batches, make_prompts, read_prompts
from fib_tools.host.files import storage_errors
from fib_tools.host.locks import hold
from fib_tools.phases.context import Context
from fib_tools.phases.request import ModelOptions
from fib_tools.phases.serving import (
    check_machine,
    check_runs,
    check_weights,
    describe_run,
    hold_gpus,
    list_not_covered,
    make_options,
    make_subject,
)
from fib_tools.phases.serving_options import ServingOptions
from fib_tools.phases.survey import survey_model
from fib_tools.phases.trace_plan import plan_runs
from fib_tools.phases.trace_result import RunLine
from fib_tools.phases.weights import load_tokenizer

__all__ = ["Served", "preview_runs", "serve_model"]

_PURPOSE = "serving a model (fib collect MODEL without --from-dir)"
_SPARE_TOKENS = 1024
_LEAST_CONTEXT = 4096
_LIMITLESS = str(10**9)
"""FlashInfer counts all that it ever wrote, also what was removed."""
_LEFT_OUT = (
    "FLASHINFER_TRACE_DUMP",
    "SGLANG_KERNEL_API_LOGLEVEL",
    "SGLANG_CHUNKED_PREFIX_CACHE_THRESHOLD",
    "SGLANG_MAX_KV_CHUNK_CAPACITY",
)
"""Of a trace-dump's environment: they lead to every kernel once, whatever is usual."""


@dataclass(kw_only=True)
class Served:
    """What became of the runs."""

    folder: Path
    runs: tuple[RunLine, ...]
    not_covered: tuple[NotCovered, ...]
    requests: str = ""
    """What each run is asked."""
    most_bytes: int = 0
    """Of calls that lay on the disk at one time, of all runs."""
    seconds: float = 0.0
    """Spent on reading calls."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Plan:
    model: str
    folder: Path
    runs: tuple[EngineRun, ...]
    not_covered: tuple[NotCovered, ...]


@dataclass(kw_only=True)
class _Followers:
    """Take in the calls of all runs."""

    followers: Sequence[Follower]
    report: Callable[[], None]
    seconds: float = 0.0

    def step(self) -> None:
        with self._timed():
            if sum(follower.step() for follower in self.followers):
                self.report()

    def finish(self) -> None:
        with self._timed():
            for follower in self.followers:
                follower.finish()

    @contextmanager
    def _timed(self) -> Iterator[None]:
        begun = time.monotonic()
        yield
        self.seconds += time.monotonic() - begun


def preview_runs(context: Context, model: str, options: ModelOptions, serving: ServingOptions) -> Served:
    """Plan the runs and make none."""
    return _report(_plan(context, model, options, serving), (), otherwise="would run")


def serve_model(
    context: Context, model: str, options: ModelOptions, serving: ServingOptions, collector: Collector
) -> Served:
    """Serve a model for every set of per-rank shapes, and give the calls to the collector as they come.

    An interrupt ends the engines; what they did until then was read.

    Raises:
        MissingDependencyError: SGLang is not installed, or no GPU is visible.
        LockedError: the GPUs stay taken.
    """
    check_machine(purpose=_PURPOSE, without="calls that were dumped there are read anywhere with --from-dir DIR")
    plan = _plan(context, model, options, serving)
    with storage_errors(plan.folder):
        plan.folder.mkdir(parents=True, exist_ok=True)
    outcomes: tuple[RunOutcome, ...] = ()
    with hold(plan.folder / ".lock", purpose=f"collecting from {plan.model}"):
        calls = [_clear(_calls_of(plan.folder, run)) for run in plan.runs]
        following = _Followers(
            followers=[Follower(path, collector) for path in calls],
            report=lambda: context.progress("reading calls", collector.calls, 0),
        )
        served = f"{plan.model} with {serving.weights or 'made-up weights'}"
        with hold_gpus(context, plan.runs, command=f"fib collect {plan.model}", subject=served) as lease:
            engine = make_options(context, plan.runs, lease, timeout=serving.timeout, rerun=True, tick=following.step)
            try:
                outcomes = make_runs(plan.runs, plan.folder, engine)
            except KeyboardInterrupt:
                context.progress("interrupted: what was read becomes Workloads", 0, 0)
        following.finish()
        for path in calls:
            shutil.rmtree(path, ignore_errors=True)
    served_runs = _report(plan, outcomes, otherwise="interrupted")
    served_runs.most_bytes = sum(follower.most_bytes for follower in following.followers)
    served_runs.seconds = following.seconds
    return served_runs


def _plan(context: Context, model: str, options: ModelOptions, serving: ServingOptions) -> _Plan:
    weights = check_weights(context, serving.weights)
    batches = _make_batches(context, serving, weights)
    survey = survey_model(context, model, options)
    plan = plan_runs(make_subject(survey), gpus=serving.gpus, weights=weights)
    check_runs(model, plan.runs, plan.not_covered)
    folder = context.workspace.root.resolve() / "collected" / plan.model
    runs = tuple(_adapt(run, batches, survey.config.config, calls=_calls_of(folder, run)) for run in plan.runs)
    return _Plan(model=plan.model, folder=folder, runs=runs, not_covered=plan.not_covered)


def _make_batches(context: Context, serving: ServingOptions, weights: str | None) -> tuple[Batch, ...]:
    number = sum(serving.batch_sizes)
    if serving.prompts is None:
        prompts = make_prompts(number, isl=serving.isl, osl=serving.osl, range_ratio=serving.random_range_ratio, seed=0)
    else:
        path = context.check_readable(serving.prompts)
        encode = None if weights is None else _find_encoder(weights)
        prompts = read_prompts(path, number, encode=encode, isl=serving.isl, osl=serving.osl)
    return make_batches(prompts, serving.batch_sizes)


def _find_encoder(weights: str) -> Encode:
    @cache
    def load() -> Any:  # only where there is text
        return load_tokenizer(weights, todo="pass a file of prompts with input_ids")

    return lambda text: list(load()(text)["input_ids"])


def _adapt(run: EngineRun, batches: tuple[Batch, ...], config: dict[str, object], *, calls: Path) -> EngineRun:
    """Have a run answer these requests and write its calls down; real weights are served as they are."""
    held = max(sum(each.length + (each.max_new_tokens or 0) for each in batch.sequences) for batch in batches)
    longest = max(each.length + (each.max_new_tokens or 0) for batch in batches for each in batch.sequences)
    arguments = {
        **run.arguments,
        "max_total_tokens": held + _SPARE_TOKENS,
        "context_length": max(_LEAST_CONTEXT, longest + 16),
    }
    environment = {
        **{name: value for name, value in run.environment.items() if name not in _LEFT_OUT},
        "FLASHINFER_LOGLEVEL": "10",
        "FLASHINFER_LOGDEST": "/dev/null",
        "FLASHINFER_DUMP_DIR": str(calls),
        "FLASHINFER_DUMP_SAFETENSORS": "1",
        "FLASHINFER_DUMP_MAX_COUNT": _LIMITLESS,
        "FLASHINFER_DUMP_MAX_SIZE_GB": _LIMITLESS,
        "FIB_DUMP_LIGHT": "1",
    }
    changes = {"batches": batches, "arguments": arguments, "environment": environment, "watched": ()}
    if run.weights is not None:
        changes |= {"overrides": {}, "config": dict(config)}
    return run.model_copy(update=changes)


def _calls_of(folder: Path, run: EngineRun) -> Path:
    return folder / f"{run.name}-calls"


def _clear(folder: Path) -> Path:
    """Remove what a run that was killed has left."""
    with storage_errors(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    return folder


def _report(plan: _Plan, outcomes: Sequence[RunOutcome], *, otherwise: str) -> Served:
    by_name = {outcome.name: outcome for outcome in outcomes}
    return Served(
        folder=plan.folder,
        runs=tuple(describe_run(run, by_name.get(run.name), otherwise=otherwise) for run in plan.runs),
        not_covered=tuple(dict.fromkeys((*plan.not_covered, *list_not_covered(plan.runs)))),
        requests=_describe(plan.runs[0].batches),
    )


def _describe(batches: Sequence[Batch]) -> str:
    prompts = [each for batch in batches for each in batch.sequences]
    lengths, answers = ({each.length for each in prompts}, {each.max_new_tokens or 0 for each in prompts})
    return (
        f"each run is sent {len(prompts)} prompts of {min(lengths)} to {max(lengths)} tokens, with {min(answers)} to "
        f"{max(answers)} answers: {', '.join(batch.name for batch in batches)}"
    )
