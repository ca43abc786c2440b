"""The folder of a search: what was asked for, every draft as it was answered, every attempt, and what it cost.

<workspace>/optimize/<run>/run.json
                           brief.md           what every draft was given
                           drafts.jsonl       what the model answered; paid for, so kept before it is run
                           attempts.jsonl     what the evaluator said
                           evidence.jsonl     all it measured
                           ledger.json
                           card.md
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeVar

from fib_tools.draft.attempt import Attempt, Draft
from fib_tools.draft.target import Target
from fib_tools.errors import FormatError
from fib_tools.host.files import read_limited, storage_errors, write_atomically
from fib_tools.host.lines import append_line, read_lines
from fib_tools.llm.ledger import load_ledger, save_ledger
from fib_tools.llm.prices import Price, Usage
from fib_tools.model.base import Model, read_strict
from fib_tools.model.canonical import canonical_bytes, format_line, load_json
from fib_tools.model.evidence import Evidence

__all__ = ["RunFolder", "SearchPlan"]

_LIMIT = 512 << 20
_Document = TypeVar("_Document", bound=Model)


class SearchPlan(Model):
    """What a run is about; it does not change but for the caps."""

    version: Literal[1] = 1
    run: str
    target: Target
    strategy: str
    width: int = 4
    """Drafts of a generation, or islands."""
    seed: int = 0
    provider: str = "anthropic"
    is_batch: bool = False
    """Drafts come in batches, for half the price."""
    model: str
    price: Price
    max_tokens: int
    """Of one answer."""


class RunFolder:
    """One run on the disk, held by one process at a time by whoever opens it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._billing = threading.Lock()
        self.plan = self._read_plan()
        self.drafts = self._read("drafts.jsonl", Draft)
        self.attempts = self._read("attempts.jsonl", Attempt)
        paid = sum(draft.tokens.prompt > 0 for draft in self.drafts)
        self.ledger = load_ledger(path / "ledger.json", self.plan.price, turns=paid)

    @classmethod
    def create(cls, path: Path, plan: SearchPlan, brief: str) -> RunFolder:
        """Make the folder of a new run.

        Raises:
            StorageError: the disk refuses.
        """
        with storage_errors(path):
            path.mkdir(parents=True)
        write_atomically(path / "brief.md", brief.encode())
        write_atomically(path / "run.json", canonical_bytes(plan))
        return cls(path)

    @property
    def waiting(self) -> Sequence[Draft]:
        """Drafts that were paid for and not judged yet: a kill came in between."""
        judged = {attempt.number for attempt in self.attempts}
        return [draft for draft in self.drafts if draft.number not in judged]

    def charge(self, draft: Draft) -> None:
        """Write down what an answer cost, before anything follows from it."""
        self._charge(draft.number + 1, draft.tokens, is_discarded=False)

    def discard(self, tokens: Usage) -> None:
        """Write down what an answer cost that broke off; from any thread."""
        self._charge(len(self.drafts) + 1, tokens, is_discarded=True)

    def _charge(self, turn: int, tokens: Usage, *, is_discarded: bool) -> None:
        with self._billing:
            self.ledger = self.ledger.charge(turn, tokens, is_discarded=is_discarded)
            save_ledger(self.path / "ledger.json", self.ledger)

    def keep_draft(self, draft: Draft) -> None:
        """Keep an answer."""
        append_line(self.path / "drafts.jsonl", format_line(draft))
        self.drafts.append(draft)

    def keep_attempt(self, attempt: Attempt, evidence: Sequence[Evidence]) -> None:
        """Keep a verdict, and what it rests on."""
        for each in evidence:
            append_line(self.path / "evidence.jsonl", format_line(each))
        append_line(self.path / "attempts.jsonl", format_line(attempt))
        self.attempts.append(attempt)

    def find_evidence(self, attempt: Attempt) -> list[Evidence]:
        """Find what a verdict rests on."""
        keys = {result.evidence for result in attempt.results}
        found = {each.key: each for each in self._read("evidence.jsonl", Evidence) if each.key in keys}
        return list(found.values())

    def find_reference_times(self) -> dict[str, float]:
        """Find what the reference took when attempts were judged, by workload; the newest times."""
        known = self._read("evidence.jsonl", Evidence)
        return {each.subject.workload: each.reference_ms for each in known if each.reference_ms}

    def write_card(self, text: str) -> Path:
        """Write the card of the result."""
        path = self.path / "card.md"
        write_atomically(path, text.encode())
        return path

    def _read_plan(self) -> SearchPlan:
        path = self.path / "run.json"
        try:
            return read_strict(SearchPlan, load_json(read_limited(path, _LIMIT), where=str(path)), where=str(path))
        except FormatError as error:
            raise FormatError(
                error.what, where=error.where, todo="begin a new run; this one's drafts are kept"
            ) from error

    def _read(self, name: str, kind: type[_Document]) -> list[_Document]:
        path = self.path / name
        lines = read_lines(path, limit=_LIMIT)
        return [read_strict(kind, load_json(line, where=str(path)), where=str(path)) for line in lines]
