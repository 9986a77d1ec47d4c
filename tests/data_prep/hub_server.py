"""A small Hugging Face hub on the loopback: what huggingface_hub and `datasets` ask of it for reading datasets."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def running_hub(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Serve the dataset repositories ROOT/OWNER/NAME, each with one commit; yields the address and what was asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def _send(self, status: int, content: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def _json(self, value: object) -> None:
            self._send(200, json.dumps(value).encode(), Content_Type="application/json")

        def _answer(self) -> None:
            url = urlsplit(self.path)
            parts = [unquote(part) for part in url.path.strip("/").split("/")]
            asked.append(f"{self.command} {unquote(self.path)}")
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
            if parts[:2] == ["api", "datasets"] and (root / "/".join(parts[2:4])).is_dir():
                return self._api(root / "/".join(parts[2:4]), parts[4:], parse_qs(url.query), body)
            if parts[0] == "datasets" and "resolve" in parts:
                return self._resolve(root / "/".join(parts[1:3]) / "/".join(parts[5:]))
            self._send(404, b"{}", X_Error_Code="RepoNotFound")

        do_GET = do_HEAD = do_POST = _answer

        def _api(self, folder: Path, rest: list[str], query: dict, body: str) -> None:
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            if rest[:1] == ["tree"]:
                base = folder / "/".join(rest[2:])
                deep = query.get("recursive", ["False"])[0].lower() in ("true", "1")
                found = sorted(base.rglob("*") if deep else base.iterdir()) if base.is_dir() else []
                return self._json([self._entry(folder, path) for path in found])
            if rest[:1] == ["paths-info"]:
                names = parse_qs(body).get("paths", []) or json.loads(body or "{}").get("paths", [])
                return self._json([self._entry(folder, folder / n) for n in names if (folder / n).exists()])
            name = "/".join(folder.parts[-2:])
            siblings = [{"rfilename": path.relative_to(folder).as_posix()} for path in files]
            self._json({"_id": "1", "id": name, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False})

        def _entry(self, folder: Path, path: Path) -> dict:
            name = path.relative_to(folder).as_posix()
            if path.is_dir():
                return {"type": "directory", "oid": hashlib.sha1(name.encode()).hexdigest(), "size": 0, "path": name}
            content = path.read_bytes()
            return {"type": "file", "oid": hashlib.sha1(content).hexdigest(), "size": len(content), "path": name}

        def _resolve(self, path: Path) -> None:
            if not path.is_file():
                return self._send(404, b"{}", X_Error_Code="EntryNotFound")
            content = path.read_bytes()
            etag = hashlib.sha1(content).hexdigest()
            headers = {"ETag": f'"{etag}"', "X_Repo_Commit": COMMIT, "Accept_Ranges": "bytes"}
            span = self.headers.get("Range")
            if not span:
                return self._send(200, content, **headers)
            start, end = span.removeprefix("bytes=").split("-")
            stop = min(int(end or len(content)) + 1, len(content))
            headers["Content_Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
            self._send(206, content[int(start) : stop], **headers)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
