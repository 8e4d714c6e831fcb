// The atlas' page: a list of experts, a search, and all that is known of one. Every text is set as text, never as markup.

const SHOWN = 300; // rows of the list at once
const TITLES = {
  gate: "Contexts of the largest gate", gate_norm: "Contexts of the largest gate times the output's norm", drawn: "Contexts, drawn (no gates were recorded)",
  together: "Chosen for the same token", next: "First choice of the next layer", previous: "First choice of the layer before",
  weights: "Alike by their weights", outputs: "Alike by their answers to the same tokens",
};

/** The JSON of a block: base64 of gzip. */
async function unpacked(id) {
  const bytes = Uint8Array.from(atob(JSON.parse(document.getElementById(id).textContent)), (c) => c.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
}

function make(tag, attributes = {}, ...children) {
  const node = Object.assign(document.createElement(tag), attributes);
  node.append(...children.filter((c) => c !== null && c !== undefined));
  return node;
}

const percent = (x) => (x === null ? "–" : `${(100 * x).toPrecision(3)} %`);
const number = (x) => (x === null ? "–" : String(x));
const named = (layer, expert) => `L${layer} E${expert}`;
const soft = (text) => make("span", { className: "soft", textContent: text });

/** A bar of a share with a tick where its null is. */
function bar(value, at, full) {
  const node = make("span", { className: "bar" }, make("i"));
  node.firstChild.style.width = `${Math.min(100, (100 * (value ?? 0)) / full)}%`;
  if (at !== null) {
    node.append(make("b"));
    node.lastChild.style.left = `${Math.min(99, (100 * at) / full)}%`;
  }
  return node;
}

function table(head, rows) {
  const cells = (row, tag) => make("tr", {}, ...row.map((c) => make(tag, {}, c)));
  return make("table", {}, cells(head, "th"), ...rows.map((row) => cells(row, "td")));
}

class Page {
  constructor(index, root) {
    this.index = index;
    this.layers = [...new Set(index.experts.map((e) => e[0]))];
    this.byKey = new Map(index.experts.map((e) => [named(e[0], e[1]), e]));
    this.texts = index.experts.map((e) => [named(e[0], e[1]), e[4], ...e[6], ...e[7]].join("\n").toLowerCase());
    this.blocks = new Map();
    this.search = make("input", { type: "search", placeholder: "a token, a name, a label, L3 E17", ariaLabel: "search experts" });
    this.choice = make("select", { ariaLabel: "layer" }, ...this.layers.map((n) => make("option", { value: n, textContent: `layer ${n}` })));
    this.order = make("select", { ariaLabel: "order" }, ...["number", "load"].map((n) => make("option", { value: n, textContent: `by ${n}` })));
    this.list = make("nav", { ariaLabel: "experts" });
    this.detail = make("article", { ariaLive: "polite" });
    root.append(
      make("header", {}, make("h1", { textContent: "Atlas of experts" }), this.search, this.choice, this.order, make("p", { textContent: index.about })),
      this.list, this.detail,
    );
    this.search.addEventListener("input", () => this.drawList());
    this.choice.addEventListener("change", () => { this.search.value = ""; this.drawList(); });
    this.order.addEventListener("change", () => this.drawList());
    addEventListener("hashchange", () => this.go());
  }

  /** The numbers of the experts that the list shows: those found, else those of the layer. */
  found() {
    const asked = this.search.value.trim().toLowerCase();
    const experts = this.index.experts;
    const all = [...experts.keys()];
    const found = asked ? all.filter((n) => this.texts[n].split("\n").some((t) => t.includes(asked))) : all.filter((n) => experts[n][0] === Number(this.choice.value));
    if (this.order.value === "load") found.sort((a, b) => experts[b][2] - experts[a][2]);
    // Whole words before parts of others.
    else if (asked) found.sort((a, b) => this.texts[b].split("\n").includes(asked) - this.texts[a].split("\n").includes(asked) || a - b);
    return found;
  }

  drawList() {
    const found = this.found();
    const rows = found.slice(0, SHOWN).map((n) => {
      const [layer, expert, load, even, name, , words] = this.index.experts[n];
      const link = make("a", { href: `#L${layer}E${expert}` }, make("span", { textContent: named(layer, expert) }),
        make("span", {}, bar(load, even, 3 * (even || 1 / this.index.experts.length)), name ? ` ${name}` : ""),
        make("span", { className: "words", textContent: words.slice(0, this.index.words).join("  ") }));
      if (this.shown === named(layer, expert)) link.setAttribute("aria-current", "true");
      return link;
    });
    const more = found.length > SHOWN ? `, the first ${SHOWN} shown` : "";
    this.list.replaceChildren(make("p", { textContent: `${found.length.toLocaleString("en")} experts${more}; bar: load, tick: ${this.even()}` }), ...rows);
  }

  even() {
    return this.index.experts[0]?.[3] === null ? "none" : "its null";
  }

  async go() {
    const asked = /^#L(\d+)E(\d+)$/.exec(decodeURIComponent(location.hash));
    const key = asked ? named(Number(asked[1]), Number(asked[2])) : null;
    const expert = this.byKey.get(key) ?? this.index.experts[0];
    if (!expert) return;
    this.shown = named(expert[0], expert[1]);
    this.choice.value = expert[0];
    if (!this.blocks.has(expert[0])) this.blocks.set(expert[0], unpacked(`layer-${expert[0]}`));
    const block = await this.blocks.get(expert[0]);
    if (this.shown !== named(expert[0], expert[1])) return; // another was asked for meanwhile
    this.drawList();
    this.drawExpert(expert, block);
    document.body.dataset.ready = this.shown;
  }

  drawExpert([layer, expert, load, even, name, scores], block) {
    const rows = (what) => block[what][expert] ?? [];
    const said = make("p", {}, `Load ${percent(load)} of tokens, `, soft(`null ${percent(even)}. `), bar(load, even, 3 * (even || 1)));
    const parts = [make("h2", { textContent: named(layer, expert) + (name ? `: ${name}` : "") }), said];
    if (name) parts.push(make("p", { textContent: `The name finds this expert's tokens with F1 ${number(scores[0])} (by chance ${number(scores[1])}), among the same tokens ${number(scores[2])} (${number(scores[3])}).` }));
    parts.push(...this.tokens(rows("tokens")), ...this.contexts(rows("contexts")), ...this.domains(rows("domains")));
    parts.push(...this.others(rows("company"), layer), ...this.others(rows("nearest"), layer));
    this.detail.replaceChildren(...parts);
    this.detail.scrollTop = 0;
  }

  tokens(rows) {
    const cells = rows.map(([token, visits, texts, lift, p]) => [make("mark", { textContent: token }), `${visits} of ${texts} texts`, number(lift), number(p)]);
    return [make("h3", { textContent: "Tokens sent here more often than by chance" }), rows.length ? table(["token", "went here", "times its load", "p (adjusted)"], cells) : soft("None were.")];
  }

  contexts(rows) {
    return [...new Set(rows.map((r) => r[0]))].flatMap((kind) => [
      make("h3", { textContent: TITLES[kind] ?? kind }),
      ...rows.filter((r) => r[0] === kind).map(([, value, label, before, token, after]) =>
        make("div", { className: "context" }, make("span", { dir: "auto" }, before, make("mark", { textContent: token }), after), soft(`${number(value)}${label ? ` · ${label}` : ""}`))),
    ]);
  }

  domains(rows) {
    if (!rows.length) return [];
    const full = Math.max(...rows.map((r) => Math.max(r[1] ?? 0, r[2] ?? 0)), 1e-9);
    const cells = rows.map(([label, value, even, z]) => [label, bar(value, even, full), percent(value), `z ${number(z)}`]);
    return [make("h3", { textContent: "Labels: the share of each one's tokens that come here (tick: over all)" }), table(["label", "", "share", ""], cells)];
  }

  others(rows, layer) {
    const step = { next: 1, previous: -1 };
    return [...new Set(rows.map((r) => r[0]))].flatMap((kind) => {
      const at = this.layers[this.layers.indexOf(layer) + (step[kind] ?? 0)];
      const cells = rows.filter((r) => r[0] === kind).map(([, other, value, even]) => {
        const there = this.byKey.get(named(at, other));
        const words = there ? there[4] || there[6].slice(0, this.index.words).join("  ") : "";
        return [make("a", { href: `#L${at}E${other}`, textContent: named(at, other) }), number(value), soft(`null ${number(even)}`), soft(words)];
      });
      return [make("h3", { textContent: TITLES[kind] ?? kind }), table(["expert", "value", "", ""], cells)];
    });
  }
}

new Page(await unpacked("index"), document.getElementById("root")).go();
