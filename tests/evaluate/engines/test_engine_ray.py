from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine_worlds import PRETEND_WORKERS, World, summary
from fib_tools.errors import ChildCrashedError, RequestError
from fib_tools.evaluate.engines.engine_local import LocalEngine, WorkerSetup
from fib_tools.evaluate.engines.engine_ray import Cluster, RayEngine

pytest.importorskip("ray", reason="Ray is an extra: pip install 'fib-tools[cluster]'")
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
SETUP = WorkerSetup(entry="pretend_worker:Worker", import_paths=(PRETEND_WORKERS,))


def add_node(cluster: Any, name: str, *, gpus: int = 1, model: str = "H200") -> Any:
    """Add a node with pretended GPUs and locks of its own."""
    variables = {"FIB_PRETEND_GPUS": str(gpus), "FIB_GPU_LOCK_DIR": str(cluster.folder / name)}
    resources = {f"accelerator_type:{model}": 1}
    return cluster.add_node(num_cpus=2, num_gpus=gpus, resources=resources, env_vars=variables)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Start a head without GPUs, and two nodes with one each."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ray
        from ray.cluster_utils import Cluster as Pretended

        head = {"num_cpus": 1, "num_gpus": 0, "include_dashboard": False}
        pretended = Pretended(initialize_head=True, head_node_args=head)
        pretended.folder = tmp_path_factory.mktemp("locks")
        pretended.last = [add_node(pretended, name) for name in ("one", "two")][-1]
        ray.init(address=pretended.address, log_to_driver=False, logging_level="ERROR")
        try:
            yield pretended
        finally:
            ray.shutdown()
            pretended.shutdown()


@pytest.mark.usefixtures("cluster")
def test_a_cluster_gives_the_same_results_as_one_machine(tmp_path: Path) -> None:
    sources = {"a": ["fine", "sleep 0.05"], "b": ["sleep 0.05"], "c": ["die"]}
    world = World.make(tmp_path, sources, workloads=3)
    with RayEngine(world.load, setup=SETUP) as engine:
        plan = world.plan(engine.hardware)
        outcomes = list(engine.run(plan, plan.items))
    with LocalEngine(world.load, gpus=0, setup=SETUP) as local:
        other = world.plan(local.hardware)
        assert summary(outcomes) == summary(list(local.run(other, other.items)))


@pytest.mark.usefixtures("cluster")
def test_a_worker_that_cannot_start_ends_the_run_with_its_reason(tmp_path: Path) -> None:
    world = World.make(tmp_path, {"a": ["fine"]}, workloads=1)
    (tmp_path / "no-start").touch()
    with (
        RayEngine(world.load, setup=SETUP) as engine,
        pytest.raises(ChildCrashedError, match="this worker cannot start"),
    ):
        list(engine.run(world.plan(engine.hardware), world.items))


def test_when_a_node_is_killed_everything_is_finished_once_on_the_other(cluster: Any, tmp_path: Path) -> None:
    world = World.make(tmp_path, {"a": ["meet", "sleep 0.1"], "b": ["meet", "sleep 0.1"]}, workloads=20)
    with RayEngine(world.load, setup=SETUP) as engine:
        plan = world.plan(engine.hardware)
        running = engine.run(plan, plan.items)
        outcomes = [next(running)]
        while len({each.place for each in outcomes}) < 2:
            outcomes.append(next(running))
        cluster.remove_node(cluster.last, allow_graceful=False)
        outcomes += running
    assert sorted(each.key for each in outcomes) == sorted(plan.keys)
    assert all(each.evidence for each in outcomes)


def test_gpus_of_another_model_are_not_used(cluster: Any, tmp_path: Path) -> None:
    world = World.make(tmp_path, {"a": ["fine"]})
    chosen = Cluster(accelerator="B200")
    with pytest.raises(RequestError, match="the cluster has 0"), RayEngine(world.load, cluster=chosen, setup=SETUP):
        pass
    add_node(cluster, "three", model="B200")
    cluster.wait_for_nodes()
    with RayEngine(world.load, cluster=chosen, setup=SETUP) as engine:
        assert len(engine.places) == 1
