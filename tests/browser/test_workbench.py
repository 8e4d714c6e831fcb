"""The workbench in a real browser, Python behind it: what it draws, that a selection moves everything, that tokens stay text."""

from __future__ import annotations

import gc
import json
import weakref

import numpy as np
import pytest
import traitlets

import grokscope as gs
from grokscope.text.visible import visible
from tests.browser.host import Host, at_the_beginning, settled
from tests.browser.shapes import HOSTILE, random_trace

TEXT = "The moon is bright. 床前明月光\ndef moon(): return 42 # مرحبا"


@pytest.fixture(scope="module")
def trace(pocket):
    return pocket.trace([TEXT, "The sun is dark. 床前明月光\ndef sun(): return 7"], capture=["router.*", "logits"])


@pytest.fixture
def host(chromium, trace):
    bench = at_the_beginning(gs.explore(trace))
    with Host(chromium, bench) as made:
        yield made
    assert not made.faults
    bench.close()


def tokens(host):
    return host.page.eval_on_selector_all(".gs-tokens:not(.gs-other) [data-t]", "all => all.map(s => s.textContent)")


def test_every_token_is_text_in_the_colour_of_its_expert(host, trace):
    assert tokens(host) == [visible(p) for p in trace.pieces[0]]
    colours = host.page.eval_on_selector_all(
        ".gs-tokens:not(.gs-other) [data-t]", "all => all.map(s => getComputedStyle(s).backgroundColor)"
    )
    experts = trace["router.experts"].isel(layer=0, batch=0, slot=0).values[: len(colours)]
    for e in set(experts.tolist()):  # one hue an expert, by gate lighter or darker
        mine = [c for c, x in zip(colours, experts, strict=True) if x == e]
        others = [c for c, x in zip(colours, experts, strict=True) if x != e]
        assert not set(mine) & set(others)


def test_a_click_in_one_panel_moves_python_and_the_others(host):
    host.page.click(".gs-tokens [data-t='6'] >> nth=0")
    settled(host.page)
    assert host.widget.token == 6
    assert "token 6 " in host.page.inner_text(".gs-said >> nth=0")
    box = host.page.locator("[data-panel=map] canvas").bounding_box()
    layers, n = 8, len(host.widget.data["pieces"])
    host.page.mouse.click(box["x"] + 34 + (box["width"] - 34) * (9.5 / n), box["y"] + (box["height"] - 16) * (2.5 / layers))
    settled(host.page)
    assert (host.widget.token, host.widget.layer) == (9, 2)
    assert host.page.get_attribute(".gs-tokens [data-t='9'] >> nth=0", "aria-selected") == "true"
    active = host.page.get_attribute(".gs-tokens >> nth=0", "aria-activedescendant")
    assert host.page.get_attribute(f"[id={active}]", "data-t") == "9"


def test_python_moves_the_page(host):
    host.widget.layer, host.widget.token = 5, 3
    settled(host.page)
    assert "layer 5" in host.page.inner_text(".gs-said >> nth=0")
    assert host.page.input_value("input[aria-label=layer]") == "5"
    with pytest.raises(traitlets.TraitError, match="layer: wanted one of 0, 1"):
        host.widget.layer = 8


def test_the_keyboard_goes_everywhere(host):
    host.page.focus(".gs-tokens >> nth=0")
    host.page.keyboard.press("ArrowRight")
    host.page.keyboard.press("ArrowRight")
    host.page.keyboard.press("ArrowDown")
    settled(host.page)
    assert (host.widget.token, host.widget.layer) == (2, 1)
    host.page.focus("[data-panel=map] canvas")
    host.page.keyboard.press("ArrowLeft")
    settled(host.page)
    assert host.widget.token == 1
    host.page.fill("[data-panel=map] input[type=search]", "moon")
    host.page.keyboard.press("Enter")
    settled(host.page)
    assert "moon" in host.widget.data["pieces"][host.widget.token]


def test_colours_by_value(host, trace):
    host.page.select_option("select[aria-label='colour tokens by']", "entropy")
    settled(host.page)
    assert host.widget.colour == "entropy"
    assert "entropy of the router, bits" in host.page.inner_text(".gs-key")
    host.widget.token = 4
    host.page.hover(".gs-tokens [data-t='4'] >> nth=0")
    shown = float(host.page.inner_text(".gs-tip >> nth=0").split("bits ")[1])
    p = trace["router.probs"].isel(layer=0, batch=0, token=4).values
    assert shown == pytest.approx(-(p * np.log2(p)).sum(), abs=3 / 254)
    host.widget.colour = "expert"


def test_another_text_is_another_page(host, trace):
    host.widget.text = 1
    settled(host.page)
    assert tokens(host) == [visible(p) for p in trace.pieces[1]]
    host.widget.text = 0


def test_comparing_two_texts_shows_where_they_differ(host):
    host.page.wait_for_selector("[data-panel=compare] canvas")
    assert "of experts shared (chance" in host.page.inner_text("[data-panel=compare] .gs-said")
    host.page.click("text=difference →")
    settled(host.page)
    assert host.widget.token > 0


