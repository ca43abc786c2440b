from __future__ import annotations

import platform
from pathlib import Path

from fib_tools.host.cpu import read_cpu_name


def test_the_model_is_read_where_linux_tells_it_else_the_architecture_is_named(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(
        "processor\t: 0\nmodel name\t: A CPU @ 2 GHz\nmodel name\t: B\n", encoding="utf-8"
    )
    assert read_cpu_name(tmp_path / "cpuinfo") == "A CPU @ 2 GHz"
    assert read_cpu_name(tmp_path / "none") in {platform.processor(), platform.machine()}
