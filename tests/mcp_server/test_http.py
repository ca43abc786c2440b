from __future__ import annotations

import signal
import socket
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from fib_tools.cli.app import main
from fib_tools.errors import RequestError
from mcp_server.http import bind, make_token
from served import Served, serve_http

pytestmark = pytest.mark.anyio
HELLO = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "test", "version": "0"},
    },
}
ACCEPT = {"Accept": "application/json, text/event-stream"}


def post(served: Served, **headers: str) -> httpx2.Response:
    return httpx2.post(served.url, json=HELLO, headers={**ACCEPT, **headers}, timeout=30)


async def test_a_client_with_the_token_lists_and_calls(served: Served) -> None:
    headers = {"Authorization": f"Bearer {served.token}"}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=30) as http,
        Client(streamable_http_client(served.url, http_client=http)) as client,
    ):
        assert "fib_onboard_model" in [tool.name for tool in (await client.list_tools()).tools]
        assert not (await client.call_tool("fib_show_status", {})).is_error


@pytest.mark.parametrize("header", [None, "Bearer wrong", "Bearer", "Basic abc"])
def test_without_the_token_nobody_is_let_in(served: Served, header: str | None) -> None:
    headers = {"Authorization": header} if header else {}
    assert post(served, **headers).status_code == 401


def test_a_foreign_host_or_origin_is_turned_away(served: Served) -> None:
    bearer = {"Authorization": f"Bearer {served.token}"}
    assert post(served, **bearer).status_code == 200
    assert post(served, **bearer, Host="evil.example").status_code == 421
    assert post(served, **bearer, Origin="http://evil.example").status_code == 403
    assert post(served, **bearer, Origin=f"http://localhost:{urlsplit(served.url).port}").status_code == 200


def test_it_listens_on_loopback_and_makes_a_token_of_its_own(served: Served) -> None:
    assert urlsplit(served.url).hostname == "127.0.0.1"
    assert len(served.token) >= 32


def test_the_token_of_the_environment_is_taken_and_not_shown(tmp_path: Path) -> None:
    token = make_token()
    with serve_http(tmp_path, FIB_MCP_TOKEN=token) as served:
        assert token not in served.token
        assert post(served, Authorization=f"Bearer {token}").status_code == 200


def test_an_interrupt_ends_it_cleanly(tmp_path: Path) -> None:
    with serve_http(tmp_path) as served:
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(timeout=30) in {0, -signal.SIGTERM, 128 + signal.SIGTERM}


def test_a_port_that_is_taken_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        assert main(["mcp", "--http", str(other.getsockname()[1])]) == 2
    assert "cannot listen on 127.0.0.1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--http", "0", "--host", ""], "no address to listen on"),
        (["--host", "0.0.0.0"], "--host and --allowed-hosts are for HTTP"),  # noqa: S104
        (["--http", "0", "--host", "no.such.host.invalid"], "cannot listen on"),
    ],
)
def test_an_address_that_cannot_be_is_refused(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main(["mcp", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_a_token_that_no_header_takes_is_refused() -> None:
    with pytest.raises(RequestError, match="no header takes"), bind("127.0.0.1", 0, token=f"{make_token()}\nX: y"):
        pass


def test_a_short_token_is_refused() -> None:
    with pytest.raises(RequestError, match="the token has 5 characters"), bind("127.0.0.1", 0, token=make_token()[:5]):
        pass
    assert make_token() != make_token()
