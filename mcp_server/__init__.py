"""The operations as MCP tools, resources and prompts."""

from __future__ import annotations

__all__: list[str] = []
