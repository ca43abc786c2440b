from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest

from bench_run import DESTINATION, HALF_ROW, HONEST, REMEMBERS, norm, workload, write_dataset
from fib_tools.cli.app import main
from fib_tools.dataset.store import Dataset
from fib_tools.errors import FormatError, RequestError
from fib_tools.evaluate.engines.items import hash_solution
from fib_tools.phases.baselines import make_baselines
from fib_tools.phases.bench import benchmark_kernels
from fib_tools.phases.bench_result import BenchResult
from fib_tools.phases.context import Context, Workspace


def context(root: Path) -> Context:
    return Context(workspace=Workspace(root=root / "work"), offline=True, dataset_override=root / "dataset")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bench")
    sources = {"honest": HONEST, "destination": DESTINATION, "half_row": HALF_ROW, "remembers": REMEMBERS}
    sources["raises"] = "def run(hidden_states, weight):\n    raise ValueError('not today')\n"
    sources["imports"] = "import subprocess\n" + HONEST
    write_dataset(root / "dataset", sources)
    return root


@pytest.fixture(scope="module")
def result(root: Path) -> BenchResult:
    return benchmark_kernels(context(root), device="cpu", time_limit=30)


def statuses(result: BenchResult) -> dict[str, set[tuple[str, str]]]:
    found: dict[str, set[tuple[str, str]]] = {}
    for row in result.evaluations:
        found.setdefault(row.solution, set()).add((row.status, row.rule))
    return found


def test_right_solutions_pass_and_each_wrong_one_fails_for_its_own_reason(result: BenchResult) -> None:
    assert statuses(result) == {
        "honest": {("PASSED", "")},
        "destination": {("PASSED", "")},
        "half_row": {("INCORRECT_NUMERICAL", "wrong-values")},
        "remembers": {("INCORRECT_NUMERICAL", "stale-result")},
        "raises": {("RUNTIME_ERROR", "")},
        "imports": {("RUNTIME_ERROR", "source-import")},
    }
    assert not result.has_errors
    assert result.planned == len(result.evaluations) == 12


def test_a_failure_says_what_went_wrong_and_where(result: BenchResult) -> None:
    details = {row.solution: row.detail for row in result.evaluations}
    assert "ValueError: not today" in details["raises"]
    assert "solution/main.py" in details["raises"]
    assert "got" in details["half_row"]
    assert "want" in details["half_row"]


def test_traces_carry_figures_and_lead_to_their_evidence(root: Path, result: BenchResult) -> None:
    dataset = Dataset(root / "dataset")
    lines = [json.loads(line) for line in dataset.read_lines("traces/someone/rmsnorm/rmsnorm_h64.jsonl")]
    assert len(lines) == 12
    passed = next(line for line in lines if line["solution"] == "honest")["evaluation"]
    assert passed["performance"]["latency_ms"] > 0
    evidence = dataset.find_evidence(passed["correctness"]["extra"]["evidence"])
    assert evidence is not None
    assert evidence.milliseconds == pytest.approx(passed["performance"]["latency_ms"])
    assert evidence.calls >= 10
    assert set(evidence.distributions) >= {"typical", "outliers", "tiny", "shifted"}
    assert any(
        name.startswith("held-out") for row in result.evaluations[:1] for name in _distributions(dataset, row.evidence)
    )
    assert all(evidence.protections.values())


def _distributions(dataset: Dataset, key: str) -> list[str]:
    evidence = dataset.find_evidence(key)
    return evidence.distributions if evidence else []


def test_what_has_evidence_is_not_measured_twice_unless_asked(root: Path, result: BenchResult) -> None:
    again = benchmark_kernels(context(root), device="cpu", solutions=("honest",))
    assert again.reused == 2
    assert {row.evidence for row in again.evaluations} <= {row.evidence for row in result.evaluations}
    before = {row.evidence: row.milliseconds for row in again.evaluations}
    fresh = benchmark_kernels(context(root), device="cpu", solutions=("honest",), workloads=1, fresh=True)
    assert fresh.reused == 0
    assert len(fresh.evaluations) == 1
    assert {row.evidence for row in fresh.evaluations} <= set(before)


