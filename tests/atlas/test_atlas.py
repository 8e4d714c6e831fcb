"""The atlas: parts add up to the whole to the bit, the best are the best, nulls hold, names are tried fairly."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

import grokscope as gs
from grokscope.atlas.atlas import Atlas
from grokscope.atlas.best import BEFORE, ENTRY, Best, mixed
from grokscope.atlas.enriched import enriched
from grokscope.atlas.page import page
from grokscope.counters.counters import RoutingCounters
from grokscope.recordings.routed_experts import read_routed_experts
from tests.browser.shapes import random_trace

WORDS = ["moon", "sea", "def", "(", "月", "return", ",", "the"]
DOCUMENTS = [
    " ".join(np.random.default_rng(n).choice(WORDS, 12)) + f" {n}" for n in range(23)
]
LABELS = ["even", "odd"] * 11 + ["even"]


@pytest.fixture(scope="module")
def whole(pocket) -> Atlas:
    return pocket.atlas(DOCUMENTS, LABELS, contexts=3, sampled=64, near=False)


def same(a: Atlas, b: Atlas) -> None:
    assert list(a.contexts) == list(b.contexts)
    for kind in a.contexts:
        assert a.contexts[kind].entries.tobytes() == b.contexts[kind].entries.tobytes(), kind
    assert a.sample.entries.tobytes() == b.sample.entries.tobytes()
    assert a.sample.experts.tobytes() == b.sample.experts.tobytes()
    for mine, theirs in zip(a.visits.arrays, b.visits.arrays, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert (a.words, a.names) == (b.words, b.names)
    assert a.counters.tokens == b.counters.tokens
    for name in ("load", "coactivation", "transition_first.1"):
        np.testing.assert_array_equal(a.counters.by_shard(name), b.counters.by_shard(name))


def test_shards_and_files_add_up_to_one_pass(pocket, whole, tmp_path):
    parts = [pocket.atlas(DOCUMENTS, LABELS, contexts=3, sampled=64, near=False, shard=(n, 3)) for n in range(3)]
    same(parts[2] + (parts[0] + parts[1]), whole)
    gs.atlas.save(parts[0], tmp_path / "a")
    same(gs.atlas.open_atlas(tmp_path / "a"), parts[0])
    with pytest.raises(ValueError, match="atlas: wanted two of the same contexts"):
        _ = parts[0] + pocket.atlas(DOCUMENTS[:2], contexts=4, near=False)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 5))
def test_the_best_of_parts_are_the_best_of_the_whole(seed, most, documents):
    rng = np.random.default_rng(seed)
    entries = np.zeros(41, ENTRY)
    entries["cell"], entries["value"] = rng.integers(0, 3, 41), rng.integers(0, 4, 41)  # many ties
    entries["document"], entries["position"] = rng.integers(0, documents, 41), rng.integers(0, 5, 41)
    entries["tie"] = mixed(7, entries["document"], entries["position"])
    whole = Best.none(3, most).with_entries(entries)
    cuts = np.split(rng.permutation(entries), sorted(rng.integers(0, 41, 3)))
    parts = [Best.none(3, most).with_entries(c) for c in cuts]
    assert (parts[3] + parts[1] + (parts[0] + parts[2])).entries.tobytes() == whole.entries.tobytes()
    for cell in range(3):  # an oracle in words: of each document its best, of these the best
        mine = entries[entries["cell"] == cell]
        best = {}
        for e in sorted(mine, key=lambda e: (-e["value"], e["tie"])):
            best.setdefault(int(e["document"]), float(e["value"]))
        assert whole.of(cell)["value"].tolist() == sorted(best.values(), reverse=True)[:most]


def test_contexts_are_the_places_where_the_model_weighs_the_expert_most(pocket, whole):
    trace = pocket.trace(DOCUMENTS, capture=["router.*", "expert.out"])
    chosen, gates = trace["router.experts"].values, trace["router.gates"].values
    reach = gates * np.linalg.norm(trace["expert.out"].values, axis=-1)
    for kind, value in (("gate", gates), ("gate_norm", reach)):
        for layer, expert in ((2, 3), (5, 0)):
            at = np.where(chosen[layer] == expert, value[layer], -1).max(-1)  # B T
            best = np.sort(np.nanmax(at, axis=1))[::-1][:3]
            found = whole.contexts[kind].of(layer * 8 + expert)
            np.testing.assert_allclose(found["value"], best[: len(found)], rtol=1e-4)
            rows = gs.atlas.table(whole, "contexts").query(f"kind == '{kind}' and layer == {layer} and expert == {expert}")
            assert rows["document"].is_unique
            text = rows.iloc[0]
            assert text["token"] in text["before"][-1:] + text["token"] and text["before"].startswith("[BOS]")


def test_a_token_that_always_goes_one_way_is_found_and_noise_is_not():
    rng, found = np.random.default_rng(3), []
    for seed in range(6):
        ids = np.stack([rng.permutation(29)[:17] for _ in range(60)])
        ids[:, 9:12] = ids[:, 2:3]  # a word that a text repeats counts once
        experts = np.argsort(rng.random((60, 17, 2, 7)), -1)[..., :2].astype(np.int32)
        if seed == 0:
            token = ids == 5
            experts[token, 1] = [4, 2]
        texts = [{"experts": e, "token_ids": i} for e, i in zip(experts, ids, strict=True)]
        atlas = gs.atlas.from_recording(_read(texts, 7))
        table = enriched(atlas, min_texts=10)
        assert all(row.texts == (ids == int(row.token[1:])).any(1).sum() >= row.visits for row in table.itertuples())
        found.append(len(table.query("p_adjusted < 0.01")))
        if seed == 0:
            best = table.query("layer == 1 and expert == 4").iloc[0]
            assert (best["token"], best["share"]) == ("w5", 1.0)
            share = best["share"] / best["lift"]
            assert best["p"] == pytest.approx(binom.sf(best["visits"] - 1, best["texts"], share))
    assert found[0] == 2
    assert sum(found[1:]) == 0


def _read(texts, experts):
    pieces = [[f"w{i}" for i in t["token_ids"]] for t in texts]
    return read_routed_experts([t["experts"] for t in texts], num_experts=experts, pieces=pieces)


def test_a_recording_without_gates_has_contexts_that_are_drawn_and_one_without_words_is_refused():
    experts = np.argsort(np.random.default_rng(0).random((9, 2, 5)), -1)[..., :2].astype(np.int32)
    atlas = gs.atlas.from_recording(read_routed_experts([experts], num_experts=5, pieces=[list("abcdefghi")]))
    assert list(atlas.contexts) == ["drawn"]
    assert set(gs.atlas.table(atlas, "contexts")["token"]) <= set("abcdefghi")
    with pytest.raises(ValueError, match="with words"):
        gs.atlas.from_recording(read_routed_experts([experts], num_experts=5))
    with pytest.raises(TypeError, match=r"take model\.atlas"):
        gs.atlas.from_recording(["a text"])


def test_names_are_tried_on_documents_that_were_not_shown():
    """Expert 0 takes tokens after "a"; a name for that is right on same tokens too, a list of tokens is not, chance is chance."""
    rng, texts = np.random.default_rng(1), []
    for _ in range(160):
        ids = rng.integers(0, 4, 20)
        after = np.r_[False, ids[:-1] == 0]
        by_word = np.where((ids < 2) & (rng.random(20) < 0.5), 0, rng.integers(1, 5, 20))
        experts = np.stack([np.where(after, 0, rng.integers(1, 5, 20)), by_word], 1)
        texts.append({"experts": experts[..., None].astype(np.int32), "token_ids": ids})
    atlas = gs.atlas.from_recording(_read(texts, 5), contexts=8)
    shown = []

    def named(contexts):
        shown.extend(contexts)
        return "after w0", lambda c: c.before.endswith("w0")

    told = gs.atlas.table(gs.atlas.label(atlas, named), "experts").iloc[0]
    assert told["name"] == "after w0"
    assert told["f1_random"] == told["f1_matched"] == 1
    assert told["f1_p_random"] < 0.01 and 0.4 < told["f1_null_random"] < 0.6
    assert len(shown) == 2 * 5 * 8
    words = gs.atlas.label(atlas, lambda c: ("w0, w1", lambda c: c.token in ("w0", "w1"))).labels.query("layer == 1").iloc[0]
    assert words["f1_random"] > 0.75 > words["f1_matched"] == pytest.approx(words["f1_null_matched"]) == pytest.approx(2 / 3)
    learnt = gs.atlas.label(atlas, lambda contexts: ("those shown", lambda c: c in contexts)).labels.iloc[0]
    assert learnt["f1_random"] == learnt["f1_matched"] == 0
    always = gs.atlas.label(atlas, lambda c: "all", lambda name, cs: [True] * len(cs)).labels.iloc[0]
    assert always["f1_random"] == pytest.approx(2 / 3) == always["f1_null_random"]
    assert always["f1_p_random"] == 1
    assert np.isnan(gs.atlas.label(atlas, lambda c: "untried").labels.iloc[0]["f1_random"])
    with pytest.raises(TypeError, match="wanted a name"):
        gs.atlas.label(atlas, lambda c: 3)
    with pytest.raises(ValueError, match="a truth value for each"):
        gs.atlas.label(atlas, lambda c: "x", lambda name, cs: [True])


def test_scores_of_names_that_say_nothing_are_at_their_null():
    rng = np.random.default_rng(5)
    texts = [{"experts": rng.integers(0, 5, (20, 3, 1)).astype(np.int32), "token_ids": rng.integers(0, 4, 20)} for _ in range(150)]
    table = gs.atlas.label(gs.atlas.from_recording(_read(texts, 5)), lambda c: ("odd", lambda c: hash(c.before) % 2 == 0)).labels
    assert (table["f1_p_random"] < 0.05).mean() <= 0.35  # 15 experts, each of 5 %
    assert abs((table["f1_random"] - table["f1_null_random"]).mean()) < 0.08


def test_the_page_has_what_tables_have_and_nothing_that_runs(whole, pocket, tmp_path):
    near = whole.with_near(gs.atlas.neighbours(pocket, whole, texts=3))
    path = page(near, tmp_path / "atlas.html")
    assert sorted(p.name for p in (tmp_path / "atlas").iterdir()) == [
        "company.parquet", "contexts.parquet", "domains.parquet", "experts.parquet", "nearest.parquet", "tokens.parquet",
    ]  # fmt: skip
    nearest = pd.read_parquet(tmp_path / "atlas" / "nearest.parquet")
    assert set(nearest["kind"]) == {"weights", "outputs"}
    assert not (nearest["expert"] == nearest["other"]).any()
    text = path.read_text()
    assert text.count("<script") == 8 + 2 and "http" not in text.replace("http-equiv", "")
    with pytest.raises(ValueError, match="did you mean"):
        gs.atlas.table(near, "context")
    with pytest.raises(TypeError, match=r"make one with model\.atlas"):
        page(random_trace(5), tmp_path / "x.html")
    with pytest.raises(ValueError, match=r"such as .*a\.html"):
        page(whole, tmp_path / "a")
    with pytest.raises(OSError, match="name another place"):
        page(whole, tmp_path / "no" / "atlas.html")


def test_what_is_no_atlas_is_refused_by_name(whole, tmp_path):
    gs.atlas.save(whole, tmp_path / "a")
    rest = tmp_path / "a" / "atlas.npz"
    data = rest.read_bytes()
    rest.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"atlas\.npz"):
        gs.atlas.open_atlas(tmp_path / "a")
    with pytest.raises(FileNotFoundError, match=r"written by gs\.atlas\.save"):
        gs.atlas.open_atlas(tmp_path)
    with pytest.raises(ValueError, match="contexts: wanted a whole number from 1"):
        gs.atlas.from_recording(random_trace(5), contexts=0)


def test_one_document_counts_once_however_often_it_is_read(pocket):
    atlas = pocket.atlas(["the moon is bright"] * 5, contexts=3, sampled=64, near=False)
    assert atlas.counters.documents == 5
    entries = atlas.contexts["gate"].of(int(atlas.contexts["gate"].entries["cell"][0]))
    assert len(entries) == 1
    assert len(atlas.sample.entries) == atlas.counters.tokens // 5
    assert (atlas.sample.entries["window"][:, BEFORE] >= 0).all()
    assert isinstance(atlas.counters, RoutingCounters)
