"""The documents of a workspace as resources."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ResourceError, ResourceNotFoundError

from fib_tools.errors import FibError
from fib_tools.host.env import redact, redact_values
from fib_tools.model.base import to_document
from fib_tools.model.canonical import canonical_bytes
from fib_tools.op_types.registry import list_op_types
from fib_tools.phases.context import Context
from fib_tools.phases.manifests import find_manifest
from fib_tools.tools.operation_tools import LONGEST_WAIT
from fib_tools.tools.toolbox import Toolbox

__all__ = ["add_resources"]

_JSON = "application/json"
_REPORT_BYTES = 64000
_REPORT_ROWS = 500


def add_resources(server: MCPServer, context: Context, toolbox: Toolbox) -> None:
    """Offer the op_type table, manifests, Definitions and a validation of the dataset."""

    @server.resource("fib://op-types", mime_type=_JSON)
    def op_types() -> str:
        """List the op_types and their kernel types, with FlashInfer's API of each."""
        return _format({entry.name: [kernel.id for kernel in entry.kernels] for entry in list_op_types()})

    @server.resource("fib://validation", mime_type=_JSON)
    def validation() -> str:
        """Check the dataset and report what was found."""
        with _told_to_clients():
            arguments = {"wait_seconds": LONGEST_WAIT, "max_bytes": _REPORT_BYTES, "limit": _REPORT_ROWS}
            return _format(to_document(toolbox.call("fib_validate_dataset", arguments)))

    @server.resource("fib://manifests/{model}", mime_type=_JSON)
    def manifest(model: str) -> str:
        """Show a model's manifest: every kernel it needs, and how far each has come."""
        with _told_to_clients():
            found = find_manifest(context.workspace, model)
        if found is None:
            raise ResourceNotFoundError(f"no manifest of {model!r}; run fib_onboard_model or fib_inventory_model")
        return _format(to_document(found[1]))

    @server.resource("fib://definitions/{name}", mime_type=_JSON)
    def definition(name: str) -> str:
        """Show a Definition of the dataset."""
        with _told_to_clients():
            found = context.dataset.find_definition(name)
        if found is None:
            raise ResourceNotFoundError(f"no Definition {name!r} in the dataset; fib_show_status counts what it holds")
        return _format(to_document(found))


def _format(document: Any) -> str:
    return canonical_bytes(redact_values(document)).decode()


@contextmanager
def _told_to_clients() -> Iterator[None]:
    """Let expected errors reach the client."""
    try:
        yield
    except FibError as error:
        raise ResourceError(redact(str(error))) from error
