"""A small top-k autoencoder, trained on a harvest: for a notebook, not for a large model."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from grokscope.activations.activations import Activations
from grokscope.sae.sae import Sae
from grokscope.text.given import is_whole


def train(
    acts: Activations, site: str, layer: int | None, *, features: int = 2048, k: int = 16, steps: int = 1000, batch: int = 2048,
    seed: int = 0,
) -> Sae:  # fmt: skip
    """A top-k autoencoder (Gao et al. 2024, arXiv 2406.04093) of a site's rows, position 0 left out, by Adam in float32.

    Rows are read as `Rows.batches` gives them, as many epochs as `steps` need. The loss is the squared error over the variance;
    decoder rows are of unit norm; inputs are scaled by their mean norm, which is folded into the weights at the end. No auxiliary
    loss: look at `score`'s share of dead features. The same seed gives the same dictionary on the same machine.
    """
    for name, n in {"features": features, "k": k, "steps": steps, "batch": batch}.items():
        if not is_whole(n) or n < 1 or (name == "k" and n > features):
            raise ValueError(f"train: {name}: wanted a whole number from 1 on (k up to features), got {n!r:.40}; give another")
    try:
        import optax
    except ImportError as error:
        raise ImportError("train: wanted optax, got none; pip install 'grokscope[train]'") from error
    acts = acts.where((acts.tokens["position"] > 0).to_numpy())
    rows = acts[site, layer] if layer is not None else acts[site]
    batch = min(batch, len(rows))
    some = rows[np.sort(np.random.default_rng(seed).permutation(len(rows))[:4096])]
    mean = some.mean(0)
    scale = float(np.sqrt(rows.width) / np.linalg.norm(some - mean, axis=-1).mean())
    key = np.random.default_rng([seed, 1]).standard_normal((features, rows.width)).astype(np.float32)
    decoder = key / np.linalg.norm(key, axis=1, keepdims=True)
    w = {"W_enc": decoder.T.copy(), "b_enc": np.zeros(features, np.float32), "W_dec": decoder, "b_dec": mean * scale}
    w = jax.tree.map(jnp.asarray, w)
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, steps))
    state, spread = optimizer.init(w), jnp.asarray(((some - mean) ** 2).sum(-1).mean() * scale**2)

    def loss(w: dict[str, jax.Array], x: jax.Array) -> jax.Array:
        pre = (x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
        values, at = jax.lax.top_k(pre, k)
        f = jnp.put_along_axis(jnp.zeros_like(pre), at, jax.nn.relu(values), axis=-1, inplace=False)
        return ((x - f @ w["W_dec"] - w["b_dec"]) ** 2).sum(-1).mean() / spread

    @jax.jit
    def step(w: dict[str, jax.Array], state: object, x: jax.Array) -> tuple[dict[str, jax.Array], object, jax.Array]:
        value, slope = jax.value_and_grad(loss)(w, x * scale)
        moves, state = optimizer.update(slope, state, w)
        w = optax.apply_updates(w, moves)
        w["W_dec"] = w["W_dec"] / jnp.linalg.norm(w["W_dec"], axis=1, keepdims=True)
        return w, state, value

    epochs = -(-steps // max(1, len(rows) // batch))
    whole = (x for x, _ in rows.batches(batch, seed, epochs) if len(x) == batch)
    with tqdm(total=steps, desc="train", unit="step", delay=1, leave=False, disable=None) as bar:
        for n, x in enumerate(whole):
            if n == steps:
                break
            w, state, value = step(w, state, x)
            bar.update()
    made = {name: np.asarray(a) for name, a in w.items()}  # in x's own units: f(scale x) / scale
    made["b_enc"], made["b_dec"] = made["b_enc"] / scale, made["b_dec"] / scale
    about = {"model_name": acts.about["model"], "trained": f"{steps} steps of {batch} rows, seed {seed}, loss {float(value):.3f}"}
    return Sae("topk", made, rows.site, rows.layer, k=k, center=True, about=about)
