"""What the hub of the tests answers when files are uploaded to it, in the real one's protocol.

huggingface_hub makes a repository (POST /api/repos/create), has the card's metadata checked (/api/validate-yaml), asks
how each file is to come (/api/models/{repo}/preupload/{revision}), sends large ones to a store, by Git LFS' batch
(/{repo}.git/info/lfs/objects/batch, PUT to a signed URL of another origin, verify), and the rest within the commit
(/api/models/{repo}/commit/{revision}, a JSON object in each line). The client must not speak Xet, which the real hub
does not ask of it either: HF_HUB_DISABLE_XET=1.
"""

import base64
import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler
from urllib.parse import unquote

import yaml

MODEL = re.compile(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?")
PREUPLOAD = re.compile(r"/api/models/([^/]+/[^/]+)/preupload/([^/]+)")
COMMIT = re.compile(r"/api/models/([^/]+/[^/]+)/commit/([^/]+)")
LFS = re.compile(r"/([^/]+/[^/]+)\.git/info/lfs/(objects/batch|verify)")
# What the hub's .gitattributes keep out of git, and what it takes for text otherwise.
LARGE = (".safetensors", ".keras", ".tflite", ".mlmodel", ".bin", ".png")
FRONT_MATTER = re.compile(r"---\n(.*?)\n---\n", re.DOTALL)
SIGNATURE = "?X-Amz-Signature=0123"


class Uploads:
    """The part of `HubServer` that is written to.

    Attributes:
        users: {token: owner} of those who may write, each to the repositories of that owner.
        private: names of repositories that others do not see.
        history: one dictionary for each commit: "repo", "commit", "summary", "files", "removed".
    """

    def __init__(self, users):
        self.users = dict(users)
        self.private = set()
        self.history = []

    def may_read(self, repo, authorization):
        return repo not in self.private or self.owner(authorization) == repo.split("/")[0]

    def owner(self, authorization):
        """The owner whose token a request's header has, or None."""
        return self.users.get((authorization or "").removeprefix("Bearer "))

    def take(self, repo, summary, files, removed):
        """Commits {filename: bytes} to the main branch; the new commit."""
        contents = {**self.repos[repo].get("main", {}), **files}
        for filename in removed:
            del contents[filename]
        commit = hashlib.sha1(f"{repo} {len(self.history)}".encode()).hexdigest()
        self.commits[repo, "main"] = commit
        for revision in ("main", commit):
            self.add(repo, revision, contents)
        self.history.append(
            {"repo": repo, "commit": commit, "summary": summary, "files": sorted(files), "removed": sorted(removed)}
        )
        return commit


class UploadHandler(BaseHTTPRequestHandler):
    """Answers to requests that upload; `hub` is the server's `Uploads`."""

    def do_POST(self):
        path = self.path.partition("?")[0]
        body = self._body()
        if path == "/api/validate-yaml":
            return self._validate(json.loads(body))
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        for pattern, answer in ((PREUPLOAD, self._preupload), (COMMIT, self._commit), (LFS, self._lfs)):
            asked = pattern.fullmatch(path)
            if asked and self._may_write(asked[1]):
                answer(asked[1], unquote(asked[2]), body)
            if asked:
                return None
        return self._json(404, {"error": "Not Found"})

    def do_PUT(self):
        """The store takes an object by its signed URL alone."""
        body = self._body()
        oid = self.path.partition("?")[0].removeprefix("/upload/")
        if self.headers["Authorization"] or not self.path.endswith(SIGNATURE):
            return self._json(400, {"error": "only one auth mechanism allowed"})
        if hashlib.sha256(body).hexdigest() != oid:
            return self._json(400, {"error": "the provided checksum does not match"})
        self.hub.blobs[oid] = body
        return self._json(200, {})

    def model_info(self, repo):
        """What GET /api/models/{repo} answers."""
        if repo not in self.hub.repos or not self.hub.may_read(repo, self.headers["Authorization"]):
            return self._json(401, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        names = self.hub.repos[repo].get("main", {})
        siblings = [{"rfilename": name} for name in names]
        facts = {"private": repo in self.hub.private, "sha": self.hub.commit(repo, "main"), "siblings": siblings}
        return self._json(200, {"id": repo, "modelId": repo, "tags": [], **facts})

    def _create(self, asked):
        owner = self.hub.owner(self.headers["Authorization"])
        if owner is None:
            return self._json(401, {"error": "Invalid username or password."})
        wanted = asked.get("organization") or owner
        repo = f"{wanted}/{asked['name']}"
        if wanted != owner:
            return self._json(
                403, {"error": f'You don\'t have the rights to create a model under the namespace "{wanted}"'}
            )
        if repo in self.hub.repos:
            return self._json(
                409, {"error": "You already created this model repo", "url": f"{self.hub.endpoint}/{repo}"}
            )
        self.hub.repos[repo] = {"main": {}}
        if asked.get("visibility") == "private":
            self.hub.private.add(repo)
        return self._json(200, {"url": f"{self.hub.endpoint}/{repo}", "name": repo})

    def _may_write(self, repo):
        """Whether the token may; else the refusal is sent."""
        if repo not in self.hub.repos or not self.hub.may_read(repo, self.headers["Authorization"]):
            self._json(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            return False
        if self.hub.owner(self.headers["Authorization"]) != repo.split("/")[0]:
            self._json(403, {"error": "Forbidden: you must use a write token to upload to a repository."})
            return False
        return True

    def _validate(self, asked):
        """The metadata as the hub reads them: what has another form than it knows is refused."""
        found = FRONT_MATTER.match(asked["content"])
        errors = [] if found else ["there are no metadata"]
        data = yaml.safe_load(found[1]) if found else {}
        texts = {name: data.get(name) for name in ("license", "library_name", "pipeline_tag")}
        errors += [f'"{name}" must be a string' for name, text in texts.items() if not isinstance(text, str | None)]
        for entry in data.get("model-index", []):
            for result in entry["results"]:
                fits = {"type", "name"} <= result["dataset"].keys() and "type" in result["task"]
                errors += [] if fits else ['"model-index" has a result without a task or dataset']
        answer = {"errors": [{"message": message} for message in errors], "warnings": []}
        return self._json(400 if errors else 200, answer)

    def _preupload(self, repo, revision, body):
        there = self.hub.repos[repo].get(revision, {})
        files = []
        for file in json.loads(body)["files"]:
            name, sample = file["path"], base64.b64decode(file["sample"])
            mode = "lfs" if name.endswith(LARGE) or file["size"] > 10_000_000 or b"\0" in sample else "regular"
            oid = self.hub.hashes[repo, revision, name] if name in there and mode == "lfs" else None
            files.append({"path": name, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._json(200, {"files": files})

    def _lfs(self, repo, action, body):
        asked = json.loads(body)
        if action == "verify":
            known = len(self.hub.blobs.get(asked["oid"], b"")) == asked["size"]
            return self._json(200 if known else 404, {})
        objects = []
        for wanted in asked["objects"]:
            found = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.blobs:
                upload = {"href": f"{self.hub.store}/upload/{wanted['oid']}{SIGNATURE}"}
                verify = {"href": f"{self.hub.endpoint}/{repo}.git/info/lfs/verify"}
                found["actions"] = {"upload": upload, "verify": verify}
            objects.append(found)
        return self._json(200, {"transfer": "basic", "objects": objects})

    def _commit(self, repo, revision, body):
        summary, files, removed = "", {}, []
        for line in body.splitlines():
            key, value = (json.loads(line)[name] for name in ("key", "value"))
            if key == "header":
                summary = value["summary"]
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                if len(self.hub.blobs.get(value["oid"], b"")) != value["size"]:
                    return self._json(400, {"error": f"{value['path']} was not uploaded"})
                files[value["path"]] = self.hub.blobs[value["oid"]]
            elif key == "deletedFile":
                removed.append(value["path"])
        commit = self.hub.take(repo, summary, files, removed)
        url = f"{self.hub.endpoint}/{repo}/commit/{commit}"
        return self._json(200, {"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""})

    def _body(self):
        if self.headers["Transfer-Encoding"] != "chunked":
            return self.rfile.read(int(self.headers["Content-Length"] or 0))
        parts = []
        while size := int(self.rfile.readline().strip() or b"0", 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _json(self, status, content, headers=None):
        answer = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Type": "application/json"}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)
