"""Words for a recording: by a tokenizer where it has ids, by hand where not, and nothing that does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import grokscope as gs

EXPERTS = [np.arange(5 * 2 * 2).reshape(5, 2, 2) % 7, np.arange(3 * 2 * 2).reshape(3, 2, 2) % 7]
PIECES = [["one", "two", "<b>", "", "five"], ["a", "b", "c"]]


def test_pieces_by_hand():
    trace = gs.read_routed_experts(EXPERTS, num_experts=7, pieces=PIECES)
    assert trace.data["piece"].values.tolist() == [PIECES[0], [*PIECES[1], "", ""]]
    alone = gs.read_routed_experts(EXPERTS[1], num_experts=7, pieces=PIECES[1])
    assert alone.data["piece"].values.tolist() == [PIECES[1]]
    np.testing.assert_array_equal(alone["router.experts"], gs.read_routed_experts(EXPERTS[1], num_experts=7)["router.experts"])


def test_a_tokenizer_reads_the_ids(pocket, tmp_path):
    text = "The moon is bright."
    ids = pocket.encode(text).rows[0]
    experts = (np.arange(len(ids) * 2 * 2).reshape(-1, 2, 2) % 7).tolist()
    path = tmp_path / "r.json"
    path.write_text(json.dumps({"experts": experts, "token_ids": ids}))
    wanted = pocket.trace(text).data["piece"].values.tolist()
    folder = Path(pocket.source["path"])
    for tokenizer in (pocket.tokenizer, folder / "tokenizer.model", str(folder)):
        trace = gs.read_routed_experts(path, num_experts=7, tokenizer=tokenizer)
        assert trace.data["piece"].values.tolist() == wanted
    assert "tokenizer" not in trace.provenance["recording"]["unknown"] and trace.provenance["tokenizer"] == pocket.tokenizer.sha256


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ({"pieces": PIECES[:1]}, ValueError, r"texts of \[5, 3\] tokens, got \[5\]"),
        ({"pieces": [PIECES[0], PIECES[1][:2]]}, ValueError, r"got \[5, 2\]"),
        ({"pieces": [[1, 2, 3, 4, 5], PIECES[1]]}, ValueError, "a string for each token"),
        ({"pieces": ["words", "abc"]}, ValueError, "a string for each token"),
        ({"tokenizer": "no.model"}, ValueError, "8 tokens without; give pieces="),
        ({"tokenizer": "x", "pieces": PIECES}, ValueError, "got both"),
    ],
)
def test_what_does_not_fit_is_refused(words, error, message):
    with pytest.raises(error, match=message):
        gs.read_routed_experts(EXPERTS, num_experts=7, **words)


def test_router_logits_get_words_too():
    logits = [np.random.default_rng(0).standard_normal((5, 7)) for _ in range(2)]
    trace = gs.read_router_logits(logits, gs.RouterConfig(num_experts=7, top_k=2), pieces=PIECES[0])
    assert trace.pieces == [PIECES[0]]
