"""Texts read once as they are, and what edits change of that, token for token.

An edit at layer l leaves everything before it as it was: an edited run starts from the stream that the plain run left there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array
from tqdm import tqdm

from grokscope.analysis.measure import answer
from grokscope.analysis.uncertainty import FEW, interval, jackknife
from grokscope.devices.memory import device_memory, free_memory
from grokscope.experiments.asked import need_model
from grokscope.experiments.predictions import divergence, expectation, predict
from grokscope.experiments.streams import Entering, Left, Routed, Unheard, entry
from grokscope.model.model import Model
from grokscope.prompt import bucket
from grokscope.running.running import calls_of
from grokscope.sites import Capture
from grokscope.transformer.edits import Replace, prepare
from grokscope.transformer.forward import Call, run_layers
from grokscope.transformer.primitives import Place, Primitive
from grokscope.transformer.site_edits import Indices, indices

Job = TypeVar("Job")


@dataclass(frozen=True)
class Difference:
    """What edits did to each predicted token, [N] each, in nats; d_nll is positive where it became less likely."""

    d_nll: np.ndarray
    kl: np.ndarray
    flips: np.ndarray
    """Whether the most likely next token is another."""


@dataclass(frozen=True, repr=False)
class ReplaceAt(Replace):
    """`Replace` where a mask holds: B T A of a site with slots, B T E of the router's logits."""

    where: Any = None

    def lower(self, place: Place, layer: int | None) -> Primitive | None:
        """As `Replace`, at fewer places; the mask's shape is the same whatever it holds."""
        made = super().lower(place, layer)
        if made is None:
            return None
        mask = np.pad(self.where, ((0, 0), (0, place.positions.shape[1] - self.where.shape[1]), (0, 0)))
        return dataclasses.replace(made, mask=made.mask & mask.reshape(mask.shape + (1,) * (made.mask.ndim - 3)))


