"""The Router and Experts panels in a real browser, Python behind them."""

from __future__ import annotations

import re

import numpy as np
import pytest
import traitlets

import grokscope as gs
from grokscope.text.visible import visible
from grokscope.widgets.workbench import Workbench
from tests.browser.host import Host, settled
from tests.browser.shapes import HOSTILE, SHAPES, made_up, random_trace
from tests.browser.test_report import opened
from tests.checkpoints.families import model as family

TEXT = "The moon is bright. 床前明月光\ndef moon(): return 42 # مرحبا. The moon and the sun, the moon and the sea."
ROUTER, EXPERTS = "[data-panel=router]", "[data-panel=experts]"


@pytest.fixture(scope="module")
def trace(pocket):
    return pocket.trace([TEXT, "The sun is dark."], capture=["router.*"])


@pytest.fixture
def host(chromium, trace):
    bench = Workbench(trace, panels=["router", "experts"])
    with Host(chromium, bench) as made:
        made.page.wait_for_selector(f"{EXPERTS} .gs-context")
        yield made
    assert not made.faults
    bench.close()


def rows(host, panel):
    """[(expert, label)] in the order shown."""
    found = host.page.eval_on_selector_all(
        f"{panel} [role=option]", "all => all.map(r => [r.dataset.e, r.getAttribute('aria-label')])"
    )
    return [(int(e), label) for e, label in found]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_expert_has_its_logit_and_the_chosen_their_gate(chromium, trace, scheme):
    bench = Workbench(trace, panels=["router"])
    bench.token, bench.layer = 5, 3
    with Host(chromium, bench, scheme, 500) as host:
        settled(host.page)
        at = trace.data.isel(batch=0, token=5).sel(layer=3)
        z, chosen = at["router.logits"].values, at["router.experts"].values.tolist()
        shown = rows(host, ROUTER)
        assert [e for e, _ in shown] == list(range(8))
        for e, label in shown:
            assert float(re.search(r"logit (-?[\d.]+)", label).group(1)) == pytest.approx(z[e], abs=0.006)
            assert ("gate" in label) == (e in chosen)
            assert f"slot {chosen.index(e)}" in label if e in chosen else "slot" not in label
        said = host.page.inner_text(".gs-margin")
        worst = min(chosen, key=lambda e: z[e])
        best = max((e for e in range(8) if e not in chosen), key=lambda e: z[e])
        assert re.search(rf"expert {worst}, .*ahead of runner-up {best}\.", said)
        assert float(re.search(r"is ([\d.]+) logits", said).group(1)) == pytest.approx(z[worst] - z[best], abs=0.006)
        host.page.click(f"{ROUTER} button")
        assert [e for e, _ in rows(host, ROUTER)] == np.argsort(-z).tolist()
        assert not host.faults


def test_a_click_on_a_bar_selects_the_expert_and_on_the_path_the_layer(host):
    host.page.click(f"{ROUTER} [data-e='6']")
    settled(host.page)
    assert host.widget.expert == 6
    assert host.page.get_attribute(f"{EXPERTS} [data-e='6']", "aria-selected") == "true"
    box = host.page.locator(f"{ROUTER} canvas").bounding_box()
    host.page.mouse.click(box["x"] + box["width"] * 4.5 / 8, box["y"] + 20)
    settled(host.page)
    assert host.widget.layer == 4
    assert "layer 4." in host.page.inner_text(".gs-margin")
    host.page.keyboard.press("Tab")
    host.page.focus(f"{ROUTER} canvas")
    host.page.keyboard.press("ArrowLeft")
    settled(host.page)
    assert host.widget.layer == 3
    host.page.focus(f"{ROUTER} [role=listbox]")
    host.page.keyboard.press("ArrowDown")
    settled(host.page)
    assert host.widget.expert == 7


