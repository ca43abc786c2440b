"""A Ray actor that holds one GPU of its node: it locks it, starts a worker's process as the local engine does, and relays.

The actor is asynchronous: all its methods run in one thread, which lives as long as the actor, and with it the worker.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import Any

from fib_tools.errors import ChildCrashedError
from fib_tools.evaluate.engines.engine_local import WorkerSetup, list_places
from fib_tools.host.companion import Companion
from fib_tools.host.gpu_lock import acquire

__all__ = ["ENDED", "Supervisor"]

ENDED = "ended"
"""The type of the last message: the worker's process has died, and `reason` says how."""
_LOOK_SECONDS = 1.0
"""How often to look for deaths where the kernel cannot tell of them."""


class Supervisor:
    """One GPU and its worker."""

    def __init__(self, setup: WorkerSetup, node: str) -> None:
        self._setup = setup
        self._node = node
        self._held = ExitStack()
        self._companion: Companion | None = None
        self._early: dict[int, tuple[dict[str, Any], ...]] = {}
        """Messages that overtook others: Ray keeps no order between the calls of an asynchronous actor."""
        self._next = 0

    async def open(self, patience: float) -> dict[str, Any]:
        """Lock the GPU that Ray chose, start the worker's process, and say where it runs.

        Raises:
            LockedError: a process outside Ray holds the GPU.
        """
        lease = self._held.enter_context(acquire(1, timeout=patience, command="fib bench on Ray"))
        (place,) = list_places(lease)
        self._companion = self._setup.start(lease.environment, lease.descriptors)
        self._held.callback(self._companion.close)
        return {**place.model_dump(), "name": f"{self._node}/{place.name}"}

    async def send(self, number: int, *messages: dict[str, Any]) -> None:
        """Pass messages on to the worker, in the order of the calls' numbers."""
        self._early[number] = messages
        while self._next in self._early:
            for message in self._early.pop(self._next):
                self._worker.send(message)
            self._next += 1

    async def listen(self) -> AsyncIterator[list[dict[str, Any]]]:
        """Yield what the worker says, until it dies."""
        while True:
            await self._wait()
            self._worker.flush()
            try:
                messages = self._worker.receive()
            except ChildCrashedError as error:
                yield [{"type": ENDED, "reason": str(error)}]
                return
            if messages:
                yield messages
            if self._worker.has_ended:
                self._worker.kill()
                yield [{"type": ENDED, "reason": self._worker.describe_end()}]
                return

    async def close(self, seconds: float) -> None:
        """Let the worker end, and give the GPU back."""
        if self._companion is not None:
            self._companion.hang_up(seconds=seconds)
        self._held.close()

    @property
    def _worker(self) -> Companion:
        if self._companion is None:
            raise ChildCrashedError("the worker was not started", where=self._node)
        return self._companion

    async def _wait(self) -> None:
        """Wait until the worker says something, has room for more, or dies."""
        loop = asyncio.get_running_loop()
        happened = asyncio.Event()
        watched = self._worker.watched
        for descriptor in watched:
            loop.add_reader(descriptor, happened.set)
        if self._worker.has_more_to_send:
            loop.add_writer(watched[0], happened.set)
        try:
            await asyncio.wait_for(happened.wait(), _LOOK_SECONDS)
        except asyncio.TimeoutError:
            return
        finally:
            for descriptor in watched:
                loop.remove_reader(descriptor)
            loop.remove_writer(watched[0])
