"""The runner's side of the conversation with the judge: build once, then make calls on command."""

from __future__ import annotations

import gc
import mmap
import os
import pickle
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from fib_tools.errors import FibError, MissingDependencyError
from fib_tools.evaluate._runner.build import build_reference, build_solution
from fib_tools.evaluate._runner.caches import keep_caches_here
from fib_tools.evaluate._runner.calls import Caller
from fib_tools.evaluate._runner.draws import draw_samples
from fib_tools.evaluate._runner.guard import BusyWatch, Guard
from fib_tools.evaluate._runner.loops import Looper
from fib_tools.evaluate._runner.refusals import RuleError, WrongOutputError
from fib_tools.evaluate._runner.replays import NotCapturedError, Replays
from fib_tools.evaluate._runner.timing import ActivityTimer, EventTimer, HostTimer, Job, Timer
from fib_tools.evaluate._runner.workload import OpenWorkload, open_workload
from fib_tools.evaluate.judge.channel import Channel
from fib_tools.model.definition import Definition
from fib_tools.model.solution import Solution
from fib_tools.op_types.inputs import count_input_bytes, list_distributions

__all__ = ["serve"]

_TRACE_LENGTH = 4000
_REHEARSAL_BYTES = 64 << 20
"""Of the inputs of a call that is rehearsed; a larger one takes longer than loading kernels does."""
_FOLDER = "solution"


def serve(payload: dict[str, Any], connection: socket.socket) -> dict[str, Any]:
    """Obey the judge until it hangs up."""
    runner = _Runner(payload, Channel(connection, takes_files=True))
    runner.serve()
    return {}


