"""The manifest of an onboarding: what a model needs, what exists, and how far each kernel has come.

{"format": 1, "model": "kimi-k2", "repo_id": "moonshotai/Kimi-K2-Instruct", "sources": {"flashinfer": "0.7.2"},
 "kernels": [{"name": "rmsnorm_h7168", "phase1_status": "new", "fi_status": "fi_supported", ...}], ...}
"""

from __future__ import annotations

from enum import Enum
from typing import Literal

from pydantic import Field

from fib_tools.model.base import Model, NonEmpty
from fib_tools.model.kernel import Disagreement, ParameterValue, Unexplained, Witness
from fib_tools.model.progress import Asked, PhaseTime, Step, StepRecord

__all__ = [
    "DefineStatus",
    "FiStatus",
    "Manifest",
    "ManifestKernel",
    "ManualDefinition",
    "Phase1Status",
    "Refusal",
    "SglStatus",
    "SourceVersion",
    "Submission",
    "SubmissionKind",
    "SubmissionStatus",
]


class Phase1Status(str, Enum):
    """Whether the dataset already has the kernel, by signature, under whatever name."""

    EXISTING = "existing"
    NEW = "new"


class FiStatus(str, Enum):
    """Whether FlashInfer has a kernel for it."""

    SUPPORTED = "fi_supported"
    MISSING = "fi_missing"


class SglStatus(str, Enum):
    """Whether SGLang calls FlashInfer's kernel for it."""

    INTEGRATED = "sgl_integrated"
    MISSING = "sgl_missing"
    NOT_APPLICABLE = "n/a"


class DefineStatus(str, Enum):
    """How far the Definition has come in phase 2."""

    PENDING = "pending"
    DEFINED = "defined"
    """Staged in the dataset, its reference executed."""
    EXISTING = "existing"
    """The dataset had it already."""
    REFUSED = "refused"
    """The gate let it not through; the reason says why."""


class SourceVersion(Model):
    """Where a source of facts came from in this run."""

    origin: NonEmpty
    """`installed`, `bundled`, `clone`, `hub`, `file`."""
    version: str
    """A version, commit SHA or SHA-256."""


class Refusal(Model):
    """A serving configuration or kernel that was refused, and why."""

    subject: NonEmpty
    reason: NonEmpty


class ManifestKernel(Model):
    """One kernel of the model and its statuses."""

    name: NonEmpty
    """The Definition's canonical name."""
    op_type: NonEmpty
    kernel: NonEmpty
    """The kernel type's id."""
    parameters: dict[str, ParameterValue]
    module: str = ""
    layers: int = 0
    tp: tuple[int, ...] = ()
    ep: tuple[int, ...] = ()
    page_sizes: tuple[int, ...] = ()
    stages: tuple[str, ...] = ()
    quantization: str | None = None
    phase1_status: Phase1Status
    fi_status: FiStatus
    fi_api: str | None = None
    fi_name: str | None = None
    """FlashInfer's own name for it, by which `trace_apply` routes."""
    fi_trace_template: bool
    fi_trace_template_request_url: str | None = None
    sgl_status: SglStatus
    sgl_call_sites: tuple[str, ...] = ()
    define_status: DefineStatus = DefineStatus.PENDING
    define_reason: str = ""
    definition: str | None = None
    """The name it is staged under, when a conflict gave it another."""
    executed: bool | None = None
    steps: dict[Step, StepRecord] = Field(default_factory=dict)
    """What came of the steps of phase 3."""
    witnesses: tuple[Witness, ...] = ()

    @property
    def staged(self) -> str | None:
        """The name of its Definition in the dataset; None where it is not there yet."""
        is_there = self.define_status in {DefineStatus.DEFINED, DefineStatus.EXISTING}
        return (self.definition or self.name) if is_there else None


class ManualDefinition(Model):
    """A Definition of the model that a person or an LLM wrote, and that the gate admitted."""

    name: NonEmpty
    op_type: NonEmpty
    fills: str | None = None
    """The gap it fills: an unexplained operation, or a kernel that was refused."""
    executed: bool
    compared: str = ""
    """What comparing it with SGLang's own forward showed, or why that could not be done."""
    steps: dict[Step, StepRecord] = Field(default_factory=dict)
    """What came of the steps of phase 3."""

    @property
    def staged(self) -> str:
        """The name of its Definition in the dataset."""
        return self.name


SubmissionKind = Literal["dataset", "coverage", "kernel request", "template request", "integration"]
"""A pull request of the dataset, of the coverage document or of SGLang; an issue for a kernel or for a trace template."""

SubmissionStatus = Literal["open", "merged", "closed"]
"""Of the pull request or issue, as it was last seen; a closed issue may have been done."""


class Submission(Model):
    """A pull request or issue that phase 4 opened or found."""

    kind: SubmissionKind
    subject: NonEmpty
    """The group of Definitions, the kernel or the API that it is about."""
    repo: NonEmpty
    number: int
    url: NonEmpty
    status: SubmissionStatus = "open"
    definitions: tuple[str, ...] = ()


class Manifest(Model):
    """Everything an onboarding knows and has done; phases read it, do their part, and write it back."""

    format: Literal[1] = 1
    model: NonEmpty
    repo_id: str | None = None
    architecture: str | None = None
    config_sha256: str = ""
    sources: dict[str, SourceVersion] = Field(default_factory=dict)
    serving: tuple[str, ...] = ()
    """The serving configurations taken, as text: `H200 tp8 ep4 (sgl-cookbook kimi-k2.yaml)`."""
    kernels: tuple[ManifestKernel, ...] = ()
    refused: tuple[Refusal, ...] = ()
    disagreements: tuple[Disagreement, ...] = ()
    unexplained: tuple[Unexplained, ...] = ()
    manual: tuple[ManualDefinition, ...] = ()
    """By Path B; kernels of the inventory are in `kernels`, however they were defined."""
    submissions: tuple[Submission, ...] = ()
    """Of phase 4."""
    notes: tuple[str, ...] = ()
    asked: Asked | None = None
    times: tuple[PhaseTime, ...] = ()

    @property
    def members(self) -> tuple[ManifestKernel | ManualDefinition, ...]:
        """All that has a Definition, or is to get one."""
        return (*self.kernels, *self.manual)
