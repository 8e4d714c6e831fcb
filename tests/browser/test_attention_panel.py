"""The attention panel in a real browser: what it draws is the pattern, clicks move Python, long texts come as lists."""

from __future__ import annotations

import numpy as np
import pytest

import grokscope as gs
from grokscope.text.visible import visible
from grokscope.trace.trace import Trace
from tests.browser.host import Host, at_the_beginning, settled
from tests.browser.shapes import HOSTILE, random_trace
from tests.conftest import TINY

TEXT = "The moon is bright. 床前明月光\ndef moon(): return 42 # مرحبا"
READS = ".gs-reads [data-t]"


@pytest.fixture(scope="module")
def trace(pocket):
    return pocket.trace([TEXT, "The sun"], capture=["router.*", "attn.q", "attn.k"])


@pytest.fixture(scope="module")
def pattern(pocket):
    whole = pocket.trace([TEXT], capture=["attn.pattern"])["attn.pattern"]
    return whole.isel(batch=0).transpose("layer", "head", "token", "source").values


@pytest.fixture
def host(chromium, trace):
    bench = at_the_beginning(gs.widgets.Attention(trace))
    with Host(chromium, bench) as made:
        made.page.wait_for_selector(".gs-head-map")
        made.page.wait_for_selector(READS)
        yield made
    assert not made.faults
    bench.close()


def told(host):
    """The weight of each token by its title; None for those that come later."""
    titles = host.page.eval_on_selector_all(READS, "all => all.map(s => s.title)")
    return [None if t == "comes later" else float(t.split(": ")[1]) for t in titles]


def heads_seen(trace, tokens, seed=0, config=TINY):
    """A trace of random routing, queries and keys."""
    rng, data = np.random.default_rng(seed), trace.data
    for site, dims, heads in (("attn.q", ("token", "head"), config.num_heads), ("attn.k", ("source", "kv_head"), config.num_kv_heads)):
        values = rng.standard_normal((config.num_layers, 1, tokens, heads, config.d_head), np.float32)
        data[site] = (("layer", "batch", *dims, "d_head"), values)
    return Trace(data)


def test_the_text_says_what_the_token_reads(host, trace, pattern):
    host.widget.layer, host.widget.head, host.widget.token = 3, 4, 9
    settled(host.page)
    assert host.page.eval_on_selector_all(READS, "all => all.map(s => s.textContent)") == [visible(p) for p in trace.pieces[0]]
    got = told(host)
    np.testing.assert_allclose(got[:10], pattern[3, 4, 9, :10], rtol=6e-3)
    assert set(got[10:]) == {None}
    strength = host.page.eval_on_selector_all(
        READS, "all => all.map(s => Number(s.style.background.match(/[0-9.]+(?=\\))/)?.[0] ?? 0))"
    )
    assert int(np.argmax(strength)) == int(np.argmax(pattern[3, 4, 9]))
    host.page.select_option("select[aria-label='whose reading']", "mean")
    np.testing.assert_allclose(told(host)[:10], pattern[3, :, 9, :10].mean(0), rtol=6e-3)
    host.page.select_option("select[aria-label='whose reading']", "max")
    np.testing.assert_allclose(told(host)[:10], pattern[3, :, 9, :10].max(0), rtol=6e-3)
    assert "what “" in host.page.inner_text(".gs-key >> nth=0")


def test_clicks_and_keys_move_python(host):
    host.page.click(f"{READS} >> nth=4")
    host.page.click("[data-head='5']")
    settled(host.page)
    assert (host.widget.token, host.widget.head) == (4, 5)
    assert host.page.get_attribute("[data-head='5']", "aria-selected") == "true"
    host.page.focus(".gs-reads")
    host.page.keyboard.press("End")
    settled(host.page)
    assert host.widget.token == len(host.widget.data["pieces"]) - 1
    host.page.focus(".gs-heads")
    host.page.keyboard.press("ArrowLeft")
    host.page.keyboard.press("ArrowDown")
    settled(host.page)
    assert (host.widget.head, host.widget.layer) == (4, 1)
    assert "L1, head 4" in host.page.inner_text(".gs-key >> nth=0")


