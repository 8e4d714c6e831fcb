"""What an expert answers on average: the value for a mean ablation."""

from __future__ import annotations

import numpy as np
import xarray as xr

from grokscope.trace.trace import Trace


def expert_means(trace: Trace) -> xr.DataArray:
    """The mean output of each expert over the tokens of `trace` that chose it (layer, expert, d_model), before its gate.

    For `edits.ReplaceExpert(experts, expert_means(trace))`. An expert that no token chose gets the mean over all slots of
    its layer. The trace must have kept "expert.out" and "router.experts".
    """
    out, chosen = trace["expert.out"], trace["router.experts"]
    num_experts = trace.config.router.num_experts
    everything = out.mean(("batch", "token", "slot"))
    means = [out.where(chosen == e).mean(("batch", "token", "slot")) for e in range(num_experts)]
    return xr.concat([m.where(np.isfinite(m), everything) for m in means], dim="expert").transpose(
        "layer", "expert", "d_model"
    )
