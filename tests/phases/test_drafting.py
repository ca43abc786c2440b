from __future__ import annotations

from pathlib import Path

from bench_dataset import CPU
from fib_tools.dataset.store import Dataset
from fib_tools.draft.target import Target
from fib_tools.model.evidence import Gpu
from fib_tools.model.solution import Language
from fib_tools.op_types.registry import get_kernel_type
from fib_tools.phases.drafting import find_elsewhere, shorten_name
from measured_solutions import measure


def test_long_names_that_begin_alike_are_told_apart_and_short_ones_stay() -> None:
    assert shorten_name("rmsnorm_h128") == "rmsnorm_h128"
    assert shorten_name("x" * 60) == "x" * 60
    one, other = (shorten_name("x" * 60 + end) for end in ("_decode", "_prefill"))
    assert one != other
    assert len(one) == len(other) == 60
    assert one.startswith("x" * 50)


def test_elsewhere_is_another_gpu_than_the_one_at_hand_and_no_cpu(tmp_path: Path) -> None:
    measure(tmp_path, "ana", 64, 84.0)
    measure(tmp_path, "ben", 64, 40.0, gpu=Gpu(name="NVIDIA B200", uuid="GPU-1", capability=100))
    measure(tmp_path, "cem", 64, 1.0, gpu=CPU)
    target = Target(
        definition=get_kernel_type("gemm").build({"n": 64, "k": 64}),
        language=Language.TRITON,
        hardware="NVIDIA B200",
        bounds={},
        shapes=(),
    )
    dataset = Dataset(tmp_path)
    assert [each.author for each in find_elsewhere(dataset, target)] == ["ana"]
    here = target.model_copy(update={"hardware": "a CPU"})
    assert [each.author for each in find_elsewhere(dataset, here)] == ["ana", "ben"]
