from __future__ import annotations

from fib_tools.evaluate._runner.cupti import Activity, Kind
from fib_tools.evaluate._runner.timing import _unite


def _activity(start: int, end: int, kind: int = Kind.KERNEL) -> Activity:
    return Activity(correlation=start, start=start, end=end, kind=kind, value=0, name="")


def test_gaps_between_kernels_and_the_start_of_copies_are_no_work() -> None:
    assert _unite([_activity(0, 5_000), _activity(4_000, 6_000), _activity(9_000, 10_000)]) == 7_000
    assert _unite([_activity(0, 5_000, Kind.MEMCPY), _activity(6_000, 7_000, Kind.MEMSET)]) == 3_000
    assert _unite([_activity(3_000, 4_000), _activity(0, 5_000, Kind.MEMCPY)]) == 3_000
