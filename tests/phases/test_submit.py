"""Phase 4 with a Hub and a GitHub on loopback: what is sent, what is found again, and what is held back."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from fake_hub import FakeHub
from fib_tools.errors import RequestError
from fib_tools.gate.execute import Execution
from fib_tools.model.base import to_document
from fib_tools.model.canonical import canonical_bytes
from fib_tools.model.manifest import FiStatus, Manifest, SglStatus
from fib_tools.operations import get_operation
from fib_tools.phases import dossiers, submission_run
from fib_tools.phases.context import Context, Workspace
from fib_tools.phases.manifests import find_manifest, save_manifest
from fib_tools.phases.status import StatusResult
from fib_tools.phases.submit_result import SubmitResult
from fib_tools.publish import github, huggingface
from fib_tools.publish.outward import Patience
from fib_tools.tools.toolbox import Toolbox
from loopback import Answer, Fault, serve
from scripted_github import Repo, ScriptedGitHub
from submittable import EMBEDDING, MODEL, NORM

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")
"""Of the hub's own client, when it uploads to git-lfs."""

HF_TOKEN = "hf_" + "s3cr3t" * 4
GITHUB_TOKEN = "ghp_" + "s3cr3t" * 6
BENCH, FLASHINFER, SGLANG = "flashinfer-ai/flashinfer-bench", "flashinfer-ai/flashinfer", "sgl-project/sglang"
DOCUMENT = "docs/model_coverage.md"


@dataclass(kw_only=True)
class World:
    """A workspace, a Hub and a GitHub."""

    context: Context
    hub: FakeHub
    github: ScriptedGitHub
    waits: list[float]

    def submit(self, *, yes: bool = True, **options: Any) -> SubmitResult:
        result = get_operation("submit").run(self.context, {"model": MODEL, "yes": yes, **options})
        assert isinstance(result, SubmitResult)
        return result

    @property
    def writes(self) -> list[str]:
        return [*self.hub.writes, *self.github.writes]

    def read_manifest(self) -> Manifest:
        found = find_manifest(self.context.workspace, MODEL)
        assert found is not None
        return found[1]

    def change_manifest(self, change: Callable[[Manifest], Manifest]) -> None:
        found = find_manifest(self.context.workspace, MODEL)
        assert found is not None
        save_manifest(self.context.workspace, found[0], change(found[1]))


