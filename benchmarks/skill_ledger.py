"""What one full `/onboard-model kimi-k2` puts into a model's context, through the real Claude Code with a scripted model.

python benchmarks/skill_ledger.py [--model kimi-k2]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fib_tools.skills import get_skill

ROOT = Path(__file__).parents[1]
PREFIX = "mcp__fib__"
MOST_CALLS = 15
MOST_BYTES = 40_000


def onboard(model: str, folder: Path) -> tuple[list[dict[str, Any]], int]:
    """Onboard a model; return the requests that the scripted model was sent, and how many Definitions came of it."""
    sys.path.insert(0, str(ROOT / "tests"))
    from claude_code import Claude, find_claude
    from onboarding_script import follow_skill
    from scripted_anthropic import ScriptedAnthropic

    binary = find_claude()
    if binary is None:
        sys.exit("claude-agent-sdk is not installed: pip install '.[dev]'")
    claude = Claude(binary=binary, home=folder, environment={"FIB_WORKSPACE": str(folder / "workspace")})
    print(f"{os.cpu_count()} cores, {claude.run('--version', folder=ROOT).output.strip()}, scripted model")
    with ScriptedAnthropic(follow_skill(PREFIX, model, dry_run=False)) as server:
        ran = claude.ask(f"/onboard-model {model}", folder=ROOT, url=server.url)
    if ran.status:
        sys.exit(ran.output + ran.errors)
    return server.requests, len(list((folder / "workspace").rglob("definitions/**/*.json")))


def list_blocks(request: dict[str, Any], kind: str) -> Iterator[dict[str, Any]]:
    for message in request["messages"]:
        if isinstance(message["content"], list):
            yield from (block for block in message["content"] if block["type"] == kind)


def measure(content: Any) -> int:
    text = content if isinstance(content, str) else "".join(block.get("text", "") for block in content)
    return len(text.encode())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="kimi-k2")
    model = parser.parse_args().model
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        requests, defined = onboard(model, Path(folder))
    print(
        f"/onboard-model {model}: {time.perf_counter() - began:.1f} s, {len(requests)} requests, {defined} Definitions\n"
    )
    last = requests[-1]
    answers = {block["tool_use_id"]: measure(block["content"]) for block in list_blocks(last, "tool_result")}
    print(f"{'tool':24s} {'bytes said':>10s} {'bytes answered':>14s}")
    for use in list_blocks(last, "tool_use"):
        print(f"{use['name'].removeprefix(PREFIX):24s} {len(json.dumps(use['input'])):10d} {answers[use['id']]:14d}")
    skill = get_skill("onboard-model").render(model).strip()
    entered = sum(measure(block["text"]) for block in list_blocks(last, "text") if skill in block["text"])
    output = sum(answers.values())
    print(f"\n{'':24s} {'here':>10s} {'budget':>14s}")
    print(f"{'tool calls':24s} {len(answers):10d} {MOST_CALLS:14d}")
    print(f"{'bytes of tool output':24s} {output:10d}")
    print(f"{'bytes of skill text':24s} {entered:10d}")
    print(f"{'bytes of both':24s} {output + entered:10d} {MOST_BYTES:14d}")
    tools = [tool for tool in requests[0]["tools"] if tool["name"].startswith(PREFIX)]
    print(
        f"beside them, in every session: {len(tools)} tools, {len(json.dumps(tools))} bytes of descriptions and schemas"
    )
    if not entered or len(answers) > MOST_CALLS or output + entered > MOST_BYTES:
        sys.exit("over the budget, or the skill did not arrive")


if __name__ == "__main__":
    main()
