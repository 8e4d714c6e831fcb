"""Dose and response: what a steering does to the texts that are wanted, and what it costs all others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from grokscope.analysis.measure import answer
from grokscope.analysis.uncertainty import interval
from grokscope.experiments.paired import Paired
from grokscope.model.model import Model
from grokscope.steering.steers import Direction, Experts, checked


def dose(
    model: Model, steering: Direction | Experts, wanted: Any, other: Any, strengths: Sequence[float] = (0.5, 1.0, 2.0),
    *, draws: int = 4, seed: int = 0,
) -> xr.Dataset:  # fmt: skip
    """What steering does at each strength to texts of both kinds, (strength, texts): E[NLL(do) - NLL] in nats a token.

    wanted: texts of the kind that is steered to, on which it should fall; other: texts that should stay as they are, on which a
    rise is the cost. Take neither from those that the steering was made of. `value` with ci_low, ci_high (95 %, paired, jackknife
    over documents); `kl` = mean KL(p || p_do), how much the predictions move in all. Control, the same strengths: random directions
    of the same length, or random experts of the same layers and load: null_mean over `draws` of them, null_sd what one more would
    be off it (t of draws - 1), `null_kl`. A steering that is specific lies below its control on `wanted` and not above it on
    `other`. Confound: what is already sure of the wanted kind can hardly become surer; at large strengths all text suffers. Raises
    ValueError for strengths that are not finite, texts of one token, fewer draws than 2, and as the edits do.
    """
    if not isinstance(steering, Direction | Experts):
        raise TypeError(f"dose: wanted a Direction or Experts, got {type(steering).__name__}; gs.steering.difference makes one")
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < 2:
        raise ValueError(f"dose: draws: wanted 2 or more, got {draws!r:.40}; one has no spread")
    given = list(strengths) if hasattr(strengths, "__iter__") else [strengths]
    doses = [checked(s) for s in given]
    if not doses or len(set(doses)) != len(doses):
        raise ValueError(f"dose: strengths: wanted one or more, each once, got {given!r:.60}; as in (0.5, 1, 2)")
    rng = np.random.default_rng(seed)
    kinds = [steering, *(steering.control(rng) for _ in range(draws))]
    parts = [_of_texts(Paired(model, texts, "dose"), kinds, doses) for texts in (wanted, other)]
    stacked = {n: np.stack([p[n] for p in parts], 1) for n in parts[0]}
    drawn = stacked.pop("drawn")
    return answer(
        ("strength", "texts"), stacked.pop("value"), {"strength": doses, "texts": ["wanted", "other"]}, null_mean=drawn.mean(-1),
        null_sd=drawn.std(-1, ddof=1) * np.sqrt(1 + 1 / draws), df=float(draws - 1),
        ci=(stacked.pop("low"), stacked.pop("high")), **stacked,
        attrs={"name": "change of NLL (below 0: likelier than before)", "unit": "nats",
               "null": kinds[1].about["control"], "draws": draws, "seed": seed, "steering": repr(steering)[:200]},
    )  # fmt: skip


def _of_texts(plain: Paired, kinds: Sequence[Direction | Experts], doses: Sequence[float]) -> dict[str, np.ndarray]:
    """value, low, high, kl, null_kl [doses]; drawn [doses, draws]."""
    jobs = [(n, s) for n in range(len(kinds)) for s in range(len(doses))]
    found, kl, own = np.zeros((len(kinds), len(doses))), np.zeros((len(kinds), len(doses))), [None] * len(doses)
    for (n, s), made in plain.measure(jobs, lambda job: kinds[job[0]].edits(doses[job[1]])):
        found[n, s], kl[n, s] = made.d_nll.mean(), made.kl.mean()
        if n == 0:
            own[s] = plain.by_document(made.d_nll)
    tokens = plain.by_document(np.ones(len(plain.row)))[:, None]
    of_documents = np.stack(own, 1)
    low, high = interval(np.divide, of_documents, tokens) or (np.full(len(doses), np.nan),) * 2
    return {"value": found[0], "low": low, "high": high, "kl": kl[0], "null_kl": kl[1:].mean(0), "drawn": found[1:].T}