def test_the_path_is_in_the_colours_of_its_experts(host, trace):
    host.widget.token = 7
    settled(host.page)
    first = trace["router.experts"].isel(batch=0, token=7, slot=0).values
    pixels = host.page.eval_on_selector(
        f"{ROUTER} canvas",
        """c => { const r = c.width / c.clientWidth, x = c.getContext('2d');
           return [...Array(8).keys()].map(l => [...x.getImageData((l + 0.5) * c.clientWidth / 8 * r - 12 * r, 42 * r, 1, 1).data.slice(0, 3)].join()) }""",
    )
    assert len({(int(e), p) for e, p in zip(first, pixels, strict=True)}) == len(set(first.tolist())) == len(set(pixels))


def test_loads_are_the_layers_and_python_moves_them(host, trace):
    for layer in (2, 6):
        host.widget.layer = layer
        host.page.wait_for_selector(f"{EXPERTS} >> text=Layer {layer}:")  # a busy machine answers later than the page comes to rest
        settled(host.page)
        chosen = trace["router.experts"].isel(batch=0).sel(layer=layer).values
        chosen = chosen[: int(trace.data["length"].values[0])]
        for e, label in rows(host, EXPERTS):
            shown = float(re.search(r": ([\d.]+) of tokens", label).group(1))
            assert shown == pytest.approx((chosen == e).any(-1).mean(), abs=0.0006)


def test_an_experts_tokens_stand_in_their_context_and_jump(host, trace):
    e = int(trace["router.experts"].isel(batch=0, token=5, slot=0).sel(layer=3))
    host.widget.layer, host.widget.expert = 3, e
    settled(host.page)
    assert host.page.inner_text(f"{EXPERTS} [role=tabpanel] p >> nth=0").startswith(f"Expert {e} at layer 3 serves ")
    at = trace.data.isel(batch=0).sel(layer=3)
    gates = np.where(at["router.experts"].values == e, at["router.gates"].values, -1).max(-1)
    top = int(gates.argmax())
    cells = host.page.eval_on_selector_all(f"{EXPERTS} tr:first-child td", "all => all.map(c => c.textContent)")
    pieces = [visible(p) for p in trace.pieces[0]]
    assert float(cells[0]) == pytest.approx(gates[top], rel=0.01)
    assert cells[1:] == ["".join(pieces[max(0, top - 5) : top]), pieces[top], "".join(pieces[top + 1 : top + 6])]
    host.page.click(f"{EXPERTS} tr:first-child button")
    settled(host.page)
    assert host.widget.token == top


def test_pairs_and_flow_say_their_numbers_and_select(host, trace):
    host.widget.layer, host.widget.expert = 3, 2
    host.page.click("[data-part=together]")
    canvas = host.page.locator(f"{EXPERTS} canvas")
    canvas.hover(position={"x": 26 + 30 * 5.5, "y": 26 + 30 * 2.5})
    chosen = trace["router.experts"].isel(batch=0).sel(layer=3).values[: int(trace.data["length"].values[0])]
    two = (chosen == 2).any(-1)
    share = ((chosen == 5).any(-1) & two).sum() / two.sum()
    said = host.page.inner_text(f"{EXPERTS} [role=tabpanel] p >> nth=1")
    assert float(re.search(r"with expert 2, ([\d.]+) also have expert 5", said).group(1)) == pytest.approx(share, abs=0.006)
    assert "by load alone" in said
    canvas.click(position={"x": 26 + 15, "y": 26 + 30 * 4.5})
    settled(host.page)
    assert host.widget.expert == 4
    host.page.focus("[data-part=together]")
    host.page.keyboard.press("ArrowRight")
    titles = host.page.eval_on_selector_all(f"{EXPERTS} path title", "all => all.map(t => t.textContent)")
    first, after = (trace["router.experts"].isel(batch=0, slot=0).sel(layer=n).values[: len(chosen)] for n in (3, 4))
    for i, j in {(int(a), int(b)) for a, b in zip(first, after, strict=True)}:
        assert f"layer 3 expert {i} → layer 4 expert {j}: {((first == i) & (after == j)).sum()}" in titles
    node = f"4:{int(after[0])}"
    host.page.focus(f"[data-key='{node}']")
    host.page.keyboard.press("Enter")
    settled(host.page)
    assert (host.widget.layer, host.widget.expert) == (4, int(after[0]))
    assert host.page.evaluate("document.activeElement.getAttribute('data-key')") == node


