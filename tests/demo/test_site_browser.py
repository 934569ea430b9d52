"""The static page in a real browser: a plain file server, all other addresses cut off, one Chromium."""

import functools
import http.server
import importlib.util
import json
import math
import shutil
import threading
from pathlib import Path

import pytest
import torch
from conftest import TINY_CONFIG
from transformers import LlamaConfig, LlamaForCausalLM

from ant_hf.demo.site import SiteOptions, make_site
from ant_hf.model.loading import load_any

NODE_MODULES = Path(__file__).parents[1] / "node" / "node_modules"
AXE = NODE_MODULES / "axe-core" / "axe.min.js"
CHROMIUM = next((path for name in ("chromium", "chromium-browser") if (path := shutil.which(name))), None)
PACKAGES = ("playwright", "onnx", "onnxruntime", "onnxscript")
MISSING = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
MISSING += [] if CHROMIUM else ["chromium (apt install chromium)"]
if not (NODE_MODULES / "@huggingface/transformers").is_dir():
    MISSING.append("transformers.js (make node)")
if MISSING:
    pytest.skip(f"not installed: {', '.join(MISSING)}", allow_module_level=True)

from playwright.sync_api import expect  # noqa: E402 (only where it is installed)

# Two exports and a browser: tens of seconds.
pytestmark = pytest.mark.slow
PROMPTS = [
    "In the beginning", "And God said", "The king", "a", " of the", "1 2 3", "Gott \u00fcber\u00e4ll",
    "\N{ANT} \u4e2d", "two\nlines\n\n", "  spaces   ",
]  # fmt: skip
HOSTILE = "<img src=x onerror='window.hacked=1'><script>hacked=1</script>"
WAIT = 60_000


@pytest.fixture(scope="module")
def models(tiny_run, tmp_path_factory):
    """The tiny run, and one that nobody trained, with room for long texts that never end."""
    other = tmp_path_factory.mktemp("models") / "untrained"
    torch.manual_seed(0)
    sizes = {"max_position_embeddings": 512, "initializer_range": 0.2, "eos_token_id": None}
    model = LlamaForCausalLM(LlamaConfig(**TINY_CONFIG | sizes))
    model.save_pretrained(other)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tiny_run / "final" / name, other / name)
    values = json.loads((other / "tokenizer_config.json").read_text())
    (other / "tokenizer_config.json").write_text(json.dumps(values | {"eos_token": None}))
    return [tiny_run / "final", other]


@pytest.fixture(scope="module")
def address(models, tmp_path_factory):
    """Of the site, which lies in a folder of its server as a project's pages do."""
    root = tmp_path_factory.mktemp("www")
    with pytest.MonkeyPatch.context() as patch:
        # Exports go under the working directory.
        patch.chdir(tmp_path_factory.mktemp("exports"))
        runs = [shutil.copytree(model, Path(f"model-{at}").absolute()) for at, model in enumerate(models)]
        options = SiteOptions(("q8", "fp32"), NODE_MODULES, prompts=("In the beginning", "And God said"))
        make_site(list(map(str, runs)), root / "some" / "where", options)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=root))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/some/where/"
    server.shutdown()
    server.server_close()


class Visitor:
    """One person at the page."""

    def __init__(self, browser, address, **options):
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.requests, self.errors = [], []
        self.context.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(address)

    def status(self, text):
        expect(self.page.locator("#status")).to_have_text(text, timeout=WAIT)

    def write(self, prompt):
        self.page.fill("#prompt", prompt)
        self.page.press("#prompt", "Enter")
        self.status("Done.")

    def set(self, **values):
        for key, value in values.items():
            if isinstance(value, bool):
                self.page.set_checked(f"#{key}", value)
            else:
                self.page.fill(f"#{key}", str(value))

    def ids(self, pane, given=False):
        """Of the fragments that a model made, or was given."""
        which = ".f.given" if given else ".f:not(.given)"
        found = self.page.locator(".pane").nth(pane).locator(which)
        return [int(each) for each in found.evaluate_all("all => all.map(each => each.dataset.id)")]

    def text(self, pane=0):
        return self.page.locator(".text").nth(pane).text_content()


