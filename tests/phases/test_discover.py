from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from fib_tools.cli.app import main
from fib_tools.errors import GitError, OfflineError, RequestError
from fib_tools.model.manifest import Manifest
from fib_tools.phases import discover
from fib_tools.phases.context import Context, Workspace
from fib_tools.phases.discover import discover_models
from fib_tools.phases.manifests import save_manifest
from fib_tools.phases.refresh import clone_repositories
from fib_tools.phases.status import show_status
from fib_tools.sources.trending import TrendingModel

COOKBOOK = """vendor: acme
families:
  - name: Rocket
    models:
      - name: Rocket-1
        model_path: acme/Rocket-1
        attributes: {}
        hardware:
          H200:
            configurations:
              - name: default
                attributes: {nodes: single}
                engine: {tp: 8, ep: 1}
"""


def git(folder: Path, *arguments: str, date: str | None = None) -> str:
    identity = ("-c", "user.name=Test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false")
    dates = {"GIT_AUTHOR_DATE": date, "GIT_COMMITTER_DATE": date} if date else {}
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(folder), **dates}
    command = ["git", *identity, *arguments]
    ran = subprocess.run(command, cwd=folder, check=True, capture_output=True, encoding="utf-8", env=environment)
    return ran.stdout.strip()


def commit(repository: Path, files: dict[str, str], *, date: str | None = None) -> None:
    repository.mkdir(parents=True, exist_ok=True)
    if not (repository / ".git").exists():
        git(repository, "init", "--quiet", "--initial-branch=main")
        git(repository, "config", "uploadpack.allowFilter", "true")
    for name, text in files.items():
        path = repository / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    git(repository, "add", "--all")
    git(repository, "commit", "--quiet", "-m", "change", date=date)


@pytest.fixture
def upstream(tmp_path: Path) -> tuple[str, ...]:
    """Repositories with something old and something new, as `name=url`."""
    models = "python/sglang/srt/models"
    sglang = tmp_path / "upstream" / "sglang"
    commit(sglang, {f"{models}/llama.py": "EntryClass = 1\n"}, date="2020-01-01T00:00:00Z")
    commit(sglang, {f"{models}/rocket.py": "EntryClass = 1\n", f"{models}/llama.py": "EntryClass = 2\n"})
    cookbook = tmp_path / "upstream" / "sgl-cookbook"
    generated = "data/models/generated/v0.6.0"
    commit(cookbook, {f"{generated}/acme.yaml": COOKBOOK.replace("Rocket-1", "Rocket-0")}, date="2020-01-01T00:00:00Z")
    commit(cookbook, {f"{generated}/acme2.yaml": COOKBOOK})
    return tuple(f"{path.name}={path.as_uri()}" for path in (sglang, cookbook))


@pytest.fixture
def online(tmp_path: Path) -> Context:
    return Context(workspace=Workspace(root=tmp_path / "work"))


def test_without_clones_the_bundled_cookbook_speaks(context: Context) -> None:
    result = discover_models(context)
    assert {entry.source for entry in result.discoveries} == {"cookbook"}
    assert len(result.discoveries) >= 5
    assert any("bundled digest" in line for line in result.basis)
    assert any("run: fib clone --only sglang" in line for line in result.basis)
    assert result.summary().lines[-1] == f"{len(result.discoveries)} models; next: fib onboard MODEL"
    assert not context.workspace.root.exists()


def test_a_gpu_narrows_what_is_listed(context: Context) -> None:
    everything = discover_models(context)
    some = discover_models(context, hardware="gb300")
    assert some == discover_models(context, hardware="GB300")
    assert 0 < len(some.discoveries) < len(everything.discoveries)
    assert all("GB300" in entry.evidence for entry in some.discoveries)
    with pytest.raises(RequestError, match="no GPU 'X9'"):
        discover_models(context, hardware="X9")


@pytest.mark.parametrize("since", ["", "30", "d", "-1d", "1y", "999999d", "30d; rm -rf"])
def test_a_span_of_time_that_is_none_is_refused(context: Context, since: str) -> None:
    with pytest.raises(RequestError, match="is no span of time"):
        discover_models(context, since=since)


