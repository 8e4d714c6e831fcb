"""The README's pictures, made anew: python -m tests.browser.pictures"""

from __future__ import annotations

import hashlib
from pathlib import Path

import grokscope as gs
from tests.browser.host import Host, browser
from tests.conftest import ROOT

TEXT = "The moon is bright tonight, and the sea is calm. 床前明月光，疑是地上霜。\ndef moon(phase):\n    return phase * 42"
FOLDER = ROOT / "notebooks" / "pictures"
MADE_FROM = FOLDER / "made-from.txt"


def drawn_by() -> str:
    """A digest of what draws the panels: their scripts and styles, and this file."""
    static = ROOT / "grokscope" / "widgets" / "static"
    files = [*sorted(p for p in static.iterdir() if p.suffix in (".js", ".css")), Path(__file__)]
    return hashlib.sha256(b"".join(p.read_bytes() for p in files)).hexdigest()


def main() -> None:
    """One of the text and the map, one of the panels below, after an edit."""
    model = gs.load(dtype="float32")
    trace = model.trace(TEXT, capture=["router.*", "logits", "attn.pattern"])
    bench = gs.explore(trace, model=model)
    with browser() as chromium, Host(chromium, bench, width=1180) as host:
        bench.layer, bench.token, bench.expert = 6, 16, 5
        host.page.wait_for_timeout(1500)
        host.page.click("[data-panel=edit] button >> text=run")
        host.page.wait_for_selector("[data-panel=edit] li")
        host.page.click("[data-panel=prediction] button >> text=logit lens")
        host.page.wait_for_selector("[data-panel=prediction] table")
        host.page.wait_for_timeout(1500)
        for name in bench.panels:
            host.page.locator(f"[data-panel={name}]").screenshot(path=FOLDER / f"{name}.png")
        assert not host.faults, host.faults
    MADE_FROM.write_text(f"{drawn_by()}\n")
    bench.close()


if __name__ == "__main__":
    main()
