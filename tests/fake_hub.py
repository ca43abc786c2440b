"""A Hugging Face Hub with one dataset, for tests: real HTTP in front of a real git repository with `refs/pr/N`."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from loopback import Answer, Asked, Loopback

__all__ = ["FakeHub"]

GIT = shutil.which("git") or "git"

_WHEN = "2026-11-22T00:00:00.000Z"
_PAGE = 2
_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {size}\n"


class FakeHub(Loopback):
    """The hub as one user sees it."""

    def __init__(self, folder: Path, *, token: str, repo: str = "flashinfer-ai/flashinfer-trace") -> None:
        super().__init__()
        self.repo = repo
        self.git_folder = folder / f"{repo.rpartition('/')[2]}.git"
        self.login = "maker"
        self.discussions: list[dict[str, Any]] = []
        self.objects: dict[str, bytes] = {}
        """Of git-lfs, by SHA-256."""
        self._token = token
        self._pointers: dict[str, tuple[str, int]] = {}
        self.git_folder.mkdir()
        self.git("init", "-q", "--bare", "-b", "main")
        self.commit("refs/heads/main", {"README.md": b"# flashinfer-trace\n"}, "Begin")

    def git(self, *arguments: str, data: bytes | None = None) -> bytes:
        command = [GIT, "-C", str(self.git_folder), *arguments]
        return subprocess.run(command, input=data, capture_output=True, check=True).stdout

    def commit(self, ref: str, files: dict[str, bytes], message: str, *, start: str = "") -> str:
        """Commit files onto a ref, which begins at `start`."""
        lines = [f"commit {ref}\ncommitter Hub <hub@localhost> 0 +0000\n".encode(), _data(message.encode())]
        parent = start or self.find(ref)
        lines += [f"from {parent}\n".encode()] * bool(parent)
        for path, content in files.items():
            lines += [f"M 100644 inline {json.dumps(path)}\n".encode(), _data(content)]
        self.git("fast-import", "--quiet", data=b"".join(lines))
        return self.find(ref)

    def find(self, ref: str) -> str:
        return self.git("for-each-ref", "--format=%(objectname)", ref).decode().strip()

    def list_files(self, ref: str) -> dict[str, tuple[str, int]]:
        """List hash and size of each file."""
        if not self.find(ref):
            return {}
        entries = (
            line.partition("\t") for line in self.git("ls-tree", "-r", "-l", "-z", ref).decode().split("\0") if line
        )
        return {path: (about.split()[2], int(about.split()[3])) for about, _, path in entries}

    def read(self, ref: str, path: str) -> bytes:
        """Read a file as a user does, with what git-lfs keeps elsewhere."""
        content = self.git("show", f"{ref}:{path}")
        oid = next((oid for oid, size in self._pointers.values() if _pointer(oid, size) == content), None)
        return self.objects[oid] if oid else content

    def is_write(self, asked: Asked) -> bool:
        return any(word in asked.path for word in ("/commit/", "/title", "/edit", "/lfs-objects/"))

    def answer(self, asked: Asked) -> Answer:
        parts = urlsplit(asked.path)
        path, query = parts.path, {key: values[0] for key, values in parse_qs(parts.query).items()}
        if "/lfs-objects/" not in path and asked.headers.get("authorization") != f"Bearer {self._token}":
            return Answer.of({"error": "Invalid credentials in Authorization header"}, 401)
        api = f"/api/datasets/{self.repo}"
        if path == "/api/whoami-v2":
            return Answer.of({"name": self.login, "type": "user"})
        if path.startswith(f"{api}/discussions"):
            return self._answer_discussions(path.removeprefix(f"{api}/discussions"), query, asked)
        if path.startswith(f"{api}/preupload/"):
            return Answer.of({"files": [_choose_mode(file) for file in asked.json()["files"]]})
        if path.startswith(f"{api}/paths-info/"):
            return self._answer_paths(unquote(path.removeprefix(f"{api}/paths-info/")), asked)
        if path.startswith(f"{api}/commit/"):
            return self._answer_commit(unquote(path.removeprefix(f"{api}/commit/")), query, asked)
        if path == f"/datasets/{self.repo}.git/info/lfs/objects/batch":
            return self._answer_batch(asked)
        if path.startswith("/lfs-objects/"):
            self.objects[path.rpartition("/")[2]] = asked.body
            return Answer()
        if path.startswith(f"/datasets/{self.repo}/resolve/main/"):
            return Answer(body=self.read("refs/heads/main", path.partition("/resolve/main/")[2]))
        return Answer.of({"error": f"no such place: {path}"}, 404)

    def _answer_discussions(self, rest: str, query: dict[str, str], asked: Asked) -> Answer:
        if not rest:
            mine = [item for item in self.discussions if query.get("author") in {None, item["author"]["name"]}]
            start = int(query.get("p", 0)) * _PAGE
            return Answer.of({"discussions": mine[start : start + _PAGE], "count": len(mine), "start": start})
        number, _, what = rest.strip("/").partition("/")
        discussion = self.discussions[int(number) - 1]
        comment = discussion["events"][0]
        if what == "title":
            discussion["title"] = asked.json()["title"]
            event = {**comment, "type": "title-change", "data": {"from": "", "to": discussion["title"]}}
            return Answer.of({"newTitle": event})
        if what.endswith("/edit"):
            comment["data"] = {"edited": True, "hidden": False, "latest": {"raw": asked.json()["content"]}}
            return Answer.of({"updatedComment": comment})
        return Answer.of(discussion)

    def _answer_paths(self, revision: str, asked: Asked) -> Answer:
        standing = self.list_files(_ref(revision))
        wanted = parse_qs(asked.body.decode())["paths"]
        return Answer.of([self._describe(path, *standing[path]) for path in wanted if path in standing])

    def _describe(self, path: str, oid: str, size: int) -> dict[str, Any]:
        info: dict[str, Any] = {"type": "file", "path": path, "oid": oid, "size": size}
        if oid in self._pointers:
            sha256, real = self._pointers[oid]
            info |= {"size": real, "lfs": {"oid": sha256, "size": real, "pointerSize": size}}
        return info

    def _answer_commit(self, revision: str, query: dict[str, str], asked: Asked) -> Answer:
        operations = [json.loads(line) for line in asked.body.splitlines()]
        header = next(item["value"] for item in operations if item["key"] == "header")
        files: dict[str, bytes] = {}
        for item in operations:
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                if value["oid"] not in self.objects:
                    return Answer.of({"error": "the object was not uploaded"}, 400)
                files[value["path"]] = self._point(value["oid"], value["size"])
        number = len(self.discussions) + 1
        is_new = query.get("create_pr") == "1"
        ref = f"refs/pr/{number}" if is_new else _ref(revision)
        oid = self.commit(ref, files, header["summary"], start=self.find("refs/heads/main") if is_new else "")
        answer = {"success": True, "commitOid": oid, "commitUrl": f"{self.url}/datasets/{self.repo}/commit/{oid}"}
        if is_new:
            self.discussions.append(self._discuss(number, header))
            answer["pullRequestUrl"] = f"{self.url}/datasets/{self.repo}/discussions/{number}"
        return Answer.of(answer)

    def _point(self, oid: str, size: int) -> bytes:
        content = _pointer(oid, size)
        self._pointers[self.git("hash-object", "--stdin", data=content).decode().strip()] = (oid, size)
        return content

    def _discuss(self, number: int, header: dict[str, str]) -> dict[str, Any]:
        author = {"name": self.login}
        text = {"edited": False, "hidden": False, "latest": {"raw": header.get("description", "")}}
        comment = {"id": f"c{number}", "type": "comment", "createdAt": _WHEN, "author": author, "data": text}
        return {
            "num": number,
            "title": header["summary"],
            "author": author,
            "createdAt": _WHEN,
            "status": "open",
            "isPullRequest": True,
            "repo": {"name": self.repo, "type": "dataset"},
            "changes": {"base": "refs/heads/main"},
            "filesWithConflicts": [],
            "events": [comment],
        }

    def _answer_batch(self, asked: Asked) -> Answer:
        objects = []
        for item in asked.json()["objects"]:
            upload = {"upload": {"href": f"{self.url}/lfs-objects/{item['oid']}"}}
            objects.append({**item, **({} if item["oid"] in self.objects else {"actions": upload})})
        return Answer.of({"transfer": "basic", "objects": objects})

    def merge(self, number: int) -> None:
        """Merge a pull request, as a maintainer does."""
        self.git("update-ref", "refs/heads/main", self.find(f"refs/pr/{number}"))
        self.discussions[number - 1]["status"] = "merged"


def _data(content: bytes) -> bytes:
    return f"data {len(content)}\n".encode() + content + b"\n"


def _pointer(oid: str, size: int) -> bytes:
    return _POINTER.format(oid=oid, size=size).encode()


def _choose_mode(file: dict[str, Any]) -> dict[str, Any]:
    mode = "lfs" if file["path"].endswith(".safetensors") else "regular"
    return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}


def _ref(revision: str) -> str:
    return revision if revision.startswith("refs/") else f"refs/heads/{revision}"
