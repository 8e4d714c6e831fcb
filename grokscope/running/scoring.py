"""How likely a text was, token by token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from grokscope.prompt import bucket
from grokscope.sites import Capture
from grokscope.text.given import texts_of
from grokscope.text.tokenizer import with_prefix
from grokscope.transformer.attention import Sequence
from grokscope.transformer.forward import Call, Record, Run, run_layers
from grokscope.transformer.tap import Selection
from grokscope.transformer.unembed import End, run_logprobs

if TYPE_CHECKING:
    import pandas as pd

    from grokscope.running.loaded import Loaded


def score(model: Loaded, given: Any) -> pd.DataFrame:
    """See `Model.score`."""
    import pandas as pd

    if model.tokenizer is None:
        raise ValueError("score: wanted a model with a tokenizer; pass tokenizer= to load")
    frames, texts = [], texts_of(given, "score")
    if not texts:
        raise ValueError("score: wanted at least one text, got none; give one")
    for number, text in enumerate(texts):
        start, ids = with_prefix(model.tokenizer, text, model.config.bos_id)
        if not ids:
            raise ValueError(f"score: text {number}: wanted at least one token, got an empty text")
        logprobs = _logprobs(model, np.array([*start, *ids], np.int32))
        frame = pd.DataFrame({"prompt": number, "position": np.arange(len(ids)), "token_id": ids})
        frame["token"] = model.tokenizer.pieces(ids)
        frame["logprob"] = logprobs[len(start) - 1 :] if start else np.concatenate([[np.nan], logprobs])
        frame["n_bytes"] = _bytes_of(model, ids, text)
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def _logprobs(model: Loaded, ids: np.ndarray) -> np.ndarray:
    """The log-probability of ids[1:], each after those before it, window by window."""
    context = model.config.max_tokens
    found = np.empty(len(ids) - 1)
    done = 0
    while done < len(found):
        start = max(0, done - context // 2) if done else 0
        window = ids[start : start + context + 1]
        here = read_window(model, window)
        found[done : start + len(here)] = here[done - start :]
        done = start + len(here)
    return found


def read_window(
    model: Loaded, ids: np.ndarray, sites: tuple[str, ...] = (), record: Record = lambda *_: None
) -> np.ndarray:
    """The log-probability of ids[1:] in one pass of at most the context; `record` gets what each layer kept of `sites`."""
    length = len(ids) - 1
    width = bucket(length)
    padded = np.zeros((2, 1, width), np.int32)
    padded[0, 0, :length], padded[1, 0, :length] = ids[:-1], ids[1:]
    segments = (np.arange(width) < length)[None].astype(np.int32)
    seq = Sequence(jnp.arange(width)[None], jnp.asarray(segments), mesh=model.mesh, one_text=True)
    run = Run(model.config, jnp.dtype(model.dtype), Capture(sites), lambda _: (), Selection())
    w = model.weights
    x = run_layers(w, [Call(jnp.asarray(padded[0]), seq, run, record)]).get(0)
    return np.asarray(run_logprobs(End.of(w), x, jnp.asarray(padded[1]), config=model.config))[0, :length]


def _bytes_of(model: Loaded, ids: list[int], text: str) -> Any:
    """How many bytes of the text each token stands for. They add up to the text's: what a tokenizer added (a leading
    space) or changed is the first token's or the last one's.
    """
    spelt = (p.replace("▁", " ").replace("⏎", "\n").replace("⇥", "\t") for p in model.tokenizer.pieces(ids))  # type: ignore[union-attr]
    sizes = np.array([1 if len(p) == 6 and p.startswith("<0x") else len(p.encode()) for p in spelt])
    extra = int(sizes.sum()) - len(text.encode())
    sizes[0 if 0 < extra <= sizes[0] else -1] -= extra
    return sizes
