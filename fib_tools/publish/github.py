"""GitHub: a pull request that changes one file, one from a branch that is ready, and issues; each found before it is made.

Nothing is forced, closed, reopened or deleted: a branch gains commits, and texts of open requests are brought up to date.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from fib_tools.errors import BusyError, PublishError
from fib_tools.host.env import redact
from fib_tools.model.manifest import Submission, SubmissionKind
from fib_tools.publish.outward import Action, Outbox, Request, SentFile, Settled, read_status

if TYPE_CHECKING:
    from github import Github
    from github.Issue import Issue
    from github.PullRequest import PullRequest
    from github.Repository import Repository

__all__ = ["BranchPull", "FilePull", "GitHub", "IssuePlan", "preview"]

_TIMEOUT = 30
_SECONDS_BETWEEN_WRITES = 1.0
"""GitHub asks for a second between requests that write."""
_UNASKED_WAIT = 60.0
"""GitHub's own advice where a secondary limit says nothing."""
_BUSY = frozenset({429, 500, 502, 503, 504})
_UNPROCESSABLE = 422


@dataclass(frozen=True, kw_only=True, slots=True)
class FilePull:
    """A pull request that changes one file."""

    repo: str
    subject: str
    branch: str
    path: str
    write: Callable[[str], str]
    """Gives the file's text from the one that stands at the base; empty if there is none."""
    message: str
    title: str
    body: str
    definitions: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class BranchPull:
    """A pull request from a branch that somebody prepared and pushed: `owner:branch`."""

    repo: str
    subject: str
    head: str
    title: str
    body: str
    definitions: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class IssuePlan:
    """An issue."""

    repo: str
    kind: SubmissionKind
    subject: str
    marker: str
    """A line of the body that no reader sees, by which ours is found again."""
    title: str
    body: str
    labels: tuple[str, ...]
    definitions: tuple[str, ...]


