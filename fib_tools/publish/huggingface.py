"""The Hugging Face Hub: a pull request of a dataset, found by its marker before it is made.

A pull request and its first commit are one request to the Hub, so that a run that dies leaves either all of it or nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from fib_tools.errors import BusyError, PublishError
from fib_tools.host.env import redact
from fib_tools.model.manifest import Submission
from fib_tools.publish.dossier import Payload
from fib_tools.publish.outward import Action, Outbox, Request, SentFile, Settled, read_status

if TYPE_CHECKING:
    from huggingface_hub import DiscussionComment, DiscussionWithDetails
    from huggingface_hub.hf_api import RepoFile

__all__ = ["DatasetPull", "Hub", "preview"]

_TIMEOUT = 120.0
"""Seconds without a byte; the hub's client has no limit of its own."""
_BATCH = 500
"""Paths asked about at once."""
_MAIN = "main"
_BUSY = frozenset({408, 429, 500, 502, 503, 504})


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetPull:
    """A pull request of a dataset."""

    repo: str
    subject: str
    marker: str
    """A line of the description that no reader sees, by which it is found again."""
    title: str
    body: str
    payloads: tuple[Payload, ...]
    definitions: tuple[str, ...]


class Hub:
    """The Hub as the user of a token."""

    def __init__(self, outbox: Outbox, *, token: str, endpoint: str) -> None:
        from huggingface_hub import HfApi
        from huggingface_hub.utils.tqdm import disable_progress_bars

        disable_progress_bars()  # they would be drawn across our own progress
        self._outbox = outbox
        self._api = HfApi(endpoint=endpoint, token=token, library_name="fib-tools")

    @cached_property
    def _login(self) -> str:
        return str(self._api.whoami()["name"])

    def settle(self, plan: DatasetPull, *, check: Callable[[Sequence[str]], None]) -> Settled:
        """Bring a pull request to what is wanted; `check` is shown the files that would replace others of the base.

        Raises:
            PublishError: the Hub refused a request.
            BusyError: it may serve it later.
        """
        with _errors(plan.repo):
            found = self._find(plan)
            if found is None or found.status == "merged":
                return self._settle_new(plan, found, check)
            if found.status == "closed":
                return _settled("closed", plan, found)
            return self._settle_open(plan, found)

    def read(self, repo: str, path: str) -> bytes:
        """Read a file as it stands at the base.

        Raises:
            PublishError: the Hub refused it.
            BusyError: it may serve it later.
        """
        from huggingface_hub.utils._http import get_session, hf_raise_for_status

        with _errors(repo):
            url = f"{self._api.endpoint}/datasets/{repo}/resolve/{_MAIN}/{path}"
            answer = get_session().get(url, headers={"authorization": f"Bearer {self._api.token}"})
            hf_raise_for_status(answer)
            return bytes(answer.content)

    def _settle_new(
        self, plan: DatasetPull, merged: DiscussionWithDetails | None, check: Callable[[Sequence[str]], None]
    ) -> Settled:
        standing = self._list_standing(plan, _MAIN)
        changed = [payload for payload in plan.payloads if not _stands(payload, standing)]
        if not changed:
            note = f"{plan.repo} has all of it already"
            return (
                _settled("merged", plan, merged) if merged else Settled(action="unchanged", title=plan.title, note=note)
            )
        check([payload.path for payload in changed if payload.path in standing])
        opens = partial(
            self._api.create_commit,
            plan.repo,
            _add(changed),
            commit_message=plan.title,
            commit_description=plan.body,
            repo_type="dataset",
            create_pr=True,
        )
        if self._outbox.send(_open_request(plan, changed), opens) is None:
            return Settled(action="would open", title=plan.title)
        made = self._find(plan)
        if made is None or made.status == "merged":
            raise BusyError("the pull request that was just opened cannot be seen yet", where=plan.repo)
        return _settled("opened", plan, made)

    def _settle_open(self, plan: DatasetPull, found: DiscussionWithDetails) -> Settled:
        revision = found.git_reference or _MAIN
        standing = self._list_standing(plan, revision)
        changed = [payload for payload in plan.payloads if not _stands(payload, standing)]
        if changed:
            title = f"Update: {plan.title}"
            target = f"/api/datasets/{plan.repo}/commit/{revision}"
            request = Request(
                service="huggingface",
                method="POST",
                target=target,
                branch=revision,
                title=title,
                files=_list_files(changed),
            )
            commit = partial(self._api.create_commit, plan.repo, _add(changed), repo_type="dataset", revision=revision)
            self._outbox.send(request, partial(commit, commit_message=title))
        is_edited = self._edit(plan, found)
        return _settled(self._outbox.updated if changed or is_edited else "unchanged", plan, found)

    def _edit(self, plan: DatasetPull, found: DiscussionWithDetails) -> bool:
        """Bring title and description up to date; tell whether something was, or would be, changed."""
        where = f"/api/datasets/{plan.repo}/discussions/{found.num}"
        is_renamed = found.title != plan.title
        if is_renamed:
            request = Request(service="huggingface", method="POST", target=f"{where}/title", title=plan.title)
            rename = partial(self._api.rename_discussion, plan.repo, found.num, plan.title, repo_type="dataset")
            self._outbox.send(request, rename)
        comment = _first_comment(found)
        if comment is None or comment.content.strip() == plan.body.strip():
            return is_renamed
        target = f"{where}/comment/{comment.id}/edit"
        request = Request(service="huggingface", method="POST", target=target, body=plan.body)
        edit = partial(self._api.edit_discussion_comment, plan.repo, found.num, comment.id, plan.body)
        self._outbox.send(request, partial(edit, repo_type="dataset"))
        return True

    def _find(self, plan: DatasetPull) -> DiscussionWithDetails | None:
        """Find ours: an open one before others, the newest of those."""
        mine = self._api.get_repo_discussions(
            plan.repo, author=self._login, discussion_type="pull_request", repo_type="dataset"
        )
        details = [self._api.get_discussion_details(plan.repo, each.num, repo_type="dataset") for each in mine]
        ours = [each for each in details if (first := _first_comment(each)) and plan.marker in first.content]
        ours.sort(key=lambda each: (read_status(each.status) == "open", each.num), reverse=True)
        return ours[0] if ours else None

    def _list_standing(self, plan: DatasetPull, revision: str) -> dict[str, RepoFile]:
        """List those of the files that a revision has, by path."""
        from huggingface_hub.hf_api import RepoFile

        paths = [payload.path for payload in plan.payloads]
        found: dict[str, RepoFile] = {}
        for start in range(0, len(paths), _BATCH):
            infos = self._api.get_paths_info(
                plan.repo, paths[start : start + _BATCH], revision=revision, repo_type="dataset"
            )
            found |= {info.path: info for info in infos if isinstance(info, RepoFile)}
        return found


