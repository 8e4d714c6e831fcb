"""The widgets without a browser: what the JavaScript may not do, the view-models against the arrays, `grokscope lab`."""

from __future__ import annotations

import base64
import json
import re
import shutil
import socket
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import grokscope as gs
from grokscope.cli.lab import copy_notebooks, free, open_lab
from grokscope.views.compare import align, comparison
from grokscope.views.payload import NONE, Plane, nested, pack, small
from grokscope.views.routing import PLANES, Text, plane, routing_view
from grokscope.views.still import COLOURS
from grokscope.widgets.assets import MODULES, STATIC, joined, style
from grokscope.widgets.display import picture
from grokscope.widgets.panels import ANSWERS
from tests.browser.shapes import HOSTILE, made_up, random_trace
from tests.conftest import ROOT, make

FORBIDDEN = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|fetch\(|XMLHttpRequest|WebSocket|https?://(?!www\.w3\.org/)"


def test_the_javascript_is_small_and_writes_no_markup_and_asks_no_network():
    assert len(joined().encode()) + len(style().encode()) < 300_000
    for name in (*MODULES, "report"):
        text = (STATIC / f"{name}.js").read_text()
        assert not re.search(FORBIDDEN, text), name
        assert text.startswith("//"), "a file says what it is for"
    assert not re.search(r"url\(|@import", style())
    assert {p.stem for p in STATIC.glob("*.js")} == {*MODULES, "report"}


@pytest.mark.parametrize("report", [False, True])
def test_the_files_join_into_one_module(report, tmp_path):
    made = joined(report)
    assert "./" not in "".join(re.findall(r"^import .*$", made, re.MULTILINE))
    names = re.findall(r"^(?:async )?(?:function|const|class|let) (\w+)", made, re.MULTILINE)
    assert len(names) == len(set(names)), {n for n in names if names.count(n) > 1}
    if node := shutil.which("node"):
        (tmp_path / "x.mjs").write_text(made)
        assert subprocess.run([node, "--check", tmp_path / "x.mjs"]).returncode == 0


def test_the_javascripts_own_tests():
    if not (node := shutil.which("node")):
        pytest.skip("node is not here: the numbers behind the pictures are tested by `node --test tests/browser`")
    files = sorted(map(str, (ROOT / "tests" / "browser").glob("*.test.mjs")))
    done = subprocess.run([node, "--test", *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@given(st.lists(st.floats(-1e6, 1e6, width=32) | st.just(np.nan), min_size=1, max_size=31))
def test_a_plane_is_within_half_a_step(values):
    p = Plane.of(np.array(values), "x")
    back = p.low + (p.high - p.low) * p.q / 254.0
    for v, q, b in zip(values, p.q, back, strict=True):
        assert (q == NONE) == np.isnan(v)
        assert np.isnan(v) or abs(v - b) <= (p.high - p.low) / 508 * 1.01 + 1e-6 * abs(v)


def test_payloads_become_json_and_bytes():
    packed, buffers = pack({"a": np.arange(3, dtype=np.uint16), "b": [float("nan"), np.int64(5)], "c": Plane.of(np.ones(2), "x")})
    assert packed["a"] == {"dtype": "u2", "shape": [3], "buffer": 0}
    assert packed["b"] == [None, 5]
    assert buffers[0] == b"\0\0\1\0\2\0"
    assert nested(packed, buffers)["c"]["q"]["buffer"] == buffers[1]
    with pytest.raises(TypeError, match="convert it in the view-model"):
        pack(np.zeros(3))
    assert small(np.array([-1, 3])).tolist() == [255, 3]
    assert small(np.array([-1, 300])).tolist() == [65535, 300]


def test_planes_are_the_arrays(pocket):
    trace = pocket.trace(["one two three", "four"], capture=["router.*", "logits"])
    text = Text(trace, 1)
    n = text.length
    z = trace["router.logits"].isel(batch=1).transpose("layer", "token", "expert").values[:, :n]
    p = trace["router.probs"].isel(batch=1).transpose("layer", "token", "expert").values[:, :n]
    ranked = np.sort(z, -1)
    wanted = {
        "logit": z[..., 3], "probability": p[..., 3], "entropy": -(p * np.log2(p)).sum(-1), "margin": ranked[..., -2] - ranked[..., -3],
    }  # fmt: skip
    for name, values in wanted.items():
        got = plane(trace, 1, name, 3)
        np.testing.assert_allclose(got.low + (got.high - got.low) * got.q / 254.0, values, atol=(got.high - got.low) / 500)
    surprise = plane(trace, 1, "surprise")
    logprob = pocket.score(["four"])["logprob"].values
    back = surprise.low + (surprise.high - surprise.low) * surprise.q / 254.0
    np.testing.assert_allclose(back[1:], -logprob[-(n - 1) :], atol=(surprise.high - surprise.low) / 250)
    assert surprise.q[0] == NONE
    assert set(PLANES) == {n for n, _ in routing_view(trace).colours}


def test_a_users_own_values_and_what_is_wrong_with_them():
    trace = random_trace(11, gs.MIXTRAL_8X7B)
    assert plane(trace, 0, "values:x", values={"x": np.arange(11)}).q.shape == (11,)
    assert plane(trace, 0, "values:x", values={"x": -np.ones((32, 11))}).signed
    for given_, match in (({"x": np.arange(7)}, r"wanted \[11\] or \[32, 11\]"), ({}, "got 'x'")):
        with pytest.raises(ValueError, match=match):
            plane(trace, 0, "values:x", values=given_)
    with pytest.raises(ValueError, match="wanted a trace with router.experts"):
        routing_view(make().trace([[5, 6, 7]], capture=["resid_pre"]))
    with pytest.raises(ValueError, match="panels: wanted some of"):
        gs.widgets.Workbench(trace, panels=["nonsense"])


@given(st.lists(st.integers(0, 3), max_size=13), st.lists(st.integers(0, 3), max_size=11))
def test_an_alignment_has_every_token_once_in_order(a, b):
    pairs, _ = align(a, b)
    for side, tokens in ((0, a), (1, b)):
        assert [p for p in pairs[:, side] if p >= 0] == list(range(len(tokens)))
    if a == b:
        assert (pairs[:, 0] == pairs[:, 1]).all()


def test_a_comparison_counts_what_is_shared():
    a, b = (random_trace(17, gs.MIXTRAL_8X7B, seed=s) for s in (0, 1))
    found = comparison(Text(a), Text(b))
    x, y = (t["router.experts"].isel(batch=0).transpose("layer", "token", "slot").values for t in (a, b))
    for layer in (0, 31):
        for t in range(17):
            assert found.shared[layer, t] == len(set(x[layer, t]) & set(y[layer, t]))
    assert found.chance.mean() == pytest.approx(0.25, abs=0.03)
    assert comparison(Text(a), Text(a)).agreement.tolist() == [1.0] * 32
    with pytest.raises(ValueError, match="compare like with like"):
        comparison(Text(a), Text(make().trace([[5, 6]])))


def test_a_trace_of_one_token_and_one_layer_opens():
    model = make()
    gs.explore(model.trace([[5]], layers=[1])).close()
    bench = gs.explore(model.trace([[5, 6, 7], [8]], layers=[2]))
    bench.token = 2
    bench.text = 1
    assert (bench.token, bench.layer, len(bench.data["pieces"])) == (0, 2, 1)
    bench.close()


def test_configs_and_traces_show_themselves():
    assert "315,684,820,992" in gs.GROK_1._repr_html_()
    assert "<script" not in random_trace(2, pieces=["<script>", "\u202e"])._repr_html_()


def test_the_notebooks_are_copied_once_and_the_users_are_kept(tmp_path):
    fresh = copy_notebooks(tmp_path / "mine")
    assert "00_tour.ipynb" in fresh
    cells = json.loads((tmp_path / "mine" / "00_tour.ipynb").read_text())["cells"]
    assert not any(cell.get("outputs") for cell in cells), "a picture would pass for a widget that does not answer"
    (tmp_path / "mine" / "00_tour.ipynb").write_text("changed")
    assert copy_notebooks(tmp_path / "mine") == []
    assert (tmp_path / "mine" / "00_tour.ipynb").read_text() == "changed"


def test_a_port_that_is_taken_and_a_folder_that_cannot_be(tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        port = s.getsockname()[1]
        assert not free(port)
        with pytest.raises(OSError, match="something listens there; choose another with --port"):
            open_lab(tmp_path, port, browser=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="name another folder"):
        copy_notebooks(tmp_path / "file" / "x")


def test_a_report_says_what_is_wrong_in_one_line(tmp_path):
    def run(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "grokscope.cli", "report", *args], capture_output=True, text=True, timeout=120)

    assert run("a", "--trace", "b").returncode == 2
    done = run("a", "--out", str(tmp_path / "no" / "x.html"))
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "make it first" in done.stderr


def test_an_edit_says_what_it_did_to_the_text_and_undo_brings_back_what_was_given(pocket):
    text = "床前明月光，疑是地上霜。"
    trace, given = pocket.trace(text, ["router.*", "logits", "attn.q"]), pocket.trace("the moon")
    bench = gs.explore(trace, given, model=pocket)
    bench.layer = 6
    done = ANSWERS["edit"](bench, {"verb": "ban", "expert": 5})
    by_score = pocket.score(text)["logprob"].sum()
    edited = bench.other["logits"].isel(batch=0).values
    ids = trace.data["token_id"].values[0]
    after = sum(row[i] - np.log(np.exp(row - row.max()).sum()) - row.max() for row, i in zip(edited, ids[1:], strict=False))
    assert f"was {by_score:.2f} and is {after:.2f}" in done["note"] and f"{by_score - after:.2f} nats less likely" in done["note"]
    assert "'attn.q'" in done["python"] and "gs.edits.BanExperts(experts=[5], layers=[6])" in done["python"]
    ANSWERS["edit"](bench, {"verb": "undo"})
    assert bench.other is given
    bench.close()


def test_a_colour_of_ones_own_by_its_name_and_recordings_are_not_run(pocket):
    trace = pocket.trace("the moon")
    bench = gs.explore(trace, values={"length": np.arange(trace.data.sizes["token"])})
    bench.colour = "length"
    assert bench.colour == "values:length"
    bench.close()
    recording = gs.read_routed_experts([trace["router.experts"].values[:, 0].swapaxes(0, 1)], num_experts=8)
    bench = gs.explore(recording, model=pocket)
    assert "cannot be run again" in bench.data["lacks"]["edit"]
    bench.close()


def test_the_still_picture_is_text_and_colours_and_one_picture(tmp_path):
    trace = random_trace(len(HOSTILE), pieces=HOSTILE)
    bench = gs.explore(trace)
    bench.layer, bench.token = 3, 2
    made = picture(bench, bench.picture)
    assert set(re.findall(r"<(\w+)", made)) <= {"div", "b", "i", "span", "img", "bdi"}
    assert not re.search(r"<[^>]*\son\w+=", made), "an attribute that runs"
    assert f"grokscope-still-{bench.picture}" in made and "mathjax_ignore" in made and "run the notebook from its top" in made
    spans = re.findall(r'<span style="background-color:rgb\([\d,]+\);color:#\w+;[^"]*" title="expert (\d)">', made)
    assert [int(e) for e in spans] == trace["router.experts"].isel(batch=0, slot=0).sel(layer=3).values.tolist()
    png = base64.b64decode(re.search(r"base64,([^\"]+)", made).group(1))
    assert png[:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">II", png[16:24]) == (len(HOSTILE), 64)
    rows = np.frombuffer(zlib.decompress(png[41:-16]), np.uint8).reshape(64, -1)[:, 1:].reshape(64, -1, 3)
    np.testing.assert_array_equal(rows, COLOURS[trace["router.experts"].isel(batch=0, slot=0).transpose("layer", "token").values])
    bench.close()
    long = gs.explore(made_up(1700, layers=3, experts=131, slots=5))
    long.token = 1650
    told = picture(long, long.picture)
    assert "tokens 1300 to 1699 of 1700" in told and told.count("<span") == 400 and len(told) < 120_000
    long.close()
