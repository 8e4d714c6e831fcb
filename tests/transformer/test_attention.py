"""Attention in chunks, whole, and as a GPU kernel gives the same; long prompts are never materialised."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grokscope.transformer import attention
from grokscope.transformer.attention import Sequence, attend
from grokscope.transformer.tap import Tap
from tests.conftest import TINY

B, T, H, G, K = 2, 192, 6, 2, 64
CONFIG = replace(TINY, d_head=K, attention_scale=K**-0.5)


def inputs():
    keys = jax.random.split(jax.random.key(0), 4)
    q = 4 * jax.random.normal(keys[0], (B, T, H, K))
    k = 4 * jax.random.normal(keys[1], (B, T, G, K))
    v = jax.random.normal(keys[2], (B, T, G, K))
    segments = jnp.asarray(np.sort(np.random.default_rng(0).integers(1, 4, (B, T)), axis=1))
    return (
        q,
        k,
        v,
        Sequence(jnp.broadcast_to(jnp.arange(T), (B, T)), segments),
        jax.random.normal(keys[3], (B, T, H, K)),
    )


def attended(q, k, v, seq, config=CONFIG, keep=()):
    """What comes out and what is kept on the way, by one program: operation by operation would be fifty."""

    def run(q, k, v, seq):
        tap = Tap(keep)
        return attend(q, k, v, None, seq, config, tap), tap.kept

    return jax.jit(run)(q, k, v, seq)


@pytest.mark.parametrize("cap", [30.0, None])
def test_chunks_give_what_the_whole_gives(cap, monkeypatch):
    q, k, v, seq, _ = inputs()
    config = replace(CONFIG, attention_cap=cap)
    whole, _ = attended(q, k, v, seq, config, ["attn.pattern"])
    monkeypatch.setattr(attention, "QUERY_CHUNK", 37)
    out, kept = attended(q, k, v, seq, config, ["attn.pattern", "attn.scores"])
    np.testing.assert_allclose(out, whole, atol=5e-5)
    assert kept["attn.pattern"].shape == (B, H, T, T)
    np.testing.assert_allclose(np.sum(kept["attn.pattern"], -1), 1, atol=1e-5)
    np.testing.assert_allclose(attended(q, k, v, seq, config)[0], whole, atol=5e-5)


def test_8192_tokens_that_nobody_looks_at_are_never_a_square():
    q = jax.ShapeDtypeStruct((1, 8192, H, K), jnp.bfloat16)
    kv = jax.ShapeDtypeStruct((1, 8192, G, K), jnp.bfloat16)
    seq = Sequence(*(jax.ShapeDtypeStruct((1, 8192), jnp.int32),) * 2)
    lowered = jax.jit(lambda q, k, v, s: attend(q, k, v, None, s, CONFIG, Tap())).lower(q, kv, kv, seq)
    assert "8192x8192" not in lowered.as_text()


def test_a_token_that_may_read_nothing_gives_nothing():
    q, k, v, seq, _ = inputs()
    padded = replace(seq, segments=jnp.where(jnp.arange(T) < 100, 1, 0)[None].repeat(B, 0))
    out, _ = attended(q, k, v, padded)
    assert np.isfinite(out).all()
    assert (np.asarray(out)[:, 100:] == 0).all()
