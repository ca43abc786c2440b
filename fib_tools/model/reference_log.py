"""What a Definition's reference test said on a GPU: the evidence of `status:verified`, kept beside the Definition."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from fib_tools.model.base import Model, NonEmpty

__all__ = ["REFERENCE_LOG", "ReferenceLog"]

REFERENCE_LOG = "reference_test.json"
"""Its file's name in the Definition's folder of logs."""


class ReferenceLog(Model):
    """One run of a Definition's tests in every size, with the bounds that they come with."""

    definition: NonEmpty
    definition_hash: NonEmpty
    """Of what runs: it is about this Definition as long as the hash is the same."""
    test_sha256: NonEmpty
    """Of the test file."""
    status: Literal["passed", "failed", "skipped"]
    """`skipped`: what could run passed, but no kernel ran."""
    reason: str = ""
    kernel: str = ""
    """The real kernel that the reference was compared with."""
    gpu: str = ""
    libs: dict[str, str] = Field(default_factory=dict)
    records: tuple[dict[str, Any], ...] = ()
    """Every test: size, outcome, metrics."""
