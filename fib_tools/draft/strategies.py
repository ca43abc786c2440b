"""Which attempt to go on from: a strategy sees what was tried, and wishes for drafts.

A strategy has no state: what it wishes follows from the attempts and the seed, so that a killed search goes on as it would
have.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from fib_tools.draft.attempt import Ask, AskKind, Attempt, find_best

__all__ = ["Beam", "Evolve", "Refine", "Strategy"]


class Strategy(Protocol):
    """A way to search."""

    def propose(self, attempts: Sequence[Attempt]) -> tuple[Ask, ...]:
        """Wish for the next drafts, which are asked for and evaluated together."""


def _go_on(attempt: Attempt, island: int = 0) -> Ask:
    """Improve what is right, repair what is not; what has no code begins anew."""
    if attempt.solution is None:
        return Ask(kind=AskKind.FIRST, island=island)
    kind = AskKind.IMPROVE if attempt.passed else AskKind.REPAIR
    return Ask(kind=kind, parents=(attempt.number,), island=island)


@dataclass(frozen=True, slots=True)
class Refine:
    """One after the other: repair what fails, a few times, then go back to the best and improve it."""

    repairs: int = 3

    def propose(self, attempts: Sequence[Attempt]) -> tuple[Ask, ...]:
        """Wish for one draft."""
        if not attempts:
            return (Ask(kind=AskKind.FIRST),)
        if not attempts[-1].passed and self._count_failures(attempts) <= self.repairs:
            return (_go_on(attempts[-1]),)
        best = find_best(attempts)
        return (Ask(kind=AskKind.FIRST) if best is None else _go_on(best),)

    def _count_failures(self, attempts: Sequence[Attempt]) -> int:
        """Count the failures at the end that repair one another, the one that began it included."""
        count = 0
        for attempt in reversed(attempts):
            if attempt.passed:
                break
            count += 1
            if attempt.ask.kind is not AskKind.REPAIR:
                break
        return count


@dataclass(frozen=True, slots=True)
class Beam:
    """Several from nothing, then two from each of the best."""

    width: int = 4

    def propose(self, attempts: Sequence[Attempt]) -> tuple[Ask, ...]:
        """Wish for a generation."""
        coded = [attempt for attempt in attempts if attempt.solution is not None]
        if not coded:
            return (Ask(kind=AskKind.FIRST),) * self.width
        ranked = sorted(coded, key=lambda attempt: (attempt.score, attempt.number), reverse=True)
        kept = ranked[: max(1, self.width // 2)]
        return tuple(_go_on(kept[number % len(kept)]) for number in range(self.width))


@dataclass(frozen=True, slots=True)
class Evolve:
    """Islands, each with an archive of the best attempt of each technique; now and then two are crossed, or one moves.

    Source: MAP-Elites (Mouret and Clune, 2015, arXiv:1504.04909), with the technique as the one behaviour.
    """

    seed: int = 0
    islands: int = 4
    migrate_every: int = 4
    """Generations after which islands look at the whole archive."""

    def propose(self, attempts: Sequence[Attempt]) -> tuple[Ask, ...]:
        """Wish for one draft on each island."""
        generation = len(attempts) // self.islands
        lots = random.Random(f"{self.seed}:{len(attempts)}")  # noqa: S311  # no secret: a search that can be repeated
        return tuple(self._propose_on(island, attempts, generation, lots) for island in range(self.islands))

    def _propose_on(self, island: int, attempts: Sequence[Attempt], generation: int, lots: random.Random) -> Ask:
        is_migration = generation and generation % self.migrate_every == 0
        mine = [attempt for attempt in attempts if attempt.ask.island == island]
        archive = _list_elites(attempts if is_migration else mine)
        if len(archive) > 1 and lots.random() < 1 / 3:
            first, second = lots.sample(archive, 2)
            return Ask(kind=AskKind.CROSS, parents=(first.number, second.number), island=island)
        if archive:
            # the better half of the time the best, else any technique, so that a slow one is not given up at once
            chosen = archive[0] if lots.random() < 1 / 2 else lots.choice(archive)
            return Ask(kind=AskKind.IMPROVE, parents=(chosen.number,), island=island)
        return _go_on(mine[-1], island) if mine else Ask(kind=AskKind.FIRST, island=island)


def _list_elites(attempts: Sequence[Attempt]) -> list[Attempt]:
    """List the best right attempt of each technique, the fastest first."""
    techniques = dict.fromkeys(attempt.technique for attempt in attempts if attempt.passed)
    found = (find_best(each for each in attempts if each.technique == technique) for technique in techniques)
    return sorted((each for each in found if each is not None), key=lambda each: each.score, reverse=True)
