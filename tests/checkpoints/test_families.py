"""Every family against transformers, and against an oracle in which each known mistake is made on purpose."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest

import grokscope as gs
from grokscope.checkpoints.huggingface.tensors import Stored
from grokscope.config import ModelConfig
from grokscope.transformer.weights import ModelWeights, block_from, field_of
from tests.checkpoints.families import DIRECTORIES, FOLDER, NAMES, golden, model, real, rows
from tests.reference.families_numpy import forward

SITES = {"router.probs": "router.scores", "shared.out": None}


@pytest.mark.parametrize("directory", DIRECTORIES)
def test_every_number_is_transformers(directory):
    name, found = directory.split("/")[0], golden(directory.split("/")[0])
    trace = model(directory).trace(rows(name), ["*"])
    for site in trace.sites:
        theirs = found.get(SITES.get(site, site))
        if theirs is None:
            continue
        ours, theirs = (real(name, site, a) for a in (trace[site].values, theirs))
        if site == "router.experts":
            np.testing.assert_array_equal(ours, theirs)
        else:
            np.testing.assert_allclose(ours, theirs, atol=1e-5 if site == "router.gates" else 1e-4, err_msg=site)
    assert trace["router.experts"]["layer"].values.tolist() == found["moe_layers"].tolist()


@pytest.mark.parametrize("name", [n for n in NAMES if (FOLDER / n / "goldens_bf16.npz").exists()])
def test_bfloat16_is_nearer_to_float32_than_transformers_bfloat16(name):
    """Router logits of every layer, by their root mean square; a choice on the edge may fall another way all the same."""
    exact, theirs = golden(name), golden(name, "goldens_bf16.npz")
    trace = model(f"{name}/hub", "bfloat16").trace(rows(name), ["router.*"])

    def distance(logits: np.ndarray) -> np.ndarray:
        away = real(name, "router.logits", logits) - real(name, "router.logits", exact["router.logits"])
        return np.sqrt((away**2).mean(axis=(1, 2)))

    assert (distance(trace["router.logits"].values) < distance(theirs["router.logits"])).all()
    ours, wanted = (np.sort(real(name, "router.experts", a)) for a in (trace["router.experts"].values, exact["router.experts"]))
    assert (ours == wanted).all(-1).mean() > 0.97


Mistake = Callable[[ModelConfig, ModelWeights], tuple[ModelConfig, ModelWeights] | None]


def fields(**values: Any) -> Mistake:
    return lambda c, w: (replace(c, **values), w)


def rule(**values: Any) -> Mistake:
    return lambda c, w: (replace(c, router=replace(c.router, **values)), w)


def rope(**values: Any) -> Mistake:
    return lambda c, w: (replace(c, rope=replace(c.rope, **values)), w)


def arrays(change: Callable[[str, np.ndarray], Any]) -> Mistake:
    """Another array, or None, for each by its dotted name."""

    def made(c: ModelConfig, w: ModelWeights) -> tuple[ModelConfig, ModelWeights]:
        def block(b: Any) -> Any:
            return block_from(lambda name: None if field_of(b, name) is None else change(name, field_of(b, name)))

        outer = {n: change(n, a) for n in ("final_norm_bias", "unembed_bias") if (a := getattr(w, n)) is not None}
        return c, replace(w, blocks=[block(b) for b in w.blocks], **outer)

    return made


def without(*names: str) -> Mistake:
    return arrays(lambda name, a: jax.tree.map(np.zeros_like, a) if name in names else a)


def neighbours(c: ModelConfig, w: ModelWeights) -> tuple[ModelConfig, ModelWeights]:
    """Planes of neighbouring entries, not of halves."""
    n = c.rope_width
    order = np.concatenate([np.arange(n).reshape(2, -1).T.reshape(-1), np.arange(n, c.d_head)])

    def change(name: str, a: np.ndarray) -> np.ndarray:
        if name in ("attn.q", "attn.q_bias", "attn.q_norm") or (c.kv_rank is None and name in ("attn.k", "attn.k_bias", "attn.k_norm")):
            return np.asarray(a)[..., order]
        return np.asarray(a)[..., order[:n]] if name == "attn.k_rope" else a

    return arrays(change)(c, w)


def other_heads(c: ModelConfig, w: ModelWeights) -> tuple[ModelConfig, ModelWeights] | None:
    """Query head h reads key/value head h % G."""
    h, g = c.num_heads, c.num_kv_heads
    order = np.argsort(np.arange(h) % g, kind="stable")

    def change(name: str, a: np.ndarray) -> np.ndarray:
        if name in ("attn.q_bias", "attn.sinks") or (name == "attn.q_norm" and c.qk_norm == "all"):
            return np.asarray(a)[order]
        return np.asarray(a)[:, order] if name == "attn.q" else np.asarray(a)[order] if name == "attn.o" else a

    return arrays(change)(c, w)


def swapped(c: ModelConfig, w: ModelWeights) -> tuple[ModelConfig, ModelWeights]:
    """gate is up, up is gate."""
    names = {"moe.gate": "moe.up", "moe.up": "moe.gate"}
    return c, replace(w, blocks=[block_from(lambda n, b=b: field_of(b, names.get(n, n))) for b in w.blocks])


def ungated(c: ModelConfig, w: ModelWeights) -> tuple[ModelConfig, ModelWeights]:
    return fields(shared_gate=False)(*arrays(lambda name, a: None if name == "moe.shared_router" else a)(c, w))


def mistakes(c: ModelConfig) -> Iterator[tuple[str, Mistake]]:
    """Every mistake of the families' tables that this model can suffer."""
    r = c.router
    yield "one expert fewer", rule(top_k=r.top_k - 1)
    yield "theta x 10", rope(base=10 * c.rope.base)
    yield "neighbours", neighbours
    yield "gate and up swapped", swapped
    if r.near is None:
        yield "renormalised the other way", rule(renormalize=not r.renormalize)
        yield "the other score", rule(score="sigmoid" if r.score == "softmax" else "softmax")
    else:
        yield "all logits near", rule(near=18.0)
        yield "none near", rule(near=0.0)
        yield "plain softmax", rule(near=None)
    if r.scale != 1:
        yield "no scale", rule(scale=1.0)
    if r.choice_bias:
        yield "no choice bias", without("moe.choice_bias")
    if r.groups:
        yield "no groups", rule(groups=None)
        yield "groups by their best", rule(groups=(*r.groups[:2], "best"))
    if r.logit_bias:
        yield "no router bias", without("moe.router_bias")
    if c.num_kv_heads not in (1, c.num_heads):
        yield "heads modulo", other_heads
    if c.attention_bias:
        yield "no attention bias", without(*(f"attn.{n}_bias" for n in "qkvo"))
    if c.qk_norm:
        yield "no qk-norm", lambda c, w: fields(qk_norm=None)(*arrays(lambda n, a: None if n in ("attn.q_norm", "attn.k_norm") else a)(c, w))
        yield "qk-norm on the other side", fields(qk_norm_last=not c.qk_norm_last)
    if c.qk_norm == "all":
        yield "qk-norm by head", by_head
    if c.d_shared:
        yield "no shared experts", without("moe.shared_down")
    if c.shared_gate:
        yield "shared not gated", ungated
        yield "shared gate one half", without("moe.shared_router")
    if c.sinks:
        yield "no sinks", lambda c, w: fields(sinks=False)(*arrays(lambda n, a: None if n == "attn.sinks" else a)(c, w))
    if c.window:
        yield "no window", fields(window=None)
        yield "window one longer", fields(window=c.window + 1)
        yield "window one shorter", fields(window=c.window - 1)
        yield "window in the other layers", fields(full_layers=tuple(n for n in range(c.num_layers) if n not in c.full_layers))
    if c.glu_limit:
        yield "no clamp", fields(glu_limit=None)
        yield "alpha 1", fields(glu_alpha=1.0)
        yield "no + 1", fields(glu_offset=0.0)
        yield "no expert biases", without("moe.gate_bias", "moe.up_bias", "moe.down_bias")
        yield "gate and up as halves", halves
    if c.rope.scaling:
        yield "no scaling of frequencies", rope(scaling=None)
    if c.rope.magnitude != 1:
        yield "no magnitude", rope(magnitude=1.0)
    if c.rope.scaling == "yarn" and not c.rope.truncate:
        yield "yarn's bounds the other way", rope(truncate=not c.rope.truncate)
    if c.rope.scaling == "longrope":
        yield "long factors", rope(short=c.rope.long)
    if c.rope.width and not c.kv_rank:
        yield "the whole head", rope(width=None)
    if c.kv_rank:
        yield "no key/value norm", flat("attn.kv_down_norm")
        yield "scale without mscale", fields(attention_scale=c.d_head**-0.5)
        yield "scale of the unrotated width", fields(attention_scale=(c.d_head - c.rope_width) ** -0.5)
    if c.q_rank:
        yield "no query norm", flat("attn.q_down_norm")
    for name, plain in (("embed_scale", 1.0), ("residual_scale", 1.0), ("logit_scale", 1.0)):
        if getattr(c, name) != plain:
            yield f"no {name}", fields(**{name: plain})
    if not c.kv_rank and abs(c.attention_scale - c.d_head**-0.5) > 1e-6:
        yield "scale K^-0.5", fields(attention_scale=c.d_head**-0.5)
    if c.norm == "layer":
        yield "RMS norm", fields(norm="rms")
        yield "no norm bias", without("attn_norm_in_bias", "moe_norm_in_bias", "final_norm_bias")
        yield "no lm_head bias", without("unembed_bias")


