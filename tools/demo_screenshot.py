"""Make docs/images/demo.png: `python tools/demo_screenshot.py runs/quickstart/final`."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

IMAGE = Path(__file__).parents[1] / "docs" / "images" / "demo.png"
PROMPT = "In the beginning God created"


def demo_screenshot(model: str, image: Path = IMAGE) -> None:
    """The demo's page in the system's Chromium, after one generation with the card's sampling, seed 0.

    Raises:
        AntError: the model cannot be loaded.
    """
    from playwright.sync_api import expect, sync_playwright

    from ant_hf.demo.launching import launch, load_page

    page_here = launch(load_page([model]), server_name="127.0.0.1")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1060, "height": 600})
        page.goto(page_here.local_url)
        page.get_by_label("Prompt").fill(PROMPT)
        page.keyboard.press("Control+Enter")
        expect(page.locator("#status")).to_contain_text("Done", timeout=120_000)
        page.locator("#fragments-0 .f").nth(9).hover()
        page.screenshot(path=image, full_page=True)
        browser.close()
    page_here.close(verbose=False)


if __name__ == "__main__":
    demo_screenshot(*sys.argv[1:2])
