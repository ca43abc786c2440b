"""A dataset of Traces with Evidence, as `fib bench` leaves it, and lines of another tool; made from a few numbers."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fib_tools.dataset.store import Dataset
from fib_tools.evaluate.engines import traces
from fib_tools.evaluate.judge.statistics import summarise
from fib_tools.model.base import to_document
from fib_tools.model.canonical import content_hash, format_line
from fib_tools.model.evidence import (
    L2,
    Build,
    Clocks,
    Evidence,
    Gpu,
    OutputErrors,
    Roofline,
    Series,
    Subject,
    Timer,
)
from fib_tools.model.trace import EvaluationStatus
from fib_tools.model.workload import RandomInput, Workload

H200 = Gpu(name="NVIDIA H200", uuid="GPU-5a0c", driver="570.1", capability=90)
CPU = Gpu(name="Epyc 9654")
BANDWIDTH, FLOPS = 4.1e12, 7.9e14
PASSED = EvaluationStatus.PASSED


@dataclass(frozen=True, kw_only=True)
class Case:
    """One Solution on one Workload."""

    definition: str
    op_type: str
    author: str
    solution: str
    axes: dict[str, int]
    percent: float = 50.0
    """Of the limit; with the work it gives the time."""
    bytes: int = 1 << 20
    flops: int = 0
    status: EvaluationStatus = PASSED
    rule: str | None = None
    detail: str = ""
    gpu: Gpu = H200
    timestamp: str = "2026-11-21T12:00:00Z"
    noise: float = 0.004
    samples: int = 60
    overhead_ms: float = 0.0016
    timer: Timer = Timer.CUPTI

    @property
    def uuid(self) -> str:
        return content_hash({"definition": self.definition, "axes": self.axes})[:16]

    @property
    def workload(self) -> Workload:
        return Workload(axes=self.axes, inputs={"x": RandomInput()}, uuid=self.uuid)

    @property
    def limit_ms(self) -> float:
        return max(self.bytes / BANDWIDTH, self.flops / FLOPS) * 1e3


def make_evidence(case: Case, seed: int = 0) -> Evidence:
    lots = random.Random(f"{case}{seed}")  # noqa: S311
    figure = case.limit_ms * 100 / case.percent + case.overhead_ms
    series = []
    if case.status is PASSED:
        for l2, factor in ((L2.COLD, 1.0), (L2.WARM, 0.8)):
            samples = [max(0.0, lots.gauss(figure * factor, figure * case.noise)) for _ in range(case.samples)]
            summary = summarise(samples)
            series.append(
                Series(
                    timer=case.timer,
                    l2=l2,
                    milliseconds=summary.milliseconds,
                    low=summary.low,
                    high=summary.high,
                    samples=samples,
                )
            )
    hashes = {
        f"{name}_hash": content_hash([name, value])
        for name, value in (
            ("definition", case.definition),
            ("workload", case.uuid),
            ("solution", [case.author, case.solution]),
        )
    }
    roofline = Roofline(
        bytes=case.bytes,
        flops=case.flops,
        unit="bf16" if case.flops else "",
        bandwidth=BANDWIDTH,
        flops_per_second=FLOPS if case.flops else 0.0,
        limit_ms=case.limit_ms,
        percent=100 * case.limit_ms / series[0].milliseconds if series else 0.0,
        bound="compute" if case.flops / FLOPS > case.bytes / BANDWIDTH else "memory",
    )
    return Evidence(
        subject=Subject(
            definition=case.definition,
            workload=case.uuid,
            solution=case.solution,
            author=case.author,
            device=case.gpu.name,
            **hashes,
        ),
        status=case.status,
        rule=case.rule,
        detail=case.detail,
        axes=case.axes,
        op_type=case.op_type,
        seed=(1 << 60) + 12345,
        calls=80,
        distributions=["normal", "outliers", "held-out shape"],
        errors={
            "output": OutputErrors(
                max_absolute=0.0078, max_relative=0.004, rms=1.0, values=1 << 20, rtol=0.016, atol=0.01
            )
        },
        series=series,
        reference_ms=figure * 7.5,
        roofline=roofline if series else None,
        kernels=["void kernel<__nv_bfloat16, 8>(Params)", "memset"],
        gpu=case.gpu,
        clocks=Clocks(sm_before=1980, sm_after=1965, memory_before=3201, memory_after=3201, watts_after=412.5),
        libs={"torch": "2.13", "triton": "3.6", "cuda": "13.0"},
        protections={"landlock": True, "seccomp": True, "network": True, "fresh inputs": True},
        build=Build(seconds=1.4, first_call_seconds=0.8),
        timestamp=case.timestamp,
        seconds=0.31,
    )


def make_trace(case: Case) -> dict[str, Any]:
    """Write a line as flashinfer-bench does, which knows nothing of evidence."""
    performance = {"latency_ms": case.limit_ms * 100 / case.percent + case.overhead_ms}
    performance |= {"reference_latency_ms": performance["latency_ms"] * 7.5, "speedup_factor": 7.5}
    measured = case.status in {PASSED, EvaluationStatus.INCORRECT_NUMERICAL}
    errors = {"max_relative_error": 0.004, "max_absolute_error": 0.0078, "extra": None}
    evaluation: dict[str, Any] = {
        "status": case.status.value,
        "environment": {"hardware": case.gpu.name, "libs": {"torch": "2.13"}},
        "timestamp": case.timestamp,
        "log": case.detail,
        "correctness": errors if measured else None,
        "performance": performance if case.status is PASSED else None,
    }
    workload = to_document(case.workload)
    return {"definition": case.definition, "workload": workload, "solution": case.solution, "evaluation": evaluation}


def write_cases(root: Path, cases: list[Case], *, is_foreign: bool = False, seed: int = 0) -> Path:
    for case in cases:
        evidence = make_evidence(case, seed)
        if is_foreign:
            line = json.dumps(make_trace(case))
        else:
            line = format_line(traces.make_trace(evidence, case.workload))
            Dataset(root).write_evidence(evidence)
        folder = root / "traces" / case.author / case.op_type
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{case.definition}.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(f"{line}\n")
    return root


_AUTHORS = (("baseline", "flashinfer"), ("claude-opus", "triton_v3"), ("gpt", "cuda_fused"), ("ana", "cute_dsl"))
_SKILL = {"baseline": 0.72, "claude-opus": 0.84, "gpt": 0.61, "ana": 0.9}
HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"


def sample_cases(*, hostile: bool = False) -> Iterator[Case]:
    """Six definitions, eight workloads each, four authors, with failures, rejections and holes."""
    lots = random.Random(5)  # noqa: S311
    shapes = (
        ("rmsnorm_h7168", "rmsnorm", 7168 * 4, 0),
        ("fused_add_rmsnorm_h7168", "rmsnorm", 7168 * 8, 0),
        ("silu_and_mul_i2048", "activation", 2048 * 6, 0),
        ("gemm_n7168_k2048", "gemm", 2 * (7168 + 2048), 2 * 7168 * 2048),
        ("gqa_paged_decode_h32_kv8_d128_ps64", "gqa_paged", 2 * 2 * 8 * 128 * 900, 4 * 32 * 128 * 900),
        ("mla_paged_decode_h16_ckv512_kpe64_ps64", "mla_paged", 2 * 576 * 1200, 4 * 16 * 576 * 1200),
    )
    for definition, op_type, row_bytes, row_flops in shapes:
        for author, solution in _AUTHORS:
            name = HOSTILE if hostile and author == "ana" else f"{solution}_{op_type}"
            skill = _SKILL[author] * lots.uniform(0.75, 1.08)
            for batch in (1, 4, 16, 64, 256, 1024, 4096, 16384):
                if author == "gpt" and op_type == "mla_paged" and batch > 256:
                    continue
                status, rule, detail = _outcome(author, op_type, batch, lots)
                yield Case(
                    definition=definition,
                    op_type=op_type,
                    author=author,
                    solution=name,
                    axes={"batch_size": batch, "len_indptr": batch + 1}
                    if "paged" in op_type
                    else {"batch_size": batch},
                    percent=min(97.0, 100 * skill * lots.uniform(0.93, 1.03)),
                    bytes=batch * row_bytes + (2 * 7168 * 2048 if op_type == "gemm" else 0),
                    flops=batch * row_flops,
                    status=status,
                    rule=rule,
                    detail=detail if not hostile else detail and f"{detail} {HOSTILE}",
                    overhead_ms=0.0016 * lots.uniform(0.8, 1.6),
                )


def _outcome(author: str, op_type: str, batch: int, lots: random.Random) -> tuple[EvaluationStatus, str | None, str]:
    if author == "gpt" and op_type == "activation":
        return (
            EvaluationStatus.RUNTIME_ERROR,
            "source-import",
            "main.py:3 imports ctypes, for which a kernel has no use",
        )
    if author == "gpt" and op_type == "gemm" and batch >= 1024:
        return (
            EvaluationStatus.RUNTIME_ERROR,
            "uneven",
            "call 7 of each 20 takes 15.2 times the median: it does the work of others",
        )
    if author == "ana" and batch == 1 and op_type == "mla_paged":
        return (
            EvaluationStatus.INCORRECT_NUMERICAL,
            None,
            "output[0, 3, 17]: 0.0, the reference has 1.37; 4096 of 8192 values are outside",
        )
    if lots.random() < 0.02:
        return EvaluationStatus.TIMEOUT, None, "no answer within 60 s"
    return PASSED, None, ""
