"""A worker's own process: it takes items one at a time and sends each Evidence back at once.

In:  {"type": "plan", "plan": ..., "place": ...}, then any of
     {"type": "bundle", "bundle": ...}              the documents of a definition, before its first item
     {"type": "prepare", "item": ...}               this item's definition comes soon
     {"type": "item", "number": 7, "item": ..., "patience": 0.0}    seconds to wait for what it compiles
     {"type": "forget", "definition": "..."}        no more items of it
Out: {"type": "ready"}, then for each item
     {"type": "evidence", "number": 7, "evidence": ...} for each Solution, {"type": "alive", "number": 7} in between,
     {"type": "refused", "number": 7, "reason": "..."} where the item cannot be evaluated,
     {"type": "done", "number": 7}
or only
     {"type": "later", "number": 7} while its Solutions still compile: it is to come again.
The end of the channel is the end of the work.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from fib_tools.errors import FibError, RequestError
from fib_tools.evaluate.engines.engine import Place, WorkerClass, WorkerProtocol
from fib_tools.evaluate.engines.items import Bundle, Item, Plan, Task, find_task
from fib_tools.host.companion import Channel
from fib_tools.model.base import read_lenient, read_strict, to_document
from fib_tools.model.workload import SafetensorsInput, Workload

__all__ = ["main", "serve"]

_WHERE = "a message of the engine"


def main(channel: Channel, arguments: Sequence[str]) -> None:
    """Import the worker's class, which takes seconds, while the engine still plans; then work."""
    serve(channel, _find_class(arguments[0]))


def _find_class(entry: str) -> WorkerClass:
    kind: WorkerClass = resolve_name(entry)
    return kind


def serve(channel: Channel, kind: WorkerClass) -> None:
    """Do what the engine says until it hangs up."""
    first = channel.receive()
    if first is None:
        return
    plan = read_strict(Plan, first["plan"], where=_WHERE)
    worker = kind(plan, read_strict(Place, first["place"], where=_WHERE))
    try:
        channel.send({"type": "ready"})
        _work(channel, worker, Path(plan.dataset))
    finally:
        worker.close()


def _work(channel: Channel, worker: WorkerProtocol, dataset: Path) -> None:
    bundles: dict[str, Bundle] = {}
    while (message := channel.receive()) is not None:
        if message["type"] == "bundle":
            bundle = read_lenient(Bundle, message["bundle"], where=_WHERE)
            bundles[bundle.definition.name] = bundle
        elif message["type"] == "forget":
            bundles.pop(message["definition"], None)
            worker.forget(message["definition"])
        else:
            item = read_strict(Item, message["item"], where=_WHERE)
            if message["type"] == "prepare":
                worker.prepare(find_task(item, bundles[item.definition]))
            else:
                task = find_task(item, bundles[item.definition])
                _evaluate(channel, worker, message, task, dataset)


def _evaluate(channel: Channel, worker: WorkerProtocol, message: Mapping[str, Any], task: Task, dataset: Path) -> None:
    number = message["number"]
    try:
        _check_blobs(task.workload, dataset)
        if not worker.is_ready(task, message["patience"]):
            channel.send({"type": "later", "number": number})
            return
        for evidence in worker.evaluate(task):
            if evidence is None:
                channel.send({"type": "alive", "number": number})
            else:
                channel.send({"type": "evidence", "number": number, "evidence": to_document(evidence)})
    except FibError as error:
        channel.send({"type": "refused", "number": number, "reason": str(error)})
    channel.send({"type": "done", "number": number})


def _check_blobs(workload: Workload, dataset: Path) -> None:
    for spec in workload.inputs.values():
        if isinstance(spec, SafetensorsInput) and not (dataset / spec.path).is_file():
            todo = "make the dataset complete; on a cluster, mount it at the same path on every node"
            raise RequestError(f"the blob {spec.path} is not below {dataset} on {platform.node()}", todo=todo)
