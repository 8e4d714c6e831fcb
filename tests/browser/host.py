"""A page with a widget on it and this Python behind it: the real module in a real browser, without Jupyter in between.

`with browser() as chromium, Host(chromium, bench) as host: host.page.click(...)`. What the page asks, the widget answers; what
it sets, the widget's traits take. A request that leaves the machine, an error of the page or on its console is kept in
`host.faults`.
"""

from __future__ import annotations

import base64
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
from traitlets import TraitError

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-sync"]
AT_HOME = ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
"""No name is found but this machine's: nothing leaves it."""
ONE = ["--in-process-gpu", "--renderer-process-limit=1", "--disable-site-isolation-trials"]
"""Few processes: to start and end those of a page is half a second of work, more than most tests are."""
MISSING = (
    "no browser: install Debian's chromium (apt-get install chromium), or name one in GROKSCOPE_CHROMIUM; and "
    "`pip install playwright`, without its own browsers"
)
PAGE = """<!doctype html><meta charset="utf-8"><style>:root { color-scheme: SCHEME }</style><body><div id="root"></div>"""
WATCH = """() => {
  const waits = window.__waits = new Set(), { setTimeout, clearTimeout } = window;
  window.waiting = (promise) => { waits.add(promise); return promise.finally(() => waits.delete(promise)); };
  window.setTimeout = (act, after = 0, ...given) => {
    const id = setTimeout(() => { waits.delete(id); act(...given); }, after);
    if (after < 1000) waits.add(id);
    return id;
  };
  window.clearTimeout = (id) => { waits.delete(id); clearTimeout(id); };
}"""
"""Keeps count of what the page waits for: its timers of less than a second, and what it asks of Python."""
SETTLED = """async () => {
  for (let still = 0; still < 3; still = window.__waits?.size ? 0 : still + 1) await new Promise(requestAnimationFrame);
}"""
MODEL = """
async ([state, esm, css]) => {
  const un64 = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer;
  const bytes = (v) => Array.isArray(v) ? v.map(bytes) : v && typeof v === "object"
    ? ("$64" in v ? new DataView(un64(v.$64)) : Object.fromEntries(Object.entries(v).map(([k, x]) => [k, bytes(x)]))) : v;
  const listeners = new Map();
  const emit = (event, ...args) => [...(listeners.get(event) ?? [])].forEach((f) => f(...args));
  const model = {
    state: bytes(state), dirty: {},
    get: (name) => model.state[name],
    set(name, value) { model.state[name] = value; model.dirty[name] = value; emit(`change:${name}`); },
    async save_changes() { const sent = model.dirty; model.dirty = {}; model.take(await waiting(window.pySet(sent))); },
    take(changes) { for (const [k, v] of Object.entries(changes)) { model.state[k] = bytes(v); emit(`change:${k}`); } },
    on: (event, f) => listeners.set(event, (listeners.get(event) ?? new Set()).add(f)),
    off: (event, f) => listeners.get(event)?.delete(f),
    async send(content) { for (const [m, b] of await waiting(window.pyAsk(content))) emit("msg:custom", m, b.map((x) => new DataView(un64(x)))); },
  };
  window.model = model; window.count = () => [...listeners.values()].reduce((n, s) => n + s.size, 0);
  document.head.append(Object.assign(document.createElement("style"), { textContent: css }));
  const made = await import(URL.createObjectURL(new Blob([esm], { type: "text/javascript" })));
  const el = document.getElementById("root");
  window.end = await made.default.render({ model, el });
}
"""


def executable() -> str | None:
    """The browser of this machine, or None."""
    named = os.environ.get("GROKSCOPE_CHROMIUM")
    return named or next((found for n in NAMES if (found := shutil.which(n))), None)


