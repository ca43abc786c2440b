"""The loop: what happens next follows from the transcript alone, so that a kill at any point loses one step at most."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fib_tools.agent.calls import READ_SKILL, Toolbox, answer_calls, list_tools
from fib_tools.agent.request import AgentRequest, Status
from fib_tools.agent.result import AgentResult
from fib_tools.agent.runs import Run, begin_run, find_run, save_run
from fib_tools.errors import SourceError
from fib_tools.host.locks import hold
from fib_tools.llm.blocks import format_messages, format_system_blocks, format_tools
from fib_tools.llm.budget import BudgetSpentError, cap_output
from fib_tools.llm.ledger import load_ledger, save_ledger
from fib_tools.llm.prices import Usage
from fib_tools.llm.service import Service, open_client
from fib_tools.llm.transcript import Message, Transcript, text_block
from fib_tools.phases.context import Progress, be_silent

__all__ = ["run_agent"]

_FEW_TURNS = 3
_CUT_OFF = "Your answer was cut off at its limit of tokens. Go on from there, in fewer words and smaller calls."
_ENDS = {
    "end_turn": Status.DONE,
    "stop_sequence": Status.DONE,
    "refusal": Status.REFUSED,
    "model_context_window_exceeded": Status.CONTEXT,
}


def run_agent(
    toolbox: Toolbox,
    request: AgentRequest,
    *,
    jobs: Path,
    progress: Progress = be_silent,
    sleep: Callable[[float], None] = time.sleep,
) -> AgentResult:
    """Let a model work on a task with the tools until it is done or a cap is reached; `jobs` is the workspace's folder.

    Raises:
        RequestError: no key, no such run, skill or price, or the service refuses the request.
        LockedError: another process works on the run.
        SourceError: the service stayed busy or unreachable; the run can be resumed.
        FormatError: the run's files are damaged.
    """
    with open_client("the headless agent") as client:
        run = find_run(jobs, request) if request.resume else begin_run(jobs, request)
        folder = run.folder(jobs)
        with hold(folder / "lock", purpose=f"agent run {run.run}"):
            if run.status in _ENDS.values():
                progress(f"{run.run} has ended already", 0, 0)
            save_run(jobs, run.model_copy(update={"status": Status.RUNNING}))
            session = _Session(toolbox, run, folder, progress=progress)
            session.connect(client, sleep)
            status = session.finish()
            save_run(jobs, run.model_copy(update={"status": status}))
            return session.result(status)


class _Session:
    """One process's work on one run."""

    def __init__(self, toolbox: Toolbox, run: Run, folder: Path, *, progress: Progress) -> None:
        self._toolbox = toolbox
        self._run = run
        self._folder = folder
        self._progress = progress
        self._transcript = Transcript(folder / "transcript.jsonl")
        self._ledger = load_ledger(folder / "ledger.json", run.price, turns=self._transcript.turns)
        self._tools = format_tools(list_tools(toolbox))

    def connect(self, client: Any, sleep: Callable[[float], None]) -> None:
        hint = f"try again later with: fib agent --resume {self._run.run}"
        self._service = Service(client=client, sleep=sleep, tell=self._tell, discard=self._discard, resume_hint=hint)

    def finish(self) -> Status:
        """Take steps until none is left."""
        try:
            while (status := self._step()) is None:
                pass
        except BudgetSpentError:
            return Status.BUDGET
        except KeyboardInterrupt:
            return Status.INTERRUPTED
        return status

    def _step(self) -> Status | None:
        """Take the one step that the newest message asks for; a status says that there is none."""
        last = self._transcript.last
        if last is None:
            self._transcript.append(Message(role="user", content=(text_block(self._run.task),)))
        elif last.role == "user" or last.stop_reason == "pause_turn":
            return self._ask()
        elif last.tool_calls and last.stop_reason not in {"refusal", "model_context_window_exceeded"}:
            self._call_tools(last)
        elif last.stop_reason == "max_tokens":
            self._transcript.append(Message(role="user", content=(text_block(_CUT_OFF),)))
        else:
            return self._end(last)
        return None

    def _end(self, last: Message) -> Status:
        status = _ENDS.get(last.stop_reason or "")
        if status is None:
            raise SourceError(
                f"the model stopped for a reason unknown here: {last.stop_reason!r}",
                where=str(self._transcript.path),
                todo="begin a new run; what this one made is kept",
            )
        return status

    def _ask(self) -> Status | None:
        if self._transcript.turns >= self._run.max_turns:
            return Status.TURNS
        self._tell("asking the model")
        reply = self._service.ask(self._make_body)
        self._charge(reply.usage, is_discarded=False)
        self._transcript.append(reply.message)
        return None

    def _call_tools(self, message: Message) -> None:
        names = ", ".join(call["name"] for call in message.tool_calls)
        self._tell(f"calling {names}")
        results = answer_calls(self._toolbox, message, progress=self._progress)
        left = self._run.max_turns - self._transcript.turns
        reminder = (text_block(f"Turns left: {left}. Finish what is open and report."),) if left <= _FEW_TURNS else ()
        self._transcript.append(Message(role="user", content=(*results, *reminder)))

    def _make_body(self) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._run.model,
            "max_tokens": self._run.max_tokens,
            "system": format_system_blocks(self._run.system),
            "tools": self._tools,
            "messages": format_messages(self._transcript.messages),
        }
        allowed = cap_output(body, transcript=self._transcript, ledger=self._ledger, max_usd=self._run.max_usd)
        return {**body, "max_tokens": allowed}

    def _discard(self, usage: Usage) -> None:
        self._charge(usage, is_discarded=True)

    def _charge(self, usage: Usage, *, is_discarded: bool) -> None:
        """Write down what was paid before anything else: a kill after this line loses the answer, not the bill."""
        self._ledger = self._ledger.charge(self._transcript.turns + 1, usage, is_discarded=is_discarded)
        save_ledger(self._folder / "ledger.json", self._ledger)

    def _tell(self, text: str) -> None:
        self._progress(f"turn {self._transcript.turns + 1}: {text}", self._transcript.turns, self._run.max_turns)

    def result(self, status: Status) -> AgentResult:
        """Sum up the run from its files."""
        messages = self._transcript.messages
        calls = {call["id"]: call["name"] for message in messages for call in message.tool_calls}
        answers = [block for message in messages for block in message.content if block["type"] == "tool_result"]
        sizes = [(calls.get(block["tool_use_id"]), len(block["content"].encode())) for block in answers]
        skills = sum(size for name, size in sizes if name == READ_SKILL)
        words = [message.text for message in messages if message.role == "assistant" and message.text]
        return AgentResult(
            run=self._run.run,
            status=status,
            text=words[-1] if words else "",
            model=self._run.model,
            turns=self._transcript.turns,
            tool_calls=len(answers),
            tool_bytes=sum(size for _, size in sizes) - skills,
            skill_bytes=self._run.skill_bytes + skills,
            tokens=self._ledger.tokens,
            usd=self._ledger.usd,
            max_usd=self._run.max_usd,
            max_turns=self._run.max_turns,
            folder=str(self._folder),
        )
