"""A Trace: a Workload, and what came of running one Solution on it."""

from __future__ import annotations

import math
from datetime import datetime, timezone
from enum import Enum
from typing import Any

from pydantic import Field, field_validator, model_validator

from fib_tools.model.base import Model, NonEmpty
from fib_tools.model.workload import Workload

__all__ = ["Correctness", "Environment", "Evaluation", "EvaluationStatus", "Performance", "Trace", "read_timestamp"]


class EvaluationStatus(str, Enum):
    """How an evaluation ended."""

    PASSED = "PASSED"
    INCORRECT_SHAPE = "INCORRECT_SHAPE"
    INCORRECT_NUMERICAL = "INCORRECT_NUMERICAL"
    INCORRECT_DTYPE = "INCORRECT_DTYPE"
    RUNTIME_ERROR = "RUNTIME_ERROR"
    COMPILE_ERROR = "COMPILE_ERROR"
    TIMEOUT = "TIMEOUT"


class Correctness(Model):
    """How far the outputs were from the reference's."""

    max_relative_error: float = 0.0
    max_absolute_error: float = 0.0
    extra: dict[str, Any] | None = None

    @field_validator("max_relative_error", "max_absolute_error")
    @classmethod
    def _validate_not_negative(cls, value: float) -> float:
        if not math.isnan(value) and value < 0:
            raise ValueError("an error cannot be negative")
        return value


class Performance(Model):
    """Times in milliseconds, and their ratio."""

    latency_ms: float = Field(default=0.0, ge=0.0)
    reference_latency_ms: float = Field(default=0.0, ge=0.0)
    speedup_factor: float = Field(default=0.0, ge=0.0)


class Environment(Model):
    """Where an evaluation ran."""

    hardware: NonEmpty
    libs: dict[str, str] = Field(default_factory=dict)


class Evaluation(Model):
    """The outcome of one Solution on one Workload."""

    status: EvaluationStatus
    environment: Environment
    timestamp: NonEmpty
    log: str = ""
    correctness: Correctness | None = None
    performance: Performance | None = None

    @model_validator(mode="after")
    def _validate_parts_match_status(self) -> Evaluation:
        passed = self.status is EvaluationStatus.PASSED
        measured = passed or self.status is EvaluationStatus.INCORRECT_NUMERICAL
        for part, wanted in (("correctness", measured), ("performance", passed)):
            if (getattr(self, part) is not None) != wanted:
                raise ValueError(f"status {self.status.value} {'needs' if wanted else 'forbids'} {part}")
        return self


class Trace(Model):
    """A Workload of a Definition, with a Solution and its Evaluation unless it is a workload line."""

    definition: NonEmpty
    """The name of the Definition."""
    workload: Workload
    solution: str | None = None
    """The name of the Solution; none on a workload line."""
    evaluation: Evaluation | None = None

    @property
    def is_workload(self) -> bool:
        """Tell whether this is a line of a workload file."""
        return self.solution is None and self.evaluation is None


def read_timestamp(text: str) -> datetime:
    """Read a time of whoever wrote it; one that is none counts as the oldest, one without a zone as UTC."""
    try:
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return datetime.min.replace(tzinfo=timezone.utc)
    return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
