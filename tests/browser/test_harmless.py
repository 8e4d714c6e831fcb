"""Markup in all that untrusted files bring, shown in JupyterLab: nothing of it runs."""

from __future__ import annotations

import json

import pytest

from grokscope.counters.counters import RoutingCounters
from tests.browser.host import browser
from tests.browser.jupyter import Lab, notebook
from tests.test_harmless import EVIL, marked_trace

pytestmark = pytest.mark.slow
CELLS = (
    "import grokscope as gs, dataclasses, json\ntrace = gs.open_trace('t.zarr')\ntrace",
    "trace.data",
    "trace['router.experts']",
    "gs.RoutingCounters.open('c.npz')",
    "gs.routing.expert_load(gs.RoutingCounters.open('c.npz'))",
    "dataclasses.replace(gs.GROK_1, activation=open('evil.txt').read())",
    "gs.inspect('m').config",
    "gs.read_routed_experts('r.json')",
    "gs.explore(trace)",
    "open('seen.txt', 'w').write('all')",
)


def test_nothing_of_it_runs(tmp_path):
    with browser() as chromium, Lab(tmp_path) as lab:
        marked_trace().save(lab.folder / "t.zarr")
        RoutingCounters.from_trace(marked_trace(), EVIL).save(lab.folder / "c.npz")
        (lab.folder / "evil.txt").write_text(EVIL)
        (lab.folder / "m").mkdir()
        (lab.folder / "m" / "config.json").write_text(json.dumps({"format": "grokscope", "model": {"norm_eps": EVIL, EVIL: 1}}))
        (lab.folder / "r.json").write_text(json.dumps({"experts": [[[0, 1]]], EVIL: EVIL, "layers": [EVIL]}))
        made = notebook(*CELLS)
        for cell in made.cells:
            cell.metadata["tags"] = ["raises-exception"]
        lab.save("x.ipynb", made)
        page = lab.open(chromium, "x.ipynb")
        lab.run_all(page)
        page.wait_for_selector(".grokscope [data-t='1']", timeout=60_000)
        page.wait_for_timeout(500)
        assert (lab.folder / "seen.txt").exists()
        assert page.evaluate("() => window.PWNED") is None
        assert page.locator(".jp-OutputArea-output img[src=x]").count() == 0
        assert page.locator(".jp-OutputArea-output").count() >= len(CELLS)
        outputs = page.evaluate("() => [...document.querySelectorAll('.jp-OutputArea-output')].map((o) => o.textContent).join('')")
        assert "onerror" in outputs, "it is shown, as text"
        assert "\u202e" not in outputs.split("trace.data")[0]
        assert not [fault for fault in lab.faults if "PWNED" in fault]
