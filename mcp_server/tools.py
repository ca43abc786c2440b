"""Tools of a toolbox as the SDK's: expected errors are told to the model, anything else stays on stderr."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from functools import partial
from threading import Event
from typing import Any

import anyio.from_thread
import anyio.to_thread
from anyio import CapacityLimiter
from mcp.server.mcpserver import Context as CallContext
from mcp.server.mcpserver.exceptions import ToolError, UnexpectedToolError
from mcp.server.mcpserver.tools import Tool as SdkTool
from mcp.server.mcpserver.utilities.func_metadata import ArgModelBase, FuncMetadata
from mcp_types import CallToolResult, TextContent, ToolAnnotations
from pydantic import PrivateAttr

from fib_tools.errors import FibError
from fib_tools.host.env import redact, redact_values
from fib_tools.model.base import to_document
from fib_tools.operation import Effect
from fib_tools.phases.context import Progress
from fib_tools.tools.answer import Answer
from fib_tools.tools.tool import Tool
from fib_tools.tools.toolbox import Toolbox

__all__ = ["ServedTool", "Threads"]

_WAITING = 64
_WORKING = 32
_PROGRESS_SECONDS = 0.5
"""Between two notifications of one call."""


class Threads:
    """Threads for calls: those that wait for a job have their own, so that others never wait for them."""

    def __init__(self) -> None:
        self._waiting = CapacityLimiter(_WAITING)
        self._working = CapacityLimiter(_WORKING)

    def choose(self, schema: Mapping[str, Any], arguments: Mapping[str, Any]) -> CapacityLimiter:
        """Choose by whether a call may wait, as its arguments say or by itself."""
        seconds = schema["properties"].get("wait_seconds", {}).get("default", 0)
        return self._waiting if arguments.get("wait_seconds", seconds) else self._working


class ServedTool(SdkTool):
    """One tool of a toolbox; the toolbox reads the arguments, so that its errors are those of every face."""

    _call: Callable[..., Answer] = PrivateAttr()
    _threads: Threads = PrivateAttr()

    @classmethod
    def serve(cls, tool: Tool, toolbox: Toolbox, threads: Threads) -> ServedTool:
        """Offer a tool."""
        call = partial(toolbox.call, tool.name)
        served = cls(
            fn=call,
            name=tool.name,
            title=None,
            description=tool.description,
            context_kwarg=None,
            parameters=tool.input_schema,
            fn_metadata=FuncMetadata(arg_model=ArgModelBase, output_schema=tool.output_schema),
            is_async=False,
            annotations=_annotate(tool),
        )
        served._call, served._threads = call, threads
        return served

    async def run(
        self,
        arguments: dict[str, Any],
        context: CallContext[Any, Any],
        convert_result: bool = False,  # noqa: ARG002, FBT001, FBT002  # the SDK's signature; an answer is a result already
    ) -> CallToolResult:
        """Call the tool in a thread; a client that goes away takes only its own wait with it."""
        has_left = Event()
        call = partial(self._call, arguments, progress=_forward(context), is_there=lambda: not has_left.is_set())
        try:
            answer = await anyio.to_thread.run_sync(
                call, abandon_on_cancel=True, limiter=self._threads.choose(self.parameters, arguments)
            )
        except FibError as error:
            raise ToolError(redact(str(error))) from error
        except Exception as error:
            raise UnexpectedToolError(f"{self.name} crashed; the server's stderr has the traceback") from error
        finally:
            has_left.set()
        document = redact_values(to_document(answer))
        text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
        return CallToolResult(content=[TextContent(type="text", text=text)], structured_content=document)


def _annotate(tool: Tool) -> ToolAnnotations:
    return ToolAnnotations(
        read_only_hint=tool.effect is Effect.READ,
        destructive_hint=tool.effect is Effect.OUTSIDE,
        idempotent_hint=True,
        open_world_hint=tool.is_open_world or tool.effect is Effect.OUTSIDE,
    )


def _forward(context: CallContext[Any, Any]) -> Progress:
    """Send progress to the client, now and then; it is called in the tool's thread."""
    last = 0.0
    count = 0

    def report(step: str, done: int, total: int) -> None:
        nonlocal last, count
        count += 1
        now = time.monotonic()
        if now - last < _PROGRESS_SECONDS:
            return
        last = now
        send = partial(context.report_progress, done or count, total or None, step)
        anyio.from_thread.run(send)

    return report
