"""Phase 4 for Kimi-K2, whole: the real command, GitHub as an emulator behind GitHub's own API description, and a Hub with git."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import submittable
from emulated_github import EmulatedGitHub, emulate_github, validate_github
from fake_hub import FakeHub
from fib_tools.gate.execute import Execution
from fib_tools.model.base import read_strict
from fib_tools.operations import get_operation
from fib_tools.phases import dossiers, submission_run
from fib_tools.phases.context import Context, Workspace
from fib_tools.phases.manifests import find_manifest
from fib_tools.phases.submit_result import SubmitResult
from fib_tools.phases.validate import ValidationResult
from fib_tools.publish import github as github_module
from fib_tools.publish.outward import Patience
from loopback import Answer, Asked, Fault, serve

MODULES = Path(__file__).parent / "node_modules"
HF_TOKEN = "hf_" + "s3cr3t" * 4
GITHUB_TOKEN = "ghp_" + "s3cr3t" * 6
BENCH, FLASHINFER = "flashinfer-ai/flashinfer-bench", "flashinfer-ai/flashinfer"
FEW = ("fp8_quantize_1x128_k256", "rmsnorm_h512")
"""One that FlashInfer lacks, and one that it has; neither has blobs."""

DRIVER = """
import sys
from fib_tools.gate.execute import Execution
from fib_tools.phases import dossiers
dossiers.execute_many = lambda many: [(each.name, Execution(executed=True)) for each in many]
from fib_tools.cli.app import main
sys.exit(main(sys.argv[1:]))
"""
"""The command without the sandbox, which takes seconds and is not what is killed here."""

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")
"""Of the hub's own client, when it uploads to git-lfs."""


