"""The GPUs of this machine, as NVML lists them.

What can be locked is a GPU, or, where a GPU is cut by MIG, each of its instances and not the GPU.
FIB_PRETEND_GPUS=8 stands in eight GPUs that do not exist.
"""

from __future__ import annotations

import re
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from fib_tools.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fib_tools.host.env import GpuSettings

__all__ = [
    "Device",
    "Discovery",
    "Gpu",
    "discover_gpus",
    "find_memory_bytes",
    "find_processes",
    "load_nvml",
    "select_visible",
]

_MOST_PRETEND = 1024
_PRETEND = "GPU-pretend-"


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """What one lock is for: a GPU, or an instance of one."""

    uuid: str
    """As CUDA_VISIBLE_DEVICES takes it: GPU-... or MIG-..."""
    index: int
    """That of the whole GPU, in the order of the PCI bus."""
    name: str
    parent: str | None = None
    """UUID of the GPU that this instance is cut from."""
    capability: int = 0
    """Major times ten plus minor, such as 90; 0 if it is not known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """One GPU in the machine, with its MIG instances."""

    gpu: Gpu
    is_cut: bool = False
    """MIG is on; without instances nothing of it can be used."""
    instances: tuple[Gpu, ...] = ()

    @property
    def units(self) -> tuple[Gpu, ...]:
        """What of it can be locked."""
        return self.instances if self.is_cut else (self.gpu,)


@dataclass(frozen=True, kw_only=True, slots=True)
class Discovery:
    """What was found, and what this process may see of it."""

    all_gpus: tuple[Gpu, ...]
    visible: tuple[Gpu, ...]
    """Those that CUDA_VISIBLE_DEVICES leaves, in its order."""
    notes: tuple[str, ...] = ()
    """Why there are none, or fewer than one would think."""
    is_pretend: bool = False


def discover_gpus(settings: GpuSettings) -> Discovery:
    """List what can be locked; no library, no driver or no GPU is an empty list with a note, not an error.

    Raises:
        RequestError: FIB_PRETEND_GPUS is no number.
    """
    if settings.pretend is not None:
        devices, notes = _pretend(settings.pretend), ["these GPUs are pretended (FIB_PRETEND_GPUS)"]
    else:
        devices, notes = _ask_nvml()
    units = tuple(unit for device in devices for unit in device.units)
    visible = units if settings.visible is None else select_visible(devices, settings.visible)
    if len(visible) < len(units):
        notes.append(f"CUDA_VISIBLE_DEVICES={settings.visible} leaves {len(visible)} of {len(units)}")
    return Discovery(all_gpus=units, visible=visible, notes=tuple(notes), is_pretend=settings.pretend is not None)


def select_visible(devices: Sequence[Device], text: str) -> tuple[Gpu, ...]:
    """Read CUDA_VISIBLE_DEVICES as CUDA does: up to the first entry that names no device; nothing if one comes twice.

    Indices are taken in the order of the PCI bus. A GPU that is cut by MIG stands for its first instance.

    Sources: CUDA programming guide, "CUDA environment variables"; `_parse_visible_devices` of torch/cuda/__init__.py.
    """
    chosen: list[Gpu] = []
    first_kind = None
    for entry in (piece.strip() for piece in text.split(",")):
        kind = entry[:4] if entry.startswith(("GPU-", "MIG-")) else "index"
        first_kind = first_kind or kind
        unit = _find_unit(devices, entry) if kind == first_kind else None
        if unit is None:
            break
        if unit in chosen:
            return ()
        chosen.append(unit)
    return tuple(chosen)


def _find_unit(devices: Sequence[Device], entry: str) -> Gpu | None:
    number = re.match(r"[0-9]+", entry)  # like strtoul, CUDA ignores what follows
    if number:
        matches = [device for device in devices if device.gpu.index == int(number[0])]
    elif entry.startswith("MIG-"):
        return _match([instance for device in devices for instance in device.instances], entry)
    elif entry.startswith("GPU-"):
        gpu = _match([device.gpu for device in devices], entry)
        matches = [device for device in devices if device.gpu == gpu]
    else:
        return None
    return next((unit for device in matches for unit in device.units), None)


def _match(gpus: Sequence[Gpu], prefix: str) -> Gpu | None:
    exact = [gpu for gpu in gpus if gpu.uuid == prefix]
    found = exact or [gpu for gpu in gpus if gpu.uuid.startswith(prefix)]
    return found[0] if len(found) == 1 else None


def find_processes(gpus: Sequence[Gpu]) -> dict[str, tuple[int, ...] | None]:
    """Find the processes that compute on each GPU, of any user, by UUID; None for one that NVML cannot ask."""
    found: dict[str, tuple[int, ...] | None] = {gpu.uuid: () if gpu.uuid.startswith(_PRETEND) else None for gpu in gpus}
    real = [gpu.uuid for gpu in gpus if found[gpu.uuid] is None]
    nvml = load_nvml() if real else None
    if nvml is None:
        return found
    with suppress(nvml.NVMLError), _open(nvml):
        for uuid in real:
            with suppress(nvml.NVMLError):
                handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
                found[uuid] = tuple(process.pid for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle))
    return found


def find_memory_bytes(uuid: str) -> int | None:
    """Find how much memory a GPU or an instance of one has in all; None for one that NVML cannot ask."""
    nvml = None if uuid.startswith(_PRETEND) else load_nvml()
    if nvml is None:
        return None
    found = None
    with suppress(nvml.NVMLError), _open(nvml):
        found = int(nvml.nvmlDeviceGetMemoryInfo(nvml.nvmlDeviceGetHandleByUUID(uuid)).total)
    return found


def _pretend(text: str) -> list[Device]:
    if not re.fullmatch(r"[0-9]{1,4}", text) or int(text) > _MOST_PRETEND:
        todo = f"set it to a number up to {_MOST_PRETEND}, or unset it"
        raise RequestError(f"{text!r} is no number of GPUs", where="FIB_PRETEND_GPUS", todo=todo)
    return [Device(gpu=Gpu(uuid=f"{_PRETEND}{index}", index=index, name="pretended GPU")) for index in range(int(text))]


def load_nvml() -> Any | None:
    """Import NVML's bindings, which are optional, and which nothing but GPU work needs."""
    try:
        return import_module("pynvml")
    except ImportError:
        return None


