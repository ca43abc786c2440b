"""Phase 4, submit: the pull requests and issues of an onboarding, each held against the checklist before it is sent.

The dataset's pull request comes first, then the one of the coverage document that links it, then what FlashInfer and
SGLang are asked for. Each step finds what is there before it writes: running it again changes nothing, and goes on
where an earlier run was stopped.
"""

from __future__ import annotations

import re
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field

from fib_tools.dataset.store import Dataset
from fib_tools.errors import RequestError
from fib_tools.host.env import read_endpoint, read_secret, read_settings, redact
from fib_tools.host.locks import hold
from fib_tools.model.definition import Definition
from fib_tools.model.manifest import DefineStatus, Manifest, Phase1Status
from fib_tools.phases.context import Context
from fib_tools.phases.inventory import workspace_lock
from fib_tools.phases.manifests import find_manifest, list_manifests, manifest_model, model_slug
from fib_tools.phases.request import COMMAND_LINE_ONLY, choose_definitions
from fib_tools.phases.submit_result import SubmitResult
from fib_tools.publish.outward import GITHUB, Places, Tokens

__all__ = ["Grouping", "submit_prs"]

Grouping = Literal["model", "op_type", "definition"]

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_HOST = re.compile(r"[\w.:%-]+")
_OWNER = re.compile(r"[A-Za-z0-9_][\w.-]*", re.ASCII)
_REPO = re.compile(r"[A-Za-z0-9_][\w.-]*/(?!\.{1,2}$)[\w.-]+", re.ASCII)
_BRANCH = re.compile(r"(?![-/])(?!.*(?:\.\.|//|@\{))[^\x00-\x20\x7f~^:?*\[\\]+(?<![/.])")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_MODEL = "The onboarded model; its latest manifest in the workspace says what there is."


def submit_prs(
    context: Context,
    model: Annotated[str | None, Field(description=_MODEL)] = None,
    *,
    manifest: Annotated[
        Path | None, Field(description="A manifest of the workspace, in place of the model's name.")
    ] = None,
    definitions: Annotated[
        tuple[str, ...] | None,
        Field(description="Only these Definitions, by name; all that the onboarding made if left out."),
    ] = None,
    group: Annotated[Grouping, Field(description="What shares a pair of pull requests.")] = "model",
    yes: Annotated[bool, Field(description="Send the requests; without it they are only shown.")] = False,
    dummy_weights: Annotated[
        bool, Field(description="Take Workloads of an engine with made-up weights; the pull request says so.")
    ] = False,
    sglang_branch: Annotated[
        str | None,
        Field(description="A pushed branch that lets SGLang call the kernels, as owner:branch: a pull request of it."),
    ] = None,
    hf_repo: Annotated[
        str, Field(description="The dataset at Hugging Face."), COMMAND_LINE_ONLY
    ] = "flashinfer-ai/flashinfer-trace",
    github_repo: Annotated[
        str, Field(description="The repository with the coverage document."), COMMAND_LINE_ONLY
    ] = "flashinfer-ai/flashinfer-bench",
    document: Annotated[str, Field(description="The coverage document in it."), COMMAND_LINE_ONLY] = (
        "docs/model_coverage.md"
    ),
    flashinfer_repo: Annotated[
        str, Field(description="Where kernels and trace templates are asked for."), COMMAND_LINE_ONLY
    ] = "flashinfer-ai/flashinfer",
    sglang_repo: Annotated[
        str, Field(description="Where the SGLang branch is offered."), COMMAND_LINE_ONLY
    ] = "sgl-project/sglang",
    github_api: Annotated[
        str | None, Field(description="GitHub's API; GITHUB_API_URL or github.com if left out."), COMMAND_LINE_ONLY
    ] = None,
) -> SubmitResult:
    """Submit what an onboarding made: pull requests to the dataset and its coverage document, requests to FlashInfer.

    Nothing is sent without --yes: every request is shown. A checklist holds back what a reviewer would ask for.
    What is open already is found and brought up to date, never opened twice, closed, reopened or forced.
    Tokens: GITHUB_TOKEN, and HF_TOKEN or the login of the hub's client.

    Exit status 0: all of it is open, or would be; 1: something is held back or failed, or a pull request was closed.
    """
    # the gate and the checks are heavy, and `fib --help` can do without them
    from fib_tools.phases.submission_run import Run

    repos = {"hf": hf_repo, "github": github_repo, "flashinfer": flashinfer_repo, "sglang": sglang_repo}
    for name, repo in repos.items():
        _check_repo(f"--{name}-repo", repo)
    _check_document(document)
    if sglang_branch is not None:
        _check_branch(sglang_branch)
    places = Places(
        hf_repo=hf_repo,
        hf_endpoint=_check_address(read_settings().hf_endpoint),
        github_repo=github_repo,
        document=document,
        flashinfer_repo=flashinfer_repo,
        sglang_repo=sglang_repo,
        github_api=_check_address(github_api or read_endpoint("GITHUB_API_URL") or GITHUB),
        tokens=_read_tokens(context, sends=yes),
    )
    slug = _find_model(context, model, manifest)
    lock = hold(workspace_lock(context), purpose=f"the submission of {slug}") if yes else nullcontext()
    with lock:
        found = find_manifest(context.workspace, slug)
        if found is None:
            where = str(context.workspace.root)
            raise RequestError(f"{slug} is not onboarded here", where=where, todo=f"run: fib onboard {model or slug}")
        run = Run(context=context, name=found[0], manifest=found[1], places=places, sends=yes)
        dataset = Dataset.open(context.dataset.root)
        chosen = _choose(dataset, found[1], definitions, grouping=group, repo=hf_repo)
        return run.submit(chosen, grouping=group, takes_dummy_weights=dummy_weights, sglang_branch=sglang_branch)


