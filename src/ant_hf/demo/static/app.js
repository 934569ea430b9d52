// The page: a prompt, each model's text as it grows, what else could have stood in a place, the settings, and
// the link that carries them. What a model computes is in worker.js, how it chooses in sampling.js.

import {loopPeriod} from "./sampling.js";
import {Model, hex} from "./model.js";

// Of the colour scale; Python writes colours.css for as many.
const BITS_PER_STEP = 1.5, STEPS = 10;
// New seeds are below it: short enough to write down.
const SEEDS = 10 ** 6;
const DTYPES = {q8: "8 bits", fp16: "16 bits", fp32: "32 bits"};
const DEVICES = {wasm: "Processor: WASM", webgpu: "Graphics: WebGPU"};
const CONTROLS = {
  temperature: {label: "Temperature", min: 0.05, max: 2, step: 0.05},
  top_k: {label: "Top-k", min: 1, max: 200, step: 1},
  top_p: {label: "Top-p", min: 0.05, max: 1, step: 0.05},
  repetition_penalty: {label: "Repetition penalty", min: 1, max: 3, step: 0.05},
  max_new_tokens: {label: "New fragments", min: 1, max: 1024, step: 1},
};

const $ = (id) => document.getElementById(id);
const query = new URLSearchParams(location.search);

// An element with attributes, event handlers and children.
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

const percent = (share) => share >= 0.9995 ? "100 %" : share >= 0.001 ? `${(100 * share).toFixed(1)} %` : share ? "< 0.1 %" : "0";
const megabytes = (bytes) => `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`;
const step = (bits) => Math.min(Math.floor(bits / BITS_PER_STEP), STEPS - 1);

function say(text, isError = false) {
  $("status").textContent = text;
  $("status").classList.toggle("error", isError);
}

// --- One model's text ---------------------------------------------------------------------------------------

class Pane {
  constructor(model, page) {
    Object.assign(this, {model, page, tokens: [], ended: "", seconds: 0, fresh: 0});
    const {name, repository} = model.facts;
    this.copyButton = make("button", {type: "button", class: "copy quiet", "aria-label": `Copy the text of ${name}`, disabled: true, onclick: () => this.copy()}, "Copy");
    this.text = make("div", {class: "text", dir: "auto", role: "listbox", "aria-label": `Text of ${name} in fragments`, tabindex: 0});
    this.facts = make("p", {class: "facts"});
    this.loop = make("p", {class: "loop", role: "alert", hidden: true});
    this.place = make("section", {class: "place", "aria-label": `Alternatives of ${name}`, hidden: true});
    this.element = make("section", {class: "pane", "aria-label": name},
      make("div", {class: "title"}, make("h2", {}, repository ? make("a", {href: `https://huggingface.co/${repository}`}, name) : name), this.copyButton), this.text, this.facts, this.loop, this.place);
    this.text.addEventListener("click", ({target}) => this.look(target.closest(".f")));
    this.text.addEventListener("keydown", (event) => this.key(event));
    this.clear();
  }

  clear() {
    this.tokens = [], this.ended = "";
    this.render();
  }

  get made() { return this.tokens.filter((token) => !token.given); }

  get written() { return this.tokens.map((token) => token.shown).join(""); }

  // All of the text again, as after a change of how it is shown.
  render() {
    this.decoder = new TextDecoder("utf-8", {ignoreBOM: true});
    this.place.hidden = true;
    this.spans = [];
    this.text.replaceChildren(...this.tokens.length ? [] : [make("span", {class: "hint", role: "option", "aria-disabled": "true"}, "What it writes appears here.")]);
    this.tokens.forEach((token) => this.show(token));
    this.tell();
  }