def by_head(c: ModelConfig, w: ModelWeights) -> tuple[ModelConfig, ModelWeights]:
    """The norm of each head by itself, its scale that of the first: scales are near each other, sizes are not."""

    def change(name: str, a: np.ndarray) -> np.ndarray:
        return np.asarray(a)[0] if name in ("attn.q_norm", "attn.k_norm") else a

    return fields(qk_norm="head")(*arrays(change)(c, w))


def halves(c: ModelConfig, w: ModelWeights) -> tuple[ModelConfig, ModelWeights]:
    """Rows that alternate in the file taken as halves."""

    def block(b: Any) -> Any:
        both = np.stack([field_of(b, f"moe.{n}").parts for n in ("gate", "up")], axis=2)  # E F 2 D
        flat = both.reshape(both.shape[0], -1, both.shape[-1])
        parts = dict(zip(("moe.gate", "moe.up"), np.split(np.swapaxes(flat, 1, 2), 2, axis=2), strict=True))
        return block_from(lambda n: parts[n] if n in parts else field_of(b, n))

    return c, replace(w, blocks=[block(b) for b in w.blocks])


def flat(name: str) -> Mistake:
    """A norm that does nothing cannot be said by a config; one of constant scale and huge epsilon is as good."""
    return lambda c, w: (replace(c, latent_norm_eps=1e6), w)