def preview(outbox: Outbox, plan: DatasetPull) -> Settled:
    """Show what would be sent if nothing were there yet: without a token nothing can be looked up."""
    outbox.send(_open_request(plan, plan.payloads), None)
    return Settled(action="would open", title=plan.title)


def _open_request(plan: DatasetPull, payloads: Sequence[Payload]) -> Request:
    return Request(
        service="huggingface",
        method="POST",
        target=f"/api/datasets/{plan.repo}/commit/{_MAIN}?create_pr=1",
        branch=_MAIN,
        title=plan.title,
        body=plan.body,
        files=_list_files(payloads),
    )


def _settled(action: Action, plan: DatasetPull, found: DiscussionWithDetails) -> Settled:
    submission = Submission(
        kind="dataset",
        subject=plan.subject,
        repo=plan.repo,
        number=found.num,
        url=found.url,
        status=read_status(found.status),
        definitions=plan.definitions,
    )
    return Settled(action=action, submission=submission, branch=found.git_reference or "", title=plan.title)


def _limit_waiting() -> None:
    from huggingface_hub.utils._http import get_session

    get_session().timeout = _TIMEOUT


def _first_comment(details: DiscussionWithDetails) -> DiscussionComment | None:
    from huggingface_hub import DiscussionComment

    return next((event for event in details.events if isinstance(event, DiscussionComment)), None)


def _stands(payload: Payload, standing: dict[str, RepoFile]) -> bool:
    found = standing.get(payload.path)
    if found is None or found.size != payload.size:
        return False
    return found.lfs.sha256 == payload.sha256 if found.lfs else found.blob_id == payload.git_oid


def _list_files(payloads: Iterable[Payload]) -> tuple[SentFile, ...]:
    return tuple(SentFile(path=payload.path, size=payload.size) for payload in payloads)


def _add(payloads: Iterable[Payload]) -> list[Any]:
    from huggingface_hub import CommitOperationAdd

    return [CommitOperationAdd(path_in_repo=payload.path, path_or_fileobj=payload.source) for payload in payloads]


@contextmanager
def _errors(where: str) -> Iterator[None]:
    """Say what the Hub answered in this project's errors."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined] # base of its transport's

    try:
        _limit_waiting()
        yield
    except HfHubHTTPError as error:
        raise _explain(error, where) from None  # the cause holds the request
    except (HTTPError, ConnectionError) as error:
        raise BusyError(f"the Hub cannot be reached: {_redact(error)}", where=where) from None
    except RuntimeError as error:  # the hub's client says so of an upload that failed
        if not isinstance(error.__cause__, (HTTPError, OSError)):
            raise
        raise BusyError(f"an upload failed: {_redact(error)}", where=where) from None


def _redact(error: Exception) -> str:
    return redact(str(error))[:300]


def _explain(error: Any, where: str) -> PublishError:
    status = error.response.status_code
    said = redact(" ".join((error.server_message or str(error)).split()))[:300]
    what = f"the Hub answered {status}: {said}"
    if status in _BUSY:
        after = error.response.headers.get("retry-after", "")
        return BusyError(what, where=where, wait_seconds=float(after) if after.isdecimal() else None)
    todo = {
        401: "set HF_TOKEN to a token that is valid, and check the repository's name",
        403: "give the token the right to write discussions and pull requests",
        404: "check the repository's name, and that the token may see it",
    }.get(status, "see what it says, and run the same command again")
    return PublishError(what, where=where, todo=todo)
