"""What a transformers model's forward computes, call by call: watched while it runs, not read off its code."""

from __future__ import annotations

__all__: list[str] = []
