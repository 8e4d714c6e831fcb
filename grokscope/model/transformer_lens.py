"""A model by TransformerLens's words, for those who come from there: logits and a cache, functions at hook points, W_E.

Everything stands on `trace` and on edits; what cannot be said in them is refused by name. notebooks/coming-from.md has the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from grokscope.devices.memory import free_memory
from grokscope.sites import SITES, TRANSFORMER_LENS, near, parse_site
from grokscope.transformer.forms import plain
from grokscope.transformer.site_edits import Map
from grokscope.transformer.weights import field_of

if TYPE_CHECKING:
    from grokscope.trace.trace import Trace

LARGE = ("expert.out", "expert.act")
"""Sites that a cache has when they are asked for: each is a few times the stream."""


@dataclass(frozen=True)
class HookPoint:
    """What a hook's function gets beside the array: where it stands."""

    name: str
    number: int | None

    def layer(self) -> int | None:
        """The layer's number, None outside the blocks."""
        return self.number


class Cache(Mapping):
    """A trace under TransformerLens's names: cache["blocks.3.attn.hook_pattern"], cache["pattern", 3], as NumPy arrays.

    Dims are the site's (`grokscope.SITES`), the batch in front and never flattened: a router's logits are B T E. `trace` is the
    trace itself, with named dims.
    """

    def __init__(self, trace: Trace, names: Sequence[str]) -> None:
        self.trace = trace
        self._names = [n for n in names if n in trace]

    def __getitem__(self, key: Any) -> np.ndarray:
        try:
            found = self.trace[key]
        except ValueError as error:
            raise KeyError(str(error)) from None
        if "layer" in found.dims:
            raise KeyError(f'cache: wanted one layer, got {key!r} of all; as in cache["{key}", 0], or cache.trace["{key}"]')
        return found.values

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"Cache of {len(self)} arrays; names as in TransformerLens, cache.trace has them with named dims"


def hook_names(config: Any) -> list[str]:
    """TransformerLens's names of what this model has, in the order of the forward pass; of two names of one site the first."""
    spelt = {site: name for name, site in reversed(TRANSFORMER_LENS.items())}
    outside = [spelt[s] for s in SITES if s in spelt and not SITES[s].in_block]
    inside = [s for s in SITES if s in spelt and SITES[s].in_block]
    blocks = [f"blocks.{n}.{spelt[s]}" for n in range(config.num_layers) for s in inside if n in config.layers_with(s)]
    return [*outside[:1], *blocks, *outside[1:]]


