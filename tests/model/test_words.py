"""A mistake is answered with one line: what was wanted, what came, what to do."""

from __future__ import annotations

import copy
import inspect
import pickle
import subprocess
import sys
import types
from functools import cache
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import traitlets

import grokscope as gs
from grokscope import arguments
from tests.conftest import in_a_hurry, make

MODEL = make()
IDS = [[3, 4, 5, 6]]


@cache
def traced():
    return MODEL.trace(IDS, ["attn.pattern", "router.*"], layers=[0, 2])


@pytest.mark.parametrize(("call", "message"), [
    (lambda: MODEL.trace(IDS, captures=["logits"]), "trace: wanted arguments of prompt, .*got 'captures'; did you mean 'capture'"), (lambda: MODEL.generate(IDS, max_length=3), "did you mean 'max_new_tokens'"),
    (lambda: MODEL.generate(IDS, 1, do_sample=True), "did you mean 'temperature'"), (lambda: MODEL.plan(IDS, layer=[1]), "did you mean 'layers'"), (lambda: MODEL.capture(toknes=[1]), "did you mean 'tokens'"),
    (lambda: MODEL.trace(IDS, layers=[2.5]), r"layers: wanted some of 0 to 2, got \[2.5\]"), (lambda: MODEL.trace(IDS, layers="two"), "layers: wanted some of 0 to 2"), (lambda: gs.Capture.of("logits", [1.5]), "whole numbers"),
    (lambda: MODEL.trace(IDS, capture=5), "wanted names of sites, got int '5'"), (lambda: MODEL.trace(IDS, capture=len), "wanted names of sites, got builtin"), (lambda: MODEL.trace(IDS, ["attn.patern"]), "did you mean 'attn.pattern'"),
    (lambda: MODEL.trace(IDS, gs.Capture(("logits",)), layers=[1]), "layers in the Capture"), (lambda: MODEL.add_hook, "run_with_hooks takes functions"), (lambda: MODEL.W_Q, "weights are data"),
    (lambda: MODEL.tace, "did you mean 'trace'"), (lambda: gs.lod, "did you mean 'load'"), (lambda: gs.load(MODEL), "a directory or a hub id, got Model"), (lambda: gs.load(dtype=np.float16), "wanted bfloat16 or float32, got 'float16'"),
    (lambda: gs.load(dtype=3), "bfloat16 or float32"), (lambda: traced().pattern, "Trace has no"), (lambda: traced().piecs, "did you mean 'pieces'"), (lambda: traced()[3], "wanted a name, got int"), (lambda: traced()["pattern", 0.5], "number of a layer"),
    (lambda: gs.explore("text"), "wanted a Trace, got str; model.trace.text. makes one"), (lambda: gs.explore(MODEL), "got Model"), (lambda: setattr(gs.explore(traced()), "lyer", 3), "did you mean 'layer'"),
    (lambda: gs.routing.expert_loads, "did you mean 'expert_load'"),
    (lambda: MODEL.trace(IDS, heads=[2]), "heads: wanted a site that has heads, got router.logits"), (lambda: MODEL.trace(IDS, "resid_pre", experts=[2]), "experts: wanted a site that has experts, got resid_pre"),
    (lambda: gs.experiments.head_scores(traced()), "head_scores: wanted a Model, then texts, got Trace"), (lambda: gs.experiments.logit_lens(traced(), IDS), "wanted a Model"),
    (lambda: gs.experiments.logit_attribution(traced(), IDS), "wanted a Model"), (lambda: gs.routing.domain_information(gs.RoutingCounters.from_trace(traced(), labels=["a"]), ["a"]), "labels: wanted none beside counters"),
])  # fmt: skip
def test_one_line_that_helps(call, message):
    with pytest.raises((ValueError, TypeError, AttributeError), match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("call", "message"), [
    (lambda: gs.edits.BanExperts(layer=3), "BanExperts: wanted arguments of experts, layers, tokens, reroute, got 'layer'; did you mean 'layers'"), (lambda: gs.edits.Add(), "Add: .*got none for site"),
    (lambda: gs.load(device="cpu"), "load: .*JAX chooses"), (lambda: gs.load(torch_dtype="float32"), "did you mean 'dtype'"), (lambda: gs.load(*[None] * 9), "too many positional"),
    (lambda: gs.explore(modle=MODEL), "explore: .*did you mean 'model'"), (lambda: gs.widgets.Router(traced(), panls=[]), "did you mean 'panels'"), (lambda: setattr(gs.explore(traced()), "panels", ["rooter"]), "did you mean 'router'"),
    (lambda: MODEL.sweep(["a"], lables="x"), "sweep: .*did you mean 'labels'"), (lambda: gs.routing.transitions(traced(), distanse=2), "did you mean 'distance'"), (lambda: gs.RoutingCounters.open(pth="x"), "did you mean 'path'"),
    (lambda: gs.experiments.logit_lens(MODEL, IDS, site=["x"]), "did you mean 'sites'"), (lambda: gs.plots.lines(gs.routing.load_imbalance(traced()), variabel="z"), "did you mean 'variable'"), (lambda: gs.Capture.of("logits", layer=1), "did you mean 'layers'"),
    (lambda: gs.edits.BanExperts([1], reroute="no"), "reroute: wanted True or False, got 'no'"), (lambda: MODEL.trace(IDS, truncate="no"), "truncate: wanted True or False"), (lambda: gs.open_trace("no\x1b[2J"), r"no.u\{1b\}\[2J: wanted a trace"),
    (lambda: gs.open_trace(None), "open_trace: path: wanted a path, got None"), (lambda: gs.load(config={"a": 1}), "load: config: wanted a ModelConfig, got dict"), (lambda: gs.visible(5), "visible: text: wanted a text, got int '5'"),
    (lambda: MODEL.trace(IDS, resume=5), "resume: wanted a path, got int"), (lambda: gs.explore(traced(), model="pocket"), "model: wanted a Model, got str 'pocket'"), (lambda: MODEL.trace(IDS, max_bytes=-1), "number of bytes from 0"),
    (lambda: traced().save(), "save: wanted arguments of path, got none for path"), (lambda: gs.metrics.logprob(), "logprob: .*got none for"),
])  # fmt: skip
def test_names_of_arguments_are_answered_with_the_nearest(call, message):
    assert gs.Model is type(MODEL) and gs.Trace is type(traced())  # handed out, as load hands them out
    with pytest.raises((ValueError, TypeError, OSError, traitlets.TraitError), match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_what_answers_for_its_arguments_is_what_it_was():
    made = gs.routing.expert_load
    assert gs.load.__doc__.startswith("A model from") and "quantize" in inspect.signature(gs.load).parameters
    assert list(inspect.signature(gs.edits.BanExperts).parameters) == ["experts", "layers", "tokens", "reroute"]
    assert pickle.loads(pickle.dumps(made)) is made and arguments.answering(made) is made
    with pytest.raises(TypeError, match="^not of the call$"):
        arguments.answering(types.FunctionType(compile("raise TypeError('not of the call')", "", "exec"), {}))()


def test_one_stands_for_a_list_and_types_of_every_library_are_names():
    assert list(MODEL.trace(IDS, layers=2)["router.logits"]["layer"].values) == [2]
    for layers in ([-1], np.array([2]), jnp.array([2]), range(2, 3), slice(2, None), np.int64(2)):
        assert list(MODEL.trace(IDS, layers=layers)["router.logits"]["layer"].values) == [2]
    assert MODEL.trace(IDS, capture=("pattern", 1)).sites == MODEL.trace(IDS, [("pattern", 1)]).sites == ["attn.pattern"]
    for dtype in (np.float32, np.dtype("float32"), jnp.float32, "float32"):
        assert gs.load(dtype=dtype).dtype == "float32"
    assert gs.load(dtype=jnp.bfloat16).dtype == "bfloat16"


def test_a_trace_is_a_mapping_of_its_sites():
    assert list(traced()) == traced().keys() == traced().sites and len(traced()) == 5
    assert "attn.pattern" in traced() and "pattern" in traced() and ("pattern", 2) in traced() and "blocks.0.attn.hook_pattern" in traced()
    for wrong in ("resid_pre", "nonsense", ("pattern", 1), 3, None, ("pattern", "x")):
        assert wrong not in traced()
    for again in (copy.deepcopy(traced()), pickle.loads(pickle.dumps(traced()))):
        assert again.data.equals(traced().data)


def test_a_tilde_is_the_home_directory(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path / "here")
    pocket = gs.load()
    trace = pocket.trace("one two")
    trace.save("~/t.zarr")
    gs.export(trace, "~/out")
    gs.report(trace, "~/r.html")
    counters = pocket.sweep(["one"], rows=("~/rows", 1.0), resume="~/work", progress=False)
    counters.save("~/c.npz")
    pocket.trace("one", resume="~/run")
    assert gs.open_trace("~/t.zarr").data.equals(trace.data) and gs.read_tables("~/out")
    assert gs.RoutingCounters.open("~/c.npz").tokens == counters.tokens
    (tmp_path / "texts.txt").write_text("one")
    assert pocket.sweep("~/texts.txt", progress=False).tokens == counters.tokens
    assert {p.name for p in tmp_path.iterdir()} >= {"t.zarr", "out", "r.html", "rows", "work", "c.npz", "run"}
    assert not list(Path().iterdir())
    tokenizer = Path(gs.__file__).parent / "data" / "pocket" / "tokenizer.model"
    (tmp_path / "t.model").write_bytes(tokenizer.read_bytes())
    assert gs.load(tokenizer="~/t.model").tokenizer.sha256 == pocket.tokenizer.sha256


def test_in_64_bits_it_is_the_same(capsys):
    code = (
        "import jax; jax.config.update('jax_enable_x64', True); import grokscope as gs; m = gs.load(dtype='float32'); "
        "e = gs.edits; x = [e.Add('resid_pre', 0.5, layers=1, tokens=[-1]), e.BanExperts([1]), e.ForceExperts([2, 3], layers=2)]; "
        "print(m.generate('Once upon', 4).text, m.trace('a cat', edits=x)['logits'].dtype, m.score('a cat').logprob.sum().round(3), "
        "m.sweep(['a cat'], progress=False).tokens)"
    )
    wide = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=in_a_hurry() | {"JAX_PLATFORMS": "cpu"}, check=True).stdout
    exec(code.replace("'jax_enable_x64', True", "'jax_enable_x64', False"), {})
    assert wide == capsys.readouterr().out


