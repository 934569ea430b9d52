"""Make the pictures of pages in docs/images: python tools/screenshots.py release/Ant-10M.

Needs Chromium on the PATH and `pip install -e '.[demo,dev]'`.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, expect, sync_playwright

from ant_hf.demo.page import launch, load_page

IMAGES = Path(__file__).parents[1] / "docs" / "images"
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_COLOURS = 128


def demo(browser: Browser, model: str, prompt: str, target: Path) -> None:
    """The page after one generation with the card's sampling, seed 0, and what else one fragment could be."""
    page_here = launch(load_page([model]), server_name="127.0.0.1")
    page = browser.new_page(viewport={"width": 1060, "height": 820})
    page.goto(page_here.local_url)
    page.get_by_label("Keep this seed").check()
    page.get_by_label("Prompt").fill(prompt)
    page.keyboard.press("Control+Enter")
    expect(page.locator("#status")).to_contain_text("Done", timeout=120_000)
    page.locator("#fragments-0 .f").nth(9).click()
    expect(page.locator("#alternatives-0 button").first).to_be_visible()
    page.get_by_role("heading", level=1).hover()
    page.screenshot(path=target)
    page.close()
    page_here.close(verbose=False)


def inspect(browser: Browser, model: str, target: Path) -> None:
    """The report of `ant-hf inspect`, down to the fragments."""
    page = browser.new_page(viewport={"width": 1100, "height": 1294})
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "inspect.html"
        command = [sys.executable, "-c", "from ant_hf.cli.main import main; main()", "inspect", model]
        subprocess.run([*command, "--html", str(report)], check=True, stdout=subprocess.DEVNULL)
        page.goto(report.as_uri())
        page.screenshot(path=target)
    page.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="model folder or Hub id")
    parser.add_argument("--prompt", default="A volcano is", help="for the demo (default: %(default)s)")
    options = parser.parse_args()
    path = next((found for name in _BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        sys.exit(f"no browser found; install one of {', '.join(_BROWSERS)}")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        demo(browser, options.model, options.prompt, IMAGES / "demo.png")
        inspect(browser, options.model, IMAGES / "inspect.png")
        browser.close()
    for name in ("demo.png", "inspect.png"):
        # Few enough colours to stay small.
        with Image.open(IMAGES / name) as picture:
            picture.convert("RGB").quantize(_COLOURS).save(IMAGES / name, optimize=True)


if __name__ == "__main__":
    main()
