from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Iterator

import pytest

from fib_tools.errors import FormatError, RequestError
from fib_tools.host.loopback import Answer, LoopbackServer

SEEN: list[str] = []


def find(path: str) -> Answer | None:
    SEEN.append(path)
    if path == "broken":
        raise FormatError("it is broken", where="here")
    if path == "crash":
        raise RuntimeError("a crash")
    found = {"": b"first", "a/b c.html": b"second", "big": b"x" * 300_000}
    return (
        Answer(body=found[path], media_type="text/html", headers={"Content-Security-Policy": "default-src 'none'"})
        if path in found
        else None
    )


@pytest.fixture(scope="module")
def server() -> Iterator[LoopbackServer]:
    with LoopbackServer(find) as started:
        thread = threading.Thread(target=started.serve_forever)
        thread.start()
        yield started
        started.shutdown()
        thread.join()


def ask(server: LoopbackServer, path: str, method: str = "GET", **headers: str) -> tuple[int, bytes, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=30)
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, body, dict(answer.getheaders())


def test_a_path_is_answered_with_what_is_there(server: LoopbackServer) -> None:
    status, body, headers = ask(server, "/")
    assert (status, body, headers["Content-Type"]) == (200, b"first", "text/html")
    assert headers["Content-Security-Policy"] == "default-src 'none'"
    assert (headers["X-Content-Type-Options"], headers["Cross-Origin-Resource-Policy"]) == ("nosniff", "same-origin")
    assert "Python" not in headers["Server"]
    assert ask(server, "/a/b%20c.html?x=1#y")[:2] == (200, b"second")
    assert ask(server, "/big")[1] == b"x" * 300_000


def test_head_has_the_headers_alone(server: LoopbackServer) -> None:
    status, body, headers = ask(server, "/", "HEAD")
    assert (status, body, headers["Content-Length"]) == (200, b"", "5")


@pytest.mark.parametrize("path", ["/nothing", "/../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd", "/a%00b"])
def test_what_is_not_there_is_not_found_and_no_file_is_looked_for(server: LoopbackServer, path: str) -> None:
    status, body, _ = ask(server, path)
    assert status == 404
    assert b"root:" not in body


def test_what_is_no_address_is_refused(server: LoopbackServer) -> None:
    with socket.create_connection(("127.0.0.1", server.server_address[1]), timeout=30) as connection:
        connection.sendall(b"GET http://[::1/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert connection.makefile("rb").readline().split()[1] == b"400"


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "127.0.0.1:80@evil", ""])
def test_a_name_of_somebody_else_that_points_here_is_refused(server: LoopbackServer, host: str) -> None:
    SEEN.clear()
    status, body, _ = ask(server, "/", Host=host)
    assert (status, b"first" in body) == (403, False)
    assert SEEN == []


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1234", "127.0.0.1:9", "[::1]:80"])
def test_loopback_names_are_answered_at_any_port_of_a_tunnel(server: LoopbackServer, host: str) -> None:
    assert ask(server, "/", Host=host)[0] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_nothing_can_be_sent(server: LoopbackServer, method: str) -> None:
    assert ask(server, "/", method)[0] == 501


def test_a_page_that_cannot_be_made_is_an_error_with_its_reason(server: LoopbackServer) -> None:
    status, body, headers = ask(server, "/broken")
    assert (status, headers["Content-Type"]) == (500, "text/plain; charset=utf-8")
    assert b"it is broken (in here)" in body


def test_a_crash_is_told_to_whoever_started_it_and_the_next_is_answered(
    server: LoopbackServer, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(http.client.RemoteDisconnected):
        ask(server, "/crash")
    assert ask(server, "/")[0] == 200
    assert "a crash" in capfd.readouterr().err


def test_it_is_bound_to_loopback_alone_and_a_taken_port_is_an_error(server: LoopbackServer) -> None:
    assert server.socket.getsockname()[0] == "127.0.0.1"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(RequestError, match=r"cannot listen on 127\.0\.0\.1") as caught:
            LoopbackServer(find, port=port)
    assert "--port" in (caught.value.todo or "")