@pytest.fixture
def world(submittable_workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    workspace = tmp_path / "work"
    shutil.copytree(submittable_workspace, workspace)
    hub = FakeHub(tmp_path, token=HF_TOKEN)
    repos = [Repo(name=name) for name in (BENCH, FLASHINFER, SGLANG)]
    hosted = ScriptedGitHub(*repos, token=GITHUB_TOKEN)
    waits: list[float] = []
    monkeypatch.setattr(submission_run, "PATIENCE", Patience(attempts=4, sleep=waits.append))
    monkeypatch.setattr(github, "_SECONDS_BETWEEN_WRITES", None)
    monkeypatch.setattr(dossiers, "execute_many", _execute)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    with serve(hub), serve(hosted):
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")  # for children; this process has read it already
        monkeypatch.setenv("HF_TOKEN", HF_TOKEN)
        monkeypatch.setenv("GITHUB_TOKEN", GITHUB_TOKEN)
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("GITHUB_API_URL", hosted.url)
        yield World(context=Context(workspace=Workspace(root=workspace)), hub=hub, github=hosted, waits=waits)


def _execute(documents: Any, **_: Any) -> Iterator[tuple[str, Execution]]:
    for document in documents:
        yield document.name, Execution(executed=True)


def statuses(result: SubmitResult) -> list[tuple[str, str]]:
    return [(entry.kind, entry.status) for entry in result.entries]


OPENED = [("dataset", "opened"), ("coverage", "opened"), ("kernel request", "opened")]


def test_everything_is_opened_and_linked_and_recorded(world: World) -> None:
    result = world.submit()
    assert statuses(result) == OPENED
    assert not result.has_errors
    (discussion,) = world.hub.discussions
    files = world.hub.list_files("refs/pr/1")
    assert {f"definitions/rmsnorm/{NORM}.json", f"tests/references/test_{NORM}.py"} <= files.keys()
    kinds = Counter(path.partition("/")[0] for path in files)
    assert {
        kind: kinds[kind] for kind in ("definitions", "workloads", "traces", "logs", "provenance")
    } == dict.fromkeys(("definitions", "workloads", "traces", "logs", "provenance"), 2)
    for path in files:
        if not path.startswith(("README", "provenance/")):
            assert world.hub.read("refs/pr/1", path) == (world.context.dataset.root / path).read_bytes()
    (pull,) = world.github.repos[BENCH].pulls
    assert pull["files"] == [DOCUMENT]
    url = f"{world.hub.url}/datasets/{world.hub.repo}/discussions/1"
    assert f"]({url})" in pull["body"]
    (issue,) = world.github.repos[FLASHINFER].issues
    assert f"]({url})" in issue["body"]
    assert EMBEDDING in issue["body"]
    assert discussion["title"] == "Add 2 Definitions of tiny"
    status = get_operation("status").run(world.context, {})
    assert isinstance(status, StatusResult)
    assert status.onboardings[0].submissions == {"open": 3}
    assert "3 open" in status.summary().tables[0].rows[0]
    recorded = {item.kind: item.url for item in world.read_manifest().submissions}
    assert recorded == {"dataset": url, "coverage": pull["html_url"], "kernel request": issue["html_url"]}


def test_a_second_run_writes_nothing(world: World) -> None:
    world.submit()
    before = list(world.writes)
    result = world.submit()
    assert statuses(result) == [(kind, "unchanged") for kind, _ in OPENED]
    assert world.writes == before
    assert result.requests == ()


def test_nothing_is_sent_without_yes_and_every_request_is_shown(world: World) -> None:
    result = world.submit(yes=False)
    assert world.writes == []
    assert world.read_manifest().submissions == ()
    assert statuses(result) == [(kind, "would open") for kind, _ in OPENED]
    shown = [(item.method, item.target, item.branch) for item in result.requests]
    assert shown == [
        ("POST", f"/api/datasets/{world.hub.repo}/commit/main?create_pr=1", "main"),
        ("POST", f"/repos/{BENCH}/git/refs", "fib/tiny/model"),
        ("PUT", f"/repos/{BENCH}/contents/{DOCUMENT}", "fib/tiny/model"),
        ("POST", f"/repos/{BENCH}/pulls", "flashinfer-ai:fib/tiny/model"),
        ("POST", f"/repos/{FLASHINFER}/issues", ""),
    ]
    text = "\n".join(result.summary().lines)
    assert f"file: {DOCUMENT} (" in text
    assert "    Only the coverage document changes" in text
    offline = get_operation("submit").run(replace(world.context, offline=True), {"model": MODEL})
    assert isinstance(offline, SubmitResult)
    assert [item.target for item in offline.requests] == [item.target for item in result.requests]
    assert any("not looked up" in note for note in offline.notes)


def test_what_changed_is_updated_where_it_is_open(world: World) -> None:
    world.submit()
    definition = world.context.dataset.find_definition(NORM)
    assert definition is not None
    path = world.context.dataset.root / f"workloads/rmsnorm/{NORM}.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text(lines[0] + "\n", encoding="utf-8")
    traces = world.context.dataset.root / f"traces/baseline/rmsnorm/{NORM}.jsonl"
    uuid = json.loads(lines[0])["workload"]["uuid"]
    traces.write_text("".join(f"{line}\n" for line in traces.read_text().splitlines() if uuid in line))
    before = len(world.writes)
    result = world.submit()
    assert statuses(result) == [("dataset", "updated"), ("coverage", "updated"), ("kernel request", "unchanged")]
    api = f"/api/datasets/{world.hub.repo}"
    assert world.hub.writes[-2:] == [
        f"POST {api}/commit/refs%2Fpr%2F1",
        f"POST {api}/discussions/1/comment/c1/edit",
    ]
    assert world.github.writes[-1] == f"PUT /repos/{BENCH}/contents/{DOCUMENT}"
    assert len(world.writes) == before + 3
    assert len(world.hub.discussions) == len(world.github.repos[BENCH].pulls) == 1
    assert world.hub.read("refs/pr/1", f"workloads/rmsnorm/{NORM}.jsonl") == path.read_bytes()


@pytest.mark.parametrize("kind", ["dataset", "coverage", "kernel request"])
def test_what_somebody_closed_stays_closed(world: World, kind: str) -> None:
    world.submit()
    if kind == "dataset":
        world.hub.discussions[0]["status"] = "closed"
    elif kind == "coverage":
        world.github.repos[BENCH].pulls[0]["state"] = "closed"
    else:
        world.github.repos[FLASHINFER].issues[0]["state"] = "closed"
    before = list(world.writes)
    result = world.submit()
    assert dict(statuses(result))[kind] == "closed"
    assert result.has_errors == (kind != "kernel request"), "an issue may have been done"
    assert world.writes == before
    assert kind == "dataset" or next(i.status for i in world.read_manifest().submissions if i.kind == kind) == "closed"


def test_what_was_merged_is_done_with_and_more_of_it_is_another_pull_request(world: World) -> None:
    world.submit()
    world.hub.merge(1)
    world.github.merge(BENCH, 1)
    before = list(world.writes)
    assert statuses(world.submit())[:2] == [("dataset", "merged"), ("coverage", "unchanged")]
    assert world.writes == before
    definition = world.context.dataset.find_definition(NORM)
    assert definition is not None
    more = definition.model_copy(update={"tags": [*definition.tags, "tp:64"]})
    world.context.dataset.write_definition(more)
    world.change_manifest(lambda manifest: manifest.model_copy(update={"serving": ("TP 64",)}))
    result = world.submit()
    assert statuses(result)[:2] == [("dataset", "opened"), ("coverage", "opened")]
    assert [item["status"] for item in world.hub.discussions] == ["merged", "open"]
    assert [pull["head"]["ref"] for pull in world.github.repos[BENCH].pulls] == ["fib/tiny/model", "fib/tiny/model-2"]
    before = list(world.writes)
    assert statuses(world.submit())[:2] == [("dataset", "unchanged"), ("coverage", "unchanged")]
    assert world.writes == before


@pytest.mark.parametrize("sees", [True, False])
def test_who_may_not_push_sends_from_a_fork(world: World, *, sees: bool) -> None:
    world.github.repos[BENCH].may_push = False
    if not sees:
        world.github.repos["maker/flashinfer-bench"] = Repo(name="maker/flashinfer-bench", parent=BENCH, sees=False)
    shown = world.submit(yes=False)
    forks = [item.target for item in shown.requests if item.target.endswith("/forks")]
    assert forks == [f"/repos/{BENCH}/forks"] * sees
    assert not world.submit().has_errors
    (pull,) = world.github.repos[BENCH].pulls
    assert pull["label"] == "maker:fib/tiny/model"
    before = list(world.writes)
    world.submit()
    assert world.writes == before


def test_a_repository_that_only_has_the_name_of_a_fork_is_left_alone(world: World) -> None:
    world.github.repos[BENCH].may_push = False
    world.github.repos["maker/flashinfer-bench"] = Repo(name="maker/flashinfer-bench")
    result = world.submit()
    assert dict(statuses(result))["coverage"] == "failed"
    assert "is no fork of" in result.entries[1].note
    assert world.github.repos["maker/flashinfer-bench"].branches.keys() == {"main"}


def test_a_request_that_somebody_else_made_is_pointed_to(world: World) -> None:
    other = world.github.add_issue(FLASHINFER, "somebody", title="kernel request: Embedding (embedding)", body="please")
    result = world.submit()
    assert result.entries[2].status == "found"
    assert result.entries[2].url == other["html_url"]
    assert world.github.repos[FLASHINFER].issues == [other]
    assert other["body"] == "please"


def test_an_api_without_a_trace_template_is_asked_for_one(world: World) -> None:
    def lack_template(manifest: Manifest) -> Manifest:
        update = {"fi_trace_template": False, "fi_status": FiStatus.SUPPORTED, "fi_api": "flashinfer.norm.rmsnorm"}
        kernels = [kernel.model_copy(update=update) if kernel.name == NORM else kernel for kernel in manifest.kernels]
        return manifest.model_copy(update={"kernels": tuple(kernels)})

    world.change_manifest(lack_template)
    world.submit()
    issue = next(item for item in world.github.repos[FLASHINFER].issues if "Trace template" in item["title"])
    assert issue["body"].startswith("<!-- fib submit: tiny template request flashinfer.norm.rmsnorm -->\n")
    assert f"`{NORM}`, in [this pull request of flashinfer-trace](" in issue["body"]
    norm = next(kernel for kernel in world.read_manifest().kernels if kernel.name == NORM)
    assert norm.fi_trace_template_request_url == issue["html_url"]


def test_a_prepared_branch_of_sglang_is_offered(world: World) -> None:
    result = world.submit(sglang_branch="maker:flashinfer-norm")
    assert result.entries[-1].status == "failed"
    assert "there is no branch flashinfer-norm at maker/sglang" in result.entries[-1].note
    branches: dict[str, dict[str, str]] = {"main": {}, "flashinfer-norm": {"norm.py": "..."}}
    world.github.repos["maker/sglang"] = Repo(name="maker/sglang", parent=SGLANG, branches=branches)
    world.change_manifest(
        lambda manifest: manifest.model_copy(
            update={"kernels": tuple(k.model_copy(update={"sgl_status": SglStatus.MISSING}) for k in manifest.kernels)}
        )
    )
    assert world.submit(sglang_branch="maker:flashinfer-norm").entries[-1].status == "opened"
    (pull,) = world.github.repos[SGLANG].pulls
    assert NORM in pull["body"]
    assert world.submit(sglang_branch="maker:flashinfer-norm").entries[-1].status == "unchanged"


def test_groups_have_pull_requests_of_their_own(world: World) -> None:
    result = world.submit(group="op_type")
    assert [(entry.kind, entry.subject, entry.status) for entry in result.entries[:4]] == [
        ("dataset", "op_type-embedding", "opened"),
        ("dataset", "op_type-rmsnorm", "opened"),
        ("coverage", "op_type-embedding", "opened"),
        ("coverage", "op_type-rmsnorm", "opened"),
    ]
    first, second = world.github.repos[BENCH].pulls
    assert first["head"]["ref"] == "fib/tiny/op_type-embedding"
    texts = [world.github.repos[BENCH].branches[pull["head"]["ref"]][DOCUMENT] for pull in (first, second)]
    assert [f"`{NORM}` | rmsnorm | 1 | 1 |  | missing" in text for text in texts] == [True, False]
    world.hub.merge(1)
    world.submit(group="op_type")
    text = world.github.repos[BENCH].branches["fib/tiny/op_type-rmsnorm"][DOCUMENT]
    assert "| missing |" not in text.partition(f"`{EMBEDDING}`")[2], "what is merged counts in the other's document"


def test_a_definition_is_in_one_open_pull_request(world: World) -> None:
    world.submit()
    before = list(world.writes)
    result = world.submit(group="op_type")
    assert {(failure.group, failure.check) for failure in result.failures} == {
        ("op_type-embedding", "one pull request"),
        ("op_type-rmsnorm", "one pull request"),
    }
    assert world.writes == before


def test_asking_for_a_part_leaves_the_whole_as_it_is_described(world: World) -> None:
    world.submit()
    before = list(world.writes)
    result = world.submit(definitions=(NORM,))
    assert [entry.definitions for entry in result.entries[:2]] == [2, 2]
    assert {entry.status for entry in result.entries} == {"unchanged"}
    assert world.writes == before


def test_asking_for_parts_one_by_one_asks_for_a_kernel_once_for_all_of_them(world: World) -> None:
    def lack_both(manifest: Manifest) -> Manifest:
        update = {"fi_status": FiStatus.MISSING, "kernel": "norm or embedding"}
        kernels = [kernel.model_copy(update=update) for kernel in manifest.kernels]
        return manifest.model_copy(update={"kernels": tuple(kernels)})

    world.change_manifest(lack_both)
    world.submit(group="definition", definitions=(NORM,))
    (issue,) = world.github.repos[FLASHINFER].issues
    assert EMBEDDING not in issue["body"]
    world.submit(group="definition", definitions=(EMBEDDING,))
    assert EMBEDDING in issue["body"]
    assert NORM in issue["body"]
    before = list(world.writes)
    world.submit(group="definition", definitions=(NORM,))
    assert world.writes == before
    assert len(world.github.repos[FLASHINFER].issues) == 1


def test_a_fork_that_is_still_being_made_is_waited_for(world: World) -> None:
    world.github.repos[BENCH].may_push = False
    missing = Answer.of({"message": "Not Found"}, 404)
    world.github.faults.append(Fault(words=("GET", "/repos/maker/flashinfer-bench/git/ref/heads/main"), answer=missing))
    assert not world.submit().has_errors
    assert world.waits == [1.0]
    assert sum(line.endswith("/forks") for line in world.writes) == 1


def test_a_pull_request_whose_fork_is_gone_is_left_alone(world: World) -> None:
    world.submit()
    world.github.repos[BENCH].pulls[0]["head"]["repo"] = None
    before = list(world.writes)
    result = world.submit()
    assert dict(statuses(result))["coverage"] == "failed"
    assert "branch is gone" in result.entries[1].note
    assert world.writes == before


def test_a_branch_with_other_files_is_not_touched(world: World) -> None:
    world.submit()
    world.github.repos[BENCH].pulls[0]["files"] = [DOCUMENT, "setup.py"]
    before = list(world.writes)
    result = world.submit()
    assert dict(statuses(result))["coverage"] == "failed"
    assert "the branch also changes setup.py" in result.entries[1].note
    assert world.writes == before


@pytest.mark.parametrize(
    ("path", "content", "said"),
    [
        (f"definitions/rmsnorm/{NORM}.json", b'{"name": "rmsnorm_h64", "tags": []}', "another Definition of this name"),
        (f"workloads/rmsnorm/{NORM}.jsonl", b'{"workload": {"uuid": "theirs"}}\n', "would lose 1 lines"),
    ],
)
def test_what_the_dataset_has_is_not_written_over(world: World, path: str, content: bytes, said: str) -> None:
    world.hub.commit("refs/heads/main", {path: content}, "theirs")
    result = world.submit()
    assert statuses(result) == [("dataset", "failed"), ("coverage", "waiting")]
    assert said in result.entries[0].note
    assert world.writes == []


FAULTS = {
    "the hub is down": Fault(words=("POST", "/commit/"), answer=Answer.of({"error": "oops"}, 500)),
    "the hub served it and its answer was lost": Fault(words=("POST", "/commit/"), answer=None, is_served=True),
    "the hub limits the rate": Fault(
        words=("GET", "/discussions"), answer=Answer(status=429, headers={"retry-after": "7"})
    ),
    "github is down": Fault(words=("POST", "/git/refs"), answer=Answer.of({"message": "oops"}, 500)),
    "github served a pull request and failed": Fault(
        words=("POST", "/pulls"), answer=Answer.of({"message": "oops"}, 502), is_served=True
    ),
    "github served an issue and its answer was lost": Fault(words=("POST", "/issues"), answer=None, is_served=True),
    "github limits the rate": Fault(
        words=("GET", "/pulls"), answer=Answer(status=429, body=b"{}", headers={"retry-after": "7"})
    ),
    "github has a secondary limit": Fault(
        words=("PUT", "/contents"), answer=Answer.of({"message": "You have exceeded a secondary rate limit"}, 403)
    ),
    "github has no requests left": Fault(
        words=("GET", "/user"),
        answer=Answer(
            status=403, body=b"{}", headers={"x-ratelimit-remaining": "0", "x-ratelimit-reset": "1700000000"}
        ),
    ),
    "github hangs": Fault(words=("POST", "/pulls"), answer=None, is_served=True, hangs=True),
    "the hub hangs": Fault(words=("POST", "/commit/"), answer=None, is_served=True, hangs=True),
}
WAITS = {
    "the hub limits the rate": [7.0],
    "github limits the rate": [7.0],
    "github has a secondary limit": [60.0],
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_survived_and_nothing_is_opened_twice(
    world: World, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    if "hangs" in name:
        monkeypatch.setattr(huggingface, "_TIMEOUT", 3)
        monkeypatch.setattr(github, "_TIMEOUT", 3)
    server = world.hub if "hub" in name.replace("github", "") else world.github
    server.faults.append(replace(FAULTS[name]))
    result = world.submit()
    assert statuses(result) == OPENED
    assert server.faults == []
    assert len(world.hub.discussions) == len(world.github.repos[BENCH].pulls) == 1
    assert len(world.github.repos[FLASHINFER].issues) == 1
    assert world.waits == WAITS.get(name, [1.0])
    before = list(world.writes)
    assert {entry.status for entry in world.submit().entries} == {"unchanged"}
    assert world.writes == before


def test_a_service_that_stays_down_is_given_up(world: World) -> None:
    fault = Fault(words=("POST", "/pulls"), answer=Answer.of({"message": "oops"}, 503))
    world.github.faults += [replace(fault) for _ in range(9)]
    result = world.submit()
    assert dict(statuses(result))["coverage"] == "failed"
    assert "given up after 4 attempts" in result.entries[1].note
    assert world.waits == [1.0, 2.0, 4.0]


def test_a_wait_that_is_too_long_is_left_to_the_next_run(world: World) -> None:
    answer = Answer(status=429, body=b"{}", headers={"retry-after": "3600"})
    world.github.faults.append(Fault(words=("POST", "/pulls"), answer=answer))
    result = world.submit()
    assert "run the same command again later" in result.entries[1].note
    assert world.waits == []


@pytest.mark.parametrize(("variable", "said"), [("GITHUB_TOKEN", "set GITHUB_TOKEN"), ("HF_TOKEN", "set HF_TOKEN")])
def test_nothing_is_sent_without_tokens(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str, said: str
) -> None:
    monkeypatch.delenv(variable)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(RequestError) as caught:
        world.submit()
    assert said in str(caught.value)
    assert not world.submit(yes=False).has_errors
    assert world.writes == []


@pytest.mark.parametrize("variable", ["HF_ENDPOINT", "GITHUB_API_URL"])
def test_tokens_are_not_sent_where_they_could_be_read_on_the_way(
    world: World, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "http://hub.example.org")
    with pytest.raises(RequestError, match=r"tokens are not sent to http://hub\.example\.org"):
        world.submit(yes=False)
    assert world.hub.asked == world.github.asked == []


@pytest.mark.parametrize(
    "url", ["ftp://x", "notaurl", "ftp://127.0.0.1", "https://", "https://[", "https://a b", "http://localhost:99999"]
)
@pytest.mark.parametrize("variable", ["", "HF_ENDPOINT", "GITHUB_API_URL"])
def test_what_is_no_address_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, url: str
) -> None:
    if variable:
        monkeypatch.setenv(variable, url)
    context = Context(workspace=Workspace(root=tmp_path), offline=True)
    with pytest.raises(RequestError, match=r"is no http\(s\) address"):
        get_operation("submit").run(context, {"model": MODEL} | ({} if variable else {"github_api": url}))


@pytest.mark.parametrize(
    ("option", "wrong"),
    [
        *(
            (option, wrong)
            for option in ("hf_repo", "github_repo")
            for wrong in ("foo", "../x", "a/..", "a/b/c", "a/ b")
        ),
        *((option, "foo") for option in ("flashinfer_repo", "sglang_repo")),
        *(("document", wrong) for wrong in ("../../etc/passwd", "/etc/passwd", "docs/../x", "", "docs/", "a\\b")),
        *(("sglang_branch", wrong) for wrong in ("foo", "me:", ":foo", "me:a b", "me:a..b", "../x:foo")),
    ],
)
def test_what_names_no_place_is_refused_at_once(tmp_path: Path, option: str, wrong: str) -> None:
    context = Context(workspace=Workspace(root=tmp_path), offline=True)
    with pytest.raises(RequestError) as caught:
        get_operation("submit").run(context, {"model": MODEL, option: wrong})
    assert caught.value.where == f"--{option.replace('_', '-')}"


def test_a_token_that_is_refused_says_what_to_do_and_never_itself(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = "ghp_" + "wr0ng" * 8
    monkeypatch.setenv("GITHUB_TOKEN", wrong)
    result = world.submit()
    assert "set GITHUB_TOKEN to a token that is valid" in result.entries[1].note
    assert wrong not in json.dumps(to_document(result))


def test_tokens_are_in_no_file_no_result_and_no_request_but_their_header(world: World) -> None:
    result = world.submit()
    for token in (HF_TOKEN, GITHUB_TOKEN):
        assert token not in json.dumps(to_document(result)) + repr(result)
        for path in world.context.workspace.root.rglob("*"):
            assert not path.is_file() or token.encode() not in path.read_bytes()
        for server in (world.hub, world.github):
            for asked in server.asked:
                others = {name: value for name, value in asked.headers.items() if name != "authorization"}
                assert token not in asked.path + repr(others) + repr(asked.body)
                assert (token in asked.headers.get("authorization", "")) <= (server is _owner(world, token))


def _owner(world: World, token: str) -> FakeHub | ScriptedGitHub:
    return world.hub if token == HF_TOKEN else world.github


def test_an_agent_sends_only_what_it_says_yes_to(world: World) -> None:
    toolbox = Toolbox(world.context, allow_submit=True)
    arguments: dict[str, Any] = {"model": MODEL, "wait_seconds": 50, "fields": ["entries.status", "requests.target"]}
    shown = toolbox.call("fib_submit_prs", arguments)
    assert world.writes == []
    assert [entry["status"] for entry in shown.result["entries"]] == ["would open"] * 3
    assert len(shown.result["requests"]) == 5
    sent = toolbox.call("fib_submit_prs", {**arguments, "yes": True})
    assert [entry["status"] for entry in sent.result["entries"]] == ["opened"] * 3
    for other in ("hf_repo", "github_repo", "github_api"):
        with pytest.raises(RequestError, match=f"there is no option '{other}'"):
            toolbox.call("fib_submit_prs", {**arguments, other: "http://localhost/steal"})
    for path in world.context.workspace.root.rglob("*"):
        assert not path.is_file() or GITHUB_TOKEN.encode() not in path.read_bytes()


def test_a_manifest_is_named_by_its_file(world: World, tmp_path: Path) -> None:
    name = next(world.context.workspace.root.glob("onboard_*.json"))
    operation = get_operation("submit")
    assert not operation.run(world.context, {"manifest": name, "yes": False}).has_errors
    copy = tmp_path / name.name
    shutil.copy(name, copy)
    for wrong in (copy, tmp_path / "work" / "nope.json"):
        with pytest.raises(RequestError, match="is no manifest of this workspace"):
            operation.run(world.context, {"manifest": wrong})
    newer = name.with_name("onboard_tiny_2999-01-01.json")
    shutil.copy(name, newer)
    with pytest.raises(RequestError, match="is not the latest of tiny"):
        operation.run(world.context, {"manifest": name})
    newer.unlink()
    with pytest.raises(RequestError, match="no model is named"):
        operation.run(world.context, {})
    with pytest.raises(RequestError, match="is not onboarded here"):
        operation.run(world.context, {"model": "qwen3-8b"})
    assert canonical_bytes(world.read_manifest()) == name.read_bytes()


def test_an_error_of_a_run_names_the_repository(world: World) -> None:
    del world.github.repos[FLASHINFER]
    result = world.submit()
    assert statuses(result)[2] == ("kernel request", "failed")
    assert "check the repository's name" in result.entries[2].note