@pytest.mark.parametrize("directory", ["deepseek_v3/hub", "deepseek_v3/hub_fp8", "gpt_oss/hub_mxfp4", "granitemoe/hub"])
def test_quantised_forms_keep_theirs_and_int8_is_written(directory, tmp_path):
    """float8 and four bits go through our format bit for bit; int8 when loading is int8 when converting."""
    folder, ids = FOLDER / directory, [[5, 9, 3, 17, 77]]
    gs.convert(folder, tmp_path / "same", progress=False)
    kept = gs.load(tmp_path / "same", dtype="float32")
    np.testing.assert_array_equal(kept.trace(ids)["logits"], model(directory).trace(ids)["logits"])
    gs.convert(folder, tmp_path / "int8", quantize="int8", progress=False)
    one, two = gs.load(tmp_path / "int8", dtype="float32"), gs.load(folder, dtype="float32", quantize="int8")
    np.testing.assert_array_equal(one.trace(ids)["logits"], two.trace(ids)["logits"])
    cost = gs.experiments.precision(model(directory), two, ids)
    assert 0 < abs(np.diff(cost["bits_per_token"])[0]) < 0.5 and (cost["flips"] < 0.2).all()
    assert (gs.experiments.precision(two, two, ids)["flips"] == 0).all()


def test_float8_where_it_is_not_read_is_refused():
    """A table in float8 beside its scales was once taken without them."""
    entries = {"model.embed_tokens.weight": ("F8_E4M3", (32, 16)), "model.embed_tokens.weight_scale_inv": ("F32", (2, 1))}
    stored = Stored(entries, (16, 16))
    assert list(stored.problems("model.embed_tokens.weight", (32, 16), "outputs first")) == []
    for lies in ("plain", "inputs first"):
        assert any("wanted BF16, F16, F32, got F8_E4M3" in line for line in stored.problems("model.embed_tokens.weight", (32, 16), lies))


def test_what_is_skipped_is_named():
    found = gs.inspect(FOLDER / "glm4_moe" / "hub")
    assert found.idle and all(name.startswith("model.layers.3.") for name in found.idle) and not found.problems
    assert found.memory["int8"] < found.memory["bfloat16"] and found.memory["cache"] > 0


def test_fields_of_which_nothing_is_known_are_named(tmp_path):
    shutil.copytree(FOLDER / "olmoe" / "hub", tmp_path / "m")
    config = tmp_path / "m" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"new_mechanism": 3, "max_window_layers": 2}))
    with pytest.warns(UserWarning, match="not known here, taken to change nothing: new_mechanism = 3$"):
        gs.load(tmp_path / "m")


def test_a_text_may_not_grow_over_longrope_s_border():
    """Phi's tiny model turns texts of more than 64 tokens by other frequencies."""
    m = model("phimoe/hub")
    with pytest.raises(ValueError, match="wanted at most 2 here, got 3"):
        m.generate([list(range(62))], 3)
    short, long = (m.trace([list(range(n))], ["attn.k"])["attn.k"].values[0, 0, 63] for n in (64, 65))
    assert np.abs(short - long).max() > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_each_mistake_would_be_seen(name):
    """The oracle agrees with transformers; with a mistake it is off by 50 times what the parity test lets pass, or more."""
    ours, found = model(f"{name}/hub"), golden(name)
    weights = replace(ours.weights, blocks=list(ours.weights.blocks))

    def logits(c: ModelConfig, w: ModelWeights) -> np.ndarray:
        return real(name, "logits", forward(c, w, found["ids"], found["lengths"])["logits"])

    right = real(name, "logits", found["logits"])
    np.testing.assert_allclose(logits(ours.config, weights), right, atol=1e-4)
    for what, mistake in mistakes(ours.config):
        assert np.abs(logits(*mistake(ours.config, weights)) - right).max() > 5e-3, what
