"""What a run evaluates, as data: a plan of items by name and hash, and the documents of a definition by value.

{"format": 1, "dataset": "/data/flashinfer-trace", "hardware": "NVIDIA H200", "options": {"device": "cuda", ...},
 "items": [{"definition": "rmsnorm_h7168", "op_type": "rmsnorm", "workload": "<uuid>", ..., "solutions": [...]}]}
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from fib_tools.errors import PathError
from fib_tools.host.paths import confine
from fib_tools.model.base import Model, NonEmpty, to_document
from fib_tools.model.canonical import content_hash
from fib_tools.model.definition import Definition
from fib_tools.model.evidence import EVALUATOR_VERSION, Subject, Timer, evidence_key
from fib_tools.model.solution import BASELINE, Solution
from fib_tools.model.workload import SafetensorsInput, Workload, workload_content
from fib_tools.op_types.inputs import count_input_bytes
from fib_tools.op_types.tolerance import Tolerance

__all__ = [
    "BlobHasher",
    "Bound",
    "Bundle",
    "Item",
    "Limits",
    "Options",
    "Plan",
    "SolutionRef",
    "Task",
    "find_task",
    "hash_definition",
    "hash_solution",
    "hash_workload",
    "list_refs",
    "plan_items",
]

_NO_BLOB = "missing"
_LARGE_BYTES = 256 << 20
_MOST_TOGETHER = 8
"""Solutions whose processes live at the same time, each with a context on the device."""
_DESCRIPTIVE = frozenset({"description", "name", "tags"})


class SolutionRef(Model):
    """A Solution by its name, and by the hash of what runs."""

    name: NonEmpty
    author: NonEmpty
    hash: NonEmpty


class Item(Model):
    """One unit of work: these Solutions on this Workload."""

    definition: NonEmpty
    op_type: str
    definition_hash: NonEmpty
    workload: NonEmpty
    """Its uuid."""
    workload_hash: NonEmpty
    heat: int = 0
    """Of a Definition with many Solutions: those of one heat are measured side by side, on all Workloads, before the next."""
    solutions: tuple[SolutionRef, ...] = Field(min_length=1)

    @property
    def group(self) -> tuple[str, int]:
        """Name what items share processes with one another: the Definition, and the heat."""
        return self.definition, self.heat

    def subject(self, solution: SolutionRef, hardware: str) -> Subject:
        """Say what one evaluation measures: the only way to a key, for the engines and for the workers."""
        return Subject(
            definition=self.definition,
            definition_hash=self.definition_hash,
            workload=self.workload,
            workload_hash=self.workload_hash,
            solution=solution.name,
            solution_hash=solution.hash,
            author=solution.author,
            device=hardware,
        )

    def key(self, solution: SolutionRef, hardware: str) -> str:
        """Give the content address of one evaluation."""
        return evidence_key(self.subject(solution, hardware))

    def find_solution(self, key: str, hardware: str) -> SolutionRef | None:
        """Find the Solution that a key is about."""
        return next((ref for ref in self.solutions if self.key(ref, hardware) == key), None)

    def without(self, finished: Collection[str], hardware: str) -> Item | None:
        """Leave out the Solutions whose keys are finished; None when no work is left."""
        left = tuple(ref for ref in self.solutions if self.key(ref, hardware) not in finished)
        return self.model_copy(update={"solutions": left}) if left else None


class Limits(Model):
    """Time limits in seconds."""

    start_seconds: float = Field(default=300.0, gt=0.0)
    """For a worker to import what it needs and to say that it is ready."""
    silence_seconds: float = Field(default=900.0, gt=0.0)
    """A worker that owes a result and says nothing for so long is ended: above every limit that it keeps itself."""
    build_seconds: float = Field(default=600.0, gt=0.0)
    """For building one Solution."""
    evaluation_seconds: float = Field(default=120.0, gt=0.0)
    """For all calls of one Solution on one Workload."""


class Options(Model):
    """How a run evaluates."""

    device: Literal["cuda", "cpu"] = "cuda"
    timer: Timer = Timer.CUPTI
    seed: int | None = None
    """The master seed; None: each evaluation draws a secret one."""
    limits: Limits = Limits()


class Plan(Model):
    """All items of a run, in order: definitions together, heats within, then workloads."""

    format: Literal[1] = 1
    evaluator: int = EVALUATOR_VERSION
    dataset: NonEmpty
    """The dataset's root: blobs lie below it."""
    hardware: NonEmpty
    """The device's model, such as NVIDIA H200: a part of every key."""
    options: Options
    items: tuple[Item, ...]

    @cached_property
    def hash(self) -> str:
        """Identify the plan by what it evaluates, and how; where the dataset lies does not count."""
        document = to_document(self)
        return content_hash({name: value for name, value in document.items() if name != "dataset"})

    @property
    def keys(self) -> list[str]:
        """The keys of all evaluations, in order."""
        return [item.key(ref, self.hardware) for item in self.items for ref in item.solutions]

    @property
    def evaluations(self) -> int:
        """How many evaluations there are."""
        return sum(len(item.solutions) for item in self.items)


class Bound(Model):
    """How near one output must come to the reference's: `op_types.tolerance.Tolerance` as a document."""

    rtol: float
    atol: float
    hit_ratio: float = 1.0
    how: str = "values"
    source: str = ""

    @classmethod
    def of(cls, tolerance: Tolerance) -> Bound:
        """Write a tolerance down."""
        return cls.model_validate(asdict(tolerance))

    def to_tolerance(self) -> Tolerance:
        """Read it again."""
        return Tolerance(**self.model_dump())


