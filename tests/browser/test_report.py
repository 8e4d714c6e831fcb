"""A report opened from disk: all panels, no request, nothing but its own script, within its size."""

from __future__ import annotations

import re

import pytest

import grokscope as gs
from grokscope.text.visible import visible
from tests.browser.host import WATCH, new_page, settled
from tests.browser.shapes import HOSTILE, random_trace
from tests.conftest import TINY


def opened(chromium, path):
    page, faults = new_page(chromium), []
    page.add_init_script(f"({WATCH})()")
    page.on("pageerror", lambda e: faults.append(str(e)))
    page.on("console", lambda m: faults.append(m.text))
    page.on("request", lambda r: r.url == path.as_uri() or faults.append(r.url))
    page.goto(path.as_uri())
    page.wait_for_selector("[data-ready]")
    settled(page)
    return page, faults


def test_it_opens_from_disk_and_follows_a_click(chromium, pocket, tmp_path):
    texts = ["The moon is bright. 床前明月光", "def moon(): return 42"]
    trace = pocket.trace(texts, capture=["router.*", "logits"])
    page, faults = opened(chromium, gs.report(trace, tmp_path / "x.html", model=pocket))
    shown = page.eval_on_selector_all(".gs-tokens:not(.gs-other) [data-t]", "all => all.map(s => s.textContent)")
    assert shown == [visible(p) for p in trace.pieces[0]]
    page.click(".gs-tokens [data-t='3'] >> nth=0")
    page.select_option("select[aria-label='colour tokens by']", "margin")
    settled(page)
    assert "token 3 " in page.inner_text(".gs-said >> nth=0")
    assert "margin" in page.inner_text(".gs-key")
    page.select_option("select[aria-label=text]", "1")
    settled(page)
    assert "moon" in page.inner_text(".gs-tokens >> nth=0")
    assert "of experts shared" in page.inner_text("[data-panel=compare]")
    assert "needs Python" in page.inner_text("[data-panel=edit]")
    assert faults == []


def test_hostile_tokens_and_names_stay_text(chromium, tmp_path):
    trace = random_trace(len(HOSTILE), TINY, HOSTILE)
    page, faults = opened(chromium, gs.report(trace, tmp_path / "<b>x&.html"))
    shown = page.eval_on_selector_all(".gs-tokens:not(.gs-other) [data-t]", "all => all.map(s => s.textContent)")
    assert shown == [visible(p) for p in HOSTILE]
    assert page.title().startswith("GrokScope: random, ")
    assert faults == []


def test_its_policy_forbids_every_request_and_foreign_script(chromium, tmp_path):
    path = gs.report(random_trace(7, TINY), tmp_path / "x.html")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', path.read_text()).group(1)
    assert "default-src &#x27;none&#x27;" in policy
    assert "unsafe" not in policy
    page, _ = opened(chromium, path)
    stopped = page.evaluate("() => fetch('http://127.0.0.1:1/').then(() => 'sent', (e) => e.message)")
    assert "Failed" in stopped
    page.evaluate("() => document.body.append(Object.assign(document.createElement('script'), { textContent: 'window.owned = 1' }))")
    assert page.evaluate("() => window.owned") is None


def test_grok_1s_shape_with_512_tokens_is_under_3_mb(chromium, tmp_path):
    path = gs.report(random_trace(512), tmp_path / "x.html")
    assert path.stat().st_size < 3_000_000
    page, faults = opened(chromium, path)
    assert len(page.query_selector_all(".gs-tokens:not(.gs-other) [data-t]")) == 512
    assert faults == []


def test_one_text_has_nothing_to_compare_with(chromium, pocket, tmp_path):
    page, faults = opened(chromium, gs.report(pocket.trace("The moon"), tmp_path / "x.html", model=pocket))
    assert "Nothing to compare with: the report" in page.inner_text("[data-panel=compare]")
    assert faults == []


def test_what_does_not_fit_is_said(chromium, tmp_path):
    path = gs.report(random_trace(97, gs.MIXTRAL_8X7B), tmp_path / "x.html", max_bytes=200_000)
    page, faults = opened(chromium, path)
    page.select_option("select[aria-label='colour tokens by']", "logit")
    settled(page)
    assert "Not in this report" in page.inner_text("[data-panel=text]")
    assert faults == []


def test_a_failure_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.html"
    path.write_text("old")
    with pytest.raises(OSError, match="name another place"):
        gs.report(random_trace(5, TINY), tmp_path / "no" / "x.html")
    monkeypatch.setattr("os.replace", lambda *a: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OSError, match="No space left"):
        gs.report(random_trace(5, TINY), path)
    assert [p.name for p in tmp_path.iterdir()] == ["x.html"]
    assert path.read_text() == "old"
