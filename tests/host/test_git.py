from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fib_tools.errors import FibError, GitError, OfflineError, RequestError
from fib_tools.host import git
from fib_tools.host.git import (
    UpdateOutcome,
    clone_partial,
    head_sha,
    init_submodules,
    list_added_files,
    remote_url,
    update,
)

ROOT = Path(__file__).parents[2]


def run_git(folder: Path, *args: str) -> str:
    settings = [
        "-c",
        "user.name=t",
        "-c",
        "user.email=t@t",
        "-c",
        "protocol.file.allow=always",
        "-c",
        "init.defaultBranch=main",
    ]
    completed = subprocess.run(
        ["git", *settings, *args],  # noqa: S607  # the git of whoever runs the tests
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
    )
    return completed.stdout.strip()


def commit(folder: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    run_git(folder, "add", "-A")
    run_git(folder, "commit", "-qm", "change")
    return run_git(folder, "rev-parse", "HEAD")


@pytest.fixture
def upstream(tmp_path: Path) -> Path:
    folder = tmp_path / "upstream"
    folder.mkdir()
    run_git(folder, "init", "-q")
    run_git(folder, "config", "uploadpack.allowFilter", "true")
    run_git(folder, "config", "uploadpack.allowAnySHA1InWant", "true")
    commit(folder, {"README": "one", "docs/a": "a", "src/b": "b"})
    return folder


@pytest.fixture
def clone(upstream: Path, tmp_path: Path) -> Path:
    target = tmp_path / "work" / "clone"
    clone_partial(f"file://{upstream}", target, branch="main")
    return target


def test_a_sparse_clone_shows_and_fetches_only_what_was_asked(upstream: Path, tmp_path: Path) -> None:
    target = tmp_path / "work" / "clone"
    sha = clone_partial(f"file://{upstream}", target, sparse=("docs",), depth=1)
    assert sha == head_sha(target) == run_git(upstream, "rev-parse", "HEAD")
    assert sorted(path.name for path in target.iterdir()) == [".git", "README", "docs"]
    assert run_git(target, "rev-list", "--objects", "--missing=print", "HEAD").count("?") == 1
    assert [path.name for path in target.parent.iterdir()] == ["clone"]


def test_a_clean_clone_moves_forward(clone: Path, upstream: Path) -> None:
    before = head_sha(clone)
    after = commit(upstream, {"README": "two"})
    result = update(clone, "main")
    assert (result.outcome, result.before, result.after, result.remote) == (
        UpdateOutcome.FAST_FORWARDED,
        before,
        after,
        after,
    )
    assert (clone / "README").read_text(encoding="utf-8") == "two"
    assert update(clone, "main").outcome is UpdateOutcome.UP_TO_DATE


@pytest.mark.parametrize("is_staged", [False, True])
def test_edits_of_the_user_survive(clone: Path, upstream: Path, *, is_staged: bool) -> None:
    (clone / "src" / "b").write_text("mine", encoding="utf-8")
    if is_staged:
        run_git(clone, "add", "src/b")
    remote = commit(upstream, {"README": "two"})
    result = update(clone, "main")
    assert (result.outcome, result.after, result.remote) == (UpdateOutcome.KEPT_LOCAL_CHANGES, result.before, remote)
    assert (clone / "src" / "b").read_text(encoding="utf-8") == "mine"


def test_an_untracked_file_in_the_way_survives(clone: Path, upstream: Path) -> None:
    (clone / "new").write_text("mine", encoding="utf-8")
    commit(upstream, {"new": "theirs"})
    assert update(clone, "main").outcome is UpdateOutcome.KEPT_LOCAL_CHANGES
    assert (clone / "new").read_text(encoding="utf-8") == "mine"


def test_commits_of_the_user_survive(clone: Path, upstream: Path) -> None:
    mine = commit(clone, {"README": "mine"})
    assert update(clone, "main").outcome is UpdateOutcome.KEPT_LOCAL_COMMITS
    commit(upstream, {"README": "two"})
    assert update(clone, "main").outcome is UpdateOutcome.DIVERGED
    assert head_sha(clone) == mine


def test_a_failed_clone_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(GitError, match="git clone failed"):
        clone_partial(f"file://{tmp_path}/missing", tmp_path / "work" / "clone")
    assert list((tmp_path / "work").iterdir()) == []


def test_an_interrupted_clone_leaves_nothing(upstream: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_target: Path) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(git, "head_sha", interrupt)
    with pytest.raises(KeyboardInterrupt):
        clone_partial(f"file://{upstream}", tmp_path / "work" / "clone")
    assert list((tmp_path / "work").iterdir()) == []


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from fib_tools.host import git
git.head_sha = lambda target: os.kill(os.getpid(), signal.SIGKILL)
git.clone_partial(sys.argv[2], Path(sys.argv[3]))
"""


def test_a_killed_clone_leaves_no_target_and_the_next_one_cleans_up(upstream: Path, tmp_path: Path) -> None:
    target = tmp_path / "work" / "clone"
    command = [sys.executable, "-c", KILLED, str(ROOT), f"file://{upstream}", str(target)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert [path.name.startswith(".fib-tmp-") for path in target.parent.iterdir()] == [True]
    clone_partial(f"file://{upstream}", target)
    assert list(target.parent.iterdir()) == [target]


def test_an_existing_folder_is_never_cloned_over(clone: Path, upstream: Path) -> None:
    with pytest.raises(RequestError, match="exists already"):
        clone_partial(f"file://{upstream}", clone)


@pytest.mark.parametrize(
    "url", ["--upload-pack=x", "ext::sh -c id", "fd::3", "http://example.org/x", "/etc", "", "https://a b"]
)
def test_what_is_not_a_safe_url_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError):
        clone_partial(url, tmp_path / "clone")


@pytest.mark.parametrize("branch", ["-x", "a..b", "a b", ""])
def test_what_is_not_a_branch_is_refused(branch: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError):
        update(tmp_path, branch)


@pytest.mark.parametrize("path", ["--stdin", "../x", "/etc", ""])
def test_what_is_not_a_folder_of_the_repository_is_refused(path: str, upstream: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError):
        clone_partial(f"file://{upstream}", tmp_path / "clone", sparse=(path,))


def test_a_missing_branch_is_a_git_error_with_advice(clone: Path) -> None:
    with pytest.raises(GitError, match="check the URL, branch"):
        update(clone, "missing")


def test_offline_refuses_before_git_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIB_OFFLINE", "1")
    with pytest.raises(OfflineError):
        clone_partial("https://127.0.0.1:1/x", tmp_path / "clone")


def test_an_unreachable_host_is_offline_and_shows_no_credentials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("https_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy", "FIB_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(FibError) as caught:
        clone_partial("https://me:secret@127.0.0.1:1/x", tmp_path / "clone")
    assert isinstance(caught.value, OfflineError)
    assert "secret" not in str(caught.value)


def test_the_remote_is_named_without_credentials(clone: Path) -> None:
    run_git(clone, "remote", "set-url", "origin", "https://me:secret@example.org/x")
    assert remote_url(clone) == "https://***@example.org/x"


def test_only_the_named_submodules_are_checked_out(upstream: Path, tmp_path: Path) -> None:
    library = tmp_path / "library"
    library.mkdir()
    run_git(library, "init", "-q")
    commit(library, {"x": "x"})
    for name in ("wanted", "unwanted"):
        run_git(upstream, "submodule", "add", "-q", f"file://{library}", name)
    commit(upstream, {})
    target = tmp_path / "clone"
    clone_partial(f"file://{upstream}", target)
    init_submodules(target, only=("wanted",))
    assert ((target / "wanted" / "x").exists(), (target / "unwanted" / "x").exists()) == (True, False)


def test_hooks_of_the_clone_are_not_run(clone: Path, upstream: Path) -> None:
    hook = clone / ".git" / "hooks" / "post-merge"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\ntouch ran\n", encoding="utf-8")
    hook.chmod(0o755)
    commit(upstream, {"README": "two"})
    assert update(clone, "main").outcome is UpdateOutcome.FAST_FORWARDED
    assert not (clone / "ran").exists()


def test_files_that_commits_added_are_listed_newest_first_and_changed_ones_are_not(upstream: Path) -> None:
    first = commit(upstream, {"models/a.py": "a", "other/b.py": "b"})
    second = commit(upstream, {"models/a.py": "changed", "models/ü c.py": "c"})
    added = list_added_files(upstream, "models", since_days=2)
    assert [(file.path, file.sha) for file in added] == [("models/ü c.py", second), ("models/a.py", first)]
    assert list_added_files(upstream, "none", since_days=2) == ()