@pytest.fixture(scope="module")
def new_visitor(browser, address):
    visitors = []

    def new(after="", **options):
        visitors.append(Visitor(browser, address + after, **options))
        return visitors[-1]

    yield new
    for visitor in visitors:
        assert visitor.errors == []
        assert [url for url in visitor.requests if not url.startswith((address, "data:", "blob:"))] == []


@pytest.fixture(scope="module")
def shared_visitor(new_visitor):
    visitor = new_visitor("?dtype=fp32", permissions=["clipboard-read", "clipboard-write"])
    visitor.status("Ready.")
    return visitor


@pytest.fixture
def visitor(shared_visitor):
    """One person for most tests, with the card's settings; the models stay loaded."""
    shared_visitor.page.click("#reset")
    shared_visitor.set(greedy=False, pin=False, max_new_tokens=12)
    return shared_visitor


def test_it_writes_64_fragments_of_8_bits_from_a_folder_of_a_plain_server(new_visitor):
    visitor = new_visitor()
    visitor.page.click("#write")
    visitor.status("Done.")
    assert len(visitor.ids(1)) == 64
    assert "per second" in visitor.page.locator(".facts").nth(1).text_content()
    assert visitor.page.input_value("#dtype") == "q8"
    assert visitor.page.input_value("#device") == "wasm"


def test_nobody_can_press_write_before_the_page_listens(new_visitor):
    visitor = new_visitor(java_script_enabled=False)
    assert visitor.page.is_disabled("#write")


def test_greedy_texts_are_those_of_transformers(visitor, models):
    visitor.set(greedy=True, max_new_tokens=32)
    for penalty, prompts in ((1, PROMPTS), (1.5, PROMPTS[:3])):
        visitor.set(repetition_penalty=penalty)
        for prompt in prompts:
            visitor.write(prompt)
            for pane, folder in enumerate(models):
                model, tokenizer = load_any(folder)
                inputs = tokenizer(prompt, return_tensors="pt")["input_ids"]
                made = model.generate(
                    inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=32, do_sample=False,
                    repetition_penalty=float(penalty), pad_token_id=0,
                )  # fmt: skip
                assert visitor.ids(pane, given=True) == inputs[0].tolist()
                assert visitor.ids(pane) == made[0, len(inputs[0]) :].tolist()


def test_surprise_is_minus_log2_of_the_models_probability(visitor, models):
    visitor.write("In the beginning")
    model, _ = load_any(models[1])
    ids = visitor.ids(1, given=True) + visitor.ids(1)
    with torch.no_grad():
        nats = -torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), dim=-1)
    labels = visitor.page.locator(".pane").nth(1).locator(".f")
    told = labels.evaluate_all("all => all.map(each => each.getAttribute('aria-label'))")
    assert told[0].endswith("no surprise")
    for place, label in enumerate(told[1:], 1):
        bits = float(label.rsplit(", ", 1)[1].removesuffix(" bits"))
        assert bits == pytest.approx(float(nats[place - 1, ids[place]]) / math.log(2), abs=0.06)


def test_a_seed_repeats_a_text_and_stopping_changes_nothing(visitor):
    visitor.set(max_new_tokens=60)
    visitor.write("And God said")
    first, seed = visitor.ids(1), visitor.page.input_value("#seed")
    visitor.write("And God said")
    assert visitor.ids(1) != first
    visitor.set(seed=seed)
    assert visitor.page.is_checked("#pin")
    visitor.write("And God said")
    assert visitor.ids(1) == first
    visitor.set(max_new_tokens=20)
    visitor.write("And God said")
    for _ in range(2):
        visitor.page.click("#continue")
        visitor.status("Done.")
    assert visitor.ids(1) == first


