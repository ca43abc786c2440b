"""A GitHub in memory, with what the emulator of `tests/clients` has not: files of pull requests, merges, foreign forks."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from loopback import Answer, Asked, Loopback

__all__ = ["Repo", "ScriptedGitHub"]

_START = "0" * 40


@dataclass(kw_only=True)
class Repo:
    """A repository: branches with their files, pull requests and issues."""

    name: str
    may_push: bool = True
    parent: str = ""
    sees: bool = True
    """A fork that can see the commits of its parent."""
    branches: dict[str, dict[str, str]] = field(default_factory=lambda: {"main": {}})
    pulls: list[dict[str, Any]] = field(default_factory=list)
    issues: list[dict[str, Any]] = field(default_factory=list)


class ScriptedGitHub(Loopback):
    """GitHub as one user sees it."""

    def __init__(self, *repos: Repo, token: str, login: str = "maker") -> None:
        super().__init__()
        self.repos = {repo.name: repo for repo in repos}
        self._token = token
        self._login = login

    def answer(self, asked: Asked) -> Answer:
        parts = urlsplit(asked.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        if asked.headers.get("authorization") != f"token {self._token}":
            return Answer.of({"message": "Bad credentials"}, 401)
        if parts.path == "/user":
            return Answer.of(self._user(self._login))
        if parts.path == "/search/issues":
            return self._search(query["q"])
        _, _, owner, name, *rest = unquote(parts.path).split("/")
        repo = self.repos.get(f"{owner}/{name}")
        if repo is None:
            return _missing()
        what, rest = (rest[0], rest[1:]) if rest else ("", [])
        if not what:
            return Answer.of(self._describe(repo))
        if what == "forks":
            return self._fork(repo)
        if what == "git":
            return self._answer_ref(repo, rest, asked)
        if what == "contents":
            return self._answer_file(repo, "/".join(rest), query.get("ref", ""), asked)
        if what == "pulls":
            return self._answer_pulls(repo, rest, query, asked)
        return self._answer_issues(repo, rest, query, asked)

    def _user(self, login: str) -> dict[str, Any]:
        return {"login": login, "url": f"{self.url}/users/{login}"}

    def _describe(self, repo: Repo) -> dict[str, Any]:
        owner, _, name = repo.name.partition("/")
        document = {
            "name": name,
            "full_name": repo.name,
            "owner": self._user(owner),
            "url": f"{self.url}/repos/{repo.name}",
            "default_branch": "main",
            "fork": bool(repo.parent),
            "permissions": {"push": repo.may_push},
        }
        if repo.parent:
            document["parent"] = {"full_name": repo.parent, "url": f"{self.url}/repos/{repo.parent}"}
        return document

    def _fork(self, repo: Repo) -> Answer:
        name = f"{self._login}/{repo.name.partition('/')[2]}"
        made = Repo(name=name, parent=repo.name, branches={"main": dict(repo.branches["main"])})
        self.repos[name] = made
        return Answer.of(self._describe(made), 202)

    def _answer_ref(self, repo: Repo, rest: list[str], asked: Asked) -> Answer:
        if asked.method == "POST":
            wanted = asked.json()
            known = next((item for item in self.repos.values() if _hash(item.name) == wanted["sha"]), None)
            if known is None or (known is not repo and not repo.sees):
                return Answer.of({"message": "Object does not exist"}, 422)
            branch = wanted["ref"].removeprefix("refs/heads/")
            repo.branches[branch] = dict(known.branches["main"])
            return Answer.of(self._ref(repo, branch), 201)
        branch = "/".join(rest[2:])
        return Answer.of(self._ref(repo, branch)) if branch in repo.branches else _missing()

    def _ref(self, repo: Repo, branch: str) -> dict[str, Any]:
        url = f"{self.url}/repos/{repo.name}/git/refs/heads/{branch}"
        return {"ref": f"refs/heads/{branch}", "url": url, "object": {"sha": _hash(repo.name), "type": "commit"}}

    def _answer_file(self, repo: Repo, path: str, ref: str, asked: Asked) -> Answer:
        if asked.method == "PUT":
            wanted = asked.json()
            files = repo.branches[wanted["branch"]]
            if (_hash(files[path]) if path in files else None) != wanted.get("sha"):
                return Answer.of({"message": "sha does not match"}, 409)
            files[path] = base64.b64decode(wanted["content"]).decode()
            return Answer.of({"content": self._file(repo, path, files[path]), "commit": {"sha": _START}})
        files = repo.branches.get(ref, {})
        return Answer.of(self._file(repo, path, files[path])) if path in files else _missing()

    def _file(self, repo: Repo, path: str, text: str) -> dict[str, Any]:
        content = base64.b64encode(text.encode()).decode()
        url = f"{self.url}/repos/{repo.name}/contents/{path}"
        return {"path": path, "sha": _hash(text), "encoding": "base64", "content": content, "url": url}

    def _answer_pulls(self, repo: Repo, rest: list[str], query: dict[str, str], asked: Asked) -> Answer:
        if rest:
            pull = repo.pulls[int(rest[0]) - 1]
            if rest[1:] == ["files"]:
                return Answer.of([{"filename": name} for name in pull["files"]])
            pull |= asked.json()
            return Answer.of(pull)
        if asked.method == "POST":
            return self._open(repo, asked.json())
        return Answer.of([pull for pull in repo.pulls if pull["label"] == query.get("head")])

    def _open(self, repo: Repo, wanted: dict[str, str]) -> Answer:
        owner, _, branch = wanted["head"].partition(":")
        home = next(
            (item for item in self.repos.values() if item.name.startswith(f"{owner}/") and branch in item.branches),
            None,
        )
        if home is None:
            return Answer.of({"message": "head is invalid"}, 422)
        pull = self._make(repo, "pull", len(repo.pulls) + 1, wanted)
        changed = [path for path, text in home.branches[branch].items() if repo.branches["main"].get(path) != text]
        head = {"ref": branch, "label": wanted["head"], "repo": self._describe(home)}
        pull |= {"label": wanted["head"], "head": head, "merged": False, "files": changed}
        repo.pulls.append(pull)
        return Answer.of(pull, 201)

    def _make(self, repo: Repo, kind: str, number: int, wanted: dict[str, Any], login: str = "") -> dict[str, Any]:
        return {
            "number": number,
            "title": wanted["title"],
            "body": wanted.get("body", ""),
            "state": "open",
            "user": self._user(login or self._login),
            "url": f"{self.url}/repos/{repo.name}/{kind}s/{number}",
            "html_url": f"https://github.com/{repo.name}/{kind}/{number}",
        }

    def _answer_issues(self, repo: Repo, rest: list[str], query: dict[str, str], asked: Asked) -> Answer:
        if rest:
            issue = repo.issues[int(rest[0]) - 1]
            issue |= asked.json()
            return Answer.of(issue)
        if asked.method == "POST":
            return Answer.of(self.add_issue(repo.name, self._login, **asked.json()), 201)
        return Answer.of([issue for issue in repo.issues if issue["user"]["login"] == query.get("creator")])

    def add_issue(self, repo: str, login: str, **wanted: Any) -> dict[str, Any]:
        issues = self.repos[repo].issues
        issues.append(self._make(self.repos[repo], "issue", len(issues) + 1, wanted, login))
        return issues[-1]

    def _search(self, text: str) -> Answer:
        repo = next(word.removeprefix("repo:") for word in text.split() if word.startswith("repo:"))
        title = text.split('"')[1].casefold()
        hits = [issue for issue in self.repos[repo].issues if title in issue["title"].casefold()]
        return Answer.of({"total_count": len(hits), "incomplete_results": False, "items": hits})

    def merge(self, repo: str, number: int) -> None:
        """Merge a pull request, as a maintainer does."""
        pull = self.repos[repo].pulls[number - 1]
        home = self.repos[pull["head"]["repo"]["full_name"]]
        self.repos[repo].branches["main"] |= home.branches[pull["head"]["ref"]]
        pull |= {"state": "closed", "merged": True}


def _missing() -> Answer:
    return Answer.of({"message": "Not Found"}, 404)


def _hash(text: str) -> str:
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
