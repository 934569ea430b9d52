"""Make the pictures of pages in docs/images: python tools/screenshots.py release/Ant-10M.

Needs Chromium on the PATH, npm's registry once, and `pip install -e '.[demo,dev]'`. A model without
ONNX files beside it needs `onnx` too.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, expect, sync_playwright

from ant_hf.demo.page import launch, load_page
from ant_hf.demo.site import SiteOptions, make_site

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


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def site(browser: Browser, model: str, prompt: str) -> None:
    """The static page after one generation with seed 7: on a desk, and on a phone in the dark."""
    with tempfile.TemporaryDirectory() as folder:
        make_site([model], Path(folder) / "site", SiteOptions(("q8",)))
        handler = functools.partial(_Quiet, directory=Path(folder) / "site")
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for name, width, height, colours in (
            ("browser.png", 1240, 1010, "light"),
            ("browser-phone.png", 390, 1180, "dark"),
        ):
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=colours)
            page.goto(f"http://127.0.0.1:{server.server_port}/")
            # On a phone they are folded.
            page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
            page.fill("#seed", "7")
            page.set_checked("#pin", True)
            page.fill("#prompt", prompt)
            page.press("#prompt", "Enter")
            expect(page.locator("#status")).to_have_text("Done.", timeout=120_000)
            page.locator(":is(.s4, .s5, .s6):not(.given)").first.click()
            page.evaluate("scrollTo(0, 0)")
            page.screenshot(path=IMAGES / name)
            page.close()
        server.shutdown()


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
        site(browser, options.model, options.prompt)
        browser.close()
    for name in ("demo.png", "inspect.png", "browser.png", "browser-phone.png"):
        # Few enough colours to stay small.
        with Image.open(IMAGES / name) as picture:
            picture.convert("RGB").quantize(_COLOURS).save(IMAGES / name, optimize=True)


if __name__ == "__main__":
    main()
