"""Make the pictures in docs/images that show pages: python tools/screenshots.py MODEL.

Needs Chromium on the PATH.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

IMAGES = Path(__file__).parents[1] / "docs" / "images"
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_COLOURS = 128


def shoot(page: Path, target: Path, width: int, height: int) -> None:
    """Picture the top of a page at its own size, in few enough colours to stay small."""
    browser = next((found for name in _BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        sys.exit(f"no browser found; install one of {', '.join(_BROWSERS)}")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    size = f"--window-size={width},{height}"
    command = [browser, *flags, size, f"--screenshot={target.resolve()}", page.resolve().as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    with Image.open(target) as picture:
        picture.convert("RGB").quantize(_COLOURS).save(target, optimize=True)


def inspect(model: str) -> None:
    """The report of `ant-hf inspect`, down to the fragments."""
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "inspect.html"
        command = [sys.executable, "-c", "from ant_hf.cli import main; main()", "inspect", model]
        subprocess.run([*command, "--html", str(page)], check=True, stdout=subprocess.DEVNULL)
        shoot(page, IMAGES / "inspect.png", 1100, 1300)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="model folder, for example runs/quickstart/final")
    inspect(parser.parse_args().model)
