from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from fib_tools import __version__
from fib_tools.cli import app
from fib_tools.cli.app import main
from fib_tools.errors import FibError, GitError, RequestError, StorageError
from fib_tools.model.base import to_document
from fib_tools.model.summary import Result, Summary
from fib_tools.operation import Effect, Operation
from fib_tools.operations import OPERATIONS
from fib_tools.phases.context import Context, Workspace
from fib_tools.phases.discover import discover_models
from fib_tools.phases.status import show_status

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("FIB_WORKSPACE", "FIB_OFFLINE", "HF_HUB_OFFLINE", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


class Seen(Result):
    """What a command was called with."""

    values: dict[str, Any] = Field(default_factory=dict)
    failed: bool = False

    @property
    def has_errors(self) -> bool:
        return self.failed

    def summary(self) -> Summary:
        return Summary(lines=("seen [red]this[/red]",))


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Result]], None]:
    """Put one function in the place of all commands: `fib try`."""

    def install(function: Callable[..., Result]) -> None:
        operation = Operation(verb="try", tool="fib_try_it", entry=function, phase=None, effect=Effect.READ)
        monkeypatch.setattr(app, "OPERATIONS", (operation,))

    return install


def see(  # noqa: PLR0913  # one of each kind
    context: Context,
    subject: Annotated[str | None, Field(description="The subject.")] = None,
    *,
    sizes: Annotated[tuple[int, ...] | None, Field(description="Some sizes.")] = None,
    words: Annotated[tuple[str, ...], Field(description="Some words.")] = ("a", "b"),
    kinds: Annotated[tuple[Literal["big", "small"], ...] | None, Field(description="Some kinds.")] = None,
    keep: Annotated[bool, Field(description="Keep it.")] = True,
    drop: Annotated[bool, Field(description="Drop it.")] = False,
) -> Seen:
    """See what the command line makes of its arguments."""
    return Seen(
        values={
            "subject": subject,
            "sizes": sizes,
            "words": words,
            "kinds": kinds,
            "keep": keep,
            "drop": drop,
            "workspace": str(context.workspace.root),
            "dataset": str(context.dataset.root),
            "offline": context.offline,
        }
    )


def seen(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["try", *arguments, "--json"]) == 0
    values: dict[str, Any] = json.loads(capsys.readouterr().out)["values"]
    return values


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.verb)
def test_the_help_of_a_command_explains_every_option(operation: Operation, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*operation.verb.split(), "--help"]) == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert (operation.function.__doc__ or "").split("\n")[0] in text
    for option in operation.list_options():
        if not option.is_subject:
            assert f"--{option.name.replace('_', '-')}" in text
    for name in ("--workspace", "--dataset", "--offline", "--json", "--quiet"):
        assert name in text
    assert "--empty" not in text


@pytest.mark.parametrize("words", [["--help"], ["trace", "--help"], ["status", "--help"]])
def test_a_command_loads_what_it_runs_and_nothing_else(words: list[str]) -> None:
    code = f"import sys; from fib_tools.cli.app import main; main({words!r}); print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(ran.stdout.splitlines()[-1].split())
    modules = {operation.verb: str(operation.entry).partition(":")[0] for operation in OPERATIONS}
    assert {verb for verb, module in modules.items() if module in loaded} == (
        {"status"} if "status" in words else set()
    )


def test_help_begins_with_the_first_command_to_try(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--help"], ["-h"]):
        assert main(arguments) == 0
        text = capsys.readouterr().out
        assert "Begin with: fib onboard kimi-k2" in text
        assert all(operation.verb.split()[0] in text for operation in OPERATIONS)
        assert "Run a command with GPUs that nobody else" in text


@pytest.mark.parametrize("words", [["--help", "status"], ["-h", "status"], ["trace", "--help", "model"]])
def test_help_may_be_asked_for_before_the_command(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    text = capsys.readouterr().out
    assert f"Usage: fib {' '.join(word for word in words if word[0] != '-')} " in text
    assert "--workspace" in text


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nope"], 'Unknown command "nope"'),
        (["status", "--nope"], "Unknown option"),
        (["status", "stray"], "stray"),
        (["inventory"], "requires an argument"),
        (["onboard", "a", "--tp-list"], "requires an argument"),
        (["onboard", "a", "--tp-list", "x"], "'x' is not a list of whole numbers such as 2,4"),
        (["onboard", "a", "--tp-list", "1.5"], "'1.5' is not a list of whole numbers"),
        (["onboard", "a", "--tp-list", "9" * 5000], "is not a list of whole numbers"),
        (["onboard", "a", "--tp-list", " , "], "no value"),
        (["define", "a", "--path", "magic"], "magic"),
        (["report", "--compare", "baseline"], "it takes 2 values with a comma between, not 'baseline'"),
    ],
)
def test_what_the_command_line_does_not_know_ends_with_status_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in " ".join(captured.err.split())
    assert "next: see fib --help" in captured.err
    assert list(tmp_path.iterdir()) == []
    assert main([*arguments, "--json"]) == 2
    document = json.loads(capsys.readouterr().out)
    assert document["error"] == "RequestError"


