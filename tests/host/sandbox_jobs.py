"""What the jobs of test_sandbox.py do; hostile on purpose, and only run inside a sandbox."""

from __future__ import annotations

import ctypes
import json
import math
import os
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any

from fib_tools.errors import ParallelismError

Payload = dict[str, Any]


def echo(payload: Payload) -> Payload:
    return {"got": payload}


def loop_forever(_payload: Payload) -> Payload:
    while True:
        pass


def ignore_signals_and_wait(_payload: Payload) -> Payload:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGXCPU):
        signal.signal(number, signal.SIG_IGN)
    while True:
        signal.pause()


def allocate(payload: Payload) -> Payload:
    return {"length": len(bytearray(payload["bytes"]))}


def allocate_tensor(payload: Payload) -> Payload:
    import torch

    return {"length": torch.zeros(payload["bytes"], dtype=torch.uint8).numel()}


def try_to_fork(_payload: Payload) -> Payload:
    try:
        pid = os.fork()
    except OSError as error:
        return {"refused": type(error).__name__}
    if pid == 0:
        os._exit(0)
    return {"forked": pid}


def fork_without_end(_payload: Payload) -> Payload:
    started = 0
    while started < 2000:
        try:
            pid = os.fork()
        except OSError:
            return {"started": started}
        if pid == 0:
            signal.pause()
        started += 1
    return {"started": started}


def leave_a_daemon(_payload: Payload) -> Payload:
    pid = os.fork()
    if pid == 0:
        os.setsid()
        if os.fork() == 0:
            Path("daemon").write_text("alive", encoding="utf-8")
            while True:
                signal.pause()
        os._exit(0)
    os.waitpid(pid, 0)
    return {}


def start_threads(_payload: Payload) -> Payload:
    seen: list[int] = []
    threads = [threading.Thread(target=seen.append, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"seen": sorted(seen)}


def exit_at_once(payload: Payload) -> Payload:
    os._exit(payload["status"])


def leave(_payload: Payload) -> Payload:
    sys.exit("bye")


def segfault(_payload: Payload) -> Payload:
    return {"value": ctypes.string_at(8)}


def connect(payload: Payload) -> Payload:
    with socket.create_connection(("127.0.0.1", payload["port"]), timeout=5):
        return {"connected": True}


def open_socket(payload: Payload) -> Payload:
    with socket.socket(getattr(socket, payload["family"])):
        return {"opened": True}


def read(payload: Payload) -> Payload:
    return {"text": Path(payload["path"]).read_text(encoding="utf-8")}


def list_folder(payload: Payload) -> Payload:
    return {"names": [path.name for path in Path(payload["path"]).iterdir()]}


def write(payload: Payload) -> Payload:
    Path(payload["path"]).write_text("x", encoding="utf-8")
    return {"text": Path(payload["path"]).read_text(encoding="utf-8")}


def fill_a_file(payload: Payload) -> Payload:
    Path("big").write_bytes(bytes(payload["bytes"]))
    return {}


def environment(_payload: Payload) -> Payload:
    return {"environment": dict(os.environ), "folder": str(Path.cwd())}


def make_noise(payload: Payload) -> Payload:
    sys.stdout.write("x" * payload["characters"] + "\n")
    sys.stderr.write("the end of it\n")
    os.write(1, b'{"value": {"forged": true}}\n')
    return {"done": True}


def answer_much(payload: Payload) -> Payload:
    return {"text": "x" * payload["characters"]}


def answer_nonsense(payload: Payload) -> Any:
    return {"list": [1], "set": {1}, "nan": math.nan}[payload["kind"]]


def forge_every_descriptor(payload: Payload) -> Payload:
    for descriptor in range(3, 300):
        try:
            os.write(descriptor, payload["text"].encode())
        except OSError:
            continue
    os._exit(0)


def patch_json(_payload: Payload) -> Payload:
    json.dumps = lambda *_, **__: '{"value": {"patched": true}}'
    echo.__code__ = patched.__code__
    os.environ["PATCHED"] = "1"
    return {}


def patched(_payload: Payload) -> Payload:
    return {"patched": True}


def kill_everything(_payload: Payload) -> Payload:
    refused = 0
    for target in (os.getppid(), -1, 1):
        if target in (os.getpid(), 0):
            continue
        try:
            os.kill(target, signal.SIGKILL)
        except OSError:
            refused += 1
    return {"refused": refused}


def fail(payload: Payload) -> Payload:
    if payload.get("tp"):
        raise ParallelismError("tp=3 does not divide 64", where="num_heads", todo="pass 2")
    raise ValueError("bad " + "hf_" + "abcdefghijklmnop")


def recurse(payload: Payload) -> Payload:
    return recurse(payload)


def use_torch(_payload: Payload) -> Payload:
    import torch

    first = torch.arange(6.0).reshape(2, 3)
    return {"value": (first @ first.T).tolist()}


def protected_calls(_payload: Payload) -> Payload:
    libc = ctypes.CDLL(None, use_errno=True)
    results = {}
    for name, arguments in {"unshare": (0x10000000,), "ptrace": (0, 0, 0, 0)}.items():
        ctypes.set_errno(0)
        results[name] = [getattr(libc, name)(*arguments), ctypes.get_errno()]
    return results


def import_lazily(_payload: Payload) -> Payload:
    import hypothesis

    import fib_tools.host.locks

    return {"names": [fib_tools.host.locks.__name__, hypothesis.__name__]}
