"""Small plans for engines: definitions without meaning, whose Solutions say what the pretended worker is to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fib_tools.evaluate.engines.engine import Outcome
from fib_tools.evaluate.engines.items import BlobHasher, Bundle, Item, Limits, Options, Plan, plan_items
from fib_tools.model.definition import Definition
from fib_tools.model.solution import Solution
from fib_tools.model.workload import Workload

__all__ = ["PRETEND_WORKERS", "World", "summary"]

PRETEND_WORKERS = Path(__file__).parent / "evaluate"


def definition(name: str) -> Definition:
    return Definition.model_validate(
        {
            "name": name,
            "op_type": "copy",
            "axes": {"n": {"type": "var"}},
            "inputs": {"x": {"shape": ["n"], "dtype": "float32"}},
            "outputs": {"y": {"shape": ["n"], "dtype": "float32"}},
            "reference": f"def run(x):\n    return x  # {name}\n",
        }
    )


def solution(name: str, of: str, source: str, *, author: str = "someone") -> Solution:
    document: dict[str, Any] = {
        "name": name,
        "definition": of,
        "author": author,
        "spec": {"language": "python", "target_hardware": ["cpu"], "entry_point": "main.py::run"},
        "sources": [{"path": "main.py", "content": source}],
    }
    return Solution.model_validate(document)


def workload(number: int) -> Workload:
    return Workload.model_validate(
        {"axes": {"n": number + 1}, "inputs": {"x": {"type": "random"}}, "uuid": f"w{number}"}
    )


@dataclass(frozen=True, kw_only=True)
class World:
    """Some definitions with Workloads and Solutions."""

    root: Path
    bundles: dict[str, Bundle]

    @classmethod
    def make(cls, root: Path, sources: Mapping[str, Sequence[str]], *, workloads: int = 2) -> World:
        """Make a definition for each name, with a Solution for each source."""
        bundles = {
            name: Bundle(
                definition=definition(name),
                workloads=tuple(workload(number) for number in range(workloads)),
                solutions=tuple(solution(f"{name}_s{at}", name, text) for at, text in enumerate(texts)),
            )
            for name, texts in sources.items()
        }
        return cls(root=root, bundles=bundles)

    def plan(self, hardware: str, **limits: float) -> Plan:
        return Plan(
            dataset=str(self.root),
            hardware=hardware,
            options=Options(device="cpu", limits=Limits(**limits)),
            items=self.items,
        )

    @property
    def items(self) -> tuple[Item, ...]:
        return plan_items(self.bundles.values(), hash_blob=BlobHasher(self.root))

    def load(self, name: str) -> Bundle:
        return self.bundles[name]

    @property
    def log(self) -> list[str]:
        """What the pretended workers did: `place pid what`."""
        path = self.root / "log.txt"
        return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def summary(outcomes: Sequence[Outcome]) -> list[tuple[str, str, str]]:
    """Say of each evaluation what came of it, in order of names."""
    return sorted(
        (each.solution.name, each.item.workload, each.evidence.status.value if each.evidence else "failed")
        for each in outcomes
    )
