"""Probes: on made activations whose truth is known, and against scikit-learn's own."""

from __future__ import annotations

import json

import numpy as np
import pytest

import grokscope as gs
from grokscope.activations.layout import Place
from grokscope.experiments import probing
from grokscope.experiments.probing import auc, predicted, task_of
from grokscope.sweeps.harvest_part import Chunk, Piece, Rows, write
from tests.activations.test_activations import about

N, DOCUMENTS = 1200, 40


def made(folder, arrays, ids, labels, experts=None):
    """Activations of DOCUMENTS documents of N tokens in all: arrays by (site, layer)."""
    n = len(ids)
    places = [Place(site, layer, a.shape[-1], 2 if a.ndim == 3 else 0) for (site, layer), a in arrays.items()]
    chunk = Chunk((Piece(0, 0, ids, "", "0", np.ones(n, bool)),), 1, 1, "0" * 16)
    rows = Rows(chunk, places, [1], 2, "float32")
    for key, a in arrays.items():
        rows.arrays[key][...] = a
    rows.routing["experts", 1][...] = [0, 1] if experts is None else experts
    rows.routing["gates", 1][...] = 0.5
    document = np.arange(n) * DOCUMENTS // n
    tokens = {"document": document.tolist(), "position": [*range(n)], "token_id": ids.tolist(), "piece": ["x"] * n, "label": labels.tolist()}
    (folder / "00000-of-00001").mkdir(parents=True)
    write(folder / "00000-of-00001", 0, chunk, rows, tokens, {"read": "1", "documents": "1", "digest": "0" * 16})
    said = about() | {"places": [[p.site, p.layer, p.width, p.slots] for p in places], "config": {"router": {"num_experts": 4}}}
    (folder / "00000-of-00001/harvest.json").write_text(json.dumps(said))
    (folder / "00000-of-00001/done.json").write_text(json.dumps({"parts": 1, "rows": n}))
    return gs.open_activations(folder)


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """Layer 0 knows nothing, layer 1 the label in unit 3 (of documents) and the token's parity in all units but 3."""
    rng = np.random.default_rng(0)
    ids, label = rng.integers(0, 10, N).astype(np.int32), np.arange(N) * DOCUMENTS // N % 3
    noise = rng.standard_normal((2, N, 7)).astype(np.float32)
    noise[1] += 2.5 * (ids % 2)[:, None]
    noise[1][:, 3] = 0.3 * noise[0][:, 0] + 2 * label
    act = rng.standard_normal((N, 2, 5)).astype(np.float32)
    experts = rng.permuted(np.tile(np.arange(4), (N, 1)), axis=1)[:, :2]
    act[..., 2] += 1.5 * ((label == 1)[:, None] & (experts == 2))  # of expert 2 alone
    arrays = {("resid_post", 0): noise[0], ("resid_post", 1): noise[1], ("expert.act", 1): act}
    return made(tmp_path_factory.mktemp("p") / "out", arrays, ids, np.array(["abc"[n] for n in label]), experts)


def test_what_is_there_is_read_and_what_is_not_is_not(known):
    out = gs.experiments.probe(known.select("resid_post"), "label", by=["layer"], k=[0, 1])
    assert dict(out["value"].sizes) == {"layer": 2, "k": 2}
    assert (out["value"].sel(layer=1) > 0.97).all() and (abs(out["value"].sel(layer=0) - 1 / 3) < 0.08).all()
    assert (out["null_mean"] < 0.45).all() and (abs(out["shuffled"] - 1 / 3) < 0.17).all() and (out["commonest"] < 0.5).all()
    assert (out["ci_low"] <= out["value"]).all() and (out["value"] <= out["ci_high"]).all()
    assert (out["z"].sel(layer=1) > 5).all() and (abs(out["z"].sel(layer=0)) < 3.5).all()
    assert out.attrs["unit"] == "accuracy" and out.attrs["documents"] == DOCUMENTS


def test_what_the_word_says_is_no_finding(known):
    odd = (known.tokens["token_id"] % 2 == 1).to_numpy()
    out = gs.experiments.probe(known.select("resid_post", 1), odd, by="layer", seed=1)
    assert out["null_mean"] == 1 and 0.9 < out["value"] <= 1 and out["z"] <= 0


