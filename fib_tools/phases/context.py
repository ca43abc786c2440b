"""Where a run works, and how it tells of its progress."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fib_tools.dataset.store import Dataset
from fib_tools.host.files import storage_errors, sweep_temporaries
from fib_tools.host.paths import check_component, check_path, confine, locate

__all__ = ["Context", "Progress", "Workspace", "be_silent"]

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is (0: unknown)."""


_UNTOLD_SECONDS = 2.0
"""What is over by then needs no progress."""


def be_silent(_step: str, _done: int, _total: int) -> None:
    """Report no progress."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Workspace:
    """The folder that holds clones, the dataset, manifests and jobs; nothing is written outside it."""

    root: Path

    @property
    def dataset_root(self) -> Path:
        """The dataset's folder, a clone of flashinfer-trace or a fresh one."""
        return self.root / "flashinfer-trace"

    def find_clone(self, name: str) -> Path | None:
        """Find the clone of a repository, such as `sglang`."""
        folder = self.root / check_component(name)
        return folder if (folder / ".git").exists() else None

    def create(self) -> None:
        """Make the folder.

        Raises:
            StorageError: when the disk refuses.
        """
        with storage_errors(self.root):
            self.root.mkdir(parents=True, exist_ok=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """What every operation is given beside its own parameters."""

    workspace: Workspace
    offline: bool = False
    """Nothing may reach for the network."""
    progress: Progress = be_silent
    dataset_override: Path | None = None
    """A dataset elsewhere than in the workspace."""
    is_confined: bool = False
    """The caller is an agent: the paths it names lie in the workspace, and relative ones begin there."""

    @property
    def dataset(self) -> Dataset:
        """The dataset this run reads and writes; for an agent, one outside the workspace only as it was started with.

        Raises:
            PathError: a link in the workspace leads an agent out of it.
        """
        if self.dataset_override is None and self.is_confined:
            return Dataset(confine(self.workspace.root, self.workspace.dataset_root.name))
        return Dataset(self.dataset_override or self.workspace.dataset_root)

    def check_readable(self, path: Path) -> Path:
        """Return a path that the caller named, as this run may use it.

        Raises:
            PathError: it holds a NUL, or leads out of the workspace that the caller is confined to.
        """
        return locate(self.workspace.root, path) if self.is_confined else check_path(path)

    def tell_if_slow(self, step: str) -> Callable[[int, int], None]:
        """Give what is called with how much of a step is done, and how much there is: it tells once the step takes long."""
        begun = time.monotonic()

        def report(done: int, total: int) -> None:
            if time.monotonic() - begun > _UNTOLD_SECONDS:
                self.progress(step, done, total)

        return report

    def sweep(self) -> None:
        """Remove what killed runs left half-written, in the workspace and in the dataset."""
        sweep_temporaries(self.workspace.root)
        self.dataset.sweep()
