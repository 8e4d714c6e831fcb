"""The prediction panel in a real browser: the next tokens and the lens, as the model has them."""

from __future__ import annotations

import numpy as np
import pytest

import grokscope as gs
from grokscope.text.visible import visible
from tests.browser.host import Host, settled
from tests.browser.shapes import HOSTILE, random_trace
from tests.conftest import TINY

TEXT = "The moon is bright. 床前明月光"


@pytest.fixture(scope="module")
def trace(pocket):
    return pocket.trace(TEXT, capture=["router.*", "logits"])


@pytest.mark.parametrize(("scheme", "width"), [("light", 900), ("dark", 500)])
def test_the_next_tokens_and_the_lens(chromium, trace, pocket, scheme, width):
    bench = gs.widgets.Prediction(trace)
    with Host(chromium, bench, scheme, width=width) as host:
        bench.token = 3
        host.page.wait_for_selector(".gs-next > div")
        settled(host.page)
        z = trace["logits"].isel(batch=0, token=3).values.astype(float)
        best = np.argsort(-z)[:10]
        rows = host.page.eval_on_selector_all(".gs-next > div > :first-child", "all => all.map(s => s.textContent)")
        assert rows[:10] == [visible(p) for p in pocket.tokenizer.pieces(best.tolist())]
        came = int(trace.data["token_id"].values[0, 4])
        rank = 1 + int((z > z[came]).sum())
        assert f"rank {rank}," in host.page.inner_text(".gs-said >> nth=1")
        host.page.click("text=logit lens")
        host.page.wait_for_selector(".gs-lens tbody tr", timeout=60_000)
        assert host.page.locator(".gs-lens tbody tr").count() == 8
        last = host.page.locator(".gs-lens tbody tr >> nth=7").inner_text()
        assert visible(pocket.tokenizer.pieces(best[:1].tolist())[0]) in last
        assert str(rank) in last.split()
        host.page.click("[data-layer='5'] button")
        settled(host.page)
        assert bench.layer == 5
        assert host.page.get_attribute("[data-layer='5']", "aria-selected") == "true"
        host.page.click(".gs-came button")
        settled(host.page)
        assert bench.token == 4
        bench.token = len(bench.data["pieces"]) - 1
        settled(host.page)
        assert "the text ends here" in host.page.inner_text("[data-panel=prediction]")
        assert "came" not in host.page.inner_text(".gs-lens table")
        assert not host.faults
    bench.close()


def test_hostile_tokens_are_text(chromium):
    trace = random_trace(len(HOSTILE), TINY, HOSTILE)
    logits = np.random.default_rng(0).standard_normal((1, len(HOSTILE), 13), np.float32)
    trace.data["logits"] = (("batch", "token", "vocab"), logits)
    with Host(chromium, gs.widgets.Prediction(trace)) as host:
        settled(host.page)
        rows = host.page.eval_on_selector_all(".gs-next .gs-token", "all => all.map(s => s.textContent)")
        assert set(rows) <= {visible(p) for p in HOSTILE} | {"[12]"}
        assert "explore(trace, model=model)" in host.page.inner_text(".gs-lens")
        assert host.page.title() == ""
        assert host.page.query_selector("#root script, #root img") is None
        assert not host.faults


def test_what_is_missing_is_said(chromium):
    with Host(chromium, gs.widgets.Prediction(random_trace(7))) as host:
        assert "trace with capture=['router.*', 'logits']" in host.page.inner_text("[data-panel=prediction]")
        assert not host.faults


@pytest.mark.parametrize(("scheme", "width"), [("light", 1180), ("dark", 400)])
def test_after_an_edit_the_distributions_stand_side_by_side(chromium, trace, pocket, scheme, width):
    bench = gs.explore(trace, model=pocket)
    with Host(chromium, bench, scheme, width=width) as host:
        bench.layer, bench.expert, bench.token = 2, 3, 3
        host.page.click("[data-panel=edit] button >> text=run")
        host.page.wait_for_selector(".gs-beside [role=listitem]")
        host.page.wait_for_selector(".gs-changes tbody tr")
        p, q = (np.exp(x - x.max()) / np.exp(x - x.max()).sum() for t in (trace, bench.other) for x in [t["logits"].isel(batch=0, token=3).values.astype(float)])
        rows = host.page.eval_on_selector_all(".gs-beside [role=listitem]", "all => all.map(r => [...r.children].map(c => c.textContent))")
        best = int(np.argmax(np.maximum(p, q)))
        assert rows[0][0] == visible(pocket.tokenizer.pieces([best])[0])
        assert float(rows[0][1].removesuffix(" %")) == pytest.approx(100 * p[best], rel=0.01)
        assert float(rows[0][2].removesuffix(" %")) == pytest.approx(100 * q[best], rel=0.01)
        told = host.page.inner_text(".gs-changes")
        z = {n: np.log([np.exp(r - r.max())[i] / np.exp(r - r.max()).sum() for r, i in zip(t["logits"].isel(batch=0).values.astype(float)[:-1], trace.data["token_id"].values[0, 1:], strict=True)]).sum() for n, t in (("before", trace), ("after", bench.other))}
        for name, total in z.items():
            assert f"{total:.2f} {name}" in told
        assert host.page.evaluate("() => document.documentElement.scrollWidth") <= width
        wide = host.page.eval_on_selector_all(".gs-beside [role=listitem] .gs-share", "all => Math.min(...all.map(e => e.clientWidth))")
        assert wide >= 12, "the bars have room"
        host.page.click("[data-panel=edit] button >> text=reset")
        host.page.wait_for_selector(".gs-beside", state="detached")
        assert not host.page.inner_text(".gs-changes")
        assert not host.faults
    bench.close()


def test_two_texts_are_not_called_before_and_after(chromium, pocket):
    one, two = pocket.trace("The brown dog came home."), pocket.trace("The red dog came home again.")
    bench = gs.explore(one, two, panels=["text", "prediction", "compare"])
    bench.token = 3
    with Host(chromium, bench) as host:
        host.page.wait_for_selector(".gs-next-head")
        settled(host.page)
        heads = host.page.eval_on_selector_all(".gs-next-head span", "all => all.map(s => s.textContent)")
        assert heads == ["next token", "this text", "the other", "points"]
        said = host.page.inner_text("[data-panel=prediction]")
        assert "before" not in said.lower() and "This text: " in said
        assert "with “[BOS] The red dog" in host.page.inner_text("[data-panel=compare]")
        assert not host.faults
    bench.close()


def test_lines_break_between_words(chromium, pocket):
    """Every line but those that a newline ends begins with a word's first piece, where no word is as long as a line."""
    trace = pocket.trace("The wind in the garden was grey and the summer had been warmer than the winter before it. " * 6)
    bench = gs.explore(trace, panels=["text"])
    with Host(chromium, bench, width=520) as host:
        host.page.wait_for_selector(".gs-tokens [data-t]")
        lines = host.page.eval_on_selector_all(".gs-tokens [data-t]", """all => {
          const tops = all.map(s => [Math.round(s.getClientRects()[0].top), s.textContent, s.getClientRects().length]);
          return tops.filter(([top], i) => i && top > tops[i - 1][0] + 4).map(([, text]) => text).concat(tops.filter(t => t[2] > 1).map(t => "broken " + t[1])); }""")
        assert len(lines) > 5 and all(line.startswith("▁") for line in lines), lines
    bench.close()
