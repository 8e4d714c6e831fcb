"""How the workbench is used, in a real browser: keys, where the focus stays, how a wait and a lost kernel are said, directions."""

from __future__ import annotations

import pytest

import grokscope as gs
from tests.browser.host import Host, at_the_beginning, settled
from tests.browser.shapes import random_trace
from tests.browser.test_report import opened

MOON = "The moon is bright. 床前明月光\ndef moon(): return 42"
ARABIC = "مرحبا بالعالم، القمر ساطع.\nThe moon is مرحبا dark."
COLOUR, TEXT, WITH = (f"select[aria-label='{name}']" for name in ("colour tokens by", "text", "compare with text"))
OTHER = "() => document.querySelector('[data-panel=compare] [role=listbox] [aria-selected=true]')?.dataset.t"
SLOW = "() => { const send = model.send; model.send = async (q) => { await new Promise((r) => setTimeout(r, 600)); return send(q); }; }"


@pytest.fixture(scope="module")
def trace(pocket):
    return pocket.trace([MOON, ARABIC], capture=["router.*", "logits", "attn.q", "attn.k"])


@pytest.fixture
def host(chromium, trace):
    bench = at_the_beginning(gs.explore(trace))
    with Host(chromium, bench, height=3000) as made:
        made.page.wait_for_selector("[data-panel=compare] canvas")
        made.page.wait_for_selector(".gs-next button")
        yield made
    assert not made.faults
    bench.close()


def panel(host, name):
    return host.page.inner_text(f"[data-panel={name}]")


def focused(host, selector):
    return host.page.evaluate("(s) => document.activeElement.matches(s)", selector)


def press(host, selector, *keys):
    host.page.focus(selector)
    for key in keys:
        host.page.keyboard.press(key)
        settled(host.page)


def test_no_key_leaves_the_widget_but_the_notebooks_own(host):
    host.page.evaluate("() => { window.heard = []; document.addEventListener('keydown', (e) => heard.push(e.key)); }")
    for selector in (
        ".gs-tokens",
        "[data-panel=map] canvas",
        COLOUR,
        "[data-panel=map] input",
        "[data-panel=edit] button",
    ):
        press(host, selector, "b", "ArrowUp")
    assert host.page.evaluate("heard") == []
    host.page.keyboard.press("Control+s")
    assert host.page.evaluate("heard") == ["s"]


def test_the_focus_stays_where_it_is(host):
    for selector in (COLOUR, WITH, TEXT):
        host.page.evaluate("(s) => { window.was = document.querySelector(s); }", selector)
        press(host, selector, "ArrowDown")
        assert host.page.evaluate("document.activeElement === was"), selector
        assert focused(host, selector)
    assert (host.widget.colour, host.widget.text) == (host.widget.colours[1], 1)
    host.widget.colour, host.widget.text = "expert", 0
    settled(host.page)
    press(host, ".gs-swatch >> nth=5", "Enter")
    assert host.widget.expert == 5
    assert focused(host, ".gs-swatch[aria-pressed=true]")
    for token in (1, 2):
        press(host, ".gs-came button", "Enter")
        assert host.widget.token == token
        assert focused(host, ".gs-came button")
    host.widget.token = len(host.widget.data["pieces"]) - 2
    settled(host.page)
    press(host, ".gs-came button", "Enter")
    assert focused(host, "[data-panel=prediction] *"), "also where the text ends"


def test_the_text_is_walked_by_pages_and_ends(host):
    last = len(host.widget.data["pieces"]) - 1
    for key, token in (("End", last), ("Home", 0), ("PageDown", min(50, last)), ("PageUp", 0)):
        press(host, ".gs-tokens", key)
        assert host.widget.token == token
    press(host, "[data-panel=map] canvas", "End")
    label = host.page.get_attribute("[data-panel=map] canvas", "aria-label")
    assert f"selected: token {last} “{host.widget.data['pieces'][last]}”" in label
    host.page.fill("[data-panel=map] input[type=search]", "the moon")
    host.page.keyboard.press("Enter")
    settled(host.page)
    assert host.widget.data["pieces"][host.widget.token] == "▁The"


