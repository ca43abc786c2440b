from __future__ import annotations

import io

import pytest
from rich.console import Console

from fib_tools.errors import FibError, UnknownModelError
from fib_tools.model.summary import Summary, Table
from fib_tools.render import print_error, print_summary, show_progress

HOSTILE = "[red]x[/red] \x1b[2J\x07\u202e\udcff"
SHOWN = "[red]x[/red] \\x1b[2J\\x07\\u202e\\udcff"


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=100)


@pytest.fixture
def terminal() -> Console:
    return Console(file=io.StringIO(), width=100, force_terminal=True, color_system="truecolor", legacy_windows=False)


def printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_summary_is_tables_and_then_lines(console: Console) -> None:
    table = Table(
        title="kernels", columns=("name", "status"), rows=(("rmsnorm_h64", "new"), ("gemm_n1_k2", "existing"))
    )
    print_summary(Summary(tables=(table,), lines=("first", "last")), console)
    lines = [line.rstrip() for line in printed(console).splitlines()]
    assert lines == [
        "kernels",
        "name         status",
        "rmsnorm_h64  new",
        "gemm_n1_k2   existing",
        "first",
        "last",
    ]


def test_nothing_in_the_data_is_taken_as_markup_or_steers_the_terminal(console: Console) -> None:
    table = Table(title=HOSTILE, columns=(HOSTILE, "b"), rows=((HOSTILE, HOSTILE),))
    print_summary(Summary(tables=(table,), lines=(HOSTILE,)), console)
    text = printed(console)
    assert text.count(SHOWN) == 5
    assert "\x1b" not in text
    text.encode()


def test_a_line_longer_than_the_terminal_is_not_cut(console: Console) -> None:
    print_summary(Summary(lines=("word " * 60,)), console)
    assert printed(console) == "word " * 60 + "\n"


def test_an_error_says_what_where_and_what_next(console: Console) -> None:
    print_error(FibError("it broke", where="a/b.json", todo="mend it"), console)
    assert printed(console) == "error: it broke\n  in: a/b.json\n  next: mend it\n"


def test_an_error_without_a_place_has_one_line(console: Console) -> None:
    print_error(FibError(HOSTILE), console)
    assert printed(console) == f"error: {SHOWN}\n"


def test_the_nearest_names_are_the_advice(console: Console) -> None:
    print_error(UnknownModelError("kimi", ("kimi-k2", "kimi-vl")), console)
    assert "next: did you mean kimi-k2, kimi-vl?" in printed(console)


def test_progress_is_one_line_for_each_new_step(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.5, 1.0, 1.5, 4.0, 4.5])
    monkeypatch.setattr("fib_tools.render.time.monotonic", lambda: next(clock))
    with show_progress(console, quiet=False) as report:
        report("reading", 0, 0)
        report("executing: a", 1, 9)
        report("executing: b", 2, 9)
        report("executing: c", 3, 9)
        report(HOSTILE, 0, 0)
    assert printed(console).splitlines() == [
        "[  0.5 s] reading",
        "[  1.0 s] executing: a 1/9",
        "[  4.0 s] executing: c 3/9",
        f"[  4.5 s] {SHOWN}",
    ]


def test_a_step_that_only_goes_on_is_said_once(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 5.0, 10.0, 15.0])
    monkeypatch.setattr("fib_tools.render.time.monotonic", lambda: next(clock))
    with show_progress(console, quiet=False) as report:
        for _ in range(3):
            report("the model writes", 2, 15)
    assert printed(console).splitlines() == ["[  5.0 s] the model writes 2/15"]


def test_quiet_means_no_progress(console: Console) -> None:
    with show_progress(console, quiet=True) as report:
        report("reading", 1, 2)
    assert printed(console) == ""


def test_a_terminal_gets_a_live_line_that_leaves_nothing_behind(terminal: Console) -> None:
    with show_progress(terminal, quiet=False) as report:
        report(HOSTILE, 1, 2)
        report("executing", 0, 0)
    text = printed(terminal)
    assert "[red]x[/red]" in text or "executing" in text
    assert "\x1b[2J" not in text
    assert text.endswith("\x1b[2K"), "the line is erased at the end"


@pytest.mark.parametrize(
    ("width", "shown", "said"),
    [(100, ("name", "served", "witnesses"), ""), (40, ("name", "served"), "too narrow for witnesses")],
)
def test_a_table_leaves_out_columns_rather_than_cut_names(width: int, shown: tuple[str, ...], said: str) -> None:
    row = ("gqa_paged_decode_h32", "tp8", "config trace sglang")
    table = Table(title="kernels", columns=("name", "served", "witnesses"), rows=(row,))
    console = Console(width=width, file=io.StringIO())
    print_summary(Summary(tables=(table,)), console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert said in text
    assert row[0] in text
    assert [word for word in ("name", "served", "witnesses") if word in text.splitlines()[1]] == list(shown)


def test_a_long_last_column_is_folded_and_not_left_out() -> None:
    reason = "the same kernel as another one, " * 6
    table = Table(title="remarks", columns=("name", "status", "reason"), rows=(("rmsnorm_h64", "existing", reason),))
    console = Console(width=80, file=io.StringIO())
    print_summary(Summary(tables=(table,)), console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "too narrow" not in text
    assert text.count("kernel") == 6
