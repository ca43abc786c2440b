from __future__ import annotations

import sys
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from fib_tools.errors import RequestError
from fib_tools.host.env import GpuSettings
from fib_tools.host.gpus import (
    Device,
    Discovery,
    Gpu,
    discover_gpus,
    find_memory_bytes,
    find_processes,
    select_visible,
)


@dataclass
class FakeGpu:
    uuid: str
    name: str = "NVIDIA H200"
    instances: dict[int, FakeGpu] | None = None
    """By number; None: this GPU does not know MIG."""
    pids: tuple[int, ...] = ()
    fails: bool = False


@dataclass
class FakeNvml:
    """What the lock asks of pynvml, and nothing more."""

    gpus: list[FakeGpu]
    has_driver: bool = True
    open_count: int = 0
    NVML_DEVICE_MIG_ENABLE: int = 1
    NVMLError: type[Exception] = field(default_factory=lambda: type("NVMLError", (Exception,), {}))

    def nvmlInit(self) -> None:  # noqa: N802
        if not self.has_driver:
            raise self.NVMLError("Driver Not Loaded")
        self.open_count += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open_count -= 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> FakeGpu:  # noqa: N802
        if self.gpus[index].fails:
            raise self.NVMLError("GPU is lost")
        return self.gpus[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> FakeGpu:  # noqa: N802
        every = [*self.gpus, *(instance for gpu in self.gpus for instance in (gpu.instances or {}).values())]
        for gpu in every:
            if gpu.uuid == uuid and not gpu.fails:
                return gpu
        raise self.NVMLError("Not Found")

    def nvmlDeviceGetMemoryInfo(self, _handle: FakeGpu) -> Any:  # noqa: N802
        return SimpleNamespace(total=141 << 30)

    def nvmlDeviceGetUUID(self, handle: FakeGpu) -> str:  # noqa: N802
        return handle.uuid

    def nvmlDeviceGetName(self, handle: FakeGpu) -> str:  # noqa: N802
        return handle.name

    def nvmlDeviceGetCudaComputeCapability(self, _handle: FakeGpu) -> tuple[int, int]:  # noqa: N802
        return (9, 0)

    def nvmlDeviceGetMigMode(self, handle: FakeGpu) -> list[int]:  # noqa: N802
        if handle.instances is None:
            raise self.NVMLError("Not Supported")
        return [int(handle.instances != {-1: handle}), 0]

    def nvmlDeviceGetMaxMigDeviceCount(self, _handle: FakeGpu) -> int:  # noqa: N802
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: FakeGpu, number: int) -> FakeGpu:  # noqa: N802
        assert handle.instances is not None
        if number not in handle.instances:
            raise self.NVMLError("Not Found")
        return handle.instances[number]

    def nvmlDeviceGetComputeRunningProcesses(self, handle: FakeGpu) -> list[Any]:  # noqa: N802
        return [SimpleNamespace(pid=pid) for pid in handle.pids]


def settings(*, visible: str | None = None, pretend: str | None = None) -> GpuSettings:
    return GpuSettings(visible=visible, pretend=pretend, lock_folder=None, lease=None)


def install(monkeypatch: pytest.MonkeyPatch, *gpus: FakeGpu, has_driver: bool = True) -> FakeNvml:
    nvml = FakeNvml(list(gpus), has_driver=has_driver)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    return nvml


def uuids(discovery: Discovery) -> list[str]:
    return [gpu.uuid for gpu in discovery.visible]


def test_gpus_are_listed_as_nvml_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = install(monkeypatch, FakeGpu("GPU-aa"), FakeGpu("GPU-bb", name="NVIDIA L4"))
    discovery = discover_gpus(settings())
    both = (
        Gpu(uuid="GPU-aa", index=0, name="NVIDIA H200", capability=90),
        Gpu(uuid="GPU-bb", index=1, name="NVIDIA L4", capability=90),
    )
    assert discovery == Discovery(all_gpus=both, visible=both)
    assert nvml.open_count == 0


def test_without_the_library_there_is_no_gpu_and_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    discovery = discover_gpus(settings())
    assert discovery.all_gpus == ()
    assert "nvidia-ml-py is not installed" in discovery.notes[0]
    assert find_processes([Gpu(uuid="GPU-aa", index=0, name="x")]) == {"GPU-aa": None}


def test_without_a_driver_there_is_no_gpu_and_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, has_driver=False)
    assert discover_gpus(settings()) == Discovery(all_gpus=(), visible=(), notes=("no GPU: Driver Not Loaded",))
    assert find_processes([Gpu(uuid="GPU-aa", index=0, name="x")]) == {"GPU-aa": None}


def test_a_driver_without_gpus_is_said_to_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    assert discover_gpus(settings()).notes == ("no GPU: the driver lists none",)


def test_a_broken_gpu_does_not_hide_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeGpu("GPU-aa", fails=True), FakeGpu("GPU-bb"))
    discovery = discover_gpus(settings(visible="1"))
    assert uuids(discovery) == ["GPU-bb"]
    assert discovery.notes == ("GPU 0 is left out: GPU is lost",)


