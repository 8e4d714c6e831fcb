"""Training: the loss falls, a run that was stopped goes on as if it had not been, the teachers are heard."""

from __future__ import annotations

import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import jax
import numpy as np
import pytest

from grokscope.checkpoints import native
from grokscope.sweeps.corpus import read_documents
from grokscope.train import loop
from grokscope.train.data import Corpus, batches, plan
from grokscope.train.loop import load_run, num_steps, train
from grokscope.train.pocket import export
from grokscope.train.recipe import Recipe, pocket_config
from tests.conftest import in_a_hurry

CONFIG = pocket_config(
    vocab_size=97, d_model=32, num_layers=2, num_heads=6, num_kv_heads=2, d_head=8, d_expert=24, max_tokens=128
)
RECIPE = Recipe(
    config=CONFIG,
    dtype="float32",
    tokens=24 * 512,
    batch_tokens=512,
    contexts=((64, 0.5), (128, 0.5)),
    warmup=3,
    dropout=0.1,
)

COMPUTES_MUCH = True


def corpus(seed: int, count: int, domain: str) -> Corpus:
    """Documents that can be learnt: each repeats a word of its own."""
    rng = np.random.default_rng(seed)
    documents = [np.concatenate([[1], np.tile(rng.integers(3, 97, 5), 8), [2]]).astype(np.uint16) for _ in range(count)]
    return Corpus(domain, np.concatenate(documents), np.cumsum([0, *map(len, documents)]))


CORPORA = [corpus(0, 150, "a"), corpus(1, 60, "b")]
HELDOUT = [(CORPORA[0].ids[:42].astype(np.int32), 60, "a"), (CORPORA[1].ids[:42].astype(np.int32), 60, "b")]


@pytest.fixture(scope="module")
def fresh():
    """A process that does nothing but train, as `grokscope train` does: its programs are the largest of all."""
    with ProcessPoolExecutor(1, get_context("spawn"), set_every) as pool:
        yield lambda function, *args, **kwargs: pool.submit(function, *args, **kwargs).result()


def set_every() -> None:
    os.environ |= in_a_hurry()
    loop.EVERY = 4


@pytest.fixture(scope="module")
def run(fresh, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return fresh(train, RECIPE, CORPORA, folder, HELDOUT), folder


def log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_the_loss_falls_and_the_log_says_so(run):
    rows = log(run[1])
    assert rows[-1]["step"] == rows[-1]["of"] == num_steps(RECIPE) == 24
    assert rows[-1]["nats"] < rows[0]["nats"] - 0.3
    assert {"tokens_per_second", "least", "most", "bits_per_byte"} <= set(rows[-1])


@pytest.mark.slow
def test_a_stopped_run_goes_on_as_if_it_had_not_been(run, fresh, tmp_path):
    fresh(train, RECIPE, CORPORA, tmp_path, minutes=1e-6)
    with np.load(tmp_path / "state.npz") as state:
        assert 0 < int(state["step"]) < 24
    resumed = fresh(train, RECIPE, CORPORA, tmp_path)
    assert jax.tree.all(jax.tree.map(lambda a, b: np.allclose(a, b, atol=1e-6), resumed, run[0]))


@pytest.mark.slow
def test_a_student_hears_its_teachers_and_is_exported(run, fresh, tmp_path):
    recipe = replace(RECIPE, tokens=6 * 512, contexts=((64, 1.0),), distill=0.5)
    teachers = [load_run(run[1])]
    weights = fresh(train, recipe, CORPORA, tmp_path / "s", HELDOUT, teachers=teachers, start=run[0])
    row = log(tmp_path / "s")[-1]
    assert row["soft"] != row["nats"]
    fresh(export, weights, recipe, tmp_path / "int8", None, HELDOUT)
    assert native.read_config(tmp_path / "int8") == CONFIG
    assert set(json.loads((tmp_path / "int8.json").read_text())) == {"recipe", "float32", "int8"}


def test_documents_do_not_read_each_other_and_answers_follow():
    ids, segments = next(batches(CORPORA, RECIPE))
    assert ids.shape == (8, 65)
    assert (np.diff(segments, axis=1)[ids[:, 1:] == 1] == 1).all()
    assert (np.diff(segments, axis=1)[ids[:, 1:] != 1] == 0).all()


def test_every_document_is_seen_as_often_as_its_domain_needs():
    order, passes = plan(CORPORA, 3 * 8820, 1.0, 0)
    for index, c in enumerate(CORPORA):
        seen = np.bincount(order[order[:, 0] == index, 1], minlength=len(c.starts) - 1)
        assert abs(seen.mean() - passes[c.domain]) < 0.1
        assert seen.max() - seen.min() <= 1


def test_a_recipe_survives_its_file(tmp_path):
    (tmp_path / "r.json").write_text(RECIPE.to_json())
    assert Recipe.from_file(tmp_path / "r.json") == RECIPE


def test_a_pipe_is_no_recipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="pipe: wanted a plain file, got a pipe"):
        Recipe.from_file(tmp_path / "pipe")


@pytest.mark.parametrize(("written", "said"), [
    ('{"tokns": 3}', "got \\['tokns'\\]; did you mean 'tokens'"), ('{"tokens": "many"}', "tokens: wanted a positive whole number, got 'many'"),
    ('{"contexts": [[256]]}', "contexts: wanted several, each"), ('{"dropout": 1}', "dropout: wanted a share"),
    ('{"learning_rate": NaN}', "learning_rate: wanted a positive number"), ('{"config": 3}', "wanted"), ("[1]", "wanted a recipe in JSON"),
])  # fmt: skip
def test_a_recipe_that_cannot_be_run_is_refused_by_its_field(tmp_path, written, said):
    (tmp_path / "r.json").write_text(written)
    with pytest.raises(ValueError, match=said):
        Recipe.from_file(tmp_path / "r.json")


def test_a_run_goes_on_by_the_recipe_that_it_was_begun_with(tmp_path):
    (tmp_path / "recipe.json").write_text(RECIPE.to_json())
    for damaged in (b"", b"foreign", b"PK\x03\x04"):
        (tmp_path / "state.npz").write_bytes(damaged)
        with pytest.raises(ValueError, match="state.npz: wanted a training checkpoint, got a damaged one"):
            loop.steps_done(tmp_path)
    np.savez(tmp_path / "state.npz", step=3)
    assert loop.steps_done(tmp_path) == 3 and not loop.is_complete(tmp_path)
    with pytest.raises(ValueError, match=r"wanted the recipe that was begun here, got another in seed \(0 there, 1 here\)"):
        train(replace(RECIPE, seed=1), CORPORA, tmp_path)


def test_corpus_lines(tmp_path):
    (tmp_path / "train-x.jsonl").write_text('{"text": "a"}\n{"text": "b", "domain": "y"}\n')
    assert [(d.text, d.label) for d in read_documents(tmp_path / "train-x.jsonl", "domain")] == [("a", "x"), ("b", "y")]
    (tmp_path / "train-x.jsonl").write_text('{"text": "a"}\nnonsense\n')
    with pytest.raises(ValueError, match=r"train-x\.jsonl, line 2"):
        list(read_documents(tmp_path / "train-x.jsonl"))
