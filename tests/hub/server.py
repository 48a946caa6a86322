"""A Hub on this machine, of one folder a commit: what huggingface_hub's client asks when it pushes and pulls.

The client is the real one; only the address that it asks is another.
"""

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import yaml


class LocalHub:
    """Repositories in memory: name -> its commits, each name -> content; who may write is who has the token."""

    def __init__(self):
        self.repos, self.private, self.token = {}, {}, "hf_right"
        self.asked = []  # "GET /path"
        self.broken = None  # a status for every answer

    def put(self, repo, files):
        """A commit, made without the client."""
        self.repos.setdefault(repo, []).append(dict(files))
        self.private.setdefault(repo, False)

    @staticmethod
    def sha(number):
        return hashlib.sha1(str(number).encode()).hexdigest()

    def commit_at(self, repo, revision):
        """The files at a revision, and its hash; None where there is none."""
        commits = self.repos[repo]
        names = {self.sha(number): number for number in range(len(commits))} | {"main": len(commits) - 1}
        return None if revision not in names else (commits[names[revision]], self.sha(names[revision]))

    @contextmanager
    def serving(self):
        """The address."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: LocalHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, said, status=200, **headers):
        content = said if isinstance(said, bytes) else json.dumps(said).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def refuse(self, status, code, message):
        self.answer({"error": message}, status, X_Error_Code=code, X_Error_Message=message)

    def url(self, path):
        return f"http://{self.headers['Host']}/{path}"

    def do_POST(self):
        path, body = urlsplit(self.path).path, self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.hub.asked.append(f"POST {path}")
        if self.hub.broken:
            return self.refuse(self.hub.broken, "Broken", "the server is ill")
        if path == "/api/validate-yaml":
            _, front, _ = json.loads(body)["content"].split("---\n", 2)
            assert yaml.safe_load(front)["library_name"]
            return self.answer({"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            return self.refuse(401, "", "Invalid credentials")
        if path == "/api/repos/create":
            said = json.loads(body)
            name = f"{said['organization']}/{said['name']}"
            if name in self.hub.repos:
                return self.answer({"url": self.url(name), "error": "You already created this model repo"}, 409)
            self.hub.repos[name] = [{}]
            self.hub.private[name] = said.get("visibility", "public") == "private" or said.get("private", False)
            return self.answer({"url": self.url(name)})
        _, _, _, user, name, what, *_ = path.split("/")
        if what == "preupload":
            files = [file["path"] for file in json.loads(body)["files"]]
            ways = [{"path": file, "uploadMode": "regular", "shouldIgnore": False} for file in files]
            return self.answer({"files": ways})
        lines = [json.loads(line) for line in body.splitlines() if line]
        added = {
            line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"
        }
        commits = self.hub.repos[f"{user}/{name}"]
        commits.append(commits[-1] | added)
        sha = self.hub.sha(len(commits) - 1)
        return self.answer({"success": True, "commitOid": sha, "commitUrl": self.url(f"{user}/{name}/commit/{sha}")})

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        if self.hub.broken:
            return self.refuse(self.hub.broken, "Broken", "the server is ill")
        parts = path.removeprefix("/api/models").split("/")[1:]
        repo, what = "/".join(parts[:2]), parts[2:]
        if repo not in self.hub.repos:
            return self.refuse(404, "RepoNotFound", "Repository not found")
        found = self.hub.commit_at(repo, what[1] if what else "main")
        if found is None:
            return self.refuse(404, "RevisionNotFound", "Invalid rev id")
        files, sha = found
        if what[:1] == ["resolve"]:
            content = files["/".join(what[2:])]
            return self.answer(content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit=sha)
        if what[:1] == ["tree"]:
            listed = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in files.items()
            ]
            return self.answer(listed)
        names = [{"rfilename": name} for name in files]
        about = {"id": repo, "modelId": repo, "sha": sha, "private": self.hub.private[repo], "siblings": names}
        return self.answer(about | {"tags": []})

    do_HEAD = do_GET
