"""Where the time of an evaluation goes: `fib bench`'s own worker in this process, each of its steps timed.

python benchmarks/bench_phases.py --out FOLDER [--device cuda|cpu] [--workloads 8]

Takes the dataset of side_by_side.py. A step's time is the judge's: that of a command includes asking and answering;
`in:` are steps of the runners, by their own clock. Steps hold others (`turn:_time` holds `ask:replay`, and that
`in:replay`), so that only those of one kind add up. Every step, with when it began, is in FOLDER/steps.json.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from side_by_side_dataset import write_dataset  # noqa: E402  # the path must be there first

from fib_tools.dataset.store import Dataset  # noqa: E402
from fib_tools.evaluate.calibration.calibration import find_tolerances  # noqa: E402
from fib_tools.evaluate.engines.crew import PATIENCE_SECONDS  # noqa: E402
from fib_tools.evaluate.engines.engine import Place  # noqa: E402
from fib_tools.evaluate.engines.items import BlobHasher, Bound, Bundle, Options, Plan, find_task, plan_items  # noqa: E402
from fib_tools.evaluate.engines.schedule import Schedule  # noqa: E402
from fib_tools.evaluate.judge import judge  # noqa: E402
from fib_tools.evaluate.judge import runner as runners  # noqa: E402
from fib_tools.evaluate.judge.arena import Arena  # noqa: E402
from fib_tools.evaluate.judge.device import Device  # noqa: E402
from fib_tools.evaluate.judge.outputs import Outputs  # noqa: E402
from fib_tools.evaluate.judge.rounds import Rounds  # noqa: E402
from fib_tools.evaluate.judge.runner import Runner  # noqa: E402
from fib_tools.evaluate.judge.worker import Worker  # noqa: E402
from fib_tools.gate.recognise import find_kernel  # noqa: E402

PLACE = "gpu0"
runners.ENTRY = "bench_phases_runner:serve"
_HEARING = judge._Hearing  # noqa: SLF001  # its steps are what this measures
SPENT: dict[str, list[tuple[float, float]]] = collections.defaultdict(list)
"""Of each step, when it began by the machine's clock, and its seconds."""
SEEN: dict[str, list[tuple[str, str, float, float]]] = collections.defaultdict(list)
"""Of each Definition, what its runners did, who, and from when to when by the machine's clock."""


def watch(owner: Any, name: str, label: Callable[..., str]) -> None:
    """Time every call of a method."""
    method = getattr(owner, name)

    def timed(self: Any, *arguments: Any, **more: Any) -> Any:
        begun = time.perf_counter()
        try:
            return method(self, *arguments, **more)
        finally:
            SPENT[label(self, *arguments)].append((begun, time.perf_counter() - begun))

    setattr(owner, name, timed)


def watch_all() -> None:
    """Time the steps of the judge."""
    watch(
        Runner,
        "ask",
        lambda runner, message, *_: f"ask:{message['do']}:{'reference' if is_reference(runner) else 'solution'}",
    )
    watch(Runner, "time", lambda _runner, message, *_: f"time:{message['do']}")
    for name in ("take", "resume", "finish_build", "finish_first_call"):
        watch(Runner, name, lambda _runner, *_, name=name: f"runner:{name}")
    for name in ("_make_inputs", "_stage", "_hold_out", "_ask_reference"):
        watch(_HEARING, name, lambda hearing, *_, name=name: f"hearing:{name}:{size_of(hearing)}")
    for name in ("_find_fault", "_capture"):
        watch(Rounds, name, lambda rounds, *_, name=name: f"rounds:{name}:{size_of(rounds)}")
    for name in ("compare", "compare_checks", "compare_timed"):
        watch(Outputs, name, lambda *_, name=name: f"outputs:{name}")
    watch(_HEARING, "_turn", lambda hearing, _trial, step: f"turn:{step.__name__}:{size_of(hearing)}")
    watch(_HEARING, "hold", lambda hearing: f"hold:{size_of(hearing)}")
    watch(Arena, "poison", lambda *_: "arena:poison")
    watch_answers()
    watch(Device, "clocks", lambda *_: "device:clocks")


def watch_answers() -> None:
    """Take what the runners say of their own steps."""
    receive = Runner._receive  # noqa: SLF001  # all answers come through it
    begin = Runner.__init__

    def named(self: Any, sandbox: Any, definition: Any, *arguments: Any, **more: Any) -> None:
        self.definition = definition.name
        SEEN[definition.name].append(("fork", "", time.perf_counter(), time.perf_counter()))
        begin(self, sandbox, definition, *arguments, **more)

    def taking(self: Any, *arguments: Any, **more: Any) -> Any:
        answer = receive(self, *arguments, **more)
        for label, begun, seconds in answer.pop("spent", ()):
            SPENT[f"in:{label}"].append((begun, seconds))
            SEEN[self.definition].append((label, self.name, begun, begun + seconds))
        return answer

    Runner._receive = taking  # noqa: SLF001  # type: ignore[method-assign]
    Runner.__init__ = named  # type: ignore[method-assign]


def size_of(hearing: Any) -> str:
    """Tell large workloads from small ones by the bytes of a call's inputs."""
    return "large" if hearing._task.input_bytes > 1 << 24 else "small"  # noqa: SLF001


