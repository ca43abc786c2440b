from __future__ import annotations

from fib_tools.model.base import read_strict, to_document
from fib_tools.model.manifest import DefineStatus, FiStatus, Manifest, ManifestKernel, Phase1Status, SglStatus
from fib_tools.model.progress import PhaseTime, Step, StepRecord, add_time, sum_times


def spent(phase: int, seconds: float, step: Step | None = None, machine: str = "") -> PhaseTime:
    return PhaseTime(phase=phase, step=step, seconds=seconds, machine=machine)


def test_times_add_up_and_stand_in_the_order_of_phases_and_steps() -> None:
    times: tuple[PhaseTime, ...] = ()
    for each in (spent(4, 1.0), spent(3, 2.0, Step.BENCH), spent(1, 3.0), spent(3, 4.0, Step.TEST, "a")):
        times = add_time(times, each)
    times = add_time(times, spent(3, 0.5, Step.TEST, "b"))
    assert times == (spent(1, 3.0), spent(3, 4.5, Step.TEST, "b"), spent(3, 2.0, Step.BENCH), spent(4, 1.0))
    assert sum_times(times) == {1: 3.0, 3: 6.5, 4: 1.0}
    assert sum_times(()) == {}


def test_a_manifest_with_records_comes_back_as_it_was_written() -> None:
    record = StepRecord(status="passed", detail="3 of 3", basis="0a", machine="NVIDIA H200")
    kernel = ManifestKernel(
        name="rmsnorm_h64",
        op_type="rmsnorm",
        kernel="rmsnorm",
        parameters={"hidden_size": 64},
        phase1_status=Phase1Status.NEW,
        fi_status=FiStatus.SUPPORTED,
        fi_trace_template=True,
        sgl_status=SglStatus.INTEGRATED,
        define_status=DefineStatus.DEFINED,
        steps={Step.TEST: record},
    )
    manifest = Manifest(model="tiny", kernels=(kernel,), times=(spent(3, 1.5, Step.TEST),))
    document = to_document(manifest)
    assert document["kernels"][0]["steps"] == {"test": to_document(record)}
    assert read_strict(Manifest, document, where="here") == manifest


def test_a_kernel_is_staged_under_its_own_name_or_another_once_it_is_defined() -> None:
    kernel = ManifestKernel(
        name="a", op_type="gemm", kernel="gemm", parameters={}, phase1_status=Phase1Status.NEW,
        fi_status=FiStatus.MISSING, fi_trace_template=False, sgl_status=SglStatus.NOT_APPLICABLE,
    )  # fmt: skip
    staged = {status: kernel.model_copy(update={"define_status": status}).staged for status in DefineStatus}
    assert staged == {
        DefineStatus.PENDING: None,
        DefineStatus.DEFINED: "a",
        DefineStatus.EXISTING: "a",
        DefineStatus.REFUSED: None,
    }
    renamed = kernel.model_copy(update={"define_status": DefineStatus.EXISTING, "definition": "b"})
    assert renamed.staged == "b"
