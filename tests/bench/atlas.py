"""An atlas of the embedded model over real text, every twentieth document and every second: time, memory, the page, rows of tables.

    python tests/bench/atlas.py [CORPUS]

CORPUS: JSON lines with text and domain; by default ../shared/corpora/heldout_dev.jsonl.xz, 16 domains. Each side is a process of
its own. Peaks are less that of a process that loaded the model and read two short texts.
"""

from __future__ import annotations

import json
import lzma
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))


def measure(corpus: str, every: str) -> None:
    """Every `every`-th document, or with "0" two short texts; prints one line of JSON."""
    import grokscope as gs

    opened = lzma.open if corpus.endswith(".xz") else open
    with opened(corpus, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for n, line in enumerate(lines) if n % max(1, int(every)) == 0]
    model = gs.load()
    if every == "0":
        rows = [{"text": "The moon is bright.", "domain": "none"}, {"text": "The sun is dark.", "domain": "other"}]
    begun = time.perf_counter()
    atlas = model.atlas([{"text": r["text"], "domain": r["domain"]} for r in rows], "domain")
    seconds = time.perf_counter() - begun
    told = {"documents": len(rows), "tokens": int(atlas.counters.tokens), "seconds": seconds}
    if every != "0":
        with tempfile.TemporaryDirectory() as folder:
            told["page_MB"] = gs.atlas.page(atlas, f"{folder}/a.html").stat().st_size / 1e6
        told["rows"] = {name: len(table) for name, table in gs.atlas.tables(atlas).items()}
    print(json.dumps(told | {"peak_MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3}))


def main() -> None:
    corpus = sys.argv[1] if len(sys.argv) > 1 else str(ROOT.parent / "shared" / "corpora" / "heldout_dev.jsonl.xz")
    made = {}
    for every in ("0", "20", "2"):
        done = subprocess.run([sys.executable, __file__, "--measure", corpus, every], capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr)
        made[every] = json.loads(done.stdout.splitlines()[-1])
        print(made[every])
    small, large = made["20"], made["2"]
    beside = [f"{one['peak_MB'] - made['0']['peak_MB']:.0f} MB for {one['tokens']:,} tokens" for one in (small, large)]
    print(f"memory beside the model: {', '.join(beside)}")


if __name__ == "__main__":
    measure(*sys.argv[2:]) if sys.argv[1:2] == ["--measure"] else main()
