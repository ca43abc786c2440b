"""The headless agent: a model works with the same tools that Claude Code is offered, and no person sits by."""

from __future__ import annotations
