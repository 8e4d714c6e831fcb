// The one selection that every panel reads and sets, and the questions that go to Python.

import { expertColour } from "./colour.js";
import { unpack } from "./wire.js";

const NO_KERNEL = "No kernel: run the cell again.";
const WAITS = [[150, "waiting for Python …"], [8000, "still waiting for Python: if no kernel runs, run the cell again"]]; // after ms
const SELECTED = ["text", "layer", "token", "head", "expert", "slot", "colour", "marks"];

/** Wraps a widget's model (or the report's, which has the same four methods). */
export class State {
  constructor(model) {
    this.model = model;
    this.listeners = new Set();
    this.waiting = new Map();
    this.next = 1;
    this.planes = new Map();
    this.data = unpack(model.get("data"));
    this.offers = {};
    this.changed = new Set();
    this.onChange = SELECTED.concat("data").map((name) => [`change:${name}`, () => this._mark(name)]);
    for (const [event, f] of this.onChange) model.on(event, f);
    this.onMessage = (message, buffers) => this._answer(message, buffers);
    model.on("msg:custom", this.onMessage);
    this._rest();
  }

  /** Of a long text with many slots the first ones come at once; the rest comes when they are shown. */
  _rest() {
    const { experts, slots } = this.data;
    if (experts.shape[2] >= slots) return;
    const done = (all) => {
      if (this.data.experts !== experts) return;
      Object.assign(this.data, all);
      this._mark("hues");
    };
    setTimeout(() => this.ask("slots").then(done, () => {}), 300);
  }

  get(name) {
    return this.model.get(name);
  }

  /** Select: {token: 3, layer: 1}. What is the same already, or is not there, is left alone. */
  set(values) {
    let any = false;
    for (const [name, value] of Object.entries(values)) {
      if (value === undefined || Number.isNaN(value) || this.model.get(name) === value) continue;
      this.model.set(name, value);
      any = true;
    }
    if (!any) return;
    try {
      this.model.save_changes();
    } catch {
      // without a kernel the page goes on alone: what it asks says so
    }
  }

  /** Lets other panels have what one of them can do, or no longer can: `offers[name]`, heard of as a change of that name. */
  offer(name, f) {
    if (this.offers[name] === f) return;
    this.offers[name] = f;
    this._mark(name);
  }

  /** Whether this is a report, with no Python behind it. */
  get still() {
    return Boolean(this.model.still);
  }

  /** Calls f(names) once a frame in which something changed; gives the function that ends it. */
  listen(f) {
    this.listeners.add(f);
    return () => this.listeners.delete(f);
  }

  /** A question to Python, by name; rejects with the line that Python answers where it cannot. */
  ask(want, params = {}) {
    const id = this.next++;
    return new Promise((resolve, reject) => {
      this.waiting.set(id, { resolve, reject });
      try {
        this.model.send({ id, want, params });
      } catch {
        this.waiting.delete(id);
        reject(new Error(NO_KERNEL));
      }
    });
  }

  /** The place of the selected layer among the trace's. */
  get row() {
    return Math.max(0, this.data.layers.indexOf(this.get("layer")));
  }

  /** The selected expert where a row of layers is the selected one, else -1: a number means nothing in another layer. */
  selectedAt(row) {
    return row === this.row ? this.get("expert") : -1;
  }

  /** The colour of an expert at a row of layers. */
  colourOf(expert, row = this.row) {
    return expertColour(this.data, row, expert, this.selectedAt(row));
  }

  /** A plane by name, asked for once for each text and, where it is about one, expert. */
  plane(name) {
    const expert = ["gate", "probability", "logit"].includes(name) ? this.get("expert") : 0;
    const key = `${this.get("text")}|${name}|${expert}`;
    if (!this.planes.has(key)) {
      if (this.planes.size > 12) this.planes.delete(this.planes.keys().next().value);
      const asked = this.ask("plane", { name, expert });
      asked.catch(() => this.planes.delete(key));
      this.planes.set(key, asked);
    }
    return this.planes.get(key);
  }

  close() {
    for (const [event, f] of this.onChange) this.model.off(event, f);
    this.model.off("msg:custom", this.onMessage);
    this.listeners.clear();
    this.waiting.clear();
  }

  _mark(name) {
    if (name === "data") {
      this.data = unpack(this.model.get("data"));
      this.planes.clear();
      this.offers = {};
      this._rest();
    }
    if (name === "marks") {
      this.ask("hues", { marks: this.get("marks") }).then((hues) => ((this.data.hues = hues), this._mark("hues")), () => {});
      return;
    }
    if (!this.changed.size) {
      const tell = () => {
        const names = this.changed;
        this.changed = new Set();
        for (const f of this.listeners) f(names);
      };
      if (typeof requestAnimationFrame === "function" && !document.hidden) requestAnimationFrame(tell);
      else setTimeout(tell, 0); // a hidden page draws no frames, but must not fall behind
    }
    this.changed.add(name);
  }

  _answer(message, buffers) {
    const asked = this.waiting.get(message.id);
    if (!asked) return;
    this.waiting.delete(message.id);
    if (message.error !== undefined) asked.reject(new Error(message.error));
    else asked.resolve(unpack(message.answer, buffers));
  }
}

/** Lets through only the answer to the newest question, `const latest = newest(root); latest(state.ask(...), draw, complain)`;
 *  while that is out for long, `root`, which shows what is no longer so, is marked. */
export function newest(root) {
  let number = 0;
  let timers = [];
  const mark = (words) => {
    root.setAttribute("aria-busy", "true");
    root.dataset.wait = words;
  };
  return (promise, done, failed = () => {}) => {
    const mine = ++number;
    if (!timers.length) timers = WAITS.map(([after, words]) => setTimeout(mark, after, words));
    const ending = (f) => (r) => {
      if (mine !== number) return;
      timers.forEach(clearTimeout);
      timers = [];
      root.removeAttribute("aria-busy");
      f(r);
    };
    promise.then(ending(done), ending(failed));
  };
}