  // One more token at the end.
  show(token) {
    const {model, text} = this, special = model.isSpecial(token.id), apart = $("apart").checked;
    token.name = model.name(token.id);
    // A character of several tokens shows with its last one.
    token.shown = special ? "" : this.decoder.decode(model.bytes(token.id), {stream: true});
    const index = this.spans.push(null) - 1;
    const told = token.bits === null ? "the first, so no surprise" : `${token.bits.toFixed(1)} bits`;
    const colour = token.bits === null ? {} : {class: `s${step(token.bits)}`};
    const span = make("span", {
      class: ["f", colour.class, token.given && "given", special && "special", !apart && /^\n+$/.test(token.shown) && "line"].filter(Boolean).join(" "),
      role: "option", "aria-selected": "false", tabindex: index ? -1 : 0, "data-index": index, "data-id": token.id,
      "aria-label": `${token.name.trim()}, ${told}`, title: told,
    }, special || apart ? token.name : token.shown.replace(/^ (?=\S)/, ""));
    if (index === 0) text.tabIndex = -1, text.replaceChildren();
    this.spans[index] = span;
    // A space before a word is part of its fragment; without colour, words stay apart.
    text.append(...(!apart && /^ \S/.test(token.shown) ? [" "] : []), span);
  }

  add(token) {
    this.tokens.push(token);
    const {text} = this, atEnd = text.scrollTop + text.clientHeight >= text.scrollHeight - 40;
    this.show(token);
    if (atEnd) text.scrollTop = text.scrollHeight;
    this.tell();
  }

  // The line below the text, and the warning of a loop.
  tell() {
    const {tokens, made, model} = this, parts = [];
    this.copyButton.disabled = !tokens.length;
    if (made.length) parts.push(`${made.length} fragments`);
    if (this.fresh && this.seconds) parts.push(`${(this.fresh / this.seconds).toFixed(0)} per second`);
    if (made.length) parts.push(`${(made.reduce((sum, {bits}) => sum + bits, 0) / made.length).toFixed(1)} bits each`, this.how);
    if (this.ended) parts.push(this.ended);
    this.facts.textContent = parts.join(" \u00b7 ") || `${model.facts.parameters.toLocaleString("en")} parameters, context of ${model.facts.context.toLocaleString("en")} fragments`;
    const period = loopPeriod(made.map(({id}) => id));
    this.loop.hidden = !period;
    if (period) {
      const again = made.slice(-period).map(({shown}) => shown).join("");
      const text = `It is in a loop: the last ${period > 1 ? `${period} fragments come` : "fragment comes"} again and again: \u201c${again.trim()}\u201d. A repetition penalty above 1 helps.`;
      if (this.loop.textContent !== text) this.loop.textContent = text;
    }
  }

  async read(prompt) {
    this.clear();
    const {told, tooLong} = await this.model.ask("read", {prompt, context: this.model.facts.context});
    if (tooLong) throw new Error(`the prompt has ${tooLong} fragments, and ${this.model.facts.name} takes at most ${this.model.facts.context - 1}`);
    if (!told.length) throw new Error("the prompt is empty");
    this.tokens = told.map((token) => ({...token, given: true}));
    this.render();
  }

  // Writes until enough is written, the model ends the text, or nobody wants more.
  async write(settings, wanted) {
    const {prefix, ends, context} = this.model.facts, start = performance.now();
    this.ended = "", this.fresh = 0, this.seconds = 0;
    this.how = settings.greedy ? "greedy" : `seed ${settings.seed}`;
    if (ends.includes(this.made.at(-1)?.id)) this.tokens.pop(), this.render();
    await this.model.ask("resume", {made: this.tokens.map(({id}) => id)});
    this.element.classList.add("writing");
    try {
      let last = null;
      while (this.fresh < settings.max_new_tokens && wanted()) {
        if (prefix.length + this.tokens.length >= context) {
          this.ended = `its context of ${context} is full`;
          break;
        }
        const token = await this.model.ask("next", {settings, place: this.made.length, last});
        if (!wanted()) break;
        this.fresh++;
        this.seconds = (performance.now() - start) / 1000;
        last = token.id;
        this.add(token);
        if (this.endsHere()) break;
      }
    } finally {
      this.element.classList.remove("writing");
      this.tell();
    }
  }

  // Whether its last fragment is an end of the text, which the line below then says.
  endsHere() {
    const ends = this.model.facts.ends.includes(this.made.at(-1)?.id);
    if (ends) this.ended = "the model ended the text";
    return ends;
  }

