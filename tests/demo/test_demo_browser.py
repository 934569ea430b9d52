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

from playwright.sync_api import expect  # noqa: E402 (only where it is installed)

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
    """The page's address; at the end Ctrl-C, while a page is busy, ends the server at once and quietly."""
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
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert time.monotonic() - began < 3
        said = log.read_text().splitlines()
        assert [line[:4] for line in said] == ["demo", "demo"], said
    finally:
        process.kill()
        process.wait()


class Visitor:
    """One person at the page, with a browser profile of their own."""

    def __init__(self, browser, address, **options):
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.requests, self.errors = [], []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.prompt = self.page.get_by_label("Prompt")
        self.open(address)

    def open(self, address):
        self.page.goto(address)
        expect(self.page.locator("#generate")).to_be_visible(timeout=30_000)

    def field(self, control):
        return self.page.locator(f"#{control} input[type=number]")

    def set(self, control, value):
        self.field(control).fill(str(value))
        self.field(control).press("Tab")

    @property
    def seed(self):
        return self.field("seed").input_value()

    def start(self, text):
        self.prompt.fill(text)
        self.press(self.prompt.press, "Enter")

    def press(self, how, *what):
        # The status of the last one would do for this one's.
        self.page.evaluate("document.querySelector('#status p')?.remove()")
        how(*what)

    def done(self, word="Done"):
        expect(self.page.locator("#status")).to_contain_text(word, timeout=60_000)
        return [self.made(0), self.made(1)]

    def generate(self, text):
        self.start(text)
        return self.done()

    def made(self, model):
        return self.page.locator(f"#output-{model} .made").text_content()

    def made_some(self, model=1):
        self.page.wait_for_function(
            f"document.querySelector('#output-{model} .made').textContent.length > 10"
        )

    def enabled(self):
        buttons = {name: self.page.locator(f"#{name}") for name in ("generate", "continue", "stop")}
        return [name for name, button in buttons.items() if button.is_enabled()]


@pytest.fixture(scope="module")
def new_visitor(browser, address):
    visitors = []

    def new(**options):
        visitors.append(Visitor(browser, address, **options))
        return visitors[-1]

    yield new
    for visitor in visitors:
        assert visitor.errors == []
        elsewhere = [url for url in visitor.requests if not url.startswith((address, "data:", "blob:"))]
        assert elsewhere == []
    # The pages stay open, one of them busy, until the server has ended and the browser is closed.
    visitors[0].open(address)
    visitors[0].set("max_new_tokens", 1000)
    visitors[0].start("In the")
    visitors[0].made_some()


@pytest.fixture(scope="module")
def shared_visitor(new_visitor):
    return new_visitor(permissions=["clipboard-read", "clipboard-write"])


@pytest.fixture
def visitor(shared_visitor, address):
    """One person for all tests, who opens the page again."""
    shared_visitor.open(address)
    return shared_visitor


def test_text_streams_and_every_start_draws_another_seed_unless_it_is_kept(visitor):
    visitor.page.evaluate(
        """() => { window.seen = []; new MutationObserver(() => {
             const text = document.querySelector("#output-1 .made")?.textContent;
             if (text && window.seen.at(-1) !== text) window.seen.push(text);
           }).observe(document.body, {childList: true, subtree: true, characterData: true});
        }"""
    )
    visitor.set("max_new_tokens", 50)
    first = visitor.generate("In the beginning")
    seen = visitor.page.evaluate("window.seen")
    assert len(seen) >= 3
    assert all(later.startswith(earlier) for earlier, later in pairwise(seen))
    assert seen[-1] == first[1]
    facts = visitor.page.locator("#output-0 .facts").text_content()
    assert "mean surprise" in facts
    assert f"seed {visitor.seed}" in facts
    old = visitor.seed
    second = visitor.generate("In the beginning")
    assert visitor.seed != old
    assert len({*first, *second}) == 4
    visitor.page.get_by_label("Keep this seed").check()
    assert visitor.generate("In the beginning") == second
    visitor.set("seed", old)
    assert visitor.generate("In the beginning") == first
    visitor.page.get_by_label("Greedy").check()
    greedy = visitor.generate("In the beginning")
    assert visitor.generate("In the beginning") == greedy != first


def test_a_seed_that_is_written_is_kept_and_a_wrong_one_is_one_message(visitor):
    visitor.set("max_new_tokens", 8)
    visitor.set("seed", 7)
    assert visitor.page.get_by_label("Keep this seed").is_checked()
    assert visitor.generate("In the") == visitor.generate("In the")
    assert visitor.seed == "7"
    for wrong in ("-1", "1.5", "1e30", ""):
        visitor.set("seed", wrong)
        visitor.start("And God")
        assert visitor.done("expected a whole number from 0 to") == ["", ""]
        assert visitor.page.locator("#output-0 .given").text_content() == ""
        assert visitor.enabled() == ["generate"]
    # Field by field the same: a number that is sent before the slider mends it.
    visitor.set("seed", 7)
    visitor.field("top_p").fill("0")
    visitor.press(visitor.field("top_p").press, "Control+Enter")
    visitor.done("top p is out of range; saw 0")