def test_a_dry_run_counts_and_writes_nothing(tmp_path: Path) -> None:
    write_dataset(tmp_path / "dataset", {"honest": HONEST})
    planned = benchmark_kernels(context(tmp_path), device="cpu", dry_run=True)
    assert (planned.planned, planned.evaluations) == (2, ())
    assert planned.hardware
    assert not (tmp_path / "work").exists()
    assert not (tmp_path / "dataset" / "traces").exists()


def test_baselines_that_are_missing_are_written_first(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset", {"honest": HONEST})
    (definition,) = dataset.load_definitions()[0].values()
    for dry_run, authors in ((True, {"somebody"}), (False, {"baseline", "somebody"})):
        with pytest.raises(RequestError, match="nope"):
            benchmark_kernels(context(tmp_path), solutions=("nope",), device="cpu", baselines=True, dry_run=dry_run)
        found = dataset.load_solutions(definition.op_type, definition.name)
        assert {solution.author if solution.author == "baseline" else "somebody" for solution in found} == authors


def test_a_dry_run_counts_the_baselines_that_would_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = write_dataset(tmp_path / "dataset", {})
    made = [solution.name for solution, _ in make_baselines(norm())]
    monkeypatch.setattr("fib_tools.phases.bench.find_hardware", lambda _device: ("no GPU", 0))
    planned = benchmark_kernels(context(tmp_path), baselines=True, dry_run=True)
    assert made
    assert planned.planned == 2 * len(made)
    assert "there is no GPU here" in planned.summary().lines[-1]
    assert not (dataset.root / "solutions").exists()
    dataset.write_solution("rmsnorm", make_baselines(norm())[0][0])
    assert benchmark_kernels(context(tmp_path), authors=("baseline",), baselines=True, dry_run=True) == planned


def test_on_a_cpu_baselines_are_written_and_left_out(tmp_path: Path) -> None:
    write_dataset(tmp_path / "dataset", {"honest": HONEST}, sizes=(3,))
    planned = benchmark_kernels(context(tmp_path), device="cpu", baselines=True, dry_run=True)
    assert (planned.planned, planned.unfit) == (1, tuple(solution.name for solution, _ in make_baselines(norm())))


def test_solutions_for_other_gpus_are_left_out_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = write_dataset(tmp_path / "dataset", {"honest": HONEST, "other": HONEST + "\n"})
    for path in (tmp_path / "dataset").glob("solutions/**/other.json"):
        path.write_text(path.read_text().replace('"cuda"', '"sm100"').replace('"cpu"', '"sm120"'))
    monkeypatch.setattr("fib_tools.phases.bench.find_hardware", lambda _device: ("NVIDIA H200", 90))
    planned = benchmark_kernels(context(tmp_path), dry_run=True)
    assert (planned.planned, planned.unfit) == (2, ("other",))
    assert planned.summary().lines[-1] == "1 left out, for other hardware (spec.target_hardware): other"
    with pytest.raises(RequestError, match="no Solution chosen is for NVIDIA H200"):
        benchmark_kernels(context(tmp_path), solutions=("other",), dry_run=True)
    assert dataset.root.is_dir()


def test_on_a_cpu_solutions_for_gpus_are_left_out_and_named(tmp_path: Path) -> None:
    kinds = {"python": '"cuda"', "kernel": '"sm90", "sm100"', "triton": '"sm90"', "both": '"sm90", "CPU"'}
    write_dataset(tmp_path / "dataset", {name: HONEST + "\n" * at for at, name in enumerate(kinds)})
    for name, hardware in kinds.items():
        (path,) = (tmp_path / "dataset").glob(f"solutions/**/{name}.json")
        text = path.read_text(encoding="utf-8").replace('"cpu"', hardware)
        language = "python" if name in ("python", "kernel") else "triton"
        path.write_text(text.replace('"language": "python"', f'"language": "{language}"'), encoding="utf-8")
    planned = benchmark_kernels(context(tmp_path), device="cpu", dry_run=True)
    assert (planned.planned, planned.unfit) == (4, ("kernel", "triton"))
    with pytest.raises(RequestError) as refused:
        benchmark_kernels(context(tmp_path), device="cpu", solutions=("triton",), dry_run=True)
    assert refused.value.what == f"no Solution chosen is for {planned.hardware}"


@pytest.mark.parametrize(("seconds", "count"), [(0.01, 0), (1.2, 2)])
def test_reading_is_told_of_once_it_takes_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, count: int
) -> None:
    dataset = write_dataset(tmp_path / "dataset", {"honest": HONEST})
    for size in (32, 128):
        dataset.write_definition(norm(size))
    clock = itertools.count(step=seconds)
    monkeypatch.setattr("fib_tools.phases.context.time.monotonic", lambda: next(clock))
    told: list[tuple[str, int, int]] = []
    telling = replace(context(tmp_path), progress=lambda *what: told.append(what))
    benchmark_kernels(telling, device="cpu", dry_run=True)
    assert told == [("reading Solutions and Workloads", done, 3) for done in (1, 2)][:count]


