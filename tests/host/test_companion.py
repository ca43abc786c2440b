from __future__ import annotations

import os
import selectors
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fib_tools.errors import ChildCrashedError
from fib_tools.host.companion import Companion
from fib_tools.host.env import engine_environment

ENTRIES = Path(__file__).parent


@pytest.fixture
def start() -> Iterator[Callable[..., Companion]]:
    started: list[Companion] = []

    def begin(name: str, *arguments: str) -> Companion:
        companion = Companion(
            f"companions:{name}", arguments, environment=engine_environment(), import_paths=(ENTRIES,)
        )
        started.append(companion)
        return companion

    yield begin
    for companion in started:
        companion.close()


def listen(companion: Companion, count: int) -> list[dict[str, Any]]:
    """Receive so many messages, or all until it ends."""
    messages: list[dict[str, Any]] = []
    until = time.monotonic() + 20
    while len(messages) < count and time.monotonic() < until:
        with selectors.DefaultSelector() as selector:
            more = selectors.EVENT_WRITE if companion.has_more_to_send else 0
            for descriptor in companion.watched:
                selector.register(descriptor, selectors.EVENT_READ | more)
                more = 0
            selector.select(1)
        companion.flush()
        messages += companion.receive()
        if companion.has_ended:
            break
    return messages


def test_messages_larger_than_any_buffer_come_back_whole(start: Callable[..., Companion]) -> None:
    companion = start("echo")
    texts = [str(number) * 1_000_000 for number in range(4)]
    for text in texts:
        companion.send({"text": text})
    assert listen(companion, 4) == [{"text": text} for text in texts]


def test_a_companion_that_is_hung_up_on_ends_of_itself(start: Callable[..., Companion]) -> None:
    companion = start("echo")
    companion.hang_up(seconds=20)
    assert companion.describe_end() == "ended with status 0; it wrote: bye"


def test_its_death_is_seen_with_what_it_said_before_and_why(start: Callable[..., Companion]) -> None:
    companion = start("fail")
    assert listen(companion, 2) == [{"said": 1}]
    assert companion.has_ended
    companion.kill()
    assert "ended with status 1; it wrote: " in companion.describe_end()
    assert "ValueError: no more" in companion.describe_end()


def test_its_death_is_seen_at_once_while_a_child_of_its_own_lives_on_and_that_child_is_ended(
    start: Callable[..., Companion],
) -> None:
    companion = start("leave_child")
    (message, *_) = listen(companion, 1)
    child = os.pidfd_open(message["child"])
    listen(companion, 1)
    assert companion.has_ended
    companion.kill()
    with selectors.DefaultSelector() as selector:
        selector.register(child, selectors.EVENT_READ)
        assert selector.select(20)
    os.close(child)


def test_what_is_no_message_is_an_error(start: Callable[..., Companion]) -> None:
    with pytest.raises(ChildCrashedError, match="not JSON"):
        listen(start("babble", "x"), 1)
    with pytest.raises(ChildCrashedError, match="bytes"):
        listen(start("boast"), 1)


def test_sending_to_the_dead_is_no_error(start: Callable[..., Companion]) -> None:
    companion = start("echo")
    companion.kill()
    companion.send({"text": "x" * 10_000_000})
    assert companion.has_ended
    assert companion.describe_end() == "died by SIGKILL, and wrote nothing"
    assert not companion.has_more_to_send