  key(event) {
    const all = this.spans, here = all.indexOf(event.target);
    if (here < 0) return;
    const to = {ArrowRight: here + 1, ArrowLeft: here - 1, Home: 0, End: all.length - 1}[event.key];
    if (all[to]) {
      event.preventDefault();
      this.move(all[to]);
    } else if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      this.look(event.target);
    }
  }

  // The Tab key has one stop for all fragments; the arrows continue from there.
  move(span) {
    this.text.querySelector(".f[tabindex='0']")?.setAttribute("tabindex", -1);
    span.tabIndex = 0;
    span.focus();
  }

  // What else could have stood in a place.
  look(span) {
    if (!span) return;
    for (const each of this.text.querySelectorAll("[aria-selected=true]")) each.setAttribute("aria-selected", "false");
    span.setAttribute("aria-selected", "true");
    this.move(span);
    const index = Number(span.dataset.index), token = this.tokens[index], {model} = this;
    const bytes = Array.from(model.bytes(token.id), hex).join(" ");
    const share = token.top.find(({id}) => id === token.id)?.share;
    const facts = token.bits === null
      ? "Nothing stands before it, so the model expected nothing."
      : `${token.bits.toFixed(1)} bits: it had a chance of ${percent(share)} and was number ${token.rank.toLocaleString("en")} of ${model.pieces.raw.length.toLocaleString("en")}.`;
    const most = Math.max(...token.top.map((each) => each.share));
    const rows = token.top.map((each) => {
      const name = model.name(each.id).replace("\n", "");
      return make("li", {}, make("button", {
        type: "button", disabled: token.given, "aria-current": each.id === token.id ? "true" : null,
        onclick: () => this.page.branch(this, index, each, token),
      },
      make("span", {class: "name"}, name), bar(each.share / most), make("span", {class: "share"}, percent(each.share)),
      make("span", {class: "after"}, each.after === null ? "" : make("span", {class: "unseen"}, "as set "), each.after === null ? "" : percent(each.after))));
    });
    const head = make("div", {class: "head", "aria-hidden": "true"}, make("span", {}, token.given ? "Expected" : "Possible"),
      make("span"), make("span", {}, "chance"), make("span", {}, token.given ? "" : "as set"));
    this.place.replaceChildren(make("h3", {}, token.name.replace("\n", "")),
      make("p", {}, `${facts} Token ${token.id}, bytes ${bytes}.${token.given ? "" : " Choose another to continue from it."}`), ...(rows.length ? [head, make("ul", {}, ...rows)] : []));
    this.place.hidden = false;
    this.place.scrollIntoView({block: "nearest"});
  }

  async copy() {
    await copied(this.copyButton, this.written, this.text);
  }
}

function bar(share) {
  const inner = make("i");
  inner.style.setProperty("--share", share);
  return make("span", {class: "bar", "aria-hidden": "true"}, inner);
}

async function copied(button, text, fallback = null) {
  const label = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    // Not every page may write there: one key is left to press.
    if (fallback) getSelection().selectAllChildren(fallback);
    else prompt("Copy this link:", text);
    button.textContent = fallback ? "Press Ctrl-C" : label;
  }
  setTimeout(() => { button.textContent = label; }, 2000);
}

// --- The page -----------------------------------------------------------------------------------------------

class Page {
  constructor(site, models) {
    Object.assign(this, {site, run: null, pinned: false});
    this.panes = models.map((model) => new Pane(model, this));
    $("texts").replaceChildren(...this.panes.map(({element}) => element));
    document.body.classList.toggle("two", models.length > 1);
    const names = site.models.map(({name}) => name), millions = site.models.map(({parameters}) => `${(parameters / 1e6).toFixed(1)} million`);
    document.title = `Try ${names.join(" and ")}`;
    $("title").textContent = names.join(" and ");
    $("subtitle").textContent = `${millions.join(" and ")} parameters. ${names.length > 1 ? "They run" : "It runs"} in this tab: nothing you write leaves it.`;
    $("made").textContent = `Made by ${site.made_by}.`;
    $("prompt").value = site.prompts[0];
    $("examples").append(...site.prompts.map((text) => make("button", {type: "button", onclick: () => { $("prompt").value = text; this.write(); }}, text)));
    $("scale").append(...Array.from({length: STEPS}, (_, at) => make("span", {class: `s${at}`}, at % 2 ? "" : Math.round(at * BITS_PER_STEP))));
    this.buildControls();
    this.buildMachine();
    this.bind();
  }

