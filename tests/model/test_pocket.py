"""The embedded model is trained, small, and what its card says."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

import grokscope as gs
from grokscope.train.evaluate import evaluate
from tests.conftest import ROOT, shared

FOLDER = ROOT / "grokscope" / "data" / "pocket"

COMPUTES_MUCH = True


def test_size_and_shape(pocket):
    sizes = [p.stat().st_size for p in FOLDER.iterdir()]
    assert sum(sizes) <= 40_000_000
    assert max(sizes) <= 16 * 2**20
    config = pocket.config
    assert (config.router.num_experts, config.router.top_k) == (8, 2)
    assert config.router == gs.GROK_1.router
    for field in (
        "norm_eps",
        "rope",
        "attention_cap",
        "logit_scale",
        "post_norms",
        "activation",
        "tied_embedding",
    ):
        assert getattr(config, field) == getattr(gs.GROK_1, field)
    assert config.embed_scale == pytest.approx(config.d_model**0.5)
    assert config.attention_scale == pytest.approx(config.d_head**-0.5)


CONTINUED = {
    "The old man looked at the sea and": lambda text: (
        sum(c.isascii() for c in text) > 0.95 * len(text) and " a " in text.lower()
    ),
    "def fibonacci(n):\n    ": lambda text: any(w in text for w in ("return", "Return", "if ", "for ", "self")),
    "中国的首都是": lambda text: sum("\u4e00" <= c <= "\u9fff" for c in text) > 0.6 * len(text),
}


@pytest.mark.parametrize("prompt", CONTINUED)
def test_it_continues_in_the_prompt_s_language(pocket, prompt):
    made = pocket.generate(prompt, 48, temperature=0.7, top_p=0.9, seed=1, capture=())
    assert CONTINUED[prompt](made.continuation), made.continuation


def test_it_predicts(pocket):
    scored = pocket.score(["The capital of France is Paris. " * 3, "import numpy as np\n"])
    assert list(scored.columns) == ["prompt", "position", "token_id", "token", "logprob", "n_bytes"]
    assert scored.groupby("prompt")["n_bytes"].sum().tolist() == [96, 19]
    assert scored["logprob"].notna().all()
    assert -scored["logprob"].mean() < 5
    assert (scored["logprob"] <= 0).all()


def test_scores_are_those_of_the_trace(pocket):
    text = "Ein kleiner Satz, 漢字 und\n\tnoch etwas."
    logits = pocket.trace(text, "logits")["logits"].values[0].astype(np.float64)
    ids = pocket.tokenizer.encode(text)
    logprobs = logits[np.arange(len(ids)), ids] - np.log(np.exp(logits).sum(-1))[: len(ids)]
    np.testing.assert_allclose(pocket.score(text)["logprob"], logprobs, atol=1e-4)


def test_scores_of_a_text_longer_than_the_context(pocket):
    short = replace(pocket, config=replace(pocket.config, max_tokens=32))
    text = "one two three four five six seven eight nine ten " * 6
    scored = short.score(text)
    assert scored["logprob"].notna().all()
    np.testing.assert_allclose(scored["logprob"][:31], pocket.score(text)["logprob"][:31], atol=1e-4)


@pytest.mark.slow
def test_quality_on_some_held_out_text(pocket):
    """The beginning of a document of each domain, which reads 1.18; the card has the figures of all, of whole texts."""
    short = replace(pocket, config=replace(pocket.config, max_tokens=512))
    measured = evaluate(short, shared("corpora/heldout_dev.jsonl.xz"), documents=1)
    assert len(measured["bits_per_byte"]) == 17
    assert measured["bits_per_byte"]["mean"] < 1.2
    assert np.array(measured["load"]).min() > 0.01


def test_the_card_s_figures():
    figures = json.loads((FOLDER / "figures.json").read_text())
    card = (FOLDER / "README.md").read_text()
    assert figures["bits_per_byte"]["mean"] <= 1.52
    assert np.array(figures["load"]).min() >= 0.03
    assert max(figures["domain_bits"]) >= 0.6 > max(figures["null_max"])
    assert figures["bits_per_byte"]["mean"] - figures["bits_per_byte_float32"]["mean"] <= 0.01
    for domain, value in figures["bits_per_byte"].items():
        assert f"{value:.3f}" in card, domain
