"""The atlas' page in a browser: found by token, name and number, wandered in, quick at 20,000 experts, harmless, offline."""

from __future__ import annotations

import time

import numpy as np
import pandas as pd
import pytest

import grokscope as gs
from grokscope.harmless import visible
from tests.browser.host import WATCH, new_page, settled
from tests.browser.shapes import HOSTILE


def made(layers: int, experts: int, words: list[str], contexts: int = 4) -> dict[str, pd.DataFrame]:
    """Tables of so many experts, at random."""
    rng, n = np.random.default_rng(0), layers * experts
    at = {"layer": np.repeat(np.arange(layers), experts), "expert": np.tile(np.arange(experts), layers)}

    def each(times: int) -> dict[str, np.ndarray]:
        return {k: np.repeat(v, times) for k, v in at.items()} | {"rank": np.tile(np.arange(times), n)}

    def word(size: int) -> list[str]:
        return [words[i] for i in rng.integers(0, len(words), size)]

    lists = {name: pd.DataFrame(each(5) | {"kind": name, "other": rng.integers(0, experts, 5 * n), "value": rng.random(5 * n), "null_mean": 0.1})
             for name in ("together", "next", "weights")}  # fmt: skip
    texts = ["".join(word(15)) for _ in range(2000)]
    before, after = ([texts[i] for i in rng.integers(0, 2000, contexts * n)] for _ in range(2))
    pieces = {"before": before, "token": word(contexts * n), "after": [a[:60] for a in after]}
    return {
        "experts": pd.DataFrame(at | {"load": rng.random(n), "null_mean": 1 / experts}),
        "contexts": pd.DataFrame(each(contexts) | {"kind": "gate", "value": rng.random(contexts * n), "label": "web"} | pieces),
        "tokens": pd.DataFrame(each(4) | {"token": word(4 * n), "visits": 5, "texts": 9, "lift": 2.5, "p_adjusted": 0.01}),
        "domains": pd.DataFrame(at | {"label": "web", "value": 0.1, "null_mean": 0.1, "z": np.nan}),
        "company": pd.concat([lists["together"], lists["next"]]), "nearest": lists["weights"],
    }  # fmt: skip


@pytest.fixture(scope="module")
def atlas(pocket):
    texts = ["the moon is bright over the sea", "def moon(): return 42", "床前明月光"]
    found = pocket.atlas([f"{t} {n}" for n in range(12) for t in texts], ["en", "py", "zh"] * 12, contexts=3, sampled=64)
    return gs.atlas.label(found, lambda contexts: f"name of {contexts[0].token}", layers=[2])


def ready(chromium, path):
    page, faults = new_page(chromium, 1100, 800), []
    page.add_init_script(f"({WATCH})()")
    page.on("pageerror", lambda e: faults.append(str(e)))
    page.on("console", lambda m: faults.append(m.text))
    page.on("request", lambda r: r.url.startswith(path.as_uri()) or faults.append(r.url))
    page.goto(path.as_uri())
    page.wait_for_selector("body[data-ready]")
    return page, faults


def test_an_expert_is_found_and_leads_to_others(chromium, atlas, tmp_path):
    page, faults = ready(chromium, gs.atlas.page(atlas, tmp_path / "atlas.html"))
    assert page.inner_text("h2") == "L0 E0"
    assert len(page.query_selector_all("nav a")) == 8
    page.fill("input", "l2 e3")
    page.click("nav a >> nth=0")
    page.wait_for_selector("[data-ready='L2 E3']")
    assert page.inner_text("h2").startswith("L2 E3: name of ")
    shown = page.eval_on_selector_all(".context mark", "all => all.map((m) => m.textContent)")
    rows = gs.atlas.table(atlas, "contexts").query("layer == 2 and expert == 3")
    assert shown == [visible(t) for t in rows["token"]]
    page.fill("input", "def")
    words = page.eval_on_selector_all("nav a", "all => all.map((a) => a.textContent)")
    found = gs.atlas.table(atlas, "tokens").query("p_adjusted < 0.05")
    assert len(words) > 1
    assert len(words) == found[found["token"].str.lower().str.contains("def")].groupby(["layer", "expert"]).ngroups
    page.fill("input", "name of")
    assert len(page.query_selector_all("nav a")) == atlas.labels.shape[0]
    page.click("article table a >> nth=-1")
    settled(page)
    assert page.inner_text("h2").startswith("L2 E") and page.inner_text("h2") != "L2 E3"
    page.go_back()
    page.wait_for_selector("[data-ready='L2 E3']")
    assert faults == []


def test_twenty_thousand_experts_open_within_two_seconds(chromium, tmp_path):
    words = [f"word{n} " for n in range(5000)]
    path = gs.atlas.page(made(60, 333, words, contexts=2), tmp_path / "atlas.html", parquet=False)
    start = time.perf_counter()
    page, faults = ready(chromium, path)
    opened_after = time.perf_counter() - start
    start = time.perf_counter()
    page.fill("input", "word4321")
    page.wait_for_function("document.querySelector('nav p').textContent.includes(' experts') && document.querySelectorAll('nav a').length < 333")
    searched = time.perf_counter() - start
    print(f"20,000 experts: {path.stat().st_size / 1e6:.1f} MB, open after {opened_after:.2f} s, search {searched:.2f} s")
    assert opened_after < 6, "2 s on a machine of its own"
    assert faults == []
    with pytest.raises(ValueError, match="at most 20,000 experts"):
        gs.atlas.page(made(61, 333, words, contexts=1), path)


def test_hostile_words_and_names_stay_text(chromium, tmp_path):
    tables = made(2, 3, HOSTILE)
    tables["experts"]["name"] = (HOSTILE * 3)[:6]
    page, faults = ready(chromium, gs.atlas.page(tables, tmp_path / "<b>x&.html", parquet=False))
    for number, name in enumerate(tables["experts"]["name"]):
        page.evaluate("(h) => { location.hash = h }", f"#L{number // 3}E{number % 3}")
        page.wait_for_selector(f"[data-ready='L{number // 3} E{number % 3}']")
        assert page.text_content("h2") == f"L{number // 3} E{number % 3}: {visible(name)}"
    assert page.query_selector_all("article img, article script, article b:not(.bar b)") == []
    stopped = page.evaluate("() => fetch('http://127.0.0.1:1/').then(() => 'sent', (e) => e.message)")
    assert "Failed" in stopped
    assert [f for f in faults if "127.0.0.1" not in f and "Content Security" not in f] == []