def test_what_is_onboarded_is_said(context: Context) -> None:
    context.workspace.create()
    name = next(entry.model for entry in discover_models(context).discoveries if entry.config_bundled)
    from fib_tools.sources.registry import get_model

    slug = get_model(name).slug
    save_manifest(context.workspace, f"onboard_{slug}_2026-11-21.json", Manifest(model=slug))
    found = {entry.model: entry.onboarded for entry in discover_models(context).discoveries}
    assert found[name]
    assert sum(found.values()) == 1
    rows = discover_models(context).summary().tables[0].rows
    assert next(row for row in rows if row[0] == name)[3:] == ("yes", "yes")


def test_clones_tell_what_is_new_in_their_history(online: Context, upstream: tuple[str, ...]) -> None:
    cloned = clone_repositories(online, only=("sglang", "sgl-cookbook"), urls=upstream)
    assert not cloned.has_errors, cloned.summary()
    result = discover_models(online, since="2w")
    assert [(entry.model, entry.source) for entry in result.discoveries] == [
        ("acme/Rocket-1", "cookbook"),
        ("python/sglang/srt/models/rocket.py", "sglang"),
    ]
    assert "last 14 days" in result.basis[0]
    longer = discover_models(online, since="99999m")
    assert {"acme/Rocket-0", "acme/Rocket-1"} <= {entry.model for entry in longer.discoveries}
    assert "python/sglang/srt/models/llama.py" in {entry.model for entry in longer.discoveries}
    assert show_status(online).clones == ("sglang", "sgl-cookbook")


def test_the_hubs_trending_list_is_told_as_far_as_sglang_serves_it(
    online: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = TrendingModel(repo_id="acme/Rocket", architectures=("LlamaForCausalLM",), likes=3, created="2026-11-20")
    listed = (known, known.model_copy(update={"repo_id": "acme/Other", "architectures": ("NobodyForCausalLM",)}))
    monkeypatch.setattr(discover, "list_trending", lambda _limit: listed)
    result = discover_models(online, trending=True)
    assert [(entry.model, entry.evidence) for entry in result.discoveries if entry.source == "hub"] == [
        ("acme/Rocket", "LlamaForCausalLM, 3 likes, of 2026-11-20")
    ]
    assert result.basis[2].startswith("hub: 2 trending text models, of which SGLang")


def test_a_hub_that_cannot_be_asked_is_said(context: Context, online: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_limit: int) -> None:
        raise OfflineError("the hub cannot be reached")

    monkeypatch.setattr(discover, "list_trending", refuse)
    assert discover_models(online, trending=True).basis[2] == "hub: no trending list: the hub cannot be reached"
    assert discover_models(context, trending=True).basis[2] == "hub: offline, so no trending list"


def test_a_clone_that_git_does_not_take_for_one_is_an_error(online: Context) -> None:
    (online.workspace.root / "sglang" / ".git").mkdir(parents=True)
    with pytest.raises(GitError):
        discover_models(online)


def test_the_clone_command_reports_each_repository(
    tmp_path: Path, upstream: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    work = tmp_path / "work"
    command = ["clone", "--only", "sglang", "--urls", upstream[0], "--workspace", str(work)]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "sglang" in said
    assert "cloned" in said
    assert "sgl-cookbook" not in said
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["repositories"]["sglang"]["status"] == "unchanged"
    document = json.loads((work / "repos_config.json").read_text(encoding="utf-8"))
    assert set(document["repositories"]) == {"sglang"}


def test_a_repository_that_cannot_be_cloned_is_an_error_of_the_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = (tmp_path / "missing").as_uri()
    target = tmp_path / "clones"
    command = ["clone", "--only", "sglang", "--urls", f"sglang={missing}", "--workspace", str(tmp_path / "work")]
    assert main([*command, "--target-dir", str(target)]) == 1
    assert "failed" in capsys.readouterr().out
    assert not (target / "sglang").exists()
    assert [path.name for path in target.iterdir()] == ["repos_config.json"]


def test_what_is_no_repository_is_refused(online: Context) -> None:
    with pytest.raises(RequestError, match="no repository 'torch'"):
        clone_repositories(online, only=("torch",))
    for text in ("sglang", "torch=https://example.org/torch", "=x"):
        with pytest.raises(RequestError, match="is not name=url"):
            clone_repositories(online, urls=(text,))
    with pytest.raises(RequestError, match="not a URL"):
        clone_repositories(online, only=("sglang",), urls=("sglang=--upload-pack=evil",))


def test_cloning_offline_is_refused(context: Context) -> None:
    with pytest.raises(OfflineError, match="needs the network"):
        clone_repositories(context)
    assert not context.workspace.root.exists()