def test_the_right_expert_and_its_neuron(known):
    acts = known.select("expert.act")
    is_b = acts.tokens["label"] == "b"
    by_expert = gs.experiments.probe(acts, is_b, by=["layer", "expert"])["value"].sel(layer=1)
    assert by_expert.values.argmax() == 2 and by_expert[2] > 0.75
    units = gs.experiments.probe(acts, is_b, by=["layer", "expert", "neuron"])
    assert units["value"].sizes == {"layer": 1, "expert": 4, "neuron": 5} and units.attrs["unit"] == "AUC for True"
    best = units["first_half"].stack(u=("expert", "neuron")).idxmax("u").item()
    assert best == (2, 2) and units["second_half"].sel(layer=1, expert=2, neuron=2) > 0.75 and (abs(units["z"]) < 4).sum() >= 18
    assert abs(units["value"].sel(layer=1, expert=2, neuron=2) - 0.856) < 0.03, "Phi(1.5 / sqrt 2)"


def test_documents_are_not_split():
    """Each document has a direction of its own and a class that nothing else goes with: who splits it knows it by heart."""
    rng = np.random.default_rng(0)
    document = np.repeat(np.arange(40), 20)
    x = 4 * rng.standard_normal((40, 60))[document] + rng.standard_normal((800, 60))
    y = rng.permutation(40)[document] % 2
    task = task_of(y, document, np.zeros(800, int), 5, 0)
    assert all(not set(document[a]) & set(document[b]) for a, b in task.folds)
    assert sorted(np.concatenate([b for _, b in task.folds])) == list(range(800))
    assert (predicted(x, task, [task.y], [0])[0, 0] == task.y).mean() < 0.7
    taught = task.shuffled(rng)
    assert all(len(set(taught[document == d])) == 1 for d in range(40)), "documents' classes are shuffled whole"


def test_the_discriminant_is_scikit_learn_s(monkeypatch):
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    monkeypatch.setattr(probing, "SHRINKAGE", 0.0)
    rng = np.random.default_rng(1)
    y, document = rng.choice(4, 600, p=[0.1, 0.2, 0.3, 0.4]), np.arange(600) // 15
    x = rng.standard_normal((600, 6)) @ rng.standard_normal((6, 6)) + rng.standard_normal((4, 6))[y]
    task = task_of(y, document, y, 4, 2)
    ours = predicted(x, task, [task.y], [0, 2])[0]
    for train, test in task.folds:
        theirs = LinearDiscriminantAnalysis(solver="lsqr").fit(x[train], y[train])
        np.testing.assert_array_equal(ours[0][test], theirs.predict(x[test]))


def test_auc_is_scikit_learn_s_and_its_error_that_of_documents():
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(2)

    def draw():
        document = np.repeat(np.arange(30), 8)
        y = rng.integers(0, 2, 30)[document]
        x = np.round(0.8 * y + rng.standard_normal(30)[document] + rng.standard_normal(240), 1)[:, None]
        return x, y, document

    x, y, document = draw()
    assert auc(x, y, document)[0][0] == pytest.approx(roc_auc_score(y, x[:, 0]), abs=1e-12)
    found = np.array([[a[0], s[0]] for a, s, _ in (auc(*draw()) for _ in range(300))])
    assert 0.8 < found[:, 1].mean() / found[:, 0].std() < 1.2
    few = np.flatnonzero(np.isin(document, [*np.unique(document[y == 1])[:1], *np.unique(document[y == 0])]))
    assert np.isnan(auc(x[few], y[few], document[few])[1]).all(), "one document of a class has no error"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": "domain"}, "wanted a column"),
        ({"target": "labels"}, "did you mean 'label'"),
        ({"target": ("router.experts", 7)}, r"one of \[1\]"),
        ({"target": np.zeros(3)}, "one for each of 1,200"),
        ({"target": np.linspace(0, 1, N)}, "got fractions"),
        ({"target": np.zeros(N, int)}, "2 to 512 classes"),
        ({"target": np.arange(N)}, "2 to 512 classes"),
        ({"by": ["head"]}, "some of site, layer"),
        ({"by": ["site"]}, "wanted 'layer' in it"),
        ({"by": ["layer", "expert"]}, "without it"),
        ({"by": ["layer", "neuron"]}, "two classes for neurons"),
        ({"k": -1}, "k: wanted whole numbers"),
        ({"folds": 1}, "folds and most"),
        ({"activations": "out"}, "gs.open_activations"),
        ({"folds": 41}, "wanted 41 documents or more"),
        ({"target": np.arange(N) < 20}, "each class in two documents"),
    ],
)
def test_bad_input_is_one_clear_line(known, change, message):
    with pytest.raises((ValueError, TypeError), match=message) as told:
        gs.experiments.probe(**{"activations": known.select("resid_post"), "target": "label", "by": ["layer"]} | change)
    assert "\n" not in str(told.value)
    with pytest.raises(ValueError, match="with it, as a unit is another in each expert"):
        gs.experiments.probe(known.select("expert.act"), "label", by=["layer"])
