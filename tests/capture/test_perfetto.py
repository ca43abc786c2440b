from __future__ import annotations

import sys
from pathlib import Path

import pytest

from example_timeline import EXTREME, START, make_timeline
from fib_tools.capture.perfetto import format_trace, write_trace
from fib_tools.capture.perfetto_reading import parse_trace, read_trace
from fib_tools.capture.timeline import Span, Timeline
from fib_tools.errors import FormatError, MissingDependencyError, StorageError


@pytest.mark.parametrize("timeline", [make_timeline(), EXTREME, Timeline(name="empty", spans=())])
def test_what_was_written_is_read_back(timeline: Timeline, tmp_path: Path) -> None:
    written = write_trace(timeline, tmp_path / "block.pftrace")
    assert read_trace(written.path) == timeline
    assert written.bytes == written.path.stat().st_size
    assert written.slices == len(timeline.spans)


def test_the_same_timeline_gives_the_same_bytes() -> None:
    again = Timeline.model_validate_json(make_timeline().model_dump_json())
    assert format_trace(make_timeline()) == format_trace(again)


def test_a_slice_takes_some_hundred_bytes(tmp_path: Path) -> None:
    written = write_trace(make_timeline(layers=10, modules=4, operators=8), tmp_path / "t")
    assert written.slices > 700
    each = written.bytes / written.slices
    assert 100 < each < 300
    assert 5000 * each < 20_000_000 / 10


def test_spans_that_do_not_nest_leave_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_bytes(b"old")
    one = Span(name="a", kind="operator", start_ns=START, end_ns=START + 9)
    other = one.model_copy(update={"name": "b", "start_ns": START + 5, "end_ns": START + 12})
    with pytest.raises(FormatError, match=r"'b'.* begins before operator 'a'"):
        write_trace(Timeline(name="t", spans=(one, other)), path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there_is_the_disks_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="create the folder first"):
        write_trace(make_timeline(), tmp_path / "none" / "t")


@pytest.mark.parametrize(
    "data", [b"\x00", b"garbage", b"", format_trace(make_timeline())[:-700], b'{"traceEvents": []}']
)
def test_what_is_not_a_trace_of_ours_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError) as caught:
        parse_trace(data, where="t.pftrace")
    assert "in t.pftrace" in str(caught.value)


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("perfetto")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "perfetto", None)
    with pytest.raises(MissingDependencyError, match=r"perfetto is not installed.*pip install 'fib-tools\[trace\]'"):
        format_trace(make_timeline())
