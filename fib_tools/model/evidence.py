"""Evidence: everything that was seen while one Solution ran on one Workload, beside the Trace that sums it up.

It is addressed by what was measured (`evidence_key`), so that the same evaluation is never made twice.
"""

from __future__ import annotations

from enum import Enum

from pydantic import Field

from fib_tools.model.base import Model, NonEmpty
from fib_tools.model.canonical import content_hash
from fib_tools.model.trace import EvaluationStatus

__all__ = [
    "EVALUATOR_VERSION",
    "L2",
    "Build",
    "Clocks",
    "Evidence",
    "Gpu",
    "Launch",
    "OutputErrors",
    "Roofline",
    "Series",
    "Subject",
    "Timer",
    "evidence_key",
]

EVALUATOR_VERSION = 2
"""Goes up when a change of the evaluator makes its old numbers incomparable."""


class Timer(str, Enum):
    """What a series was timed with."""

    CUPTI = "cupti"
    """GPU activity records: first start to last end over all streams."""
    EVENTS = "events"
    """A pair of CUDA events around the call, with the cost of an empty pair taken off."""
    GRAPH = "graph"
    """Replays of a CUDA graph of the calls, between events, less those of the L2 flushes in it alone."""
    STOPWATCH = "stopwatch"
    """The judge's own clock around many calls, from outside the process that makes them."""
    HOST = "host"
    """The host's clock around each call, on a CPU."""


class Launch(str, Enum):
    """How calls reach the device."""

    GRAPH = "graph"
    """From a CUDA graph: kernels follow one another as fast as the device can."""
    EAGER = "eager"
    """One launch after the other, as Python makes them."""


class L2(str, Enum):
    """What was in the GPU's L2 cache when a call began."""

    COLD = "cold"
    WARM = "warm"


class Series(Model):
    """Samples of one way to time the calls."""

    timer: Timer
    launch: Launch = Launch.EAGER
    l2: L2
    milliseconds: float = Field(ge=0.0)
    """The figure: the mean of the middle half of the samples."""
    low: float = Field(ge=0.0)
    """The 95% interval of the figure, in milliseconds."""
    high: float = Field(ge=0.0)
    samples: list[float]
    """Milliseconds, in the order of the calls."""


class OutputErrors(Model):
    """How far one output was from the reference's, over all calls."""

    max_absolute: float
    max_relative: float
    mean_absolute: float = 0.0
    rms: float = 0.0
    """Root mean square of the reference's output."""
    misses: int = 0
    values: int = 0
    """Values compared."""
    rtol: float
    atol: float
    """In units of the row's root mean square."""
    hit_ratio: float = 1.0
    how: str = "values"
    source: str = ""
    """Where the bounds come from: a policy or a calibration."""


class Roofline(Model):
    """The least time this GPU needs for the work, and what share of that limit was reached."""

    bytes: int = Field(ge=0)
    """The fewest bytes that must move through device memory."""
    flops: int = Field(ge=0)
    unit: str = ""
    """The arithmetic of the flops, such as bf16."""
    bandwidth: float = Field(ge=0.0)
    """Measured bytes per second of a copy, read plus written."""
    flops_per_second: float = Field(default=0.0, ge=0.0)
    """Measured on a large product."""
    limit_ms: float = Field(ge=0.0)
    percent: float = Field(ge=0.0)
    """100 * limit / figure."""
    bound: str = ""
    """`memory` or `compute`."""


class Gpu(Model):
    """The device."""

    name: NonEmpty
    """Such as NVIDIA H200, or the CPU's name."""
    uuid: str = ""
    driver: str = ""
    capability: int = 0
    """Major times ten plus minor; 0 for a CPU."""

    @property
    def is_cpu(self) -> bool:
        """Tell whether it is a CPU in the place of a GPU."""
        return not self.capability and not self.uuid


class Clocks(Model):
    """Clocks in MHz and power in watts, before and after the measurement."""

    sm_before: int = 0
    sm_after: int = 0
    memory_before: int = 0
    memory_after: int = 0
    watts_after: float = 0.0
    throttle: str = ""
    """Why the driver held the clocks down, if it did."""


class Build(Model):
    """How the Solution was built."""

    seconds: float = Field(ge=0.0)
    first_call_seconds: float = Field(default=0.0, ge=0.0)
    """The first call on this workload, compiling in the process included."""
    setup_seconds: float = Field(default=0.0, ge=0.0)
    """The declared `setup`, timed apart."""


class Subject(Model):
    """What was measured: the parts of the key."""

    definition: NonEmpty
    definition_hash: NonEmpty
    workload: NonEmpty
    """Its uuid."""
    workload_hash: NonEmpty
    solution: NonEmpty
    solution_hash: NonEmpty
    author: NonEmpty
    device: NonEmpty
    """The GPU's model, such as NVIDIA H200."""
    evaluator: int = EVALUATOR_VERSION


def evidence_key(subject: Subject) -> str:
    """Give the content address of an evaluation: hashes of what ran, and on what; names do not count."""
    parts = (subject.definition_hash, subject.workload_hash, subject.solution_hash, subject.device, subject.evaluator)
    return content_hash(list(parts))


class Evidence(Model):
    """All that is known about one evaluation."""

    subject: Subject
    status: EvaluationStatus
    rule: str | None = None
    """The integrity rule that the Solution broke."""
    detail: str = ""
    """What went wrong, where, with values."""
    axes: dict[str, int] = Field(default_factory=dict)
    """Of the workload."""
    op_type: str = ""
    seed: int = 0
    """Gives the seed of each call; kept from the Solution until its calls were made."""
    calls: int = 0
    """Calls made and compared, warm-up included."""
    distributions: list[str] = Field(default_factory=list)
    """Of input values that were tried, and held-out shapes."""
    errors: dict[str, OutputErrors] = Field(default_factory=dict)
    """By output."""
    series: list[Series] = Field(default_factory=list)
    """The first one gives the Trace its latency."""
    reference_ms: float | None = None
    """The reference's own time, measured the same way."""
    roofline: Roofline | None = None
    kernels: list[str] = Field(default_factory=list)
    """Names of the GPU kernels of one call, in order."""
    gpu: Gpu
    clocks: Clocks = Clocks()
    libs: dict[str, str] = Field(default_factory=dict)
    """Versions of torch, triton, CUDA and so on."""
    protections: dict[str, bool] = Field(default_factory=dict)
    """Which protections were active around the Solution."""
    build: Build = Build(seconds=0.0)
    timestamp: str = ""
    """When it was done, ISO 8601, UTC."""
    seconds: float = Field(default=0.0, ge=0.0)
    """What the evaluation took."""

    @property
    def key(self) -> str:
        """Its content address."""
        return evidence_key(self.subject)

    @property
    def milliseconds(self) -> float | None:
        """The figure that the Trace carries."""
        return self.series[0].milliseconds if self.series else None
