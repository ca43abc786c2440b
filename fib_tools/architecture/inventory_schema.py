"""What a model needs, for the ways it is served: the document that discovery makes and definition reads."""

from __future__ import annotations

from fib_tools.architecture.parallelism import ServingPoint
from fib_tools.model.base import Model, NonEmpty
from fib_tools.model.kernel import Disagreement, KernelNeed, Unexplained

__all__ = ["Inventory", "Refusal"]


class Refusal(Model):
    """A serving point that the model cannot be cut by."""

    point: ServingPoint
    reason: NonEmpty


class Inventory(Model):
    """Every kernel of a model, with its witnesses, and all that is open."""

    model: NonEmpty
    """The slug."""
    repo_id: str | None = None
    architecture: NonEmpty
    is_known: bool
    """False: no table describes this architecture, so the kernels follow from the trace."""
    points: tuple[ServingPoint, ...] = ()
    """The serving points whose kernels are listed."""
    needs: tuple[KernelNeed, ...] = ()
    """In order of kernel and parameters; equal kernels of several points and modules are one."""
    needs_by_point: tuple[tuple[int, ...], ...] = ()
    """For each of the points, which needs it has: indices into `needs`."""
    refused: tuple[Refusal, ...] = ()
    disagreements: tuple[Disagreement, ...] = ()
    unexplained: tuple[Unexplained, ...] = ()
    notes: tuple[str, ...] = ()