def test_hostile_pieces_stay_text(chromium):
    bench = Workbench(random_trace(len(HOSTILE), gs.MIXTRAL_8X7B, HOSTILE), panels=["router", "experts"])
    with Host(chromium, bench, width=500) as host:
        for e in range(8):
            bench.expert = e
            settled(host.page)
        buttons = set(host.page.eval_on_selector_all(f"{EXPERTS} button.gs-token", "all => all.map(b => b.textContent)"))
        assert buttons
        assert buttons <= {visible(p) for p in HOSTILE}
        assert host.page.title() == ""
        assert host.page.query_selector("#root script, #root img") is None
        assert not host.faults


def test_a_recording_has_its_path_and_says_what_is_missing(chromium):
    rng = np.random.default_rng(0)
    ids = np.argsort(rng.standard_normal((131, 5, 61)), -1)[..., :3].astype(np.int32)
    bench = Workbench(gs.read_routed_experts(ids, num_experts=61), panels=["router", "experts"])
    bench.token, bench.layer = 4, 2
    with Host(chromium, bench) as host:
        settled(host.page)
        said = host.page.inner_text(".gs-margin")
        assert said == f"Token 4 “{bench.data['pieces'][4]}”, layer 2. Experts {', '.join(map(str, ids[4, 2]))} are chosen; how near others came is not recorded."
        assert "does not hold logits and probabilities or the gates: trace with" in host.page.inner_text(ROUTER)
        assert str(int(ids[4, 2, 0])) in host.page.get_attribute(f"{ROUTER} canvas", "aria-label")
        host.page.click("[data-part=flow]")
        host.page.wait_for_selector("text=P(first choice at layer 3, across | at layer 2, down)")
        bench.layer = 4
        host.page.wait_for_selector("text=P(first choice at layer 4, across | at layer 3, down)")
        host.page.locator(f"{EXPERTS} canvas").click(position={"x": 26 + 7.5 * 6, "y": 40})
        settled(host.page)
        assert bench.expert == 7  # the layer is the second one, so its experts are the columns
        assert not host.faults


def test_of_many_experts_the_best_are_shown(chromium):
    from dataclasses import replace

    config = replace(gs.MIXTRAL_8X7B, router=replace(gs.MIXTRAL_8X7B.router, num_experts=61, top_k=4))
    with Host(chromium, Workbench(random_trace(19, config), panels=["router"])) as host:
        settled(host.page)
        assert len(rows(host, ROUTER)) == 16
        assert "The 16 best of 61 experts" in host.page.inner_text(ROUTER)
        assert not host.faults


def test_both_answer_in_a_report(chromium, trace, tmp_path):
    page, faults = opened(chromium, gs.report(trace, tmp_path / "x.html", panels=["text", "router", "experts"]))
    page.click(".gs-tokens [data-t='5'] >> nth=0")
    settled(page)
    assert "ahead of runner-up" in page.inner_text(".gs-margin")
    assert "serves" in page.inner_text(f"{EXPERTS} [role=tabpanel]")
    for part, what in (("together", "canvas"), ("flow", "svg path")):
        page.click(f"[data-part={part}]")
        assert page.query_selector(f"{EXPERTS} {what}")
    assert faults == []


def test_grok_1s_shape_at_8192_tokens_sends_little(chromium):
    bench = Workbench(random_trace(8192), panels=["router", "experts"])
    with Host(chromium, bench) as host:
        settled(host.page)
        before = host.sent
        bench.token, bench.layer, bench.expert = 8000, 63, 7
        settled(host.page)
        assert "layer 63." in host.page.inner_text(".gs-margin")
        assert "Expert 7 at layer 63 serves" in host.page.inner_text(EXPERTS)
        assert host.sent - before < 40_000
        assert not host.faults


