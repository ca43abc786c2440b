"""What isolated code may use, and the kernel's means to hold it to that."""

from __future__ import annotations

import math
import os
import resource
import sys
from dataclasses import dataclass, fields
from pathlib import Path

from fib_tools.host._landlock import restrict_files
from fib_tools.host._linux import die_with_parent, drop_capabilities, forbid_new_privileges
from fib_tools.host._seccomp import filter_system_calls

__all__ = ["Limits", "Protections", "apply_limits", "confine_process", "interpreter_paths"]

_SYSTEM_PATHS = (
    "/usr",
    "/lib",
    "/lib64",
    "/bin",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/localtime",
    "/proc/self",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/sys/devices/system/cpu",
    "/dev/urandom",
    "/dev/random",
    "/dev/zero",
)
_GPU_READ_PATHS = (
    "/sys",
    "/opt",
    "/etc/nvidia",
    "/proc/driver",
    "/proc/devices",
    "/proc/modules",
    "/proc/sys",
    "/proc/stat",
)
_GPU_WRITE_PATHS = ("/dev/shm", "/proc/self")  # noqa: S108  # where the driver shares memory between processes
_CPU_SECONDS_TO_SPARE = 10
"""The wall clock of the parent decides; the CPU limit only ends what a killed parent left behind."""
_SIGNAL_SCOPE_ABI = 6


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What one job may use."""

    wall_seconds: float = 30
    memory_bytes: int = 4 << 30
    """Address space on top of what the warm process already has."""
    file_bytes: int = 64 << 20
    """Size of any one file, captured output included; the number of files is not limited."""
    answer_bytes: int = 64 << 20
    open_files: int = 256
    processes: int = 0
    """Processes besides its own; threads are free. Above zero, the kernel does not count those of a real root user."""
    writable: tuple[str, ...] = ()
    """Folders besides its scratch folder that it may write."""
    gpu: bool = False
    """It may use GPUs: their devices, and what their driver reads and writes beside them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Protections:
    """Which protections were active around a job, as set up before its code could run."""

    no_new_privileges: bool = False
    capabilities_dropped: bool = False
    dies_with_parent: bool = False
    memory_limited: bool = False
    process_limited: bool = False
    """No processes can be started, or their number is limited."""
    network_denied: bool = False
    """By a network namespace of its own, a system call filter, or both."""
    files_confined: bool = False
    """Landlock: reads what a Python program needs, writes its scratch folder, nothing else."""
    system_calls_filtered: bool = False
    signals_confined: bool = False
    """It cannot signal a process outside."""
    whole_tree_killed: bool = False
    """A process that it started cannot survive it."""

    def missing(self) -> tuple[str, ...]:
        """Name the protections that this machine could not give."""
        return tuple(field.name for field in fields(self) if not getattr(self, field.name))


def interpreter_paths(package_root: Path) -> tuple[Path, ...]:
    """List what a Python program reads to run; `package_root` itself, which may be a work tree, only as fib_tools."""
    installed = [Path(entry) for entry in (sys.prefix, sys.base_prefix, sys.exec_prefix, *sys.path) if entry]
    package = package_root / "fib_tools"
    system = [Path(entry) for entry in _SYSTEM_PATHS]
    return tuple(dict.fromkeys([*system, *(path for path in installed if path != package_root), package]))


def _lower(kind: int, value: int) -> bool:
    hard = resource.getrlimit(kind)[1]
    bounded = value if hard == resource.RLIM_INFINITY else min(value, hard)
    try:
        resource.setrlimit(kind, (bounded, bounded))
    except (OSError, ValueError):
        return False
    return True


def _address_space() -> int | None:
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
    except OSError:
        return None
    return pages * resource.getpagesize()


def _gpu_paths() -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """List what CUDA's driver and compilers read, and what they write (names of threads in /proc/self, for one)."""
    devices = (path for path in Path("/dev").glob("nvidia*"))
    return tuple(Path(entry) for entry in _GPU_READ_PATHS), (*devices, *(Path(entry) for entry in _GPU_WRITE_PATHS))


def apply_limits(limits: Limits) -> tuple[bool, bool]:
    """Set the resource limits of this process; tell whether memory and processes could be limited."""
    cpu = math.ceil(limits.wall_seconds * (os.cpu_count() or 1)) + _CPU_SECONDS_TO_SPARE
    _lower(resource.RLIMIT_CPU, cpu)
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_FSIZE, max(limits.file_bytes, limits.answer_bytes))
    _lower(resource.RLIMIT_NOFILE, limits.open_files)
    used = _address_space()
    # a GPU's driver reserves address space without end; what is written to counts as data
    kind = resource.RLIMIT_DATA if limits.gpu else resource.RLIMIT_AS
    memory = used is not None and _lower(kind, used + limits.memory_bytes)
    # the kernel never refuses a process to the real root user, and threads count as processes: no limit when none are allowed
    processes = limits.processes > 0 and _lower(resource.RLIMIT_NPROC, limits.processes + 1) and os.getuid() != 0
    return memory, processes


def confine_process(
    limits: Limits, read_only: tuple[Path, ...], *, scratch: Path, own_network: bool, own_processes: bool
) -> Protections:
    """Hold this process, for the rest of its life, to `limits` and the given files."""
    memory, processes = apply_limits(limits)
    dies = die_with_parent()
    capabilities = drop_capabilities()
    privileges = forbid_new_privileges()
    read, written = _gpu_paths() if limits.gpu else ((), ())
    landlock = restrict_files((*read_only, *read), (scratch, Path("/dev/null"), *written, *map(Path, limits.writable)))
    may_fork = limits.processes > 0
    filtered = filter_system_calls(may_fork=may_fork, local_sockets=limits.gpu)
    no_processes = filtered and not may_fork
    return Protections(
        no_new_privileges=privileges,
        capabilities_dropped=capabilities,
        dies_with_parent=dies,
        memory_limited=memory,
        process_limited=processes or no_processes,
        network_denied=own_network or filtered,
        files_confined=landlock > 0,
        system_calls_filtered=filtered,
        signals_confined=own_processes or no_processes or landlock >= _SIGNAL_SCOPE_ABI,
        whole_tree_killed=own_processes or no_processes,
    )
