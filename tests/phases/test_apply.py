from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fib_tools.dataset.layout import Kind, Location
from fib_tools.errors import RequestError
from fib_tools.evaluate.application.application_check import Checked
from fib_tools.model.canonical import format_line
from fib_tools.model.definition import Definition
from fib_tools.model.solution import BuildSpec, Language, Solution, SourceFile
from fib_tools.model.trace import Correctness, Environment, Evaluation, EvaluationStatus, Performance, Trace
from fib_tools.model.workload import RandomInput, Workload
from fib_tools.op_types.registry import get_kernel_type
from fib_tools.phases import apply
from fib_tools.phases.apply import ApplyEntry, ApplyResult, apply_solutions
from fib_tools.phases.context import Context

H200 = "NVIDIA H200"
WORKLOADS = ("one", "two")
NORM = """
import torch


def run(x, w):
    y = x.float()
    return (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-6) * w.float()).to(x.dtype)
"""


def _definition(kernel: str = "rmsnorm", **parameters: Any) -> Definition:
    return get_kernel_type(kernel).build(parameters or {"hidden_size": 64})


def _solution(definition: Definition, name: str, *, author: str = "me", content: str = NORM, **spec: Any) -> Solution:
    return Solution(
        name=name,
        definition=definition.name,
        author=author,
        spec=BuildSpec(
            **{
                "language": Language.PYTHON,
                "target_hardware": ["sm90"],
                "entry_point": "main.py::run",
                "destination_passing_style": False,
                **spec,
            }
        ),
        sources=[SourceFile(path="main.py", content=content)],
    )


class Shelf:
    """A dataset in the making: Solutions and what they were measured at."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.dataset = context.dataset
        self.lines: dict[Location, list[str]] = {}

    def define(self, definition: Definition) -> Definition:
        self.dataset.write_definition(definition)
        traces = [Trace(definition=definition.name, workload=self._workload(definition, uuid)) for uuid in WORKLOADS]
        self.dataset.write_workloads(definition.op_type, traces)
        return definition

    def _workload(self, definition: Definition, uuid: str) -> Workload:
        inputs = {name: RandomInput() for name in definition.inputs}
        return Workload(uuid=uuid, axes=dict.fromkeys(definition.var_axes, 3), inputs=inputs)

    def add(
        self,
        definition: Definition,
        solution: Solution,
        milliseconds: tuple[float | None, ...],
        *,
        device: str = H200,
        timer: str = "cupti",
        ours: bool = True,
    ) -> None:
        self.dataset.write_solution(definition.op_type, solution)
        place = {"op_type": definition.op_type, "definition": definition.name, "author": solution.author}
        at = Location(kind=Kind.TRACES, **place)
        for uuid, time in zip(WORKLOADS, milliseconds, strict=False):
            passed = time is not None
            libs = {"timer": timer, **({"evaluator": "fib-tools 1"} if ours else {})}
            performance = Performance(latency_ms=time or 0, reference_latency_ms=9.0, speedup_factor=1.0)
            evaluation = Evaluation(
                status=EvaluationStatus.PASSED if passed else EvaluationStatus.RUNTIME_ERROR,
                environment=Environment(hardware=device, libs=libs),
                timestamp="2026-11-21T12:00:00+00:00",
                log="" if passed else "REJECTED by audit: no",
                correctness=Correctness() if passed else None,
                performance=performance if passed else None,
            )
            workload = self._workload(definition, uuid)
            trace = Trace(definition=definition.name, workload=workload, solution=solution.name, evaluation=evaluation)
            self.lines.setdefault(at, []).append(format_line(trace))
        self.dataset.write_traces(at, self.lines[at])

    def apply(self, **options: Any) -> ApplyResult:
        return apply_solutions(self.context, **{"hardware": H200, **options})


_INSTANTIATED: dict[str, Any] = {}
"""Results of templates by call: FlashInfer's import takes seconds."""


@pytest.fixture(autouse=True)
def _ask_flashinfer_once(monkeypatch: pytest.MonkeyPatch) -> None:
    real = apply.instantiate

    def instantiate(calls: Any) -> Any:
        key = repr(calls)
        if key not in _INSTANTIATED:
            _INSTANTIATED[key] = real(calls)
        return _INSTANTIATED[key]

    monkeypatch.setattr(apply, "instantiate", instantiate)


@pytest.fixture
def shelf(context: Context) -> Shelf:
    return Shelf(context)


@pytest.fixture
def norm(shelf: Shelf) -> Definition:
    definition = shelf.define(_definition())
    baseline = _solution(definition, "flashinfer_wrapper_1", author="baseline")
    shelf.add(definition, baseline, (0.010, 0.020))
    return definition


def _only(result: ApplyResult) -> ApplyEntry:
    (entry,) = result.entries
    return entry


