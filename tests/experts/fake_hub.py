"""A stand-in of the Hub's API on localhost, so that the real client runs without the network.

It answers what huggingface_hub asks when it lists, downloads and pushes: repositories made of
commits, files in LFS or not, ETags, byte ranges. `Faults` makes it misbehave.
"""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass
class Faults:
    """What goes wrong, by path in the repository."""

    altered: set[str] = field(default_factory=set)  # one byte is another one
    cut_after: dict[str, int] = field(default_factory=dict)  # the line breaks once, after so many
    listed: list[dict] = field(default_factory=list)  # more entries in the listing
    full_storage: bool = False  # the server takes no uploads


class FakeHub:
    """Repositories by name; each a list of commits, each a map from path to content."""

    def __init__(self) -> None:
        self.commits: dict[str, dict[str, dict[str, bytes]]] = {}  # repo -> commit -> files
        self.branches: dict[str, dict[str, str]] = {}
        self.lfs: dict[str, bytes] = {}
        self.faults = Faults()
        self.requests: list[tuple[str, str]] = []
        self.ranges: list[str] = []
        self.private: dict[str, str | None] = {}
        self.messages: list[str] = []
        self.connections: list[socket.socket] = []
        self.race = False  # somebody else commits before the next commit
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> FakeHub:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        for connection in self.connections:  # those kept alive would go on answering
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def commit(self, repo: str, files: dict[str, bytes], branch: str = "main") -> str:
        """Make a branch hold exactly these files."""
        known = self.commits.setdefault(repo, {})
        text = json.dumps([repo, len(known), sorted(files)]).encode()
        name = hashlib.sha1(text).hexdigest()
        known[name] = dict(files)
        self.branches.setdefault(repo, {})[branch] = name
        return name

    def head(self, repo: str, branch: str = "main") -> dict[str, bytes]:
        return self.commits[repo][self.branches[repo][branch]]

    def asked(self, method: str, part: str = "") -> list[str]:
        return [path for m, path in self.requests if m == method and part in path]


def is_lfs(path: str) -> bool:
    return path.endswith((".safetensors", ".bin"))


