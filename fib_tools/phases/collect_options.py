"""What `fib onboard` is told of phase 3: the serving, and how far its other steps go."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fib_tools.phases.serving_options import ServingOptions

__all__ = ["USUAL", "CollectOptions", "StepName"]

StepName = Literal["test", "baseline", "collect", "sizes", "calibrate", "bench"]


class CollectOptions(ServingOptions):
    """How phase 3 goes."""

    device: Literal["cuda", "cpu"] = "cuda"
    """Where phase 3 runs; a CPU shows the way, compares no kernel and serves no model."""
    num_samples: Annotated[int, Field(ge=1, le=10_000)] = 20
    """The most Workloads of one Definition that phase 3 takes of a served model."""
    skip_steps: tuple[StepName, ...] = ()
    """Steps of phase 3 to leave out."""
    max_minutes: Annotated[float, Field(gt=0, le=10_000)] | None = None
    """Minutes after which phase 3 begins nothing new; run it again to go on."""


USUAL = CollectOptions()
