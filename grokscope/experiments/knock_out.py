"""What an expert matters: the text without it, beside the text without as many visits drawn at random."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import xarray as xr

from grokscope.analysis.measure import one_of, share
from grokscope.experiments.paired import Paired, ReplaceAt
from grokscope.model.model import Model
from grokscope.transformer.edits import BanExperts, ReplaceExpert
from grokscope.transformer.router import EMPTY
from grokscope.transformer.site_edits import Indices, indices

MODES = ("zero", "mean", "reroute", "drop")
Job = tuple[int, int, int, int | None]
"""Which mode, layer and expert (each its place among those asked for), and which draw of the control; None: the knock-out."""


def knock_out(
    model: Model,
    texts: Any,
    modes: str | Sequence[str] = ("zero",),
    layers: Indices = None,
    experts: Indices = None,
    draws: int = 8,
    control: Literal["random", "same_tokens"] = "random",
) -> xr.Dataset:
    """How much worse the text is predicted without an expert, (mode, layer, expert): E[NLL(do) - NLL] in nats a token.

    modes: "zero", it answers 0 (`edits.ReplaceExpert`); "mean", the mean of its outputs over the tokens of these texts that
    chose it; "reroute", it cannot be chosen, the next best takes its slot (`edits.BanExperts`); "drop", its slot stays empty,
    which differs from zero only where gates are divided by their sum and no post-norm follows: under Grok-1's rule both
    turn the layer's answer without shrinking it.

    `value`, also `d_nll`, over all predicted tokens, with ci_low and ci_high (95 %, paired, jackknife over the texts) and n_eff;
    `d_nll_selected` over those that chose the expert, NaN where none did, and their number `n_selected` (layer, expert);
    `kl` = mean KL(p || p_do); `flips`, the share of tokens whose most likely next token is another.

    Control: the same is done, at the same layer, to as many visits of other experts. control="random": n_selected tokens drawn
    at random, no token twice, in the slots that the expert had, whichever other expert is there; NaN where other experts had too
    few. "same_tokens": the very tokens that chose the expert, in another of their slots, which holds what the tokens are (needs
    top_k 2 or more). null_mean is over `draws` such (the same ones each time, whatever else is asked; 0: no control, a ninth of
    the time), null_kl their KL. "random": null_sd is what one more draw would be off their mean, at t of draws - 1, and z says
    whether this expert matters more than its load in these texts; whether it does in others is for the interval to say.
    "same_tokens": null_sd is that of the paired difference by documents, at t, from 4 on.

    Cite: Lu et al. 2024, arXiv 2402.14800; Su et al. 2025, arXiv 2507.23279. Confounds: the rest does not adapt, so
    redundant experts look useless one by one; few texts say little of others. Under "reroute" an expert never chosen need
    not be at 0: the softmax gives its probability to the others. In bfloat16 effects below 1e-3 are in the rounding.
    """
    modes = (modes,) if isinstance(modes, str) else tuple(dict.fromkeys(modes))
    if not modes or set(modes) - set(MODES):
        raise ValueError(f"knock_out: modes: wanted some of {', '.join(MODES)}, got {', '.join(map(repr, modes)) or 'none'}")
    if draws < 0 or draws == 1:
        raise ValueError(f"knock_out: draws: wanted 2 or more, or 0 for no control, got {draws}; one has no spread")
    plain = Paired(model, texts, "knock_out", outputs="mean" in modes and not model.config.is_dense)
    at = plain.layers(layers)
    of = sorted(set(indices(experts, model.config.router.num_experts, "experts", "knock_out")))
    one_of("control", control, ("random", "same_tokens"))
    if control == "same_tokens" and draws and model.config.router.top_k < 2:
        raise ValueError('knock_out: control: wanted "random" where a token has one expert, got "same_tokens"')
    return _KnockOuts(plain, modes, at, of, draws, control == "same_tokens").dataset()


class _KnockOuts:
    """All knock-outs of a call and their controls."""

    def __init__(
        self, plain: Paired, modes: tuple[str, ...], layers: list[int], experts: list[int], draws: int, same: bool
    ) -> None:
        self.plain, self.modes, self.layers, self.experts, self.draws, self.same = plain, modes, layers, experts, draws, same
        # [L, E, N]: the slot in which a predicted token visits the expert, or EMPTY.
        chosen = np.stack([plain.chosen[n] for n in layers])
        visits = chosen[:, plain.row, plain.token][:, None] == np.array(experts)[:, None, None]
        self.slot = np.where(visits.any(-1), visits.argmax(-1), EMPTY)
        self.n_selected = (self.slot != EMPTY).sum(-1)

    def dataset(self) -> xr.Dataset:
        shape = (len(self.modes), len(self.layers), len(self.experts))
        documents = self.plain.prompt.batch
        found = {name: np.zeros((documents, *shape)) for name in ("d_nll", "kl", "flips", "selected")}
        null = {name: np.full((self.draws, *shape), np.nan) for name in ("d_nll", "kl")}
        null_sums = np.zeros((documents, *shape))
        variance = np.zeros(shape)
        for (m, layer, e, draw), made in self.plain.measure(self._jobs(), self.edits):
            if draw is not None:
                null["d_nll"][draw, m, layer, e], null["kl"][draw, m, layer, e] = made.d_nll.mean(), made.kl.mean()
                null_sums[:, m, layer, e] += self.plain.by_document(made.d_nll) / self.draws
                continue
            chose = self.slot[layer, e] != EMPTY
            for name, values in (*vars(made).items(), ("selected", made.d_nll * chose)):
                found[name][:, m, layer, e] = self.plain.by_document(values)
            variance[m, layer, e] = made.d_nll.var()
        n = len(self.plain.row)
        made = self.plain.answer(
            ("mode", "layer", "expert"), found["d_nll"], variance, **self._null(null, found["d_nll"], null_sums),
            coords={"mode": list(self.modes), "layer": self.layers, "expert": self.experts},
            d_nll_selected=share(found["selected"].sum(0), self.n_selected),
            kl=found["kl"].sum(0) / n, flips=found["flips"].sum(0) / n,
            attrs={"null": self._said() if self.draws else None, "draws": self.draws},
        )  # fmt: skip
        return made.assign(d_nll=made["value"], n_selected=(("layer", "expert"), self.n_selected))

    def _jobs(self) -> list[Job]:
        """An expert that no predicted token chose changes none: it is not run, except where its ban moves probability."""
        return [
            (m, layer, e, draw)
            for layer in range(len(self.layers))
            for m, mode in enumerate(self.modes)
            for e in range(len(self.experts))
            for draw in (None, *range(self.draws))
            if (draw is None and (self.n_selected[layer, e] or mode == "reroute")) or (draw is not None and self.drawable(layer, e))
        ]

    def edits(self, job: Job) -> list[Any]:
        """What a job does."""
        m, n, e, draw = job
        mode, layer, expert = self.modes[m], self.layers[n], self.experts[e]
        if draw is None:
            if mode in ("reroute", "drop"):
                return [BanExperts(expert, layer, reroute=mode == "reroute")]
            return [ReplaceExpert(expert, 0.0 if mode == "zero" else self.plain.means, layer)]
        where = self.visits(n, e, draw)
        if mode == "reroute":
            experts = np.arange(self.plain.model.config.router.num_experts)
            where = (where[..., None] & (self.plain.chosen[layer][..., None] == experts)).any(-2)
        site, value = {
            "zero": ("expert.out", 0.0), "mean": ("expert.out", self.plain.means), "reroute": ("router.logits", -np.inf),
            "drop": ("router.experts", EMPTY),
        }[mode]  # fmt: skip
        return [ReplaceAt(site, value, layer, where=where)]

    def _said(self) -> str:
        return "other visits of the same tokens" if self.same else "as many visits of others at random"

    def drawable(self, layer: int, expert: int) -> bool:
        """Whether a control can be drawn: the expert was visited, and others enough in its place."""
        if not self.n_selected[layer, expert]:
            return False
        return self.same or self._drawn(layer, expert, 0) is not None

    def visits(self, layer: int, expert: int, draw: int) -> np.ndarray:
        """[B, T, A]: as many visits of others as the expert had, of tokens drawn at random or of the same tokens."""
        tokens, slots = self._elsewhere(layer, expert, draw) if self.same else self._drawn(layer, expert, draw)
        where = np.zeros(self.plain.chosen[self.layers[layer]].shape, bool)
        where[self.plain.row[tokens], self.plain.token[tokens], slots] = True
        return where

    def _drawn(self, layer: int, expert: int, draw: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Predicted tokens, none twice, and slots, as often as the expert had each, that hold another expert there.

        The slot with the fewest such tokens to spare is filled first. None where they do not suffice.
        """
        rng = np.random.default_rng([self.layers[layer], self.experts[expert], draw])
        own = self.slot[layer, expert]
        number, free = np.bincount(own[own != EMPTY]), np.ones(len(own), bool)
        filled = self.plain.chosen[self.layers[layer]][self.plain.row, self.plain.token] >= 0
        tokens, slots = [], []
        for slot in np.argsort(-number, kind="stable"):
            there = np.flatnonzero(free & (own != slot) & filled[:, slot])
            if len(there) < number[slot]:
                return None
            some = rng.choice(there, number[slot], replace=False)
            free[some] = False
            tokens.append(some)
            slots.append(np.full(number[slot], slot))
        return np.concatenate(tokens), np.concatenate(slots)

    def _elsewhere(self, layer: int, expert: int, draw: int) -> tuple[np.ndarray, np.ndarray]:
        """The expert's own tokens, each in another slot that is filled, drawn at random."""
        rng = np.random.default_rng([self.layers[layer], self.experts[expert], draw])
        own, chosen = self.slot[layer, expert], self.plain.chosen[self.layers[layer]][self.plain.row, self.plain.token]
        slots = np.arange(chosen.shape[-1])
        score = np.where((chosen >= 0) & (slots != own[:, None]), rng.random(chosen.shape), -1)
        tokens = np.flatnonzero((own != EMPTY) & (score.max(-1) >= 0))
        return tokens, score.argmax(-1)[tokens]

    def _null(self, null: dict[str, np.ndarray], sums: np.ndarray, control: np.ndarray) -> dict[str, Any]:
        if not self.draws:
            return {}
        idle = self.n_selected == 0  # nothing was done, and nothing is the control
        null = {name: np.where(idle, 0, drawn) for name, drawn in null.items()}
        if self.same:
            beside = self.plain.beside(sums, control)
            return beside | {"null_kl": null["kl"].mean(0), "df": float(max(self.plain.prompt.batch - 1, 1))}
        sd = null["d_nll"].std(0, ddof=1) * np.sqrt(1 + 1 / self.draws)
        return {"null_mean": null["d_nll"].mean(0), "null_sd": sd, "df": float(self.draws - 1), "null_kl": null["kl"].mean(0)}