class InTheirWords:
    """The part of `Model` that speaks TransformerLens."""

    def run_with_cache(self: Any, prompt: Any, names_filter: Any = None, **select: Any) -> tuple[np.ndarray, Cache]:
        """(logits B T V, a mapping from TransformerLens's names to arrays), in one run.

        names_filter: a name, several, or a function of a name; all but the experts' outputs by default. Other arguments as in
        `trace`, which this is: model.trace(prompt, capture=[...]) keeps the same under named dims, with its provenance.
        """
        every = hook_names(self.config)
        if names_filter is None:
            wanted = [n for n in every if parse_site(n)[0] not in LARGE]
        else:
            wanted = _named(names_filter, every, "run_with_cache")
            if layers := sorted({layer for n in wanted if (layer := parse_site(n)[1]) is not None}):
                select.setdefault("layers", layers)
        trace = self.trace(prompt, capture=["logits", *dict.fromkeys(parse_site(n)[0] for n in wanted)], **select)
        return trace["logits"].values, Cache(trace, [n for n in every if n in wanted])

    def run_with_hooks(
        self: Any, prompt: Any, fwd_hooks: Sequence[tuple[Any, Callable[..., Any]]] = (), **options: Any
    ) -> np.ndarray:
        """The logits B T V of a run in which functions change what passes at hook points.

        fwd_hooks: (name, or function of a name; function). The function gets (array, hook) and returns the new array; hook.name
        and hook.layer() say where it stands. It is compiled: it sees shapes, not numbers, writes by value.at[...].set(...), and
        must return; to look, take `run_with_cache`. It is `gs.edits.Map`; the verbs of `gs.edits` compile once for all layers.
        Raises ValueError for a name that no site answers to, such as hook_q, which TransformerLens reads before RoPE.
        """
        edits, every = [], hook_names(self.config)
        for one in fwd_hooks:
            if not isinstance(one, tuple) or len(one) != 2 or not callable(one[1]):
                raise TypeError(
                    f"fwd_hooks: wanted pairs of a name and a function, got {one!r:.60}; as in ('blocks.3.hook_resid_pre', f)"
                )
            for name in _named(one[0], every, "fwd_hooks"):
                site, layer = parse_site(name)
                edits.append(Map(site, _returning(one[1], HookPoint(name, layer)), layers=layer))
        return self.trace(prompt, capture=["logits"], edits=edits, **options)["logits"].values

    def to_tokens(self: Any, text: Any, prepend_bos: bool = True) -> np.ndarray:
        """Token ids [B, T] of a text or several, with the beginning-of-text token where the model was trained with one."""
        texts = [text] if isinstance(text, str) else list(text)
        rows = self.encode(texts).rows if prepend_bos else [self.tokenizer.encode(t) for t in texts]
        if len({len(r) for r in rows}) > 1:
            raise ValueError(f"to_tokens: wanted texts of one length in tokens, got {[len(r) for r in rows][:8]}; call it for each")
        return np.array(rows)

    def to_str_tokens(self: Any, text: str | Sequence[int], prepend_bos: bool = True) -> list[str]:
        """What a reader sees of each token of one text, or of ids."""
        ids = self.to_tokens(text, prepend_bos)[0] if isinstance(text, str) else np.ravel(text)
        return self.tokenizer.pieces([int(i) for i in ids])

    @property
    def W_E(self: Any) -> np.ndarray:
        """The embedding, V D, float32, before the model's own scale."""
        return _wide(self.weights.embed)

    @property
    def W_U(self: Any) -> np.ndarray:
        """What turns `final`, the normed last stream, into logits before their scale, cap and bias: D V, float32."""
        return _wide(self.weights.table).T

    @property
    def W_in(self: Any) -> np.ndarray:
        """The experts' input matrices, L E D F, float32, of the layers that have a router; W_gate and W_out likewise."""
        return _stacked(self, "moe.up", "W_in")

    @property
    def W_gate(self: Any) -> np.ndarray:
        """The matrices that gate an expert's neurons, L E D F."""
        return _stacked(self, "moe.gate", "W_gate")

    @property
    def W_out(self: Any) -> np.ndarray:
        """The experts' output matrices, L E F D."""
        return _stacked(self, "moe.down", "W_out")


def _named(wanted: Any, every: Sequence[str], who: str) -> list[str]:
    """The hook points that a name, several or a function choose, of those the model has."""
    if callable(wanted):
        chosen = [n for n in every if wanted(n)]
        if not chosen:
            raise ValueError(f"{who}: wanted a function that some name passes, got none of {len(every)}, such as {every[1]!r}")
        return chosen
    chosen = []
    for name in [wanted] if isinstance(wanted, str) else list(wanted):
        site, layer = parse_site(name)
        same = [n for n in every if parse_site(n)[0] == site and layer in (None, parse_site(n)[1])]
        if not same:
            raise ValueError(f"{who}: wanted a hook point of this model, got {name!r}{near(name, every)}")
        chosen += same
    return chosen


def _returning(function: Callable[..., Any], hook: HookPoint) -> Callable[..., Any]:
    """The function as `Map` takes it; what TransformerLens allows and a compiled program does not is said."""

    def call(x: Any) -> Any:
        try:
            made = function(x, hook)
        except TypeError as error:
            if "immutable" in str(error) or "item assignment" in str(error):
                raise TypeError(f"{hook.name}: wanted a function that returns a new array, got one that writes into it; "
                                "return value.at[...].set(...)") from error  # fmt: skip
            raise
        if made is None:
            raise TypeError(f"{hook.name}: wanted a function that returns the array, got None; to look, take run_with_cache")
        return made

    return call


def _wide(weight: Any) -> np.ndarray:
    return np.asarray(plain(weight, jnp.float32))


def _stacked(model: Any, name: str, who: str) -> np.ndarray:
    """A matrix of every mixture, in float32."""
    if model.is_streamed or model.config.is_dense:
        what = "a dense model" if model.config.is_dense else "streamed ones, a layer at a time"
        raise ValueError(f"{who}: wanted experts in memory, got {what}; take model.weights.blocks[layer].{name}")
    layers = model.config.moe_layers
    size = 4 * len(layers) * int(np.prod(model.config.block(layers[0]).shapes[name]))
    if size > free_memory() // 2:
        one = f"take one layer, model.weights.blocks[layer].{name}"
        raise MemoryError(f"{who}: wanted at most {free_memory() / 2e9:.1f} GB, got {size / 1e9:.1f}; {one}")
    return np.stack([_wide(field_of(model.weights.blocks[n], name)) for n in layers])
