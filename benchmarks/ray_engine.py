"""The engines without GPUs: what a task costs beside its work, and what a node that dies in the middle costs.

python benchmarks/ray_engine.py [--tasks 600] [--work 0.1]

Two pretended nodes with two pretended GPUs each, on this machine. The workers pretend as well: a task is a sleep, or nothing.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))


def make_world(root: Path, what: str, tasks: int) -> Any:
    from engine_worlds import World

    root.mkdir()
    return World.make(root, {f"d{at}": [what] for at in range(4)}, workloads=tasks // 4)


def add_node(cluster: Any, folder: Path, name: str) -> Any:
    variables = {"FIB_PRETEND_GPUS": "2", "FIB_GPU_LOCK_DIR": str(folder / name)}
    return cluster.add_node(num_cpus=1, num_gpus=2, env_vars=variables)


def run(engine: Any, world: Any, workers: int, *, kill: Any = None) -> dict[str, float]:
    """Evaluate everything, and check that all is finished once; call `kill` when half is done.

    The clock runs from the outcome at which every worker has been seen: what is measured is the engine, not Python's start.
    """
    plan = world.plan(engine.hardware)
    keys: list[str] = []
    places: set[str] = set()
    began = before = time.perf_counter()
    first = pause = killing = 0.0
    for outcome in engine.run(plan, plan.items):
        now = time.perf_counter()
        if outcome.evidence is None:
            raise RuntimeError(outcome.failure)
        keys.append(outcome.key)
        if len(places) == workers:
            pause = max(pause, now - before)
        elif len(places | {outcome.place}) == workers:
            began, first = now, len(keys)
        places.add(outcome.place)
        before = now
        if kill and len(keys) == plan.evaluations // 2:
            kill()
            killing = time.perf_counter() - now
    if len(places) < workers:
        raise RuntimeError("not every worker was seen: ask for more --tasks")
    count = Counter(keys)
    lost, twice = len(set(plan.keys) - set(count)), sum(number > 1 for number in count.values())
    after = {"tasks": len(keys) - first, "seconds": time.perf_counter() - began, "killing": killing}
    return {"workers": workers, "lost": lost, "twice": twice, "pause": pause, **after}


def show(name: str, work: float, seen: dict[str, float]) -> str:
    """Write a row of the table."""
    ideal = work * seen["tasks"] / seen["workers"]
    overhead = "" if seen["killing"] else f"{(seen['seconds'] - ideal) * seen['workers'] / seen['tasks'] * 1000:.2f}"
    counts = f"{seen['tasks']:.0f} | {work * 1000:g} | {seen['seconds']:.2f} | {overhead}"
    return f"| {name} | {counts} | {seen['pause'] * 1000:.0f} | {seen['lost']:.0f} | {seen['twice']:.0f} |"


def measure_local(root: Path, tasks: int, work: float) -> list[str]:
    from engine_worlds import PRETEND_WORKERS
    from fib_tools.evaluate.engines.engine_local import LocalEngine, WorkerSetup

    setup = WorkerSetup(entry="pretend_worker:Worker", import_paths=(PRETEND_WORKERS,))
    rows = []
    os.environ["FIB_PRETEND_GPUS"] = "4"
    for workers, seconds in ((1, 0.0), (1, work), (4, work)):
        world = make_world(root / f"local{workers}-{seconds}", f"sleep {seconds}" if seconds else "fine", tasks)
        with LocalEngine(world.load, gpus=workers, setup=setup) as engine:
            rows.append(show(f"local, GPUs: {workers}", seconds, run(engine, world, workers)))
    del os.environ["FIB_PRETEND_GPUS"]
    return rows


def measure_ray(root: Path, tasks: int, work: float) -> list[str]:
    import ray
    from ray.cluster_utils import Cluster as Pretended

    from engine_worlds import PRETEND_WORKERS
    from fib_tools.evaluate.engines.engine_local import WorkerSetup
    from fib_tools.evaluate.engines.engine_ray import Cluster, RayEngine

    setup = WorkerSetup(entry="pretend_worker:Worker", import_paths=(PRETEND_WORKERS,))
    head = {"num_cpus": 1, "num_gpus": 0, "include_dashboard": False}
    pretended = Pretended(initialize_head=True, head_node_args=head)
    nodes = [add_node(pretended, root, name) for name in ("locks-one", "locks-two")]
    ray.init(address=pretended.address, log_to_driver=False, logging_level="ERROR")
    rows = []
    try:
        for workers, seconds in ((1, 0.0), (1, work), (4, work)):
            world = make_world(root / f"ray{workers}-{seconds}", f"sleep {seconds}" if seconds else "fine", tasks)
            with RayEngine(world.load, cluster=Cluster(gpus=workers), setup=setup) as engine:
                rows.append(show(f"ray, GPUs: {workers}", seconds, run(engine, world, workers)))
        world = make_world(root / "ray-killed", f"sleep {work}", tasks)
        with RayEngine(world.load, setup=setup) as engine:
            seen = run(engine, world, 4, kill=lambda: pretended.remove_node(nodes[1], allow_graceful=False))
            rows.append(show("ray, GPUs: 4, one of two nodes killed half-way", work, seen))
    finally:
        ray.shutdown()
        pretended.shutdown()
    return rows


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tasks", type=int, default=600)
    parser.add_argument("--work", type=float, default=0.1, help="seconds of a task that sleeps")
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="fib-ray-"))
    for name in ("CUDA_VISIBLE_DEVICES", "FIB_GPU_LEASE"):
        os.environ.pop(name, None)
    os.environ["FIB_GPU_LOCK_DIR"] = str(root / "locks-local")
    warnings.simplefilter("ignore")
    rows = measure_local(root, options.tasks, options.work) + measure_ray(root, options.tasks, options.work)
    print(f"{os.cpu_count()} cores, Python {platform.python_version()}, ray {version('ray')}\n")
    print("| engine | tasks | work ms | s | overhead ms/task/GPU | longest pause ms | lost | twice |")
    print("|---|---|---|---|---|---|---|---|")
    print("\n".join(rows))
    shutil.rmtree(root)
    return 0


if __name__ == "__main__":
    sys.exit(main())
