"""The engine for one machine: a locked worker process for each GPU, or one for the CPU.

Its iterator is to be consumed in the thread that entered it: the kernel ends the workers with that thread.
"""

from __future__ import annotations

import selectors
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from typing_extensions import Self

from fib_tools.errors import ChildCrashedError, RequestError
from fib_tools.evaluate.engines.crew import Crew
from fib_tools.evaluate.engines.engine import WORKER, LoadBundle, Outcome, Place
from fib_tools.evaluate.engines.items import Item, Plan
from fib_tools.host.companion import Companion
from fib_tools.host.cpu import read_cpu_name
from fib_tools.host.env import engine_environment, read_gpu_settings
from fib_tools.host.gpu_lock import Lease, Waiting, acquire
from fib_tools.host.gpus import discover_gpus
from fib_tools.host.paths import list_import_paths

__all__ = ["ENTRY", "LocalEngine", "WorkerSetup", "list_places"]

ENTRY = "fib_tools.evaluate.engines._engine_worker:main"
_END_SECONDS = 10.0
"""For a worker to end its children and give back its device after the last item."""
_LOOK_SECONDS = 0.2
"""How often to look for deaths where the kernel cannot tell of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerSetup:
    """What runs in a worker's process."""

    entry: str = WORKER
    """The worker's class, `module:name`."""
    import_paths: tuple[Path, ...] = ()
    """Where else it is looked for."""

    def start(self, environment: dict[str, str], descriptors: Sequence[int] = ()) -> Companion:
        """Start a worker's process."""
        return Companion(
            ENTRY,
            (self.entry,),
            environment={**engine_environment(), **environment},
            descriptors=descriptors,
            import_paths=(*self.import_paths, *list_import_paths()),
        )


class LocalEngine:
    """Workers on the GPUs of this machine; with `gpus=0` one on its CPU."""

    def __init__(
        self,
        load: LoadBundle,
        *,
        gpus: int,
        setup: WorkerSetup | None = None,
        patience: float | None = None,
        report: Callable[[Waiting], None] | None = None,
    ) -> None:
        """Wait `patience` seconds for the GPUs to come free (None: for as long as it takes)."""
        self._load = load
        self._gpus = gpus
        self._setup = setup or WorkerSetup()
        self._patience = patience
        self._report = report
        self._lease: Lease | None = None
        self._held = ExitStack()
        self._places: dict[str, Place] = {}
        self._companions: dict[str, Companion] = {}

    @property
    def places(self) -> tuple[Place, ...]:
        """Where its workers run."""
        return tuple(self._places.values())

    @property
    def hardware(self) -> str:
        """The model of its devices."""
        return self.places[0].hardware

    @property
    def capability(self) -> int:
        """The GPUs' compute capability."""
        return self.places[0].capability

    def __enter__(self) -> Self:
        """Lock the GPUs, and start all workers at once.

        Raises:
            RequestError: there are not so many GPUs, or they are of several models.
            LockedError: they did not come free.
        """
        with ExitStack() as held:
            if self._gpus:
                _check_machine()
                self._lease = held.enter_context(
                    acquire(self._gpus, timeout=self._patience, command="fib bench", report=self._report)
                )
            self._places = {place.name: place for place in list_places(self._lease)}
            for place in self.places:
                self._start(place)
            held.callback(self._kill)
            self._held = held.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close()

    def _start(self, place: Place) -> None:
        if self._lease is None:
            companion = self._setup.start({"CUDA_VISIBLE_DEVICES": ""})
        else:
            environment = {**self._lease.environment, "CUDA_VISIBLE_DEVICES": place.uuid}
            companion = self._setup.start(environment, self._lease.descriptors)
        self._companions[place.name] = companion

    def _kill(self) -> None:
        while self._companions:
            self._companions.popitem()[1].close()

    def run(self, plan: Plan, items: Iterable[Item]) -> Iterator[Outcome]:
        """Evaluate the items; see `Engine.run`."""
        crew = Crew(plan, items, self._load)
        last_words = ""
        try:
            for place in self.places if not crew.is_done else ():
                self._enlist(crew, place)
            while not crew.is_done:
                outcomes, lost = self._listen(crew)
                last_words = lost or last_words
                for place in self.places:
                    if crew.needs(place.name):
                        self._enlist(crew, place)
                self._assign(crew)  # before the caller looks at what came: it may take its time
                yield from outcomes
                if not crew.members and not crew.is_done:
                    todo = "mend what it says; every finished evaluation is kept"
                    raise ChildCrashedError(f"no worker can be started: {last_words}", todo=todo)
            for companion in self._companions.values():
                companion.hang_up(seconds=_END_SECONDS)
        finally:
            self._kill()

    def _enlist(self, crew: Crew, place: Place) -> None:
        if place.name not in self._companions:
            self._start(place)
        for message in crew.start(place, now=time.monotonic()):
            self._companions[place.name].send(message)

    def _assign(self, crew: Crew) -> None:
        for name, messages in crew.assign(now=time.monotonic()):
            for message in messages:
                self._companions[name].send(message)

    def _listen(self, crew: Crew) -> tuple[list[Outcome], str]:
        """Wait until something happens; give what came of it, and how a worker ended if one did."""
        _wait([self._companions[name] for name in crew.members], crew.find_deadline())
        outcomes: list[Outcome] = []
        lost = ""
        for name in crew.members:
            reason = self._hear(crew, name, outcomes)
            if not reason and name in crew.find_overdue(now=time.monotonic()):
                reason = "it said nothing for too long and was ended"
            if reason:
                lost = self._bury(name, reason)
                outcomes += crew.lose(name, lost)
        return outcomes, lost

    def _hear(self, crew: Crew, name: str, outcomes: list[Outcome]) -> str:
        """Take in what a worker said; say why it is to be ended, if it is."""
        companion = self._companions[name]
        companion.flush()
        try:
            for message in companion.receive():
                outcomes += crew.hear(name, message, now=time.monotonic())
        except ChildCrashedError as error:
            return str(error)
        return "it died" if companion.has_ended else ""

    def _bury(self, name: str, reason: str) -> str:
        companion = self._companions.pop(name)
        companion.kill()
        words = f"worker {name}: {reason}: {companion.describe_end()}"
        companion.close()
        return words