@pytest.fixture(scope="module")
def kimi(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """A workspace in which Kimi-K2 is onboarded and ready to be submitted."""
    root = tmp_path_factory.mktemp("kimi")
    context = Context(workspace=Workspace(root=root), offline=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        result = get_operation("onboard").run(context, {"model": "kimi-k2"})
        assert not result.has_errors
        submittable.make_submittable(context)
    return root


@pytest.fixture(scope="module")
def prism(node_path: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    with validate_github(MODULES, node_path, tmp_path_factory.mktemp("prism")) as found:
        yield found


@dataclass(kw_only=True)
class World:
    """A workspace with Kimi-K2, a Hub and a GitHub."""

    root: Path
    hub: FakeHub
    github: EmulatedGitHub
    environment: dict[str, str]
    said: list[str]
    """Everything that commands have said."""

    def start(self, *options: str, how: tuple[str, ...]) -> subprocess.Popen[str]:
        command = [sys.executable, *how, "submit", "kimi-k2", "--yes", "--workspace", str(self.root), *options]
        pipe = subprocess.PIPE
        return subprocess.Popen([*command, "--json"], env=self.environment, stdout=pipe, stderr=pipe, text=True)

    def submit(self, *, yes: bool = True, **options: Any) -> SubmitResult:
        context = Context(workspace=Workspace(root=self.root))
        result = get_operation("submit").run(context, {"model": "kimi-k2", "yes": yes, **options})
        assert isinstance(result, SubmitResult)
        self.said.append(repr(result))
        return result

    def ask(self, path: str) -> Any:
        asked = self.github.answer(_get(path))
        assert asked.status == 200, asked.body
        return json.loads(asked.body)

    @property
    def writes(self) -> list[str]:
        return [*self.hub.writes, *self.github.writes]


def _get(path: str) -> Asked:
    return Asked(method="GET", path=path, headers={"authorization": f"token {GITHUB_TOKEN}"}, body=b"")


@pytest.fixture
def is_member() -> bool:
    """Whether the user may push."""
    return True


@pytest.fixture
def world(  # noqa: PLR0913  # its parts are fixtures
    kimi: Path,
    prism: tuple[str, int],
    node_path: str,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    is_member: bool,
) -> Iterator[World]:
    monkeypatch.setattr(submission_run, "PATIENCE", Patience(sleep=lambda _seconds: None))
    monkeypatch.setattr(github_module, "_SECONDS_BETWEEN_WRITES", None)
    monkeypatch.setattr(dossiers, "execute_many", _execute)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    root = tmp_path / "work"
    shutil.copytree(kimi, root)
    hub = FakeHub(tmp_path, token=HF_TOKEN)
    with ExitStack() as stack:
        stack.enter_context(serve(hub))
        github = stack.enter_context(
            emulate_github(MODULES, node_path, tmp_path, prism=prism, token=GITHUB_TOKEN, is_member=is_member)
        )
        own = {
            "HOME": str(tmp_path / "home"),
            "XDG_CACHE_HOME": str(cache),
            "HF_HUB_DISABLE_XET": "1",
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": HF_TOKEN,
            "GITHUB_API_URL": github.url,
            "GITHUB_TOKEN": GITHUB_TOKEN,
            "OMP_NUM_THREADS": "1",
        }
        for name, value in own.items():
            monkeypatch.setenv(name, value)
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path), **own}
        yield World(root=root, hub=hub, github=github, environment=environment, said=[])


def _execute(definitions: Any, **_: Any) -> Iterator[tuple[str, Execution]]:
    for definition in definitions:
        yield definition.name, Execution(executed=True)


def _statuses(result: SubmitResult) -> list[tuple[str, str, str]]:
    return [(entry.kind, entry.subject, entry.status) for entry in result.entries]


ENTRIES = [
    ("dataset", "model"),
    ("coverage", "model"),
    ("kernel request", "embedding"),
    ("kernel request", "fp8_quantize_1x128"),
    ("kernel request", "moe_routing"),
]


def test_all_of_kimi_k2_is_submitted_once(world: World, tmp_path: Path) -> None:
    shown = world.submit(yes=False)
    assert _statuses(shown) == [(*entry, "would open") for entry in ENTRIES]
    assert world.writes == []
    with world.start(how=("-m", "fib_tools")) as process:
        out, err = process.communicate(timeout=300)
    world.said += [out, err]
    assert process.returncode == 0, err
    sent = read_strict(SubmitResult, json.loads(out), where="stdout")
    assert _statuses(sent) == [(*entry, "opened") for entry in ENTRIES]
    assert [(item.method, item.target) for item in sent.requests] == [
        (item.method, item.target) for item in shown.requests
    ]
    assert world.github.violations == []
    _check_the_dataset(world, tmp_path)
    (pull,) = world.ask(f"/repos/{BENCH}/pulls?state=all")
    dataset_url = sent.entries[0].url
    assert f"]({dataset_url})" in pull["body"]
    changed = [line for line in world.github.writes if f"/repos/{BENCH}/contents/" in line]
    assert changed == [f"PUT /repos/{BENCH}/contents/docs/model_coverage.md"]
    issues = world.ask(f"/repos/{FLASHINFER}/issues?state=all")
    assert len(issues) == 3
    assert all(f"]({dataset_url})" in issue["body"] for issue in issues)
    found = find_manifest(Workspace(root=world.root), "kimi-k2")
    assert found is not None
    assert sorted(item.url for item in found[1].submissions) == sorted(entry.url for entry in sent.entries)
    before = list(world.writes)
    again = world.submit()
    assert _statuses(again) == [(*entry, "unchanged") for entry in ENTRIES]
    assert again.requests == ()
    assert world.writes == before
    _check_no_token(world, tmp_path)


def _check_the_dataset(world: World, folder: Path) -> None:
    """Check out what reviewers get, and validate it."""
    (discussion,) = world.hub.discussions
    assert len(discussion["events"][0]["data"]["latest"]["raw"]) < 60_000
    files = world.hub.list_files("refs/pr/1")
    kinds = Counter(path.partition("/")[0] for path in files)
    assert (kinds["definitions"], kinds["workloads"], kinds["logs"], kinds["provenance"]) == (60, 60, 60, 60)
    checkout = folder / "checkout"
    for path in files:
        (checkout / path).parent.mkdir(parents=True, exist_ok=True)
        (checkout / path).write_bytes(world.hub.read("refs/pr/1", path))
    context = Context(workspace=Workspace(root=folder / "none"), dataset_override=checkout, offline=True)
    result = get_operation("validate").run(context, {})
    assert isinstance(result, ValidationResult)
    assert not result.has_errors
    assert result.counts["blob"] > 20


def _check_no_token(world: World, folder: Path) -> None:
    """Search everything: what was said and written, and what was sent, but for the header of the service it is for."""
    told = [*world.said, *world.github.writes, *world.hub.writes]
    for server in (world.hub, world.github):
        for asked in server.asked:
            others = {name: value for name, value in asked.headers.items() if name != "authorization"}
            told += [asked.path, repr(others), asked.body.decode(errors="replace")]
    told += [item.read_bytes().decode(errors="replace") for item in world.root.rglob("*") if item.is_file()]
    told += [item.read_bytes().decode(errors="replace") for item in (folder / "checkout").rglob("*") if item.is_file()]
    for token in (HF_TOKEN, GITHUB_TOKEN):
        assert not any(token in text for text in told)
    assert any(GITHUB_TOKEN in asked.headers["authorization"] for asked in world.github.asked)


def test_a_run_that_is_killed_after_each_request_goes_on_and_opens_nothing_twice(world: World) -> None:
    options = ("--definitions", ",".join(FEW))
    killed = 0
    while killed < 20:
        with world.start(*options, how=("-c", DRIVER)) as process:
            before = len(world.writes)

            def kill(_what: str, victim: subprocess.Popen[str] = process) -> None:
                os.kill(victim.pid, signal.SIGKILL)

            world.hub.after_write = world.github.after_write = kill
            world.said += process.communicate(timeout=300)
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, world.said[-1]
        assert len(world.writes) == before + 1
        killed += 1
    assert [line.partition("?")[0] for line in world.writes] == [
        f"POST /api/datasets/{world.hub.repo}/commit/main",
        f"POST /repos/{BENCH}/git/refs",
        f"PUT /repos/{BENCH}/contents/docs/model_coverage.md",
        f"POST /repos/{BENCH}/pulls",
        f"POST /repos/{FLASHINFER}/issues",
    ]
    assert killed == len(world.writes)
    found = find_manifest(Workspace(root=world.root), "kimi-k2")
    assert found is not None
    assert [item.kind for item in found[1].submissions] == ["coverage", "dataset", "kernel request"]


def test_faults_of_the_services_are_survived(world: World) -> None:
    busy = Answer(status=429, body=b'{"message": "slow down"}', headers={"retry-after": "30"})
    lost = {"answer": None, "is_served": True}
    world.hub.faults += [
        Fault(words=("GET", "/discussions"), answer=busy),
        Fault(words=("POST", "/commit/main"), **lost),
    ]
    world.github.faults += [
        Fault(words=("POST", f"{BENCH}/pulls"), answer=Answer.of({"message": "oops"}, 500), is_served=True),
        Fault(words=("PUT", "/contents/"), answer=busy),
        Fault(words=("POST", f"{FLASHINFER}/issues"), **lost),
        Fault(words=("GET", f"{FLASHINFER}/issues"), answer=None),
    ]
    result = world.submit(definitions=FEW)
    assert world.hub.faults == world.github.faults == []
    assert {entry.status for entry in result.entries} == {"opened"}
    assert len(world.hub.discussions) == len(world.ask(f"/repos/{BENCH}/pulls?state=all")) == 1
    assert len(world.ask(f"/repos/{FLASHINFER}/issues?state=all")) == 1
    before = list(world.writes)
    assert {entry.status for entry in world.submit(definitions=FEW).entries} == {"unchanged"}
    assert world.writes == before


def test_a_checklist_that_fails_sends_nothing(world: World) -> None:
    (log,) = world.root.glob("flashinfer-trace/logs/*/rmsnorm_h512/*.json")
    log.unlink()
    result = world.submit(definitions=FEW)
    (failure,) = result.failures
    assert (failure.definition, failure.check) == ("rmsnorm_h512", "reference test")
    assert "fib tests run --definitions rmsnorm_h512" in failure.todo
    assert {entry.status for entry in result.entries} == {"blocked"}
    assert world.writes == []


@pytest.mark.parametrize("is_member", [False])
def test_who_may_not_push_sends_from_a_fork(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = world.github.answer

    def forbid(asked: Any) -> Answer:
        got = answer(asked)
        if asked.path != f"/repos/{BENCH}":
            return got
        document = json.loads(got.body)
        document["permissions"] |= {"push": False, "admin": False, "maintain": False}
        return Answer.of(document)

    monkeypatch.setattr(world.github, "answer", forbid)  # the emulator says that everybody may push, and lets few
    result = world.submit(definitions=FEW)
    assert {entry.status for entry in result.entries} == {"opened"}
    (pull,) = world.ask(f"/repos/{BENCH}/pulls?state=all")
    assert pull["head"]["label"] == "maker:fib/kimi-k2/model"
    before = list(world.writes)
    world.submit(definitions=FEW)
    assert world.writes == before
