"""The engine for a Ray cluster: a locked worker on each GPU of one model, wherever in the cluster it is.

Documents travel by value through the object store; blobs have to lie at the same path on every node, and fib-tools has to
be installed there. What a worker is told, and what its death means, is the same as on one machine (`crew`).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any

from typing_extensions import Self

from fib_tools.errors import ChildCrashedError, MissingDependencyError, RequestError
from fib_tools.evaluate.engines._ray_supervisor import ENDED, Supervisor
from fib_tools.evaluate.engines.crew import Crew, Message
from fib_tools.evaluate.engines.engine import LoadBundle, Outcome, Place
from fib_tools.evaluate.engines.engine_local import WorkerSetup
from fib_tools.evaluate.engines.items import Item, Plan
from fib_tools.model.base import read_strict

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["Cluster", "RayEngine"]

_OPEN_SECONDS = 300.0
"""For Ray to place an actor, and the actor to lock its GPU."""
_LOCK_SECONDS = 240.0
_END_SECONDS = 10.0
_MOST_FAILED_OPENS = 2
"""In a row; then the engine goes on with the workers it has."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """Which part of which cluster."""

    address: str = "auto"
    """Of its head, as `ray.init` takes it; `auto`: the cluster that this machine belongs to."""
    accelerator: str | None = None
    """The model of GPU as Ray names it, such as H200; None: all GPUs are of one model."""
    gpus: int | None = None
    """How many to use; None: all that there are."""


@dataclass(kw_only=True, slots=True)
class _Slot:
    """A worker that there is to be: its actor, and how far that has come."""

    actor: Any
    opening: Any = None
    stream: Any = None
    place: Place | None = None
    deadline: float = 0.0
    sent: int = 0


@dataclass(kw_only=True, slots=True)
class _Heard:
    """What one round of listening brought."""

    outcomes: list[Outcome] = field(default_factory=list)
    lost: str = ""


class RayEngine:
    """Workers on the GPUs of a cluster."""

    def __init__(self, load: LoadBundle, *, cluster: Cluster | None = None, setup: WorkerSetup | None = None) -> None:
        self._load = load
        self._cluster = cluster or Cluster()
        self._setup = setup or WorkerSetup()
        self._slots: list[_Slot] = []
        self._hardware, self._capability = "", 0
        self._failed_opens = 0
        self._wanted = 0
        self._shelf: dict[str, Any] = {}
        """References to the bundles in the object store."""
        self._is_own_connection = False

    @property
    def hardware(self) -> str:
        """The model of its devices."""
        return self._hardware

    @property
    def capability(self) -> int:
        """The GPUs' compute capability."""
        return self._capability

    @property
    def places(self) -> tuple[Place, ...]:
        """Where its workers run now."""
        return tuple(slot.place for slot in self._slots if slot.place is not None)

    def __enter__(self) -> Self:
        """Join the cluster and start a worker on each GPU; the first that is there says what model they are.

        Raises:
            MissingDependencyError: Ray is not installed.
            RequestError: there is no cluster, or it has no such GPU.
        """
        ray = _import_ray()
        if not ray.is_initialized():
            try:
                ray.init(address=self._cluster.address, log_to_driver=False, logging_level="ERROR")
            except ConnectionError as error:
                todo = "start one with: ray start --head, or name the address of one"
                raise RequestError(f"no Ray cluster at {self._cluster.address!r}", todo=todo) from error
            self._is_own_connection = True
        try:
            self._wanted = _count_gpus(ray, self._cluster)
            for _ in range(self._wanted):
                self._open()
            self._await_first(ray)
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    def _leave(self) -> None:
        ray = _import_ray()
        for slot in self._slots:
            ray.kill(slot.actor)
        self._slots.clear()
        if self._is_own_connection:
            ray.shutdown()

    def _open(self) -> None:
        """Ask Ray for a GPU, and for an actor that holds it."""
        ray = _import_ray()
        options: dict[str, Any] = {"num_gpus": 1, "num_cpus": 0, "max_restarts": 0, "max_concurrency": 8}
        if self._cluster.accelerator:
            options["accelerator_type"] = self._cluster.accelerator
        actor = ray.remote(_Actor).options(**options).remote(self._setup)
        opening = actor.open.remote(_LOCK_SECONDS)
        self._slots.append(_Slot(actor=actor, opening=opening, deadline=time.monotonic() + _OPEN_SECONDS))

    def _await_first(self, ray: ModuleType) -> None:
        reason = ""
        while self._slots and not self.places:
            ray.wait([slot.opening for slot in self._slots], timeout=self._find_patience())
            reason = self._admit(ray) or reason
        if not self.places:
            raise ChildCrashedError(f"no worker can be started: {reason}", todo="mend what it says")

    def _find_patience(self) -> float:
        deadlines = [slot.deadline for slot in self._slots if slot.opening is not None]
        return max(0.0, min(deadlines, default=0.0) - time.monotonic())

    def _admit(self, ray: ModuleType) -> str:
        """Take in the actors that have opened; say why one could not."""
        reason = ""
        for slot in [slot for slot in self._slots if slot.opening is not None]:
            ready, _ = ray.wait([slot.opening], timeout=0)
            if ready:
                reason = self._take_place(ray, slot) or reason
            elif time.monotonic() > slot.deadline:
                reason = f"Ray found no GPU in {_OPEN_SECONDS:g} s"
                self._give_up(ray, slot)
        return reason

    def _give_up(self, ray: ModuleType, slot: _Slot) -> None:
        self._failed_opens += 1
        self._drop(ray, slot)

    def _take_place(self, ray: ModuleType, slot: _Slot) -> str:
        """Take in an actor that has opened; say why it could not."""
        try:
            place = read_strict(Place, ray.get(slot.opening), where="a Ray actor")
        except ray.exceptions.RayError as error:
            self._give_up(ray, slot)
            return str(error).strip().splitlines()[-1]
        self._hardware, self._capability = self._hardware or place.hardware, place.capability
        if place.hardware != self._hardware:
            todo = "choose one with the accelerator's name: results of two models are two runs"
            raise RequestError(f"the cluster has {self._hardware} and {place.hardware}", todo=todo)
        slot.opening, slot.place = None, place
        slot.stream = slot.actor.listen.options(num_returns="streaming").remote()
        self._failed_opens = 0
        return ""

    def _drop(self, ray: ModuleType, slot: _Slot) -> None:
        self._slots.remove(slot)
        ray.kill(slot.actor)

    def run(self, plan: Plan, items: Iterable[Item]) -> Iterator[Outcome]:
        """Evaluate the items; see `Engine.run`. An engine on Ray runs one plan."""
        ray = _import_ray()
        crew = Crew(plan, items, self._load)
        last_words = ""
        while not crew.is_done:
            last_words = self._admit(ray) or last_words
            self._enlist(crew)
            self._assign(ray, crew)
            heard = self._listen(ray, crew)
            last_words = heard.lost or last_words
            self._assign(ray, crew)  # before the caller looks at what came: it may take its time
            yield from heard.outcomes
            while len(self._slots) < self._wanted and crew.has_waiting and self._failed_opens < _MOST_FAILED_OPENS:
                self._open()
            if not self._slots and not crew.is_done:
                todo = "mend what it says; every finished evaluation is kept"
                raise ChildCrashedError(f"no worker can be started: {last_words}", todo=todo)
        ending = [slot.actor.close.remote(_END_SECONDS) for slot in self._slots if slot.place is not None]
        ray.wait(ending, num_returns=len(ending), timeout=2 * _END_SECONDS) if ending else None

    def _enlist(self, crew: Crew) -> None:
        for slot in self._slots:
            if slot.place is not None and slot.place.name not in crew.members:
                self._send(slot, crew.start(slot.place, now=time.monotonic()))

    def _assign(self, ray: ModuleType, crew: Crew) -> None:
        slots = {slot.place.name: slot for slot in self._slots if slot.place is not None}
        for name, messages in crew.assign(now=time.monotonic()):
            self._send(slots[name], [self._shelve(ray, message) for message in messages])

    def _shelve(self, ray: ModuleType, message: Message) -> Any:
        """Put a bundle into the object store, once for all workers."""
        if message["type"] != "bundle":
            return message
        name = message["bundle"]["definition"]["name"]
        if name not in self._shelf:
            self._shelf[name] = ray.put(message)
        return self._shelf[name]

    def _send(self, slot: _Slot, messages: list[Any]) -> None:
        slot.actor.send.remote(slot.sent, *messages)
        slot.sent += 1

    def _listen(self, ray: ModuleType, crew: Crew) -> _Heard:
        """Wait until something happens, and take it in."""
        sources = [slot.stream or slot.opening for slot in self._slots]
        deadline = crew.find_deadline()
        seconds = self._find_patience() if deadline is None else max(0.0, deadline - time.monotonic())
        ready, _ = ray.wait(sources, timeout=seconds, fetch_local=False)
        heard = _Heard()
        for slot in [slot for slot in self._slots if slot.place is not None]:
            is_over, reason = self._hear(ray, crew, slot, heard) if slot.stream in ready else (False, "")
            if not reason and slot.place is not None and slot.place.name in crew.find_overdue(now=time.monotonic()):
                reason = "it said nothing for too long and was ended"
            if reason and slot.place is not None:
                heard.lost = f"worker {slot.place.name}: {reason}"
                heard.outcomes += crew.lose(slot.place.name, heard.lost, is_machine=is_over)
                self._drop(ray, slot)
                self._wanted -= crew.is_hopeless(slot.place.name)
        return heard

    def _hear(self, ray: ModuleType, crew: Crew, slot: _Slot, heard: _Heard) -> tuple[bool, str]:
        """Take in what a worker said; tell whether its machine is lost, and why it is to be ended if it is."""
        try:
            messages = ray.get(next(slot.stream))
        except (ray.exceptions.RayError, StopIteration) as error:
            return True, f"its node or its actor was lost: {str(error).strip().splitlines()[0] if str(error) else ''}"
        for message in messages:
            if message["type"] == ENDED:
                return False, f"it died: {message['reason']}"
            if slot.place is not None:
                try:
                    heard.outcomes += crew.hear(slot.place.name, message, now=time.monotonic())
                except ChildCrashedError as error:
                    return False, str(error)
        return False, ""


class _Actor(Supervisor):
    """The supervisor as Ray makes it: it knows its node."""

    def __init__(self, setup: WorkerSetup) -> None:
        ray = _import_ray()
        super().__init__(setup, str(ray.get_runtime_context().get_node_id())[:8])


def _import_ray() -> ModuleType:
    """Import Ray, which is an extra and takes most of a second."""
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        install = "pip install 'fib-tools[cluster]'"
        raise MissingDependencyError("ray", purpose="the engine for a cluster", install=install) from error
    module: ModuleType = ray
    return module


def _count_gpus(ray: ModuleType, cluster: Cluster) -> int:
    """Count the GPUs of the wanted model in the nodes that live, up to what is wanted."""
    label = f"accelerator_type:{cluster.accelerator}"
    resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    there = sum(int(each.get("GPU", 0)) for each in resources if not cluster.accelerator or label in each)
    wanted = there if cluster.gpus is None else cluster.gpus
    if not 0 < wanted <= there:
        what = f"{wanted} GPUs{f' of the model {cluster.accelerator}' if cluster.accelerator else ''}"
        raise RequestError(f"{what} were asked for, and the cluster has {there}", todo="ask for as many as there are")
    return wanted