class _Runner:
    def __init__(self, payload: dict[str, Any], channel: Channel) -> None:
        self._channel = channel
        self._device = str(payload["device"])
        self._definition = Definition.model_validate(payload["definition"])
        self._solution = Solution.model_validate(payload["solution"]) if payload["solution"] else None
        self._payload = payload
        self._commands: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "build": self._build,
            "warm": self._warm,
            "arena": self._take_arena,
            "drop": self._drop_arena,
            "rest": self._rest,
            "open": self._open,
            "call": self._call,
            "measure": self._measure,
            "capture": self._capture,
            "replay": self._replay,
            "loop": self._loop,
            "draw": self._draw,
        }
        self._arena = torch.empty(0, dtype=torch.uint8)
        self._workloads: dict[str, OpenWorkload] = {}
        self._replays: Replays | None = None

    def serve(self) -> None:
        while True:
            try:
                message = self._channel.receive()
            except FibError:
                return
            self._channel.send({**self._answer(message), "token": message["token"]})

    def _answer(self, message: dict[str, Any]) -> dict[str, Any]:
        try:
            answer = self._commands[message["do"]](message)
        except RuleError as error:
            return {"error": {"kind": "rule", "rule": error.rule, "message": str(error)}}
        except WrongOutputError as error:
            return {"error": {"kind": "output", "status": error.status, "message": str(error)}}
        except MissingDependencyError as error:
            return {"error": {"kind": "missing", "message": str(error)}}
        except BaseException as error:  # noqa: BLE001  # whatever the Solution raises is its result, SystemExit included
            return {"error": {"kind": "raised", "message": _describe(error), "trace": self._trace(error)}}
        return {"ok": answer}

    def _trace(self, error: BaseException) -> str:
        """Give the part of the traceback that lies in the Solution, which is all its author can mend."""
        own = [frame for frame in traceback.extract_tb(error.__traceback__) if f"/{_FOLDER}/" in frame.filename]
        lines = traceback.format_list(own)
        error.__traceback__ = None
        return "".join(lines).replace(str(Path.cwd()) + os.sep, "")[-_TRACE_LENGTH:]

    def _build(self, message: dict[str, Any]) -> dict[str, Any]:
        """Start the device, arm the guard, and build; compilers run in this process's own tree."""
        keep_caches_here(self._payload["caches"])
        if self._payload["connections"] is not None:
            os.environ["CUDA_DEVICE_MAX_CONNECTIONS"] = str(self._payload["connections"])
        self._gpu, self._timer = self._start_device(message["timer"])
        folder = Path.cwd() / _FOLDER
        folder.mkdir()
        self._guard = Guard(folder, self._channel.descriptors.pop())
        self._guard.remember()
        if self._solution is None:
            built = build_reference(self._definition.reference, self._definition.name, folder)
        else:
            outputs = self._definition.outputs if self._solution.spec.destination_passing_style else ()
            built = build_solution(self._solution, folder, [*self._definition.inputs, *outputs])
        passes = self._solution is not None and self._solution.spec.destination_passing_style
        self._caller = Caller(self._definition, built, destination_passing=passes, device=self._device)
        self._looper = Looper(self._caller, self._gpu)
        gc.collect()
        gc.freeze()
        return {"libs": self._list_libs()}

    def _warm(self, message: dict[str, Any]) -> dict[str, Any]:
        """Make the first call of a Solution, into memory of its own, and say how long it took; then rehearse."""
        root, seconds = Path(self._payload["dataset"]), 0.0
        is_small = count_input_bytes(self._definition, message["axes"]) <= _REHEARSAL_BYTES
        try:
            if self._solution is not None:
                seconds = self._make_first_call(message, root)
            self._rehearse(message, root, is_small=is_small)
        except torch.OutOfMemoryError:
            is_small = False  # others may hold the memory, who will not when it is this one's turn
        if not is_small:
            self._rest({})
        return {"seconds": seconds}

    def _make_first_call(self, message: dict[str, Any], root: Path) -> float:
        workload = open_workload(self._definition, message, device=self._device, root=root)
        memory = torch.empty(workload.layout.slot_bytes, dtype=torch.uint8, device=self._device)
        step = _Step(self._caller, workload, memory, seed=message["seed"], slot=0)
        self._synchronize()
        begun = time.perf_counter()
        step.make_once()
        self._synchronize()
        return time.perf_counter() - begun

    def _rehearse(self, message: dict[str, Any], root: Path, *, is_small: bool) -> None:
        """Do once what the harness does around calls, and the reference: a device loads its kernels when they are first used.

        A reference that fails does so again at its turn, where it is known for what Workload.
        """
        if self._gpu is None:
            return
        if self._solution is None and is_small:
            with suppress(Exception):
                self._make_first_call(message, root)
        for distribution in list_distributions(self._definition) if is_small else ():
            described = {**message, "distribution": distribution.value}
            workload = open_workload(self._definition, described, device=self._device, root=root)
            _find_changed(workload.make(message["seed"]), workload.make(message["seed"]))
        self._gpu.capture_flushes(1)

    def _start_device(self, timer: str) -> tuple[Any, Timer]:
        if self._device == "cpu":
            torch.set_num_threads(1)
            return None, HostTimer()
        from fib_tools.evaluate._runner.gpu import Gpu

        gpu = Gpu()
        return gpu, ActivityTimer(gpu) if timer == "cupti" else EventTimer(gpu)

    def _list_libs(self) -> dict[str, str]:
        libs = {"torch": torch.__version__, "python": ".".join(map(str, sys.version_info[:3]))}
        libs |= {name: str(getattr(sys.modules[name], "__version__", "")) for name in _LIBS if name in sys.modules}
        if self._payload["connections"] is not None:
            libs["cuda_connections"] = str(self._payload["connections"])
        return libs if self._gpu is None else {**libs, "cuda": str(torch.version.cuda)}

    def _take_arena(self, message: dict[str, Any]) -> dict[str, Any]:
        """Map the judge's memory; what is unpickled here comes from the judge, who is trusted."""
        self._arena = torch.empty(0, dtype=torch.uint8)
        if "handle" in message:
            rebuild, arguments = pickle.loads(bytes.fromhex(message["handle"]))  # noqa: S301  # from the judge
            self._arena = rebuild(*arguments)
        else:
            descriptor = self._channel.descriptors.pop()
            self._arena = torch.frombuffer(mmap.mmap(descriptor, message["bytes"]), dtype=torch.uint8)
            os.close(descriptor)
        return {}

    def _drop_arena(self, _message: dict[str, Any]) -> dict[str, Any]:
        self._replays = None
        self._arena = torch.empty(0, dtype=torch.uint8)
        gc.collect()
        return {}

    def _rest(self, _message: dict[str, Any]) -> dict[str, Any]:
        """Give back the memory of calls that are over."""
        self._replays = None
        self._looper.forget()
        gc.collect()
        if self._gpu is not None:
            torch.cuda.empty_cache()
        return {}

    def _open(self, message: dict[str, Any]) -> dict[str, Any]:
        """Plan the inputs of workloads: their structure once, their values at each call."""
        root = Path(self._payload["dataset"])
        for each in message["workloads"]:
            self._workloads[each["name"]] = open_workload(self._definition, each, device=self._device, root=root)
        return {}

    def _call(self, message: dict[str, Any]) -> dict[str, Any]:
        """Make calls that nobody times."""
        for batch in message["batches"]:
            workload = self._workloads[batch["name"]]
            for seed, slot in zip(batch["seeds"], batch["slots"], strict=True):
                _Step(self._caller, workload, self._arena, seed=seed, slot=slot).make_once()
                self._synchronize()
        self._check_patched()
        return {}

    def _measure(self, message: dict[str, Any]) -> dict[str, Any]:
        workload = self._workloads[message["name"]]
        last = len(message["seeds"]) - 1
        steps = [
            _Step(self._caller, workload, self._arena, seed=seed, slot=slot, keeps_inputs=number == last)
            for number, (seed, slot) in enumerate(zip(message["seeds"], message["slots"], strict=True))
        ]
        jobs = [Job(before=step.before, call=step.call, after=step.after) for step in steps]
        _Step(self._caller, workload, self._arena, seed=message["seeds"][0] ^ 1, slot=message["slots"][0]).make_once()
        self._synchronize()
        tasks, busy = self._guard.count_tasks(), BusyWatch()
        gc.disable()
        try:
            timed = self._timer.time(jobs)
        finally:
            gc.enable()
        steps[-1].check_inputs()
        self._check_after(tasks, busy)
        return {
            "milliseconds": timed.milliseconds,
            "busy_milliseconds": timed.busy_milliseconds,
            "host_microseconds": timed.host_microseconds,
            "kernels": timed.kernels,
            "timer": self._timer.name,
        }

    def _capture(self, message: dict[str, Any]) -> dict[str, Any]:
        """Capture a workload's calls in a graph; `captured` in the answer says whether that can be done."""
        self._replays = None
        if self._gpu is None:
            return {"captured": False, "reason": "there is no GPU"}
        workload = self._workloads[message["name"]]
        groups = message["groups"] and self._timer.name == ActivityTimer.name
        replays = Replays(self._caller, self._gpu, workload, groups=groups)
        try:
            replays.capture(self._arena, message["seeds"], message["slots"])
        except NotCapturedError as error:
            return {"captured": False, "reason": str(error)[:_TRACE_LENGTH]}
        self._replays = replays
        return {"captured": True, "flushes": replays.flushes}

    def _replay(self, message: dict[str, Any]) -> dict[str, Any]:
        """Replay the graph, on new contents where seeds are given."""
        if self._replays is None:
            raise RuleError("hidden-work", "there is no graph to replay")
        tasks, busy = self._guard.count_tasks(), BusyWatch()
        if message["seeds"]:
            self._replays.refresh(message["seeds"])
        milliseconds = self._replays.replay(message["times"])
        # a graph runs none of the Solution's Python: once for new contents, what it may have replaced is looked at
        self._check_after(tasks, busy, patched=bool(message["seeds"]))
        return {"milliseconds": milliseconds}

    def _check_after(self, tasks: tuple[int, int], busy: BusyWatch, *, patched: bool = True) -> None:
        problem = self._guard.describe_threads(tasks)
        if problem is None and self._gpu is not None:
            problem = busy.describe()
        if problem is not None:
            raise RuleError("threads", problem)
        if patched:
            self._check_patched()
        if self._gpu is not None and self._gpu.persisting_l2_bytes() > 0:
            size = self._gpu.persisting_l2_bytes()
            self._gpu.reset_persisting_l2()
            raise RuleError("l2-policy", f"it set {size} bytes of the L2 aside for data that stays from call to call")

    def _check_patched(self) -> None:
        patched = self._guard.find_patched()
        if patched:
            raise RuleError("patched", f"no longer what they were: {', '.join(patched[:4])}")

    def _loop(self, message: dict[str, Any]) -> dict[str, Any]:
        """Make calls back to back, for the judge's own clock."""
        workload = self._workloads[message["name"]]
        sizes = {"sets": message["sets"], "count": message["count"]}
        self._looper.loop(workload, message["seed"], **sizes, graph=message["graph"])
        return {}

    def _draw(self, message: dict[str, Any]) -> dict[str, Any]:
        """Make many draws of a few rows, for the statistical test."""
        workload = self._workloads[message["name"]]
        return draw_samples(self._caller, workload, self._arena, message, self._definition)

    def _synchronize(self) -> None:
        if self._gpu is not None:
            self._gpu.synchronize()


