"""Solutions of a small GEMM in a dataset, with what each came to, as `fib bench` leaves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench_dataset import Case, make_evidence
from fib_tools.dataset.store import Dataset
from fib_tools.evaluate.engines import traces
from fib_tools.evaluate.engines.items import hash_solution
from fib_tools.model.canonical import format_line
from fib_tools.model.solution import BuildSpec, Language, Solution, SourceFile

GEMM = "gemm_n64_k64"


def make_solution(author: str, name: str, content: str = "def run(a, b): return a @ b.T") -> Solution:
    return Solution(
        name=name,
        definition=GEMM,
        author=author,
        spec=BuildSpec(language=Language.PYTHON, target_hardware=["sm90"], entry_point="main.py::run"),
        sources=[SourceFile(path="main.py", content=content)],
    )


def measure(root: Path, author: str, m: int, percent: float, **more: Any) -> None:
    """Put a Solution into the dataset with what it came to on one Workload, as `fib bench` does."""
    case = Case(definition=GEMM, op_type="gemm", author=author, solution="fast", axes={"M": m}, percent=percent, **more)
    solution = make_solution(author, "fast")
    dataset = Dataset(root)
    dataset.write_solution("gemm", solution)
    evidence = make_evidence(case)
    subject = evidence.subject.model_copy(update={"solution_hash": hash_solution(solution)})
    evidence = evidence.model_copy(update={"subject": subject})
    dataset.write_evidence(evidence)
    folder = root / "traces" / author / "gemm"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{GEMM}.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(f"{format_line(traces.make_trace(evidence, case.workload))}\n")
