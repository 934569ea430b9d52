"""How long a static page takes to its first fragment in Chromium, and how many it writes per second then.

    ant-hf demo --static release/Ant-10M -o site --dtype q8 --dtype fp16 --dtype fp32
    python benchmarks/browser.py site

Serves the folder on this computer, opens it in a new profile for each run, and presses Write at once. Prints
the table of docs/browser.md: medians, in one thread of the processor, as a plain server allows it.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import json
import platform
import shutil
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, expect, sync_playwright

from ant_hf.card.markdown import table
from ant_hf.utils.console import say

WAIT = 300_000


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a folder while the block runs."""
    handler = functools.partial(_Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


def measure(browser: Browser, address: str, tokens: int) -> tuple[float, float]:
    """Seconds from the address to the first fragment, and fragments per second of one text."""
    context = browser.new_context()
    page, began = context.new_page(), time.perf_counter()
    page.goto(address)
    page.fill("#max_new_tokens", str(tokens))
    page.click("#write")
    page.locator(".f:not(.given)").first.wait_for(timeout=WAIT)
    first = time.perf_counter() - began
    expect(page.locator("#status")).to_have_text("Done.", timeout=WAIT)
    # The page is loaded and has written once: a text of its own, without the start.
    page.click("#write")
    expect(page.locator("#status")).not_to_have_text("Done.")
    expect(page.locator("#status")).to_have_text("Done.", timeout=WAIT)
    rate = next(
        part for part in page.locator(".facts").inner_text().split(" \u00b7 ") if "per second" in part
    )
    context.close()
    return first, float(rate.split()[0])


def main() -> None:
    """Measure a site, and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("site", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=128)
    options = parser.parse_args()
    (model,) = json.loads((options.site / "site.json").read_text(encoding="utf-8"))["models"]
    rows: list[Any] = []
    with served(options.site) as address, sync_playwright() as playwright:
        chromium = shutil.which("chromium") or shutil.which("chromium-browser")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        # In rounds, so that what else the computer does falls on all alike.
        found = {dtype: list[tuple[float, float]]() for dtype in model["dtypes"]}
        for _ in range(options.runs):
            for dtype, each in found.items():
                each.append(measure(browser, f"{address}?device=wasm&dtype={dtype}", options.tokens))
        for dtype, size in model["dtypes"].items():
            first, rate = map(statistics.median, zip(*found[dtype], strict=True))
            rows.append([dtype, f"{size / 1e6:.1f}", f"{first:.1f}", f"{rate:.0f}"])
        say(f"{model['name']}, Chromium {browser.version}, {platform.processor() or platform.machine()}")
        browser.close()
    say(table(["Precision", "File, MB", "First fragment, s", "Fragments per second"], rows))


if __name__ == "__main__":
    main()
