"""The environment: the only module that reads it."""

from __future__ import annotations

import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fib_tools.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "GpuSettings",
    "Settings",
    "cache_dir",
    "child_environment",
    "engine_environment",
    "find_nvcc",
    "has_display",
    "inherited_environment",
    "kernel_caches",
    "proxy_environment",
    "read_endpoint",
    "read_gpu_settings",
    "read_script_dataset",
    "read_secret",
    "read_settings",
    "redact",
    "redact_command",
    "redact_values",
]

_HF_ENDPOINT = "https://huggingface.co"
_MASK = "***"
_SECRET_NAME = re.compile(r"TOKEN(?!IZER)|KEY|SECRET|PASSWORD|PASSWD|CREDENTIAL", re.IGNORECASE)
_SHORTEST_SECRET = 8
"""Values below this length are words ("true", "1") that would be masked all over a text."""
_PASSED_ON = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "SSL_CERT_FILE", "SYSTEMROOT")
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "GIT_SSL_CAINFO", "SSL_CERT_DIR", "SSH_AUTH_SOCK")
_ENGINE = (*_PASSED_ON, "HOME", "USER", "TMPDIR", "XDG_CACHE_HOME", "PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH",
           "LIBRARY_PATH", "CPATH", "CC", "CXX", "MAX_JOBS")  # fmt: skip
