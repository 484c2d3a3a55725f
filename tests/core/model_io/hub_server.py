"""A Hugging Face Hub on loopback that speaks the few calls of push and pull; it keeps files in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest

from refiner_cli.core.model_io.hub import hub_model

TOKEN = "hf_loopbacksecret"
Files = dict[str, bytes]


@dataclass
class LoopbackHub:
    """What the server holds, and how it misbehaves."""

    url: str = ""
    repositories: dict[str, dict[str, Files]] = field(default_factory=dict)  # by name, by commit
    private: dict[str, bool] = field(default_factory=dict)
    uploads: Files = field(default_factory=dict)  # by sha256
    cut_at: int | None = None  # bytes of a weights file after which the connection is closed
    requests: list[str] = field(default_factory=list)

    def main(self, repository: str) -> str:
        """The newest commit."""
        return list(self.repositories[repository])[-1]

    def commit(self, repository: str, files: Files) -> str:
        """Put files on top of the newest commit."""
        before = self.repositories.setdefault(repository, {})
        content = {**(before[self.main(repository)] if before else {}), **files}
        oid = hashlib.sha1(repr((len(before), sorted(content))).encode(), usedforsecurity=False).hexdigest()
        before[oid] = content
        return oid


class HubHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: LoopbackHub

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        del format, args

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("content-length", 0)))

    def answer(self, value: Any, status: int = 200, **headers: str) -> None:
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def fail(self, status: int, code: str = "") -> None:
        # A careless server that repeats what it was sent.
        echo = f"refused {self.headers.get('authorization', '')}"
        self.answer({"error": echo}, status, X_Error_Code=code, X_Error_Message=echo)

    def allowed(self) -> bool:
        given = self.headers.get("authorization")
        if given is None or given == f"Bearer {TOKEN}":
            return True
        self.fail(401)
        return False

    def do_POST(self) -> None:  # noqa: PLR0911 - one call after the other
        body, path = self.body(), urlsplit(self.path).path
        self.hub.requests.append(f"POST {path}")
        if self.headers.get("authorization") != f"Bearer {TOKEN}":
            return self.fail(401)
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            if name in self.hub.repositories:
                return self.answer({"url": f"{self.hub.url}/{name}"}, 409)
            self.hub.repositories[name] = {}
            self.hub.commit(name, {".gitattributes": b"*.safetensors filter=lfs\n"})
            self.hub.private[name] = asked.get("visibility") == "private" or asked.get("private") is True
            return self.answer({"url": f"{self.hub.url}/{name}"})
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if path.endswith("/objects/batch"):
            objects = [
                {"oid": each["oid"], "size": each["size"],
                 "actions": {"upload": {"href": f"{self.hub.url}/lfs/{each['oid']}"}}}
                for each in json.loads(body)["objects"]
            ]  # fmt: skip
            return self.answer({"transfer": "basic", "objects": objects})
        _, _, _, owner, name, call, *_ = path.split("/")
        repository = f"{owner}/{name}"
        if call == "preupload":
            files = [
                {"path": each["path"], "shouldIgnore": False, "oid": None,
                 "uploadMode": "lfs" if each["path"].endswith(".safetensors") else "regular"}
                for each in json.loads(body)["files"]
            ]  # fmt: skip
            return self.answer({"files": files})
        assert call == "commit"
        added: Files = {}
        for line in body.splitlines():
            row = json.loads(line)
            if row["key"] == "file":
                added[row["value"]["path"]] = base64.b64decode(row["value"]["content"])
            elif row["key"] == "lfsFile":
                added[row["value"]["path"]] = self.hub.uploads[row["value"]["oid"]]
        oid = self.hub.commit(repository, added)
        return self.answer({"commitUrl": f"{self.hub.url}/{repository}/commit/{oid}", "commitOid": oid})

    def do_PUT(self) -> None:
        content = self.body()
        self.hub.uploads[hashlib.sha256(content).hexdigest()] = content
        self.answer(b"")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:  # noqa: PLR0911
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        if not self.allowed():
            return None
        parts = path.strip("/").split("/")
        if len(parts) < 3:
            return self.fail(404)
        if parts[:2] == ["api", "models"]:
            repository, call, *rest = "/".join(parts[2:4]), *(parts[4:] or ["revision", "main"])
        else:
            repository, call, *rest = "/".join(parts[:2]), *parts[2:]
        if repository not in self.hub.repositories:
            return self.fail(404, "RepoNotFound")
        commits = self.hub.repositories[repository]
        oid = self.hub.main(repository) if not rest or rest[0] == "main" else rest[0]
        if oid not in commits:
            return self.fail(404, "RevisionNotFound")
        files = commits[oid]
        if call == "resolve":
            return self.send_file(files, "/".join(rest[1:]), oid)
        if call == "tree":
            return self.answer([self.entry(name, files[name]) for name in files])
        return self.answer({"id": repository, "modelId": repository, "sha": oid, "private": False, "tags": [],
                            "downloads": 0, "siblings": [{"rfilename": name} for name in files]})  # fmt: skip

    def entry(self, name: str, content: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        lfs = {"lfs": {"oid": digest, "size": len(content), "pointerSize": 130}} if is_large(name) else {}
        return {"type": "file", "path": name, "oid": digest[:40], "size": len(content), **lfs}

    def send_file(self, files: Files, name: str, oid: str) -> None:
        if name not in files:
            return self.fail(404, "EntryNotFound")
        content, digest = files[name], hashlib.sha256(files[name]).hexdigest()
        start, status = 0, 200
        if self.headers.get("range"):
            start, status = int(self.headers["range"].removeprefix("bytes=").split("-")[0]), 206
        self.send_response(status)
        self.send_header("ETag", f'"{digest if is_large(name) else digest[:40]}"')
        self.send_header("X-Repo-Commit", oid)
        self.send_header("Content-Length", str(len(content) - start))
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "HEAD":
            return None
        if self.hub.cut_at is not None and is_large(name):
            self.wfile.write(content[start : self.hub.cut_at])
            self.close_connection = True
            return None
        self.wfile.write(content[start:])
        return None


def is_large(name: str) -> bool:
    return name.endswith(".safetensors")


@contextmanager
def loopback_hub(patch: pytest.MonkeyPatch, cache: object) -> Iterator[LoopbackHub]:
    """A running server, and the client's settings that lead to it."""
    hub = LoopbackHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (HubHandler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    constants = huggingface_hub.constants
    for name, value in {
        "ENDPOINT": hub.url, "HF_HUB_CACHE": str(cache), "HF_HUB_DISABLE_XET": True,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
    }.items():  # fmt: skip
        patch.setattr(constants, name, value)
    patch.setenv("HF_TOKEN", TOKEN)
    hub_model.cache_clear()
    try:
        yield hub
    finally:
        hub_model.cache_clear()
        server.shutdown()
        server.server_close()
        thread.join()
