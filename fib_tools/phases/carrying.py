"""How a workspace goes to a machine with a GPU, and back."""

from __future__ import annotations

import shlex

from fib_tools.phases.context import Context

__all__ = ["describe_carrying"]

_CLONES = ("sglang", "flashinfer", "sgl-cookbook")
"""Folders of the workspace that need not travel: phases 3 and 4 do not read them."""
_ARCHIVE = "onboarding.tar.gz"


def describe_carrying(context: Context, model: str) -> str:
    """Say what to copy, and which commands to run there and here."""
    root = context.workspace.root.resolve()
    left = [f"--exclude=./{name}" for name in _CLONES if context.workspace.find_clone(name)]
    pack = shlex.join(["tar", "-C", str(root), *left, "-czf", _ARCHIVE, "."])
    there = f"mkdir -p tmp && tar -C tmp -xzf {_ARCHIVE} && fib onboard {model} --phases 3 --workspace tmp"
    back = f"tar -C {shlex.quote(str(root))} -xzf {_ARCHIVE} && fib onboard {model} --phases 4 --workspace {shlex.quote(str(root))}"
    dataset = f" (the dataset {context.dataset_override} travels beside it, for --dataset)" * bool(
        context.dataset_override
    )
    return (
        f"carry the workspace to a machine with a GPU and `pip install 'fib-tools[gpu]'`{dataset}. Here: {pack} ; "
        f"there: {there} ; pack tmp there in the same way, and back here: {back}"
    )
