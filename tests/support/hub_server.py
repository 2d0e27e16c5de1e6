"""A Hugging Face hub on 127.0.0.1, for tests without a network and without mocks.

It answers what huggingface_hub asks to download a file: HEAD and GET on /{repo}/resolve/{revision}/{file}, redirected,
as the real hub does for large files, to another origin that sends the bytes and understands Range. It never sends the
X-Xet-* headers, so the client stays with plain HTTP. Troubles are made with `Fault`. What is uploaded, as
`hub_uploads` has it, can be downloaded.

    with HubServer({"owner/name": {"main": {"model.safetensors": path_or_bytes}}}) as hub:
        run_in_subprocess(HF_ENDPOINT=hub.endpoint, HF_HOME=tmp_path)
        assert hub.requests == [("HEAD", "/owner/name/resolve/main/model.safetensors"), ...]
"""

import hashlib
import io
import re
import socket
import struct
import threading
import time
from dataclasses import dataclass
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote

from hub_uploads import MODEL, UploadHandler, Uploads

RESOLVE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
CHUNK = 1 << 20


@dataclass
class Fault:
    """One trouble.

    kind: what happens.
        "missing", "gated", "unavailable": the hub answers 404, 403, 503.
        "no connection": the hub resets the connection before it answers.
        "reset": the transfer's connection is reset half way.
        "cut": the transfer's connection is closed half way, again at the same byte when it is resumed.
        "short": the transfer is announced and ends at half the size, as from a proxy that kept a truncated copy.
        "corrupt": the transfer has the right length and one wrong byte.
        "slow": the transfer takes a second.
    times: how often it happens; then all is well.
    """

    kind: str
    times: float = float("inf")


class HubServer(Uploads):
    """Serves `files`, {repo: {revision: {filename: path or bytes}}}, while the `with` block runs.

    A revision of 40 hexadecimal digits is its own commit. The commit of any other one is made up from its name, unless
    `commits` ({(repo, revision): commit}) has it.

    Attributes:
        endpoint: what HF_ENDPOINT must be.
        requests: (method, path) of all requests for files so far; the transfers are under /cdn/{sha256}.
        faults: list of `Fault`, to be changed at will; each request takes the first that concerns it.
        users, private, history: as of `Uploads`.
    """

    def __init__(self, files, commits=(), faults=(), users=()):
        super().__init__(users)
        self.commits = dict(commits)
        self.faults = list(faults)
        self.requests = []
        self.repos = {}
        self.blobs = {}
        self.hashes = {}
        for repo, revisions in files.items():
            self.repos[repo] = {}
            for revision, contents in revisions.items():
                self.add(repo, revision, contents)
        self._lock = threading.Lock()

    def __enter__(self):
        # Two ports, because the client treats a redirect within one origin in another way than one to a store.
        self._servers = [ThreadingHTTPServer(("127.0.0.1", 0), _Handler) for _ in range(2)]
        for server in self._servers:
            server.hub = self
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        self.endpoint, self.store = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)
        return self

    def __exit__(self, *exception):
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def add(self, repo, revision, contents):
        """Serves {filename: path or bytes} as a revision of a repository."""
        self.repos[repo][revision] = contents
        for filename, content in contents.items():
            sha256 = _sha256(content)
            self.blobs[sha256] = content
            self.hashes[repo, revision, filename] = sha256

    def commit(self, repo, revision):
        if re.fullmatch("[0-9a-f]{40}", revision):
            return revision
        made_up = hashlib.sha1(f"{repo} {revision}".encode()).hexdigest()
        return self.commits.get((repo, revision), made_up)

    def fault(self, *kinds):
        """Takes one of these troubles, None when there is none (left)."""
        with self._lock:
            for fault in self.faults:
                if fault.kind in kinds and fault.times > 0:
                    fault.times -= 1
                    return fault.kind
        return None


def _sha256(content):
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    with Path(content).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _open(content) -> tuple[BinaryIO, int]:
    if isinstance(content, bytes):
        return io.BytesIO(content), len(content)
    return Path(content).open("rb"), Path(content).stat().st_size


class _Handler(UploadHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self._answer()

    def do_GET(self):
        self._answer()

    def log_message(self, *arguments):
        pass

    @property
    def hub(self) -> HubServer:
        return self.server.hub  # type: ignore[attr-defined]  # `HubServer` gives it to its server

    def _answer(self):
        path = self.path.partition("?")[0]
        if model := MODEL.fullmatch(path):
            return self.model_info(model[1])
        asked = RESOLVE.fullmatch(path)
        if not asked and not path.startswith("/cdn/"):
            return self._empty(404)  # the client also looks for things that have to do with no file
        self.hub.requests.append((self.command, path))
        if asked:
            return self._resolve(*map(unquote, asked.groups()))
        return self._transfer(path.removeprefix("/cdn/"))

    def _resolve(self, repo, revision, filename):
        """What the hub's web server says about a file; the words of its errors are in X-Error-Code."""
        match self.hub.fault("missing", "gated", "unavailable", "no connection"):
            case "no connection":
                return self._reset()
            case "missing":
                return self._empty(404, {"X-Error-Code": "EntryNotFound"})
            case "gated":
                return self._empty(403, {"X-Error-Code": "GatedRepo"})
            case "unavailable":
                return self._empty(503)
        known = repo in self.hub.repos and self.hub.may_read(repo, self.headers["Authorization"])
        if not known:  # 401: the hub does not tell strangers whether a private repository exists
            return self._empty(401, {"X-Error-Code": "RepoNotFound"})
        if revision not in self.hub.repos[repo]:
            return self._empty(404, {"X-Error-Code": "RevisionNotFound"})
        commit = {"X-Repo-Commit": self.hub.commit(repo, revision)}
        if filename not in self.hub.repos[repo][revision]:
            return self._empty(404, {"X-Error-Code": "EntryNotFound", **commit})
        sha256 = self.hub.hashes[repo, revision, filename]
        file, size = _open(self.hub.blobs[sha256])
        file.close()
        linked = {"X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(size)}
        return self._empty(302, {"Location": f"{self.hub.store}/cdn/{sha256}", **commit, **linked})

    def _transfer(self, sha256):
        file, size = _open(self.hub.blobs[sha256])
        start = int((self.headers["Range"] or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        fault = self.hub.fault("reset", "cut", "short", "corrupt", "slow") if self.command == "GET" else None
        end = size // 2 if fault in ("reset", "cut", "short") else size
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{sha256}"')
        self.send_header("Content-Length", str((end if fault == "short" else size) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.end_headers()
        if self.command == "HEAD":
            return
        with file:
            self._send(file, start, end, size // 3 if fault == "corrupt" else None, pause=0.5 * (fault == "slow"))
        if fault == "reset":
            self._reset()
        self.close_connection = fault in ("reset", "cut")

    def _send(self, file, start, end, wrong, pause):
        """Sends the bytes from `start` to `end`, the one at `wrong` changed, with a pause before and after."""
        time.sleep(pause)
        file.seek(start)
        while start < end:
            chunk = bytearray(file.read(min(CHUNK, end - start)))
            if wrong is not None and start <= wrong < start + len(chunk):
                chunk[wrong - start] ^= 1
            self.wfile.write(chunk)
            start += len(chunk)
        self.wfile.flush()
        time.sleep(pause)

    def _empty(self, status, headers=None):
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _reset(self):
        # Closing with a linger time of zero sends RST instead of FIN.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()