def test_the_best_solution_is_really_dispatched(shelf: Shelf, norm: Definition) -> None:
    shelf.add(norm, _solution(norm, "slow"), (0.009, 0.018))
    shelf.add(norm, _solution(norm, "fast"), (0.005, 0.010))
    result = shelf.apply()
    entry = _only(result)
    assert (entry.status, entry.solution, entry.routed_as) == ("applied", "fast", "rmsnorm_h64"), entry.reason
    assert entry.ratio == pytest.approx(2.0)
    assert entry.milliseconds == pytest.approx((0.005 * 0.010) ** 0.5)
    assert entry.not_routed == {"eps": 1e-6}
    assert entry.falls_back == "hidden_size"
    assert result.checked == "cpu"
    assert not result.has_errors
    folder = Path(result.folder)
    assert folder == shelf.context.workspace.root / "trace-apply"
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()) == [
        "definitions/rmsnorm/rmsnorm_h64.json",
        "fib_apply.json",
        "solutions/.keep",
        "solutions/me/rmsnorm/rmsnorm_h64/fast.json",
    ]
    assert "FLASHINFER_TRACE_APPLY_PATH=" in result.summary().lines[0]


def test_flashinfer_loads_the_folder(shelf: Shelf, norm: Definition) -> None:
    config = pytest.importorskip("flashinfer.trace_apply.config")
    shelf.add(norm, _solution(norm, "fast"), (0.005, 0.010))
    loaded = config.load_config(shelf.apply(check=False).folder)
    assert list(loaded.definitions) == ["rmsnorm_h64"]
    assert loaded.definitions["rmsnorm_h64"].fi_api() == "flashinfer.norm.rmsnorm"
    ((_, solution),) = loaded.solutions.items()
    assert solution.entry_file() == "fib_apply.py"
    assert solution.spec.destination_passing_style is False


SILU = """
import torch


def run(x, out):
    a, b = x.float().chunk(2, -1)
    out.copy_(torch.nn.functional.silu(a) * b)
"""


def test_a_name_that_flashinfer_computes_otherwise_and_an_api_that_plans_are_dispatched_too(shelf: Shelf) -> None:
    silu = shelf.define(_definition("silu_and_mul", intermediate_size=32))
    shelf.add(silu, _solution(silu, "passed", content=SILU, destination_passing_style=True), (0.005, 0.010))
    sizes = {"num_qo_heads": 4, "num_kv_heads": 2, "head_dim": 64, "page_size": 1}
    decode = shelf.define(_definition("gqa_paged_decode", **sizes))
    shelf.add(decode, _solution(decode, "returned", content=decode.reference), (0.005, 0.010))
    result = shelf.apply(least_ratio=0.0)
    assert [(entry.status, entry.routed_as, entry.reason) for entry in result.entries] == [
        ("applied", "gqa_paged_decode_h4_kv2_d64_ps1", ""),
        ("applied", "silu_and_mul_h64", ""),
    ]