  buildControls() {
    const context = Math.max(...this.site.models.map((model) => model.context));
    CONTROLS.max_new_tokens.max = Math.min(CONTROLS.max_new_tokens.max, context);
    this.card = {...this.site.models[0].sampling, max_new_tokens: Math.min(64, context), greedy: false};
    this.fields = {};
    for (const [key, {label, ...range}] of Object.entries(CONTROLS)) {
      range.max = Math.max(range.max, this.card[key]), range.min = Math.min(range.min, this.card[key]);
      const number = make("input", {type: "number", id: key, ...range});
      const slider = make("input", {type: "range", "aria-label": `${label}, slider`, tabindex: -1, ...range});
      slider.addEventListener("input", () => { number.value = slider.value; number.removeAttribute("aria-invalid"); });
      number.addEventListener("input", () => {
        slider.value = number.value;
        number.setAttribute("aria-invalid", !this.valid(number));
      });
      this.fields[key] = {number, slider};
      $("controls").append(make("div", {class: "control"}, make("label", {for: key}, label), number, slider));
    }
    this.seed = make("input", {type: "number", id: "seed", min: 0, max: 2 ** 32 - 1, step: 1});
    this.pin = make("input", {type: "checkbox", id: "pin"});
    this.greedy = make("input", {type: "checkbox", id: "greedy"});
    this.seed.addEventListener("input", () => { this.pin.checked = true; });
    this.greedy.addEventListener("change", () => this.grey());
    $("controls").append(
      make("div", {class: "control seed"}, make("label", {for: "seed"}, "Seed"), this.seed, make("label", {class: "check"}, this.pin, "Pin")),
      make("label", {class: "check"}, this.greedy, "Greedy: always the most probable"));
    this.fill({...this.card, seed: Math.floor(Math.random() * SEEDS)});
  }

  valid(number) {
    const value = Number(number.value);
    return number.value !== "" && value >= Number(number.min) && value <= Number(number.max) && (number.step !== "1" || Number.isInteger(value));
  }

  fill(settings) {
    for (const [key, value] of Object.entries(settings)) {
      const field = this.fields[key];
      if (field) field.number.value = field.slider.value = value, field.number.removeAttribute("aria-invalid");
    }
    if (settings.seed !== undefined) this.seed.value = settings.seed;
    if (settings.greedy !== undefined) this.greedy.checked = settings.greedy;
    this.grey();
  }

  grey() {
    const off = this.greedy.checked;
    for (const key of ["temperature", "top_k", "top_p"]) for (const each of Object.values(this.fields[key])) each.disabled = off;
    this.seed.disabled = this.pin.disabled = off;
  }

  // The settings, each within its range.
  settings() {
    const numbers = {...Object.fromEntries(Object.entries(this.fields).map(([key, {number}]) => [key, number])), seed: this.seed};
    for (const [key, number] of Object.entries(numbers)) {
      if (this.valid(number)) continue;
      const label = CONTROLS[key]?.label ?? "Seed", whole = number.step === "1" ? "a whole number" : "a number";
      number.focus();
      throw new Error(`${label} is ${number.value || "empty"}; it must be ${whole} from ${number.min} to ${Number(number.max).toLocaleString("en")}`);
    }
    return {...Object.fromEntries(Object.entries(numbers).map(([key, number]) => [key, Number(number.value)])), greedy: this.greedy.checked};
  }

