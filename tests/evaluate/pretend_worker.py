"""A worker that pretends: what a Solution's source says, it does. `engine_worlds.py` makes plans for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from fib_tools.errors import FormatError
from fib_tools.evaluate.engines.engine import Place
from fib_tools.evaluate.engines.items import Plan, Task
from fib_tools.model.evidence import L2, Evidence, Gpu, Series, Timer
from fib_tools.model.solution import Solution
from fib_tools.model.trace import EvaluationStatus


class Worker:
    def __init__(self, plan: Plan, place: Place) -> None:
        self.plan = plan
        self.place = place
        assert not plan.items
        if (Path(plan.dataset) / "no-start").exists():
            raise OSError("this worker cannot start")
        self._log("start")

    def prepare(self, task: Task) -> None:
        self._log(f"prepare {task.definition.name}")

    def forget(self, definition: str) -> None:
        """It keeps nothing."""

    def is_ready(self, task: Task, seconds: float) -> bool:
        """Have Solutions that `compile` compile until they are waited for."""
        compiles = any(solution.sources[0].content.strip() == "compile" for solution in task.solutions)
        if compiles and not seconds:
            self._log(f"compile {task.definition.name}")
        return bool(seconds) or not compiles

    def evaluate(self, task: Task) -> Iterator[Evidence | None]:
        yield None
        for solution in task.solutions:
            self._log(f"{task.definition.name} {task.workload.uuid} {solution.name}")
            self._act(solution.sources[0].content.strip(), task)
            yield self._result(task, solution)

    def _act(self, what: str, task: Task) -> None:
        marker = Path(self.plan.dataset) / f"done-{task.definition.name}-{task.workload.uuid}"
        if what == "die once" and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "die":
            sys.stderr.write("last words\n")
            sys.stderr.flush()
            os._exit(3)
        if what == "refuse":
            raise FormatError("no such blob", where="blob/x")
        if what == "hang":
            subprocess.Popen([sys.executable, "-c", f"import time; time.sleep(600)  # {self.plan.dataset}"])
            time.sleep(600)
        if what == "meet":
            self._meet()
        if what.startswith("sleep"):
            time.sleep(float(what.split()[1]))

    def _meet(self) -> None:
        """Wait until another worker has come as far."""
        root = Path(self.plan.dataset)
        (root / f"met-{os.getpid()}").touch()
        until = time.monotonic() + 60
        while len(list(root.glob("met-*"))) < 2:
            if time.monotonic() > until:
                raise TimeoutError("no other worker came")
            time.sleep(0.01)

    def _result(self, task: Task, solution: Solution) -> Evidence:
        ref = next(ref for ref in task.item.solutions if ref.hash == solution.hash)
        samples = [float(task.workload.axes["n"])] * 3
        figure = Series(
            timer=Timer.HOST, l2=L2.WARM, milliseconds=samples[0], low=samples[0], high=samples[0], samples=samples
        )
        return Evidence(
            subject=task.item.subject(ref, self.plan.hardware),
            status=EvaluationStatus.PASSED,
            axes=task.workload.axes,
            op_type=task.definition.op_type,
            series=[figure],
            reference_ms=2 * samples[0],
            gpu=Gpu(name=self.plan.hardware, uuid=self.place.uuid),
            timestamp="2026-11-21T00:00:00+00:00",
        )

    def close(self) -> None:
        self._log("close")

    def _log(self, what: str) -> None:
        with (Path(self.plan.dataset) / "log.txt").open("a", encoding="utf-8") as stream:
            stream.write(f"{self.place.name} {os.getpid()} {what}\n")


class Liar(Worker):
    """Answers for another device."""

    def _result(self, task: Task, solution: Solution) -> Evidence:
        honest = super()._result(task, solution)
        return honest.model_copy(update={"subject": honest.subject.model_copy(update={"device": "another"})})


class Forgetful(Worker):
    """Leaves out every Solution but the first."""

    def forget(self, definition: str) -> None:
        """It keeps nothing."""

    def evaluate(self, task: Task) -> Iterator[Evidence | None]:
        yield self._result(task, task.solutions[0])
