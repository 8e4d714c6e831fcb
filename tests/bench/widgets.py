"""How fast the workbench opens and follows at Grok-1's shape (64 layers, 48 heads, 8 experts, 8,192 tokens), random values,
and at the shapes of three mixtures of many experts, made-up recordings.

    python tests/bench/widgets.py

In Chromium, with this Python behind the page. Ratios against the same page with a text of 512 tokens, in the same run; the
seconds are of one machine. A selection's time is from the key press to the second frame after it.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import grokscope as gs
from grokscope.widgets.assets import joined
from tests.browser.host import Host, browser
from tests.browser.shapes import SHAPES, made_up, random_trace

PRESS = """(key) => new Promise((done) => {
  const at = performance.now(); const target = document.activeElement;
  target.dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true }));
  requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - at)));
})"""
IDLE = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"


def measure(chromium: object, trace: gs.Trace) -> dict[str, float]:
    start = time.perf_counter()
    bench = gs.explore(trace)
    built = time.perf_counter() - start
    with Host(chromium, bench) as host:
        host.page.evaluate(IDLE)
        shown = time.perf_counter() - start
        host.page.focus("[data-panel=map] canvas")
        steps = [host.page.evaluate(PRESS, key) for key in ["ArrowRight", "ArrowDown"] * 6]
        layers = []
        for layer in bench.data["layers"][10:18]:
            begun = time.perf_counter()
            bench.layer = layer
            host.page.evaluate(IDLE)
            layers.append(time.perf_counter() - begun)
        found = {
            "explore, s": built, "shown, s": shown, "sent, MB": host.sent * 3 / 4 / 1e6,
            "key press, ms": statistics.median(steps), "set in Python, ms": 1e3 * statistics.median(layers),
        }  # fmt: skip
        assert not host.faults, host.faults
    return found


def main() -> None:
    print(f"JavaScript {len(joined().encode()) / 1e3:.0f} kB (aim 300)")
    with browser() as chromium:
        measure(chromium, random_trace(512))  # the first page pays for the browser's start
        small, large = (measure(chromium, random_trace(n)) for n in (512, 8192))
        many = {name: measure(chromium, made_up(8192, **shape)) for name, shape in SHAPES.items()}
    aims = {"shown, s": 2, "sent, MB": 5, "key press, ms": 150, "set in Python, ms": 150}
    for name, value in large.items():
        aim = f"  (aim {aims[name]})" if name in aims else ""
        print(f"{name:18} 8,192 tokens {value:8.2f}   512 tokens {small[name]:8.2f}   ratio {value / small[name]:.1f}{aim}")
    for name, found in many.items():
        print(f"{name}, 8,192 tokens: " + ", ".join(f"{what.replace(',', '')} {value:.2f}" for what, value in found.items()))


if __name__ == "__main__":
    main()
