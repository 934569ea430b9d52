"""A small Hub on 127.0.0.1: the HTTP API that huggingface_hub's LFS path speaks, with faults on demand."""

import asyncio
import hashlib
import itertools
import json
import logging
import re
import socket
import threading
from base64 import b64decode
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

import uvicorn
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response

from hub.faults import Faults
from hub.metadata_rules import problems
from hub.store import Repository, git_oid

_ID = r"(?P<owner>[^/]+)/(?P<name>[^/]+)"
_LFS_SUFFIXES = (".safetensors", ".gguf", ".bin", ".pt", ".pth", ".png")


class HubError(Exception):
    def __init__(self, status: int, message: str, code: str | None = None, commit: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.commit = status, message, code, commit

    def response(self) -> Response:
        headers = {"X-Error-Message": self.message} if self.message.isprintable() else {}
        if self.code:
            headers["X-Error-Code"] = self.code
        if self.commit:
            headers["X-Repo-Commit"] = self.commit
        return JSONResponse({"error": self.message}, self.status, headers)


class CutError(Exception):
    """Raised to drop the connection in the middle of an answer."""


class Hub:
    """The application and its state.

    Args:
        root: folder of the repositories.
        tokens: user (`name`, `role`, `orgs`) by access token.
    """

    def __init__(self, root: Path, tokens: dict[str, dict]) -> None:
        self.root, self.tokens = root, tokens
        self.faults = Faults()
        self.requests: list[tuple[str, str]] = []
        # What was asked for when a Space was made, by its name.
        self.sdks: dict[str, str] = {}
        self.received_bytes = 0
        """Of large files."""
        self.endpoint = ""
        self.benchmarks: list[str] = []
        """Data sets that it lists as benchmarks."""
        self.publishers: dict[str, str] = {}
        """Identity of the CI job that may publish to a repository, by its name (`spaces/owner/name`)."""
        self._signatures = itertools.count()
        self._expired: set[str] = set()
        self._routes = [(m, re.compile(p), getattr(self, f"_{f}")) for m, p, f in ROUTES]

    def repository(self, repo_id: str, kind: str = "models") -> Repository:
        return Repository(self.root / kind / repo_id)

    def count(self, method: str, pattern: str) -> int:
        """Requests seen so far."""
        return sum(m == method and bool(re.search(pattern, path)) for m, path in self.requests)

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        # The decoded path would lose %2F in revisions.
        path = scope["raw_path"].decode().partition("?")[0]
        self.requests.append((request.method, path))
        fault = self.faults.meet(request.method, path)
        kind = fault.kind if fault else None
        if kind == "cut":
            await request.stream().__anext__()
            _cut(send)
        if kind == "slow":
            await asyncio.sleep(fault.delay)
        if kind == "echo":
            response: Response = JSONResponse({"error": f"bad {request.headers.get('authorization')}"}, 500)
        elif isinstance(kind, int):
            response = HubError(kind, fault.message or f"injected fault {kind}").response()
        elif kind == "expired" or request.url.query in self._expired:
            self._expired.add(request.url.query)
            text = "<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"
            response = Response(
                f'<?xml version="1.0" encoding="UTF-8"?>\n{text}', 403, media_type="application/xml"
            )
        elif kind == "full":
            error = {"code": 403, "message": fault.message}
            objects = [each | {"error": error} for each in json.loads(await request.body())["objects"]]
            response = JSONResponse({"transfer": "basic", "objects": objects})
        else:
            body = await request.body()
            if kind == "race":
                self._someone_else_commits(path)
            response = self._answer(request, path, body)
        if kind == "cut after":
            _cut(send)
        await response(scope, receive, send)

    def _answer(self, request: Request, path: str, body: bytes) -> Response:
        try:
            for method, pattern, handle in self._routes:
                if request.method in method.split("|") and (match := pattern.fullmatch(path)):
                    parts = {k: unquote(v) if v is not None else v for k, v in match.groupdict().items()}
                    return handle(request, body, **parts)
            raise HubError(404, f"no such endpoint: {request.method} {path}")
        except HubError as error:
            return error.response()

    def _someone_else_commits(self, path: str) -> None:
        kind, owner, name = path.split("/")[2:5]
        self.repository(f"{owner}/{name}", kind).commit("main", "by someone else", {"theirs.txt": b"theirs"})

    # Who asks, and for what

    def _user(self, request: Request) -> dict:
        if "authorization" not in request.headers:
            raise HubError(401, "Invalid username or password.")
        token = request.headers["authorization"].removeprefix("Bearer ")
        if token not in self.tokens:
            raise HubError(401, "Invalid credentials in Authorization header")
        return self.tokens[token]

    def _writer(self, request: Request, owner: str) -> None:
        user = self._user(request)
        if user["role"] != "write" or owner not in (user["name"], *user.get("orgs", ())):
            raise HubError(403, f"You don't have the rights to write under the namespace {owner}")
        if only := user.get("only"):
            path = request.url.path
            is_it = re.search(rf"(^|/){only}(/|\.git)", path) and ("spaces/" in path) == ("spaces/" in only)
            if not is_it:
                raise HubError(403, f"This token is for {only} alone")

    def _readable(self, request: Request, kind: str, owner: str, name: str) -> Repository:
        repository = self.repository(f"{owner}/{name}", kind)
        # A token that is nobody's may not even read what is public.
        is_anonymous = "authorization" not in request.headers
        user = {} if is_anonymous else self._user(request)
        is_own = owner in (user.get("name"), *user.get("orgs", ()))
        if not repository.exists or (repository.state["private"] and not is_own):
            # Of what it does not show, the Hub tells strangers nothing.
            if is_anonymous:
                self._user(request)
            raise HubError(404, "Repository not found", "RepoNotFound")
        return repository

    def _revision(self, repository: Repository, revision: str) -> str:
        oid = repository.resolve(revision)
        if oid is None:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return oid

    # The endpoints

    def _exchange(self, request: Request, body: bytes) -> Response:
        """A CI job's identity for a token for one repository that trusts it."""
        values = json.loads(body)
        resource, who = values["resource"], values["subject_token"]
        if self.publishers.get(resource) != who:
            answer = {"error": "invalid_grant", "error_description": "no publisher matches"}
            return JSONResponse(answer, 400)
        token = f"hf_jwt_{hashlib.sha256(resource.encode()).hexdigest()}"
        owner = resource.split("/")[-2]
        self.tokens[token] = {"name": "[OIDC]", "role": "write", "orgs": [owner], "only": resource}
        return JSONResponse({"access_token": token, "token_type": "bearer", "expires_in": 3600})

    def _whoami(self, request: Request, body: bytes) -> Response:
        user = self._user(request)
        if "only" in user:
            raise HubError(401, "This token is not an account's")
        orgs = [{"type": "org", "name": org, "roleInOrg": "write"} for org in user.get("orgs", ())]
        access = {"displayName": "test", "role": user["role"], **user.get("access", {})}
        values = {"type": "user", "name": user["name"], "fullname": user["name"], "orgs": orgs}
        return JSONResponse(values | {"auth": {"type": "access_token", "accessToken": access}})

    def _create(self, request: Request, body: bytes) -> Response:
        values = json.loads(body)
        owner = values.get("organization") or self._user(request)["name"]
        self._writer(request, owner)
        repository = self.repository(f"{owner}/{values['name']}", f"{values.get('type') or 'model'}s")
        answer = {"url": f"{self.endpoint}/{repository.id}", "name": repository.id}
        if repository.exists:
            return JSONResponse({"error": "You already created this model repo", **answer}, 409)
        if values.get("type") == "space" and values.get("sdk") not in ("gradio", "static", "docker"):
            return JSONResponse({"error": "a Space needs an sdk"}, 400)
        repository.create(values.get("visibility") == "private" or bool(values.get("private")))
        if values.get("type") == "space":
            self.sdks[repository.id] = values["sdk"]
        return JSONResponse(answer)

    def _validate_yaml(self, request: Request, body: bytes) -> Response:
        values = json.loads(body)
        found = problems(values["content"], values["repoType"])
        errors = [{"message": problem} for problem in found]
        return JSONResponse({"errors": errors, "warnings": []}, 400 if found else 200)

    def _preupload(
        self, request: Request, body: bytes, kind: str, owner: str, name: str, revision: str
    ) -> Response:
        repository = self._readable(request, kind, owner, name)
        self._writer(request, owner)
        there = repository.files(self._revision(repository, revision))
        answers = []
        for file in json.loads(body)["files"]:
            known = there.get(file["path"], {})
            mode = "lfs" if file["path"].endswith(_LFS_SUFFIXES) else "regular"
            oid = {"oid": known["lfs"] if mode == "lfs" else known["oid"]} if known else {}
            answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, **oid})
        return JSONResponse({"files": answers})

    def _lfs_batch(self, request: Request, body: bytes, owner: str, name: str, kind: str | None) -> Response:
        repository = self.repository(f"{owner}/{name}", (kind or "models/").rstrip("/"))
        self._writer(request, owner)
        objects = []
        for entry in json.loads(body)["objects"]:
            base = f"{self.endpoint}/lfs/{kind or ''}{repository.id}/{entry['oid']}"
            address = f"{base}?X-Amz-Signature={next(self._signatures)}"
            if repository.lfs_path(entry["oid"]).is_file():
                objects.append(entry)
            else:
                actions = {"upload": {"href": address}, "verify": {"href": f"{base}/verify"}}
                objects.append({**entry, "actions": actions})
        return JSONResponse({"transfer": "basic", "objects": objects})

    def _lfs_put(
        self, request: Request, body: bytes, owner: str, name: str, oid: str, kind: str | None
    ) -> Response:
        if hashlib.sha256(body).hexdigest() != oid:
            raise HubError(400, "the bytes do not have this sha256")
        repository = self.repository(f"{owner}/{name}", (kind or "models/").rstrip("/"))
        repository.lfs_path(oid).write_bytes(body)
        self.received_bytes += len(body)
        return Response()

    def _lfs_verify(
        self, request: Request, body: bytes, owner: str, name: str, oid: str, kind: str | None
    ) -> Response:
        repository = self.repository(f"{owner}/{name}", (kind or "models/").rstrip("/"))
        path = repository.lfs_path(oid)
        if not path.is_file() or path.stat().st_size != json.loads(body)["size"]:
            raise HubError(404, "no such object")
        return JSONResponse({})

    def _commit(
        self, request: Request, body: bytes, kind: str, owner: str, name: str, revision: str
    ) -> Response:
        repository = self._readable(request, kind, owner, name)
        self._writer(request, owner)
        head = self._revision(repository, revision)
        lines = [json.loads(line) for line in body.splitlines()]
        header = lines[0]["value"]
        if (parent := header.get("parentCommit")) and not head.startswith(parent):
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        regular, lfs, deleted = {}, {}, []
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                regular[value["path"]] = b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if not repository.lfs_path(value["oid"]).is_file():
                    raise HubError(400, f"LFS object {value['oid']} was never uploaded")
                lfs[value["path"]] = (value["oid"], value["size"])
            else:
                deleted.append(value["path"])
        if (card := regular.get("README.md")) and (found := problems(card.decode(), kind.rstrip("s"))):
            raise HubError(400, "; ".join(found))
        oid = repository.commit(revision, header["summary"], regular, lfs, tuple(deleted))
        url = f"{self.endpoint}/{repository.id}/commit/{oid}"
        return JSONResponse({"success": True, "commitOid": oid, "commitUrl": url})

    def _info(
        self, request: Request, body: bytes, kind: str, owner: str, name: str, revision: str | None = None
    ) -> Response:
        repository = self._readable(request, kind, owner, name)
        oid = self._revision(repository, revision or "main")
        state, commit = repository.state, repository.read_commit(oid)
        return JSONResponse(
            {
                "_id": git_oid(repository.id.encode())[:24], "id": repository.id, "modelId": repository.id,
                "sha": oid, "private": state["private"], "tags": [], "downloads": 0, "likes": 0,
                "createdAt": state["created"], "lastModified": commit["date"], "gated": False,
                "siblings": [{"rfilename": path} for path in sorted(commit["files"])],
            }
        )  # fmt: skip

    def _datasets(self, request: Request, body: bytes) -> Response:
        if request.query_params.getlist("filter") != ["benchmark:official"]:
            raise HubError(400, "only benchmarks are listed here")
        return JSONResponse([{"_id": git_oid(each.encode())[:24], "id": each} for each in self.benchmarks])

    def _tree(
        self,
        request: Request,
        body: bytes,
        kind: str,
        owner: str,
        name: str,
        revision: str,
        path: str | None = None,
    ) -> Response:
        repository = self._readable(request, kind, owner, name)
        oid = self._revision(repository, revision)
        prefix = f"{path.strip('/')}/" if path else ""
        recursive = request.query_params.get("recursive", "").lower() in ("true", "1")
        entries: dict[str, dict] = {}
        for file, values in repository.files(oid).items():
            if not file.startswith(prefix):
                continue
            parents = file[len(prefix) :].split("/")[:-1]
            for depth in range(1, len(parents) + 1 if recursive else min(2, len(parents) + 1)):
                folder = prefix + "/".join(parents[:depth])
                entries[folder] = {
                    "type": "directory",
                    "path": folder,
                    "oid": git_oid(folder.encode()),
                    "size": 0,
                }
            if recursive or not parents:
                entries[file] = _entry(file, values)
        if prefix and not entries:
            raise HubError(404, f"{path} does not exist on {revision!r}", "EntryNotFound", oid)
        return JSONResponse(sorted(entries.values(), key=lambda entry: entry["path"]))

    def _paths_info(
        self, request: Request, body: bytes, kind: str, owner: str, name: str, revision: str
    ) -> Response:
        repository = self._readable(request, kind, owner, name)
        files = repository.files(self._revision(repository, revision))
        if "json" in request.headers.get("content-type", ""):
            wanted = json.loads(body)["paths"]
        else:
            wanted = [unquote(v.replace("+", " ")) for v in re.findall(r"paths=([^&]*)", body.decode())]
        return JSONResponse([_entry(path, files[path]) for path in wanted if path in files])

    def _refs(self, request: Request, body: bytes, kind: str, owner: str, name: str) -> Response:
        state = self._readable(request, kind, owner, name).state

        def refs(key: str, where: str) -> list[dict]:
            return [{"name": n, "ref": f"{where}/{n}", "targetCommit": o} for n, o in state[key].items()]

        return JSONResponse(
            {"branches": refs("branches", "refs/heads"), "tags": refs("tags", "refs/tags"), "converts": []}
        )

    def _commits(
        self, request: Request, body: bytes, kind: str, owner: str, name: str, revision: str
    ) -> Response:
        repository = self._readable(request, kind, owner, name)
        history = repository.history(self._revision(repository, revision))
        return JSONResponse(
            [
                {"id": c["oid"], "title": c["title"], "message": "", "date": c["date"], "authors": []}
                for c in history
            ]
        )

    def _add_ref(
        self, request: Request, body: bytes, kind: str, owner: str, name: str, what: str, revision: str
    ) -> Response:
        repository = self._readable(request, kind, owner, name)
        self._writer(request, owner)
        values = json.loads(body or b"{}")
        if what == "tag":
            added = repository.add_ref("tags", values["tag"], self._revision(repository, revision))
        else:
            start = self._revision(repository, values.get("startingPoint") or "main")
            added = repository.add_ref("branches", revision, start)
        if not added:
            raise HubError(409, "Reference already exists")
        return JSONResponse({}, 201)

    def _resolve(
        self, request: Request, body: bytes, kind: str | None, owner: str, name: str, revision: str, path: str
    ) -> Response:
        repository = self._readable(request, (kind or "models/").rstrip("/"), owner, name)
        if repository.state.get("gated"):
            status = 403 if "authorization" in request.headers else 401
            raise HubError(status, f"Access to model {repository.id} is restricted.", "GatedRepo")
        oid = self._revision(repository, revision)
        file = repository.files(oid).get(path)
        if file is None:
            raise HubError(404, f"Entry not found: {path}", "EntryNotFound", oid)
        headers = {"X-Repo-Commit": oid, "ETag": f'"{file["oid"]}"'}
        if "lfs" in file:
            headers |= {"X-Linked-Etag": f'"{file["lfs"]}"', "X-Linked-Size": str(file["size"])}
        # Answers ranges, with which an interrupted download continues.
        return FileResponse(repository.content_path(file), headers=headers)


