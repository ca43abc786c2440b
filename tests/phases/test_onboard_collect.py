"""Phase 3 of an onboarding, on a CPU; a GPU and an engine are stood in for only where nothing else would do."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import bench_run
from fib_tools.cli.app import main
from fib_tools.errors import FormatError, RequestError
from fib_tools.host.hardware import find_hardware
from fib_tools.model.manifest import Manifest, ManualDefinition
from fib_tools.model.progress import Step
from fib_tools.phases import collect_serving, collect_steps, onboard_collect
from fib_tools.phases.collect_options import CollectOptions
from fib_tools.phases.context import Context, Workspace
from fib_tools.phases.manifests import find_manifest, save_manifest
from fib_tools.phases.onboard import OnboardResult, onboard_model
from fib_tools.phases.request import ModelOptions
from fib_tools.phases.status import show_status
from fib_tools.phases.time_budget import TimeBudget
from tiny_model import snapshot

NORMS = ("fused_add_rmsnorm_h64", "rmsnorm_h64")
CPU = CollectOptions(device="cpu")
GPU = SimpleNamespace(name="NVIDIA H200", capability=90)


@pytest.fixture
def defined(context: Context, write_config: Callable[..., Path], quick_gate: None) -> Context:
    """Two norms of the tiny model, defined."""
    del quick_gate
    onboard_model(context, "tiny", ModelOptions(config=write_config(), op_types=("rmsnorm",)))
    return context


def read_manifest(context: Context) -> Manifest:
    (path,) = context.workspace.root.glob("onboard_*.json")
    return Manifest.model_validate_json(path.read_text(encoding="utf-8"))


def list_statuses(context: Context, step: Step) -> dict[str, str]:
    found = {kernel.name: kernel.steps.get(step) for kernel in read_manifest(context).kernels}
    return {name: record.status for name, record in found.items() if record is not None}


def collect(context: Context, how: CollectOptions = CPU, **options: Any) -> OnboardResult:
    return onboard_model(context, "tiny", collecting=how, phases=(3,), **options)


def add_cpu_baselines(context: Context) -> None:
    source = bench_run.HONEST
    context.dataset.write_solution("rmsnorm", bench_run.solution("honest", source, author="baseline"))


@pytest.fixture
def with_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onboard_collect, "discover_gpus", lambda _: SimpleNamespace(visible=(GPU,), notes=()))
    monkeypatch.setattr(
        onboard_collect, "find_hardware", lambda device: (GPU.name, 90) if device == "cuda" else find_hardware(device)
    )


def test_every_step_is_done_and_recorded_for_each_kernel(defined: Context) -> None:
    add_cpu_baselines(defined)
    result = collect(defined)
    assert result.collected is not None
    assert not result.has_errors
    assert [line.step for line in result.collected.steps] == list(Step)
    assert list_statuses(defined, Step.TEST) == dict.fromkeys(NORMS, "skipped")
    assert list_statuses(defined, Step.BASELINE) == dict.fromkeys(NORMS, "written")
    assert list_statuses(defined, Step.COLLECT) == dict.fromkeys(NORMS, "no engine")
    assert list_statuses(defined, Step.SIZES) == dict.fromkeys(NORMS, "written")
    assert list_statuses(defined, Step.CALIBRATE) == dict.fromkeys(NORMS, "calibrated")
    assert list_statuses(defined, Step.BENCH) == {NORMS[0]: "nothing to measure", NORMS[1]: "passed"}
    manifest = read_manifest(defined)
    assert [time.step for time in manifest.times if time.phase == 3] == list(Step)
    assert {time.machine for time in manifest.times} == {find_hardware("cpu")[0]}
    record = manifest.kernels[1].steps[Step.BENCH]
    assert record.detail == "3 of 3 evaluations passed"
    workloads = defined.dataset.load_workloads("rmsnorm", "rmsnorm_h64")
    assert {workload.origin for workload in workloads} == {"synthetic"}
    status = show_status(defined)
    assert status.onboardings[0].steps[Step.BENCH] == {"nothing to measure": 1, "passed": 1}
    assert "tiny, phase 3: test: 2 skipped; baseline: 2 written; collect: 2 no engine" in status.summary().lines[0]
    page = Path(result.page).read_text(encoding="utf-8")
    assert "3 synthetic" in page
    assert "these are no figures of a GPU" in page


def test_a_finished_phase_has_nothing_left_and_changes_no_byte(defined: Context) -> None:
    collect(defined)
    before = snapshot(defined.workspace.root)
    again = collect(defined)
    assert again.collected is not None
    assert again.collected.steps == ()
    assert again.summary().lines[-1] == "phase 3: nothing is left to do for 2 kernels"
    assert snapshot(defined.workspace.root) == before


def test_a_definition_that_was_changed_goes_through_the_steps_again(defined: Context) -> None:
    how = CollectOptions(device="cpu", skip_steps=("baseline", "collect", "sizes", "calibrate", "bench"))
    collect(defined, how)
    path = defined.dataset.root / "definitions/rmsnorm/rmsnorm_h64.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    document["reference"] += "\n# another\n"
    path.write_text(json.dumps(document), encoding="utf-8")
    result = collect(defined, how)
    assert result.collected is not None
    assert [(line.step, line.kernels) for line in result.collected.steps] == [(Step.TEST, 1)]


def test_a_new_workload_is_measured(defined: Context) -> None:
    add_cpu_baselines(defined)
    how = CollectOptions(device="cpu", skip_steps=("test", "baseline", "collect", "calibrate"))
    collect(defined, how)
    standing = defined.dataset.load_workloads("rmsnorm", "rmsnorm_h64")
    lines = [*standing, bench_run.workload(77)]
    traces = [bench_run.Trace(definition="rmsnorm_h64", workload=workload) for workload in lines]
    defined.dataset.write_workloads("rmsnorm", traces)
    result = collect(defined, how)
    assert result.collected is not None
    assert [(line.step, line.kernels) for line in result.collected.steps] == [(Step.BENCH, 1)]
    assert read_manifest(defined).kernels[1].steps[Step.BENCH].detail.startswith("4 of 4 evaluations passed")


def test_a_run_that_was_killed_goes_on_where_it_was(defined: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect_steps, "_AT_ONCE", 1)
    tests, ran = collect_steps.write_or_run_tests, []

    def run(context: Context, action: str, *, definitions: tuple[str, ...], **options: Any) -> Any:
        if action == "run":
            ran.append(definitions)
            if len(ran) == 2:
                raise KeyboardInterrupt
        return tests(context, action, definitions=definitions, **options)

    monkeypatch.setattr(collect_steps, "write_or_run_tests", run)
    with pytest.raises(KeyboardInterrupt):
        collect(defined)
    assert list_statuses(defined, Step.TEST) == {NORMS[0]: "skipped"}
    spent = next(time.seconds for time in read_manifest(defined).times if time.step is Step.TEST)
    collect(defined)
    assert ran == [(NORMS[0],), (NORMS[1],), (NORMS[1],)]
    assert list_statuses(defined, Step.TEST) == dict.fromkeys(NORMS, "skipped")
    assert next(time.seconds for time in read_manifest(defined).times if time.step is Step.TEST) > spent


def test_a_killed_process_loses_nothing_that_was_finished(defined: Context) -> None:
    root = defined.workspace.root
    words = ["onboard", "tiny", "--phases", "3", "--device", "cpu", "--workspace", str(root), "--offline"]
    with subprocess.Popen(
        [sys.executable, "-m", "fib_tools", *words], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as child:
        assert child.stderr is not None
        for line in child.stderr:
            if "phase 3, calibrate" in line:
                os.kill(child.pid, signal.SIGKILL)
                break
    done = {step: list_statuses(defined, step) for step in (Step.TEST, Step.BASELINE, Step.SIZES)}
    assert [len(found) for found in done.values()] == [2, 2, 2]
    assert list_statuses(defined, Step.CALIBRATE) == {}
    result = collect(defined)
    assert result.collected is not None
    assert {line.step for line in result.collected.steps} == {Step.CALIBRATE, Step.BENCH}
    assert {step: list_statuses(defined, step) for step in done} == done


def test_a_workspace_that_was_carried_elsewhere_goes_on(
    context: Context, write_config: Callable[..., Path], quick_gate: None, tmp_path: Path
) -> None:
    del quick_gate
    config = write_config()
    onboard_model(context, "tiny", ModelOptions(config=config, op_types=("rmsnorm",), tp_list=(1, 2)))
    (name,) = (path.name for path in context.workspace.root.glob("onboard_*.json"))
    text = (context.workspace.root / name).read_text(encoding="utf-8")
    assert str(tmp_path) not in text
    elsewhere = tmp_path / "of another user" / "ws"
    shutil.copytree(context.workspace.root, elsewhere)
    shutil.rmtree(context.workspace.root)
    config.unlink()
    carried = Context(workspace=Workspace(root=elsewhere), offline=True)
    result = collect(carried)
    assert not result.has_errors
    assert Path(result.manifest_path) == elsewhere / name
    assert [kernel.tp for kernel in read_manifest(carried).kernels] == [(1, 2), (1, 2)]
    assert list_statuses(carried, Step.CALIBRATE) == dict.fromkeys(NORMS, "calibrated")
    assert str(tmp_path) not in (elsewhere / name).read_text(encoding="utf-8")


def test_without_a_gpu_it_is_said_how_to_carry_the_workspace_to_one(defined: Context) -> None:
    before = snapshot(defined.workspace.root)
    with pytest.raises(RequestError, match="needs a GPU, and there is none here: 2 kernels of tiny") as caught:
        collect(defined, CollectOptions())
    todo = caught.value.todo or ""
    root = defined.workspace.root.resolve()
    assert f"tar -C {root} -czf onboarding.tar.gz ." in todo
    assert "fib onboard tiny --phases 3 --workspace tmp" in todo
    assert f"fib onboard tiny --phases 4 --workspace {root}" in todo
    assert snapshot(defined.workspace.root) == before


def test_without_a_gpu_the_phases_before_are_done_all_the_same(
    context: Context, write_config: Callable[..., Path], quick_gate: None, capsys: pytest.CaptureFixture[str]
) -> None:
    del quick_gate
    words = ["onboard", "tiny", "--config", str(write_config()), "--op-types", "rmsnorm", "--offline", "--json"]
    assert main([*words, "--phases", "0,1,2,3", "--workspace", str(context.workspace.root)]) == 1
    result = OnboardResult.model_validate_json(capsys.readouterr().out)
    assert "phase 3: phase 3 needs a GPU" in result.problem
    assert any(line.startswith("not run: phase 3") for line in result.summary().lines)
    assert [kernel.staged for kernel in read_manifest(context).kernels] == list(NORMS)


@pytest.mark.usefixtures("with_gpu")
def test_what_was_done_on_a_gpu_needs_none_afterwards(defined: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    def note(_work: Any, names: Sequence[str], write: Any) -> None:
        write(dict.fromkeys(names, ("passed", "")))

    monkeypatch.setattr(onboard_collect, "STEPS", dict.fromkeys(Step, note))
    first = collect(defined, CollectOptions())
    assert first.collected is not None
    assert first.collected.machine == "NVIDIA H200"
    monkeypatch.setattr(onboard_collect, "discover_gpus", lambda _: SimpleNamespace(visible=(), notes=()))
    again = collect(defined, CollectOptions())
    assert again.collected is not None
    assert again.collected.steps == ()
    assert {time.machine for time in read_manifest(defined).times if time.phase == 3} == {"NVIDIA H200"}


@pytest.mark.usefixtures("with_gpu")
def test_a_model_is_served_as_its_manifest_says_and_what_no_call_showed_gets_sizes(
    context: Context, write_config: Callable[..., Path], quick_gate: None, made: list[Any]
) -> None:
    del quick_gate
    onboard_model(
        context,
        "tiny",
        ModelOptions(
            config=write_config(rms_norm_eps=1e-5, hidden_size=8, head_dim=8, num_attention_heads=4),
            op_types=("rmsnorm",),
            tp_list=(1,),
        ),
    )
    how = CollectOptions(skip_steps=("test", "calibrate", "bench"), batch_sizes=(1, 3), isl=12, osl=2, num_samples=2)
    result = collect(context, how)
    assert not result.has_errors, result.collected
    assert [run.name for run in made] == ["tp1", "tp1-paged"]
    (fused, norm) = (kernel.name for kernel in read_manifest(context).kernels)
    assert list_statuses(context, Step.COLLECT) == {fused: "no call", norm: "written"}
    assert list_statuses(context, Step.SIZES) == {fused: "written", norm: "kept"}
    origins = {
        name: {each.origin for each in context.dataset.load_workloads("rmsnorm", name)} for name in (fused, norm)
    }
    assert origins == {fused: {"synthetic"}, norm: {"dummy"}}
    assert len(context.dataset.load_workloads("rmsnorm", norm)) == 2
    made.clear()
    collect(context, how)
    assert not made, "a model that was served is not served again"


@pytest.mark.usefixtures("with_gpu", "made")
def test_an_interrupt_while_serving_ends_the_run_and_the_model_is_served_again(
    context: Context, write_config: Callable[..., Path], quick_gate: None
) -> None:
    del quick_gate
    shape = {"hidden_size": 8, "head_dim": 8, "num_attention_heads": 4, "rms_norm_eps": 1e-5}
    onboard_model(context, "tiny", ModelOptions(config=write_config(**shape), op_types=("rmsnorm",), tp_list=(1,)))
    how = CollectOptions(skip_steps=("test", "calibrate", "bench"), batch_sizes=(1,), isl=12, osl=2)

    def step(_follower: Any) -> bool:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collect_serving.Follower, "step", step)
        with pytest.raises(KeyboardInterrupt):
            collect(context, how)
    assert list_statuses(context, Step.COLLECT) == {}
    assert list_statuses(context, Step.SIZES) == {}
    collect(context, how)
    assert set(list_statuses(context, Step.COLLECT).values()) == {"no call", "written"}


@pytest.mark.usefixtures("with_gpu")
def test_without_sglang_sizes_stand_in_and_the_engine_is_asked_for_again(defined: Context) -> None:
    how = CollectOptions(skip_steps=("test", "calibrate", "bench"))
    collect(defined, how)
    (record, _) = (kernel.steps[Step.COLLECT] for kernel in read_manifest(defined).kernels)
    assert record.status == "no engine"
    assert "sglang is not installed" in record.detail
    assert list_statuses(defined, Step.SIZES) == dict.fromkeys(NORMS, "written")
    result = collect(defined, how, dry_run=True)
    assert result.collected is not None
    assert Step.COLLECT in {line.step for line in result.collected.steps}


@pytest.mark.usefixtures("with_gpu")
def test_a_definition_that_was_verified_before_is_believed(defined: Context) -> None:
    for name in NORMS:
        definition = defined.dataset.find_definition(name)
        assert definition is not None
        defined.dataset.write_definition(definition.model_copy(update={"tags": [*definition.tags, "status:verified"]}))
    collect(defined, CollectOptions(skip_steps=("baseline", "collect", "sizes", "calibrate", "bench")))
    assert list_statuses(defined, Step.TEST) == dict.fromkeys(NORMS, "verified")


def test_a_definition_that_was_written_by_hand_goes_through_the_steps_too(defined: Context) -> None:
    own = bench_run.norm(96).model_copy(update={"name": "by_hand"})
    defined.dataset.write_definition(own)
    found = find_manifest(defined.workspace, "tiny")
    assert found is not None
    manual = (ManualDefinition(name="by_hand", op_type="rmsnorm", executed=True),)
    save_manifest(defined.workspace, found[0], found[1].model_copy(update={"manual": manual}))
    collect(defined, CollectOptions(device="cpu", skip_steps=("test", "calibrate", "bench")))
    (item,) = read_manifest(defined).manual
    assert [(step, record.status) for step, record in item.steps.items()] == [
        (Step.BASELINE, "no kernel"),
        (Step.COLLECT, "no engine"),
        (Step.SIZES, "written"),
    ]
    assert set(list_statuses(defined, Step.SIZES)) == set(NORMS)


def test_a_step_that_cannot_be_done_is_an_error_and_the_others_go_on(
    defined: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise FormatError("bounds that nobody can read")

    monkeypatch.setattr(collect_steps, "calibrate_definitions", fail)
    result = collect(defined)
    assert result.has_errors
    assert result.collected is not None
    assert [(line.step, line.problem) for line in result.collected.steps if line.problem] == [
        (Step.CALIBRATE, "bounds that nobody can read")
    ]
    assert list_statuses(defined, Step.CALIBRATE) == dict.fromkeys(NORMS, "failed")
    assert list_statuses(defined, Step.BENCH) == dict.fromkeys(NORMS, "nothing to measure")
    monkeypatch.undo()
    again = collect(defined)
    assert again.collected is not None
    assert [line.step for line in again.collected.steps] == [Step.CALIBRATE]
    assert list_statuses(defined, Step.CALIBRATE) == dict.fromkeys(NORMS, "calibrated")
    assert any("calibrate: bounds that nobody can read" in line for line in result.summary().lines)


def test_when_time_is_over_what_was_finished_is_kept(defined: Context) -> None:
    add_cpu_baselines(defined)
    steps: list[str] = []
    limited = replace(defined, progress=lambda step, _done, _total: steps.append(step))

    def left(_budget: TimeBudget) -> float:
        return 0.0 if any(step.endswith("rmsnorm_h64: PASSED") for step in steps) else 60.0

    how = CollectOptions(device="cpu", max_minutes=1, skip_steps=("test", "collect", "calibrate"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TimeBudget, "left", property(left))
        result = collect(limited, how)
    assert result.collected is not None
    assert "--max-minutes" in result.collected.stopped
    assert not result.has_errors
    assert list_statuses(defined, Step.SIZES) == dict.fromkeys(NORMS, "written")
    assert list_statuses(defined, Step.BENCH) == {NORMS[0]: "nothing to measure"}
    assert len((defined.dataset.root / "traces/baseline/rmsnorm/rmsnorm_h64.jsonl").read_text().splitlines()) == 1
    rest = collect(defined, how)
    assert rest.collected is not None
    assert [line.step for line in rest.collected.steps] == [Step.BENCH]
    assert len((defined.dataset.root / "traces/baseline/rmsnorm/rmsnorm_h64.jsonl").read_text().splitlines()) == 3


def test_no_step_begins_after_its_time(defined: Context) -> None:
    result = collect(defined, CollectOptions(device="cpu", max_minutes=1e-9))
    assert result.collected is not None
    assert result.collected.steps == ()
    assert result.collected.stopped.endswith("run the same command again to go on")
    assert list_statuses(defined, Step.TEST) == {}


def test_a_dry_run_says_what_is_open_and_needs_no_gpu(defined: Context) -> None:
    before = snapshot(defined.workspace.root)
    result = collect(defined, CollectOptions(skip_steps=("calibrate",)), dry_run=True)
    assert result.collected is not None
    assert [(line.step, line.kernels) for line in result.collected.steps] == [
        (step, 2) for step in Step if step is not Step.CALIBRATE
    ]
    assert snapshot(defined.workspace.root) == before


def test_an_agent_may_not_start_it(defined: Context) -> None:
    with pytest.raises(RequestError, match="an agent may not start it"):
        collect(replace(defined, is_confined=True))


def test_the_workspace_holds_no_clone_and_a_dataset_elsewhere_is_mentioned(defined: Context, tmp_path: Path) -> None:
    shutil.move(defined.dataset.root, tmp_path / "data")
    (defined.workspace.root / "sglang" / ".git").mkdir(parents=True)
    moved = replace(defined, dataset_override=tmp_path / "data")
    with pytest.raises(RequestError) as caught:
        collect(moved, CollectOptions())
    assert "--exclude=./sglang -czf" in (caught.value.todo or "")
    assert f"the dataset {tmp_path / 'data'} travels beside it" in (caught.value.todo or "")
