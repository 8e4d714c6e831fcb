"""What comes next and the lens, without a browser: against plain formulas and against the model itself."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import grokscope as gs
from grokscope.trace.trace import Trace
from grokscope.views.payload import pack
from grokscope.views.prediction import TOP, lens_view, next_id, next_view
from grokscope.views.routing import Text
from grokscope.widgets import prediction_panel
from grokscope.widgets.panels import ANSWERS, lacks
from tests.conftest import TINY, make

TEXTS = [[5, 9, 13, 2, 31, 8, 7, 7, 44, 96, 3], [9, 4, 7]]


def named(ids):
    return [f"<{i}>" for i in ids]


@given(arrays(np.float32, st.integers(1, 37), elements=st.floats(-50, 50, width=32)), st.data())
def test_the_next_tokens_are_the_softmax(logits, data):
    true = data.draw(st.integers(0, len(logits) - 1))
    got = next_view(logits, true, named)
    z = logits.astype(np.float64)
    p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
    np.testing.assert_allclose(got.probabilities, np.sort(p)[::-1][:TOP], rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(p[got.ids], got.probabilities, rtol=1e-3, atol=1e-6)
    assert got.pieces == named(got.ids)
    piece, rank, probability, surprise = got.true
    assert piece == f"<{true}>"
    assert rank == 1 + sum(x > logits[true] for x in logits)
    assert probability == pytest.approx(p[true], rel=1e-3, abs=1e-6)
    assert surprise == pytest.approx(-np.log(p[true]), abs=1e-3)
    assert got.entropy == pytest.approx(-sum(x * np.log(x) for x in p if x > 0), abs=1e-3)


def test_the_lens_follows_two_tokens():
    logits = np.random.default_rng(0).standard_normal((5, 41)).astype(np.float32) * 3
    got = lens_view([0, 2, 3, 5, 7], logits, 6, named)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    final = int(p[-1].argmax())
    assert got.final == f"<{final}>"
    for i in range(5):
        assert got.pieces[i] == f"<{p[i].argmax()}>"
        assert got.probabilities[i] == pytest.approx(p[i].max(), rel=1e-4)
        followed = ((final, got.final_rank, got.final_probability), (6, got.true_rank, got.true_probability))
        for token_id, ranks, shares in followed:
            assert ranks[i] == 1 + (p[i] > p[i, token_id]).sum()
            assert shares[i] == pytest.approx(p[i, token_id], rel=1e-4)
        assert got.entropy[i] == pytest.approx(-(p[i] * np.log(p[i])).sum(), rel=1e-4)
    assert lens_view([0], logits[:1], None, named).true_rank is None
    assert pack(got)[0]["layers"] == [0, 2, 3, 5, 7]


def test_what_is_no_distribution_is_said_and_what_cannot_come_is_not():
    with pytest.raises(ValueError, match="logits: wanted finite"):
        next_view(np.array([0.0, np.nan], np.float32), None, named)
    got = next_view(np.array([0.0, -np.inf, 1.0], np.float32), 1, named)
    assert got.true[1:3] == (3, 0.0)
    assert got.entropy == pytest.approx(0.582, abs=1e-3)
    assert next_view(np.zeros(3, np.float32), 7, named).true is None
    assert next_view(np.zeros(3, np.float32), 1, lambda ids: ["\u202e<b>"] * len(ids)).pieces[0] == "\\u{202e}<b>"


def test_the_token_that_came():
    trace = make().trace(TEXTS)
    text = Text(trace, 1)
    assert [next_id(text, t) for t in range(3)] == [4, 7, None]
    part = make().trace([TEXTS[0]], tokens=[2, 3, 6])
    assert [next_id(Text(part), t) for t in range(3)] == [2, None, None]


def test_the_panel_says_what_the_model_says():
    model = make()
    trace = model.trace(TEXTS)
    bench = gs.widgets.Prediction(trace, model=model)
    logits = trace["logits"].isel(batch=0).values
    streams = model.trace(TEXTS[:1], capture=["resid_post"])["resid_post"].isel(batch=0).values
    assert ANSWERS["prediction"](bench, {"token": 4})["lens"] == "run"
    norm, table = np.asarray(model.weights.final_norm), np.asarray(model.weights.embed)
    for t in (4, 10):
        got = ANSWERS["lens"](bench, {"token": t})
        x = streams[:, t]
        z = TINY.logit_scale * (x / np.sqrt((x**2).mean(-1, keepdims=True) + TINY.norm_eps) * norm) @ table.T
        np.testing.assert_allclose(z[-1], logits[t], atol=1e-4)
        assert got.pieces == [f"[{i}]" for i in z.argmax(1)]
        np.testing.assert_allclose(got.final_probability, np.exp(z[:, z[-1].argmax()]) / np.exp(z).sum(1), rtol=1e-3)
        assert got.note is None
        assert (got.true is None) == (t == 10)
    said = ANSWERS["prediction"](bench, {"token": 4})
    assert said["lens"] == "ready"
    assert said["next"].true[0] == "[8]"
    bench.text = 1
    assert len(ANSWERS["lens"](bench, {"token": 2}).layers) == 3
    bench.close()


def test_the_panels_lens_is_the_experiments():
    from grokscope.experiments.lens import logit_lens

    model = make()
    bench = gs.widgets.Prediction(model.trace(TEXTS), model=model)
    found = logit_lens(model, TEXTS, sites="resid_post", top=1).isel(site=0, batch=0)
    for t in (2, 7):
        got, there = ANSWERS["lens"](bench, {"token": t}), found.isel(token=t)
        assert got.pieces == [f"[{i}]" for i in there["top_id"].isel(rank=0).values]
        np.testing.assert_allclose(got.probabilities, there["top_prob"].isel(rank=0), rtol=1e-4)
        np.testing.assert_array_equal(got.true_rank, there["target_rank"].values + 1)  # theirs count from 0
        np.testing.assert_allclose(np.log(got.true_probability), there["target_logprob"], atol=1e-3)
    bench.close()


def test_the_text_is_run_once(monkeypatch):
    model, runs = make(), []
    real = type(model).trace
    monkeypatch.setattr(type(model), "trace", lambda self, *a, **k: runs.append(a) or real(self, *a, **k))
    bench = gs.widgets.Prediction(real(model, TEXTS), model=model)
    whole = [ANSWERS["lens"](bench, {"token": t}) for t in range(11)]
    assert len(runs) == 1
    monkeypatch.setattr(prediction_panel, "KEPT", 0)  # as of a text whose streams are too large to stay
    prediction_panel._streams.clear()
    for t in (3, 3, 7):
        np.testing.assert_allclose(ANSWERS["lens"](bench, {"token": t}).probabilities, whole[t].probabilities, rtol=1e-4)
    assert [len(a[0][0]) for a in runs[1:]] == [4, 8]
    bench.close()


def test_captured_streams_need_no_run(monkeypatch):
    model = make()
    trace = model.trace(TEXTS, capture=["router.*", "resid_post"], layers=[0, 2])
    bench = gs.widgets.Prediction(trace, model=model)
    monkeypatch.setattr(type(model), "trace", None)
    assert ANSWERS["lens"](bench, {"token": 3}).layers == [0, 2]
    said = ANSWERS["prediction"](bench, {"token": 3})
    wanted = ANSWERS["lens"](bench, {"token": 3})
    assert said["next"].pieces[0] == wanted.final
    bench.close()


def test_why_there_is_no_lens():
    model = make()
    plain = model.trace([[5, 6, 7]])
    cases = {
        "explore\\(trace, model=model\\)": gs.widgets.Prediction(plain),
        "of an edited run": gs.widgets.Prediction(model.trace([[5, 6, 7]], edits=[gs.edits.BanExperts([1])]), model=model),
        "whole text": gs.widgets.Prediction(model.trace([[5, 6, 7]], tokens=[0, 2]), model=model),
        "of another shape": gs.widgets.Prediction(plain, model=make(dataclasses.replace(TINY, num_layers=2))),
    }
    for why, bench in cases.items():
        with pytest.raises(ValueError, match=why):
            ANSWERS["lens"](bench, {"token": 0})
        assert ANSWERS["prediction"](bench, {"token": 0})["next"].true is not None or why == "whole text"
        bench.close()
    with pytest.raises(ValueError, match="token: wanted 0 to 2"):
        ANSWERS["prediction"](gs.widgets.Prediction(plain), {"token": 3})
    bare = gs.widgets.Prediction(model.trace([[5, 6, 7]], capture=["router.*"]))
    assert "capture=['router.*', 'logits']" in lacks(bare)["prediction"]


def test_another_models_numbers_are_told():
    bench = gs.widgets.Prediction(make().trace(TEXTS), model=make(seed=1))
    notes = [ANSWERS["lens"](bench, {"token": t}).note for t in range(11)]
    assert any(note and "another model" in note for note in notes)


def test_the_embedded_models_words_come_without_its_weights(pocket, monkeypatch):
    trace = pocket.trace("The moon is bright", capture=["router.*", "logits"])
    monkeypatch.setattr("grokscope.model.loading.load", None)
    said = ANSWERS["prediction"](gs.widgets.Prediction(trace), {"token": 2})
    assert said["next"].pieces == [p.replace("\n", "⏎") for p in pocket.tokenizer.pieces(said["next"].ids)]
    other = Trace(trace.data.assign_attrs(grokscope=trace.data.attrs["grokscope"].replace(pocket.tokenizer.sha256, "0" * 64)))
    said = ANSWERS["prediction"](gs.widgets.Prediction(other), {"token": 2})
    assert said["next"].pieces[5] in {f"[{said['next'].ids[5]}]", *trace.pieces[0]}


def softmax(z):
    return np.exp(z - z.max()) / np.exp(z - z.max()).sum()


def test_predictions_of_one_run_and_of_two(pocket):
    text, ban = "The moon is bright.", [gs.edits.BanExperts([3], layers=[2])]
    trace, banned = pocket.trace(["The sun is up.", text]), pocket.trace(["The sun is up.", text], edits=ban)
    p, q = (softmax(t["logits"].isel(batch=1, token=3).values.astype(float)) for t in (trace, banned))
    alone = gs.predictions(trace, top=5, tokens=[3, -1]).query("text == 1 and position == 3")
    assert alone["next_id"].tolist() == np.argsort(-p)[:5].tolist()
    assert alone["next"].tolist() == [gs.visible(w) for w in pocket.tokenizer.pieces(np.argsort(-p)[:5].tolist())]
    np.testing.assert_allclose(alone["probability"], np.sort(p)[::-1][:5], rtol=1e-4)
    two = gs.predictions(trace, banned, top=5, tokens=3).query("text == 1")
    assert set(two["next_id"]) == {*np.argsort(-p)[:5], *np.argsort(-q)[:5]}
    np.testing.assert_allclose(two["probability_other"], q[two["next_id"]], rtol=1e-4)
    np.testing.assert_allclose(two["difference"], (q - p)[two["next_id"]], atol=1e-6)
    assert two["rank"].tolist() == [1 + int((p > p[i]).sum()) for i in two["next_id"]]
    came = gs.predictions(trace, top=pocket.config.vocab_size, tokens=3).query("text == 1 and came")
    assert came["next_id"].tolist() == [int(trace.data["token_id"].values[1, 4])]
    assert len(gs.predictions(trace, tokens=None, top=2)) == 2 * sum(map(len, trace.pieces))


def test_predictions_of_texts_of_other_tokens_are_aligned(pocket):
    long, short = "The moon is very bright.", "The moon is bright."
    trace, other = pocket.trace(long), pocket.trace(short)
    n, m = len(trace.pieces[0]), len(other.pieces[0])
    made = gs.predictions(trace, other, top=3, tokens=None)
    q = softmax(other["logits"].isel(batch=0, token=m - 1).values.astype(float))
    last = made[made["position"] == n - 1]
    np.testing.assert_allclose(last["probability_other"], q[last["next_id"]], rtol=1e-4)
    assert made[made["token"] == "▁very"]["probability_other"].isna().all()
    for call, match in (
        (lambda: gs.predictions(pocket.trace(short, capture=["router.*"])), "wanted logits"), (lambda: gs.predictions("x"), "wanted a Trace"),
        (lambda: gs.predictions(trace, top=0), "1 or more"), (lambda: gs.predictions(trace, tokens=99), "choose of these"),
        (lambda: gs.predictions(trace, make().trace([[1, 2]])), "one vocabulary"),
    ):  # fmt: skip
        with pytest.raises((ValueError, TypeError), match=match):
            call()