def test_an_edit_from_the_panel_gives_a_trace_and_the_line_that_makes_it(host, pocket, trace):
    host.widget.expert, host.widget.layer = 3, 2
    host.page.click("[data-panel=edit] button >> text=run")
    host.page.wait_for_selector("[data-panel=edit] li")
    assert repr(host.widget.edits) == "[BanExperts(experts=[3], layers=[2])]"
    assert not (host.widget.other["router.experts"].sel(layer=2) == 3).any()
    assert host.page.inner_text(".gs-code") == "model.trace(prompt, edits=[gs.edits.BanExperts(experts=[3], layers=[2])])"
    mine = pocket.trace([TEXT, "The sun is dark. 床前明月光\ndef sun(): return 7"], edits=[gs.edits.BanExperts([3], layers=[2])])
    assert (mine["router.experts"] == host.widget.other["router.experts"]).all()
    settled(host.page)
    assert "BanExperts" in host.page.inner_text("[data-panel=compare]")
    host.page.click("[data-panel=edit] button >> text=reset")
    settled(host.page)
    assert host.widget.other is None


def test_heads_and_the_stream_are_edited_too(host):
    page = host.page
    host.widget.layer, host.widget.head = 3, 4
    page.select_option("select[aria-label='what to edit']", "head")
    assert "head 4, layer 3" in page.inner_text("[data-panel=edit]")
    assert page.eval_on_selector_all("select[aria-label='what to do'] option", "all => all.map(o => o.value)") == ["zero", "scale"], "nothing to patch from"
    page.select_option("select[aria-label='what to do']", "scale")
    page.fill("input[aria-label='by how much']", "0.5")
    page.click("[data-panel=edit] button >> text=run")
    page.wait_for_selector("[data-panel=edit] li")
    assert page.inner_text(".gs-code") == "model.trace(prompt, edits=[gs.edits.Scale('attn.z', 0.5, layers=[3], heads=[4])])"
    page.select_option("select[aria-label='what to edit']", "stream")
    assert page.is_visible("select[aria-label='at which place']") and not page.is_visible("select[aria-label='which direction']")
    page.click("[data-panel=edit] button >> text=reset")
    page.wait_for_function("() => !document.querySelector('[data-panel=edit] li')")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_hostile_tokens_are_text_and_do_nothing(chromium, scheme):
    trace = random_trace(len(HOSTILE), pieces=HOSTILE)
    bench = gs.explore(trace, values={"<b>\ud800": np.arange(len(HOSTILE))})  # xarray holds no lone surrogate in a piece
    with Host(chromium, bench, scheme) as host:
        settled(host.page)
        assert tokens(host) == [visible(p) for p in HOSTILE]
        bench.colour = bench.colours[-1]
        settled(host.page)
        assert host.page.inner_text(".gs-key").startswith("<b>\\u{d800}")
        assert host.page.title() == ""
        assert host.page.query_selector("#root script, #root img") is None
        assert not host.faults


def test_a_page_that_is_closed_listens_to_nothing(chromium, trace):
    bench = gs.explore(trace)
    with Host(chromium, bench) as host:
        host.page.evaluate("end()")
        assert host.page.evaluate("count()") == 0
        assert host.page.inner_text("#root") == ""


def test_a_hundred_opened_and_closed_leave_nothing(trace):
    first = gs.explore(trace)
    alive = []
    for _ in range(100):
        panel = gs.widgets.RoutingMap(trace, link=first)
        alive.append(weakref.ref(panel))
        panel.close()
        del panel
    gc.collect()
    assert not any(r() for r in alive)
    assert sum(len(v) for kinds in first._trait_notifiers.values() for v in kinds.values()) < 20


def test_linked_panels_share_the_selection(trace):
    a = gs.explore(trace)
    b = gs.widgets.RoutingMap(trace, link=a)
    a.token, a.layer = 5, 3
    assert (b.token, b.layer) == (5, 3)
    b.expert = 2
    assert a.expert == 2


def test_grok_1s_shape_at_8192_tokens(chromium):
    """It opens, a selection shows, and little is sent; how fast is in tests/bench/widgets.py."""
    trace = random_trace(8192)
    with Host(chromium, gs.explore(trace)) as host:
        assert host.sent < 5_000_000 * 4 / 3  # base64 here, bytes in Jupyter
        assert len(tokens(host)) == 8192
        host.widget.token = 8000
        settled(host.page)
        assert "token 8000 " in host.page.inner_text(".gs-said >> nth=0")
        assert not host.faults


def test_a_recording_shows_what_it_has(chromium):
    rng = np.random.default_rng(0)
    ids = np.stack([rng.permutation(7)[:3] for _ in range(11 * 5)]).reshape(11, 5, 3).astype(np.int32)
    with Host(chromium, gs.explore(gs.read_routed_experts(ids, num_experts=7))) as host:
        settled(host.page)
        assert len(tokens(host)) == 11
        assert host.widget.colours == ["expert"]
        assert "does not say the router" in host.page.inner_text(".gs-head")
        assert "cannot be run again" in host.page.inner_text("[data-panel=edit]")
        assert not host.faults


def test_a_question_that_is_not_one_is_answered_with_a_line(trace):
    bench = gs.explore(trace)
    sent = []
    bench.send = lambda content, buffers=None: sent.append(content)
    for content in ({}, None, {"id": 1}, {"id": 1, "want": "plane", "params": {"expert": -1, "name": "gate"}},
                    {"id": 2, "want": "plane", "params": {"expert": 0, "name": "__class__"}},
                    {"id": 3, "want": "edit", "params": {"verb": "exec", "expert": 0}}):  # fmt: skip
        bench._asked(bench, content, [])
    assert [s["id"] for s in sent] == [1, 2, 3]
    assert all("wanted" in s["error"] for s in sent)
    assert json.dumps(sent)