_LIBS = ("triton", "flashinfer", "sgl_kernel", "tilelang", "tvm_ffi")


class _Step:
    """One call with its inputs and its slot."""

    def __init__(  # a call is made of many parts
        self,
        caller: Caller,
        workload: OpenWorkload,
        arena: torch.Tensor,
        *,
        seed: int,
        slot: int,
        keeps_inputs: bool = False,
    ) -> None:
        self._caller, self._workload, self._seed = caller, workload, seed
        self._slot = workload.layout.view(arena, slot)
        self._outputs: dict[str, torch.Tensor] = {}
        self._inputs: Mapping[str, Any] = {}
        self._state: dict[str, Any] = {}
        self._result: Any = None
        self._keeps_inputs = keeps_inputs

    def before(self) -> None:
        self._outputs = {name: value.clone() for name, value in self._slot.items()}
        self._inputs = self._workload.make(self._seed)
        self._state = self._caller.plan(self._inputs, self._workload.plan.values) if self._caller.has_setup else {}

    def call(self) -> None:
        self._result = self._caller.call(self._inputs, self._outputs, self._state)

    def after(self) -> None:
        # first of all, so that nothing that ends with the call can still change its outputs
        self._caller.deliver(self._result, self._inputs, self._outputs, self._slot)
        self._result = None
        self._outputs = {}
        if not self._keeps_inputs:
            # the next call's inputs may lie at the same addresses, with other contents
            self._inputs, self._state = {}, {}

    def make_once(self) -> None:
        """Make the call, as before any is timed: the first after a halt finds cold caches of the host's."""
        self.before()
        self.call()
        self.after()

    def check_inputs(self) -> None:
        """Compare the inputs with what they were before the call."""
        changed = _find_changed(self._inputs, self._workload.make(self._seed))
        if changed is not None:
            raise RuleError("inputs-changed", f"the call wrote into its input {changed}")


def _find_changed(inputs: Mapping[str, Any], fresh: Mapping[str, Any]) -> str | None:
    """Name the first tensor that differs from what it should be."""
    for name, value in inputs.items():
        if isinstance(value, torch.Tensor) and not _same_bits(value, fresh[name]):
            return name
    return None


def _same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    if second.numel() == 0:
        return True
    if first.shape != second.shape:
        return False
    if 0 in first.stride() and first.stride() == second.stride():
        index = tuple(0 if stride == 0 else slice(None) for stride in first.stride())
        first, second = first[index], second[index]
    return torch.equal(first.contiguous().view(-1).view(torch.uint8), second.contiguous().view(-1).view(torch.uint8))


def _describe(error: BaseException) -> str:
    try:
        text = str(error)
    except BaseException:  # noqa: BLE001  # __str__ of an untrusted class
        text = ""
    return f"{type(error).__name__}: {text}"[:_TRACE_LENGTH]
