"""What somebody meets who trains a first small model on a laptop."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

import grokscope as gs
from grokscope.train.data import batches, open_tokenizer, tokenize_corpus
from grokscope.train.loop import num_steps
from grokscope.train.pocket import heldout_documents
from grokscope.train.recipe import Recipe, pocket_config
from grokscope.train.tokenizer import train_tokenizer
from tests.conftest import in_a_hurry
from tests.train.test_training import CORPORA, RECIPE

WORDS = ["the", "moon", "river", "stone", "bird", "walks", "over", "old", "green", "hill", "and", "sings", "a", "song", "of", "wind", "in", "night"]


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpora")
    rng = np.random.default_rng(0)
    for name in "ab":
        texts = [" ".join(rng.choice(WORDS, 60)) for _ in range(50)]
        (folder / f"train-{name}.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    assert train_tokenizer(folder, folder / "t.model") < 16_384
    return folder


@settings(max_examples=30, deadline=None)
@given(tokens=st.integers(300, 60_000), batch=st.integers(64, 3000), share=st.floats(0, 1))
def test_any_number_of_tokens_gives_its_steps(tokens, batch, share):
    if round(tokens * share / batch) + round(tokens * (1 - share) / batch) < 1:
        return
    recipe = replace(RECIPE, tokens=tokens, batch_tokens=batch, contexts=((64, share), (128, 1 - share)))
    assert sum(1 for _ in batches(CORPORA, recipe)) == num_steps(recipe)


def test_a_small_text_gets_the_pieces_that_it_has(corpora, tmp_path):
    size = open_tokenizer(corpora / "t.model").get_piece_size()
    assert 300 < size < 1000 and train_tokenizer(corpora, tmp_path / "u.model", 380) == 380
    with pytest.raises(ValueError, match="100 pieces can be made.*another --vocab-size"):
        train_tokenizer(corpora, tmp_path / "v.model", 100)
    with pytest.raises(ValueError, match="vocab_size: wanted up to 65,536 pieces.*got 70,000"):
        train_tokenizer(corpora, tmp_path / "v.model", 70_000)
    (tmp_path / "train-x.jsonl").touch()
    with pytest.raises(ValueError, match="wanted some text in the training files, got none"):
        train_tokenizer(tmp_path, tmp_path / "v.model")
    assert not (tmp_path / "v.model").exists()
    with pytest.raises(FileNotFoundError, match="make it first"):
        train_tokenizer(corpora, tmp_path / "nowhere" / "v.model")


def test_ids_of_another_tokenizer_or_text_do_not_pass(corpora, tmp_path):
    first = tokenize_corpus(corpora, corpora / "t.model", tmp_path)
    train_tokenizer(corpora, tmp_path / "u.model", 360)
    second = tokenize_corpus(corpora, tmp_path / "u.model", tmp_path)
    assert len(first[0].ids) != len(second[0].ids)
    again = tokenize_corpus(corpora, corpora / "t.model", tmp_path)
    assert all((a.ids == b.ids).all() for a, b in zip(first, again, strict=True))
    for kept in tmp_path.glob("*.npz"):  # a disk's damage
        kept.write_bytes(kept.read_bytes()[:-50])
    again = tokenize_corpus(corpora, corpora / "t.model", tmp_path)
    assert all((a.ids == b.ids).all() and a.domain == b.domain for a, b in zip(first, again, strict=True))


def test_tokenizers_that_cannot_be_trained_with(corpora, tmp_path):
    (tmp_path / "no.model").write_text("{}")
    with pytest.raises(ValueError, match="`grokscope train tokenizer` makes one"):
        open_tokenizer(tmp_path / "no.model")
    text = iter(" ".join(WORDS) for _ in range(50))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=text, model_prefix=str(tmp_path / "own"), vocab_size=300, model_type="bpe", byte_fallback=True, bos_id=2, eos_id=1,
        minloglevel=2, hard_vocab_limit=False,
    )  # fmt: skip
    with pytest.raises(ValueError, match="BOS at 1 and EOS at 2"):
        open_tokenizer(tmp_path / "own.model")


def test_held_out_texts_without_a_domain_are_of_their_file(corpora, tmp_path):
    (tmp_path / "heldout_dev.jsonl").write_text('{"text": "the moon"}\n')
    assert [d[2] for d in heldout_documents(tmp_path / "heldout_dev.jsonl", corpora / "t.model")] == ["heldout_dev"]


@pytest.mark.parametrize(("changes", "message"), [
    ({"tokens": 10}, "tokens: wanted enough for a step"), ({"dtype": "float16"}, "dtype: wanted"), ({"contexts": ((9999, 1.0),)}, "up to max_tokens"),
    ({"contexts": ((64, 0.5),)}, "add up to 1"),
])  # fmt: skip
def test_recipes_that_cannot_run(changes, message):
    with pytest.raises(ValueError, match=f"recipe: .*{message}"):
        replace(RECIPE, **changes)


def test_a_recipe_s_file_is_told_when_it_is_none(tmp_path):
    (tmp_path / "r.json").write_text("{")
    with pytest.raises(ValueError, match="r.json: wanted a recipe in JSON.*writes one"):
        Recipe.from_file(tmp_path / "r.json")


@pytest.mark.slow
def test_from_the_shell(corpora, tmp_path):
    config = pocket_config(vocab_size=500, d_model=32, num_layers=2, num_heads=4, num_kv_heads=2, d_head=8, d_expert=16, max_tokens=128)
    recipe = Recipe(config=config, dtype="float32", tokens=5000, batch_tokens=700, contexts=((64, 1.0),))
    (tmp_path / "r.json").write_text(recipe.to_json())
    (tmp_path / "small.json").write_text(replace(recipe, config=replace(config, vocab_size=300)).to_json())

    def train(name, recipe):
        command = [sys.executable, "-m", "grokscope.cli", "train", "model", str(corpora), str(corpora / "t.model"), str(tmp_path / name)]
        return subprocess.run(
            [*command, "--recipe", str(tmp_path / recipe)], capture_output=True, text=True, env=in_a_hurry() | {"JAX_PLATFORMS": "cpu"}, check=False
        )

    done = train("run", "r.json")
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr and "nothing was measured" in done.stdout and f'gs.load("{tmp_path / "run" / "int8"}")' in done.stdout
    assert gs.load(tmp_path / "run" / "int8").trace("the moon").sites and "step 5 of 7: at this pace" in done.stdout
    done = train("other", "small.json")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1) and "vocab_size: wanted the tokenizer's" in done.stderr