_ENGINE_FAMILIES = (
    "CUDA_",
    "NVIDIA_",
    "NVCC_",
    "NCCL_",
    "FLASHINFER_",
    "TVM_FFI_",
    "TRITON_",
    "TORCH",
    "SGLANG_",
    "HF_HOME",
    "FIB_GPU_",
)
_SECRET_SHAPES = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{8,}|gh[opsur]_[A-Za-z0-9]{8,}|github_pat_[A-Za-z0-9_]{8,}|sk-ant-[A-Za-z0-9_-]{8,})"
)
_BEARER = re.compile(
    r"(\bauthorization:\s*\w+|\b(?:bearer|basic)(?=\s+(?:\S{16}|\S*[0-9=])))\s+[A-Za-z0-9._~+/=-]{6,}", re.IGNORECASE
)
"""A header's value; prose such as "basic instructions" is none."""
_USERINFO = re.compile(r"\b([a-z][a-z0-9+.-]*://)[^\s/@]+@", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What the environment asks of this tool."""

    hf_endpoint: str
    offline: bool
    """HF_HUB_OFFLINE or FIB_OFFLINE is set: nothing may reach for the network."""
    workspace: Path | None
    no_color: bool


def has_display() -> bool:
    """Tell whether whoever started this process can be shown a window."""
    return sys.platform in {"darwin", "win32"} or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


def read_settings() -> Settings:
    """Read the environment once, as a value that can be passed on."""
    workspace = os.environ.get("FIB_WORKSPACE")
    return Settings(
        hf_endpoint=os.environ.get("HF_ENDPOINT", _HF_ENDPOINT).rstrip("/"),
        offline=_is_on("HF_HUB_OFFLINE") or _is_on("FIB_OFFLINE"),
        workspace=Path(workspace).expanduser() if workspace else None,
        no_color=bool(os.environ.get("NO_COLOR")),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuSettings:
    """What the environment says about GPUs."""

    visible: str | None
    """CUDA_VISIBLE_DEVICES; empty: none may be seen."""
    pretend: str | None
    """FIB_PRETEND_GPUS: how many GPUs to make believe in, instead of asking NVML."""
    lock_folder: Path | None
    """FIB_GPU_LOCK_DIR."""
    lease: str | None
    """FIB_GPU_LEASE: the lease under which this process was started."""


def read_gpu_settings() -> GpuSettings:
    """Read what the environment says about GPUs once, as a value that can be passed on.

    Raises:
        RequestError: the folder of locks is a relative path.
    """
    folder = os.environ.get("FIB_GPU_LOCK_DIR")
    if folder and not Path(folder).expanduser().is_absolute():
        todo = "set an absolute path: every working directory would have locks of its own"
        raise RequestError(f"FIB_GPU_LOCK_DIR is the relative path {folder!r}", todo=todo)
    return GpuSettings(
        visible=os.environ.get("CUDA_VISIBLE_DEVICES"),
        pretend=os.environ.get("FIB_PRETEND_GPUS") or None,
        lock_folder=Path(folder).expanduser() if folder else None,
        lease=os.environ.get("FIB_GPU_LEASE") or None,
    )


def read_script_dataset() -> Path | None:
    """Read where the Workloads of the running script go: FIB_DATASET_PATH, if FIB_ENABLE_TRACING is on.

    Raises:
        RequestError: tracing is on, and no dataset is named.
    """
    if not _is_on("FIB_ENABLE_TRACING"):
        return None
    named = os.environ.get("FIB_DATASET_PATH")
    if not named:
        raise RequestError("FIB_ENABLE_TRACING is on without a dataset", todo="set FIB_DATASET_PATH to its folder")
    return Path(named).expanduser()


def cache_dir() -> Path:
    """Name the folder for what can be fetched or computed again; it need not exist."""
    return _cache_home() / "fib-tools"


def read_secret(name: str) -> str | None:
    """Read a token at the moment of its use, so that no value object carries it."""
    return os.environ.get(name) or None


def read_endpoint(name: str) -> str | None:
    """Read the address of a service, such as ANTHROPIC_BASE_URL; None stands for the service's own."""
    return os.environ.get(name, "").rstrip("/") or None


def child_environment(*, home: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Build the few variables a child needs, with another home and without anything that is secret by its name."""
    passed = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    chosen = {"LANG": "C.UTF-8", "PATH": os.defpath, **passed, "HOME": str(home), "USER": "fib", **(extra or {})}
    return {name: value for name, value in chosen.items() if not _SECRET_NAME.search(name)}


def engine_environment() -> dict[str, str]:
    """Take the variables that a serving engine needs: its libraries, compilers, GPUs and the caches of what it compiles."""
    passed = (name for name in os.environ if name in _ENGINE or name.startswith(_ENGINE_FAMILIES))
    return {"LANG": "C.UTF-8", "PATH": os.defpath, **{name: os.environ[name] for name in passed}}


def kernel_caches() -> tuple[dict[str, str], tuple[Path, ...]]:
    """Name where kernel libraries keep what they compile: by the variables that tell them so, and the folders to write to."""
    home = Path.home()
    base = Path(os.environ.get("FLASHINFER_WORKSPACE_BASE") or home)
    ffi = Path(os.environ.get("TVM_FFI_CACHE_DIR") or home / ".cache" / "tvm-ffi")
    variables = {"FLASHINFER_WORKSPACE_BASE": str(base), "TVM_FFI_CACHE_DIR": str(ffi)}
    return variables, (base / ".cache" / "flashinfer", ffi)


def find_nvcc() -> str | None:
    """Find CUDA's compiler where those who build extensions look: in PATH, then below CUDA_HOME, CUDA_PATH, /usr/local/cuda."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    return shutil.which("nvcc", path=os.pathsep.join([os.environ.get("PATH", os.defpath), str(Path(home, "bin"))]))


def inherited_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Take the whole environment, for a command of the user's own, with `extra` in place of what it says."""
    return {**os.environ, **extra}


def proxy_environment() -> dict[str, str]:
    """Take the variables by which a command of ours (never untrusted code) reaches the network."""
    names = [spelling for name in _PROXIES for spelling in (name, name.lower())]
    return {name: os.environ[name] for name in names if name in os.environ}


def redact(text: str) -> str:
    """Mask tokens by their shape, credentials in URLs, and the values of secret variables."""
    for value in _secret_values():
        text = text.replace(value, _MASK)
    text = _SECRET_SHAPES.sub(_MASK, text)
    text = _BEARER.sub(rf"\1 {_MASK}", text)
    return _USERINFO.sub(rf"\1{_MASK}@", text)


def redact_command(args: Sequence[str]) -> str:
    """Write a command on one line, without what it says after options and names such as --token or API_KEY=."""
    shown: list[str] = []
    hides_next = False
    for arg in args:
        name, equals, _ = arg.partition("=")
        is_secret = bool(_SECRET_NAME.search(name)) and (bool(equals) or arg.startswith("-"))
        shown.append(_MASK if hides_next else f"{name}={_MASK}" if is_secret and equals else arg)
        hides_next = is_secret and not equals and not hides_next
    return redact(" ".join(shown))


def redact_values(document: Any) -> Any:
    """Mask tokens in every text of a plain document; keys and numbers stay as they are."""
    if isinstance(document, str):
        return redact(document)
    if isinstance(document, dict):
        return {key: redact_values(value) for key, value in document.items()}
    if isinstance(document, (list, tuple)):
        return [redact_values(value) for value in document]
    return document


def _secret_values() -> list[str]:
    named = (value for name, value in os.environ.items() if _SECRET_NAME.search(name))
    return sorted({value for value in named if len(value) >= _SHORTEST_SECRET}, key=len, reverse=True)


def _is_on(name: str) -> bool:
    return os.environ.get(name, "").strip().lower() in {"1", "true", "yes", "on"}


def _cache_home() -> Path:
    chosen = os.environ.get("XDG_CACHE_HOME", "")
    # the XDG specification has relative paths ignored
    return Path(chosen) if Path(chosen).is_absolute() else Path.home() / ".cache"