def test_tabs_are_one_stop_and_arrows_go_between_them(host):
    tabs = "[data-panel=attention] [role=tab]"
    assert host.page.locator(f"{tabs}[tabindex='0']").count() == 1
    press(host, f"{tabs}[tabindex='0']", "ArrowRight")
    assert focused(host, "[data-part=heads][aria-selected=true]")
    assert host.page.get_attribute("[data-panel=attention] [role=tabpanel]", "aria-label") == "all heads"
    press(host, f"{tabs}[tabindex='0']", "End")
    host.page.wait_for_selector("[data-panel=attention] canvas.gs-map")
    assert focused(host, "[data-part=head][aria-selected=true]")


def test_a_line_runs_in_its_own_direction(host):
    host.widget.text = 1
    settled(host.page)
    pieces = host.widget.data["pieces"]
    for where in ("[data-panel=text]", "[data-panel=attention]"):
        xs = host.page.eval_on_selector_all(
            f"{where} .gs-block >> nth=0 >> span", "all => all.map(s => s.getBoundingClientRect().x)"
        )
        assert pieces[0] == "[BOS]"
        assert len(xs) > 6
        assert xs == sorted(xs, reverse=True)
    second = host.page.eval_on_selector_all(
        "[data-panel=text] .gs-block >> nth=1 >> span",
        "all => all.map(s => [s.textContent, s.getBoundingClientRect().right])",
    )
    x = [x for _, x in second]  # right ends: the ▁ before a foreign word stands at its left
    arabic = [i for i, (piece, _) in enumerate(second) if any("\u0600" < c < "\u0700" for c in piece)]
    assert len(arabic) > 1
    assert [x[i] for i in arabic] == sorted((x[i] for i in arabic), reverse=True), "a foreign word runs its own way"
    assert x[0] < x[1] < x[arabic[-1]], second
    host.widget.text = 0
    settled(host.page)
    xs = host.page.eval_on_selector_all(
        "[data-panel=compare] .gs-block >> nth=0 >> span", "all => all.map(s => s.getBoundingClientRect().x)"
    )
    assert xs == sorted(xs, reverse=True)


def test_compare_opens_on_another_text_and_goes_on_over_its_own_tokens(host):
    assert host.page.input_value(WITH) == "1"
    assert host.page.locator(f"{WITH} option").count() == 1
    seen = []
    host.page.focus("[data-panel=compare] button >> text=difference →")
    for _ in range(60):
        host.page.keyboard.press("Enter")
        settled(host.page)
        said = panel(host, "compare")
        if "no further difference" in said:
            break
        seen.append((host.widget.token, host.page.evaluate(OTHER)))
    assert len(set(seen)) == len(seen) > 10, "it never sticks"
    others = [int(t) for _, t in seen if t is not None]
    assert len(set(others)) > 10, "tokens that only the other text has are shown too"
    press(host, "[data-panel=compare] [role=listbox]", "Home", "ArrowRight")
    assert host.page.evaluate(OTHER) == "1"
    assert "other “" in host.page.inner_text("[data-panel=compare] .gs-said")
    host.widget.text, before = 1, host.widget.token
    settled(host.page)
    assert host.page.input_value(WITH) == "0"
    host.page.click("[data-panel=map] button >> text=difference →")
    settled(host.page)
    assert host.widget.token > 0 or "other" in host.page.inner_text("[data-panel=map] .gs-note"), before


