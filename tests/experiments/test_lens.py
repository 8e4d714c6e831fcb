"""The logit lens against NumPy on the streams of a trace, and what it must be at the last layer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import grokscope as gs
from grokscope.config import RouterConfig
from grokscope.experiments import lens, logit_lens
from tests.conftest import TINY, make

CONFIGS = {
    "grok": TINY,
    "mixtral": replace(
        TINY, post_norms=False, tied_embedding=False, router=RouterConfig(num_experts=5, top_k=2, renormalize=True)
    ),
    "dense": replace(TINY, router=RouterConfig(num_experts=1, top_k=1)),
}
TEXTS = [np.random.default_rng(n).integers(3, 97, n).tolist() for n in (11, 1, 7)]


def by_hand(model, x):
    """Log-probabilities from a stream, in float64."""
    w = model.weights
    table = np.asarray(w.embed if w.unembed is None else w.unembed, float)
    x = np.asarray(x, float)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + model.config.norm_eps) * np.asarray(w.final_norm, float)
    z = x @ table.T * model.config.logit_scale
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


@pytest.mark.parametrize("name", CONFIGS)
def test_every_site_and_layer_is_as_by_hand(name, monkeypatch):
    model = make(CONFIGS[name])
    monkeypatch.setattr(lens, "ROWS", 16)  # 19 tokens in two stretches
    trace = model.trace(TEXTS, ["resid_*"])
    found = logit_lens(model, trace, top=3)
    end = by_hand(model, trace["resid_post", 2])
    for site in found.site.values:
        for layer in range(3):
            got, here = found.sel(site=site, layer=layer), by_hand(model, trace[site, layer])
            for b, text in enumerate(TEXTS):
                for t in range(len(text)):
                    row, cell = here[b, t], got.isel(batch=b, token=t)
                    best = np.argsort(-row, kind="stable")[:3]
                    np.testing.assert_array_equal(cell.top_id, best)
                    np.testing.assert_allclose(cell.top_prob, np.exp(row[best]), rtol=1e-4)
                    np.testing.assert_allclose(cell.kl, (np.exp(end[b, t]) * (end[b, t] - row)).sum(), atol=1e-5)
                    if t + 1 < len(text):
                        assert cell.target_id == text[t + 1]
                        np.testing.assert_allclose(cell.target_logprob, row[text[t + 1]], rtol=1e-4)
                        assert cell.target_rank == (row > row[text[t + 1]]).sum()
                    else:
                        assert cell.target_id == cell.target_rank == -1
                        assert np.isnan(cell.target_logprob)
                rest = got.isel(batch=b, token=slice(len(text), None))
                assert (rest.top_id == -1).all()
                assert (rest.top_piece == "").all()
                assert np.isnan(rest.kl).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_last_stream_is_the_end(dtype, ids):
    model = make(dtype=dtype)
    found = logit_lens(model, ids)
    last = found.sel(site="resid_post", layer=2)
    assert np.abs(last.kl).max() < (1e-6 if dtype == "float32" else 1e-3)
    logits = model.trace(ids, ["logits"])["logits"].values
    assert (last.top_id.values[..., 0] == logits.argmax(-1)).mean() >= (1 if dtype == "float32" else 0.95)
    # What leaves a layer enters the next.
    np.testing.assert_allclose(
        found.kl.sel(site="resid_post", layer=[0, 1]), found.kl.sel(site="resid_pre", layer=[1, 2]), atol=1e-6
    )


def test_a_trace_and_a_text_and_one_site_say_the_same(tiny, ids):
    whole = logit_lens(tiny, ids, top=1)
    one = logit_lens(tiny, ids, "resid_mid", top=1)
    np.testing.assert_array_equal(one.top_id.sel(site="resid_mid"), whole.top_id.sel(site="resid_mid"))
    some = logit_lens(tiny, tiny.trace(ids, ["resid_mid", "final"], layers=[1], tokens=[2, 3, 7]), "resid_mid", top=1)
    np.testing.assert_allclose(some.kl[0, 0], whole.kl.sel(site="resid_mid", layer=1)[:, [2, 3, 7]], atol=1e-6)
    np.testing.assert_array_equal(some.target_id, np.stack([ids[:, 3], ids[:, 0] * 0 - 1, ids[:, 0] * 0 - 1], 1))


def test_targets_are_a_token_or_ids(tiny, pocket, ids):
    same = logit_lens(tiny, ids, targets=np.full(ids.shape, 5))
    one = logit_lens(tiny, ids, targets=5)
    np.testing.assert_array_equal(same.target_logprob, one.target_logprob)
    assert "nan" not in one.attrs
    holes = np.where(np.arange(11) % 2, 5, -1) + 0 * ids
    some = logit_lens(tiny, ids, targets=holes)
    np.testing.assert_array_equal(np.isnan(some.target_logprob[0, 0]), holes == -1)
    said = logit_lens(pocket, "The cat sat on the", "resid_post", targets="The", top=2)
    assert said.target_id.values[0, 0] == pocket.tokenizer.encode("The")[0]
    last = said.isel(site=0, layer=-1, batch=0, token=-1)
    assert last.top_piece.values[0] == pocket.tokenizer.pieces([int(last.top_id[0])])[0]
    assert said.kl.isel(site=0, layer=0).mean() > said.kl.isel(site=0, layer=-2).mean() > 0


def test_what_cannot_be_answered_says_what_to_do(tiny, pocket, ids):
    bare = tiny.trace(ids, ["resid_pre"])
    other = make(replace(TINY, d_expert=29)).trace(ids, ["resid_*"])
    for call, says in (
        (lambda: logit_lens(tiny, ids, "attn.out"), "wanted some of resid_pre"),
        (lambda: logit_lens(tiny, ids, ()), "got none"),
        (lambda: logit_lens(tiny, ids, top=0), "top: wanted 1 to 97"),
        (lambda: logit_lens(tiny, bare, "resid_pre"), 'add "final"'),
        (lambda: logit_lens(tiny, bare), "did not keep 'resid_mid'"),
        (lambda: logit_lens(tiny, other), "wanted a trace of"),
        (lambda: logit_lens(pocket, bare, "resid_pre"), "wanted a trace of"),
        (lambda: logit_lens(tiny, ids, targets=ids[:, :3]), r"ids \[3, 11\]"),
        (lambda: logit_lens(tiny, ids, targets=ids + 97), "from 0 to 96"),
        (lambda: logit_lens(tiny, ids, targets=97), "from 0 to 96"),
    ):
        with pytest.raises(ValueError, match=says):
            call()


def test_an_edited_run_is_read_as_it_ran(tiny, ids):
    edits = [gs.edits.SetTopK(4, layers=[1])]
    found = logit_lens(tiny, tiny.trace(ids, ["resid_*"], edits=edits), top=1)
    plain = logit_lens(tiny, ids, top=1)
    assert found.attrs["edits"] == [repr(edits[0])]
    np.testing.assert_array_equal(found.top_id.sel(layer=0), plain.top_id.sel(layer=0))
    assert np.abs(found.target_logprob - plain.target_logprob).sel(layer=2).max() > 1e-3
