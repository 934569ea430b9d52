"""Repositories on disk as the Hub keeps them: commits, branches, tags, LFS blobs by their sha256."""

import hashlib
import json
import time
from pathlib import Path


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def lfs_pointer(sha256: str, size: int) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


class Repository:
    """One repository; every change is a new commit file, which a restarted server reads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def id(self) -> str:
        return f"{self.folder.parent.name}/{self.folder.name}"

    @property
    def exists(self) -> bool:
        return (self.folder / "state.json").is_file()

    def create(self, private: bool, gated: bool = False) -> None:
        for name in ("lfs", "blobs", "commits"):
            (self.folder / name).mkdir(parents=True)
        self._write_state({"private": private, "gated": gated, "branches": {}, "tags": {}, "created": _now()})
        self.commit("main", "initial commit", {".gitattributes": b"*.safetensors filter=lfs -text\n"})

    @property
    def state(self) -> dict:
        return json.loads((self.folder / "state.json").read_text())

    def _write_state(self, values: dict) -> None:
        (self.folder / "state.json").write_text(json.dumps(values))

    def resolve(self, revision: str) -> str | None:
        """The commit a branch, a tag or a hash stands for."""
        state = self.state
        found = state["branches"].get(revision) or state["tags"].get(revision)
        if found:
            return found
        return revision if (self.folder / "commits" / f"{revision}.json").is_file() else None

    def read_commit(self, oid: str) -> dict:
        return json.loads((self.folder / "commits" / f"{oid}.json").read_text())

    def files(self, revision: str = "main") -> dict[str, dict]:
        oid = self.resolve(revision)
        return self.read_commit(oid)["files"] if oid else {}

    def history(self, revision: str = "main") -> list[dict]:
        oid, commits = self.resolve(revision), []
        while oid:
            commits.append({"oid": oid, **self.read_commit(oid)})
            oid = commits[-1]["parent"]
        return commits

    def commit(
        self,
        branch: str,
        title: str,
        regular: dict[str, bytes],
        lfs: dict[str, tuple[str, int]] | None = None,
        deleted: tuple[str, ...] = (),
    ) -> str:
        state = self.state
        parent = state["branches"].get(branch)
        files = dict(self.read_commit(parent)["files"]) if parent else {}
        for path in deleted:
            files = {name: f for name, f in files.items() if name != path and not name.startswith(f"{path}/")}
        for path, data in regular.items():
            oid = git_oid(data)
            (self.folder / "blobs" / oid).write_bytes(data)
            files[path] = {"oid": oid, "size": len(data)}
        for path, (sha256, size) in (lfs or {}).items():
            files[path] = {"oid": git_oid(lfs_pointer(sha256, size)), "size": size, "lfs": sha256}
        values = {"parent": parent, "title": title, "date": _now(), "files": files}
        oid = hashlib.sha1(json.dumps([values, time.time_ns()]).encode()).hexdigest()
        (self.folder / "commits" / f"{oid}.json").write_text(json.dumps(values))
        state["branches"][branch] = oid
        self._write_state(state)
        return oid

    def add_ref(self, kind: str, name: str, oid: str) -> bool:
        state = self.state
        if name in state[kind]:
            return False
        state[kind][name] = oid
        self._write_state(state)
        return True

    def content(self, path: str, revision: str = "main") -> bytes:
        return self.content_path(self.files(revision)[path]).read_bytes()

    def content_path(self, file: dict) -> Path:
        return self.lfs_path(file["lfs"]) if "lfs" in file else self.folder / "blobs" / file["oid"]

    def lfs_path(self, sha256: str) -> Path:
        return self.folder / "lfs" / sha256


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
