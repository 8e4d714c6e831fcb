"""Harvests: a corpus' activations are those of its traces, whoever writes them and whatever interrupts."""

from __future__ import annotations

import dataclasses
import errno
import shutil

import numpy as np
import pytest

import grokscope as gs
from grokscope.sweeps import harvest as harvesting
from grokscope.sweeps import harvest_part
from grokscope.sweeps.harvest_part import share_of
from tests.checkpoints.families import model as family


class Letters:
    """A tokenizer that needs no file."""

    vocab_size = 90

    def encode(self, text):
        return [3 + ord(c) % 86 for c in text]

    def pieces(self, ids):
        return [f"<{i}>" for i in ids]


WORDS = ["the moon is", "床前明月光", "return x", "abc", "0123456789 " * 7]  # few lengths, so that little is compiled
SITES = ["resid_post", "expert.act"]
TEXTS = [{"text": f"{WORDS[n % 5]} {n}", "kind": "even" if n % 2 == 0 else "odd"} for n in range(17)]


@pytest.fixture(scope="module")
def lettered(tiny):
    return dataclasses.replace(tiny, tokenizer=Letters())


@pytest.fixture(scope="module")
def whole(lettered, tmp_path_factory):
    out = tmp_path_factory.mktemp("h") / "all"
    return lettered.harvest(TEXTS, SITES, out, layers=[1, 2], labels="kind", dtype="float32")


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def alike(acts, trace, at, sites, layer):
    """The rows of one document are the trace's."""
    some = acts.where(at)
    for site in sites:
        rows, wanted = some[site, layer], trace[site, layer].values[0]
        if rows.slot is not None:
            np.testing.assert_array_equal(rows.expert, trace["router.experts", layer].values[0].ravel())
            np.testing.assert_array_equal(rows.token, np.repeat(np.arange(len(some)), wanted.shape[1]))
        np.testing.assert_allclose(rows[:], wanted.reshape(len(rows), -1), atol=2e-4, err_msg=site)
    k = list(acts.routed).index(layer)
    np.testing.assert_array_equal(some.experts[:, k], trace["router.experts", layer].values[0])
    np.testing.assert_allclose(some.gates[:, k], trace["router.gates", layer].values[0], atol=1e-5)


MORE = ["resid_post", "attn.z", "router.logits", "expert.act", "expert.out"]


@pytest.mark.parametrize("name", ["granitemoe", "deepseek_v3"])
def test_rows_of_other_families_are_those_of_their_traces(name, tmp_path):
    m = dataclasses.replace(family(f"{name}/hub"), tokenizer=Letters())
    acts = m.harvest([t["text"] for t in TEXTS[:4]], MORE, tmp_path / "h", layers=[-1], dtype="float32")
    trace = m.trace(TEXTS[0]["text"], [*MORE, "router.*"], layers=[-1])
    alike(acts, trace, acts.tokens["document"] == 0, MORE, m.config.num_layers - 1)
    assert acts.routed == list(m.config.moe_layers)
    read = gs.experiments.probe(acts.select("router.logits"), acts.tokens["position"] % 2 == 0, by="layer", folds=2)
    assert read["value"].sizes == {"layer": 1} and 0 <= read["value"] <= 1


def test_rows_of_pocket_are_those_of_its_traces(pocket, tmp_path):
    texts = ["The moon is bright.", "la lune est claire"]
    acts = pocket.harvest(texts, ["moe.in", "expert.act"], tmp_path / "h", layers=[6])
    assert acts["moe.in", 6].parts[0].dtype.name == "bfloat16", "half the bytes by default"
    trace = pocket.trace(texts[1], ["moe.in", "expert.act", "router.*"], layers=[6])
    some = acts.where(acts.tokens["document"] == 1)
    np.testing.assert_allclose(some["moe.in", 6][:], trace["moe.in", 6].values[0], rtol=2**-8, atol=1e-6)
    assert acts.tokens["piece"].tolist()[:2] == ["[BOS]", "▁The"]