def _entry(path: str, content: bytes) -> dict:
    blob = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
    entry: dict = {"rfilename": path, "size": len(content), "blobId": blob}
    if is_lfs(path):
        digest = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"size": len(content), "sha256": digest, "pointerSize": 130}
    return entry


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            hub.connections.append(self.connection)

        def log_message(self, *_: object) -> None:
            """Tests print nothing."""

        def answer(self, code: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(code)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            if "Content_Length" not in headers:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def json(self, data: object, code: int = 200) -> None:
            self.answer(code, json.dumps(data).encode(), Content_Type="application/json")

        def missing(self, code: str) -> None:
            self.answer(404, b"{}", X_Error_Code=code, Content_Type="application/json")

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                content = b""
                while size := int(self.rfile.readline(), 16):
                    content += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return content
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def route(self) -> None:
            url = urlsplit(self.path)
            hub.requests.append((self.command, self.path))
            parts = [unquote(part) for part in url.path.strip("/").split("/")]
            if parts[:2] == ["api", "models"]:
                repo, rest = "/".join(parts[2:4]), parts[4:]
                if repo not in hub.commits:
                    return self.missing("RepoNotFound")
                if not rest or rest[0] == "revision":
                    return self.info(repo, rest[1] if rest else "main", parse_qs(url.query))
                return self.change(repo, rest[0], rest[1])
            if len(parts) > 3 and parts[2] == "resolve":
                return self.file("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
            if parts == ["api", "repos", "create"]:
                return self.create(json.loads(self.body()))
            if parts == ["api", "validate-yaml"]:
                self.body()
                return self.json({"errors": [], "warnings": []})
            if parts[-1] == "batch":
                return self.batch(json.loads(self.body()))
            if parts[0] == "upload":
                hub.lfs[parts[1]] = self.body()
                return self.answer(200)
            return self.missing("EntryNotFound")

        do_GET = do_HEAD = do_POST = do_PUT = route  # noqa: N815

        def resolve(self, repo: str, revision: str) -> str | None:
            commit = hub.branches[repo].get(revision, revision)
            return commit if commit in hub.commits[repo] else None

        def info(self, repo: str, revision: str, query: dict) -> None:
            commit = self.resolve(repo, revision)
            if commit is None:
                return self.missing("RevisionNotFound")
            files = [_entry(path, content) for path, content in hub.commits[repo][commit].items()]
            if "blobs" not in query:
                files = [{"rfilename": f["rfilename"]} for f in files]
            return self.json({"id": repo, "sha": commit, "siblings": files + hub.faults.listed})

        def file(self, repo: str, revision: str, path: str) -> None:
            commit = self.resolve(repo, revision) if repo in hub.commits else None
            if commit is None:
                return self.missing("RevisionNotFound" if repo in hub.commits else "RepoNotFound")
            content = hub.commits[repo][commit].get(path)
            if content is None:
                return self.missing("EntryNotFound")
            entry = _entry(path, content)
            tag = entry["lfs"]["sha256"] if "lfs" in entry else entry["blobId"]
            headers = {"ETag": f'"{tag}"', "X_Repo_Commit": commit, "Accept_Ranges": "bytes"}
            if path in hub.faults.altered:
                content = content[:-1] + bytes([content[-1] ^ 1])
            if self.command == "HEAD":
                return self.answer(200, Content_Length=str(len(content)), **headers)
            start = 0
            if wanted := self.headers.get("Range"):
                hub.ranges.append(wanted)
                start = int(wanted.removeprefix("bytes=").split("-")[0])
                headers["Content_Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            cut = hub.faults.cut_after.pop(path, None)
            if cut is not None:
                headers["Content_Length"] = str(len(content) - start)
                self.answer(206 if start else 200, content[start : start + cut], **headers)
                self.close_connection = True
                return None
            return self.answer(206 if start else 200, content[start:], **headers)

        def create(self, asked: dict) -> None:
            repo = f"{asked['organization']}/{asked['name']}"
            if repo in hub.commits:
                return self.json({"error": "exists", "url": f"{hub.url}/{repo}"}, 409)
            hub.private[repo] = asked.get("visibility")
            hub.commit(repo, {".gitattributes": b"*.safetensors filter=lfs\n"})
            return self.json({"url": f"{hub.url}/{repo}"})

        def change(self, repo: str, what: str, revision: str) -> None:
            body = self.body()
            if what == "branch":
                hub.branches[repo].setdefault(revision, hub.branches[repo]["main"])
                return self.json({})
            if self.resolve(repo, revision) is None:
                return self.missing("RevisionNotFound")
            if what == "preupload":
                modes = [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if is_lfs(file["path"]) else "regular",
                        "shouldIgnore": False,
                    }
                    for file in json.loads(body)["files"]
                ]
                return self.json({"files": modes})
            files = dict(hub.head(repo, revision))
            if hub.race:
                hub.race = False
                hub.commit(repo, {**files, "other": b"1"}, revision)
            for line in body.splitlines():
                item = json.loads(line)
                value = item["value"]
                if item["key"] == "header":
                    hub.messages.append(value["summary"])
                    if value.get("parentCommit") not in (None, hub.branches[repo][revision]):
                        return self.json({"error": "the branch has moved"}, 412)
                elif item["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif item["key"] == "lfsFile":
                    files[value["path"]] = hub.lfs[value["oid"]]
                elif item["key"] == "deletedFile":
                    del files[value["path"]]
            commit = hub.commit(repo, files, revision)
            url = f"{hub.url}/{repo}/commit/{commit}"
            return self.json({"commitOid": commit, "commitUrl": url})

        def batch(self, asked: dict) -> None:
            if hub.faults.full_storage:
                return self.json({"error": "no space for this account"}, 403)
            objects = [
                {
                    "oid": o["oid"],
                    "size": o["size"],
                    "actions": {"upload": {"href": f"{hub.url}/upload/{o['oid']}"}},
                }
                for o in asked["objects"]
            ]
            return self.json({"transfer": "basic", "objects": objects})

    return Handler
