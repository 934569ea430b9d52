"""The files of a Space that serves the demo of a published model: with Gradio, or static."""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

from ant_hf.demo.site import SiteOptions, site_in
from ant_hf.errors import AntError
from ant_hf.utils.files import inventory, whole_folder, write_json
from ant_hf.utils.names import CARD, RELEASE
from ant_hf.utils.provenance import install_command, source_commit

PACKAGE = "ant_hf"
_SOURCE = Path(__file__).parents[1]
# What app.py imports; everything that this needs is copied with it.
_ENTRY = f"{PACKAGE}.demo.page"


def make_space(run_dir: Path, repository: str, license_id: str) -> Path:
    """Write `space/` with the Gradio page into a run's folder, whole or not at all.

    The Space needs no release of this package on PyPI: it carries the modules that the page is made of.

    Args:
        repository: `owner/name` of the model on the Hub, and of the Space.

    Raises:
        AntError: Gradio, whose version the Space is to run, is not installed.
    """
    modules, needed = _closure()
    if "gradio" not in packages_distributions():
        raise AntError(
            "a Space needs the version of Gradio that is installed here, and Gradio is not installed",
            hint=install_command("demo"),
        )
    with whole_folder(run_dir / "space") as folder:
        # With the style sheet and script of the same name.
        for path in (file for module in modules for file in module.parent.glob(f"{module.stem}.*")):
            target = folder / PACKAGE / path.relative_to(_SOURCE)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
        (folder / "app.py").write_text(_app(repository), encoding="utf-8")
        (folder / "requirements.txt").write_text(_requirements(needed), encoding="utf-8")
        sdk = {
            "sdk": "gradio",
            "sdk_version": version("gradio"),
            "python_version": f"{sys.version_info.major}.{sys.version_info.minor}",
            "app_file": "app.py",
        }
        _describe(folder, repository, license_id, sdk)
    return run_dir / "space"


def make_static_space(
    run_dir: Path, model: str, repository: str, license_id: str, options: SiteOptions
) -> Path:
    """Write `space/` with the static page and the model in it into a run's folder, whole or not at all.

    Raises:
        AntError: as `site_in`.
    """
    with site_in(run_dir / "space", [model], replace(options, repository=repository)) as folder:
        # Pages that are isolated so may use several threads.
        headers = {
            "cross-origin-embedder-policy": "require-corp",
            "cross-origin-opener-policy": "same-origin",
            "cross-origin-resource-policy": "cross-origin",
        }
        _describe(folder, repository, license_id, {"sdk": "static", "custom_headers": headers})
    return run_dir / "space"


def _describe(folder: Path, repository: str, license_id: str, sdk: dict[str, Any]) -> None:
    """Write the Space's README.md, and the record by which it is published."""
    (folder / CARD).write_text(_readme(repository, license_id, sdk), encoding="utf-8")
    # Without a date: the same Space again is the same bytes, and nothing is sent.
    about = {"repository": repository, "license": license_id, "ant_hf_commit": source_commit()}
    files = inventory(folder, without=(RELEASE,))
    write_json(folder / RELEASE, {"schema": 1, **about, "files": files})


def _app(repository: str) -> str:
    return f'''"""Try {repository} in the browser: ant-hf demo, as a Space."""

from {_ENTRY} import serve_space

MODELS = ["{repository}"]

if __name__ == "__main__":
    serve_space(MODELS)
'''


def _readme(repository: str, license_id: str, sdk: dict[str, Any]) -> str:
    name, option = repository.rpartition("/")[2], " --static" if sdk["sdk"] == "static" else ""
    values = {
        "title": f"Try {name}",
        "emoji": "\N{ANT}",
        "colorFrom": "yellow",
        "colorTo": "red",
        **sdk,
        "models": [repository],
        "license": license_id,
    }
    # JSON values are YAML.
    metadata = "\n".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in values.items())
    return f"""---
{metadata}
---

# Try {name}

A page to try [{repository}](https://huggingface.co/{repository}): its text as it grows, the surprise of every
fragment, and a warning when it runs into a loop. Made by `ant-hf publish --space {sdk["sdk"]}`; the same page
runs on any computer with `ant-hf demo{option} {repository}`.
"""


def _requirements(imported: set[str]) -> str:
    """The versions installed here; the SDK brings Gradio itself."""
    owners = packages_distributions()
    names = sorted({owners[name][0].lower() for name in imported if name in owners} - {"gradio"})
    # A local build's suffix (+cpu) is on no index.
    return "".join(f"{name}=={version(name).partition('+')[0]}\n" for name in names)


def _closure() -> tuple[list[Path], set[str]]:
    """Files of this package that the page imports, packages among them, and other packages it imports."""
    waiting, files, others = [_ENTRY], set[Path](), set[str]()
    while waiting:
        for path in _files_of(waiting.pop()):
            if path in files:
                continue
            files.add(path)
            for name in _imported(path):
                if name.partition(".")[0] == PACKAGE:
                    waiting.append(name)
                elif (top := name.partition(".")[0]) not in sys.stdlib_module_names:
                    others.add(top)
    return sorted(files), others


def _files_of(name: str) -> Iterator[Path]:
    """A module's file and those of the packages it lies in; an imported object has none of its own."""
    parts = name.split(".")[1:]
    for depth in range(len(parts) + 1):
        path = _SOURCE.joinpath(*parts[:depth])
        yield from (p for p in (path / "__init__.py", path.with_suffix(".py")) if p.is_file())


def _imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
