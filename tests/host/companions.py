"""What companions do in tests."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence

from fib_tools.host.companion import Channel


def echo(channel: Channel, _arguments: Sequence[str]) -> None:
    while (message := channel.receive()) is not None:
        channel.send(message)
    sys.stdout.write("bye\n")


def fail(channel: Channel, _arguments: Sequence[str]) -> None:
    channel.send({"said": 1})
    raise ValueError("no more")


def leave_child(channel: Channel, _arguments: Sequence[str]) -> None:
    raw = _raw(channel)
    os.set_inheritable(raw.fileno(), True)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], close_fds=False)
    channel.send({"child": child.pid})
    os._exit(0)


def babble(channel: Channel, arguments: Sequence[str]) -> None:
    data = arguments[0].encode()
    _raw(channel).sendall(struct.pack(">Q", len(data)) + data)


def boast(channel: Channel, _arguments: Sequence[str]) -> None:
    _raw(channel).sendall(struct.pack(">Q", 1 << 60))


def _raw(channel: Channel) -> socket.socket:
    return channel._connection
