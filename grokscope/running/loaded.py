"""What every run needs of a model: config, weights and tokenizer, as loading left them, and how they read a prompt."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from grokscope.arguments import check_arguments
from grokscope.config import ModelConfig
from grokscope.devices.sharding import Layout
from grokscope.prompt import Encoder, Prompt
from grokscope.sites import SITES, Capture, names_of, parse_site
from grokscope.text.tokenizer import Tokenizer
from grokscope.trace.recorder import kept_layers
from grokscope.transformer.selecting import indices
from grokscope.transformer.stream import Streamed
from grokscope.transformer.weights import ModelWeights
from grokscope.versions import versions

_LIMITS = ("tokens", "heads", "experts")


def _kept_tokens(selected: Any, most: int, lengths: Sequence[int] | None) -> list[int]:
    """Positions from 0 on; negative ones and slices from the end of texts that all have the same length."""
    from_end = isinstance(selected, slice) or (np.asarray(selected) < 0).any() if not isinstance(selected, str) else False
    if from_end and lengths is None:
        raise ValueError(
            f"tokens: wanted positions from 0 on, got {selected}: where a text ends is not known before it is written; keep all "
            "and choose afterwards, as in trace[site].isel(token=-1)"
        )
    if from_end and lengths is not None and len(set(map(int, lengths))) > 1:
        raise ValueError(
            f"tokens: wanted positions from 0 on, got {selected}: these texts end at different places; trace them "
            "apart, or keep all"
        )
    return indices(selected, int(max(lengths)) if from_end and lengths is not None else most, "tokens", "capture")


@dataclass(frozen=True)
class Loaded:
    """Config, weights and tokenizer. Those who run, generate, score and sweep take one; `Model` is one with their verbs.

    dtype is that of the arithmetic, "bfloat16" or "float32"; norms, attention's softmax and the router are always float32.
    """

    config: ModelConfig
    weights: ModelWeights
    tokenizer: Tokenizer | None = None
    dtype: str = "bfloat16"
    name: str = "model"
    source: dict[str, Any] = field(default_factory=dict)
    mesh: Any = None

    @property
    def sites(self) -> list[str]:
        """The places inside this model, in the order of the forward pass; see `grokscope.SITES`."""
        return [s for s in SITES if not SITES[s].in_block or self.config.layers_with(s)]

    def encode(self, prompt: Any, truncate: bool = False) -> Prompt:
        """A prompt as token ids: a text, several texts, an int array [B, T] or lists of ids (see `Encoder`)."""
        config = self.config
        return Encoder(self.tokenizer, config.vocab_size, config.max_tokens, config.bos_id)(prompt, truncate)

    def capture(self, sites: Any = None, layers: Any = None, *, lengths: Sequence[int] | None = None, **select: Any) -> Capture:
        """What to keep, checked against this model; see `Capture`. lengths: of the texts, where they are known, from whose
        ends negative tokens count.
        """
        check_arguments(select, {"tokens", "heads", "experts"}, "capture")
        config = self.config
        made = sites if isinstance(sites, Capture) else None
        given = Capture.of(made, layers, **select) if made else None  # refuses both
        chosen = {n: getattr(given, n) for n in ("layers", *_LIMITS)} if given else {"layers": layers, **select}
        sizes = {"layers": config.num_layers, "heads": config.num_heads, "experts": config.router.num_experts}
        chosen |= {n: indices(chosen[n], size, n, "capture") for n, size in sizes.items() if chosen.get(n) is not None}
        if chosen.get("tokens") is not None:
            chosen["tokens"] = _kept_tokens(chosen["tokens"], config.max_tokens, lengths)
        made = Capture.of(made.sites if made else sites, **chosen)
        if made.layers is not None:  # from 0 on, checked: a negative one would match no block
            made = dataclasses.replace(made, layers=tuple(kept_layers(made, config)))
        if made.layers == ():
            raise ValueError(f"layers: wanted some of 0 to {config.num_layers - 1}, got none")
        has = [s for s in self.sites if not SITES[s].in_block or kept_layers(made, config, s)]
        lacks = [s for s in made.sites if s not in has]
        named = [n[0] if isinstance(n, tuple) else n for n in names_of(sites)] if sites is not None and given is None else []
        if wrong := [s for s in lacks if any(parse_site(n)[0] == s for n in named if "*" not in n)]:
            where = "this model" if made.layers is None else f"layers {', '.join(map(str, made.layers))} of this model"
            where = "a dense model" if config.is_dense else where
            raise ValueError(f"capture: {where} has no {', '.join(wrong)}; it has {', '.join(has)}")
        kept = tuple(s for s in made.sites if s in has)
        for name, letter in (("heads", "H"), ("experts", "E")):
            if getattr(made, name) is not None and not any(letter in SITES[s].dims for s in kept):
                raise ValueError(f"{name}: wanted a site that has {name}, got {', '.join(kept)}; leave {name} out, or capture one")
        return dataclasses.replace(made, sites=kept)

    def pieces(self, prompt: Prompt) -> list[list[str]]:
        """What a reader sees of each token; the ids in brackets where there is no tokenizer."""
        if self.tokenizer is None:
            return [[f"[{i}]" for i in row] for row in prompt.rows]
        return [self.tokenizer.pieces(row) for row in prompt.rows]

    def provenance(self, config: ModelConfig, capture: Capture, edits: Sequence[Any]) -> dict[str, Any]:
        """What a trace says of where it came from; plain values."""
        return {
            "model": self.name,
            "source": self.source,
            "config": config.to_dict(),
            "tokenizer": getattr(self.tokenizer, "sha256", None),
            "capture": dataclasses.asdict(capture),
            "edits": [repr(edit) for edit in edits],
            "dtype": self.dtype,
            "versions": versions("grokscope", "jax", "numpy"),
            "backend": jax.default_backend(),
        }

    @property
    def is_streamed(self) -> bool:
        """Whether each layer is brought when it is its turn."""
        return isinstance(self.weights.blocks, Streamed)

    def on_device(self, rows: Any) -> jax.Array:
        """An array with a leading batch, where the weights are."""
        return jax.device_put(rows) if self.mesh is None else Layout(self.config, self.mesh).rows(np.asarray(rows))

    def __repr__(self) -> str:
        c = self.config
        experts = "dense" if c.is_dense else f"{c.router.num_experts} experts, top {c.router.top_k}"
        return f"{type(self).__name__} {self.name}: {c.num_parameters:,} parameters, {c.num_layers} layers, {experts}, {self.dtype}"
