"""A Hugging Face Hub with models, for tests: real HTTP, the files of repositories and what the hub says of them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from urllib.parse import unquote, urlsplit

from loopback import Answer, Asked, Loopback

__all__ = ["COMMIT", "HostedWeights"]

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HostedWeights(Loopback):
    """Repositories by name, each a commit of some files."""

    def __init__(self, **repositories: dict[str, bytes]) -> None:
        super().__init__()
        self.repositories = dict(repositories)

    def host(self, repo_id: str, folder: Path) -> None:
        """Have the files of a folder in a repository."""
        files = (path for path in folder.rglob("*") if path.is_file())
        self.repositories[repo_id] = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}

    def list_fetched(self) -> list[str]:
        """List the files that were sent, by name."""
        return sorted(
            each.path.rpartition("/")[2] for each in self.asked if each.method == "GET" and "/resolve/" in each.path
        )

    def answer(self, asked: Asked) -> Answer:
        path = unquote(urlsplit(asked.path).path).lstrip("/")
        if path.startswith("api/models/"):
            repo_id = path.removeprefix("api/models/").partition("/revision/")[0]
            files = self.repositories.get(repo_id)
            return _refuse("RepoNotFound") if files is None else Answer.of(_describe(repo_id, files))
        repo_id, _, rest = path.partition("/resolve/")
        content = self.repositories.get(repo_id, {}).get(rest.partition("/")[2])
        if content is None:
            return _refuse("EntryNotFound")
        digest = hashlib.sha1(content, usedforsecurity=False).hexdigest()
        return Answer(body=content, headers={"etag": f'"{digest}"', "x-repo-commit": COMMIT})


def _describe(repo_id: str, files: dict[str, bytes]) -> dict[str, object]:
    siblings = [{"rfilename": name, "size": len(content), "blobId": "0" * 40} for name, content in files.items()]
    return {"id": repo_id, "modelId": repo_id, "sha": COMMIT, "private": False, "tags": [], "siblings": siblings}


def _refuse(code: str) -> Answer:
    return Answer(status=404, headers={"x-error-code": code})
