"""Runs the real Claude Code with a scripted model: a home of its own, no network, and the permissions of a folder that its user trusts."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Claude", "Run", "ToolResult", "find_claude", "list_offered", "list_results", "list_texts"]

_ENVIRONMENT = {
    "ANTHROPIC_API_KEY": "scripted",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "CLAUDE_CODE_MCP_STARTUP_WAIT_MS": "60000",  # the first request waits for slow servers, so that it has their tools
    "DISABLE_AUTOUPDATER": "1",
    "DISABLE_TELEMETRY": "1",
    "ENABLE_TOOL_SEARCH": "false",  # else tools are named only, and described when the model searches for them
    "FIB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "PIP_NO_INDEX": "1",
}
_SECONDS = 150


def find_claude() -> Path | None:
    """Find the binary that the claude-agent-sdk package carries."""
    spec = importlib.util.find_spec("claude_agent_sdk")
    if spec is None or spec.origin is None:
        return None
    binary = Path(spec.origin).parent / "_bundled" / "claude"
    return binary if binary.is_file() else None


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one `claude` command came to."""

    status: int
    output: str
    errors: str

    @property
    def document(self) -> dict[str, Any]:
        """The answer of `--output-format json`."""
        document: dict[str, Any] = json.loads(self.output)
        return document


@dataclass(frozen=True, kw_only=True)
class Claude:
    """Claude Code for one user, whose home is an empty folder."""

    binary: Path
    home: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def config(self) -> Path:
        """The folder of its settings and sessions."""
        return self.home / ".claude"

    def run(self, *arguments: str, folder: Path, url: str = "") -> Run:
        """Run a command in a folder, against the model at the URL."""
        self.config.mkdir(parents=True, exist_ok=True)
        trusted = {"projects": {str(folder): {"hasTrustDialogAccepted": True}}}
        (self.config / ".claude.json").write_text(json.dumps(trusted), encoding="utf-8")
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "CLAUDE_CONFIG_DIR": str(self.config),
            "ANTHROPIC_BASE_URL": url,
            **_ENVIRONMENT,
            **self.environment,
        }
        command = [str(self.binary), *arguments]
        ran = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
        return Run(status=ran.returncode, output=ran.stdout, errors=ran.stderr)

    def ask(self, prompt: str, *arguments: str, folder: Path, url: str) -> Run:
        """Run one prompt to its end, as `claude -p` does."""
        return self.run("-p", prompt, "--output-format", "json", *arguments, folder=folder, url=url)


@dataclass(frozen=True, kw_only=True)
class ToolResult:
    """What a tool answered, as the model reads it."""

    text: str
    is_error: bool

    @property
    def document(self) -> dict[str, Any]:
        """The answer of one of the project's tools."""
        document: dict[str, Any] = json.loads(self.text)
        return document


def list_offered(request: Mapping[str, Any], prefix: str) -> dict[str, dict[str, Any]]:
    """List the tools that a request offers under a prefix, by the rest of their names."""
    tools = {tool["name"]: tool for tool in request["tools"]}
    return {name.removeprefix(prefix): tool for name, tool in tools.items() if name.startswith(prefix)}


def list_results(request: Mapping[str, Any]) -> list[ToolResult]:
    """List the tools' answers of a conversation so far."""
    return [
        ToolResult(text=_text(block["content"]), is_error=bool(block.get("is_error")))
        for block in _blocks(request)
        if block["type"] == "tool_result"
    ]


def list_texts(request: Mapping[str, Any]) -> list[str]:
    """List the texts that the user's side of a conversation holds; skills arrive as such."""
    return [block["text"] for block in _blocks(request) if block["type"] == "text"]


def _blocks(request: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for message in request["messages"]:
        if message["role"] == "user":
            content = message["content"]
            yield from [{"type": "text", "text": content}] if isinstance(content, str) else content


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "".join(block.get("text", "") for block in content)
