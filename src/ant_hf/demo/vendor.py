"""The programs of others that the static page runs with: pinned, taken from npm's registry, checked, cached.

They are neither in this repository nor in its wheel: each is taken when a site is made.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import io
import os
import shutil
import tarfile
import time
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from huggingface_hub import constants

from ant_hf.errors import AntError
from ant_hf.utils.console import progress_bar
from ant_hf.utils.files import read_json, whole_folder

REGISTRY = "https://registry.npmjs.org"
# Seconds without a byte, and for one whole file.
_SILENCE, _LONGEST = 30.0, 600.0
_PIECE = 1 << 18
_OFFLINE = (
    "Check the network; or run npm install {} on a computer that has one, and pass its folder: --vendor "
    "node_modules"
)


@dataclass(frozen=True)
class Package:
    """One package of npm's registry, and the files of it that are taken."""

    name: str
    version: str
    integrity: str
    """The registry's sha512 of the packed file, in base64."""
    files: tuple[str, ...]

    @property
    def folder(self) -> str:
        """Its name without the owner: the name of its folder in a site, too."""
        return self.name.rpartition("/")[2]


_RUNTIME, _WEBGPU = "dist/ort-wasm-simd-threaded", ".asyncify"
# transformers.js 4.3.1 has this ONNX Runtime's JavaScript in itself, and jinja.
PACKAGES = (
    Package(
        "@huggingface/transformers",
        "4.3.1",
        "5+voSeUCFK6PCKlY15dPhNOKq3/zOTxDN7oC+Wy9dFb1QZ0TSQomZRRy7URRK8YRuUoE9fGMQTTPC5d/pWBJhA==",
        ("dist/transformers.min.js", "LICENSE"),
    ),
    Package(
        "@huggingface/jinja",
        "0.5.11",
        "YzEzwM5oQf4r0vs7ifWQ+yuVR1YkAHrjERQ+a8WRsStHHp4NRBg+NesjiFc+X2AFUpRvvrIeHDS1xFy9jY/IjQ==",
        ("LICENSE",),
    ),
    Package(
        "onnxruntime-web",
        "1.31.0-dev.20260914-8d85527a0",
        "Iy7rtadoBgxS/LLvDr3QW38DB1PNXRnr0GJMcL0TAt7c9qjgVQl83UlGCVyeAnK2InpmW8Uc3PL8XIuqtDeF6g==",
        tuple(f"{_RUNTIME}{kind}.{end}" for kind in ("", _WEBGPU) for end in ("mjs", "wasm")),
    ),
)


def find_packages(given: Path | None = None) -> dict[Package, Path]:
    """The folder of each package: in a `node_modules` that is given, else in the cache, filled when needed.

    Raises:
        AntError: the folder lacks a file or holds another version; the registry does not answer in time, or
            gives another file than the pinned one.
    """
    return {package: _in_folder(package, given) if given else _in_cache(package) for package in PACKAGES}


def copy_packages(found: dict[Package, Path], target: Path, webgpu: bool) -> None:
    """Copy what a site needs, each package's files into a folder of their own, with their licences.

    Args:
        webgpu: also the larger runtime that computes on graphics cards.
    """
    for package, folder in found.items():
        into = target / package.folder
        into.mkdir(parents=True)
        for name in (name for name in package.files if webgpu or _WEBGPU not in name):
            shutil.copyfile(folder / name, into / Path(name).name)
    # npm's package lacks them; the same project's package for Python, which made the graphs, has them.
    licences = importlib.resources.files("onnxruntime")
    for name in ("LICENSE", "ThirdPartyNotices.txt"):
        (target / "onnxruntime-web" / name).write_bytes((licences / name).read_bytes())


def _in_folder(package: Package, given: Path) -> Path:
    # npm puts what a package needs beside it, or within.
    places = (given / package.name, given / PACKAGES[0].name / "node_modules" / package.name)
    files, folder = ("package.json", *package.files), next(filter(Path.is_dir, places), places[0])
    wanted = f"Fill the folder of --vendor: npm install {PACKAGES[0].name}@{PACKAGES[0].version}"
    if missing := [name for name in files if not (folder / name).is_file()]:
        raise AntError(f"{folder / missing[0]} is missing", hint=wanted)
    seen = read_json(folder / "package.json", "package", "").get("version")
    # Only its licence is taken, which all versions share.
    if seen != package.version and package.files != ("LICENSE",):
        raise AntError(
            f"{folder} has another version of {package.name}",
            seen=seen,
            expected=package.version,
            hint=wanted,
        )
    return folder


def _in_cache(package: Package) -> Path:
    folder = Path(constants.HF_HOME, "ant-hf", f"{package.folder}-{package.version}")
    if not folder.is_dir():
        packed = _download(package)
        with (
            whole_folder(folder) as partial,
            tarfile.open(fileobj=io.BytesIO(packed), mode="r:gz") as archive,
        ):
            for name in package.files:
                # In npm's archives all lies in one folder of this name.
                content = archive.extractfile(f"package/{name}")
                assert content is not None
                (partial / name).parent.mkdir(exist_ok=True)
                (partial / name).write_bytes(content.read())
    return folder


def _download(package: Package) -> bytes:
    """The packed file, checked against the pinned hash."""
    registry = os.environ.get("NPM_CONFIG_REGISTRY") or REGISTRY
    address = f"{registry.rstrip('/')}/{package.name}/-/{package.folder}-{package.version}.tgz"
    end, pieces = time.monotonic() + _LONGEST, list[bytes]()
    try:
        # The registry is the user's own choice, as for npm.
        with (
            urllib.request.urlopen(address, timeout=_SILENCE) as answer,  # noqa: S310
            progress_bar(f"getting {package.folder}", "B") as advance,
        ):
            total = int(answer.headers.get("Content-Length") or 0)
            while piece := answer.read(_PIECE):
                pieces.append(piece)
                advance(len(piece), total)
                if time.monotonic() > end:
                    raise TimeoutError(f"the download was not complete after {_LONGEST:.0f} s")
        if total and sum(map(len, pieces)) < total:
            raise ConnectionError("the connection was cut")
    except (OSError, ValueError, HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise AntError(
            f"the page needs {package.name} {package.version}, but {address} cannot be downloaded: {reason}",
            hint=_OFFLINE.format(f"{PACKAGES[0].name}@{PACKAGES[0].version}"),
        ) from None
    packed = b"".join(pieces)
    seen = base64.b64encode(hashlib.sha512(packed).digest()).decode()
    if seen != package.integrity:
        raise AntError(
            f"{address} is another file than the one that was published as {package.name} {package.version}",
            seen=f"sha512 {seen[:12]}",
            expected=package.integrity[:12],
            hint="A proxy may change files on the way, or npm's registry is set to a wrong address.",
        )
    return packed
