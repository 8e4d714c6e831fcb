"""Grok-2 from its released layout: eight ranks' files, its oracle in NumPy, each point on which public ports disagree."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import grokscope as gs
from grokscope.block_config import RopeConfig
from grokscope.checkpoints import CheckpointError
from grokscope.checkpoints.huggingface import read_config
from grokscope.checkpoints.native_writer import Writer
from grokscope.transformer import attention
from grokscope.transformer.forward import embed
from grokscope.transformer.rope import frequencies
from grokscope.transformer.unit import gated, kernel_act
from tests.checkpoints import grok2
from tests.checkpoints.families import folder, model
from tests.checkpoints.hub_server import hub
from tests.reference.grok2_numpy import Readings, forward, slowed

IDS = np.random.default_rng(1).integers(3, 97, (2, 13))
EXPERT = "model.layers.{}.block_sparse_moe.experts.{}.{}.weight"
STRETCHED = (16.0, 83, 8.0, 1.0)
"""YaRN's reading of "original": 16 times, a first context at which one of the seven pairs stays, two are mixed, four slowed."""


def yarn(base, context):
    return RopeConfig(base=base, scaling="yarn", factor=16.0, original_tokens=context, turns=(8.0, 1.0), magnitude=1 + 0.1 * float(np.log(16)))


FILE = "pytorch_model-{:05d}-TP-{}.safetensors"


@pytest.fixture(scope="module")
def tensors():
    return grok2.random_tensors(grok2.TINY)


def oracle(tensors, **readings):
    return forward(grok2.TINY, lambda name: tensors[name].astype(np.float64), IDS, Readings(**readings))


@pytest.fixture(scope="module")
def wanted(tensors):
    return oracle(tensors)


@pytest.fixture(scope="module")
def trace():
    return model("grok2/hub").trace(IDS, ["*"])


def assert_close(trace, wanted, site):
    """Within 1e-5 of the site's size; scores where a token is read, chosen experts exactly."""
    of_layer = (("", None),) if site in ("embed", "final", "logits") else tuple((f"{n}.", n) for n in range(3))
    for prefix, layer in of_layer:
        theirs = wanted[prefix + {"shared.out": "mlp"}.get(site, site)]
        ours = trace[site].values if layer is None else trace[site].sel(layer=layer).values
        if site == "attn.scores":
            ours, theirs = (np.where(np.tril(np.ones((13, 13), bool)), a, 0) for a in (ours, theirs))
        if site == "router.experts":
            np.testing.assert_array_equal(ours, theirs)
        else:
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * max(1, np.abs(theirs).max()), err_msg=prefix + site)


def test_every_number_is_the_oracle_s(trace, wanted):
    assert set(trace.sites) == {n.split(".", 1)[1] if n[0].isdigit() else n for n in wanted} - {"mlp"} | {"shared.out"}
    for site in trace.sites:
        assert_close(trace, wanted, site)


def test_a_temperature_in_chunks_of_queries_and_in_no_kernel(wanted, monkeypatch):
    monkeypatch.setattr(attention, "QUERY_CHUNK", 5)
    monkeypatch.setattr(attention.flash, "fits", lambda *_: pytest.fail("a kernel was asked that does not know it"))
    cut = model("grok2/hub").trace(IDS, ["attn.z", "logits"])
    for site in cut.sites:
        assert_close(cut, wanted, site)


@pytest.mark.parametrize(
    ("reading", "fields"),
    [
        ({"gelu": "erf"}, {"activation": "gelu_erf"}),
        ({"temperature": "before"}, {"attention_temperature_first": True}),
        ({"temperature": "never"}, {"attention_temperature": None}),
        ({"renormalise": True}, {"router": {"renormalize": True}}),
        ({"router_capped": False}, {"router": {"logit_cap": None}}),
        ({"stretched": STRETCHED}, {"rope": yarn(1234.5, 83)}),
        ({"capped_first": True}, {"final_cap": grok2.TINY["final_logit_softcapping"] * grok2.TINY["output_multiplier_scale"]}),
    ],
)
def test_each_disputed_point_is_data(tensors, wanted, reading, fields):
    """Both readings are computed, and can be told apart by far more than what parity lets pass."""
    config = model("grok2/hub").config
    config = replace(config, **fields | ({"router": replace(config.router, **fields["router"])} if "router" in fields else {}))
    trace = gs.load(folder("grok2/hub"), config, dtype="float32").trace(IDS, ["logits", "resid_post"])
    other = oracle(tensors, **reading)
    for site in trace.sites:
        assert_close(trace, other, site)
    assert np.abs(other["logits"] - wanted["logits"]).max() > (1e-4 if "gelu" in reading else 1e-3)