def _check_repo(option: str, repo: str) -> None:
    if not _REPO.fullmatch(repo):
        raise RequestError(f"{repo!r} is no repository", where=option, todo="name it as owner/name")


def _check_document(path: str) -> None:
    """Refuse a document that is no file beneath a repository's root."""
    if _CONTROL.search(path) or "\\" in path or not {"", ".", ".."}.isdisjoint(path.split("/")):
        todo = "name it by its path in the repository, such as docs/model_coverage.md"
        raise RequestError(f"{path!r} is no file of a repository", where="--document", todo=todo)


def _check_branch(head: str) -> None:
    """Refuse a branch without its owner, and what git takes for no branch."""
    owner, _, branch = head.partition(":")
    if not _OWNER.fullmatch(owner) or not _BRANCH.fullmatch(branch):
        raise RequestError(f"{head!r} is no branch", where="--sglang-branch", todo="name it as owner:branch")


def _check_address(url: str) -> str:
    """Return the address of a service, which tokens are sent to.

    Raises:
        RequestError: it is none, or tokens could be read on the way there.
    """
    try:
        parts = urlsplit(url)
        is_address = (
            parts.scheme in {"http", "https"} and bool(_HOST.fullmatch(parts.hostname or "")) and parts.port != 0
        )
    except ValueError:  # of a port or an IPv6 address
        is_address = False
    if not is_address:
        raise RequestError(f"{redact(url)!r} is no http(s) address", todo="name an address that begins with https://")
    if parts.scheme != "https" and parts.hostname not in _LOOPBACK:
        raise RequestError(f"tokens are not sent to {redact(url)}", todo="name an address that begins with https://")
    return url


def _find_model(context: Context, model: str | None, path: Path | None) -> str:
    """Find the name under which the manifest of a model is kept."""
    workspace = context.workspace
    if path is not None:
        if path.resolve().parent != workspace.root.resolve() or path.name not in list_manifests(workspace):
            todo = "pass a file named onboard_<model>_<date>.json of the workspace, or another --workspace"
            raise RequestError(f"{path.name} is no manifest of this workspace", where=str(workspace.root), todo=todo)
        model = manifest_model(path.name)
        found = find_manifest(workspace, model)
        if found is not None and found[0] != path.name:
            raise RequestError(f"{path.name} is not the latest of {model}", todo=f"pass {found[0]}")
        return model
    if model is None:
        raise RequestError("no model is named", todo="pass its name or --manifest FILE; fib status lists them")
    return model_slug(model)


def _choose(
    dataset: Dataset, manifest: Manifest, names: tuple[str, ...] | None, *, grouping: Grouping, repo: str
) -> list[Definition]:
    """Choose Definitions, and with them those that share a pull request which is open: it is described as a whole."""
    from fib_tools.publish.dossier import name_group

    loaded, _ = dataset.load_definitions()
    if names is None:
        names = tuple(
            kernel.definition or kernel.name
            for kernel in manifest.kernels
            if kernel.phase1_status is Phase1Status.NEW and kernel.define_status is DefineStatus.DEFINED
        )
        names += tuple(item.name for item in manifest.manual)
    if not names:
        what = f"the onboarding of {manifest.model} made no Definition"
        raise RequestError(what, where=str(dataset.root), todo=f"run: fib onboard {manifest.model}")
    chosen = choose_definitions(loaded, names, where=str(dataset.root))
    keys = {name_group(grouping, definition)[0] for definition in chosen}
    shared = {
        name
        for item in manifest.submissions
        if item.kind == "dataset" and item.status == "open" and item.repo == repo and item.subject in keys
        for name in item.definitions
    }
    return choose_definitions(loaded, {*names, *(shared & loaded.keys())}, where=str(dataset.root))


def _read_tokens(context: Context, *, sends: bool) -> Tokens:
    """Read the tokens; none where nothing may be looked up.

    Raises:
        RequestError: something is to be sent, and cannot be.
    """
    if context.offline:
        if sends:
            raise RequestError(
                "nothing can be sent offline", todo="leave out --offline, FIB_OFFLINE and HF_HUB_OFFLINE"
            )
        return Tokens(hub=None, github=None)
    from huggingface_hub import get_token

    hub, github = get_token(), read_secret("GITHUB_TOKEN") or read_secret("GH_TOKEN")
    if sends and not hub:
        raise RequestError("there is no token of Hugging Face", todo="set HF_TOKEN, or run: hf auth login")
    if sends and not github:
        raise RequestError("there is no token of GitHub", todo="set GITHUB_TOKEN")
    return Tokens(hub=hub, github=github)
