"""A Workload: one set of axis lengths and inputs to run a Definition with."""

from __future__ import annotations

import uuid
from typing import Annotated, Literal

from pydantic import Field

from fib_tools.model.base import Model, NonEmpty, NonNegative, to_document
from fib_tools.model.canonical import content_hash

__all__ = [
    "InputSpec",
    "Origin",
    "RandomInput",
    "SafetensorsInput",
    "ScalarInput",
    "Workload",
    "workload_content",
    "workload_uuid",
]

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://huggingface.co/datasets/flashinfer-ai/flashinfer-trace")


class RandomInput(Model):
    """A tensor that the evaluator fills with seeded random values."""

    type: Literal["random"] = "random"


class ScalarInput(Model):
    """A scalar with a fixed value."""

    type: Literal["scalar"] = "scalar"
    value: int | float | bool


class SafetensorsInput(Model):
    """A tensor kept in a blob of the dataset."""

    type: Literal["safetensors"] = "safetensors"
    path: NonEmpty
    """Relative to the dataset's root."""
    tensor_key: NonEmpty


Origin = Literal["real", "dummy", "synthetic"]
"""`real`: real weights and prompts; `dummy`: made-up weights, so that sizes and page tables are real and values are
not; `synthetic`: input that was made up."""

InputSpec = Annotated[RandomInput | ScalarInput | SafetensorsInput, Field(discriminator="type")]


class Workload(Model):
    """Lengths for every var axis and a source for every input."""

    axes: dict[NonEmpty, NonNegative]
    """A length for every var axis."""
    inputs: dict[NonEmpty, InputSpec]
    """A source for every input."""
    uuid: NonEmpty
    """Unique in its Definition's file; ours follow from the content."""
    count: int | None = Field(default=None, ge=1)
    """How often it, or what it stands for, occurred where it was collected: its weight beside the Definition's others.

    Neither this nor what follows changes its identity; flashinfer-bench reads past them.
    """
    origin: Origin | None = None
    """Where it was collected: a model with its weights and real prompts, one with made-up weights, or made-up input."""
    scales: dict[NonEmpty, float] = Field(default_factory=dict)
    """Root mean square of the values that random inputs had where it was collected, by input."""


def workload_content(workload: Workload) -> str:
    """Hash what a workload says, whatever its uuid."""
    return content_hash({"axes": workload.axes, "inputs": to_document(workload.inputs)})


def workload_uuid(definition: str, axes: dict[str, int], inputs: dict[str, InputSpec]) -> str:
    """Derive a workload's uuid from its content, so that the same workload never stands twice under two ids."""
    content = {"definition": definition, "axes": axes, "inputs": to_document(inputs)}
    return str(uuid.uuid5(_NAMESPACE, content_hash(content)))