def test_what_yarn_would_slow_in_the_release():
    """llama.cpp's reading of `rope_type: original` at true size (grok2.md, section 5): pairs from 24 on 16 times, 17 to 23 mixed."""
    of_pair = frequencies(yarn(208533496.0, 8192), 128) / frequencies(RopeConfig(base=208533496.0), 128)
    np.testing.assert_allclose(of_pair, [slowed(n, 128, 208533496, (16.0, 8192, 8.0, 1.0)) for n in range(64)], rtol=1e-6)
    assert (of_pair[:18] == 1).all() and (np.diff(of_pair[17:25]) < 0).all() and of_pair[24:] == pytest.approx(1 / 16)


def test_a_temperature_is_seen_in_a_panel_too(trace, wanted):
    """From queries and keys, as the attention panel computes it."""
    from grokscope.trace.trace import Trace
    from grokscope.views.attention import Attention
    from grokscope.views.routing import Text

    seen = Attention(Text(Trace(trace.data[["attn.q", "attn.k"]])))
    np.testing.assert_allclose(seen.rows(1, np.arange(13)), wanted["1.attn.pattern"][0], atol=1e-5)


def test_nothing_happens_in_short_texts():
    """Up to one token more than the temperature's length, where kernels that do not know it may serve."""
    m = model("grok2/hub")
    seq = attention.Sequence(jnp.arange(6)[None], jnp.ones((1, 6), jnp.int32))
    assert attention._temperature(seq, m.config) is None
    longer = attention.Sequence(jnp.arange(9)[None], jnp.ones((1, 9), jnp.int32))
    assert attention._temperature(longer, m.config)[0].tolist() == pytest.approx([1] * 6 + [np.log(p) / np.log(5) for p in (6, 7, 8)])


def test_the_exact_gelu_in_a_kernel_s_operations():
    x = np.concatenate([np.linspace(-9, 9, 4001), [0.0, -40.0, 40.0]]).astype(np.float32)
    config = replace(model("grok2/hub").config, activation="gelu_erf")
    exact = np.asarray(gated(x, np.ones_like(x), config))
    np.testing.assert_allclose(np.asarray(kernel_act(config)(x)), exact, atol=1e-6)
    assert np.abs(exact - np.asarray(jax.nn.gelu(x, approximate=True))).max() > 4e-4


def test_an_embedding_is_scaled_before_it_is_rounded():
    """90.50967 rounds to 90.5; the reference of Grok-2 rounds the product, that of Grok-1 the factor."""
    table, ids = np.linspace(0.5, 1, 64, dtype=np.float32).reshape(8, 8), np.arange(8)[None]
    rows = table.astype(jnp.bfloat16)
    wide = np.asarray(embed(table, ids, 90.50966799187809, jnp.bfloat16, wide=True)[0])
    np.testing.assert_array_equal(wide, (rows.astype(np.float32) * np.float32(90.50966799187809)).astype(jnp.bfloat16))
    assert (wide != np.asarray(embed(table, ids, 90.50966799187809, jnp.bfloat16)[0])).any()


def written(values: dict, where: Path) -> Path:
    where.mkdir(exist_ok=True)
    (where / "config.json").write_text(json.dumps(values))
    return where


def test_the_released_config_is_the_preset(tmp_path):
    assert read_config(written(grok2.RELEASED, tmp_path)) == gs.GROK_2
    assert (gs.GROK_2.num_parameters, gs.GROK_2.num_active_parameters) == (269_515_497_472, 114_896_674_816)
    assert gs.GROK_2.bytes() == 539_030_994_944
    assert gs.ModelConfig.from_dict(gs.GROK_2.to_dict()) == gs.GROK_2


def test_a_copy_that_an_image_captioner_s_class_saved(tmp_path):
    """transformers' own class of this model_type writes its defaults into it."""
    git = {"vision_config": {}, "hidden_act": "gelu", "bos_token_id": 101, "eos_token_id": 102, "pad_token_id": 0}
    assert read_config(written(grok2.RELEASED | git, tmp_path)) == gs.GROK_2


def test_what_cannot_be_computed_is_named_at_once(tmp_path):
    odd = {
        "rope_type": "yarn", "sliding_window_size": 4096, "global_attn_every_n": 6, "attn_output_multiplier": 0.1,
        "rope_rotate_half_dims": True, "hidden_act": "silu", "router_logit_softcapping": None, "residual_moe": False,
        "attn_temperature_len": 1,
    }  # fmt: skip
    with pytest.raises(CheckpointError) as error:
        read_config(written(grok2.RELEASED | odd, tmp_path))
    assert all(f"{name}: wanted" in str(error.value) for name in odd if name != "attn_temperature_len"), error.value
    with pytest.raises(CheckpointError, match="attention_temperature: wanted 2 tokens or more"):
        read_config(written(grok2.RELEASED | {"attn_temperature_len": 1}, tmp_path))


