from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine_worlds import PRETEND_WORKERS, World, summary
from fib_tools.errors import ChildCrashedError, RequestError
from fib_tools.evaluate.engines.engine import Outcome
from fib_tools.evaluate.engines.engine_local import LocalEngine, WorkerSetup
from fib_tools.host.cpu import read_cpu_name
from fib_tools.host.process_tree import describe_process, list_processes
from fib_tools.model.workload import SafetensorsInput


@pytest.fixture(autouse=True)
def gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Pretend two GPUs, with locks of their own."""
    for name in ("CUDA_VISIBLE_DEVICES", "FIB_GPU_LEASE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FIB_PRETEND_GPUS", "2")
    monkeypatch.setenv("FIB_GPU_LOCK_DIR", str(tmp_path / "locks"))


def setup(kind: str = "Worker") -> WorkerSetup:
    return WorkerSetup(entry=f"pretend_worker:{kind}", import_paths=(PRETEND_WORKERS,))


def run(world: World, *, gpus: int = 0, kind: str = "Worker", **limits: float) -> list[Outcome]:
    with LocalEngine(world.load, gpus=gpus, setup=setup(kind)) as engine:
        plan = world.plan(engine.hardware, **limits)
        return list(engine.run(plan, plan.items))


def leftovers(mark: Path) -> list[str]:
    """Find processes whose command names the folder."""
    found = (describe_process(pid, parent).command for pid, parent in list_processes().items())
    return [command for command in found if str(mark) in command]


def test_every_solution_is_evaluated_on_every_workload_once(tmp_path: Path) -> None:
    world = World.make(tmp_path, {"a": ["fine", "fine too"], "b": ["fine"]}, workloads=3)
    outcomes = run(world)
    expected = [(f"{name}_s{at}", f"w{n}", "PASSED") for name, at in (("a", 0), ("a", 1), ("b", 0)) for n in range(3)]
    assert summary(outcomes) == sorted(expected)
    assert {each.key for each in outcomes} == set(world.plan(read_cpu_name()).keys)
    assert world.log[-1].endswith("close")


def test_each_gpu_has_a_worker_of_its_own_and_they_open_different_definitions(tmp_path: Path) -> None:
    world = World.make(tmp_path, {"a": ["meet"], "b": ["meet"]}, workloads=4)
    outcomes = run(world, gpus=2)
    assert len(outcomes) == 8
    first = {each.item.definition: each.place for each in outcomes if each.item.workload == "w0"}
    assert set(first.values()) == {"gpu0", "gpu1"}
    assert {each.evidence.gpu.uuid for each in outcomes if each.evidence} == {"GPU-pretend-0", "GPU-pretend-1"}


def test_others_are_evaluated_while_a_definition_compiles(tmp_path: Path) -> None:
    world = World.make(tmp_path, {"slow": ["compile", "fine"], "quick": ["fine"], "other": ["compile"]}, workloads=3)
    outcomes = run(world)
    assert summary(outcomes) == sorted(
        (f"{name}_s{at}", f"w{number}", "PASSED")
        for name, at in (("slow", 0), ("slow", 1), ("quick", 0), ("other", 0))
        for number in range(3)
    )
    assert [each.item.definition for each in outcomes[:3]] == 3 * ["quick"]
    slow = [each.item.workload for each in outcomes if each.item.definition == "slow"]
    assert slow == sorted(slow), "what came back has its place again"
    assert sum(line.endswith("compile slow") for line in world.log) >= 2, "it is tried again after each group"


def test_a_worker_that_dies_is_replaced_and_its_item_is_tried_again(tmp_path: Path) -> None:
    world = World.make(tmp_path, {"a": ["die once", "fine"]}, workloads=1)
    outcomes = run(world)
    assert summary(outcomes) == [("a_s0", "w0", "PASSED"), ("a_s1", "w0", "PASSED")]
    assert {each.attempts for each in outcomes} == {2}


def test_a_solution_that_kills_the_worker_twice_fails_alone_with_the_workers_last_words(tmp_path: Path) -> None:
    world = World.make(tmp_path, {"a": ["fine", "die", "fine too"]}, workloads=1)
    outcomes = run(world)
    assert summary(outcomes) == [("a_s0", "w0", "PASSED"), ("a_s1", "w0", "failed"), ("a_s2", "w0", "PASSED")]
    failure = next(each for each in outcomes if not each.evidence)
    assert "ended with status 3" in failure.failure
    assert "last words" in failure.failure
    assert failure.item == world.items[0]


def test_a_worker_that_says_nothing_for_too_long_is_ended_with_all_its_children(tmp_path: Path) -> None:
    world = World.make(tmp_path, {"a": ["hang", "fine"]}, workloads=1)
    outcomes = run(world, silence_seconds=1.0)
    assert summary(outcomes) == [("a_s0", "w0", "failed"), ("a_s1", "w0", "PASSED")]
    assert "said nothing" in next(each.failure for each in outcomes if each.failure)
    assert leftovers(tmp_path) == []


def test_an_item_that_the_worker_refuses_fails_at_once_with_the_reason_and_the_worker_goes_on(tmp_path: Path) -> None:
    world = World.make(tmp_path, {"a": ["refuse"], "b": ["fine"]}, workloads=1)
    outcomes = run(world)
    assert summary(outcomes) == [("a_s0", "w0", "failed"), ("b_s0", "w0", "PASSED")]
    assert next(each.failure for each in outcomes if each.failure) == "no such blob (in blob/x)"
    assert sum(line.endswith("start") for line in world.log) == 1


def test_an_item_whose_blob_is_not_there_fails_and_says_where_it_was_looked_for(tmp_path: Path) -> None:
    world = World.make(tmp_path, {"a": ["fine"]}, workloads=1)
    spec = SafetensorsInput(path="./blob/x.safetensors", tensor_key="x")
    (standing,) = world.bundles["a"].workloads
    with_blob = standing.model_copy(update={"inputs": {"x": spec}})
    world.bundles["a"] = world.bundles["a"].model_copy(update={"workloads": (with_blob,)})
    (outcome,) = run(world)
    assert outcome.evidence is None
    assert f"the blob ./blob/x.safetensors is not below {tmp_path}" in outcome.failure


def test_evidence_on_something_else_than_was_asked_for_is_refused(tmp_path: Path) -> None:
    outcomes = run(World.make(tmp_path, {"a": ["fine"]}, workloads=1), kind="Liar")
    assert summary(outcomes) == [("a_s0", "w0", "failed")]
    assert "which was not asked for" in outcomes[0].failure


def test_a_solution_that_the_worker_leaves_out_has_failed(tmp_path: Path) -> None:
    outcomes = run(World.make(tmp_path, {"a": ["fine", "fine too"]}, workloads=1), kind="Forgetful")
    assert summary(outcomes) == [("a_s0", "w0", "PASSED"), ("a_s1", "w0", "failed")]


def test_a_worker_that_cannot_start_ends_the_run_with_its_reason(tmp_path: Path) -> None:
    world = World.make(tmp_path, {"a": ["fine"]}, workloads=1)
    (tmp_path / "no-start").touch()
    with pytest.raises(ChildCrashedError, match="this worker cannot start"):
        run(world, gpus=2)


def test_a_class_that_does_not_exist_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(ChildCrashedError, match="no attribute 'Nobody'"):
        run(World.make(tmp_path, {"a": ["fine"]}), kind="Nobody")


def test_closing_the_iterator_leaves_no_worker_and_no_lock(tmp_path: Path) -> None:
    world = World.make(tmp_path, {"a": ["fine", "hang"]}, workloads=1)
    with LocalEngine(world.load, gpus=2, setup=setup()) as engine:
        outcomes: Iterator[Outcome] = engine.run(world.plan(engine.hardware), world.items)
        assert next(outcomes).solution.name == "a_s0"
        outcomes.close()  # type: ignore[attr-defined]
    assert leftovers(tmp_path) == []
    with LocalEngine(world.load, gpus=2, setup=setup(), patience=0.0):
        pass


def test_an_engine_runs_one_plan_after_the_other(tmp_path: Path) -> None:
    world = World.make(tmp_path, {"a": ["fine"]}, workloads=1)
    with LocalEngine(world.load, gpus=0, setup=setup()) as engine:
        plan = world.plan(engine.hardware)
        assert list(engine.run(plan, ())) == []
        assert summary(list(engine.run(plan, plan.items))) == summary(list(engine.run(plan, plan.items)))


def test_gpus_that_are_not_there_are_a_bad_request(tmp_path: Path) -> None:
    world = World.make(tmp_path, {"a": ["fine"]})
    with pytest.raises(RequestError, match="3 GPUs were asked for"), LocalEngine(world.load, gpus=3, setup=setup()):
        pass


def test_without_gpus_the_cpu_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    world = World.make(tmp_path, {"a": ["fine"]})
    with pytest.raises(RequestError) as refused, LocalEngine(world.load, gpus=1, setup=setup()):
        pass
    assert refused.value.todo == "pass --device cpu, or use a machine that has one"


def test_a_worker_dies_with_an_engine_that_is_killed(tmp_path: Path) -> None:
    script = (
        "import sys; sys.path[:0] = sys.argv[1:3]\n"
        "from pathlib import Path\n"
        "from engine_worlds import World\n"
        "from test_engine_local import run\n"
        "from fib_tools.evaluate.engines.engine_local import LocalEngine\n"
        "from test_engine_local import setup\n"
        "world = World.make(Path(sys.argv[3]), {'a': ['fine', 'sleep 600']}, workloads=1)\n"
        "with LocalEngine(world.load, gpus=0, setup=setup()) as engine:\n"
        "    for outcome in engine.run(world.plan(engine.hardware), world.items):\n"
        "        print(outcome.solution.name, flush=True)\n"
    )
    paths = [str(PRETEND_WORKERS.parent), str(Path(__file__).parent), str(tmp_path)]
    with subprocess.Popen([sys.executable, "-c", script, *paths], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "a_s0\n"
        worker = int(World(root=tmp_path, bundles={}).log[0].split()[1])
        death = os.pidfd_open(worker)
        process.send_signal(signal.SIGKILL)
    import select

    assert select.select([death], [], [], 10)[0] == [death]
    os.close(death)