def _check_machine() -> None:
    """Say what an evaluation can do without a GPU, which whoever waits for GPUs cannot know.

    Raises:
        RequestError: there is none.
    """
    found = discover_gpus(read_gpu_settings())
    if not found.visible:
        todo = "pass --device cpu, or use a machine that has one"
        raise RequestError("there is no GPU here", where="; ".join(found.notes) or None, todo=todo)


def list_places(lease: Lease | None) -> list[Place]:
    """List where workers may run under a lease; without one it is the CPU.

    Raises:
        RequestError: the GPUs are of several models.
    """
    if lease is None:
        return [Place(name="cpu", device="cpu", hardware=read_cpu_name())]
    models = sorted({gpu.name for gpu in lease.gpus})
    if len(models) > 1:
        todo = "choose those of one model with CUDA_VISIBLE_DEVICES: results of two models are two runs"
        raise RequestError(f"the GPUs are of several models: {', '.join(models)}", todo=todo)
    return [
        Place(
            name=f"gpu{gpu.index}" if gpu.parent is None else gpu.uuid,
            device="cuda:0",
            hardware=gpu.name,
            uuid=gpu.uuid,
            capability=gpu.capability,
        )
        for gpu in lease.gpus
    ]


def _wait(companions: Sequence[Companion], deadline: float | None) -> None:
    seconds = None if deadline is None else max(0.0, deadline - time.monotonic())
    with selectors.DefaultSelector() as selector:
        for companion in companions:
            connection, *death = companion.watched
            more = selectors.EVENT_WRITE if companion.has_more_to_send else 0
            selector.register(connection, selectors.EVENT_READ | more)
            for descriptor in death:
                selector.register(descriptor, selectors.EVENT_READ)
            if not death:
                seconds = _LOOK_SECONDS if seconds is None else min(seconds, _LOOK_SECONDS)
        selector.select(seconds)