@pytest.mark.parametrize(("call", "message"), [
    (lambda: MODEL.generate(IDS, 2.5), "max_new_tokens: wanted a whole number, got float"), (lambda: MODEL.generate(IDS, 1, temperature=float("nan")), "temperature: wanted a number, got float 'nan'"),
    (lambda: MODEL.generate(IDS, 1, top_p=None), "top_p: wanted a number, got NoneType"), (lambda: MODEL.generate(IDS, 1, seed=1.5), "seed: wanted a whole"), (lambda: MODEL.generate(IDS, 1, seed=2**32), "seed: wanted a whole number from 0 to 4294967295"),
    (lambda: MODEL.trace(IDS, edits=gs.edits.Scale("moe.out", float("nan"))), "value: wanted finite numbers, got nan"), (lambda: MODEL.trace(IDS, edits=gs.edits.Add("resid_pre", np.full(40, np.inf))), "got inf"), (lambda: MODEL.generate(IDS, 1, on_text=5), "on_text: wanted a function"),
    (lambda: MODEL.trace(IDS, max_bytes="1GB"), "max_bytes: wanted a number of bytes"), (lambda: MODEL.trace(IDS, edits=5), "wanted values of grokscope.edits.*got 5"), (lambda: MODEL.trace(IDS, edits=gs.edits.SetTopK("2")), "got '2'; give a whole"),
    (lambda: MODEL.trace(IDS, edits=gs.edits.BiasLogits(traced())), "BiasLogits.bias=<Trace of tiny"), (lambda: MODEL.trace(IDS, edits=gs.edits.Map("resid_pre", lambda x: x[..., :3])), "Map at resid_pre: wanted a function that keeps the shape"),
    (lambda: MODEL.sweep(["a"], rows="x"), "rows: wanted .folder, share"), (lambda: MODEL.sweep(["a"], shard=2), "shard: wanted .number"),
])  # fmt: skip
def test_wrong_kinds_are_named(call, message):
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
