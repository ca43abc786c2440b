"""The folder of a run: what was asked, the conversation, and what it cost."""

from __future__ import annotations

import math
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

from fib_tools.agent.prompt import choose_skill, format_system
from fib_tools.agent.request import AgentRequest, Status
from fib_tools.errors import FormatError, RequestError
from fib_tools.host.env import redact
from fib_tools.host.files import read_limited, storage_errors, write_atomically
from fib_tools.host.paths import check_component, confine
from fib_tools.llm.prices import DEFAULT_MODEL, Price, get_price, parse_price
from fib_tools.model.base import Model, read_strict
from fib_tools.model.canonical import canonical_bytes, content_hash, load_json

__all__ = ["Run", "begin_run", "find_run", "save_run"]

_FILE = "agent.json"
_LIMIT = 1 << 20
_LONGEST_TASK = 20_000
_MAX_USD = 2.0
_MAX_TURNS = 60
_MAX_TOKENS = 16_000


class Run(Model):
    """What a run is about; it does not change but for the caps and the status."""

    version: Literal[1] = 1
    run: str
    """Its name, and that of its folder."""
    task: str
    skill: str
    model: str
    price: Price
    max_usd: float
    max_turns: int
    max_tokens: int
    system: tuple[str, ...]
    """The system prompt, kept so that a resumed run follows the same words."""
    skill_bytes: int
    status: Status = Status.RUNNING

    def folder(self, jobs: Path) -> Path:
        """Its folder among the jobs."""
        return confine(jobs, check_component(self.run))


def begin_run(jobs: Path, request: AgentRequest) -> Run:
    """Make a new run and its folder.

    Raises:
        RequestError: the task, a cap, the skill or the price cannot be taken.
    """
    task = redact((request.task or "").strip())
    if not task or len(task) > _LONGEST_TASK:
        raise RequestError(
            "no task" if not task else "a very long task", where="task", todo='say what to do: "onboard kimi-k2"'
        )
    _check_caps(request)
    model = request.model or DEFAULT_MODEL
    price = parse_price(request.usd_per_mtok) if request.usd_per_mtok else get_price(model)
    skill, arguments = choose_skill(task, request.skill)
    max_usd, max_turns = request.max_usd or _MAX_USD, request.max_turns or _MAX_TURNS
    system = format_system(skill, arguments, max_turns=max_turns, max_usd=max_usd)
    run = Run(
        run=_name(task),
        task=task,
        skill=skill.name,
        model=model,
        price=price,
        max_usd=max_usd,
        max_turns=max_turns,
        max_tokens=request.max_tokens or _MAX_TOKENS,
        system=system,
        skill_bytes=len(system[-1].encode()),
    )
    folder = run.folder(jobs)
    with storage_errors(folder):
        folder.mkdir(parents=True)
    save_run(jobs, run)
    return run


def find_run(jobs: Path, request: AgentRequest) -> Run:
    """Find the run to go on with, under the caps that are given now.

    Raises:
        RequestError: there is none of this name, or it works with another model.
        FormatError: its file is damaged.
    """
    names = sorted(path.parent.name for path in jobs.glob(f"agent-*/{_FILE}"))
    name = names[-1] if request.resume == "latest" and names else check_component(request.resume or "")
    if name not in names:
        known = f"use one of {', '.join(names[-5:])}" if names else "begin one: fib agent TASK"
        raise RequestError(f"no run {name!r}", where=str(jobs), todo=known)
    _check_caps(request)
    run = _load_run(jobs, name)
    for given, kept, option in ((request.model, run.model, "--model"), (request.skill, run.skill, "--skill")):
        if given not in {None, kept}:
            raise RequestError(f"the run works with {kept!r}", where=option, todo="leave it out, or begin a new run")
    if request.usd_per_mtok and parse_price(request.usd_per_mtok) != run.price:
        raise RequestError("a resumed run keeps its price", where="--usd-per-mtok", todo="leave it out")
    if request.task not in {None, run.task}:
        raise RequestError("a resumed run has its task already", where="task", todo="leave the task out")
    caps = {"max_usd": request.max_usd, "max_turns": request.max_turns, "max_tokens": request.max_tokens}
    return run.model_copy(update={cap: value for cap, value in caps.items() if value is not None})


def _load_run(jobs: Path, name: str) -> Run:
    path = confine(jobs, check_component(name), _FILE)
    run = read_strict(Run, load_json(read_limited(path, _LIMIT), where=str(path)), where=str(path))
    if run.run != name:
        raise FormatError(f"the file of another run, {run.run[:80]!r}", where=str(path), todo="begin a new run")
    return run


def save_run(jobs: Path, run: Run) -> None:
    """Replace a run's file.

    Raises:
        StorageError: when the disk refuses.
    """
    write_atomically(run.folder(jobs) / _FILE, canonical_bytes(run))


def _name(task: str) -> str:
    """Name a run by its time, so that names sort, and by its task, so that two of one moment differ."""
    now = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S.%f")
    return f"agent-{now}-{content_hash(task)[:6]}"


def _check_caps(request: AgentRequest) -> None:
    caps = {"--max-usd": request.max_usd, "--max-turns": request.max_turns, "--max-tokens": request.max_tokens}
    for option, value in caps.items():
        if value is not None and not 0 < value < math.inf:
            raise RequestError(f"{value!r} is not more than nothing", where=option, todo="pass a positive number")
    if request.max_tokens is not None and request.max_tokens < 256:
        raise RequestError(
            f"{request.max_tokens} tokens hold no answer", where="--max-tokens", todo="pass at least 256"
        )