def test_a_solution_that_raises_leaves_the_folder_as_it_was(
    shelf: Shelf, norm: Definition, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FIB_PRETEND_GPUS", "1")
    monkeypatch.setenv("FIB_GPU_LOCK_DIR", str(tmp_path / "locks"))
    monkeypatch.setattr(apply, "has_gpu", lambda: True)  # so the check runs as on a GPU: a process under the lock
    shelf.add(norm, _solution(norm, "fast"), (0.005, 0.010))
    folder = Path(shelf.apply(check=False).folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    broken = _solution(norm, "broken", content="def run(x, w):\n    raise ValueError('only on Tuesdays')\n")
    shelf.add(norm, broken, (0.001, 0.001))
    result = shelf.apply()
    assert _only(result).status == "failed"
    assert "only on Tuesdays" in _only(result).reason
    assert result.has_errors
    assert result.summary().lines == (f"{folder}: 1 failed; the folder stays as it was",)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert [path.name for path in folder.parent.iterdir() if "tmp" in path.name] == []


def test_of_several_those_that_pass_the_check_are_written(
    shelf: Shelf, norm: Definition, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf.add(norm, _solution(norm, "fast"), (0.005, 0.010))
    silu = shelf.define(_definition("silu_and_mul", intermediate_size=32))
    shelf.add(silu, _solution(silu, "silu", content=SILU, destination_passing_style=True), (0.005, 0.010))
    answers = [Checked(device="cuda"), Checked(problem="it fell back", device="cuda")]
    monkeypatch.setattr(apply, "check_dispatch", lambda *_args, **_options: answers)
    result = shelf.apply(least_ratio=0.0)
    assert [entry.status for entry in result.entries] == ["applied", "failed"]
    assert result.has_errors
    folder = Path(result.folder)
    assert [path.stem for path in folder.glob("solutions/**/*.json")] == ["fast"]
    assert list(json.loads((folder / "fib_apply.json").read_text(encoding="utf-8"))["applied"]) == ["rmsnorm_h64"]
    assert result.summary().lines[-1] == f"{folder}: 1 applied, 1 failed; checked on cuda"


def test_what_was_measured_is_shown_first_and_what_is_not_shown_is_counted() -> None:
    entries = [ApplyEntry(definition=f"empty_{place}", op_type="noise", status="skipped") for place in range(31)]
    entries += [
        ApplyEntry(definition="slow", op_type="noise", status="skipped", ratio=0.5, milliseconds=2.0, reason="slower"),
        ApplyEntry(definition="fast", op_type="noise", status="applied", ratio=2.0, milliseconds=1.0, solution="mine"),
    ]
    summary = ApplyResult(dataset="d", hardware=H200, folder="f", checked="cuda", entries=tuple(entries)).summary()
    rows = summary.tables[0].rows
    assert rows[:3] == (
        ("fast", "applied", "2.00x", "mine"),
        ("slow", "skipped", "0.50x", "slower"),
        ("empty_0", "skipped", "", ""),
    )
    assert len(rows) == 30
    assert summary.lines[0] == "... and 3 more; --json has all"


def test_a_second_run_replaces_the_whole_folder(shelf: Shelf, norm: Definition) -> None:
    shelf.add(norm, _solution(norm, "fast"), (0.005, 0.010))
    folder = Path(shelf.apply(check=False).folder)
    shelf.add(norm, _solution(norm, "faster"), (0.004, 0.004))
    shelf.apply(check=False)
    assert [path.stem for path in folder.glob("solutions/**/*.json")] == ["faster"]


def test_a_folder_that_works_is_not_emptied(shelf: Shelf, norm: Definition) -> None:
    shelf.add(norm, _solution(norm, "fast"), (0.005, 0.010))
    folder = Path(shelf.apply(check=False).folder)
    with pytest.raises(RequestError, match="no Solution qualifies on NVIDIA H200; the folder stays as it is"):
        shelf.apply(check=False, least_ratio=9.0)
    assert [path.stem for path in folder.glob("solutions/**/*.json")] == ["fast"]


def test_a_gpu_that_nothing_was_measured_on_is_refused_with_those_there_are(shelf: Shelf, norm: Definition) -> None:
    shelf.add(norm, _solution(norm, "fast"), (0.005, 0.010), device="NVIDIA B200")
    with pytest.raises(RequestError, match="nothing was measured on 'H200'") as refused:
        shelf.apply(hardware="H200", dry_run=True)
    assert refused.value.todo == "pass one of 'NVIDIA B200', 'NVIDIA H200'"


def test_where_nothing_was_measured_at_all_it_is_to_be_benched(shelf: Shelf) -> None:
    definition = shelf.define(_definition())
    assert f"fib bench {definition.name}" in _only(shelf.apply()).reason


@pytest.mark.parametrize(
    ("name", "times", "options", "word"),
    [
        ("partly", (0.005,), {}, "all 2 Workloads"),
        ("rejected", (0.005, None), {}, "all 2 Workloads"),
        ("elsewhere", (0.005, 0.010), {"device": "NVIDIA B200"}, "all 2 Workloads"),
        ("theirs", (0.005, 0.010), {"ours": False}, "all 2 Workloads"),
        ("slower", (0.020, 0.040), {}, "0.500 times as fast"),
        ("otherwise", (0.005, 0.010), {"timer": "events"}, "timed in different ways"),
    ],
)
def test_nothing_less_than_better_on_every_workload_is_applied(
    shelf: Shelf, norm: Definition, name: str, times: Any, options: dict[str, Any], word: str
) -> None:
    shelf.add(norm, _solution(norm, name), times, **options)
    entry = _only(shelf.apply())
    assert (entry.status, entry.solution) == ("skipped", "")
    assert word in entry.reason
    assert (entry.milliseconds is None) == (word == "all 2 Workloads")


def test_a_baseline_is_never_applied(shelf: Shelf, norm: Definition) -> None:
    assert norm.name == "rmsnorm_h64"
    assert "but baselines" in _only(shelf.apply(least_ratio=0.0)).reason


def test_authors_are_chosen(shelf: Shelf, norm: Definition) -> None:
    shelf.add(norm, _solution(norm, "fast"), (0.005, 0.010))
    shelf.add(norm, _solution(norm, "other", author="you"), (0.006, 0.011))
    assert _only(shelf.apply(authors=("you",), dry_run=True)).solution == "other"


def test_a_dry_run_writes_nothing(shelf: Shelf, norm: Definition) -> None:
    shelf.add(norm, _solution(norm, "fast"), (0.005, 0.010))
    result = shelf.apply(dry_run=True)
    assert _only(result).status == "would apply"
    assert not Path(result.folder).exists()


def test_definitions_that_flashinfer_cannot_tell_apart_are_not_applied(shelf: Shelf, norm: Definition) -> None:
    shelf.add(norm, _solution(norm, "fast"), (0.005, 0.010))
    other = _definition(hidden_size=64, eps=1e-5)
    shelf.define(other.model_copy(update={"name": "rmsnorm_h64_eps1e-05"}))
    result = shelf.apply()
    assert [entry.status for entry in result.entries] == ["skipped", "skipped"]
    assert "another Definition of this dataset rmsnorm_h64 too" in result.entries[0].reason
    assert _only(shelf.apply(definitions=("rmsnorm_h64",), check=False)).status == "applied"


@pytest.mark.parametrize(
    ("kernel", "parameters", "spec", "content", "word"),
    [
        ("embedding", {"vocab_size": 100, "hidden_size": 16}, {}, NORM, "no template"),
        (
            "gqa_paged_decode",
            {"num_qo_heads": 4, "num_kv_heads": 2, "head_dim": 64, "page_size": 16},
            {},
            NORM,
            "hand over kv_last_page_len",
        ),
        ("rmsnorm", {"hidden_size": 64}, {}, f"{NORM}\n\ndef setup(x, w):\n    return 1\n", "setup"),
        ("rmsnorm", {"hidden_size": 64}, {"language": Language.CUDA, "binding": "torch"}, NORM, "TVM-FFI only"),
        ("gemm_fp8_block", {"n": 256, "k": 256}, {}, NORM, ""),
    ],
)
def test_what_trace_apply_cannot_run_says_why(
    shelf: Shelf, kernel: str, parameters: dict[str, Any], spec: dict[str, Any], content: str, word: str
) -> None:
    definition = shelf.define(_definition(kernel, **parameters))
    shelf.add(definition, _solution(definition, "mine", content=content, **spec), (0.005, 0.010))
    entry = _only(shelf.apply(least_ratio=0.0, dry_run=True))
    assert (entry.status == "would apply") == (not word)
    assert word in entry.reason


def test_a_check_that_needs_a_gpu_says_so(shelf: Shelf, norm: Definition, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apply, "has_gpu", lambda: False)
    shelf.add(norm, _solution(norm, "fast", language=Language.TRITON), (0.005, 0.010))
    with pytest.raises(RequestError, match="takes a GPU"):
        shelf.apply()
    assert _only(shelf.apply(check=False)).status == "applied"


def test_an_agent_may_not_run_solutions_on_a_gpu(
    shelf: Shelf, norm: Definition, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apply, "has_gpu", lambda: True)
    shelf.add(norm, _solution(norm, "fast"), (0.005, 0.010))
    shelf.context = replace(shelf.context, is_confined=True)
    with pytest.raises(RequestError, match="an agent may not start it"):
        shelf.apply()


def test_what_was_not_dispatched_is_told_from_what_raised(
    shelf: Shelf, norm: Definition, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf.add(norm, _solution(norm, "fast"), (0.005, 0.010))
    monkeypatch.setattr(apply, "check_dispatch", lambda *_args, **_options: [Checked(problem="it fell back")])
    entry = _only(shelf.apply())
    assert (entry.status, entry.reason) == ("failed", "it fell back")


def test_a_folder_of_somebody_else_is_left_alone(shelf: Shelf, norm: Definition, tmp_path: Path) -> None:
    shelf.add(norm, _solution(norm, "fast"), (0.005, 0.010))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep", encoding="utf-8")
    with pytest.raises(RequestError, match="did not write this folder"):
        shelf.apply(out=tmp_path / "mine")
    with pytest.raises(RequestError, match="it is a file"):
        shelf.apply(out=tmp_path / "mine" / "notes.txt")


def test_without_a_gpu_its_model_has_to_be_named(
    shelf: Shelf, norm: Definition, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIB_PRETEND_GPUS", "0")
    shelf.add(norm, _solution(norm, "fast"), (0.005, 0.010))
    with pytest.raises(RequestError, match="no GPU here") as refused:
        shelf.apply(hardware=None)
    assert "NVIDIA H200" in str(refused.value)
    with pytest.raises(RequestError, match="no Definition 'nothing'"):
        shelf.apply(definitions=("nothing",))


def test_the_folder_says_which_solution_it_holds(shelf: Shelf, norm: Definition) -> None:
    shelf.add(norm, _solution(norm, "fast"), (0.005, 0.010))
    folder = Path(shelf.apply(check=False).folder)
    document = json.loads((folder / "fib_apply.json").read_text(encoding="utf-8"))
    assert document["applied"]["rmsnorm_h64"]["hash"] == _solution(norm, "fast").hash
