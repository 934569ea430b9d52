"""A static site's parts that tests do not wait for: npm's packages and the export, a few bytes each."""

import json
import shutil
from pathlib import Path

from ant_hf.demo import site
from ant_hf.demo.vendor import PACKAGES
from ant_hf.export import onnx


def fake_node_modules(folder):
    """What npm would have installed, with other bytes."""
    for package in PACKAGES:
        for name in package.files:
            file = folder / package.name / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{package.name}/{name}")
        (folder / package.name / "package.json").write_text(json.dumps({"version": package.version}))
    return folder


def fake_export(monkeypatch, scratch):
    """Exports are tested where they are written; here the graphs are their names."""

    def export(model, to):
        folder = scratch / f"{to}-export"
        shutil.copytree(Path(model), folder, dirs_exist_ok=True)
        (folder / "onnx").mkdir(exist_ok=True)
        for kind in onnx.TYPES.values():
            (folder / "onnx" / kind.file).write_text(kind.file)
        return folder, {}

    monkeypatch.setattr(site, "export", export)
