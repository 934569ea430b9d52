"""Figures, card and hashes of a release folder again, after a change to the template: its records stay.

python tools/render_release.py release/Ant-10M
"""

from __future__ import annotations

import sys
from pathlib import Path

from ant_hf.card.eval_results import HubTask
from ant_hf.errors import AntError
from ant_hf.release.build import finish
from ant_hf.utils.files import read_json
from ant_hf.utils.names import RELEASE


def render(folder: Path) -> None:
    """Draw and write what `ant-hf card` makes of a release's records.

    Raises:
        AntError: the folder is not a release, or its card contradicts itself.
    """
    release = read_json(folder / RELEASE, "release record", "Make a release first: ant-hf card")
    listed = {name: HubTask(**task) for name, task in release.get("benchmarks", {}).items()}
    linked = release.get("gguf_repository")
    finish(folder, release["repository"], release["license"], release["made_of"], listed, linked)


if __name__ == "__main__":
    try:
        render(Path(*sys.argv[1:2]))
    except AntError as error:
        sys.exit(f"error: {error}")