def test_a_new_prompt_while_one_runs_takes_its_place(visitor):
    visitor.set("max_new_tokens", 1000)
    visitor.set("seed", 3)
    visitor.start("In the beginning")
    visitor.made_some()
    visitor.set("max_new_tokens", 8)
    restarted = visitor.generate("And God said")
    visitor.page.wait_for_timeout(300)
    assert visitor.page.locator("#output-1 .given").text_content() == "And God said"
    assert [visitor.made(0), visitor.made(1)] == restarted
    assert visitor.generate("And God said") == restarted


def test_stop_is_there_while_something_runs_and_a_closed_page_frees_its_place(visitor, address):
    assert visitor.enabled() == ["generate"]
    visitor.set("max_new_tokens", 1000)
    visitor.start("In the")
    visitor.made_some()
    assert visitor.enabled() == ["generate", "stop"]
    visitor.page.keyboard.press("Escape")
    stopped = visitor.done("Stopped")
    assert visitor.enabled() == ["generate", "continue"]
    visitor.page.wait_for_timeout(300)
    assert [visitor.made(0), visitor.made(1)] == stopped
    count = int(visitor.page.locator("#output-1 .facts").text_content().split("+ ")[1].split()[0])
    assert 0 < count < 1000
    for _ in range(5):
        visitor.start("In the")
        visitor.made_some()
        visitor.open(address)
        visitor.set("max_new_tokens", 1000)
    visitor.set("max_new_tokens", 8)
    visitor.generate("In the")


def test_a_text_goes_on_and_can_be_copied(visitor):
    visitor.set("max_new_tokens", 8)
    first = visitor.generate("In the")
    visitor.prompt.fill("another prompt")
    visitor.press(visitor.page.locator("#continue").click)
    longer = visitor.done()
    assert all(
        text.startswith(start) and len(text) > len(start) for text, start in zip(longer, first, strict=True)
    )
    assert "+ 16 tokens" in visitor.page.locator("#output-0 .facts").text_content()
    visitor.page.get_by_role("button", name="Copy").nth(1).click()
    expect(visitor.page.get_by_role("button", name="Copy").nth(1)).to_have_text("Copied")
    assert visitor.page.evaluate("navigator.clipboard.readText()") == "In the" + longer[1]


def test_a_click_tells_what_was_considered_and_another_goes_on_from_it(visitor):
    visitor.set("max_new_tokens", 8)
    before = visitor.generate("In the")
    fragments = visitor.page.locator("#fragments-1 .f")
    given = visitor.page.locator("#fragments-1 .of-prompt").count()
    fragments.nth(0).click()
    considered = visitor.page.locator("#alternatives-1 button")
    expect(considered).to_have_count(8)
    assert considered.first.is_disabled()
    fragments.nth(given + 2).click()
    expect(considered.first).to_be_enabled()
    shares = [float(text.split()[-2]) for text in considered.all_text_contents()]
    assert shares == sorted(shares, reverse=True)
    kept, other = fragments.all_text_contents()[: given + 2], considered.locator("nth=7")
    name = other.locator(".f").text_content()
    visitor.press(other.click)
    after = visitor.done()
    assert after[0] == before[0]
    assert fragments.all_text_contents()[: given + 3] == [*kept, name]
    assert fragments.count() == given + 3 + 8
    assert considered.count() == 0


def test_an_example_is_a_prompt(visitor):
    visitor.page.get_by_role("button", name="Once upon a time").click()
    expect(visitor.prompt).to_have_value("Once upon a time")


def test_keys_alone_are_enough_and_fragments_tell_their_bytes(visitor):
    page = visitor.page
    visitor.set("max_new_tokens", 8)
    visitor.prompt.fill("Gott \u00fc")
    visitor.prompt.press("Control+Enter")
    visitor.done()
    here = "document.activeElement.id || document.activeElement.className.split(' ')[0]"
    page.locator("#generate").focus()
    order = []
    for _ in range(4):
        page.keyboard.press("Tab")
        order.append(page.evaluate(here))
    assert order == ["continue", "copy", "copy", "f"]
    told = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert "bytes 47" in told
    assert "nats" in told
    page.keyboard.press("ArrowRight")
    page.keyboard.press("End")
    shown = "[document.activeElement.getAttribute('aria-label'),"
    shown += " getComputedStyle(document.activeElement, '::after').content]"
    label, tooltip = page.evaluate(shown)
    assert label != told
    assert label.split("bytes ")[1] in tooltip
    page.keyboard.press("Enter")
    expect(page.locator("#alternatives-0 button")).to_have_count(8)
    page.keyboard.press("Tab")
    visitor.press(page.keyboard.press, "Enter")
    visitor.done()
    assert "+ 16 tokens" in page.locator("#output-0 .facts").text_content()


