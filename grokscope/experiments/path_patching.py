"""Path patching: what one part says to another part alone, whatever else hears it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array

from grokscope.arguments import check_arguments
from grokscope.experiments.asked import need_experts, one_index
from grokscope.experiments.cells import Asked, tokens_of
from grokscope.experiments.pairs import BothRuns, Pairs
from grokscope.experiments.patching import OVER, draws_of
from grokscope.experiments.recovered import recovered
from grokscope.experiments.rows import Batch, Row, Through, batches, last_streams
from grokscope.experiments.site_values import STREAMS, SiteValues, cut
from grokscope.experiments.sweeping import Sweep
from grokscope.model.model import Model
from grokscope.sites import DIMS, SITES, parse_site
from grokscope.transformer.primitives import Primitive
from grokscope.transformer.selecting import hot, indices
from grokscope.transformer.values import sizes_of

WHO = "patch_path"
_ORDER = list(SITES)


def patch_path(
    model: Model, clean: Any, corrupt: Any, sender: str = "attn.z", receiver: Any = "logits", metric: Any = None,
    between: str = "frozen", into: str = "corrupt", **over: Any,
) -> xr.Dataset:  # fmt: skip
    """What comes back when a sender's output reaches one receiver as in the other run, and all else stays: by sender.

    Three steps: the sender gets the other run's value; what the receiver then reads and makes of it is kept; the run patched into
    gets that at the receiver alone, and goes on from there. between="frozen": attention and experts between the two stay as they
    were, so that the sender reaches the receiver through the stream directly; "free": they pass on what they hear.

    sender: a site of attention or of the experts, swept as in `patch` by layers= and heads=, slots= or experts= (each head of
    attn.z, each expert of expert.out unless you say otherwise), at all tokens together unless tokens= says which. receiver:
    "logits", or (site, layer) or (site, layer, heads): ("attn.q", 5, 2), ("attn.v", 5), ("router.logits", 6), ("moe.in", 6).
    Senders are those of layers before it, and of its own where they come first.

    `value`, `effect`, intervals and control as of `patch`, over (layer, head or expert, token); a token dim of length 1 named "all"
    where tokens are not given. With receiver="logits" and between="frozen" it is the direct effect. routing="frozen": the routers
    after the receiver keep their choices. Traps: direct effects need not add up to the total (the last norm, and what later parts
    do with what they hear); in bfloat16 a small sender drowns in the stream's rounding. Cite: Wang et al. 2022, arXiv 2211.00593,
    section 3.1; Goldowsky-Dill et al. 2023, arXiv 2304.05969.
    """
    check_arguments(
        over, ("model", "clean", "corrupt", "sender", "receiver", "metric", "between", "into", "routing", *OVER), WHO
    )
    if between not in ("frozen", "free"):
        raise ValueError(f'{WHO}: between: wanted "frozen" or "free", got {between!r}; frozen leaves the direct path alone')
    routing = over.pop("routing", "free")
    if routing not in ("free", "frozen"):
        raise ValueError(f'{WHO}: routing: wanted "free" or "frozen", got {routing!r}; "only" is about no path')
    if routing == "frozen":
        need_experts(model, WHO)
    pairs = Pairs(model, clean, corrupt, metric, into, WHO)
    to = Receiver.of(model, receiver)
    asked = _senders(model, sender, to, over)
    tokens = over.get("tokens")
    places = tokens_of({"all": slice(None)} if tokens is None else tokens, pairs.lengths, WHO)
    writes = "attn.out" if _ORDER.index(asked.site) <= _ORDER.index("attn.out") else "moe.out"
    runs = BothRuns(pairs, tuple(s for s in (asked.site, writes, to.site) if s in SITES and SITES[s].in_block))
    path = _Path(runs, asked, to, writes, between == "frozen", routing)
    draws = draws_of(over, WHO)
    found = path.sweep.measure(asked.cells(places), draws)
    return recovered(runs, asked.axes(places), *found).assign_attrs(
        sender=asked.site, receiver=str(to), between=between, routing=routing, layer_tokens=runs.work + path.work,
        null="other places at random" if draws else "absent",
    )  # fmt: skip


@dataclass(frozen=True)
class Receiver:
    """Where the path ends: a site of a layer, some of its heads or experts (None: all); or the logits."""

    site: str
    layer: int
    units: tuple[int, ...] | None = None

    @classmethod
    def of(cls, model: Model, given: Any) -> Receiver:
        """Raises ValueError for what is no such place."""
        if given == "logits":
            return cls("logits", model.config.num_layers)
        if not isinstance(given, tuple) or len(given) not in (2, 3):
            raise ValueError(f'{WHO}: receiver: wanted "logits" or (site, layer[, heads]), got {given!r}; as in ("attn.q", 5, 2)')
        site, layer = parse_site(given[0])[0], one_index(given[1], model.config.num_layers, "receiver's layer", WHO)
        if not SITES[site].in_block or site in ("resid_post", "attn.out", "moe.out") or SITES[site].dtype == "int32":
            raise ValueError(f"{WHO}: receiver: wanted what a part reads or makes of it, got {site}; as in attn.q or moe.in")
        if layer not in model.config.layers_with(site):
            raise ValueError(f"{WHO}: receiver: layer {layer} has no {site}; it is in {list(model.config.layers_with(site))}")
        if len(given) == 2 or given[2] is None:
            return cls(site, layer)
        letter = next((c for c in SITES[site].dims if c in "HGE"), None)
        if letter is None:
            dims = ", ".join(DIMS[c] for c in SITES[site].dims)
            raise ValueError(f"{WHO}: receiver: {site} has no heads ({dims}); leave them out")
        return cls(site, layer, tuple(indices(given[2], sizes_of(model.config, site)[letter], "receiver's heads", WHO)))

    def __str__(self) -> str:
        if self.site == "logits":
            return "logits"
        return f"{self.site}, layer {self.layer}" + ("" if self.units is None else f", {list(self.units)}")


def _senders(model: Model, sender: str, to: Receiver, over: dict[str, Any]) -> Asked:
    """The senders before the receiver; each head or expert where nothing else is said."""
    site = parse_site(sender)[0]
    if site in (*STREAMS, "resid_mid", "embed", "final", "logits"):
        raise ValueError(f"{WHO}: sender: wanted a part that writes to the stream, got {site}; as in attn.z or expert.out")
    last = to.layer - (to.site == "logits" or _ORDER.index(site) >= _ORDER.index(to.site))
    before = [n for n in model.config.layers_with(site) if n <= last]
    if not before:
        raise ValueError(f"{WHO}: wanted a sender before the receiver, got {site} and {to}; choose a later receiver")
    given = dict(over)
    if given.get("layers") is None and parse_site(sender)[1] is None:
        given["layers"] = before
    if not any(given.get(name) is not None for name in ("heads", "slots", "experts")):
        given |= {"attn.z": {"heads": slice(None)}, "expert.out": {"experts": slice(None)}}.get(site, {})
    asked = Asked.of(model, sender, given, WHO)
    if late := [group for _, group in asked.layers if len(group) > 1 or group[0] not in before]:
        raise ValueError(f"{WHO}: layers: wanted single ones of {before}, before {to}, got {[n for g in late for n in g]}")
    return asked


class _Path:
    """The three steps for many senders at a time; `sweep` draws their controls and measures."""

    def __init__(
        self, runs: BothRuns, asked: Asked, to: Receiver, writes: str, frozen: bool, routing: str
    ) -> None:
        self.runs, self.to, self.writes, self.frozen, self.work = runs, to, writes, frozen, 0
        values = SiteValues(runs, asked.site, asked.by_expert)
        self.sweep = Sweep(runs, asked.site, values, routing, asked.by_expert, through=self)

    def __call__(self, rows: list[Row]) -> np.ndarray:
        """The last streams of each row where the metric reads."""
        found: dict[int, np.ndarray] = {}
        for batch in batches(self.runs, rows):
            for row, last in zip(batch.rows, last_streams(batch, self._through(batch)), strict=False):
                found[id(row)] = last
        empty = np.zeros((0, *self.runs.final.shape[1:]), np.float32)
        return np.stack([found[id(row)] for row in rows]) if rows else empty

    def _through(self, batch: Batch) -> Array:
        """What leaves the last layer, R w D."""
        last, layer = self.runs.pairs.model.config.num_layers, self.to.layer
        arriving, level = self._arriving(batch)
        if self.to.site == "logits":
            return arriving if level == last else self._run(replace(batch, level=level), arriving, self._nothing, last)[0]
        # What the receiver makes of what arrives; the sender acts here too where it is in the same layer.
        edits = self._sent if batch.level == layer else self._nothing
        heard = self._run(replace(batch, level=level), arriving, edits, layer + 1, self.to.site)[1]
        here = replace(batch, level=layer)
        received = self._received(here, heard)
        return self._run(here, self._plain(here), lambda b, n: self._after(b, n, received), last)[0]

    def _arriving(self, batch: Batch) -> tuple[Array, int]:
        """The stream with the sender's message, and the layer that it enters."""
        if batch.level == self.to.layer:
            return self._plain(batch), batch.level
        x, wrote = self._run(batch, self._plain(batch), self._sent, batch.level + 1, self.writes)
        if not self.frozen:
            return x, batch.level + 1
        layers = self.runs.layers[self.writes]
        own = cut(self.runs.arrays[self.writes][layers.index(batch.level)], batch.pairs, batch.window)
        more = wrote - jnp.asarray(own, wrote.dtype)
        return self._plain(replace(batch, level=self.to.layer)) + more, self.to.layer

    def _run(self, batch: Batch, x: Array, edits: Any, stop: int, site: str | None = None) -> tuple[Array, Any]:
        """From the batch's level with this stream up to a layer; and what a site of the last one held."""
        kept: dict[int, Any] = {}
        through = Through(self.runs, edits, lambda _: x)
        streams = through.run([batch], [stop], () if site is None else (site,), lambda _, layer, k: kept.update({layer: k[site]}))
        self.work += batch.size * batch.width * (stop - batch.level)
        return streams.get(0), kept.get(stop - 1)

    def _plain(self, batch: Batch) -> Array:
        return self.runs.stream(batch.level)[batch.pairs, batch.window]

    def _sent(self, batch: Batch, layer: int) -> tuple[Any, ...]:
        mask = batch.mask(layer)
        return () if mask is None else (self.sweep.values.primitive(layer, batch.pairs, mask, batch.window),)

    @staticmethod
    def _nothing(_: Batch, __: int) -> tuple[Any, ...]:
        return ()

    def _received(self, batch: Batch, heard: Array) -> Primitive:
        """What was heard, as an edit at the receiver's place; idle rows and tokens hear what they would."""
        dims = SITES[self.to.site].dims
        mask = np.ones((1,) * len(dims), bool)
        if self.to.units is not None:
            axis = next(i for i, c in enumerate(dims) if c in "HGE")
            shape = [1] * len(dims)
            shape[axis] = heard.shape[axis]
            mask = hot(list(self.to.units), heard.shape[axis]).reshape(shape)
        return Primitive(np.broadcast_to(mask, (len(heard), *mask.shape[1:])), heard, site=self.to.site)

    def _after(self, batch: Batch, layer: int, received: Primitive) -> tuple[Any, ...]:
        """The receiver's edit, and where the routing is frozen the choices after it."""
        first = self.to.layer + (_ORDER.index(self.to.site) >= _ORDER.index("router.experts"))
        made: list[Any] = []
        if self.sweep.routing == "frozen" and layer >= first and layer in self.sweep.choices.base:
            everywhere = np.ones((batch.size, batch.width), bool)
            made.append(self.sweep.choices.primitive(self.sweep.choices.base, layer, batch.pairs, everywhere, batch.window))
        return (*made, received) if layer == self.to.layer else tuple(made)