class GitHub:
    """GitHub as the user of a token."""

    def __init__(self, outbox: Outbox, *, token: str, api: str) -> None:
        import github  # requests and cryptography, which only this needs

        self._outbox = outbox
        self._client: Github = github.Github(
            auth=github.Auth.Token(token),
            base_url=api,
            timeout=_TIMEOUT,
            retry=None,  # a step is tried again as a whole: what was served and not answered has to be found first
            seconds_between_requests=None,
            seconds_between_writes=_SECONDS_BETWEEN_WRITES,
            user_agent="fib-tools",
        )

    @cached_property
    def _login(self) -> str:
        return self._client.get_user().login

    def settle_file(self, plan: FilePull, *, check: Callable[[list[str]], None]) -> Settled:
        """Bring a pull request that changes one file to what is wanted; `check` is shown the files that an open one changes.

        Raises:
            PublishError: GitHub refused a request.
            BusyError: it may serve it later.
        """
        with _errors(plan.repo):
            repo = self._client.get_repo(plan.repo)
            standing, _ = _read_file(repo, plan.path, repo.default_branch)
            text = plan.write(standing)
            branch, pull = self._find_branch(repo, plan.branch)
            if pull is None:
                if text == standing:
                    return Settled(action="unchanged", title=plan.title, note=f"{plan.repo} says so already")
                return self._open_file(repo, plan, branch=branch, text=text)
            if pull.state == "closed":
                return _settled("closed", "coverage", plan, pull)
            if not pull.head.raw_data.get("repo"):
                todo = "let its owner bring the fork back, or take what it holds by hand"
                raise PublishError(f"the repository of {pull.html_url}'s branch is gone", where=plan.repo, todo=todo)
            check([file.filename for file in pull.get_files()])
            is_new = self._bring_branch(pull.head.repo, repo, plan, branch=branch, text=text)
            is_edited = self._edit(pull, plan)
            return _settled(self._outbox.updated if is_new or is_edited else "unchanged", "coverage", plan, pull)

    def _open_file(self, repo: Repository, plan: FilePull, *, branch: str, text: str) -> Settled:
        home = self._find_home(repo)
        self._bring_branch(home, repo, plan, branch=branch, text=text)
        owner = home.owner.login if home else self._login
        made = self._open(repo, plan, head=f"{owner}:{branch}")
        if made is None:
            return Settled(action="would open", branch=branch, title=plan.title)
        return _settled("opened", "coverage", plan, made)

    def _find_branch(self, repo: Repository, wanted: str) -> tuple[str, PullRequest | None]:
        """Find the branch to work on and its pull request: a merged one is done with, and the next number follows."""
        number, branch = 1, wanted
        owners = dict.fromkeys((self._login, repo.owner.login))
        while True:
            found = _choose([pull for owner in owners for pull in _list_pulls(repo, owner, branch)])
            if found is None or not found.merged:
                return branch, found
            number += 1
            branch = f"{wanted}-{number}"

    def _find_home(self, repo: Repository) -> Repository | None:
        """Find where branches may be pushed: the repository itself, or the user's fork; None for one that would be made."""
        if repo.permissions and repo.permissions.push:
            return repo
        name = f"{self._login}/{repo.name}"
        fork = _find_repo(self._client, name)
        if fork is None:
            request = Request(service="github", method="POST", target=f"/repos/{repo.full_name}/forks")
            fork = self._outbox.send(request, repo.create_fork)
            if fork is None:
                return None
        if not fork.fork or (fork.parent is not None and fork.parent.full_name != repo.full_name):
            todo = "rename it: a fork of the other would have its name"
            raise PublishError(f"{name} is no fork of {repo.full_name}", where=name, todo=todo)
        if not _has_branch(fork, fork.default_branch):
            raise BusyError("the fork is still being made", where=name)
        return fork

    def _bring_branch(
        self, home: Repository | None, repo: Repository, plan: FilePull, *, branch: str, text: str
    ) -> bool:
        """Make the branch if there is none, and put the text on it; tell whether something was, or would be, changed."""
        where = home.full_name if home else f"{self._login}/{repo.name}"
        is_there = home is not None and _has_branch(home, branch)
        if not is_there:
            start = partial(_start_branch, home, repo, branch) if home else None
            is_there = self._outbox.send(_branch_request(where, branch), start) is not None
        standing, sha = "", ""
        if home is not None and is_there:
            standing, sha = _read_file(home, plan.path, branch)
        if standing == text:
            return False
        put = partial(_put_file, home, plan, branch=branch, text=text, sha=sha) if home else None
        self._outbox.send(_file_request(where, plan, branch, text), put)
        return True

    def settle_branch(self, plan: BranchPull) -> Settled:
        """Bring the pull request of a prepared branch to what is wanted.

        Raises:
            PublishError: there is no such branch, or GitHub refused a request.
            BusyError: it may serve it later.
        """
        with _errors(plan.repo):
            repo = self._client.get_repo(plan.repo)
            owner, _, branch = plan.head.partition(":")
            home = _find_repo(self._client, f"{owner}/{repo.name}")
            if home is None or not _has_branch(home, branch):
                todo = "push it there first, or name the owner who has it, as owner:branch"
                raise PublishError(f"there is no branch {branch} at {owner}/{repo.name}", where=plan.repo, todo=todo)
            pull = _choose(_list_pulls(repo, owner, branch))
            if pull is None:
                made = self._open(repo, plan, head=f"{owner}:{branch}")
                if made is None:
                    return Settled(action="would open", branch=plan.head, title=plan.title)
                return _settled("opened", "integration", plan, made)
            if pull.state == "closed":
                return _settled("merged" if pull.merged else "closed", "integration", plan, pull)
            is_edited = self._edit(pull, plan)
            return _settled(self._outbox.updated if is_edited else "unchanged", "integration", plan, pull)

    def _open(self, repo: Repository, plan: FilePull | BranchPull, *, head: str) -> PullRequest | None:
        open_pull = partial(repo.create_pull, base=repo.default_branch, head=head, title=plan.title, body=plan.body)
        return self._outbox.send(_pull_request(plan, head), open_pull)

    def _edit(self, pull: PullRequest, plan: FilePull | BranchPull) -> bool:
        if (pull.title, _plain(pull.body)) == (plan.title, _plain(plan.body)):
            return False
        request = _edit_request(f"/repos/{plan.repo}/pulls/{pull.number}", plan)
        self._outbox.send(request, partial(pull.edit, title=plan.title, body=plan.body))
        return True

    def settle_issue(self, plan: IssuePlan) -> Settled:
        """Bring an issue to what is wanted; one that somebody else opened for the same is only pointed to.

        Raises:
            PublishError: GitHub refused a request.
            BusyError: it may serve it later.
        """
        with _errors(plan.repo):
            repo = self._client.get_repo(plan.repo)
            found = self._find_issue(repo, plan)
            if found is None:
                other = self._find_namesake(plan)
                return self._open_issue(repo, plan) if other is None else _settled_issue("found", plan, other)
            if found.state == "closed":
                return _settled_issue("closed", plan, found)
            if (found.title, _plain(found.body)) == (plan.title, _plain(plan.body)):
                return _settled_issue("unchanged", plan, found)
            request = _edit_request(f"/repos/{plan.repo}/issues/{found.number}", plan)
            self._outbox.send(request, partial(found.edit, title=plan.title, body=plan.body))
            return _settled_issue(self._outbox.updated, plan, found)

    def _find_issue(self, repo: Repository, plan: IssuePlan) -> Issue | None:
        """Find ours by its marker, not by a search, whose index lags behind what was just opened."""
        mine = repo.get_issues(state="all", creator=self._login)  # type: ignore[arg-type]  # a login is taken too
        # in this order: of an issue, PyGithub would ask GitHub again for the pull request that it is not
        ours = [issue for issue in mine if plan.marker in (issue.body or "") and issue.pull_request is None]
        return next((issue for issue in ours if issue.state == "open"), ours[0] if ours else None)

    def _find_namesake(self, plan: IssuePlan) -> Issue | None:
        words = plan.title.replace('"', " ")
        hits = self._client.search_issues(f'repo:{plan.repo} is:issue in:title "{words}"')
        return next((issue for issue in hits if issue.title.casefold() == plan.title.casefold()), None)

    def _open_issue(self, repo: Repository, plan: IssuePlan) -> Settled:
        open_issue = partial(repo.create_issue, title=plan.title, body=plan.body, labels=list(plan.labels))
        made = self._outbox.send(_issue_request(plan), open_issue)
        if made is None:
            return Settled(action="would open", title=plan.title)
        return _settled_issue("opened", plan, made)


