"""What `fib collect MODEL` is told of the serving: the traffic, the weights and the GPUs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from fib_tools.model.base import Model
from fib_tools.model.workload import Origin

__all__ = ["PLAIN", "ServingOptions", "find_origin"]

_Size = Annotated[int, Field(ge=1, le=4096)]


class ServingOptions(Model):
    """How a model is served, and what it is asked."""

    prompts: Path | None = None
    """Real prompts, a JSON object on each line (ShareGPT, "prompt" or "input_ids"); made-up ones if left out."""
    isl: Annotated[int, Field(ge=1, le=1 << 20)] = 512
    """Tokens of a prompt at most."""
    osl: Annotated[int, Field(ge=1, le=1 << 16)] = 16
    """Tokens of an answer at most; every one of them is a call of each decode kernel and layer."""
    batch_sizes: Annotated[tuple[_Size, ...], Field(min_length=1)] = (1, 4, 16, 64)
    """Prompts that are sent together, one batch after the other."""
    random_range_ratio: Annotated[float, Field(ge=0, le=1)] = 0.25
    """Made-up prompts and answers have between this share of --isl and --osl, and all of it."""
    weights: str | None = None
    """Real weights, a folder or repository, served with all layers; made-up ones and few layers if left out."""
    gpus: Annotated[int, Field(ge=1, le=64)] = 1
    """GPUs to serve on; with fewer than TP, the config is cut to one rank's share."""
    timeout: Annotated[float, Field(ge=10, le=86_400)] = 1800
    """Seconds that one run of the engine may take."""


PLAIN = ServingOptions()


def find_origin(serving: ServingOptions) -> Origin:
    """Say what Workloads of a run are worth: both weights and prompts have to be real to be like real inference."""
    if serving.weights is None:
        return "dummy"
    return "synthetic" if serving.prompts is None else "real"