  buildMachine() {
    const sizes = this.site.models.map(({dtypes}) => dtypes), common = Object.keys(DTYPES).filter((dtype) => sizes.every((each) => dtype in each));
    const size = (dtype) => sizes.reduce((sum, each) => sum + each[dtype], 0);
    $("dtype").append(...common.map((dtype) => make("option", {value: dtype}, `${DTYPES[dtype]}, ${megabytes(size(dtype))}`)));
    $("device").append(...Object.entries(DEVICES).map(([value, label]) => make("option", {value, disabled: value === "webgpu" && !this.site.gpu}, label)));
    this.common = common, this.size = size;
    for (const id of ["device", "dtype"]) {
      $(id).addEventListener("change", () => {
        query.set(id, $(id).value);
        history.replaceState(null, "", `?${query}${location.hash}`);
        this.load();
      });
    }
  }

  bind() {
    // Not before: a click that nobody hears would be lost.
    $("write").onclick = () => this.write();
    $("write").disabled = false;
    $("stop").onclick = () => this.stop();
    $("continue").onclick = () => this.go("Continuing ...", (pane) => pane.tokens.length > 0, (pane, ...run) => pane.write(...run));
    $("reset").onclick = () => this.fill(this.card);
    $("link").onclick = () => { this.pin.checked = true; copied($("link"), this.address()); };
    $("apart").onchange = () => {
      document.body.classList.toggle("apart", $("apart").checked);
      this.panes.forEach((pane) => pane.render());
    };
    $("prompt").addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.write();
    });
    document.addEventListener("keydown", (event) => event.key === "Escape" && this.stop());
    window.addEventListener("hashchange", () => this.follow());
  }

  // --- Loading ---

  // WebGPU where there is one and a file for it, else WebAssembly; the address and the two fields may say otherwise.
  async load() {
    this.stop();
    let device = query.get("device");
    const [first] = this.common, wide = this.common.filter((dtype) => dtype !== "q8");
    if (!(device in DEVICES) || (device === "webgpu" && !this.site.gpu)) device = this.site.gpu && wide.length ? "webgpu" : "wasm";
    const best = device === "webgpu" ? (this.site.gpu.half && wide.includes("fp16") ? "fp16" : wide.includes("fp32") ? "fp32" : first) : first;
    const dtype = this.common.includes(query.get("dtype")) ? query.get("dtype") : best;
    $("device").value = device, $("dtype").value = dtype;
    $("loading").hidden = false;
    $("progress").removeAttribute("value");
    say(`Loading ${megabytes(this.size(dtype))} ...`);
    const began = performance.now();
    const loading = this.loading = Promise.all(this.panes.map(({model}) => model.load(dtype, device)));
    try {
      const [{threads}] = await loading;
      if (this.loading !== loading) return;
      $("loading").hidden = true;
      const where = device === "webgpu" ? "the graphics card" : threads > 1 ? `${threads} threads of the processor` : "one thread of the processor";
      $("runs").textContent = `Loaded in ${((performance.now() - began) / 1000).toFixed(1)} s; runs on ${where}.`;
      if (!this.run) say("Ready.");
    } catch (error) {
      if (this.loading !== loading) return;
      if (device === "webgpu") {
        this.site.gpu = null;
        $("device").options[1].disabled = true;
        query.delete("device");
        $("runs").textContent = `WebGPU failed: ${error.message}`;
        return this.load();
      }
      $("loading").hidden = true;
      say(`The model cannot be loaded: ${error.message}`, true);
    }
  }

  progress(loaded, total) {
    if (total) $("progress").value = loaded / total;
  }

  // --- Writing ---

  write() {
    if (!this.pin.checked && !this.greedy.checked) this.seed.value = Math.floor(Math.random() * SEEDS);
    const prompt = $("prompt").value;
    return this.go("Writing ...", () => true, async (pane, settings, wanted) => {
      await pane.read(prompt);
      if (wanted()) await pane.write(settings, wanted);
    });
  }

  // One text continues from another fragment than the one that stands there.
  branch(pane, index, {id, share, after}, {top}) {
    if (pane.tokens[index]?.given) return;
    const rank = top.findIndex((each) => each.id === id) + 1, chosen = {id, bits: -Math.log2(share), rank, top, after};
    return this.go("Continuing from there ...", (each) => each === pane, async (_, settings, wanted) => {
      pane.tokens = [...pane.tokens.slice(0, index), chosen];
      pane.render();
      pane.move(pane.spans.at(-1));
      pane.ended = "";
      pane.fresh = 0;
      // Who chooses the end gets it.
      if (pane.endsHere()) pane.tell();
      else await pane.write(settings, wanted);
    });
  }

  // Runs `task` for the panes that `which` picks, in place of what runs now.
  async go(word, which, task) {
    let settings;
    const mine = this.run = {}, wanted = () => this.run === mine;
    try {
      settings = this.settings();
      say(word);
      $("stop").disabled = false;
      $("continue").disabled = true;
      this.panes.forEach((pane) => { if (which(pane)) pane.place.hidden = true; });
      await this.loading;
      // The last one ends at its next token.
      await this.running;
      if (!wanted()) return;
      history.replaceState(null, "", this.address());
      // In a Space, the address of the page around this one.
      if (window.parent !== window) window.parent.postMessage({hash: location.hash.slice(1)}, "https://huggingface.co");
      const running = Promise.all(this.panes.filter(which).map((pane) => task(pane, settings, wanted)));
      this.running = running.catch(() => {});
      await running;
      if (!wanted()) return;
      this.end("Done.");
      $("spoken").textContent = this.panes.map((pane) => `${pane.model.facts.name}: ${pane.written}`).join(". ");
    } catch (error) {
      if (wanted()) this.end(error.message.replace(/^./, (letter) => letter.toUpperCase()), true);
    }
  }

  stop() {
    if (this.run) this.end("Stopped.");
  }

  end(word, isError = false) {
    this.run = null;
    say(word, isError);
    $("stop").disabled = true;
    $("continue").disabled = !this.panes.some((pane) => pane.tokens.length);
  }

  // --- The link ---

  address() {
    const values = {prompt: $("prompt").value, ...this.settings()};
    const part = new URLSearchParams(Object.entries(values).map(([key, value]) => [key, String(value)]));
    return `${location.href.split("#")[0]}#${part}`;
  }

  // Takes prompt and settings from the address, and writes.
  follow() {
    const part = new URLSearchParams(location.hash.slice(1));
    if (!part.has("prompt")) return false;
    $("prompt").value = part.get("prompt");
    const given = {...this.card, greedy: part.get("greedy") === "true"};
    for (const key of [...Object.keys(CONTROLS), "seed"]) if (part.has(key)) given[key] = part.get(key);
    this.pin.checked = part.has("seed");
    this.fill(given);
    this.write();
    return true;
  }
}