def test_lists_are_written_with_commas(command: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    command(see)
    assert seen(capsys)["sizes"] is None
    assert seen(capsys, "--sizes", "2,4")["sizes"] == [2, 4]
    assert seen(capsys, "--sizes", " 2 , 4,")["sizes"] == [2, 4]
    assert seen(capsys, "--sizes", "2", "--sizes", "4,8")["sizes"] == [2, 4, 8]
    assert seen(capsys, "--sizes=-1")["sizes"] == [-1]
    assert seen(capsys)["words"] == ["a", "b"]
    assert seen(capsys, "--words", "x,y")["words"] == ["x", "y"]


def test_switches_are_turned_on_and_off(command: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    command(see)
    values = seen(capsys, "it", "--no-keep", "--drop")
    assert (values["subject"], values["keep"], values["drop"]) == ("it", False, True)
    assert main(["try", "--no-drop"]) == 2


def test_the_default_of_a_list_is_shown_as_it_is_written(
    command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    command(see)
    assert main(["try", "--help"]) == 0
    text = capsys.readouterr().out
    assert "[default: a,b]" in text
    assert "--sizes INT,..." in text
    assert "[default: ]" not in text


def test_the_workspace_is_an_option_or_a_variable_or_tmp(
    command: Callable[..., None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command(see)
    assert seen(capsys)["workspace"] == "tmp"
    monkeypatch.setenv("FIB_WORKSPACE", "/elsewhere")
    values = seen(capsys)
    assert (values["workspace"], values["dataset"]) == ("/elsewhere", "/elsewhere/flashinfer-trace")
    values = seen(capsys, "--workspace", "/here", "--dataset", "/data")
    assert (values["workspace"], values["dataset"]) == ("/here", "/data")


def test_offline_is_an_option_or_a_variable(
    command: Callable[..., None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command(see)
    assert seen(capsys)["offline"] is False
    assert seen(capsys, "--offline")["offline"] is True
    monkeypatch.setenv("FIB_OFFLINE", "1")
    assert seen(capsys)["offline"] is True


def test_json_is_the_document_of_the_functions_result(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    context = Context(workspace=Workspace(root=tmp_path))
    for verb, function in (("status", show_status), ("discover", discover_models)):
        assert main([verb, "--workspace", str(tmp_path), "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == to_document(function(context))


def test_a_result_goes_to_stdout_and_progress_to_stderr(
    command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    def work(context: Context) -> Seen:
        """Work a little."""
        context.progress("working", 1, 2)
        return Seen()

    command(work)
    assert main(["try"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "seen [red]this[/red]\n"
    assert captured.err == "[  0.0 s] working 1/2\n"
    assert main(["try", "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_errors_of_the_data_end_with_status_1(command: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    def fail(_context: Context) -> Seen:
        """Find an error."""
        return Seen(failed=True)

    command(fail)
    assert main(["try"]) == 1
    assert capsys.readouterr().out == "seen [red]this[/red]\n"


def raising(error: BaseException) -> Callable[[Context], Seen]:
    def fail(_context: Context) -> Seen:
        """Fail."""
        raise error

    return fail


@pytest.mark.parametrize(
    "error",
    [
        RequestError("no [b]way[/b]", where="here", todo="turn back"),
        StorageError("no [b]way[/b]", where="here", todo="turn back"),
    ],
)
def test_an_error_is_told_on_stderr_or_as_a_document(
    command: Callable[..., None], capsys: pytest.CaptureFixture[str], error: FibError
) -> None:
    command(raising(error))
    assert main(["try"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "error: no [b]way[/b]\n  in: here\n  next: turn back\n"
    assert main(["try", "--json"]) == 2
    captured = capsys.readouterr()
    assert captured.err == ""
    assert json.loads(captured.out) == {
        "error": type(error).__name__,
        "what": "no [b]way[/b]",
        "where": "here",
        "next": "turn back",
    }


def test_no_secret_is_printed(
    command: Callable[..., None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_API_KEY", "open-sesame-123")
    error = GitError("open-sesame-123 refused", where="https://me:pass@example.org/x", todo="see open-sesame-123")
    command(raising(error))
    for options in ([], ["--json"]):
        assert main(["try", *options]) == 2
        captured = capsys.readouterr()
        said = captured.out + captured.err
        assert "open-sesame" not in said
        assert "me:pass" not in said
        assert "***@example.org" in said


def test_an_error_without_a_place_has_none(command: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    command(raising(RequestError("no")))
    assert main(["try"]) == 2
    assert capsys.readouterr().err == "error: no\n"


def test_what_the_system_refuses_is_told_like_any_error(
    command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    command(raising(PermissionError(13, "Permission denied", "/secret")))
    assert main(["try"]) == 2
    assert capsys.readouterr().err == (
        "error: the system refused: Permission denied\n  in: /secret\n  next: check the path and its permissions\n"
    )
    command(raising(OSError("odd")))
    assert main(["try", "--workspace", "/work-here"]) == 2
    assert "the system refused: odd\n  in: /work-here" in capsys.readouterr().err


def test_an_interruption_ends_with_status_130(command: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    command(raising(KeyboardInterrupt()))
    assert main(["try"]) == 130
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "run the same command again" in captured.err


def test_a_mistake_of_ours_is_not_hidden(command: Callable[..., None]) -> None:
    command(raising(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        main(["try"])


def test_a_terminal_gets_its_own_width_and_colours_unless_told_otherwise(
    command: Callable[..., None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command(raising(RequestError("no")))
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    main(["try", "--quiet"])
    assert "\x1b[1;31merror" in capsys.readouterr().err
    monkeypatch.setenv("NO_COLOR", "1")
    main(["try", "--quiet"])
    assert "31m" not in capsys.readouterr().err
    command(see)
    main(["try", "--quiet"])
    assert "seen [red]this[/red]" in capsys.readouterr().out


def test_the_package_is_a_command_that_reads_its_arguments(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "FIB_WORKSPACE": str(tmp_path / "work"),
        "PYTHONWARNDEFAULTENCODING": "1",
    }
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-m", "fib_tools", "validate", "--json"],
        capture_output=True,
        check=False,
        encoding="utf-8",
        env=environment,
    )
    assert ran.returncode == 2, ran.stderr
    assert json.loads(ran.stdout)["where"] == str(tmp_path / "work" / "flashinfer-trace")


@pytest.mark.parametrize("options", [["--json"], []])
def test_a_reader_that_stops_reading_is_no_mistake(tmp_path: Path, options: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        ran = subprocess.run(
            [sys.executable, "-m", "fib_tools", "discover", "--workspace", str(tmp_path), *options],
            check=False,
            stdout=writing,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    finally:
        os.close(writing)
    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.parametrize("options", [["--json"], []])
def test_a_closed_pipe_is_left_for_good(
    command: Callable[..., None], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    def break_pipe(_text: str) -> int:
        raise BrokenPipeError

    command(see)
    monkeypatch.setattr(sys.stdout, "write", break_pipe)
    assert main(["try", *options]) == 0
    monkeypatch.undo()
    os.write(sys.stdout.fileno(), b"into nothing")
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_a_full_disk_behind_stdout_is_an_error_without_a_traceback(as_json: list[str], tmp_path: Path) -> None:
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        command = [sys.executable, "-m", "fib_tools", "status", "--workspace", str(tmp_path), *as_json]
        ran = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert ran.returncode == 2
    assert "No space left" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_list_of_words_takes_only_those_there_are(
    command: Callable[[Callable[..., Result]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    command(see)
    assert seen(capsys, "--kinds", "big,small")["kinds"] == ["big", "small"]
    assert main(["try", "--kinds", "big,huge"]) == 2
    assert "'huge' is none of big, small" in capsys.readouterr().err


def test_values_with_blanks_between_are_told_of_commas(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--definitions", "one", "two"]) == 2
    assert "with commas" in capsys.readouterr().err
