"""A Hugging Face hub of one repository on loopback, as far as its client asks: files, ranges, refusals. Notes what was fetched."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789" * 4


def oid(body: bytes) -> str:
    """Git's name of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


@contextmanager
def hub(folder: Path, repository: str = "owner/tiny", cut: int | None = None) -> Iterator[tuple[str, list[str]]]:
    """(address, what was fetched): the files of `folder` as `repository`. "owner/gated" is behind a form, others are not there.

    cut: the first answer with more than so many bytes breaks off there.
    """
    fetched: list[str] = []
    broken: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            """Say nothing."""

        def answer(self, status: int, body: bytes = b"", **headers: str):
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **{k.replace("_", "-"): v for k, v in headers.items()}}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            path = self.path.split("?")[0]
            if "gated" in path and "/resolve/" in path:
                return self.answer(403, X_Error_Code="GatedRepo", X_Error_Message="Access to model owner/gated is restricted")
            if path.startswith("/api/models/"):
                name = "/".join(path.split("/")[3:5])
                if name not in (repository, "owner/gated"):
                    return self.answer(401, X_Error_Code="RepoNotFound")
                files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
                names = [str(p.relative_to(folder)) for p in files]
                body = {"id": name, "sha": COMMIT, "siblings": [{"rfilename": n} for n in names], "private": False}
                if "/tree/" in path:
                    sizes = [{"size": p.stat().st_size, "oid": oid(p.read_bytes())} for p in files]
                    body = [{"type": "file", "path": n, **s} for n, s in zip(names, sizes, strict=True)]
                return self.answer(200, json.dumps(body).encode(), Content_Type="application/json")
            file = folder / path.split(f"/resolve/{COMMIT}/")[-1]
            if not path.startswith(f"/{repository}/resolve/") or not file.is_file():
                return self.answer(404, X_Error_Code="EntryNotFound")
            body = file.read_bytes()
            tag = {"ETag": f'"{oid(body)}"', "X_Repo_Commit": COMMIT, "Accept_Ranges": "bytes"}
            asked = self.headers.get("Range", "")
            first = int(asked.split("=")[1].split("-")[0]) if asked.startswith("bytes=") else 0
            if self.command == "GET":
                fetched.append(f"{file.relative_to(folder)}{asked and ' from ' + str(first)}")
            if self.command == "GET" and cut and len(body) > cut and not broken:
                broken.append(path)
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[:cut])
                self.close_connection = True
                return None
            if first:
                tag["Content_Range"] = f"bytes {first}-{len(body) - 1}/{len(body)}"
            return self.answer(206 if first else 200, body[first:], **tag)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", fetched
    finally:
        server.shutdown()
        server.server_close()