def test_stop_is_there_while_it_writes(visitor):
    visitor.set(max_new_tokens=500)
    visitor.page.fill("#prompt", "In the")
    visitor.page.press("#prompt", "Enter")
    # Attached and not visible: a fragment that is half of a character has no width.
    expect(visitor.page.locator(".pane").nth(1).locator(".f:not(.given)").nth(5)).to_be_attached(timeout=WAIT)
    assert visitor.page.is_enabled("#stop")
    visitor.page.keyboard.press("Escape")
    visitor.status("Stopped.")
    count = len(visitor.ids(1))
    assert 5 < count < 500
    visitor.page.wait_for_timeout(300)
    assert len(visitor.ids(1)) <= count + 1
    assert not visitor.page.is_enabled("#stop")


def test_a_link_carries_prompt_settings_and_text(visitor, new_visitor):
    visitor.set(temperature=1.3, top_k=40, top_p=0.8, repetition_penalty=1.1, seed=99, max_new_tokens=15)
    visitor.write("The king & \u00fc #1")
    visitor.page.click("#link")
    expect(visitor.page.locator("#link")).to_have_text("Copied")
    link = visitor.page.evaluate("navigator.clipboard.readText()")
    assert link == visitor.page.url
    other = new_visitor(link[link.index("?") :])
    other.status("Done.")
    assert other.page.input_value("#prompt") == "The king & \u00fc #1"
    for key in ("temperature", "top_k", "top_p", "repetition_penalty", "max_new_tokens", "seed", "dtype"):
        assert other.page.input_value(f"#{key}") == visitor.page.input_value(f"#{key}")
    assert [other.ids(0), other.ids(1)] == [visitor.ids(0), visitor.ids(1)]
    visitor.page.locator(".copy").nth(1).click()
    expect(visitor.page.locator(".copy").nth(1)).to_have_text("Copied")
    assert visitor.page.evaluate("navigator.clipboard.readText()") == visitor.text(1)


def test_keys_alone_show_what_else_was_possible_and_go_on_from_it(visitor):
    visitor.set(seed=1)
    visitor.write("In the beginning")
    page, before = visitor.page, visitor.ids(0)
    fragments = page.locator(".pane").first.locator(".f")
    given = len(visitor.ids(0, given=True))
    page.locator(".copy").first.focus()
    page.keyboard.press("Tab")
    for _ in range(given + 1):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    choices = page.locator(".place").first.locator("li button")
    expect(choices.first).to_be_visible()
    shares = [float(each.removesuffix(" %")) for each in choices.locator(".share").all_text_contents()]
    assert shares[:8] == sorted(shares[:8], reverse=True)
    assert page.locator(".place [aria-current]").count() == 1
    other = choices.nth(0 if choices.nth(0).get_attribute("aria-current") is None else 1)
    name = other.locator(".name").text_content()
    other.focus()
    page.keyboard.press("Enter")
    visitor.status("Done.")
    after = visitor.ids(0)
    assert after[:1] == before[:1]
    assert after[1] != before[1]
    assert fragments.nth(given + 1).get_attribute("aria-label").startswith(name.replace("\u00b7", "\u00b7"))
    # The prompt's fragments are told, and cannot be others.
    fragments.nth(1).click()
    assert choices.first.is_disabled()


def test_who_chooses_an_end_of_the_text_gets_it(new_visitor):
    def every_fragment_is_an_end(route):
        answer = route.fetch()
        site = answer.json()
        for model in site["models"]:
            model["ends"] = list(range(TINY_CONFIG["vocab_size"]))
        route.fulfill(response=answer, json=site)

    visitor = new_visitor()
    visitor.page.route("**/site.json", every_fragment_is_an_end)
    visitor.page.reload()
    visitor.status("Ready.")
    visitor.write("In the beginning")
    (before,) = visitor.ids(0)
    pane = visitor.page.locator(".pane").first
    pane.locator(".f:not(.given)").click()
    pane.locator(".place li button:not([aria-current])").first.click()
    visitor.status("Done.")
    (after,) = visitor.ids(0)
    assert after != before
    expect(pane).to_contain_text("the model ended the text")


def test_a_wrong_number_is_marked_as_one(visitor):
    temperature = visitor.page.locator("#temperature")
    for value, invalid in (("0", "true"), ("0.5", "false"), ("", "true")):
        temperature.fill(value)
        expect(temperature).to_have_attribute("aria-invalid", invalid)


