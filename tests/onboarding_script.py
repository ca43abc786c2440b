"""A scripted model that onboards a model as the skill onboard-model says: one tool call after the other, waiting for jobs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from claude_code import list_results
from scripted_anthropic import Text, ToolUse, Turn

__all__ = ["FINAL_WORDS", "follow_skill"]

FINAL_WORDS = "Onboarded."
_MOST_REQUESTS = 20


def follow_skill(prefix: str, model: str, *, dry_run: bool) -> Callable[[list[dict[str, Any]]], Turn]:
    """Answer requests with the steps of the skill; tools have names with a prefix."""
    onboard = {"model": model, "phases": [0, 1, 2], "dry_run": dry_run, "fields": ["manifest_path", "sources"]}
    steps = [("fib_onboard_model", {**onboard, "wait_seconds": 50})]
    if not dry_run:
        steps.append(("fib_validate_dataset", {"checks": ["layout", "definition"], "wait_seconds": 50}))
    steps.append(("fib_show_status", {}))
    left = iter(steps)

    def answer(requests: list[dict[str, Any]]) -> Turn:
        assert len(requests) < _MOST_REQUESTS
        results = list_results(requests[-1])
        job = results[-1].document.get("job", {}) if results else {}
        if job.get("state") == "running":
            return Turn(ToolUse(f"{prefix}fib_get_job", {"job_id": job["job_id"], "wait_seconds": 50}))
        name, arguments = next(left, ("", {}))
        return Turn(ToolUse(f"{prefix}{name}", arguments)) if name else Turn(Text(FINAL_WORDS))

    return answer
