"""Messages between the judge and a runner: JSON objects with their length before them, over a local socket.

JSON, since a runner's process is not trusted: nothing that it sends is executed.
"""

from __future__ import annotations

import json
import select
import socket
import struct
import time
from typing import Any

from fib_tools.errors import ChildCrashedError, ChildTimeoutError

__all__ = ["Channel"]

_LENGTH = struct.Struct("<I")
_LARGEST = 64 << 20


class Channel:
    """One end of the conversation."""

    def __init__(self, connection: socket.socket, *, takes_files: bool = False) -> None:
        """Talk through a socket; only the end that trusts the other takes open files from it."""
        self._socket = connection
        self._received = bytearray()
        self._takes_files = takes_files
        self.descriptors: list[int] = []
        """Open files that came with messages."""

    def send(self, message: dict[str, Any], descriptor: int | None = None) -> None:
        """Send one message, and an open file with it; a dead peer shows at the next `receive`."""
        body = json.dumps(message).encode()
        data = _LENGTH.pack(len(body)) + body
        self._socket.settimeout(None)
        try:
            if descriptor is not None:
                data = data[socket.send_fds(self._socket, [data], [descriptor]) :]
            self._socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return

    @property
    def is_quiet(self) -> bool:
        """Tell whether nothing has come that nobody asked for; a peer that is gone is quiet too."""
        self._socket.settimeout(None)
        return not self._received and (not self.wait(0.0) or not self._socket.recv(1, socket.MSG_PEEK))

    def wait(self, seconds: float) -> bool:
        """Wait until something has come, or the peer is gone; tell whether it is so."""
        return bool(self._received) or bool(select.select([self._socket], [], [], seconds)[0])

    def receive(self, seconds: float | None = None) -> dict[str, Any]:
        """Wait for the next message.

        Raises:
            ChildTimeoutError: none came in time.
            ChildCrashedError: the other end is gone, or what it sent is no message.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        (length,) = _LENGTH.unpack(self._take(_LENGTH.size, deadline))
        if length > _LARGEST:
            raise ChildCrashedError(f"the runner sent a message of {length} bytes, over the limit of {_LARGEST}")
        try:
            message = json.loads(self._take(length, deadline))
        except (ValueError, RecursionError) as error:
            raise ChildCrashedError("the runner sent something that is not JSON") from error
        if not isinstance(message, dict):
            raise ChildCrashedError("the runner sent something that is not a JSON object")
        return message

    def _take(self, count: int, deadline: float | None) -> bytes:
        while len(self._received) < count:
            try:
                self._socket.settimeout(None if deadline is None else max(0.001, deadline - time.monotonic()))
                data = self._read()
            except TimeoutError:
                raise ChildTimeoutError("the runner did not answer in time") from None
            except ConnectionResetError:
                data = b""
            if not data:
                raise ChildCrashedError("the runner ended without an answer")
            self._received += data
        taken = bytes(self._received[:count])
        del self._received[:count]
        return taken

    def _read(self) -> bytes:
        if not self._takes_files:
            return self._socket.recv(1 << 16)
        data, descriptors, _, _ = socket.recv_fds(self._socket, 1 << 16, 4)
        self.descriptors += descriptors
        return data