def test_prompts_that_cannot_be_used_are_explained_and_nothing_is_markup(visitor):
    visitor.set("max_new_tokens", 8)
    visitor.generate("In the")
    for text, told in (("", "the prompt is empty"), ("and so on " * 60, "takes at most 63")):
        visitor.start(text)
        # Nothing is left that could be taken for this prompt's.
        assert visitor.done(told) == ["", ""]
        assert visitor.page.locator(".fragments").count() == 0
    assert "run/final: the prompt has" in visitor.page.locator("#status").text_content()
    for text in HOSTILE:
        visitor.generate(text)
        assert visitor.page.locator("#output-0 .given").text_content() == text
        shown = "".join(visitor.page.locator("#fragments-1 .of-prompt").all_text_contents())
        assert shown == text.replace(" ", "\N{MIDDLE DOT}")
    visitor.page.locator("#fragments-1 .f").first.click()
    expect(visitor.page.locator("#alternatives-1 button")).to_have_count(8)
    assert visitor.page.evaluate("window.hacked") is None
    visitor.generate("\N{HEBREW LETTER SHIN}\N{HEBREW LETTER LAMED} \N{ANT}")
    direction = "getComputedStyle(document.querySelector('#output-0 .text')).direction"
    assert visitor.page.evaluate(direction) == "rtl"
    markup = ", ".join(
        f"#page {place} {tag}" for place in (".output", "#pieces") for tag in ("img", "script")
    )
    assert visitor.page.locator(markup).count() == 0


def test_two_people_at_once_get_what_each_gets_alone(visitor, new_visitor):
    one, two = visitor, new_visitor()
    for number, each in enumerate((one, two)):
        each.set("max_new_tokens", 40)
        each.set("seed", number)
    one.start("And God said")
    two.start("The king")
    together = one.done(), two.done()
    alone = one.generate("And God said"), two.generate("The king")
    assert together == alone
    assert together[0] != together[1]


@pytest.mark.slow
def test_a_loop_is_told_while_it_runs(visitor):
    visitor.set("max_new_tokens", 1000)
    visitor.page.get_by_label("Greedy").check()
    visitor.set("repetition_penalty", 1)
    visitor.start("In the")
    loop = visitor.page.locator("#output-1 .loop")
    expect(loop).to_contain_text("The text is in a loop: it repeats the last", timeout=30_000)
    assert "Done" not in visitor.page.locator("#status").text_content()
    visitor.page.locator("#stop").click()
    visitor.done("Stopped")


def test_on_a_phone_all_is_within_its_width_and_the_controls_come_after_the_text(new_visitor):
    visitor = new_visitor(viewport={"width": 390, "height": 844}, color_scheme="dark")
    visitor.set("max_new_tokens", 8)
    visitor.generate("In the beginning " + "x" * 20)
    page = visitor.page
    page.locator("#fragments-1 .f").first.click()
    expect(page.locator("#alternatives-1 button")).to_have_count(8)
    page.wait_for_function(
        """() => { const [place, told] = ["#fragments-1 .f", "#alternatives-1"].map(
             name => document.querySelector(name).getBoundingClientRect());
           return place.top >= 0 && place.bottom <= told.top + 1 && told.bottom <= innerHeight + 1; }"""
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    places = page.evaluate(
        """[...document.querySelectorAll("button, input, textarea, .f")].map(e => e.getBoundingClientRect())
           .filter(box => box.width).map(box => [box.left, box.right])"""
    )
    assert len(places) > 40
    assert all(0 <= left < right <= 390 for left, right in places)
    order = ("#prompt", "#generate", "#output-0", "#temperature", "#seed", "#fragments-0")
    tops = [page.locator(place).bounding_box()["y"] for place in order]
    assert tops == sorted(tops)
    assert page.evaluate("document.body.classList.contains('dark')")


@pytest.mark.slow
def test_a_port_in_use_is_one_line(address, models):
    port = address.rstrip("/").rpartition(":")[2]
    result = subprocess.run(command(models[0], "--port", port), capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: port {port} of 127.0.0.1 cannot be used: Address already in use")
    assert result.stderr.count("\n") == 1


@pytest.mark.slow
def test_many_people_wait_for_their_turn(new_visitor):
    """More than generate at the same time; each gets what they would get alone."""
    visitors = [new_visitor() for _ in range(7)]
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