def test_the_instances_of_a_cut_gpu_stand_in_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    cut = FakeGpu("GPU-aa", instances={0: FakeGpu("MIG-1", name="1g"), 3: FakeGpu("MIG-2", name="2g")})
    empty = FakeGpu("GPU-cc", instances={})
    install(monkeypatch, cut, FakeGpu("GPU-bb"), empty)
    discovery = discover_gpus(settings())
    assert discovery.all_gpus == (
        Gpu(uuid="MIG-1", index=0, name="1g", parent="GPU-aa", capability=90),
        Gpu(uuid="MIG-2", index=0, name="2g", parent="GPU-aa", capability=90),
        Gpu(uuid="GPU-bb", index=1, name="NVIDIA H200", capability=90),
    )
    assert discovery.notes == ("GPU 2 is cut by MIG and has no instance",)


def test_a_gpu_that_could_be_cut_and_is_not_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu("GPU-aa", instances={})
    gpu.instances = {-1: gpu}
    install(monkeypatch, gpu)
    assert uuids(discover_gpus(settings())) == ["GPU-aa"]


DEVICES = [
    Device(gpu=Gpu(uuid="GPU-1a2b", index=0, name="x")),
    Device(gpu=Gpu(uuid="GPU-1a3c", index=1, name="x")),
    Device(
        gpu=Gpu(uuid="GPU-77aa", index=2, name="x"),
        is_cut=True,
        instances=(
            Gpu(uuid="MIG-5e", index=2, name="1g", parent="GPU-77aa"),
            Gpu(uuid="MIG-5f", index=2, name="1g", parent="GPU-77aa"),
        ),
    ),
    Device(gpu=Gpu(uuid="GPU-9", index=3, name="x")),
    Device(gpu=Gpu(uuid="GPU-99", index=10, name="x")),
]


@pytest.mark.parametrize(
    ("text", "visible"),
    [
        ("0", ["GPU-1a2b"]),
        ("1,0", ["GPU-1a3c", "GPU-1a2b"]),
        (" 1 , 3 ", ["GPU-1a3c", "GPU-9"]),
        ("10", ["GPU-99"]),
        ("", []),
        ("-1", []),
        ("none", []),
        ("NoDevFiles", []),
        ("0,-1,1", ["GPU-1a2b"]),
        ("0,7,1", ["GPU-1a2b"]),
        ("0,,1", ["GPU-1a2b"]),
        ("1gpu,0", ["GPU-1a3c", "GPU-1a2b"]),
        ("0,0", []),
        ("0,1,0", []),
        ("2", ["MIG-5e"]),
        ("GPU-1a3c", ["GPU-1a3c"]),
        ("GPU-1a3,GPU-1a2", ["GPU-1a3c", "GPU-1a2b"]),
        ("GPU-1a", []),
        ("GPU-9", ["GPU-9"]),
        ("GPU-9,GPU-99", ["GPU-9", "GPU-99"]),
        ("GPU-0", []),
        ("GPU-9,0", ["GPU-9"]),
        ("0,GPU-9", ["GPU-1a2b"]),
        ("GPU-77aa", ["MIG-5e"]),
        ("MIG-5f", ["MIG-5f"]),
        ("MIG-5f,MIG-5e", ["MIG-5f", "MIG-5e"]),
        ("MIG-5", []),
        ("MIG-GPU-77aa/1/0", []),
    ],
)
def test_visible_devices_are_read_as_cuda_reads_them(text: str, visible: list[str]) -> None:
    assert [gpu.uuid for gpu in select_visible(DEVICES, text)] == visible


def test_what_is_hidden_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeGpu("GPU-aa"), FakeGpu("GPU-bb"))
    discovery = discover_gpus(settings(visible="GPU-b"))
    assert uuids(discovery) == ["GPU-bb"]
    assert len(discovery.all_gpus) == 2
    assert discovery.notes == ("CUDA_VISIBLE_DEVICES=GPU-b leaves 1 of 2",)


def test_pretended_gpus_hide_real_ones_and_are_called_so(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeGpu("GPU-aa"))
    discovery = discover_gpus(settings(pretend="2"))
    assert uuids(discovery) == ["GPU-pretend-0", "GPU-pretend-1"]
    assert discovery.is_pretend
    assert "pretended" in discovery.notes[0]
    assert discover_gpus(settings(pretend="0")).all_gpus == ()


@pytest.mark.parametrize("text", ["many", "-1", "1.5", "1025", "99999"])
def test_a_number_of_gpus_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="no number of GPUs"):
        discover_gpus(settings(pretend=text))


def test_processes_are_found_on_gpus_and_instances(monkeypatch: pytest.MonkeyPatch) -> None:
    cut = FakeGpu("GPU-aa", instances={0: FakeGpu("MIG-1", pids=(7,))})
    install(monkeypatch, cut, FakeGpu("GPU-bb", pids=(8, 9)), FakeGpu("GPU-cc", fails=True))
    asked = [Gpu(uuid=uuid, index=0, name="x") for uuid in ("MIG-1", "GPU-bb", "GPU-cc", "GPU-pretend-0")]
    assert find_processes(asked) == {"MIG-1": (7,), "GPU-bb": (8, 9), "GPU-cc": None, "GPU-pretend-0": ()}


def test_the_memory_of_a_gpu_is_known_where_nvml_can_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeGpu("GPU-aa"), FakeGpu("GPU-bb", fails=True))
    assert [find_memory_bytes(uuid) for uuid in ("GPU-aa", "GPU-bb", "GPU-pretend-0")] == [141 << 30, None, None]
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert find_memory_bytes("GPU-aa") is None