@pytest.mark.parametrize(
    "choice", [{"definitions": ("rmsnorm_h65",)}, {"solutions": ("hones",)}, {"authors": ("nobody",)}]
)
def test_a_name_that_chooses_nothing_is_refused(tmp_path: Path, choice: dict[str, tuple[str, ...]]) -> None:
    write_dataset(tmp_path / "dataset", {"honest": HONEST})
    with pytest.raises(RequestError, match=next(iter(choice.values()))[0]):
        benchmark_kernels(context(tmp_path), device="cpu", **choice)  # type: ignore[arg-type]


def test_without_solutions_there_is_nothing_to_measure(tmp_path: Path) -> None:
    write_dataset(tmp_path / "dataset", {})
    with pytest.raises(RequestError, match="no Definition chosen"):
        benchmark_kernels(context(tmp_path), device="cpu")


def test_a_broken_reference_is_nobodys_result(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset", {"honest": HONEST})
    broken = norm().model_copy(
        update={"reference": "def run(hidden_states, weight):\n    raise KeyError('reference')\n"}
    )
    (dataset.root / "definitions/rmsnorm/rmsnorm_h64.json").unlink()
    dataset.write_definition(broken)
    result = benchmark_kernels(context(tmp_path), device="cpu")
    assert result.has_errors
    assert result.evaluations == ()
    assert all("the reference failed" in failure for failure in result.failures)
    assert not (dataset.root / "evidence").exists()


def test_the_command_line_tells_the_figures_and_that_a_cpu_is_for_learning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_dataset(tmp_path / "dataset", {"honest": HONEST}, sizes=(2,))
    options = ["--dataset", str(tmp_path / "dataset"), "--workspace", str(tmp_path / "work")]
    assert main(["bench", "--device", "cpu", *options]) == 0
    shown = capsys.readouterr().out
    assert "honest" in shown
    assert "not for claims" in shown
    assert main(["report", *options, "--json"]) == 0
    assert "rmsnorm_h64" in capsys.readouterr().out


def test_an_agents_run_is_the_same_run(root: Path, result: BenchResult) -> None:
    again = benchmark_kernels(replace(context(root), is_confined=True), device="cpu", solutions=("half_row",))
    assert statuses(again)["half_row"] == statuses(result)["half_row"]


def test_workloads_of_the_sample_have_ids_of_their_own() -> None:
    assert workload(3).uuid != workload(8).uuid


def test_a_solution_whose_first_call_fails_is_no_solution(tmp_path: Path) -> None:
    source = "CALLS = []\n" + HONEST.replace(
        "weight):\n",
        "weight):\n    CALLS.append(0)\n    if len(CALLS) == 1:\n        raise ValueError('too early')\n",
        1,
    )
    write_dataset(tmp_path / "dataset", {"late": source}, sizes=(3,))
    (row,) = benchmark_kernels(context(tmp_path), device="cpu", time_limit=30).evaluations
    assert row.status == "RUNTIME_ERROR"
    assert "ValueError: too early" in row.detail


def test_a_first_call_without_memory_is_made_again_in_its_turn(tmp_path: Path) -> None:
    source = "CALLS = []\n" + HONEST.replace(
        "weight):\n",
        "weight):\n    CALLS.append(0)\n    if len(CALLS) == 1:\n        raise torch.OutOfMemoryError\n",
        1,
    )
    write_dataset(tmp_path / "dataset", {"full": source}, sizes=(3,))
    (row,) = benchmark_kernels(context(tmp_path), device="cpu", time_limit=30).evaluations
    assert row.status == "PASSED", row.detail


def test_a_solution_that_hangs_is_given_up_after_two_workloads(tmp_path: Path) -> None:
    source = HONEST.replace("weight):\n", "weight):\n    while True:\n        pass\n", 1)
    write_dataset(tmp_path / "dataset", {"stuck": source}, sizes=(3, 5, 8))
    rows = benchmark_kernels(context(tmp_path), device="cpu", time_limit=0.5).evaluations
    assert [row.status for row in rows] == ["TIMEOUT"] * 3
    assert sum("not tried again" in row.detail for row in rows) == 1
    late = "its first call, which may compile and so has longer than others, did not end within 2 s"
    assert all(row.detail.startswith(late) for row in rows)


def test_a_solution_that_hangs_later_is_told_how_long_its_calls_had(tmp_path: Path) -> None:
    hangs = "weight):\n    CALLS.append(0)\n    while len(CALLS) > 1:\n        pass\n"
    write_dataset(tmp_path / "dataset", {"stuck": "CALLS = []\n" + HONEST.replace("weight):\n", hangs, 1)}, sizes=(3,))
    (row,) = benchmark_kernels(context(tmp_path), device="cpu", time_limit=0.5).evaluations
    assert row.detail == "its first calls on this Workload, of which one may compile, did not end within 3.5 s"


def test_a_workload_that_is_not_the_definitions_is_refused_before_anything_runs(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset", {"honest": HONEST})
    path = tmp_path / "dataset" / "workloads" / "rmsnorm" / f"{norm().name}.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    lines[1]["workload"]["uuid"] = lines[0]["workload"]["uuid"]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    with pytest.raises(FormatError, match="another Workload has the same uuid"):
        benchmark_kernels(context(tmp_path), device="cpu")
    lines[1]["workload"] = {**lines[1]["workload"], "uuid": "other", "axes": {}}
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    with pytest.raises(FormatError, match="its axes are none; the Definition has batch_size"):
        benchmark_kernels(context(tmp_path), device="cpu")
    assert dataset.root.is_dir()


def test_solutions_that_run_the_same_are_measured_once_and_named_all(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset", {"one": HONEST, "two": HONEST}, sizes=(3,))
    result = benchmark_kernels(context(tmp_path), device="cpu", time_limit=30)
    assert result.planned == 1
    assert [(row.solution, row.status) for row in result.evaluations] == [("one", "PASSED"), ("two", "PASSED")]
    assert len({row.milliseconds for row in result.evaluations}) == 1
    lines = dataset.read_lines("traces/someone/rmsnorm/rmsnorm_h64.jsonl")
    assert [json.loads(line)["solution"] for line in lines] == ["one", "two"]
    for path in (tmp_path / "dataset").glob("solutions/**/two.json"):
        path.write_text(path.read_text(encoding="utf-8").replace('"two"', '"three"'), encoding="utf-8")
        path.rename(path.with_name("three.json"))
    again = benchmark_kernels(context(tmp_path), device="cpu", time_limit=30)
    assert again.reused == 1
    assert [row.solution for row in again.evaluations] == ["one", "three"]


def test_a_copy_of_a_baseline_is_another_solution() -> None:
    (made, _), *_ = make_baselines(norm())
    copy = made.model_copy(update={"author": "someone"})
    assert copy.hash == made.hash
    assert hash_solution(copy) != hash_solution(made)


def test_a_dry_run_says_how_many_evaluations_there_are(root: Path, result: BenchResult) -> None:
    assert result.run
    known = benchmark_kernels(context(root), device="cpu", time_limit=30, dry_run=True)
    assert known.planned == 0
    fresh = benchmark_kernels(context(root), device="cpu", fresh=True, dry_run=True)
    assert fresh.summary().lines[0].startswith("12 evaluations would be made on ")


def test_a_function_that_cannot_be_called_as_its_style_says_is_told_of_the_field(tmp_path: Path) -> None:
    write_dataset(tmp_path / "dataset", {"honest": HONEST}, sizes=(3,))
    for path in (tmp_path / "dataset").glob("solutions/**/honest.json"):
        text = path.read_text(encoding="utf-8")
        path.write_text(
            text.replace('"destination_passing_style": false', '"destination_passing_style": true'), encoding="utf-8"
        )
    (row,) = benchmark_kernels(context(tmp_path), device="cpu", time_limit=30).evaluations
    assert row.status == "COMPILE_ERROR"
    assert "is called with (hidden_states, weight, output): spec.destination_passing_style is true" in row.detail


def test_a_solution_that_cannot_be_read_is_told_of_and_the_others_are_measured(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset", {"honest": HONEST, "moved": HONEST + "\n"}, sizes=(3,))
    (path,) = (tmp_path / "dataset").glob("solutions/**/moved.json")
    path.write_text(path.read_text(encoding="utf-8").replace('"rmsnorm_h64"', '"rmsnorm_h65"'), encoding="utf-8")
    path.with_name("broken.json").write_text("{", encoding="utf-8")
    result = benchmark_kernels(context(tmp_path), device="cpu", time_limit=30)
    assert [(row.solution, row.status) for row in result.evaluations] == [("honest", "PASSED")]
    assert result.has_errors
    assert len(result.failures) == 2
    assert "broken.json" in result.failures[0]
    assert "it says that it is of the Definition rmsnorm_h65" in result.failures[1]
    named = benchmark_kernels(context(tmp_path), device="cpu", solutions=("honest",), time_limit=30)
    assert not named.has_errors
    with pytest.raises(FormatError, match="not JSON"):
        benchmark_kernels(context(tmp_path), device="cpu", solutions=("broken",))
    assert dataset.root.is_dir()


def test_a_broken_file_is_told_of_wherever_it_may_have_been_chosen(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset", {"honest": HONEST}, sizes=(3,))
    for author, name in (("someone", "broken"), ("else", "honest")):
        path = dataset.root / "solutions" / author / "rmsnorm" / "rmsnorm_h64" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{", encoding="utf-8")

    def plan(**choice: tuple[str, ...]) -> BenchResult:
        return benchmark_kernels(context(tmp_path), device="cpu", dry_run=True, **choice)  # type: ignore[arg-type]

    (failure,) = plan(authors=("someone",)).failures
    assert "someone/rmsnorm/rmsnorm_h64/broken.json" in failure
    (failure,) = plan(solutions=("honest",)).failures
    assert "else/rmsnorm/rmsnorm_h64/honest.json" in failure
    assert len(plan().failures) == 2
    assert plan().has_errors
    assert plan().summary().lines[:2] == plan().failures
    assert not plan(authors=("someone",), solutions=("honest",)).has_errors
