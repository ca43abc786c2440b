from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from fib_tools.errors import FormatError, RequestError, SourceError
from fib_tools.sources.clones import REPOS, CloneStatus, clone_sources, load_repos_config

NAMES = [repo.name for repo in REPOS]


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=Test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false")
    command = ["git", *identity, *arguments]
    return subprocess.run(
        command, cwd=folder, check=True, capture_output=True, text=True, encoding="utf-8"
    ).stdout.strip()


def commit(folder: Path, file: str, text: str) -> str:
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "-m", "change")
    return git(folder, "rev-parse", "HEAD")


def make_upstream(folder: Path, name: str) -> str:
    upstream = folder / "upstream" / name
    upstream.mkdir(parents=True)
    git(upstream, "init", "--quiet", "--initial-branch=main")
    git(upstream, "config", "uploadpack.allowFilter", "true")
    repo = next(repo for repo in REPOS if repo.name == name)
    commit(upstream, f"{repo.sparse[0]}/file.txt", "one")
    commit(upstream, "unneeded/file.txt", "big")
    return upstream.as_uri()


def test_a_clone_shows_the_needed_folders_and_is_recorded(tmp_path: Path) -> None:
    urls = {name: make_upstream(tmp_path, name) for name in NAMES}
    config = clone_sources(tmp_path / "work", urls=urls)
    assert list(config.repositories) == NAMES
    for repo in REPOS:
        clone = config.repositories[repo.name]
        assert clone.status is CloneStatus.CLONED, clone.error
        assert clone.sha == git(tmp_path / "upstream" / repo.name, "rev-parse", "HEAD")
        assert (tmp_path / "work" / repo.name / repo.sparse[0] / "file.txt").is_file()
        assert not (tmp_path / "work" / repo.name / "unneeded").exists()
    assert load_repos_config(tmp_path / "work") == config
    document = json.loads((tmp_path / "work" / "repos_config.json").read_text(encoding="utf-8"))
    assert document["repositories"]["sglang"] == {
        "path": "sglang",
        "status": "cloned",
        "sha": config.repositories["sglang"].sha,
        "branch": "main",
        "url": urls["sglang"],
    }


def test_a_second_run_changes_nothing_until_upstream_moves(tmp_path: Path) -> None:
    urls = {"sglang": make_upstream(tmp_path, "sglang")}
    clone_sources(tmp_path / "work", only=["sglang"], urls=urls)
    again = clone_sources(tmp_path / "work", only=["sglang"], urls=urls)
    assert again.repositories["sglang"].status is CloneStatus.UNCHANGED
    sha = commit(tmp_path / "upstream" / "sglang", "python/sglang/file.txt", "two")
    moved = clone_sources(tmp_path / "work", only=["sglang"], urls=urls).repositories["sglang"]
    assert (moved.status, moved.sha) == (CloneStatus.UPDATED, sha)


def test_a_users_changes_and_commits_are_kept(tmp_path: Path) -> None:
    urls = {name: make_upstream(tmp_path, name) for name in ("sglang", "flashinfer")}
    clone_sources(tmp_path / "work", only=urls, urls=urls)
    edited = tmp_path / "work" / "sglang" / "python" / "sglang" / "file.txt"
    edited.write_text("mine", encoding="utf-8")
    own = commit(tmp_path / "work" / "flashinfer", "flashinfer/file.txt", "mine")
    for name, folder in (("sglang", "python/sglang"), ("flashinfer", "flashinfer")):
        commit(tmp_path / "upstream" / name, f"{folder}/file.txt", "theirs")
    config = clone_sources(tmp_path / "work", only=urls, urls=urls)
    assert config.repositories["sglang"].status is CloneStatus.KEPT_LOCAL_CHANGES
    assert config.repositories["flashinfer"].status is CloneStatus.KEPT_LOCAL_COMMITS
    assert config.repositories["flashinfer"].sha == own
    assert edited.read_text(encoding="utf-8") == "mine"


