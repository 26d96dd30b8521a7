"""A hub on this machine: an HTTP server of what pushing uses, which keeps what came."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_right"
USER = "me"
SHA = "1" * 40  # of every commit


class Hub(ThreadingHTTPServer):
    """repositories: name -> private, and files by path. failing: paths that are answered by 500."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, Any]] = {}
        self.collections: dict[str, dict[str, Any]] = {}
        self.objects: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.failing = ""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def files(self, name: str) -> dict[str, bytes]:
        return self.repositories[name]["files"]


@contextmanager
def running() -> Iterator[Hub]:
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, status: int, value: Any = None) -> None:
        body = json.dumps(value if value is not None else {}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if status >= 400:
            self.send_header("X-Error-Message", value.get("error", ""))
            if value.get("code"):
                self.send_header("X-Error-Code", value["code"])
        self.end_headers()
        self.wfile.write(body)

    def _serve(self) -> None:
        hub, path = self.server, self.path.partition("?")[0]
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        hub.asked.append(f"{self.command} {path}")
        if hub.failing and re.search(hub.failing, path):
            return self._answer(500, {"error": "the disk of the hub is full"})
        if path.startswith("/objects/"):  # signed by itself
            hub.objects[path.rpartition("/")[2]] = body
            return self._answer(200)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer(401, {"error": "Invalid credentials in Authorization header"})
        if path == "/api/whoami-v2":
            return self._answer(200, {"name": USER, "orgs": []})
        if path == "/api/validate-yaml":
            bad = "license: nonsense" in json.loads(body)["content"]
            errors = [{"message": '"license" must be one of [apache-2.0, mit]'}] if bad else []
            return self._answer(400 if bad else 200, {"errors": errors, "warnings": []})
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path.startswith("/api/collections"):
            return self._collect(path, json.loads(body or "{}"))
        found = re.fullmatch(r"/(?:api/models/)?([^/]+/[^/]+?)(\.git)?(/.+)?", path)
        name, rest = (found[1], found[3]) if found else ("", None)
        if name not in hub.repositories:
            no = {"error": "Repository not found", "code": "RepoNotFound"}
            return self._answer(404, no)
        if rest is None or rest.startswith("/revision/"):
            siblings = [{"rfilename": path} for path in hub.files(name)]
            return self._answer(200, {"id": name, "sha": SHA, "siblings": siblings})
        if rest.startswith("/tree/"):
            kept = hub.files(name).items()
            files = [{"type": "file", "path": p, "size": len(c), "oid": SHA} for p, c in kept]
            return self._answer(200, files)
        if rest.startswith("/resolve/"):
            return self._send(hub.files(name)[rest.split("/", 3)[3]])
        if rest.startswith("/preupload/"):
            return self._modes(json.loads(body))
        if rest == "/info/lfs/objects/batch":
            return self._batch(json.loads(body))
        if rest.startswith("/commit/"):
            return self._commit(name, body)
        return self._answer(404, {"error": f"no such endpoint: {path}"})

    do_GET = do_HEAD = do_POST = do_PUT = _serve

    def _send(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", SHA)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def _create(self, wanted: dict[str, Any]) -> None:
        owner = wanted.get("organization") or USER
        name = f"{owner}/{wanted['name']}"
        if owner != USER:
            return self._answer(
                403, {"error": f"You don't have the rights to create under {owner}"}
            )
        if name in self.server.repositories:
            url = f"{self.server.url}/{name}"
            return self._answer(409, {"error": "You already created this repo", "url": url})
        private = wanted.get("private") or wanted.get("visibility") == "private"
        self.server.repositories[name] = {"private": bool(private), "files": {}, "commits": 0}
        return self._answer(200, {"url": f"{self.server.url}/{name}"})

    def _modes(self, wanted: dict[str, Any]) -> None:
        def mode(path: str) -> str:
            return "lfs" if path.endswith((".safetensors", ".onnx", ".pt2")) else "regular"

        files = [
            {
                "path": one["path"],
                "uploadMode": mode(one["path"]),
                "shouldIgnore": False,
                "oid": None,
            }
            for one in wanted["files"]
        ]
        return self._answer(200, {"files": files})

    def _batch(self, wanted: dict[str, Any]) -> None:
        found = [
            {
                "oid": one["oid"],
                "size": one["size"],
                "actions": {"upload": {"href": f"{self.server.url}/objects/{one['oid']}"}},
            }
            for one in wanted["objects"]
        ]
        return self._answer(200, {"transfer": "basic", "objects": found})

    def _commit(self, name: str, body: bytes) -> None:
        repository = self.server.repositories[name]
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                assert value["encoding"] == "base64"
                repository["files"][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                content = self.server.objects[value["oid"]]
                assert hashlib.sha256(content).hexdigest() == value["oid"]
                repository["files"][value["path"]] = content
        repository["commits"] += 1
        url = f"{self.server.url}/{name}/commit/{SHA}"
        return self._answer(200, {"success": True, "commitOid": SHA, "commitUrl": url})

    def _collect(self, path: str, wanted: dict[str, Any]) -> None:
        known = self.server.collections
        if path == "/api/collections":
            slug = f"{wanted['namespace']}/{wanted['title'].lower()}-{'a' * 24}"
            if slug in known:
                return self._answer(409, {"error": "exists", "slug": slug})
            known[slug] = {**wanted, "items": []}
            return self._answer(200, self._shown(slug))
        slug = path.removeprefix("/api/collections/").removesuffix("/items")
        if path.endswith("/items"):
            if wanted["item"] in known[slug]["items"]:
                return self._answer(409, {"error": "in it already"})
            known[slug]["items"].append(wanted["item"])
        return self._answer(200, self._shown(slug))

    def _shown(self, slug: str) -> dict[str, Any]:
        own = self.server.collections[slug]
        items = [
            {"_id": str(i), "id": item["id"], "type": item["type"], "position": i}
            for i, item in enumerate(own["items"])
        ]
        return {
            "slug": slug,
            "title": own["title"],
            "owner": {"name": own["namespace"]},
            "items": items,
            "lastUpdated": "2026-01-01T00:00:00.000Z",
            "position": 0,
            "private": own["private"],
            "theme": "blue",
            "upvotes": 0,
            "description": own.get("description"),
        }
