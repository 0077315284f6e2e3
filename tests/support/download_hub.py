"""The few routes of the hub's API that reading from it needs (model info, file tree, files whole and by ranges), on this machine."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SHA = "0123456789abcdef0123456789abcdef01234567"


class DownloadHub(ThreadingHTTPServer):
    """`files`: what the model org/tiny has; `sent`: the name of each file given, and how many of its bytes."""

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.files = files
        self.asked: list[str] = []
        self.fetched: list[str] = []
        self.sent: list[tuple[str, int]] = []
        self.tokens: set[str | None] = set()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Answer(BaseHTTPRequestHandler):
    server: DownloadHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _send(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append(path)
        self.server.tokens.add(self.headers.get("Authorization"))
        if "/org/gated" in path:
            return self._send(403, b"{}", X_Error_Code="GatedRepo", X_Error_Message="Access to model org/gated is restricted")
        if "/org/broken" in path:
            return self._send(500, b"boom")
        if "/org/tiny" not in path:
            return self._send(404, b"{}", X_Error_Code="RepoNotFound")
        if "/revision/" in path and path.rsplit("/", 1)[1] not in ("main", "v1", SHA):
            return self._send(404, b"{}", X_Error_Code="RevisionNotFound")
        files = self.server.files
        if path.startswith("/api/models/org/tiny") and "/tree/" in path:
            entries = [{"type": "file", "path": n, "size": len(c), "oid": hashlib.sha1(c).hexdigest()} for n, c in files.items()]
            return self._send(200, json.dumps(entries).encode(), Content_Type="application/json")
        if path.startswith("/api/models/org/tiny"):
            info = {"id": "org/tiny", "sha": SHA, "siblings": [{"rfilename": n, "size": len(c)} for n, c in files.items()]}
            return self._send(200, json.dumps(info).encode(), Content_Type="application/json")
        name = path.split(f"/resolve/{SHA}/")[-1]
        if self.command == "GET":
            self.server.fetched.append(name)
        begin, _, end = (self.headers.get("Range") or "").removeprefix("bytes=").partition("-")
        part = files[name][int(begin) : int(end) + 1] if end else files[name]
        self.server.sent.append((name, len(part) if self.command == "GET" else 0))
        return self._send(206 if end else 200, part, ETag=f'"{hashlib.sha1(files[name]).hexdigest()}"', X_Repo_Commit=SHA)
