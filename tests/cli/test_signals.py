from __future__ import annotations

import signal

import pytest

from fib_tools.cli.app import _ending_like_an_interrupt, _has_resume


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_an_operation_that_is_told_to_end_can_write_down_what_it_has(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt) as interrupt, _ending_like_an_interrupt():
        signal.raise_signal(number)
    assert interrupt.value.args == (number,)
    assert signal.getsignal(number) is before


def test_who_is_interrupted_hears_how_to_go_on() -> None:
    assert _has_resume(["bench", "--fresh"])
    assert not _has_resume(["validate"])
    assert not _has_resume([])
