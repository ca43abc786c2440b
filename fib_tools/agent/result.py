"""What came of a run."""

from __future__ import annotations

from typing import ClassVar

from fib_tools.agent.request import Status
from fib_tools.llm.prices import Usage
from fib_tools.model.base import NonNegative
from fib_tools.model.summary import Result, Summary, Table

__all__ = ["AgentResult"]


class AgentResult(Result):
    """What came of a run."""

    run: str
    """Its name, for `--resume`."""
    status: Status
    text: str
    """The model's last words."""
    model: str
    turns: NonNegative
    tool_calls: NonNegative
    tool_bytes: NonNegative
    """What the tools answered, in bytes."""
    skill_bytes: NonNegative
    """The text of skills that entered the conversation, in bytes."""
    tokens: Usage
    usd: float
    max_usd: float
    max_turns: int
    folder: str
    """Transcript and ledger."""

    _MEANINGS: ClassVar[dict[Status, str]] = {
        Status.BUDGET: "stopped: what is left of the budget does not pay for another turn; give it more with --max-usd",
        Status.TURNS: "stopped: no turn is left; give it more with --max-turns",
        Status.REFUSED: "the model refused to go on; change the task and begin a new run",
        Status.CONTEXT: "the conversation no longer fits the model; begin a new run, what this one made is kept",
        Status.INTERRUPTED: "interrupted",
    }

    @property
    def has_errors(self) -> bool:
        """Tell whether the task was left unfinished."""
        return self.status is not Status.DONE

    @property
    def can_go_on(self) -> bool:
        """Tell whether `--resume` has something to do."""
        return self.status in {Status.BUDGET, Status.TURNS, Status.INTERRUPTED}

    def summary(self) -> Summary:
        """Say what the model reported, what it cost, and how to go on."""
        lines = [self.text] if self.text else []
        if self.status in self._MEANINGS:
            lines.append(self._MEANINGS[self.status])
        if self.can_go_on:
            lines.append(f"go on with: fib agent --resume {self.run}")
        return Summary(tables=(self._ledger(),), lines=(*lines, f"{self.status.value}: {self.folder}"))

    def _ledger(self) -> Table:
        rows = (
            ("turns", f"{self.turns} of {self.max_turns}"),
            ("cost", f"{self.usd:.4f} of {self.max_usd:.2f} USD ({self.model})"),
            (
                "tokens in",
                f"{self.tokens.input} new, {self.tokens.cache_write} into the cache, {self.tokens.cache_read} from it",
            ),
            ("tokens out", str(self.tokens.output)),
            ("tool calls", f"{self.tool_calls}, {self.tool_bytes} bytes of answers"),
            ("skills", f"{self.skill_bytes} bytes"),
        )
        return Table(title=self.run, columns=("what", "how much"), rows=rows)
