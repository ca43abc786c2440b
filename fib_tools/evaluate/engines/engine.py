"""What an engine is: it runs the items of a plan on workers, wherever these are, and yields what came of each evaluation.

A worker is one process that holds one device. It is a class, named by its dotted path, so that an engine need not know it
(`WorkerClass`); the real one is `fib_tools.evaluate.judge.worker:Worker`. It sees documents by value and blobs by path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

from typing_extensions import Self

from fib_tools.evaluate.engines.items import Bundle, Item, Plan, SolutionRef, Task
from fib_tools.model.base import Model, NonEmpty
from fib_tools.model.evidence import Evidence

__all__ = ["WORKER", "Engine", "LoadBundle", "Outcome", "Place", "WorkerClass", "WorkerProtocol"]

WORKER = "fib_tools.evaluate.judge.worker:Worker"
"""The judge."""

LoadBundle = Callable[[str], Bundle]
"""Gives the documents of a Definition by its name; called in the engine's process, once for each that is opened."""


class Place(Model):
    """Where a worker runs."""

    name: NonEmpty
    """Unique in a run, such as `gpu0` or `node2/gpu0`."""
    device: NonEmpty
    """As torch names it in the worker's own process: `cuda:0` or `cpu`."""
    hardware: NonEmpty
    """The device's model, such as NVIDIA H200."""
    uuid: str = ""
    """Of the GPU."""
    capability: int = 0
    """Of the GPU: major times ten plus minor; 0 on a CPU, or if it is not known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What came of one Solution on one Workload: evidence, or a failure of the machinery that is nobody's result."""

    item: Item
    """With all Solutions that it was planned with."""
    solution: SolutionRef
    key: str
    evidence: Evidence | None
    failure: str = ""
    """Why there is no evidence: how the worker died, twice, with the end of what it wrote."""
    place: str
    attempts: int = 1


class WorkerProtocol(Protocol):
    """The process that holds a device and judges: one evaluation after the other, from one thread."""

    def prepare(self, task: Task) -> None:
        """Begin to build the Solutions of a Definition that comes soon; a hint, which returns at once."""

    def forget(self, definition: str) -> None:
        """End what was begun for a Definition, of which no more comes."""

    def is_ready(self, task: Task, seconds: float) -> bool:
        """Tell whether a task can be evaluated at once, what compiles being waited for no longer than so many seconds."""

    def evaluate(self, task: Task) -> Iterator[Evidence | None]:
        """Yield the Evidence of each Solution as soon as it is there; None says only that the worker is alive.

        What it yields carries `task.item.subject(solution, plan.hardware)`.
        """

    def close(self) -> None:
        """End every child and give back the device."""


class WorkerClass(Protocol):
    """How a worker is made, in its own process, where CUDA has not been touched and no thread has been started."""

    def __call__(self, plan: Plan, place: Place) -> WorkerProtocol:
        """Make a worker; `plan.items` is empty there."""


class Engine(Protocol):
    """Workers on devices. Use it as a context manager: entering starts the workers, which takes seconds, and returns."""

    @property
    def hardware(self) -> str:
        """The model of the devices, for the plan; known once it is entered."""

    @property
    def capability(self) -> int:
        """Their compute capability, major times ten plus minor; 0 on a CPU, or if it is not known."""

    def run(self, plan: Plan, items: Iterable[Item]) -> Iterator[Outcome]:
        """Evaluate the items, each Solution once; outcomes come in the order in which they end.

        Closing the iterator, or an exception in it, ends the workers at once.

        Raises:
            ChildCrashedError: no worker can be started.
        """

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