def test_a_repository_that_fails_is_recorded_and_the_others_go_on(tmp_path: Path) -> None:
    urls = {"sglang": (tmp_path / "missing").as_uri(), "flashinfer": make_upstream(tmp_path, "flashinfer")}
    config = clone_sources(tmp_path / "work", only=urls, urls=urls)
    failed = config.repositories["sglang"]
    assert (failed.status, failed.sha) == (CloneStatus.FAILED, None)
    assert failed.error
    assert config.repositories["flashinfer"].status is CloneStatus.CLONED
    assert (tmp_path / "work" / config.repositories["flashinfer"].path / ".git").exists()


def test_the_branch_of_sglang_can_be_chosen(tmp_path: Path) -> None:
    url = make_upstream(tmp_path, "sglang")
    git(tmp_path / "upstream" / "sglang", "checkout", "--quiet", "-b", "release")
    sha = commit(tmp_path / "upstream" / "sglang", "python/sglang/file.txt", "release")
    git(tmp_path / "upstream" / "sglang", "checkout", "--quiet", "main")
    config = clone_sources(tmp_path / "work", only=["sglang"], sglang_branch="release", urls={"sglang": url})
    assert (config.repositories["sglang"].branch, config.repositories["sglang"].sha) == ("release", sha)


def test_a_later_run_for_some_repositories_keeps_the_record_of_the_others(tmp_path: Path) -> None:
    urls = {name: make_upstream(tmp_path, name) for name in ("sglang", "flashinfer")}
    clone_sources(tmp_path / "work", only=["flashinfer"], urls=urls)
    config = clone_sources(tmp_path / "work", only=["sglang"], urls=urls)
    assert set(config.repositories) == {"sglang", "flashinfer"}


def test_a_folder_that_is_not_our_clone_is_left_alone(tmp_path: Path) -> None:
    urls = {name: make_upstream(tmp_path, name) for name in ("sglang", "flashinfer")}
    (tmp_path / "work" / "sglang").mkdir(parents=True)
    (tmp_path / "work" / "sglang" / "mine.txt").write_text("mine", encoding="utf-8")
    subprocess.run(["git", "clone", "--quiet", urls["sglang"], "flashinfer"], cwd=tmp_path / "work", check=True)  # noqa: S607 - git by its name
    config = clone_sources(tmp_path / "work", only=urls, urls=urls)
    assert config.repositories["sglang"].status is CloneStatus.FAILED
    assert "no clone" in (config.repositories["sglang"].error or "")
    assert config.repositories["flashinfer"].status is CloneStatus.FAILED
    assert "was cloned from" in (config.repositories["flashinfer"].error or "")
    assert (tmp_path / "work" / "sglang" / "mine.txt").is_file()


def test_credentials_in_a_url_are_not_written_down(tmp_path: Path) -> None:
    url = "https://user:hunter2secret@127.0.0.1:9/sglang"
    config = clone_sources(tmp_path / "work", only=["sglang"], urls={"sglang": url})
    assert config.repositories["sglang"].status is CloneStatus.FAILED
    assert "hunter2secret" not in (tmp_path / "work" / "repos_config.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("arguments", [{"only": ["vllm"]}, {"urls": {"vllm": "https://example.org/vllm"}}])
def test_an_unknown_repository_is_refused(tmp_path: Path, arguments: dict[str, list[str]]) -> None:
    with pytest.raises(RequestError, match="name one of sglang"):
        clone_sources(tmp_path / "work", **arguments)  # type: ignore[arg-type] # one of two
    assert not (tmp_path / "work").exists()


def test_a_workspace_without_clones_says_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="fib clone"):
        load_repos_config(tmp_path)


def test_a_broken_record_is_a_format_error(tmp_path: Path) -> None:
    (tmp_path / "repos_config.json").write_text('{"target_dir": 1}', encoding="utf-8")
    with pytest.raises(FormatError, match="repositories"):
        load_repos_config(tmp_path)
