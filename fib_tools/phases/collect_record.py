"""What phase 3 writes into the manifest: what came of each step for each kernel, and how long it took."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from fib_tools.errors import RequestError
from fib_tools.host.locks import hold
from fib_tools.model.manifest import Manifest, ManifestKernel, ManualDefinition
from fib_tools.model.progress import PhaseTime, Step, StepRecord, add_time
from fib_tools.phases.context import Context
from fib_tools.phases.inventory import workspace_lock
from fib_tools.phases.manifests import find_manifest, save_manifest

__all__ = ["Recorder", "find_records", "load_manifest", "save_time"]

_PHASE = 3
_Staged = TypeVar("_Staged", ManifestKernel, ManualDefinition)
_PATIENCE = 60.0
"""Seconds for another run that writes to the workspace, such as a Definition that is being admitted."""


def load_manifest(context: Context, model: str) -> tuple[str, Manifest]:
    """Load a model's manifest, and the name of its file.

    Raises:
        RequestError: there is none.
    """
    found = find_manifest(context.workspace, model)
    if found is None:
        raise RequestError(
            f"{model!r} is not onboarded here",
            where=str(context.workspace.root),
            todo=f"run: fib onboard {model} --phases 0,1,2, or pass the --workspace that was carried here",
        )
    return found


def save_time(context: Context, model: str, spent: PhaseTime) -> None:
    """Add to a manifest's times; the caller holds the workspace's lock."""
    name, manifest = load_manifest(context, model)
    save_manifest(context.workspace, name, manifest.model_copy(update={"times": add_time(manifest.times, spent)}))


def find_records(manifest: Manifest, step: Step) -> dict[str, StepRecord]:
    """Find what came of a step, by the names of the Definitions."""
    found = ((item.staged, item.steps.get(step)) for item in manifest.members)
    return {name: record for name, record in found if name is not None and record is not None}


@dataclass
class Recorder:
    """Writes what a step comes to, as often as there is something new; a step that did nothing takes no time."""

    context: Context
    model: str
    step: Step
    machine: str
    before: tuple[PhaseTime, ...] = ()
    """The times as they stood when the step began."""
    records: dict[str, StepRecord] = field(default_factory=dict)
    """By Definition: what is new."""
    begun: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Since the step began."""
        return round(time.monotonic() - self.begun, 3)

    def write(self, records: Mapping[str, StepRecord], *, is_late: bool = False) -> None:
        """Put records into the manifest, by the names of the Definitions; those that stand there are no news.

        A step that is late has done something, whether or not it came to records.
        """
        spent = PhaseTime(phase=_PHASE, step=self.step, seconds=self.seconds, machine=self.machine)
        with hold(workspace_lock(self.context), purpose="writing the manifest", wait_seconds=_PATIENCE):
            name, manifest = load_manifest(self.context, self.model)
            standing = find_records(manifest, self.step)
            news = {key: record for key, record in records.items() if not _says_the_same(standing.get(key), record)}
            if news or is_late:
                self.records.update(news)
                changed = {
                    "kernels": tuple(self._with_record(kernel, news) for kernel in manifest.kernels),
                    "manual": tuple(self._with_record(item, news) for item in manifest.manual),
                    "times": add_time(self.before, spent),
                }
                save_manifest(self.context.workspace, name, manifest.model_copy(update=changed))

    def _with_record(self, item: _Staged, records: Mapping[str, StepRecord]) -> _Staged:
        record = records.get(item.staged or "")
        if record is None:
            return item
        steps = {**item.steps, self.step: record}
        return item.model_copy(update={"steps": {step: steps[step] for step in Step if step in steps}})


def _says_the_same(standing: StepRecord | None, record: StepRecord) -> bool:
    """Compare records, wherever they were made."""
    return standing is not None and standing.model_copy(update={"machine": record.machine}) == record