// --- Start --------------------------------------------------------------------------------------------------

function bindTheme() {
  const names = {"": "auto", light: "light", dark: "dark"}, order = Object.keys(names);
  const set = (theme) => {
    document.documentElement.style.colorScheme = theme || "light dark";
    $("theme").textContent = `Theme: ${names[theme]}`;
  };
  let theme = "";
  // A page within another may have no storage.
  try { theme = localStorage.getItem("theme") ?? ""; } catch { /* auto */ }
  set(theme in names ? theme : "");
  $("theme").onclick = () => {
    theme = order[(order.indexOf(theme) + 1) % order.length];
    set(theme);
    try { localStorage.setItem("theme", theme); } catch { /* for this visit only */ }
  };
}

// The graphics card, if the browser lets pages use one.
async function findGpu() {
  try {
    const adapter = await navigator.gpu?.requestAdapter();
    return adapter ? {half: adapter.features.has("shader-f16")} : null;
  } catch {
    return null;
  }
}

async function start() {
  bindTheme();
  if (innerWidth < 960) for (const id of ["settings", "machine", "reading"]) $(id).open = false;
  try {
    const [answer, gpu] = await Promise.all([fetch(new URL("site.json", import.meta.url)), findGpu()]);
    if (!answer.ok) throw new Error(`site.json: ${answer.status}`);
    const site = await answer.json();
    site.gpu = site.webgpu && gpu;
    let page;
    const models = await Promise.all(site.models.map((facts) => Model.open(facts, (...how) => page.progress(...how))));
    page = new Page(site, models);
    page.load();
    page.follow();
  } catch (error) {
    $("loading").hidden = true;
    say(`The page cannot start: ${error.message}`, true);
  }
}

start();