def preview(outbox: Outbox, plan: FilePull | BranchPull | IssuePlan) -> Settled:
    """Show what would be sent if nothing were there yet: without a token nothing can be looked up."""
    if isinstance(plan, IssuePlan):
        outbox.send(_issue_request(plan), None)
        return Settled(action="would open", title=plan.title)
    if isinstance(plan, FilePull):
        outbox.send(_branch_request(plan.repo, plan.branch), None)
        outbox.send(_file_request(plan.repo, plan, plan.branch, plan.write("")), None)
    head = plan.branch if isinstance(plan, FilePull) else plan.head
    outbox.send(_pull_request(plan, head), None)
    return Settled(action="would open", branch=head, title=plan.title)


def _branch_request(repo: str, branch: str) -> Request:
    return Request(service="github", method="POST", target=f"/repos/{repo}/git/refs", branch=branch)


def _file_request(repo: str, plan: FilePull, branch: str, text: str) -> Request:
    return Request(
        service="github",
        method="PUT",
        target=f"/repos/{repo}/contents/{plan.path}",
        branch=branch,
        title=plan.message,
        files=(SentFile(path=plan.path, size=len(text.encode())),),
    )


def _pull_request(plan: FilePull | BranchPull, head: str) -> Request:
    target = f"/repos/{plan.repo}/pulls"
    return Request(service="github", method="POST", target=target, branch=head, title=plan.title, body=plan.body)


def _issue_request(plan: IssuePlan) -> Request:
    target = f"/repos/{plan.repo}/issues"
    return Request(service="github", method="POST", target=target, title=plan.title, body=plan.body)


def _edit_request(target: str, plan: FilePull | BranchPull | IssuePlan) -> Request:
    return Request(service="github", method="PATCH", target=target, title=plan.title, body=plan.body)


def _list_pulls(repo: Repository, owner: str, branch: str) -> list[PullRequest]:
    return [pull for pull in repo.get_pulls(state="all", head=f"{owner}:{branch}") if pull.head.ref == branch]


def _choose(pulls: list[PullRequest]) -> PullRequest | None:
    """Choose the open one, else the newest."""
    newest = sorted(pulls, key=lambda pull: pull.number, reverse=True)
    return next((pull for pull in newest if pull.state == "open"), newest[0] if newest else None)


def _plain(text: str | None) -> str:
    """Read a text as GitHub keeps it: with line feeds alone, and no space at its ends."""
    return (text or "").replace("\r\n", "\n").strip()


def _find_repo(client: Github, name: str) -> Repository | None:
    from github import UnknownObjectException

    try:
        return client.get_repo(name)
    except UnknownObjectException:
        return None


