"""`fib view`: a server that can be looked at, or a folder of files."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from fib_tools.errors import FormatError, PathError, RequestError
from fib_tools.operations import get_operation
from fib_tools.phases import view
from fib_tools.phases.context import Context, Workspace
from fib_tools.phases.view import ViewResult
from view_world import NORM, write_world


@pytest.fixture
def context(tmp_path: Path) -> Context:
    (tmp_path / "work").mkdir()
    made = Context(workspace=Workspace(root=write_world(tmp_path / "work")), offline=True)
    (made.dataset.root / "definitions/copy/broken.json").unlink()
    return made


def run(context: Context, **options: Any) -> ViewResult:
    result = get_operation("view").run(context, options)
    assert isinstance(result, ViewResult)
    return result


def read(url: str) -> tuple[str, dict[str, str]]:
    with urlopen(url) as answer:  # noqa: S310  # of this machine
        return answer.read().decode(), dict(answer.headers)


def list_files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_server_shows_the_dataset_until_it_is_interrupted(context: Context) -> None:
    result = run(context, port=0, open=False)
    assert result.url is not None
    thread = threading.Thread(target=result.serve)
    thread.start()
    text, headers = read(f"{result.url}definitions/rmsnorm/{NORM}.html")
    assert NORM in text
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert "gemm_<wbr>n1_<wbr>k1" in read(f"{result.url}models/kimi-k2.html")[0], "which the manifest alone knows"
    result.stop()
    thread.join()


def test_a_taken_port_is_an_error_if_asked_for_and_else_another_is_taken(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(RequestError, match="cannot listen"):
            run(context, port=port, open=False)
        monkeypatch.setattr(view, "_PORT", port)
        other = run(context, open=False)
        assert other.url != f"http://127.0.0.1:{port}/"
        other.stop()


def test_the_browser_is_opened_where_there_is_a_screen(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(view.webbrowser, "open", opened.append)
    for display, opens in ((True, True), (True, False), (False, True)):
        monkeypatch.setattr(view, "has_display", lambda display=display: display)
        result = run(context, port=0, open=opens)
        thread = threading.Thread(target=result.serve)
        thread.start()
        read(result.url or "")
        result.stop()
        thread.join()
        assert len(opened) == 1
    assert opened[0].startswith("http://127.0.0.1:")


def test_files_are_those_of_the_server_and_a_second_run_changes_nothing(context: Context, tmp_path: Path) -> None:
    out = tmp_path / "new" / "site"
    first = run(context, out=out)
    files = list_files(out)
    assert (first.written, first.removed, first.files) == (len(files) - 1, 0, len(files) - 1)
    for path in (
        "index.html",
        "assets/view.css",
        f"definitions/rmsnorm/{NORM}.html",
        "timelines/kimi-k2_layer0.pftrace",
    ):
        assert path in files
    assert json.loads(files["fib-view.json"]) == {"files": sorted(files.keys() - {"fib-view.json"})}
    assert run(context, out=out).written == 0
    assert list_files(out) == files
    assert not first.has_errors
    assert "index.html" in first.summary().lines[-1]


def test_what_is_gone_from_the_dataset_goes_from_the_files_and_nothing_else(context: Context, tmp_path: Path) -> None:
    out = tmp_path / "site"
    run(context, out=out)
    (out / "CNAME").write_text("mine", encoding="utf-8")
    (context.dataset.root / f"definitions/rmsnorm/{NORM}.json").unlink()
    after = run(context, out=out)
    assert after.removed >= 2
    left = list_files(out)
    assert f"definitions/rmsnorm/{NORM}.html" not in left
    assert left["CNAME"] == b"mine"


def test_a_folder_of_somebody_else_is_left_alone(context: Context, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine", encoding="utf-8")
    with pytest.raises(RequestError, match="not empty"):
        run(context, out=tmp_path)
    assert (tmp_path / "mine").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        '{"files": [1]}',
        '{"files": ["models/old.html", "../mine"]}',
        '{"files": ["models/old.html", "notes.txt"]}',
        '{"files": ["models/old.html", "models/../notes.txt"]}',
        '{"files": ["models/old.html", "models/notes.txt"]}',
    ],
)
def test_a_list_that_somebody_changed_removes_nothing(context: Context, tmp_path: Path, text: str) -> None:
    out = tmp_path / "site"
    run(context, out=out)
    for path in ("mine", "site/notes.txt", "site/models/notes.txt", "site/models/old.html"):
        (tmp_path / path).write_text("mine", encoding="utf-8")
    (out / "fib-view.json").write_text(text, encoding="utf-8")
    before = list_files(tmp_path)
    with pytest.raises(FormatError) as refused:
        run(context, out=out)
    assert refused.value.where == str(out / "fib-view.json")
    assert list_files(tmp_path) == before


def test_a_link_out_of_the_folder_is_not_followed(context: Context, tmp_path: Path) -> None:
    out = tmp_path / "site"
    run(context, out=out)
    (tmp_path / "mine").write_text("mine", encoding="utf-8")
    (out / "models/old.html").symlink_to(tmp_path / "mine")
    (out / "fib-view.json").write_text('{"files": ["index.html", "models/old.html"]}', encoding="utf-8")
    before = list_files(tmp_path)
    with pytest.raises(PathError):
        run(context, out=out)
    assert list_files(tmp_path) == before


def test_a_page_that_cannot_be_made_is_a_problem_and_the_others_are_written(context: Context, tmp_path: Path) -> None:
    broken = context.dataset.root / "solutions/ana/copy/hostile/hostile.json"
    broken.write_text("{", encoding="utf-8")
    result = run(context, out=tmp_path / "site")
    assert result.has_errors
    assert result.problems[0].startswith("solutions/ana/copy/hostile/hostile.html: ")
    assert (tmp_path / "site/definitions/copy/hostile.html").exists()


def test_without_a_dataset_it_is_said_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no dataset"):
        run(Context(workspace=Workspace(root=tmp_path)), open=False)


def test_a_manifest_is_read_once_and_a_broken_one_leaves_its_model_to_the_tags(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifests = view._Manifests(context.workspace)
    found, problems = manifests.load()
    assert (set(found), problems) == ({"kimi-k2"}, ())
    monkeypatch.setattr(view, "find_manifest", lambda *_: pytest.fail("it has not changed"))
    assert manifests.load() == (found, ())
    monkeypatch.undo()
    name = "onboard_kimi-k2_2026-11-22.json"
    (context.workspace.root / name).write_text("{}", encoding="utf-8")
    found, problems = manifests.load()
    assert found == {}
    assert name in problems[0]
    out = context.workspace.root / "site"
    run(context, out=out)
    assert name in (out / "index.html").read_text(encoding="utf-8"), "it is told"
    assert (out / "models/kimi-k2.html").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_tells_its_address_first_and_ends_cleanly(
    context: Context, number: signal.Signals, request: pytest.FixtureRequest
) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # where tests run in the background it is ignored
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    command = [sys.executable, "-m", "fib_tools", "view", "--port", "0", "--no-open", "--json", "--quiet"]
    command += ["--workspace", str(context.workspace.root)]
    environment = {name: value for name, value in os.environ.items() if name not in {"DISPLAY", "WAYLAND_DISPLAY"}}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        said = ""
        while not said.endswith("}\n"):
            line = process.stdout.readline()
            assert line, process.communicate()
            said += line
        url = json.loads(said)["url"]
        assert "flashinfer-trace" in read(url)[0]
        process.send_signal(number)
        rest, errors = process.communicate(timeout=60)
    assert (process.returncode, rest, errors) == (0, "", "")


def test_definitions_that_cannot_be_read_are_problems_of_the_files_and_of_the_server(
    context: Context, tmp_path: Path
) -> None:
    (context.dataset.root / f"definitions/rmsnorm/{NORM}.json").write_text("{", encoding="utf-8")
    written, served = run(context, out=tmp_path / "site"), run(context, port=0, open=False)
    served.stop()
    for result in (written, served):
        assert result.has_errors
        assert sum(problem.startswith(f"definitions/rmsnorm/{NORM}.json: ") for problem in result.problems) == 1
        said = f"{len(result.problems)} problems: what cannot be read has no page"
        assert said in result.summary().lines
