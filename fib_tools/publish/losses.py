"""What a pull request of the dataset would take away: files that replace others have to keep what those say."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from fib_tools.errors import PublishError
from fib_tools.publish.huggingface import DatasetPull

__all__ = ["check_nothing_is_lost"]


def check_nothing_is_lost(plan: DatasetPull, paths: Sequence[str], *, read: Callable[[str, str], bytes]) -> None:
    """Check that files which replace others keep what those say: Definitions all but tags, Workloads and Traces all lines.

    `read` gives a file of a repository as it stands there.

    Raises:
        PublishError: something of the dataset would be lost.
    """
    payloads = {payload.path: payload for payload in plan.payloads}
    for path in paths:
        if not path.startswith(("definitions/", "workloads/", "traces/")):
            continue
        lost = _find_loss(path, read(plan.repo, path), payloads[path].read())
        if lost:
            todo = "bring the dataset up to date (fib clone --refresh), and define and collect on top of it"
            raise PublishError(f"{path} would lose {lost}", where=plan.repo, todo=todo)


def _find_loss(path: str, theirs: bytes, ours: bytes) -> str:
    """Say what of theirs is not in ours; empty if nothing."""
    try:
        if path.startswith("definitions/"):
            first, second = json.loads(theirs), json.loads(ours)
            tags = set(first.pop("tags", None) or ()) - set(second.pop("tags", None) or ())
            if tags - {"status:unverified"}:
                return f"the tags {', '.join(sorted(tags))}"
            return "" if first == second else "what another Definition of this name says"
        lines = [_identify(line) for line in theirs.decode().splitlines() if line.strip()]
        kept = {_identify(line) for line in ours.decode().splitlines() if line.strip()}
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        raise PublishError(f"{path} cannot be compared with what the dataset has: {error}", where=path) from error
    lost = sum(line not in kept for line in lines)
    return f"{lost} lines" if lost else ""


def _identify(line: str) -> tuple[str, str, str]:
    """Tell lines apart as the dataset does: by Workload, Solution and device."""
    document = json.loads(line)
    hardware = ((document.get("evaluation") or {}).get("environment") or {}).get("hardware", "")
    return str(document["workload"]["uuid"]), str(document.get("solution") or ""), str(hardware)