@pytest.mark.parametrize("lacks", ["architectures", "both fields"])
def test_what_only_looks_like_grok_2_is_not_taken_for_it(tmp_path, lacks):
    names = ["architectures"] if lacks == "architectures" else ["residual_moe", "moe_intermediate_size"]
    with pytest.raises(CheckpointError, match="got model_type 'git' .it is none of mixtral.*grok-2"):
        read_config(written({k: v for k, v in grok2.RELEASED.items() if k not in names}, tmp_path))


def test_a_merged_copy_is_the_same_model(tensors, tmp_path):
    grok2.write(tmp_path, grok2.TINY, tensors, merged=True)
    ours, theirs = gs.load(tmp_path, dtype="float32"), model("grok2/hub")
    np.testing.assert_array_equal(ours.trace(IDS)["logits"], theirs.trace(IDS)["logits"])
    assert gs.inspect(tmp_path).problems == ()
    shutil.copyfile(folder("grok2/hub") / FILE.format(2, "common"), tmp_path / FILE.format(2, "common"))
    assert "got both; remove those that are stale" in gs.inspect(tmp_path).problems[0]


@pytest.fixture
def copy(tmp_path):
    return Path(shutil.copytree(folder("grok2/hub"), tmp_path / "m"))


def rewrite(file: Path, change) -> None:
    from safetensors.numpy import load_file, save_file

    save_file({n: np.ascontiguousarray(a) for n, a in change(load_file(file)).items()}, file)


def test_everything_that_is_wrong_with_files_is_named_at_once(copy):
    """Missing, truncated, mis-shaped, extra and doubled files; a part that one rank lacks."""
    (copy / FILE.format(6, "003")).unlink()
    (copy / FILE.format(17, "common")).unlink()
    (copy / FILE.format(9, "common")).write_bytes((copy / FILE.format(9, "common")).read_bytes()[:-5])
    lost, thin = EXPERT.format(1, 4, "w2"), EXPERT.format(0, 2, "w3")
    rewrite(copy / FILE.format(7, "005"), lambda a: {n: x for n, x in a.items() if n != lost})
    rewrite(copy / FILE.format(8, "000"), lambda a: a | {thin: a[thin][:3]})
    rewrite(copy / FILE.format(2, "common"), lambda a: {"model.norm.weight": a["model.norm.weight"][:-1]})
    shutil.copyfile(copy / FILE.format(0, "common"), copy / FILE.format(18, "common"))
    shutil.copyfile(copy / FILE.format(8, "000"), copy / FILE.format(8, "008"))
    rewrite(copy / FILE.format(10, "common"), lambda a: a | {"model.layers.7.x.weight": a["model.layers.0.self_attn.o_proj.weight"]})
    found = gs.inspect(copy).problems
    wanted = [
        f"{FILE.format(9, 'common')}: model.layers.",
        f"{FILE.format(8, '008')}: not part of this model",
        f"{FILE.format(6, '003')}: missing; download it",
        f"{lost}: wanted a part in each of 8 ranks, got none in TP-005",
        f"{FILE.format(17, 'common')}: missing; download it",
        f"model.embed_tokens.weight: {FILE.format(18, 'common')} has a second array of this name",
        f"{FILE.format(8, '000')}: {thin}: wanted BF16 (5, 23) as in the other ranks, got BF16 (3, 23)",
        "model.layers.7.x.weight: not part of this model",
        "model.norm.weight: wanted shape (23,), got (22,)",
    ]
    assert len(found) == len(wanted) and all(any(line.startswith(w) for line in found) for w in wanted), "\n".join(found)
    assert "truncated" in found[0]
    with pytest.raises(CheckpointError) as error:
        gs.load(copy)
    assert all(line in str(error.value) for line in found)


def test_an_index_beside_ranks_files(copy):
    """The release is not known to have one; it could not say in which eight files a name lies."""
    index = copy / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {EXPERT.format(0, 0, "w1"): FILE.format(6, "007")}}))
    assert gs.inspect(copy).problems == ()
    index.write_text(json.dumps({"weight_map": {EXPERT.format(0, 0, "w1"): "model-00001-of-00002.safetensors"}}))
    assert "wanted it or files of ranks" in gs.inspect(copy).problems[0]


def test_a_download_that_has_hardly_begun(copy):
    """One rank's files are no whole tensors."""
    for file in copy.glob("*TP-00[1-7]*"):
        file.unlink()
    (copy / FILE.format(0, "common")).unlink()
    found = gs.inspect(copy).problems
    assert len(found) == 3 * 7 + 1 and all(line.endswith(": missing; download it") for line in found), found
    for file in copy.glob("*.safetensors"):
        file.unlink()
    (copy / "model-00006-TP-003.safetensors").write_bytes(b"")
    (odd, *missing) = gs.inspect(copy).problems
    assert odd == "model-00006-TP-003.safetensors: not part of this model" and len(missing) == 39


