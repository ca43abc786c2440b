"""The conformance suite's generic scenarios; the others want a server with fixture tools."""

from __future__ import annotations

import http.client
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

TOKEN = "conformance-token-of-a-test"  # noqa: S105  # opens a server that lives as long as these tests
SCENARIOS = (
    "server-initialize",
    "ping",
    "tools-list",
    "resources-list",
    "prompts-list",
    "server-sse-multiple-streams",
    "dns-rebinding-protection",
)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a `fib mcp --http`."""
    folder = tmp_path_factory.mktemp("http")
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "FIB_MCP_TOKEN": TOKEN, "FIB_OFFLINE": "1"}
    command = [sys.executable, "-m", "fib_tools", "mcp", "--http", "0"]
    with subprocess.Popen(command, env=environment, cwd=folder, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr
        said = server.stderr.readline()
        found = re.fullmatch(r"listening on (http://127\.0\.0\.1:\d+/mcp)\n", said)
        assert found, said
        drain = threading.Thread(target=server.stderr.read)  # a full pipe would stop the server
        drain.start()
        yield found[1]
        server.terminate()
        drain.join()


@pytest.fixture(scope="module")
def open_url(url: str) -> Iterator[str]:
    """An address that needs no token: the suite cannot send one, so a proxy adds it and forwards all else as it is."""

    class Proxy(_Proxy):
        upstream = urlsplit(url).netloc

    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        proxy.daemon_threads = True
        thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{proxy.server_address[1]}/mcp"
        proxy.shutdown()
        thread.join()


class _Proxy(BaseHTTPRequestHandler):
    upstream = ""
    protocol_version = "HTTP/1.1"  # node's client breaks now and then over an answer that ends with its connection

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class names it so
        pass

    def _forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        connection = http.client.HTTPConnection(self.upstream, timeout=60)
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() != "connection":
                connection.putheader(name, value)
        connection.putheader("Authorization", f"Bearer {TOKEN}")
        connection.endheaders(body)
        try:
            self._answer(connection.getresponse())
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the client has seen enough of a stream
        finally:
            connection.close()

    def _answer(self, response: http.client.HTTPResponse) -> None:
        self.send_response(response.status)
        for name, value in response.getheaders():
            if name.lower() not in {"connection", "transfer-encoding", "content-length", "server", "date"}:
                self.send_header(name, value)
        if response.status in {202, 204}:
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while piece := response.read1(65536):
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")

    do_GET = do_POST = do_DELETE = _forward  # noqa: N815  # the base class names them so


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_scenario_passes(
    scenario: str, open_url: str, client_binaries: Path, node_path: str, tmp_path: Path
) -> None:
    environment = {"PATH": node_path, "HOME": str(tmp_path)}
    command = [client_binaries / "conformance", "server", "--url", open_url, "--scenario", scenario]
    ran = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    passed = re.search(r"Passed: (\d+)/\1, 0 failed, 0 warnings", ran.stdout)
    assert passed, ran.stdout + ran.stderr
    assert int(passed[1]) > 0


def test_the_server_itself_wants_the_token(url: str) -> None:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
    connection.request("POST", "/mcp", '{"jsonrpc": "2.0", "id": 1, "method": "ping"}', headers)
    assert connection.getresponse().status == 401
    connection.close()
