"""What a machine lacks to run what a language needs: nobody's draft is to blame for it."""

from __future__ import annotations

import importlib.util
import re

from fib_tools.errors import RequestError
from fib_tools.host.env import find_nvcc
from fib_tools.model.solution import Language

__all__ = ["blames_machine", "check_language", "check_machine"]

_PACKAGES = {Language.TRITON: "triton", Language.TILELANG: "tilelang"}
_LACKS = re.compile(r"No module named '(?:torch|triton|tilelang)'|CUDA_HOME|\bnvcc\b.*not|\bninja\b.*not|No CUDA GPUs")


def check_language(language: Language, device: str) -> None:
    """Refuse a language that runs on no device of this kind.

    Raises:
        RequestError: it is not for a CPU.
    """
    if device == "cpu" and language is not Language.PYTHON:
        todo = "take the language python, or the device cuda"
        raise RequestError(f"{language.value} does not run on a CPU", where="--language", todo=todo)


def check_machine(language: Language, device: str, capability: int) -> None:
    """Refuse at once what could not be judged here.

    Raises:
        RequestError: the language is not for the device, or there is no GPU, no compiler, or no such package.
    """
    check_language(language, device)
    if device == "cpu":
        return
    if not capability:
        todo = "take the device cpu with the language python to learn, or a machine with a GPU"
        raise RequestError("there is no GPU here", where="--device", todo=todo)
    package = _PACKAGES.get(language)
    if package and importlib.util.find_spec(package) is None:
        raise RequestError(f"{package} is not installed", where="--language", todo=f"pip install {package}")
    if language is Language.CUDA and find_nvcc() is None:
        raise RequestError("there is no nvcc", where="--language", todo="install the CUDA toolkit, or take triton")


def blames_machine(detail: str) -> bool:
    """Tell whether what went wrong is the machine's lack and not the draft's fault."""
    return bool(_LACKS.search(detail))
