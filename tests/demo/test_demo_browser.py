"""The demo in a real browser: one server with two models, one headless Chromium, several people."""

import importlib.util
import shutil
import signal
import socket
import subprocess
import sys
import time
from itertools import pairwise

import pytest
import torch
from conftest import TINY_CONFIG
from transformers import LlamaConfig, LlamaForCausalLM

CHROMIUM = next((path for name in ("chromium", "chromium-browser") if (path := shutil.which(name))), None)
MISSING = [name for name in ("gradio", "playwright") if importlib.util.find_spec(name) is None]
if MISSING or CHROMIUM is None:
    missing = ", ".join([*MISSING, *([] if CHROMIUM else ["chromium (apt install chromium)"])])
    pytest.skip(f"not installed: {missing}", allow_module_level=True)

from playwright.sync_api import expect, sync_playwright  # noqa: E402 (only where it is installed)

CONTEXT = 1024
HOSTILE = ("<img src=x onerror='window.hacked=1'>", "<script>hacked=1</script>{{7*7}}${hacked=1}")


def command(*words):
    return [sys.executable, "-c", "from ant_hf.cli.main import main; main()", "demo", *map(str, words)]


@pytest.fixture(scope="module")
def models(tiny_run, tmp_path_factory):
    """The tiny run, and one that nobody trained, with room for long texts."""
    other = tmp_path_factory.mktemp("models") / "untrained"
    torch.manual_seed(0)
    sizes = {"max_position_embeddings": CONTEXT, "num_hidden_layers": 4, "initializer_range": 0.2}
    model = LlamaForCausalLM(LlamaConfig(**TINY_CONFIG | sizes))
    # Its texts shall be long.
    model.generation_config.eos_token_id = None
    model.save_pretrained(other)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tiny_run / "final" / name, other / name)
    return [tiny_run / "final", other]