def test_ranks_are_joined_in_their_order_whatever_number_a_file_has(copy, tmp_path):
    """Headers say what a file holds: the release's numbers only name what is missing."""
    for rank, number in enumerate((30, 29, 28, 27, 26, 25, 24, 23)):
        (copy / FILE.format(7, f"{rank:03d}")).rename(copy / FILE.format(number, f"{rank:03d}"))
    moved = gs.load(copy, dtype="float32", weights="streamed")
    np.testing.assert_array_equal(moved.trace(IDS)["logits"], model("grok2/hub").trace(IDS)["logits"])


@pytest.mark.parametrize("quantize", [None, "int8"])
def test_an_interrupted_conversion_goes_on_to_the_same_files(tmp_path, monkeypatch, quantize):
    whole = gs.convert(folder("grok2/hub"), tmp_path / "whole", quantize=quantize, progress=False)
    write, written = Writer.write_arrays, []

    def broken(self, name, arrays, seen):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(name)
        write(self, name, arrays, seen)

    monkeypatch.setattr(Writer, "write_arrays", broken)
    with pytest.raises(KeyboardInterrupt):
        gs.convert(folder("grok2/hub"), tmp_path / "again", quantize=quantize, progress=False)
    monkeypatch.setattr(Writer, "write_arrays", lambda self, name, *rest: (written.append(name), write(self, name, *rest)))
    again = gs.convert(folder("grok2/hub"), tmp_path / "again", quantize=quantize, progress=False)
    assert written == ["layer-000.safetensors", "layer-001.safetensors", "layer-002.safetensors", "outer.safetensors"]
    assert {p.name: p.read_bytes() for p in again.iterdir()} == {p.name: p.read_bytes() for p in whole.iterdir()}


def test_int8_is_written_as_it_is_loaded(tmp_path):
    gs.convert(folder("grok2/hub"), tmp_path / "int8", quantize="int8", progress=False)
    one, two = gs.load(tmp_path / "int8", dtype="float32"), gs.load(folder("grok2/hub"), dtype="float32", quantize="int8")
    np.testing.assert_array_equal(one.trace(IDS)["logits"], two.trace(IDS)["logits"])
    assert np.abs(two.trace(IDS)["logits"] - model("grok2/hub").trace(IDS)["logits"]).max() < 0.5


BY_NAME = """
import json, warnings
warnings.simplefilter("error")
import grokscope as gs
before = gs.inspect("xai-org/grok-2")
model = gs.load("xai-org/grok-2", dtype="float32", weights="streamed")
prompt = model.chat([{"role": "user", "content": "What is <|eos|>?"}])
trace = model.trace(prompt)
made = model.generate(prompt, 2)
print(json.dumps({
    "before": [before.files, before.config.num_layers], "ids": prompt.rows[0], "roles": prompt.classes["role"][0],
    "logits": trace["logits"].values[0, -1].tolist(), "made": made.tokens[-2:],
}))
"""


def test_by_its_name_from_a_hub(tmp_path, copy):
    """What a user types, against a small hub on loopback, in a fresh process: config, files, tokenizer, chat, trace, text."""
    from tests.text.test_tok_json import small

    (copy / "tokenizer.tok.json").write_text(json.dumps(small()))
    (copy / "modeling_grok.py").write_text("raise SystemExit('never read')")
    for number in (0, 1):  # a row for every id of the tokenizer
        rewrite(copy / FILE.format(number, "common"), lambda a: {n: np.concatenate([x] * 4) for n, x in a.items()})
    (copy / "config.json").write_text(json.dumps(grok2.TINY | {"vocab_size": 4 * 97}))
    with hub(copy, "xai-org/grok-2") as (address, fetched):
        clean = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        more = {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": address, "HF_HUB_DISABLE_XET": "1"}
        done = subprocess.run([sys.executable, "-c", BY_NAME], capture_output=True, text=True, env=clean | more)
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["before"] == [0, 3], "the config alone was fetched to look at it"
    assert {f.split()[0] for f in fetched} == {p.name for p in copy.iterdir()} - {"modeling_grok.py"}
    ours = gs.load(copy, dtype="float32")
    np.testing.assert_allclose(said["logits"], ours.trace([said["ids"]])["logits"].values[0, -1], atol=1e-5)
    assert ours.tokenizer.pieces(said["ids"])[:3] == ["Hu", "m", "a"] and said["roles"][-1] == "assistant"
    assert said["made"] == ours.generate([said["ids"]], 2).tokens[-2:]
