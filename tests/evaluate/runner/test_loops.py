from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from fib_tools.evaluate._runner.loops import Looper


class Caller:
    has_setup = False

    def __init__(self) -> None:
        self.seen: list[int] = []

    def call(self, inputs: dict[str, Any], _outputs: Any, _state: Any) -> None:
        self.seen.append(int(inputs["x"]))


def test_another_number_of_sets_is_made_anew() -> None:
    caller = Caller()
    workload: Any = SimpleNamespace(
        make=lambda seed: {"x": torch.tensor(seed)}, plan=SimpleNamespace(values=()), layout=SimpleNamespace(outputs=())
    )
    looper = Looper(caller, None)  # type: ignore[arg-type]
    looper.loop(workload, 1, sets=8, count=8, graph=False)
    looper.loop(workload, 1, sets=2, count=4, graph=False)
    assert caller.seen == [1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 1, 2]
