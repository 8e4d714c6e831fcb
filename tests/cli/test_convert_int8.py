"""`grokscope convert --int8 --text`: the cost that it says is the one that both models have."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from typer.testing import CliRunner

import grokscope as gs
from grokscope.checkpoints import native
from grokscope.cli.main import app
from grokscope.experiments.precision import precision
from grokscope.transformer.weights import random_weights
from tests.conftest import TINY

TEXT = "The moon is bright. 床前明月光 def moon(): return 42"


def test_the_cost_that_is_said_is_the_one_of_both_models(tmp_path):
    pocket = gs.load()
    config = replace(TINY, vocab_size=pocket.config.vocab_size, eos_id=None)
    native.save(tmp_path / "plain", config, random_weights(config), [Path(pocket.source["path"]) / "tokenizer.model"])
    said = CliRunner().invoke(app, ["convert", str(tmp_path / "plain"), str(tmp_path / "int8"), "--int8", "--text", TEXT])
    assert said.exit_code == 0, said.output
    before, after = map(float, re.search(r"int8 costs ([\d.]+) -> ([\d.]+) bits per byte", said.output).groups())
    found = precision(gs.load(tmp_path / "plain"), gs.load(tmp_path / "int8"), TEXT)
    assert [before, after] == [round(float(b), 4) for b in found["bits_per_byte"].values]
    assert before != after
    assert gs.load(tmp_path / "int8").source["bytes"] < 0.5 * gs.load(tmp_path / "plain").source["bytes"]
