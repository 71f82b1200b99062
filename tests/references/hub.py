"""A hub of models on this machine: the few answers of Hugging Face's that an upload, and a library that opens it, ask for."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_ours"


@dataclass
class Hub:
    """What lies on it: files by repository, which ones are private; `asked` are the requests so far.

    refuses: the status with which it answers whoever wants to make a repository.
    """

    address: str = ""
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    refuses: int | None = None


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub that listens while the context lasts."""
    hub = Hub()

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.asked.append(f"POST {self.path}")
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._say(401, {"error": "Invalid username or password."})
        if self.path == "/api/repos/create":
            return self._create(json.loads(body))
        if self.path == "/api/validate-yaml":
            return self._say(200, {"errors": [], "warnings": []})
        repo = "/".join(self.path.split("/")[3:5])
        if self.path.endswith("/preupload/main"):
            wanted = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return self._say(200, {"files": wanted})
        if self.path.startswith(f"/api/models/{repo}/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.hub.files[repo][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return self._say(200, {"commitUrl": f"{self.hub.address}/{repo}/commit/{'a' * 40}", "commitOid": "a" * 40})
        return self._say(404, {"error": f"no such place: {self.path}"})

    def _create(self, asked: dict[str, Any]) -> None:
        if self.hub.refuses is not None:
            return self._say(
                self.hub.refuses, {"error": "You don't have the rights to create a model under this namespace"}
            )
        repo = f"{asked['organization']}/{asked['name']}"
        if repo in self.hub.files:
            return self._say(409, {"error": "You already created this model repo", "url": f"{self.hub.address}/{repo}"})
        self.hub.files[repo] = {}
        self.hub.private[repo] = asked.get("private", asked.get("visibility") == "private")
        return self._say(200, {"url": f"{self.hub.address}/{repo}"})

    def do_GET(self) -> None:
        self._read(True)

    def do_HEAD(self) -> None:
        self._read(False)

    def _read(self, whole: bool) -> None:
        self.hub.asked.append(f"{self.command} {self.path}")
        parts = self.path.partition("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"] and "/".join(parts[2:4]) in self.hub.files:
            repo = "/".join(parts[2:4])
            siblings = [{"rfilename": name} for name in self.hub.files[repo]]
            said = {"id": repo, "private": self.hub.private[repo], "sha": "a" * 40, "siblings": siblings}
            return self._say(200, said)
        content = self.hub.files.get("/".join(parts[:2]), {}).get("/".join(parts[4:]))
        if parts == [""]:
            return self._say(200, {})
        if content is None:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", "a" * 40)
        self.end_headers()
        if whole:
            self.wfile.write(content)
        return None

    def _say(self, status: int, said: dict[str, Any]) -> None:
        content = json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass
