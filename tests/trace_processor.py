"""Perfetto's own trace processor, run by node from the UI's package: what does SQL say about a trace."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

SCRIPT = Path(__file__).parent / "clients" / "trace_processor.cjs"
PACKAGE = SCRIPT.parent / "node_modules" / "@pinpoint-apm" / "perfetto-ui"
CHUNK = 1 << 20


class Pipe:
    """The two ends of the child, as Perfetto's client wants a transport."""

    def __init__(self, to: IO[bytes], back: IO[bytes]) -> None:
        self._to, self._back = to, back

    def send(self, data: bytes) -> None:
        self._to.write(data)
        self._to.flush()

    def read(self, size: int) -> bytes:
        data = self._back.read(size)
        assert len(data) == size, "the trace processor has gone"
        return data

    def close(self) -> None:
        self._to.close()


class TraceProcessor:
    """One loaded trace."""

    def __init__(self, pipe: Pipe) -> None:
        from perfetto.trace_processor.platform import PlatformDelegate
        from perfetto.trace_processor.protos import ProtoFactory
        from perfetto.trace_processor.rpc import TraceProcessorRpc

        self._protos = ProtoFactory(PlatformDelegate())
        self._pipe = pipe
        self._client = TraceProcessorRpc(pipe, self._protos)

    def load(self, trace: bytes) -> None:
        method = self._protos.TraceProcessorRpc
        for start in range(0, len(trace), CHUNK):
            answer = self._ask(method.TPM_APPEND_TRACE_DATA, append_trace_data=trace[start : start + CHUNK])
            assert not answer.append_result.error, answer.append_result.error
        self._ask(method.TPM_FINALIZE_TRACE_DATA)

    def _ask(self, request: int, **fields: Any) -> Any:
        stream = self._protos.TraceProcessorRpcStream()
        stream.msg.add(request=request, **fields)
        self._pipe.send(stream.SerializeToString())
        answer = self._protos.TraceProcessorRpc.FromString(self._client._read_payload())
        assert not answer.fatal_error, answer.fatal_error
        return answer

    def query(self, sql: str) -> list[dict[str, Any]]:
        """Run SQL; a row is a dictionary."""
        from perfetto.common.query_result_iterator import QueryResultIterator

        result = self._client.execute_query(sql)
        assert not result.error, result.error
        return [dict(vars(row)) for row in QueryResultIterator(result.column_names, result.batch)]


@contextmanager
def open_trace(node: str, trace: bytes) -> Iterator[TraceProcessor]:
    command = [node, str(SCRIPT), str(PACKAGE)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        processor = TraceProcessor(Pipe(child.stdin, child.stdout))
        processor.load(trace)
        yield processor
        child.stdin.close()
        assert child.wait(timeout=60) == 0
