"""What went wrong with a kernel in all runs of a workspace, so that no run learns it again.

<workspace>/optimize/memory/<definition>.jsonl: {"technique": "...", "said": "INCORRECT_NUMERICAL: ...", "run": "...",
                                                 "language": "triton", "hardware": "NVIDIA H200"}
"""

from __future__ import annotations

from pathlib import Path

from fib_tools.draft.attempt import Attempt
from fib_tools.draft.machine import blames_machine
from fib_tools.draft.target import Target
from fib_tools.host.lines import append_line, read_lines
from fib_tools.host.paths import check_component, confine
from fib_tools.model.base import Model, read_strict
from fib_tools.model.canonical import format_line, load_json

__all__ = ["Failure", "Memory"]

_LIMIT = 16 << 20
_SHOWN = 8
_LENGTH = 200


class Failure(Model):
    """One thing that does not work."""

    technique: str
    said: str
    run: str
    language: str = ""
    hardware: str = ""
    """Empty, both, where an older version noted it."""

    def __str__(self) -> str:
        return f"- {self.technique}: {self.said}"


class Memory:
    """The failures of one Definition; those in another language or on another device are passed over."""

    def __init__(self, folder: Path, target: Target) -> None:
        self._place = {"language": target.language.value, "hardware": target.hardware}
        self._path = confine(folder, f"{check_component(target.definition.name)}.jsonl")
        where = str(self._path)
        lines = read_lines(self._path, limit=_LIMIT)
        self._known = [read_strict(Failure, load_json(line, where=where), where=where) for line in lines]

    def recall(self, *, besides: str) -> list[str]:
        """Give the newest failures of other runs than `besides`, one for each technique."""
        newest = {each.technique: each for each in self._known if each.run != besides and self._applies(each)}
        return [str(failure) for failure in list(newest.values())[-_SHOWN:]]

    def _applies(self, failure: Failure) -> bool:
        place = {"language": failure.language, "hardware": failure.hardware}
        return place == self._place or (not failure.language and not blames_machine(failure.said))

    def note(self, attempt: Attempt, run: str) -> None:
        """Remember what was wrong with an attempt, once; what the machine lacked was not.

        Raises:
            StorageError: the disk refuses.
        """
        wrong = attempt.first_wrong
        if wrong is None or blames_machine(wrong.detail):
            return
        said = f"{wrong.verdict}: {' '.join(wrong.detail.split())}"[:_LENGTH]
        failure = Failure(technique=attempt.technique, said=said, run=run, **self._place)
        if failure not in self._known:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            append_line(self._path, format_line(failure))
            self._known.append(failure)
