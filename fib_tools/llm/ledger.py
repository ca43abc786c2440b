"""What a run has spent, one entry for each answer that was paid for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from fib_tools.errors import FormatError
from fib_tools.host.files import read_limited, write_atomically
from fib_tools.llm.prices import Price, Usage
from fib_tools.model.base import Model, NonNegative, read_strict
from fib_tools.model.canonical import canonical_bytes, load_json

__all__ = ["Entry", "Ledger", "load_ledger", "save_ledger"]

_LIMIT = 16 << 20


class Entry(Model):
    """One answer of the model."""

    turn: NonNegative
    tokens: Usage
    usd: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    is_discarded: bool = False
    """The answer broke off and was asked for again; its output is an estimate."""


class Ledger(Model):
    """All answers of a run; a turn that a kill interrupted may stand in it twice, since it was paid for twice."""

    version: Literal[1] = 1
    price: Price
    entries: tuple[Entry, ...] = ()

    @property
    def usd(self) -> float:
        """What was spent so far."""
        return sum(entry.usd for entry in self.entries)

    @property
    def tokens(self) -> Usage:
        """All tokens so far."""
        return sum((entry.tokens for entry in self.entries), Usage())

    def charge(self, turn: int, tokens: Usage, *, is_discarded: bool = False) -> Ledger:
        """Return the ledger with one more answer."""
        entry = Entry(turn=turn, tokens=tokens, usd=self.price.cost(tokens), is_discarded=is_discarded)
        return self.model_copy(update={"entries": (*self.entries, entry)})

    def find_usage(self, turn: int) -> Usage | None:
        """Find what the kept answer of a turn used."""
        kept = [entry.tokens for entry in self.entries if entry.turn == turn and not entry.is_discarded]
        return kept[-1] if kept else None


def load_ledger(path: Path, price: Price, *, turns: int) -> Ledger:
    """Load what was spent, or begin with nothing; the price is the run's, whatever the file says.

    Raises:
        FormatError: the file is not a ledger, or it is not there although the model answered before.
    """
    if not path.exists():
        if turns:
            what = f"the ledger of {turns} turns is not there, so the budget cannot be kept"
            raise FormatError(what, where=str(path), todo="begin a new run; what this one made is kept")
        return Ledger(price=price)
    ledger = read_strict(Ledger, load_json(read_limited(path, _LIMIT), where=str(path)), where=str(path))
    return ledger.model_copy(update={"price": price})


def save_ledger(path: Path, ledger: Ledger) -> None:
    """Replace the file.

    Raises:
        StorageError: when the disk refuses.
    """
    write_atomically(path, canonical_bytes(ledger))