def test_a_wait_is_shown_and_numbers_keep_their_tokens_name(host):
    page, pieces = host.page, host.widget.data["pieces"]
    host.widget.token = 1
    settled(host.page)
    for name in ("router", "prediction"):
        assert f"“{pieces[1]}”" in panel(host, name)
    page.evaluate(SLOW)
    page.click(".gs-tokens [data-t='3'] >> nth=0")
    page.wait_for_timeout(350)
    for name in ("router", "prediction"):
        assert f"“{pieces[1]}”" in panel(host, name), "the old numbers under their old name"
        body = page.locator(f"[data-panel={name}] .gs-body")
        assert body.get_attribute("aria-busy") == "true"
        assert "waiting for Python" in body.evaluate("e => getComputedStyle(e, '::before').content + e.dataset.wait")
    page.wait_for_timeout(900)
    for name in ("router", "prediction"):
        assert f"“{pieces[3]}”" in panel(host, name)
        assert page.get_attribute(f"[data-panel={name}] .gs-body", "aria-busy") is None


def test_what_is_being_typed_is_not_written_over(host):
    field = "input[aria-label=layer]"
    host.page.fill(field, "2")
    host.widget.token = 5
    settled(host.page)
    assert host.page.input_value(field) == "2"
    host.page.keyboard.press("Tab")
    settled(host.page)
    assert (host.widget.layer, host.widget.token) == (2, 5)
    host.page.fill(field, "99")
    host.page.keyboard.press("Tab")
    settled(host.page)
    assert host.page.input_value(field) == "2", "what is no layer goes back"


def test_without_a_kernel_every_panel_says_what_to_do(chromium, trace):
    bench = gs.explore(trace)
    with Host(chromium, bench) as host:
        host.page.evaluate("() => { model.send = model.save_changes = () => { throw new Error('Cannot send'); }; }")
        host.page.click(".gs-tokens [data-t='3'] >> nth=0")
        host.page.fill("input[aria-label=layer]", "2")
        host.page.keyboard.press("Tab")
        settled(host.page)
        assert "layer 2" in host.page.inner_text(".gs-said >> nth=0"), "the page goes on alone"
        host.page.evaluate("model.set('data', model.get('data'))")
        settled(host.page)
        for name in ("router", "experts", "attention", "prediction", "compare"):
            assert "No kernel: run the cell again." in panel(host, name), name
        host.page.click("[data-panel=edit] button >> text=run")
        settled(host.page)
        assert "No kernel" in panel(host, "edit")
        assert not host.faults
    bench.close()


@pytest.mark.parametrize("width", [500, 900, 1250])
def test_nothing_is_cut_and_no_row_is_left_empty(chromium, trace, width):
    bench = gs.explore(trace)
    with Host(chromium, bench, width=width, height=3000) as host:
        host.page.click("text=logit lens")
        host.page.wait_for_selector(".gs-lens tbody tr")
        lens = host.page.locator(".gs-lens-rows")
        assert lens.evaluate("e => e.scrollWidth <= e.clientWidth")
        boxes = {n: host.page.locator(f"[data-panel={n}]").bounding_box() for n in bench.panels}
        assert max(b["x"] + b["width"] for b in boxes.values()) <= width
        if width > 1156:
            assert boxes["edit"]["y"] == boxes["prediction"]["y"]
            assert boxes["prediction"]["width"] > 1.9 * boxes["edit"]["width"]
        assert not host.faults
    bench.close()


def test_the_first_layers_name_is_whole_on_a_map_of_64(chromium):
    with Host(chromium, gs.widgets.RoutingMap(random_trace(31))) as host:
        top = "c => { const r = devicePixelRatio; return c.getContext('2d').getImageData(0, 0, 32 * r, 1).data.some((v) => v > 0) }"
        assert not host.page.locator("canvas").evaluate(top), "ink in the first line of pixels would be a name cut off"


def test_a_report_promises_nothing_that_needs_python(chromium, pocket, tmp_path):
    path = gs.report(pocket.trace("The moon", capture=["router.*", "logits"]), tmp_path / "x.html", model=pocket)
    page, faults = opened(chromium, path)
    shown = page.inner_text("#root")
    assert "edit below" not in shown
    assert "runs the model" not in shown
    assert page.locator(".gs-lens tbody tr").count() == 8
    assert faults == []