class Bundle(Model):
    """The documents of one Definition by value: all that a worker needs except blobs."""

    definition: Definition
    bounds: dict[str, Bound] = Field(default_factory=dict)
    """By output."""
    workloads: tuple[Workload, ...]
    solutions: tuple[Solution, ...]
    trusted: tuple[str, ...] = ()
    """Hashes of Solutions that this project wrote itself, word for word: they may keep compiled kernels for later runs."""

    def for_gpu(self, capability: int) -> Bundle:
        """Leave out Solutions that are for other GPUs."""
        return self._keep(solution for solution in self.solutions if solution.spec.fits(capability))

    def for_cpu(self) -> Bundle:
        """Leave out Solutions that are for GPUs."""
        return self._keep(solution for solution in self.solutions if solution.spec.fits_cpu)

    def _keep(self, solutions: Iterable[Solution]) -> Bundle:
        return self.model_copy(update={"solutions": tuple(solutions)})


class Task(Model):
    """An item with its documents: what a worker evaluates."""

    item: Item
    definition: Definition
    bounds: dict[str, Bound] = Field(default_factory=dict)
    """By output."""
    workload: Workload
    solutions: tuple[Solution, ...]
    """In the item's order."""
    trusted: tuple[str, ...] = ()
    """As in the bundle."""

    @property
    def input_bytes(self) -> int:
        """Of one call."""
        return count_input_bytes(self.definition, self.workload.axes)

    @property
    def is_large(self) -> bool:
        """Tell whether who calls it holds gigabytes: a graph keeps a dozen calls' inputs."""
        return self.input_bytes > _LARGE_BYTES


def find_task(item: Item, bundle: Bundle) -> Task:
    """Put an item and its documents together."""
    solutions = {hash_solution(solution): solution for solution in reversed(bundle.solutions)}
    workload = next(workload for workload in bundle.workloads if workload.uuid == item.workload)
    chosen = tuple(solutions[ref.hash] for ref in item.solutions)
    return Task(
        item=item,
        definition=bundle.definition,
        bounds=bundle.bounds,
        workload=workload,
        solutions=chosen,
        trusted=bundle.trusted,
    )


def hash_solution(solution: Solution) -> str:
    """Hash what runs, and whether it is a baseline, for which other rules hold; names do not count."""
    return content_hash([BASELINE, solution.hash]) if solution.author == BASELINE else solution.hash


def list_refs(solutions: Iterable[Solution]) -> tuple[SolutionRef, ...]:
    """Name Solutions as plans do."""
    return tuple(SolutionRef(name=each.name, author=each.author, hash=hash_solution(each)) for each in solutions)


def plan_items(bundles: Iterable[Bundle], *, hash_blob: Callable[[str], str]) -> tuple[Item, ...]:
    """List the work of some Definitions: for each heat of Solutions an item for each Workload.

    Of Solutions that run the same the first is evaluated, for all of them.
    """
    items: list[Item] = []
    for bundle in bundles:
        refs = tuple({ref.hash: ref for ref in reversed(list_refs(bundle.solutions))}.values())[::-1]
        digest = content_hash([hash_definition(bundle.definition), bundle.bounds])
        digests = {workload.uuid: hash_workload(workload, hash_blob) for workload in bundle.workloads}
        items += [
            Item(
                definition=bundle.definition.name,
                op_type=bundle.definition.op_type,
                definition_hash=digest,
                workload=workload.uuid,
                workload_hash=digests[workload.uuid],
                heat=heat,
                solutions=refs[start : start + _MOST_TOGETHER],
            )
            for heat, start in enumerate(range(0, len(refs), _MOST_TOGETHER))
            for workload in bundle.workloads
        ]
    return tuple(items)


def hash_definition(definition: Definition) -> str:
    """Hash everything of a Definition that changes what runs: no texts for people, but the order of its arguments."""
    document = to_document(definition)
    content = {name: value for name, value in document.items() if name not in _DESCRIPTIVE}
    content["axes"] = _strip(content["axes"])
    content["inputs"] = list(_strip(content["inputs"]).items())
    content["outputs"] = list(_strip(content["outputs"]).items())
    return content_hash(content)


def _strip(entries: dict[str, Any]) -> dict[str, Any]:
    return {
        name: {key: value for key, value in entry.items() if key != "description"} for name, entry in entries.items()
    }


def hash_workload(workload: Workload, hash_blob: Callable[[str], str]) -> str:
    """Hash what a Workload says, and the blobs that it names."""
    blobs = {spec.path for spec in workload.inputs.values() if isinstance(spec, SafetensorsInput)}
    content = workload_content(workload)
    return content_hash([content, {path: hash_blob(path) for path in sorted(blobs)}]) if blobs else content


class BlobHasher:
    """Hashes the blobs of a dataset, each once; a blob that cannot be read has the hash `missing`."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._known: dict[str, str] = {}

    def __call__(self, relative: str) -> str:
        """Give the SHA-256 of a blob's bytes."""
        if relative not in self._known:
            self._known[relative] = self._hash(relative)
        return self._known[relative]

    def _hash(self, relative: str) -> str:
        digest = hashlib.sha256()
        try:
            with confine(self._root, relative).open("rb") as stream:
                while chunk := stream.read(1 << 20):
                    digest.update(chunk)
        except (OSError, PathError):
            return _NO_BLOB
        return digest.hexdigest()