def test_many_experts_at_deepseeks_shape(chromium):
    """61 layers of which 3 are dense, 256 experts, 8 slots, sigmoids: what matters has a colour, and all fits the page."""
    bench = gs.explore(made_up(1511, **SHAPES["DeepSeek-V3"]), panels=["text", "map", "router", "experts"])
    with Host(chromium, bench, "dark", width=700, height=2000) as host:
        page = host.page
        page.wait_for_selector(".gs-loads [data-e]")
        assert "layers before 3 not recorded" in page.inner_text(".gs-head")
        assert page.locator("[data-panel=router] canvas").bounding_box()["height"] < 120, "58 layers of 8 slots in a strip"
        assert page.locator("[data-panel=map] canvas").bounding_box()["height"] < 380
        assert page.evaluate("() => document.documentElement.scrollWidth") <= 700
        load = [float(x) for x in page.eval_on_selector_all(".gs-loads [data-e] > :nth-child(3)", "all => all.map(e => e.textContent)")]
        assert len(load) == 256 and load == sorted(load, reverse=True)
        seen = "all => new Set(all.map(e => getComputedStyle(e).backgroundColor)).size"
        bench.expert = int(page.get_attribute(".gs-loads [data-e] >> nth=99", "data-e"))
        settled(page)
        assert page.eval_on_selector_all(".gs-loads .gs-chip", seen) == 8, "six, the selected one, and grey"
        page.select_option("select[aria-label='experts in order of']", "number")
        assert page.get_attribute(".gs-loads [data-e] >> nth=1", "data-e") == "1"
        page.fill("input[aria-label='Find an expert by its number']", "217")
        settled(page)
        assert bench.expert == 217
        page.select_option("select[aria-label='colours for']", "chosen")
        page.fill("input[aria-label='Experts that have a colour, by number']", "5, 217, 9999")
        page.keyboard.press("Tab")
        settled(page)
        assert bench.marks == [5, 217]
        assert [b.split()[0] for b in page.eval_on_selector_all(".gs-swatch", "all => all.map(e => e.textContent)")] == ["5", "217"], "the selected one stands behind the others"
        with pytest.raises(traitlets.TraitError, match="marks: wanted"):
            bench.marks = [256]
        bench.slot = 7
        settled(page)
        assert page.input_value("input[aria-label=slot]") == "7"
        assert not host.faults
    bench.close()


def test_dense_layers_are_rows_without_a_choice(chromium):
    """A tiny DeepSeek-V3, whose first layer is dense: the map has a row of no colour for it, and a click there selects nothing; the
    other rows are coloured by their own experts.
    """
    model, n = family("deepseek_v3/hub"), 42
    trace = model.trace([[5, 9, 3, 7, 11, 13, 2] * 6])
    dense, routed = list(model.config.dense_layers), list(model.config.moe_layers)
    bench = gs.explore(trace, panels=["map"])
    assert bench.data["dense"] == dense == [0] and bench.data["layers"] == routed
    with Host(chromium, bench) as host:
        settled(host.page)
        box = host.page.locator("[data-panel=map] canvas").bounding_box()
        high, wide = (box["height"] - 16) / len(dense + routed), (box["width"] - 34) / n
        before = (bench.token, bench.layer)
        for layer in (0, *routed):
            host.page.mouse.click(box["x"] + 34 + 4.5 * wide, box["y"] + (layer + 0.5) * high)
            settled(host.page)
            assert (bench.token, bench.layer) == ((4, layer) if layer else before)
        colour = """([x, y]) => { const c = document.querySelector('[data-panel=map] canvas'), r = c.width / c.clientWidth;
          return [...c.getContext('2d').getImageData(x * r, y * r, 1, 1).data].join(); }"""
        for layer in (0, *routed):
            seen = [host.page.evaluate(colour, [34 + (t + 0.2) * wide, (layer + 0.25) * high]) for t in range(n) if t != bench.token]
            experts = np.zeros(n, int) if layer == 0 else trace["router.experts", layer].isel(batch=0, slot=0).values
            pairs = set(zip(np.delete(experts, bench.token).tolist(), seen, strict=True))
            assert len(pairs) == len(set(experts.tolist())), f"layer {layer}: an expert has one colour, {pairs}"
            assert layer == 0 or len(set(seen)) > 2
        assert not host.faults
    bench.close()
