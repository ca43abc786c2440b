from __future__ import annotations

import pytest

from fib_tools.capture.failures import find_engine_error, is_out_of_memory, reduce_memory

_LOG = """[2026-11-21 10:00:00] server_args=...
[2026-11-21 10:00:09] Scheduler hit an exception: Traceback (most recent call last):
  File "scheduler.py", line 3, in run
    self.model = load()
             ^^^^^^
AssertionError: 7168 is not divisible by 3

[2026-11-21 10:00:09] Received sigquit from a child process.
Traceback (most recent call last):
  File "engine.py", line 9, in wait
    raise EOFError
EOFError
"""


def test_the_failure_of_the_scheduler_is_the_cause_and_not_what_followed() -> None:
    assert find_engine_error(_LOG).splitlines()[-2:] == [
        "    self.model = load()",
        "AssertionError: 7168 is not divisible by 3",
    ]


def test_without_a_traceback_the_last_lines_are_shown() -> None:
    assert find_engine_error("one\n\ntwo\n") == "one\ntwo"
    assert find_engine_error("") == ""


def test_of_several_tracebacks_without_a_known_cause_the_last_counts() -> None:
    log = "Traceback (most recent call last):\n  a\nKeyError: 1\nTraceback (most recent call last):\n  b\nValueError: 2"
    assert find_engine_error(log) == "  b\nValueError: 2"


@pytest.mark.parametrize(
    "text", ["torch.OutOfMemoryError: CUDA out of memory.", "RuntimeError: Not enough memory. Please"]
)
def test_want_of_memory_is_recognised(text: str) -> None:
    assert is_out_of_memory(text)
    assert not is_out_of_memory("ValueError: heads do not divide")


def test_weights_that_do_not_fit_get_a_larger_share() -> None:
    arguments = {"mem_fraction_static": 0.7, "max_total_tokens": 16384, "page_size": 1}
    assert reduce_memory(arguments, "CUDA out of memory") == {
        **arguments,
        "mem_fraction_static": 0.42,
        "max_total_tokens": 4096,
    }
    assert reduce_memory(arguments, "Not enough memory")["mem_fraction_static"] == 0.92