@pytest.fixture(scope="module")
def address(models, tmp_path_factory):
    """The page's address; that Ctrl-C ends the server without a word too many is checked at the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("demo") / "log"
    with log.open("w") as handle:
        process = subprocess.Popen(
            command(*models, "--port", port), stdout=handle, stderr=handle, start_new_session=True
        )
    try:
        while "Ctrl-C" not in log.read_text():
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}/"
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        said = log.read_text().splitlines()
        assert [line[:4] for line in said] == ["demo", "demo"], said
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        # Chromium's own sandbox needs rights that a container's root does not have.
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


class Visitor:
    """One person at the page, with a browser profile of their own."""

    def __init__(self, browser, address, **options):
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.requests, self.errors = [], []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(address)
        expect(self.page.locator("#generate")).to_be_visible(timeout=30_000)
        self.prompt = self.page.get_by_label("Prompt")

    def set(self, control, value):
        field = self.page.locator(f"#{control} input[type=number]")
        field.fill(str(value))
        field.press("Tab")

    def start(self, text):
        self.prompt.fill(text)
        # The status of the last one would do for this one's.
        self.page.evaluate("document.querySelector('#status p')?.remove()")
        self.prompt.press("Enter")

    def done(self, word="Done"):
        expect(self.page.locator("#status")).to_contain_text(word, timeout=60_000)
        return [self.made(0), self.made(1)]

    def generate(self, text):
        self.start(text)
        return self.done()

    def made(self, model):
        return self.page.locator(f"#output-{model} .made").text_content()


@pytest.fixture
def visit(browser, address):
    visitors = []

    def new(**options):
        visitors.append(Visitor(browser, address, **options))
        return visitors[-1]

    yield new
    for visitor in visitors:
        assert visitor.errors == []
        elsewhere = [url for url in visitor.requests if not url.startswith((address, "data:", "blob:"))]
        assert elsewhere == []
        visitor.context.close()


def test_text_streams_and_the_same_seed_gives_it_again(visit):
    visitor = visit()
    visitor.page.evaluate(
        """() => { window.seen = []; new MutationObserver(() => {
             const text = document.querySelector("#output-1 .made")?.textContent;
             if (text && window.seen.at(-1) !== text) window.seen.push(text);
           }).observe(document.body, {childList: true, subtree: true, characterData: true});
        }"""
    )
    visitor.set("max_new_tokens", 100)
    long = visitor.generate("In the beginning")
    seen = visitor.page.evaluate("window.seen")
    assert len(seen) >= 3
    assert all(later.startswith(earlier) for earlier, later in pairwise(seen))
    assert seen[-1] == long[1]
    visitor.set("max_new_tokens", 32)
    first = visitor.generate("In the beginning")
    assert len({*first, *long}) == 4
    assert visitor.generate("In the beginning") == first
    visitor.set("seed", 1)
    assert visitor.generate("In the beginning") != first
    facts = visitor.page.locator("#output-0 .facts").text_content()
    assert "+ 32 tokens" in facts
    assert "mean surprise" in facts
    visitor.page.get_by_label("Greedy").check()
    greedy = visitor.generate("In the beginning")
    visitor.page.get_by_label("Greedy").uncheck()
    visitor.set("seed", 2)
    visitor.page.get_by_label("Greedy").check()
    assert visitor.generate("In the beginning") == greedy != first


def test_keys_alone_are_enough_and_fragments_tell_their_bytes(visit):
    visitor = visit()
    visitor.prompt.fill("Gott \u00fc")
    visitor.prompt.press("Control+Enter")
    visitor.done()
    visitor.prompt.focus()
    order = []
    for _ in range(4):
        visitor.page.keyboard.press("Tab")
        order.append(visitor.page.evaluate("document.activeElement.id || document.activeElement.role"))
    assert order == ["generate", "stop", "option", "option"]
    visitor.page.keyboard.press("Shift+Tab")
    told = visitor.page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert "bytes 47" in told
    assert "nats" in told
    visitor.page.keyboard.press("ArrowRight")
    visitor.page.keyboard.press("ArrowRight")
    shown = "[document.activeElement.getAttribute('aria-label'),"
    shown += " getComputedStyle(document.activeElement, '::after').content]"
    label, tooltip = visitor.page.evaluate(shown)
    assert label != told
    assert label.split("bytes ")[1] in tooltip


def test_prompts_that_cannot_be_used_are_explained_and_nothing_is_markup(visit):
    visitor = visit()
    visitor.start("")
    visitor.done("the prompt is empty")
    visitor.start("and so on " * 60)
    visitor.done("tokens and the model takes at most 63")
    assert "run/final: the prompt has" in visitor.page.locator("#status").text_content()
    for text in HOSTILE:
        visitor.generate(text)
        assert visitor.page.locator("#output-0 .given").text_content() == text
        shown = "".join(visitor.page.locator("#fragments-1 .of-prompt").all_text_contents())
        assert shown == text.replace(" ", "\N{MIDDLE DOT}")
    assert visitor.page.evaluate("window.hacked") is None
    assert visitor.page.locator(".output img, .output script, .fragments img, .fragments script").count() == 0


def test_two_people_at_once_get_what_each_gets_alone(visit):
    one, two = visit(), visit()
    two.set("seed", 7)
    for visitor in (one, two):
        visitor.set("max_new_tokens", 60)
    one.start("And God said")
    two.start("The king")
    together = one.done(), two.done()
    alone = one.generate("And God said"), two.generate("The king")
    assert together == alone
    assert together[0] != together[1]


def test_stop_ends_it(visit):
    visitor = visit()
    visitor.set("max_new_tokens", 1000)
    visitor.start("In the")
    visitor.page.wait_for_function("document.querySelector('#output-1 .made').textContent.length > 10")
    visitor.page.keyboard.press("Escape")
    stopped = visitor.done("Stopped")
    visitor.page.wait_for_timeout(300)
    assert [visitor.made(0), visitor.made(1)] == stopped
    count = int(visitor.page.locator("#output-1 .facts").text_content().split("+ ")[1].split()[0])
    assert 0 < count < 1000


@pytest.mark.slow
def test_a_loop_is_told_while_it_runs(visit):
    visitor = visit()
    visitor.set("max_new_tokens", 1000)
    visitor.page.get_by_label("Greedy").check()
    visitor.set("repetition_penalty", 1)
    visitor.start("In the")
    loop = visitor.page.locator("#output-1 .loop")
    expect(loop).to_contain_text("In a loop: the last", timeout=30_000)
    assert "Done" not in visitor.page.locator("#status").text_content()
    visitor.page.locator("#stop").click()
    visitor.done("Stopped")


def test_a_phone_is_wide_enough_in_the_dark(visit, tmp_path):
    visitor = visit(viewport={"width": 390, "height": 844}, color_scheme="dark")
    visitor.generate("In the beginning " + "x" * 20)
    page = visitor.page
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    places = page.evaluate(
        """[...document.querySelectorAll("button, input, textarea, .f")].map(e => e.getBoundingClientRect())
           .filter(box => box.width).map(box => [box.left, box.right])"""
    )
    assert len(places) > 40
    assert all(0 <= left < right <= 390 for left, right in places)
    assert page.evaluate("document.body.classList.contains('dark')")
    page.screenshot(path=tmp_path / "phone.png", full_page=True)
    assert (tmp_path / "phone.png").stat().st_size > 20_000


@pytest.mark.slow
def test_a_port_in_use_is_one_line(address, models):
    port = address.rstrip("/").rpartition(":")[2]
    result = subprocess.run(command(models[0], "--port", port), capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: port {port} of 127.0.0.1 cannot be used: Address already in use")
    assert result.stderr.count("\n") == 1


@pytest.mark.slow
def test_many_people_wait_for_their_turn(visit):
    """More than generate at the same time; each gets what they would get alone."""
    visitors = [visit() for _ in range(7)]
    for seed, visitor in enumerate(visitors):
        visitor.set("seed", seed)
        visitor.set("max_new_tokens", 60)
    for visitor in visitors:
        visitor.start("And God said")
    together = [visitor.done() for visitor in visitors]
    assert len({text for pair in together for text in pair}) == 14
    alone = visitors[0]
    for seed, expected in enumerate(together):
        alone.set("seed", seed)
        assert alone.generate("And God said") == expected
