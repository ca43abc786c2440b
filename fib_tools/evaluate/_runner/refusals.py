"""Why a runner's command ends early, for the judge to hear."""

from __future__ import annotations

__all__ = ["RuleError", "WrongOutputError"]


class RuleError(Exception):
    """An integrity rule was broken."""

    def __init__(self, rule: str, detail: str) -> None:
        self.rule = rule
        super().__init__(detail)


class WrongOutputError(Exception):
    """An output has another shape or element type than declared."""

    def __init__(self, status: str, detail: str) -> None:
        self.status = status
        super().__init__(detail)