@contextmanager
def _open(nvml: Any) -> Iterator[None]:
    nvml.nvmlInit()
    try:
        yield
    finally:
        nvml.nvmlShutdown()


def _ask_nvml() -> tuple[list[Device], list[str]]:
    nvml = load_nvml()
    if nvml is None:
        return [], ["no GPU: nvidia-ml-py is not installed (pip install nvidia-ml-py)"]
    devices: list[Device] = []
    notes: list[str] = []
    try:
        with _open(nvml):
            for index in range(nvml.nvmlDeviceGetCount()):
                try:
                    devices.append(_read_device(nvml, index))
                except nvml.NVMLError as error:
                    notes.append(f"GPU {index} is left out: {error}")
    except nvml.NVMLError as error:
        return [], [f"no GPU: {error}"]
    notes += [f"GPU {device.gpu.index} is cut by MIG and has no instance" for device in devices if not device.units]
    return devices, notes if devices or notes else ["no GPU: the driver lists none"]


def _read_device(nvml: Any, index: int) -> Device:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    gpu = Gpu(
        uuid=nvml.nvmlDeviceGetUUID(handle),
        index=index,
        name=nvml.nvmlDeviceGetName(handle),
        capability=10 * major + minor,
    )
    if not _is_cut(nvml, handle):
        return Device(gpu=gpu)
    instances: list[Gpu] = []
    for number in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        with suppress(nvml.NVMLError):  # no instance has this number
            instance = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number)
            name = nvml.nvmlDeviceGetName(instance)
            instances.append(replace(gpu, uuid=nvml.nvmlDeviceGetUUID(instance), name=name, parent=gpu.uuid))
    return Device(gpu=gpu, is_cut=True, instances=tuple(instances))


def _is_cut(nvml: Any, handle: Any) -> bool:
    try:
        return bool(nvml.nvmlDeviceGetMigMode(handle)[0] == nvml.NVML_DEVICE_MIG_ENABLE)
    except nvml.NVMLError:  # most GPUs do not know MIG
        return False