def test_a_trace_says_the_same_of_every_document_and_of_pieces_of_long_ones(lettered, whole):
    table = whole.tokens
    assert len(whole) == sum(len(t["text"]) for t in TEXTS) and whole.is_whole
    for n in (0, 9, 4):
        ids = lettered.tokenizer.encode(TEXTS[n]["text"])
        here = (table["document"] == n).to_numpy()
        assert table["token_id"][here].tolist() == ids
        assert table["position"][here].tolist() == list(range(len(ids)))
        assert set(table["label"][here]) == {TEXTS[n]["kind"]}
    for first in (0, 67):
        here = ((table["document"] == 4) & (table["position"] // 67 * 67 == first)).to_numpy()
        trace = lettered.trace([ids[first : first + 67]], [*SITES, "router.*"])
        alike(whole, trace, here, SITES, 2)


def test_processes_choose_the_same_tokens(lettered, whole, tmp_path):
    asked = {"sites": SITES, "layers": [1, 2], "labels": "kind", "tokens": 0.3, "dtype": "float32"}
    one = lettered.harvest(TEXTS, out=tmp_path / "one", **asked)
    three = [lettered.harvest(TEXTS, out=tmp_path / "three", shard=(n, 3), **asked) for n in (2, 0, 1)][-1]
    assert three.is_whole and 0.2 < len(one) / len(whole) < 0.4
    order = np.lexsort((three.tokens["position"], three.tokens["document"]))
    assert three.tokens.iloc[order].to_numpy().tolist() == one.tokens.to_numpy().tolist()
    np.testing.assert_array_equal(three["resid_post", 1][order], one["resid_post", 1][:])
    np.testing.assert_array_equal(three.experts[order], one.experts)
    kept = [share_of(f"{n:x}", 0, 5, 1000, 0.25) for n in range(40)]
    assert abs(np.mean(kept) - 0.25) < 0.01
    assert (share_of("a", 0, 0, 99, 0.25)[7:] == share_of("a", 0, 7, 92, 0.25)).all(), "by position, not by piece"
    assert (share_of("a", 0, 0, 999, 0.5) != share_of("a", 1, 0, 999, 0.5)).any()


def test_stopped_and_taken_up_again_are_the_same_bytes(lettered, tmp_path, monkeypatch):
    monkeypatch.setattr(harvesting, "PART_TOKENS", 30)
    asked = {"sites": SITES, "layers": [1, 2], "classes": lambda words: [w < "<50>" for w in words]}
    lettered.harvest(TEXTS, out=tmp_path / "whole", **asked)
    wanted = files(tmp_path / "whole")
    assert sum("tokens/" in name for name in wanted) > 5

    def fails_at(number, error):
        def written(path, **options):
            if f"{number:08d}" in path.name and "expert.act" in str(path):
                raise error
            return real(path, **options)

        real = harvest_part.whole_file
        monkeypatch.setattr(harvest_part, "whole_file", written)
        return real

    for number, error, kind in ((2, KeyboardInterrupt(), KeyboardInterrupt), (4, OSError(errno.ENOSPC, "full"), OSError)):
        real = fails_at(number, error)
        with pytest.raises(kind, match="documents are in .*: the same call goes on there"):
            lettered.harvest(TEXTS, out=tmp_path / "again", **asked)
        monkeypatch.setattr(harvest_part, "whole_file", real)
    assert not list((tmp_path / "again").rglob("*expert.act*/*/00000004*")) + list((tmp_path / "again").rglob("resid_post/*/00000004*")), "cleared"
    with pytest.raises(ValueError, match="goes on, or open it with partial=True"):
        gs.open_activations(tmp_path / "again")
    assert len(gs.open_activations(tmp_path / "again", partial=True)) > 100
    (last,) = (tmp_path / "again").rglob("tokens/00000003.parquet")
    last.write_bytes(last.read_bytes()[:-9])  # as a power cut may leave it on a careless disk
    with pytest.raises(ValueError, match="wanted the .* documents that were read here, got others"):
        lettered.harvest(TEXTS[::-1], out=tmp_path / "again", **asked)
    with pytest.raises(ValueError, match="differs in seed"):
        lettered.harvest(TEXTS, out=tmp_path / "again", seed=1, **asked)
    acts = lettered.harvest(TEXTS, out=tmp_path / "again", **asked)
    assert files(tmp_path / "again") == wanted
    assert set(acts.tokens["class"]) == {"inside", "outside"}
    assert files(tmp_path / "whole") == wanted and len(lettered.harvest(TEXTS, out=tmp_path / "whole", **asked)) == len(acts)


def test_no_room_is_said_before_anything_runs(lettered, whole, tmp_path, monkeypatch):
    plan = lettered.harvest(TEXTS, SITES, None, layers=[1, 2], dtype="float32", labels="kind")
    stored = sum(a.nbytes for n in (1, 2) for a in whole["resid_post", n].parts)
    assert plan.loc["resid_post", "bytes"] == stored and plan.loc["tokens", "tokens"] == len(whole)
    assert plan.loc["expert.act", "bytes"] == len(whole) * 2 * 2 * (24 * 4 + 7)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, (1 << 26) + 10_000))
    with pytest.raises(OSError, match=r"What would fit: tokens=0\.\d+, or fewer layers or sites"):
        lettered.harvest(TEXTS, SITES, tmp_path / "h", layers=[1, 2], dtype="float32")
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sites": ["attn.pattern"]}, "as wide as a text; use trace"),
        ({"sites": ["router.gates"]}, "which come anyway, got none"),
        ({"sites": ["resid"]}, "did you mean"),
        ({"tokens": 0}, "wanted a share above 0"),
        ({"tokens": True}, "wanted a share above 0"),
        ({"dtype": "int8"}, "wanted one of bfloat16, float32"),
        ({"seed": -1}, "whole number from 0"),
        ({"labels": "domain"}, "have 'text', 'kind'|have 'kind'"),
        ({"source": []}, "at least one token, got none"),
        ({"classes": lambda words: ["a"]}, "for each of 13 tokens"),
        ({"shard": (3, 2)}, "shard: wanted"),
        ({"layer": [1]}, "did you mean 'layers'|wanted arguments of"),
    ],
)
def test_bad_input_is_one_clear_line(lettered, tmp_path, change, message):
    with pytest.raises((ValueError, TypeError), match=message) as told:
        lettered.harvest(**{"source": TEXTS, "sites": SITES, "layers": [1, 2], "out": tmp_path / "h"} | change)
    assert "\n" not in str(told.value)


def test_a_directory_of_something_else_is_refused(lettered, tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(FileExistsError, match="name another"):
        lettered.harvest(TEXTS, SITES, tmp_path)
    lettered.harvest(TEXTS[:3], SITES, tmp_path / "two", layers=[1, 2], shard=(0, 2))
    with pytest.raises(FileExistsError, match="1 in all"):
        lettered.harvest(TEXTS[:3], SITES, tmp_path / "two")
    with pytest.raises(ValueError, match="the folders of all processes"):
        gs.open_activations(tmp_path / "two")