def test_one_head_is_drawn_zoomed_and_told(host, pattern):
    host.widget.layer, host.widget.head = 2, 1
    host.page.click("[data-part=head]")
    settled(host.page)
    canvas = host.page.locator(".gs-attention canvas.gs-map")
    n = len(host.widget.data["pieces"])
    assert f"{n} by {n} tokens" in canvas.get_attribute("aria-label")
    box = canvas.bounding_box()
    side = box["width"] - 76

    def at(t, s):
        return box["x"] + 76 + side * (s + 0.5) / n, box["y"] + 62 + side * (t + 0.5) / n

    t = n - 2
    s = int(pattern[2, 1, t].argmax())
    host.page.mouse.move(*at(t, s))
    said = host.page.locator(".gs-attention .gs-tip").inner_text()
    assert float(said.split("about ")[1]) == pytest.approx(pattern[2, 1, t, s], abs=0.02)
    host.page.mouse.click(*at(t, s))
    settled(host.page)
    assert host.widget.token == t
    pixel = "(c, [x, y]) => [...c.getContext('2d').getImageData(x * devicePixelRatio, y * devicePixelRatio, 1, 1).data]"
    seen = canvas.evaluate(f"(c) => ({pixel})(c, [{76 + side * 2.5 / n}, {62 + side * 1.5 / n}])")
    assert seen[3] == 0, "what comes later is left empty"
    assert canvas.evaluate(f"(c) => ({pixel})(c, [{76 + side * 0.5 / n}, {62 + side * 0.5 / n}])")[3] == 255
    host.page.click("[aria-label='zoom in']")
    settled(host.page)
    host.page.mouse.move(box["x"] + 76 + side - 2, box["y"] + 62 + side - 2)
    assert "token" in host.page.locator(".gs-attention .gs-tip").inner_text()
    host.page.focus(".gs-attention canvas.gs-map")
    host.page.keyboard.press("ArrowUp")
    host.page.keyboard.press("ArrowRight")
    settled(host.page)
    assert (host.widget.token, host.widget.head) == (t - 1, 2)


def test_another_text(host):
    host.widget.text = 1
    settled(host.page)
    assert len(told(host)) == len(host.widget.data["pieces"])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_hostile_tokens_are_text(chromium, scheme):
    n = len(HOSTILE)
    bench = gs.widgets.Attention(heads_seen(random_trace(n, TINY, HOSTILE), n))
    with Host(chromium, bench, scheme, width=500) as host:
        bench.token = n - 1
        settled(host.page)
        assert host.page.eval_on_selector_all(READS, "all => all.map(s => s.textContent)") == [visible(p) for p in HOSTILE]
        host.page.click("[data-part=head]")
        settled(host.page)
        assert host.page.title() == ""
        assert host.page.query_selector("#root script, #root img") is None
        assert not host.faults


def test_a_long_text_is_a_list_and_a_head_comes_in_tiles(chromium):
    n = 1500
    bench = gs.widgets.Attention(heads_seen(random_trace(n, TINY), n))
    with Host(chromium, bench) as host:
        bench.token = 1400
        settled(host.page)
        assert host.page.locator(".gs-read").count() == 20
        place = int(host.page.get_attribute(".gs-read >> nth=2", "data-t"))
        host.page.focus(".gs-read >> nth=2")
        host.page.keyboard.press("Enter")
        settled(host.page)
        assert bench.token == place
        host.page.click("[data-part=head]")
        settled(host.page)
        assert "the largest of each block" in host.page.inner_text(".gs-attention")
        for _ in range(3):
            host.page.click("[aria-label='zoom in']")
        settled(host.page)
        assert "the largest of each block" not in host.page.inner_text(".gs-attention")
        assert not host.faults


def test_what_is_missing_is_said(chromium):
    with Host(chromium, gs.widgets.Attention(random_trace(7))) as host:
        assert "trace with capture=['attn.pattern']" in host.page.inner_text("[data-panel=attention]")
        assert not host.faults


def test_attention_that_was_not_kept_is_asked_of_the_model(chromium, pocket, pattern, monkeypatch):
    bench = gs.explore(pocket.trace(TEXT), model=pocket)
    with Host(chromium, bench) as host:
        page = host.page
        page.wait_for_selector(READS)
        bench.layer, bench.head, bench.token = 3, 4, 9
        settled(page)
        np.testing.assert_allclose(told(host)[:10], pattern[3, 4, 9, :10], rtol=6e-3)
        assert "made by one run of the model over" in page.inner_text("[data-panel=attention]")
        row = pattern[:, :, 9]
        bench.layer, bench.head = (int(i) for i in np.unravel_index(row[..., 0].argmax(), row.shape[:2]))
        settled(page)
        share = pattern[bench.layer, bench.head, 9]
        assert f"{round(100 * share[0])} % goes to the text's first token" in page.inner_text(".gs-sink-said")
        page.check("text=rescale without the first token")
        settled(page)
        assert page.get_attribute(f"{READS} >> nth=0", "class") == "gs-apart"
        strength = page.eval_on_selector_all(READS, "all => all.map(s => Number(s.style.background.match(/[0-9.]+(?=\\))/)?.[0] ?? 0))")
        assert int(np.argmax(strength)) == 1 + int(np.argmax(share[1:]))
        assert max(strength) == pytest.approx(0.95), "the largest of the rest has the whole colour"
        assert not host.faults
    bench.close()
    monkeypatch.setattr("grokscope.widgets.attention_panel.UNASKED", 0)
    bench = gs.widgets.Attention(pocket.trace(TEXT), model=pocket)
    with Host(chromium, bench) as host:
        host.page.click("button >> text=show the attention")
        host.page.wait_for_selector(READS)
        assert not host.faults
    bench.close()