ROUTES = [
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/oauth/token", "exchange"),
    ("POST", r"/api/repos/create", "create"),
    ("POST", r"/api/validate-yaml", "validate_yaml"),
    ("POST", rf"/api/(?P<kind>models|datasets|spaces)/{_ID}/preupload/(?P<revision>[^/]+)", "preupload"),
    ("POST", rf"/(?P<kind>datasets/|spaces/)?{_ID}\.git/info/lfs/objects/batch", "lfs_batch"),
    ("PUT", rf"/lfs/(?P<kind>datasets/|spaces/)?{_ID}/(?P<oid>[0-9a-f]{{64}})", "lfs_put"),
    ("POST", rf"/lfs/(?P<kind>datasets/|spaces/)?{_ID}/(?P<oid>[0-9a-f]{{64}})/verify", "lfs_verify"),
    ("POST", rf"/api/(?P<kind>models|datasets|spaces)/{_ID}/commit/(?P<revision>[^/]+)", "commit"),
    ("GET", r"/api/datasets", "datasets"),
    ("GET", rf"/api/(?P<kind>models|datasets|spaces)/{_ID}", "info"),
    ("GET", rf"/api/(?P<kind>models|datasets|spaces)/{_ID}/revision/(?P<revision>[^/]+)", "info"),
    ("GET", rf"/api/(?P<kind>models|datasets|spaces)/{_ID}/tree/(?P<revision>[^/]+)(/(?P<path>.+))?", "tree"),
    ("POST", rf"/api/(?P<kind>models|datasets|spaces)/{_ID}/paths-info/(?P<revision>[^/]+)", "paths_info"),
    ("GET", rf"/api/(?P<kind>models|datasets|spaces)/{_ID}/refs", "refs"),
    ("GET", rf"/api/(?P<kind>models|datasets|spaces)/{_ID}/commits/(?P<revision>[^/]+)", "commits"),
    (
        "POST",
        rf"/api/(?P<kind>models|datasets|spaces)/{_ID}/(?P<what>tag|branch)/(?P<revision>[^/]+)",
        "add_ref",
    ),
    ("GET|HEAD", rf"/(?P<kind>datasets/|spaces/)?{_ID}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
]


def _entry(path: str, file: dict) -> dict:
    entry = {"type": "file", "path": path, "size": file["size"], "oid": file["oid"]}
    if "lfs" in file:
        entry["lfs"] = {"oid": file["lfs"], "size": file["size"], "pointerSize": 134}
    return entry


def _cut(send: Callable) -> None:
    """Drop the connection; ASGI has no word for it, so uvicorn's own transport is reached for."""
    send.__self__.transport.abort()
    raise CutError


class RunningHub:
    """The server in a thread of this process, on a free port; a context manager."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        hub.endpoint = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        # A cut connection is logged as an error of the application: that is the point of it.
        config = uvicorn.Config(
            hub, log_config=None, log_level=logging.CRITICAL, access_log=False, lifespan="off"
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), daemon=True)

    def __enter__(self) -> Hub:
        self._thread.start()
        while not self._server.started:
            self._thread.join(0.01)
        return self.hub

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._server.force_exit = True
        self._thread.join(10)
        self._socket.close()
