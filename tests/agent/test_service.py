from __future__ import annotations

import subprocess
import sys
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime

import pytest

from agent_bench import Bench
from fib_tools.errors import MissingDependencyError
from scripted_anthropic import Fault, Text, Turn

REPORT = Turn(Text("Done."))


def test_importing_the_agent_loads_neither_the_sdk_nor_what_retries() -> None:
    code = (
        "import sys, fib_tools.agent.loop\nprint([m for m in ('anthropic', 'tenacity', 'httpx2') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_without_the_sdk_the_error_says_what_to_install(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "anthropic", None)
    with pytest.raises(MissingDependencyError, match="pip install 'anthropic"):
        bench.run([])


def test_a_date_to_come_back_at_is_understood(bench: Bench) -> None:
    soon = datetime.now(timezone.utc) + timedelta(seconds=40)
    past = datetime.now(timezone.utc) - timedelta(hours=1)
    headers = [{"retry-after": format_datetime(moment, usegmt=True)} for moment in (soon, past)]
    bench.run([Fault(429, headers=headers[0]), Fault(429, headers=headers[1]), REPORT])

    first, second = bench.waits
    assert 30 < first <= 40
    assert second == 0


@pytest.mark.parametrize("value", ["soon", "", "nan", "-5"])
def test_a_wish_that_is_no_time_does_not_hold_up_the_run(bench: Bench, value: str) -> None:
    bench.run([Fault(429, headers={"retry-after": value}), REPORT])

    (wait,) = bench.waits
    assert 0 <= wait <= 60


def test_without_a_wish_the_waits_stay_between_a_second_and_a_minute(bench: Bench) -> None:
    bench.run([*[Fault(529)] * 5, REPORT])

    assert len(bench.waits) == 5
    assert all(1 <= wait <= 60 for wait in bench.waits)
    assert any("attempt 6 of 6" in line for line in bench.told)
