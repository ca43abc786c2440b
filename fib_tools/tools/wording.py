"""Advice that is written for the command line, in the words of tools: `--tp-list` is tp_list, `fib clone` its tool."""

from __future__ import annotations

import re

from fib_tools.errors import FibError
from fib_tools.operations import OPERATIONS

__all__ = ["describe_tool", "reword", "reword_error"]

_OPTION = re.compile(r"(?<![\w-])--([a-z][a-z0-9]*(?:-[a-z0-9]+)*)")
_TOOLS = {operation.verb: operation.tool for operation in OPERATIONS if operation.tool}
_COMMAND = re.compile(rf"\bfib ({'|'.join(_TOOLS)})\b")
_STATUS = re.compile(r"\n\nExit status [^\n]*(?:\n[^\n]+)*")


def reword(text: str) -> str:
    """Put options and commands that a text names into the words of tools."""
    text = _COMMAND.sub(lambda match: _TOOLS[match[1]], text)
    return _OPTION.sub(lambda match: match[1].replace("-", "_"), text)


def reword_error(error: FibError) -> FibError:
    """Put an error's texts into the words of tools; it stays the error it is."""
    error.what = reword(error.what)
    error.where = reword(error.where) if error.where else None
    error.todo = reword(error.todo) if error.todo else None
    return error


def describe_tool(text: str) -> str:
    """Put a command's help into the words of tools, without its exit status."""
    return reword(_STATUS.sub("", text))