@contextmanager
def browser() -> Iterator[Any]:
    """A headless Chromium; skips the test where there is none (fails it under GROKSCOPE_REQUIRE_BROWSER=1)."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        sync_playwright = None
    if sync_playwright is None or executable() is None:
        (pytest.fail if os.environ.get("GROKSCOPE_REQUIRE_BROWSER") == "1" else pytest.skip)(MISSING)
    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=executable(), args=FLAGS + AT_HOME + ONE)
        try:
            yield chromium
        finally:
            chromium.close()


@cache
def _context(chromium: Any, offline: bool) -> Any:
    """That of all pages, which so keep what they have read. A first page stays, and with it the process that draws all others."""
    context = chromium.new_context(offline=offline)
    context.new_page()
    return context


def new_page(chromium: Any, width: int = 900, height: int = 1400, offline: bool = True) -> Any:
    """A page of its own in the context of the others."""
    page = _context(chromium, offline).new_page()
    page.set_viewport_size({"width": width, "height": height})
    return page


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return {"$64": base64.b64encode(value).decode()} if isinstance(value, (bytes, memoryview)) else value


class Host:
    """One widget on one page. `sent` counts the bytes that the widget's state and answers took."""

    def __init__(self, chromium: Any, widget: Any, scheme: str = "light", width: int = 900, height: int = 1400) -> None:
        self.widget, self.faults, self.sent = widget, [], 0
        page = self.page = new_page(chromium, width, height)
        page.on("pageerror", lambda e: self.faults.append(f"error: {e}"))
        page.on("console", lambda m: m.type == "error" and self.faults.append(f"console: {m.text}"))
        page.on("request", self._requested)
        page.set_content(PAGE.replace("SCHEME", scheme))
        page.expose_function("pySet", self._set)
        page.expose_function("pyAsk", self._ask)
        names = [n for n in widget.keys if not n.startswith("_") and n not in ("layout", "tabbable", "tooltip")]
        state = {n: _plain(getattr(widget, n)) for n in names}
        self._names = names
        self._count(state)
        page.evaluate(WATCH)
        page.evaluate(MODEL, [state, widget._esm, widget._css])
        page.wait_for_selector("[data-ready]")
        widget.observe(self._moved, names)
        self._from_page = False

    def _requested(self, request: Any) -> None:
        if not request.url.startswith(("blob:", "data:", "about:")):
            self.faults.append(f"request: {request.url}")

    def _count(self, value: Any) -> None:
        import json

        self.sent += len(json.dumps(value))

    def _set(self, changes: dict[str, Any]) -> dict[str, Any]:
        """As ipywidgets: what the browser sets and Python refuses goes back as it was."""
        self._from_page, self._changed = True, {}
        try:
            for name, value in changes.items():
                try:
                    setattr(self.widget, name, value)
                except TraitError:
                    self._changed[name] = getattr(self.widget, name)
        finally:
            self._from_page = False
        made = {n: _plain(v) for n, v in self._changed.items() if changes.get(n, ...) != v}
        self._count(made)
        return made

    def _ask(self, content: dict[str, Any]) -> list[Any]:
        answers: list[Any] = []
        self.widget.send = lambda message, buffers=None: answers.append(
            [message, [base64.b64encode(b).decode() for b in buffers or []]]
        )
        self._from_page, self._changed = True, {}
        try:
            self.widget._asked(self.widget, content, [])
        finally:
            self._from_page = False
        self._count(answers)
        if self._changed:
            self._later = {n: _plain(v) for n, v in self._changed.items()}
            self.page.evaluate("(c) => setTimeout(() => model.take(c), 0)", self._later)
        return answers

    def _moved(self, change: dict[str, Any]) -> None:
        if self._from_page:
            self._changed[change["name"]] = change["new"]
        else:
            self.page.evaluate("(c) => model.take(c)", {change["name"]: _plain(change["new"])})

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *error: object) -> None:
        self.widget.unobserve(self._moved, self._names)
        self.page.close()


def at_the_beginning(bench: Any) -> Any:
    """A workbench at its text's first token, the first layer and expert, wherever it opened."""
    bench.layer, bench.token, bench.expert = bench.data["layers"][0], 0, 0
    return bench


def settled(page: Any) -> None:
    """Wait until what was asked for has come and is drawn: three frames in which the page waits for nothing."""
    page.evaluate(SETTLED)