def test_fragments_can_be_shown_apart(visitor):
    visitor.write("Gott \u00fc")
    together = visitor.text(0)
    assert together.startswith("Gott \u00fc")
    visitor.page.check("#apart")
    apart = visitor.page.locator(".pane").first.locator(".f.given").all_text_contents()
    assert "\u00b7" in "".join(apart)
    assert "<C3>" in "".join(apart) or "\u00fc" in "".join(apart)
    visitor.page.uncheck("#apart")
    assert visitor.text(0) == together


def test_a_loop_is_told_while_it_writes(visitor):
    visitor.set(greedy=True, repetition_penalty=1, max_new_tokens=500)
    visitor.page.fill("#prompt", "In the")
    visitor.page.press("#prompt", "Enter")
    expect(visitor.page.locator(".loop").nth(1)).to_contain_text("It is in a loop", timeout=WAIT)
    visitor.page.click("#stop")
    visitor.status("Stopped.")


def test_what_cannot_be_is_explained_and_nothing_is_markup(visitor):
    for values, told in (
        ({"temperature": 0}, "Temperature is 0; it must be a number from 0.05 to 2"),
        ({"top_k": 1.5}, "Top-k is 1.5; it must be a whole number from 1 to 200"),
        ({"seed": -1}, "Seed is -1; it must be a whole number from 0 to 4,294,967,295"),
    ):
        visitor.page.click("#reset")
        visitor.set(**{"seed": 1, **values})
        visitor.page.press("#prompt", "Enter")
        visitor.status(told)
    visitor.set(seed=1)
    for prompt, told in (("", "The prompt is empty"), ("and so on " * 60, "and model-0 takes at most 63")):
        visitor.page.fill("#prompt", prompt)
        visitor.page.press("#prompt", "Enter")
        expect(visitor.page.locator("#status")).to_contain_text(told, timeout=WAIT)
    visitor.write(HOSTILE)
    visitor.page.locator(".f").nth(3).click()
    assert visitor.text(0).startswith(HOSTILE)
    assert visitor.page.locator("#texts :is(img, script)").count() == 0
    assert visitor.page.evaluate("window.hacked") is None


def test_the_theme_is_the_systems_until_it_is_chosen(visitor):
    page, colour = visitor.page, "getComputedStyle(document.body).backgroundColor"
    page.emulate_media(color_scheme="dark")
    dark = page.evaluate(colour)
    page.emulate_media(color_scheme="light")
    light = page.evaluate(colour)
    assert light != dark
    page.click("#theme")
    page.click("#theme")
    assert page.evaluate(colour) == dark
    page.click("#theme")
    assert page.evaluate(colour) == light


@pytest.mark.parametrize(
    ("width", "scheme"), [(390, "dark"), (390, "light"), (1440, "dark"), (1440, "light")]
)
def test_it_fits_and_axe_finds_nothing(new_visitor, width, scheme):
    # axe is put into the page, which its own policy forbids.
    visitor = new_visitor(
        "#prompt=In+the+beginning&seed=1&max_new_tokens=12", viewport={"width": width, "height": 844},
        color_scheme=scheme, bypass_csp=True,
    )  # fmt: skip
    visitor.status("Done.")
    page = visitor.page
    page.locator(".f").nth(4).click()
    for details in ("settings", "machine", "reading"):
        page.evaluate(f"document.getElementById('{details}').open = true")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    boxes = page.evaluate(
        """[...document.querySelectorAll("button, input, textarea, select, .f")]
           .map(e => e.getBoundingClientRect()).filter(box => box.width).map(box => [box.left, box.right])"""
    )
    assert len(boxes) > 30
    assert all(0 <= left < right <= width for left, right in boxes)
    if not AXE.is_file():
        pytest.skip("not installed: axe-core (make node)")
    page.add_script_tag(content=AXE.read_text())
    found = page.evaluate("axe.run()")["violations"]
    assert [(each["id"], [node["html"] for node in each["nodes"]][:3]) for each in found] == []