def is_reference(runner: Runner) -> bool:
    """Tell a reference's runner by its name."""
    return runner.name == "reference"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--workloads", type=int, default=8)
    options = parser.parse_args()
    root = options.out / "dataset"
    shutil.rmtree(root, ignore_errors=True)
    options.out.mkdir(parents=True, exist_ok=True)
    write_dataset(root)
    bundles = list_bundles(Dataset.open(root), options.workloads)
    place = find_place(options.device)
    watch_all()
    begun = time.perf_counter()
    plan = Plan(
        dataset=str(root),
        hardware=place.hardware,
        options=Options.model_validate({"device": options.device}),
        items=plan_items(bundles, hash_blob=BlobHasher(root)),
    )
    worker = Worker(plan, place)
    start = time.perf_counter() - begun
    ends = judge_all(worker, plan, {bundle.definition.name: bundle for bundle in bundles})
    worker.close()
    count = sum(ends.values())
    total = time.perf_counter() - begun
    lines = [f"{place.hardware}: {count} evaluations in {total:.1f} s, start {start:.1f} s, {dict(ends)}", ""]
    lines += describe_steps(count)
    (options.out / "steps.json").write_text(json.dumps({"begun": begun, "steps": SPENT}))
    text = "\n".join([*lines, "", *describe_groups(begun)])
    (options.out / "bench_phases.txt").write_text(text + "\n")
    print(text)
    return 0


def judge_all(worker: Worker, plan: Plan, bundles: dict[str, Bundle]) -> collections.Counter[str]:
    """Give the worker its items in the order, and with the preparations, that an engine gives them."""
    ends: collections.Counter[str] = collections.Counter()
    schedule = Schedule(plan.items)
    while (job := schedule.take(PLACE)) is not None:
        begun = time.perf_counter()
        task = find_task(job.item, bundles[job.item.definition])
        is_ready = worker.is_ready(task, 0.0 if schedule.has_others(PLACE, job.item.group) else PATIENCE_SECONDS)
        SEEN[task.definition.name].append(("waited", "", begun, time.perf_counter()))
        if not is_ready:
            schedule.defer(PLACE, job)
            continue
        following = schedule.find_next(PLACE)
        if following is not None:
            worker.prepare(find_task(following.item, bundles[following.item.definition]))
        begun = time.perf_counter()
        ends.update(evidence.status.value for evidence in worker.evaluate(task) if evidence is not None)
        SEEN[task.definition.name].append(("judged", "", begun, time.perf_counter()))
    return ends


def describe_steps(count: int) -> Iterator[str]:
    """Sum up the times of each step, the costliest first."""
    yield f"{'step':28}{'times':>8}{'s':>9}{'ms each':>10}{'median':>9}{'longest':>9}{'ms an evaluation':>18}"
    sums = {label: sum(seconds for _, seconds in spent) for label, spent in SPENT.items()}
    for label, whole in sorted(sums.items(), key=lambda pair: -pair[1]):
        each = [1e3 * seconds for _, seconds in SPENT[label]]
        yield (
            f"{label:28}{len(each):>8}{whole:>9.2f}{statistics.mean(each):>10.2f}{statistics.median(each):>9.2f}"
            f"{max(each):>9.2f}{1e3 * whole / count:>18.2f}"
        )


def describe_groups(start: float) -> Iterator[str]:
    """Say of each group when its processes were forked, had a device, had built and made their first calls; seconds."""
    yield "seconds from the start: forked; the first and the last to have a device, to have built, to have made first calls"
    yield f"{'group':34}{'forked':>8}{'device':>16}{'built':>16}{'warm':>16}{'waited':>8}{'judged':>16}{'of that':>8}"
    order = sorted(SEEN.items(), key=lambda pair: min(each[3] for each in pair[1] if each[0] == "judged"))
    for name, steps in order:
        ends = {
            label: [end - start for what, _, _, end in steps if what == label]
            for label in ("fork", "Gpu.__init__", "build", "warm", "judged")
        }
        spans = (f"{min(each, default=0):.1f} to {max(each, default=0):.1f}" for each in list(ends.values())[1:4])
        forked, *more = f"{min(ends['fork']):.1f}", *spans
        first = min(begun for what, _, begun, _ in steps if what == "judged") - start
        judged = sum(end - begun for what, _, begun, end in steps if what == "judged")
        waited = sum(end - begun for what, _, begun, end in steps if what == "waited")
        span = f"{first:.1f} to {max(ends['judged']):.1f}"
        yield f"{name[:33]:34}{forked:>8}{more[0]:>16}{more[1]:>16}{more[2]:>16}{waited:>8.1f}{span:>16}{judged:>8.1f}"


def list_bundles(dataset: Dataset, workloads: int) -> list[Bundle]:
    """Load every Definition with its Solutions and first Workloads."""
    bundles = []
    for name, definition in sorted(dataset.load_definitions()[0].items()):
        bounds = find_tolerances(definition, find_kernel(definition), None)
        bundles.append(
            Bundle(
                definition=definition,
                bounds={output: Bound.of(bound) for output, bound in bounds.items()},
                workloads=tuple(dataset.load_workloads(definition.op_type, name)[:workloads]),
                solutions=tuple(dataset.load_solutions(definition.op_type, name)),
            )
        )
    return bundles


def find_place(device: str) -> Place:
    """Name the device of this process."""
    if device == "cpu":
        from fib_tools.host.cpu import read_cpu_name

        return Place(name="cpu", device="cpu", hardware=read_cpu_name())
    from fib_tools.host.env import read_gpu_settings
    from fib_tools.host.gpus import discover_gpus

    gpu = discover_gpus(read_gpu_settings()).visible[0]
    os.environ["CUDA_VISIBLE_DEVICES"] = gpu.uuid
    return Place(name="gpu0", device="cuda:0", hardware=gpu.name, uuid=gpu.uuid, capability=gpu.capability)


if __name__ == "__main__":
    sys.exit(main())
