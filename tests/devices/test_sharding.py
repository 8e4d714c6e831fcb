"""Weights over several devices and hosts: the same numbers as one device, and no device with a whole layer."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

import grokscope as gs
from grokscope.checkpoints import native
from grokscope.config import ModelConfig, RopeConfig, RouterConfig
from grokscope.transformer.quantize import quantize
from grokscope.transformer.weights import random_weights
from tests.conftest import ROOT, in_a_hurry

# Heads, widths and experts that 8 devices divide; key/value heads that they do not.
CONFIG = ModelConfig(
    vocab_size=88, d_model=40, num_layers=3, num_heads=24, num_kv_heads=4, d_head=14, d_expert=104, max_tokens=67,
    router=RouterConfig(num_experts=8, top_k=2), attention_scale=14**-0.5, embed_scale=40**0.5, logit_scale=0.577,
)  # fmt: skip
MESHES = ["model=8", "expert=8", "data=2,model=4", "data=2,expert=2,model=2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("sharded") / "m"
    native.save(where, CONFIG, quantize(random_weights(CONFIG)))
    return where


def run(*words: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.on_devices", *words],
        cwd=ROOT, env=in_a_hurry(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def answer(process: subprocess.Popen) -> dict:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-3000:]
    return json.loads(out.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def found(folder):
    return answer(run("layouts", str(folder), *MESHES))


def same(path, trace):
    with np.load(path) as arrays:
        for site in trace.sites:
            wanted, got = trace[site].values, arrays[site]
            if site == "router.experts":
                np.testing.assert_array_equal(got, wanted)
            else:
                np.testing.assert_allclose(got, wanted, atol=2e-5 * max(1, np.abs(wanted[np.isfinite(wanted)]).max()), err_msg=site)


OTHERS = {
    "latent": replace(
        CONFIG, num_kv_heads=24, kv_rank=22, q_rank=30, rope=RopeConfig(width=6), d_value=10, dense_layers=(0,), d_dense=48, d_shared=32,
        shared_gate=True, branch_scale=0.7, attention_temperature=3, activation="gelu_erf", embed_scale_wide=True,
        router=RouterConfig(num_experts=8, top_k=2, score="sigmoid", choice_bias=True, groups=(4, 2, "best_two")),
    ),
    "biased": replace(
        CONFIG, attention_bias="qkvo", sinks=True, window=5, full_layers=(1,), expert_bias=True, glu_limit=0.7, qk_norm="all",
        attention_cap=None, post_norms=False, norm="layer", norm_bias=True, tied_embedding=False, unembed_bias=True,
        router=RouterConfig(num_experts=8, top_k=2, logit_bias=True, renormalize=True),
    ),
}  # fmt: skip
"""What other families have, in sizes that devices divide."""


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """Them, and Grok-2 as released, cut for eight ranks in another way than this mesh cuts it; their numbers on it."""
    from tests.checkpoints import grok2

    where = tmp_path_factory.mktemp("others")
    for kind, config in OTHERS.items():
        native.save(where / kind, config, random_weights(config))
    sizes = {"intermediate_size": 32, "num_local_experts": 8, "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 96}
    grok2.write(where / "ranks", grok2.TINY | sizes, grok2.random_tensors(grok2.TINY | sizes))
    answer(run("numbers", str(where), MESHES[-1], *OTHERS, "ranks"))
    return where


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*OTHERS, "ranks"])
def test_every_field_lies_on_a_mesh(kind, others):
    from tests.sharded_run import IDS, SITES

    same(others / f"{kind}.npz", gs.load(others / kind, dtype="float32").trace(IDS, SITES))


@pytest.mark.slow
@pytest.mark.parametrize("name", MESHES)
def test_every_mesh_has_the_numbers_of_one_device(folder, found, name):
    from tests.sharded_run import IDS, SITES

    one = gs.load(folder, dtype="float32").trace(IDS, SITES, edits=[gs.edits.BanExperts([1], layers=[1])])
    same(folder.parent / f"{name}.npz", one)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "parts"), [("model=8", 8), ("expert=8", 8), ("data=2,model=4", 4), ("data=2,expert=2,model=2", 4)])
def test_no_device_holds_a_whole_layer(found, name, parts):
    here = found[name]
    assert here["on one device"] <= here["experts"] / parts * 1.05
    # No array of the compiled program is that large: neither a weight nor one gathered on the way.
    assert here["whole stacks"] == 0
    if "model" in name:
        assert here["whole experts"] == 0


@pytest.mark.slow
def test_two_processes_each_read_their_own_parts(folder):
    from tests.sharded_run import IDS, SITES

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    both = [run("two", str(folder), str(n), port) for n in range(2)]
    for said in map(answer, both):
        assert (said["process"], said["devices"]) == (2, 8)
        assert said["read"] < 0.75 * said["whole"], "half of what is cut, and the small arrays that are not"
    same(folder.parent / "two.npz", gs.load(folder, dtype="float32").trace(IDS, SITES))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"model": 7}, "cannot divide num_heads 24 by 7, vocab_size 88 by 7, d_expert 104 by 7"),
        ({"expert": 3}, "num_experts 8 by 3"),
    ],
)
def test_a_mesh_that_does_not_divide_the_model(sizes, message):
    from jax.sharding import AbstractMesh

    from grokscope.devices.sharding import AXES, Layout

    mesh = AbstractMesh(tuple(sizes.get(a, 1) for a in AXES), AXES)
    with pytest.raises(ValueError, match=message):
        Layout(CONFIG, mesh)


def test_a_mesh_with_other_axes():
    from jax.sharding import AbstractMesh

    from grokscope.devices.sharding import Layout

    with pytest.raises(ValueError, match="wanted axes of data, expert, model, got x"):
        Layout(CONFIG, AbstractMesh((2,), ("x",)))


def test_more_devices_than_there_are():
    with pytest.raises(ValueError, match="at most the 1 devices"):
        gs.mesh(model=8)


def test_grok_1_lies_over_eight_devices_as_the_reference_lays_it_out():
    """FACTS section 5: heads and hidden widths along "model", int8 scales with their groups of rows."""
    from jax.sharding import AbstractMesh

    from grokscope.devices.sharding import AXES, SPLIT, Layout

    Layout(gs.GROK_1, AbstractMesh((1, 1, 8), AXES))
    Layout(gs.GROK_1, AbstractMesh((1, 8, 1), AXES))
    Layout(replace(gs.GROK_1), AbstractMesh((2, 2, 2), AXES))
    for axes in ((1, 1, 8), (1, 8, 1), (1, 2, 4)):
        Layout(gs.GROK_2, AbstractMesh(axes, AXES))
    assert SPLIT["moe.gate"][2] == SPLIT["moe.down"][1] == ("model",)