def _has_branch(repo: Repository, branch: str) -> bool:
    from github import UnknownObjectException

    try:
        repo.get_git_ref(f"heads/{branch}")
    except UnknownObjectException:
        return False
    return True


def _start_branch(home: Repository, repo: Repository, branch: str) -> str:
    """Start a branch where the base ends; in a fork that cannot see that commit, where its own base ends."""
    from github import GithubException

    newest = repo.get_git_ref(f"heads/{repo.default_branch}").object.sha
    try:
        return home.create_git_ref(f"refs/heads/{branch}", newest).ref
    except GithubException as error:
        if error.status != _UNPROCESSABLE or home.full_name == repo.full_name:
            raise
        own = home.get_git_ref(f"heads/{home.default_branch}").object.sha
        return home.create_git_ref(f"refs/heads/{branch}", own).ref


def _put_file(home: Repository, plan: FilePull, *, branch: str, text: str, sha: str) -> None:
    if sha:
        home.update_file(plan.path, plan.message, text, sha, branch=branch)
    else:
        home.create_file(plan.path, plan.message, text, branch=branch)


def _read_file(repo: Repository, path: str, branch: str) -> tuple[str, str]:
    """Read a file's text and the hash by which it is replaced; both empty where there is none."""
    from github import UnknownObjectException

    try:
        found = repo.get_contents(path, ref=branch)
    except UnknownObjectException:
        return "", ""
    if isinstance(found, list):
        raise PublishError(f"{path} is a folder", where=f"{repo.full_name}@{branch}", todo="name the document")
    if found.encoding == "none":  # over 1 MB: only the blob has the text
        return repo.get_git_blob(found.sha).content, found.sha
    return found.decoded_content.decode(errors="replace"), found.sha


def _settled(action: Action, kind: SubmissionKind, plan: FilePull | BranchPull, pull: PullRequest) -> Settled:
    submission = Submission(
        kind=kind,
        subject=plan.subject,
        repo=plan.repo,
        number=pull.number,
        url=pull.html_url,
        status=read_status(pull.state, is_merged=bool(pull.merged)),
        definitions=plan.definitions,
    )
    return Settled(action=action, submission=submission, branch=pull.head.ref, title=plan.title)


def _settled_issue(action: Action, plan: IssuePlan, issue: Issue) -> Settled:
    submission = Submission(
        kind=plan.kind,
        subject=plan.subject,
        repo=plan.repo,
        number=issue.number,
        url=issue.html_url,
        status=read_status(issue.state),
        definitions=plan.definitions,
    )
    return Settled(action=action, submission=submission, title=plan.title)


@contextmanager
def _errors(where: str) -> Iterator[None]:
    """Say what GitHub answered in this project's errors."""
    from github import GithubException
    from requests import RequestException  # what PyGithub lets through

    try:
        yield
    except GithubException as error:
        raise _explain(error, where) from None  # the cause holds the request
    except RequestException as error:
        raise BusyError(f"GitHub cannot be reached: {redact(str(error))[:300]}", where=where) from None


def _explain(error: Any, where: str) -> PublishError:
    headers = {str(name).lower(): str(value) for name, value in (error.headers or {}).items()}
    data = error.data if isinstance(error.data, dict) else {}
    said = redact(str(data.get("message") or error.message or ""))[:300]
    what = f"GitHub answered {error.status}: {said}" if said else f"GitHub answered {error.status}"
    is_limit = error.status in {403, 429} and (
        "retry-after" in headers or headers.get("x-ratelimit-remaining") == "0" or "rate limit" in said.lower()
    )
    if is_limit or error.status in _BUSY:
        return BusyError(what, where=where, wait_seconds=_read_wait(headers, is_limit=is_limit))
    todo = {
        401: "set GITHUB_TOKEN to a token that is valid",
        403: "give the token the right to write contents, pull requests and issues",
        404: "check the repository's name, and that the token may see it",
    }.get(error.status, "see what it says, and run the same command again")
    return PublishError(what, where=where, todo=todo)


def _read_wait(headers: dict[str, str], *, is_limit: bool) -> float | None:
    """Read how long GitHub wants to be left alone."""
    after = headers.get("retry-after", "")
    if after.isdecimal():
        return float(after)
    reset = headers.get("x-ratelimit-reset", "")
    if headers.get("x-ratelimit-remaining") == "0" and reset.isdecimal():
        return max(0.0, float(reset) - datetime.now(timezone.utc).timestamp()) + 1
    return _UNASKED_WAIT if is_limit else None
