from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from fib_tools.errors import ChildCrashedError, ChildTimeoutError
from fib_tools.evaluate.judge.channel import Channel

Ends = tuple[Channel, socket.socket]


@pytest.fixture
def ends() -> Iterator[Ends]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Channel(ours), theirs


def test_messages_arrive_whole_and_in_order(ends: Ends) -> None:
    channel, other = ends
    peer = Channel(other)
    for number in range(3):
        peer.send({"number": number, "text": "ü" * 1000})
    assert [channel.receive(5)["number"] for _ in range(3)] == [0, 1, 2]


def test_a_silent_peer_is_waited_for_no_longer_than_said(ends: Ends) -> None:
    with pytest.raises(ChildTimeoutError):
        ends[0].receive(0.01)


@pytest.mark.parametrize(
    "data", [b"\x02\x00\x00\x00[]", b"\x03\x00\x00\x00abc", b"\xff\xff\xff\xff", b"\x09\x00\x00\x00{"]
)
def test_what_is_no_message_is_a_crash_of_the_peer(ends: Ends, data: bytes) -> None:
    channel, other = ends
    other.sendall(data)
    other.shutdown(socket.SHUT_WR)
    with pytest.raises(ChildCrashedError):
        channel.receive(5)


def test_sending_to_a_dead_peer_shows_at_the_next_receive(ends: Ends) -> None:
    channel, other = ends
    other.close()
    channel.send({"a": 1})
    with pytest.raises(ChildCrashedError):
        channel.receive(5)


def test_an_open_file_reaches_only_who_trusts_the_sender() -> None:
    for trusts in (True, False):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            read, write = os.pipe()
            Channel(ours).send({"do": "take"}, write)
            receiver = Channel(theirs, takes_files=trusts)
            assert receiver.receive(5) == {"do": "take"}
            assert len(receiver.descriptors) == trusts
            for descriptor in (read, write, *receiver.descriptors):
                os.close(descriptor)
