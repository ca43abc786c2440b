"""Calls are counted once and then removed, even if the process ends anywhere between.

Before Workloads are written, a receipt says what they will be and which calls they count; when those are removed, it goes.
Whoever finds one sees by the dataset whether the write took place: it made other counts than stood there before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fib_tools.capture.collection.collector import remove_call
from fib_tools.capture.collection.dumps import is_call_folder
from fib_tools.dataset.store import Dataset
from fib_tools.host.files import read_limited, storage_errors, write_atomically
from fib_tools.model.base import Model, read_strict
from fib_tools.model.canonical import canonical_bytes, load_json
from fib_tools.model.workload import Workload

__all__ = ["counting", "settle_receipt"]

_LIMIT_BYTES = 1 << 30


class _Receipt(Model):
    dataset: str
    op_type: str
    definition: str
    workloads: tuple[Workload, ...]
    """As they stand once they are written."""
    calls: tuple[str, ...]
    """The folders of those that they count, and that stood there before."""


@contextmanager
def counting(
    at: Path, dataset: Dataset, place: tuple[str, str], workloads: Iterable[Workload], calls: Sequence[Path]
) -> Iterator[None]:
    """Write Workloads of an op_type and a Definition in the block; the calls that they count are removed after it.

    Raises:
        StorageError: the disk refuses; the receipt stays for the next run.
    """
    op_type, definition = place
    receipt = _Receipt(
        dataset=str(dataset.root.absolute()),
        op_type=op_type,
        definition=definition,
        workloads=tuple(workloads),
        calls=tuple(str(path.absolute()) for path in calls),
    )
    write_atomically(at, canonical_bytes(receipt))
    yield
    _finish(at, receipt)


def settle_receipt(at: Path) -> None:
    """Do what a run that was killed had left to do: remove the calls that it counted, or forget what it did not write.

    Raises:
        FormatError: what lies there is no receipt.
        StorageError: the calls cannot be removed, and would be counted again.
    """
    if not at.exists():
        return
    receipt = read_strict(_Receipt, load_json(read_limited(at, _LIMIT_BYTES), where=str(at)), where=str(at))
    standing = Dataset(Path(receipt.dataset)).load_workloads(receipt.op_type, receipt.definition)
    is_written = {workload.uuid: workload for workload in receipt.workloads}.items() <= {
        workload.uuid: workload for workload in standing
    }.items()
    _finish(at, receipt if is_written else receipt.model_copy(update={"calls": ()}))


def _finish(at: Path, receipt: _Receipt) -> None:
    for path in map(Path, receipt.calls):
        if is_call_folder(path):
            remove_call(path)
    with storage_errors(at):
        at.unlink()
