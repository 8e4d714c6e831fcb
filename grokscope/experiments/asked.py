"""What a question names, checked: a token, a position, one text, a layer; and how an answer is labelled."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from grokscope.model.model import Model
from grokscope.prompt import Prompt
from grokscope.text.naming import id_of
from grokscope.transformer.forms import Array, Scaled, Weight
from grokscope.transformer.forward import embed

Token = int | str
"""A token's id, or a text that is one token."""


def token_id(model: Model, token: Token, who: str) -> int:
    """The id of a token. A text is encoded as the model's tokenizer does it, SentencePiece with a leading space: "Paris"
    is "▁Paris", with a space before it or none; a token inside a word must be given by its id.
    """
    return id_of(model.tokenizer, model.config.vocab_size, token, who)


def one_index(index: Any, size: int, what: str, who: str) -> int:
    """A layer, an expert or a position as 0 to size - 1; negative ones count from the end."""
    if isinstance(index, bool) or not isinstance(index, int | np.integer) or not -size <= index < size:
        raise ValueError(
            f"{who}: {what}: wanted one of 0 to {size - 1} (or from the end, -1 to {-size}), got {index!r}"
        )
    return int(index) % size


def need_model(model: Any, who: str) -> None:
    """Raise TypeError for anything else in a model's place, such as its trace."""
    if not isinstance(model, Model):
        raise TypeError(f"{who}: wanted a Model, then texts, got {type(model).__name__}; gs.load() gives one")


def one_text(model: Model, text: Any, who: str) -> Prompt:
    """A prompt of a single text."""
    need_model(model, who)
    prompt = model.encode(text)
    if prompt.batch != 1:
        raise ValueError(f"{who}: wanted one text, got {prompt.batch}; call it for each")
    return prompt


def need_experts(model: Model, who: str) -> None:
    """Raise ValueError for a dense model."""
    need_model(model, who)
    if model.config.is_dense:
        raise ValueError(
            f"{who}: wanted a mixture of experts, got a dense model, which has no router; logit_attribution takes it"
        )


def moe_layer(model: Model, layer: Any, who: str) -> int:
    """The number of a layer that has a router."""
    here, moe = one_index(layer, model.config.num_layers, "layer", who), model.config.moe_layers
    if here not in moe:
        raise ValueError(f"{who}: layer: wanted one of {list(moe)}, which have a router, got {here}, which is dense")
    return here


def pieces_of(model: Model, ids: Any) -> np.ndarray:
    """What a reader sees of each id, in the shape of `ids`; the number in brackets where the tokenizer has no piece of
    it, nothing for -1.
    """
    known = 0 if model.tokenizer is None else getattr(model.tokenizer, "vocab_size", model.config.vocab_size)
    different, where = np.unique(np.asarray(ids), return_inverse=True)

    def piece(i: int) -> str:
        return "" if i < 0 else model.tokenizer.pieces([i])[0] if i < known else f"[{i}]"  # type: ignore[union-attr]

    names = [piece(i) for i in different.tolist()]
    return np.array(names, dtype=object)[where].reshape(np.shape(ids))


def rows_of(table: Weight, ids: Any, dtype: Any) -> Float[Array, "... D"]:
    """Rows of a table in float32, as the arithmetic in `dtype` sees them."""
    rows = (
        embed(table, jnp.asarray(ids), 1.0, dtype) if isinstance(table, Scaled) else jnp.asarray(table)[jnp.asarray(ids)]
    )
    return rows.astype(jnp.float32)
