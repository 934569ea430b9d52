// A model as the page sees it: its worker, asked by promises, and the bytes of its tokens.

const VISIBLE = {" ": "\u00b7", "\n": "\u21b5\n", "\t": "\u21e5", "\r": "\u240d"};

export class Model {
  constructor(facts, pieces, onProgress) {
    Object.assign(this, {facts, pieces, onProgress, calls: new Map(), count: 0});
  }

  static async open(facts, onProgress) {
    const answer = await fetch(new URL(`models/${facts.folder}/pieces.json`, import.meta.url));
    if (!answer.ok) throw new Error(`models/${facts.folder}/pieces.json: ${answer.status}`);
    return new Model(facts, await answer.json(), onProgress);
  }

  // Loads it, or loads it again with another precision or on another device.
  load(dtype, device) {
    this.worker?.terminate();
    for (const {reject} of this.calls.values()) reject(new Error("loaded again"));
    this.calls.clear();
    this.worker = new Worker(new URL("worker.js", import.meta.url), {type: "module"});
    this.worker.onmessage = ({data}) => this.#answered(data);
    this.worker.onerror = (event) => {
      for (const {reject} of this.calls.values()) reject(new Error(event.message || "the worker did not start"));
      this.calls.clear();
    };
    const {folder, prefix} = this.facts;
    return this.ask("load", {folder, dtype, device, before: prefix});
  }

  ask(task, values) {
    return new Promise((resolve, reject) => {
      const call = this.count++;
      this.calls.set(call, {resolve, reject});
      this.worker.postMessage({call, task, values});
    });
  }

  #answered({call, result, error, loaded, total}) {
    if (call === undefined) return this.onProgress(loaded, total);
    const {resolve, reject} = this.calls.get(call);
    this.calls.delete(call);
    if (error === undefined) resolve(result);
    else reject(new Error(error));
  }

  // Bytes of a token; those of the model that the tokenizer has no entry for stand for nothing. The file holds
  // each byte as the character of its number.
  bytes(id) {
    return Uint8Array.from(this.pieces.raw[id] ?? "", (character) => character.charCodeAt(0));
  }

  isSpecial(id) {
    return this.pieces.special.includes(id);
  }

  // A token as people can read it alone: white space visible, bytes that are no character as <E2>.
  name(id) {
    const bytes = this.bytes(id);
    if (!bytes.length) return `<no entry ${id}>`;
    try {
      const text = new TextDecoder("utf-8", {fatal: true, ignoreBOM: true}).decode(bytes);
      return text.replace(/[ \n\t\r]/g, (character) => VISIBLE[character]);
    } catch {
      return Array.from(bytes, (byte) => byte < 0x80 ? String.fromCharCode(byte) : `<${hex(byte)}>`).join("");
    }
  }
}

export const hex = (byte) => byte.toString(16).toUpperCase().padStart(2, "0");
