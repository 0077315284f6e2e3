"""The few routes of the hub that a push uses, on this machine, keeping what is pushed.

Pushing goes by LFS here (HF_HUB_DISABLE_XET=1): the hub's newer transfer is a protocol of its own.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_abcdefghijklmnop"


class PushHub(ThreadingHTTPServer):
    """`repos`: name → {"private", "files"}; `role`: what the token may; `broken`: answer 500 to a commit."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.repos: dict[str, dict[str, Any]] = {}
        self.blobs: dict[str, bytes] = {}
        self.role, self.broken = "write", False
        self.asked: list[str] = []
        self.cards: list[str] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Answer(BaseHTTPRequestHandler):
    server: PushHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _send(self, status: int, content: Any = None, **headers: str) -> None:
        body = json.dumps(content or {}).encode()
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        self.server.asked.append(f"{self.command} {path}")
        if path.startswith("/blobs/"):  # a signed address: no token is sent there
            oid = path.rpartition("/")[2]
            assert hashlib.sha256(body).hexdigest() == oid
            self.server.blobs[oid] = body
            return self._send(200)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._send(401, {"error": "Invalid user token."})
        if path == "/api/whoami-v2":
            return self._send(200, {"name": "me", "type": "user", "auth": {"accessToken": {"role": self.server.role}}, "orgs": []})
        if path == "/api/validate-yaml":
            self.server.cards.append(json.loads(body)["content"])
            return self._send(200, {"errors": [], "warnings": []})
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization', 'me')}/{asked['name']}"
            if name.startswith("forbidden/"):
                return self._send(403, {"error": "You don't have the rights to create a model under this namespace"})
            status = 409 if name in self.server.repos else 200
            self.server.repos.setdefault(name, {"private": asked.get("visibility") == "private", "files": {}, "messages": []})
            return self._send(status, {"url": f"{self.server.address}/{name}"})
        name = "/".join(path.removeprefix("/api/models").lstrip("/").split("/")[:2]).removesuffix(".git")
        repo = self.server.repos.get(name)
        if repo is None:
            return self._send(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        return self._of_repo(path, body, name, repo)

    def _of_repo(self, path: str, body: bytes, name: str, repo: dict[str, Any]) -> None:
        if "/preupload/" in path:
            modes = {f["path"]: "lfs" if f["path"].endswith(".safetensors") else "regular" for f in json.loads(body)["files"]}
            return self._send(200, {"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes.items()]})
        if path.endswith("/info/lfs/objects/batch"):
            objects = [
                o if o["oid"] in self.server.blobs else {**o, "actions": {"upload": {"href": f"{self.server.address}/blobs/{o['oid']}"}}}
                for o in json.loads(body)["objects"]
            ]
            return self._send(200, {"transfer": "basic", "objects": objects})
        if "/commit/" in path:
            if self.server.broken:
                return self._send(400, {"error": f"cannot commit with {self.headers['Authorization']}"})
            for line in map(json.loads, body.decode().splitlines()):
                value = line["value"]
                if line["key"] == "header":
                    repo["messages"].append(value["summary"])
                elif line["key"] == "file":
                    repo["files"][value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    repo["files"][value["path"]] = self.server.blobs[value["oid"]]
            return self._send(200, {"commitUrl": f"{self.server.address}/{name}/commit/abc123", "commitOid": "abc123", "success": True})
        return self._send(200, {"id": name, "private": repo["private"], "sha": "0" * 40, "siblings": []})

    do_GET = do_POST = do_PUT = _answer
