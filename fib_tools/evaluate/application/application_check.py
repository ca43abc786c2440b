"""Checking an applied folder by running FlashInfer with it: confined on a CPU, under the GPU's lock on a GPU."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fib_tools.errors import ChildCrashedError, RequestError
from fib_tools.evaluate.application.application import Application
from fib_tools.host.env import engine_environment
from fib_tools.host.gpu_lock import acquire
from fib_tools.host.process import run_command
from fib_tools.host.sandbox import Limits, Sandbox
from fib_tools.model.base import to_document
from fib_tools.model.solution import Language

__all__ = ["Checked", "Dispatch", "check_dispatch", "find_needed_gpu"]

_CHILD = "fib_tools.evaluate.application._apply_child"
_LIMITS = Limits(wall_seconds=300, memory_bytes=16 << 30, processes=32)
"""Address space, not memory: torch and FlashInfer map libraries of several GB and touch little of them."""
_GPU_SECONDS = 1800.0
"""With the compiling of C++ and CUDA."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Dispatch:
    """How FlashInfer is called, so that it goes to one application."""

    application: Application
    fi_api: str
    parameters: Mapping[str, str]
    """The API's parameter of each of the template's inputs."""
    plain: Mapping[str, Any]
    """The call's other arguments, by parameter."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checked:
    """What came of one call."""

    problem: str = ""
    """Why the Solution is not what ran; empty when it was."""
    falls_back: str = ""
    """The const axis with another length of which the call fell back."""
    device: str = ""


def find_needed_gpu(dispatches: Sequence[Dispatch]) -> str:
    """Name a Solution that only a GPU can run; empty when a CPU may do."""
    solutions = (dispatch.application.solution for dispatch in dispatches)
    return next((solution.name for solution in solutions if solution.spec.language is not Language.PYTHON), "")


def check_dispatch(folder: Path, dispatches: Sequence[Dispatch], *, on_gpu: bool) -> list[Checked]:
    """Call FlashInfer with the folder applied, once for each application and once with a size that is not its.

    Raises:
        RequestError: FlashInfer did not take the folder.
        ChildError: the process did not come to an end of its own.
    """
    if not dispatches:
        return []
    payload = {"folder": str(folder), "calls": [_write_call(dispatch) for dispatch in dispatches]}
    answer = _run_on_gpu(payload) if on_gpu else _run_confined(folder, payload)
    if answer["problem"]:
        raise RequestError(f"FlashInfer did not take the folder: {answer['problem']}", where=str(folder))
    return [_read(call) for call in answer["calls"]]


def _write_call(dispatch: Dispatch) -> dict[str, Any]:
    application = dispatch.application
    return {
        "fi_api": dispatch.fi_api,
        "definition": to_document(application.definition),
        "keys": dict(application.interface.keys),
        "parameters": dict(dispatch.parameters),
        "plain": dict(dispatch.plain),
    }


def _run_confined(folder: Path, payload: dict[str, Any]) -> dict[str, Any]:
    with Sandbox(("torch",), limits=_LIMITS, readable=(folder,)) as sandbox:
        return sandbox.run(f"{_CHILD}:check", payload)


def _run_on_gpu(payload: dict[str, Any]) -> dict[str, Any]:
    with acquire(1, command="fib apply") as lease, tempfile.TemporaryDirectory() as scratch:
        source, target = Path(scratch) / "payload.json", Path(scratch) / "answer.json"
        source.write_text(json.dumps(payload), encoding="utf-8")
        ended = run_command(
            [sys.executable, "-m", _CHILD, str(source), str(target)],
            cwd=Path(scratch),
            timeout=_GPU_SECONDS,
            env={**engine_environment(), **lease.environment},
            descriptors=tuple(lease.descriptors),
        )
        if not target.exists():
            raise ChildCrashedError(f"the check ended with {ended.status}: {ended.stderr.strip()[-600:]}")
        answer: dict[str, Any] = json.loads(target.read_text(encoding="utf-8"))
        return answer


def _read(call: Mapping[str, Any]) -> Checked:
    falls_back, device = str(call.get("falls_back", "")), str(call["device"])
    return Checked(problem=_find_problem(call), falls_back=falls_back, device=device)


def _find_problem(call: Mapping[str, Any]) -> str:
    detail = str(call["detail"])
    match call["outcome"]:
        case "hit":
            return str(call.get("graph", "")) or (
                "" if call["falls_back"] else "a call of any size is dispatched to it"
            )
        case "error":
            needs = "" if call["device"] == "cuda" else "; perhaps it needs a GPU"
            return f"FlashInfer dispatched to it, and it raised {detail}{needs}"
        case "fallback_no_candidate":
            return "FlashInfer fell back: the call has another name"
        case _:
            return f"FlashInfer did not look for a Solution: it has not patched this API{f' ({detail})' * bool(detail)}"