class Paired:
    """`texts` through `model` without edits; `measure` runs them again with edits. `who` asks, for errors.

    row, token: [N], where the N tokens stand that have a next one to predict; nll: [N], that one's, without edits. chosen,
    choice: the plain routing by the number of a layer, [B, T, A] and what top-k saw (logits where nothing sets it apart),
    [B, T, E]; means, with `outputs`: as `grokscope.expert_means` has it.
    """

    def __init__(self, model: Model, texts: Any, who: str, *, outputs: bool = False) -> None:
        need_model(model, who)
        self.model, self.who, self.prompt = model, who, model.encode(texts)
        self.row, self.token = np.nonzero(np.arange(self.prompt.tokens) < self.prompt.lengths[:, None] - 1)
        if not len(self.row):
            raise ValueError(f"{who}: wanted a text of two tokens or more, got one token: nothing to predict; give more text")
        self._check_memory()
        pinned = device_memory() is not None and model.mesh is None
        self._home = (
            jax.sharding.SingleDeviceSharding(jax.local_devices()[0], memory_kind="pinned_host") if pinned else None
        )
        config = model.config
        seen = "router.choice" if config.router.has_choice else "router.logits"
        routing = Capture(() if config.is_dense else (seen, "router.experts"))
        routed = Routed(config, routing, self.prompt.lengths.tolist(), config.router.top_k)
        capture = Capture((*routing.sites, "expert.out")) if outputs else routing
        self._calls = list(calls_of(model, config, self.prompt, capture, (), routed))
        self._left = Left(self._home)
        run_layers(model.weights, self._calls, self._left)
        self.chosen, self.choice = (
            dict(zip(config.moe_layers, routed.arrays.get(site, ()), strict=False)) for site in ("router.experts", seen)
        )
        self.means = routed.means() if outputs else None
        self._ids = self.prompt.ids[self.row, self.token + 1][:, None]
        self._plain = self._read([self._left.get(n) for n in range(len(self._calls))], self._calls, ())
        self._expected, best = expectation(model.weights, self._plain, config)
        self.nll = -self._plain["logprob"][:, 0].astype(float)
        # An argmax takes as long as the logits themselves: of an edited run it is asked only whether this id is still on top.
        self._ids = np.stack([self._ids[:, 0], best], axis=1)

    def measure(self, jobs: Sequence[Job], edits_of: Callable[[Job], Sequence[Any]]) -> Iterator[tuple[Job, Difference]]:
        """Each job and what its edits did. Streamed layers are brought once for as many jobs as memory holds streams of."""
        size = max(1, free_memory() // 4 // self._bytes()) if self.model.is_streamed else 1
        waiting = iter(jobs)
        with tqdm(total=len(jobs), desc=self.who, unit="run", delay=1, leave=False, disable=None) as bar:
            while group := list(islice(waiting, size)):
                for job, found in zip(group, self._through([edits_of(job) for job in group]), strict=True):
                    bar.update()
                    yield job, found

    def by_document(self, values: np.ndarray) -> np.ndarray:
        """Sums [B, ...] of values [..., N]."""
        flat = np.reshape(values, (-1, len(self.row)))
        sums = [np.bincount(self.row, v, minlength=self.prompt.batch) for v in flat]
        return np.stack(sums, 1).reshape(-1, *np.shape(values)[:-1])

    def spread(self, values: np.ndarray) -> np.ndarray:
        """Values [N] at their places [B, T]; NaN where no token was predicted."""
        out = np.full((self.prompt.batch, self.prompt.tokens), np.nan)
        out[self.row, self.token] = values
        return out

    def answer(self, dims: Sequence[str], of_documents: np.ndarray, spread: np.ndarray, **parts: Any) -> xr.Dataset:
        """The labelled mean over tokens of sums by document [B, *dims]; `spread`: the variance over tokens.

        ci: 95 %, by the jackknife over documents, each token weighing the same: of the mean of paired differences. n_eff: the
        independent tokens' worth, N over the design effect (the jackknife's variance over that of independent tokens). Where one
        document in ten carries the whole effect, few texts do not show it: the interval of 5 to 50 such texts covered 58 to 83 %.
        """
        tokens = self.by_document(np.ones(len(self.row))).reshape(-1, *[1] * len(dims))
        n = len(self.row)
        sd, documents = jackknife(np.divide, of_documents, tokens)
        alone = np.asarray(spread) / n
        effect = np.divide(sd**2, alone, out=np.ones_like(alone), where=(alone > 0) & np.isfinite(sd))
        told = {"unit": "nats", "tokens": n, "documents": documents, "model": self.model.name}
        if documents < 2:
            told |= {"ci": "absent: one document", "n_eff_from": "tokens taken as independent: one document"}
        return answer(
            dims, of_documents.sum(0) / n, parts.pop("coords", {}), ci=interval(np.divide, of_documents, tokens),
            n_eff=n / np.maximum(effect, 1), attrs=told | parts.pop("attrs", {}), **parts,
        )  # fmt: skip

    def beside(self, of_documents: np.ndarray, control: np.ndarray) -> dict[str, np.ndarray | None]:
        """The parts null_mean, null_sd and df where a control [B, *dims] was run on the same tokens.

        null_sd is the standard error of the mean paired difference, by the jackknife over documents, at t; None under FEW.
        """
        tokens = self.by_document(np.ones(len(self.row))).reshape(-1, *[1] * (control.ndim - 1))
        sd, documents = jackknife(np.divide, of_documents - control, tokens)
        known = sd if documents >= FEW else None
        return {"null_mean": control.sum(0) / len(self.row), "null_sd": known, "df": float(max(documents - 1, 1))}

    def layers(self, wanted: Indices) -> list[int]:
        """Layers by number, from 0, each once. Raises ValueError for one that is not there, and where there is no router."""
        if self.model.config.is_dense:
            raise ValueError(f"{self.who}: wanted a mixture of experts, got a dense model; edit its streams with effect")
        moe, named = self.model.config.moe_layers, indices(wanted, self.model.config.num_layers, "layers", self.who)
        if wanted is not None and (dense := sorted(set(named) - set(moe))):
            raise ValueError(f"{self.who}: layers: wanted some of {list(moe)}, which have a router, got {dense}")
        return sorted(set(named) & set(moe))

    def _through(self, variants: Sequence[Sequence[Any]]) -> list[Difference]:
        calls, levels = [], []
        for edits in variants:
            config, single = prepare(edits, self.model.config)
            if any(e.site == "logits" for e in single):
                raise ValueError(f"{self.who}: wanted edits before the logits, got one of the logits; edit final instead")
            own = list(calls_of(self.model, config, self.prompt, Capture(()), single, Unheard()))
            calls += own
            levels += [entry(call, config.num_layers) for call in own]
        streams = Entering(self._left, levels, self._home)
        run_layers(self.model.weights, calls, streams)
        n, found = len(self._calls), []
        for first, edits in zip(range(0, len(calls), n), variants, strict=True):
            own = range(first, first + n)
            new = self._read([streams.get(c) for c in own], [calls[c] for c in own], edits)
            d_nll = -self.nll - new["logprob"][:, 0]
            kl = divergence(self.model.weights, self._plain, new, self._expected, self.model.config)
            found.append(Difference(d_nll, kl, new["top"] > new["logprob"][:, 1]))
        return found

    def _read(self, streams: Sequence[Array], calls: Sequence[Call], edits: Sequence[Any]) -> dict[str, np.ndarray]:
        """What the last layer's streams predict, for the N tokens in order."""
        parts, first = [], 0
        for x, call in zip(streams, calls, strict=True):
            texts, width = call.tokens.shape
            here = (self.row >= first) & (self.row < first + texts)
            row, token = self.row[here], self.token[here]
            at = ((row - first) * width + token, self._ids[here])
            seen = (tuple(p for p in call.run.edits_at(None) if p.site == "final"), call.run.selection)
            parts.append(predict(self.model.weights, x, seen, at, self.model.config))
            first += texts
        found = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
        if wrong := int((~np.isfinite(found["log_z"])).sum()):
            with_ = f"{', '.join(map(repr, edits))[:200]}; use smaller values" if edits else "no edits; look at the weights"
            raise ValueError(f"{self.who}: wanted finite log-probabilities, got {wrong} that are not, with {with_}")
        return found

    def _bytes(self) -> int:
        """Of the residual streams of all texts at one layer."""
        numbers = self.prompt.batch * bucket(self.prompt.tokens) * self.model.config.d_model
        return numbers * jnp.dtype(self.model.dtype).itemsize

    def _check_memory(self) -> None:
        need, free = self._bytes() * (self.model.config.num_layers + 1), free_memory() // 2
        if need > free:
            raise MemoryError(
                f"{self.who}: wanted at most {free / 1e9:.2f} GB for the streams of all layers, got {need / 1e9:.2f} GB. "
                f"What would fit: about {int(self.prompt.lengths.sum() * free / need)} tokens, in texts of one length"
            )
