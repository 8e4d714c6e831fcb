"""Direct attribution: which head and which expert wrote a logit, of a token or of a router."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from grokscope.experiments.asked import (
    Token,
    moe_layer,
    need_experts,
    one_index,
    one_text,
    pieces_of,
    rows_of,
    token_id,
)
from grokscope.experiments.parts import Parts, before_norm, stream_parts
from grokscope.model.model import Model
from grokscope.prompt import Prompt

if TYPE_CHECKING:
    import pandas as pd

_PARTS = {"embed": "embed", "attention": "head", "experts": "expert", "shared": "shared", "bias": "bias"}
"""Variable -> what a row of it is called in the table."""


def logit_attribution(
    model: Model, text: Any, position: int = -1, target: Token | tuple[Token, Token] | None = None
) -> xr.Dataset:
    """Direct logit attribution at one position: what each part of the model added to a logit there.

    `embed` (), `attention` (layer, head), `experts` (layer, slot) with the coordinate `chosen`, who filled the slot,
    and where the model has them `shared` (layer: shared experts, and the units of dense layers among mixtures) and
    `bias` (); their sum `total` () and the model's own `logit` (), before any cap. In a dense model there is one slot.
    target: a token (an id or a text of one token), a pair for the logit of the first less that of the second, or None
    for the model's best token there. text: one, of which the tokens up to `position` are run.

    The last norm and, in Grok-1, both post-norms of every block are frozen at what they were in this run: a part's value is
    part . (post-norm's scale / rms) * (last norm's scale / rms) * unembedding. So the parts add up to the logit, to 1e-4 in
    float32 (relative where logits exceed 1); in bfloat16 the residual stream is rounded at each of 2 L additions, so `total`
    may differ from `logit` by about 1 % of the largest parts.

    Null: a logit alone has no zero, for a number added to all logits changes nothing; a pair has. Confounds: direct
    effects only, what a part does by way of later layers is not in them; with frozen norms a part is not told what its
    absence would do to the scale: after a post-norm, ablating one expert makes the other larger. Source: MoE Lens, arXiv
    2603.05806, with frozen norms.
    """
    who = "logit_attribution"
    prompt = one_text(model, text, who)
    at = one_index(position, prompt.tokens, "position", who)
    pair = target if isinstance(target, tuple | list) else (target,)
    if not 1 <= len(pair) <= 2 or (len(pair) == 2 and None in pair):
        raise ValueError(f"{who}: target: wanted a token, a pair of tokens or None, got {target!r}")
    named = [None if token is None else token_id(model, token, who) for token in pair]
    parts = stream_parts(model, prompt, at)
    ids = [int(parts.logits.argmax()) if i is None else i for i in named]
    sign = np.array([1.0, -1.0])[: len(ids)]
    c, w = model.config, model.weights
    read = sign @ np.asarray(rows_of(w.table, ids, model.dtype), np.float64) * c.logit_scale
    direction = np.asarray(before_norm(*(np.asarray(a, np.float64) for a in (read, parts.stream, w.final_norm)), c))
    constant = 0.0 if w.final_norm_bias is None else read @ np.asarray(w.final_norm_bias, np.float64)
    constant += 0.0 if w.unembed_bias is None else c.logit_scale * (sign @ np.asarray(w.unembed_bias, np.float64)[ids])
    said = parts.logits[ids].astype(float)
    said = said if c.final_cap is None else c.final_cap * np.arctanh(said / c.final_cap)
    return _labelled(
        model, prompt, at, parts, direction, {"logit": sign @ said, "constant": constant},
        target=ids if len(ids) == 2 else ids[0], target_piece=" - ".join(pieces_of(model, ids)),
    )  # fmt: skip


def router_attribution(
    model: Model, text: Any, layer: int, position: int = -1, expert: int | None = None
) -> xr.Dataset:
    """Which heads and experts pushed a router's logits: of every expert of `layer`, or of one.

    `embed` (expert), `attention` (expert, layer, head), `experts` (expert, layer, slot), and `shared` and `bias` as in
    `logit_attribution`, their sum `total` (expert), the router's own `logit` (expert) before any cap, and `chosen`
    (layer, slot), who filled the slots below; with `expert` that dimension is gone. The heads of `layer` itself write
    before its router, its experts after: these are 0, chosen -1.

    The router is linear in the normed stream: with that norm, and the post-norms below, frozen as in `logit_attribution`,
    the parts add up to the logit to 1e-4 in float32 (in bfloat16 to about 1 % of the largest parts). Equation: w_e .
    (norm's scale * part / rms); compare head to router in arXiv 2505.24593. Null: a part that pushes all experts alike
    changes no choice and no gate, so look at differences: value - value.mean("expert"), or of two experts. Confounds: as
    there; where gates are not renormalised, a push of one expert also lowers the gates of all others, by the softmax.
    """
    who = "router_attribution"
    need_experts(model, who)
    prompt = one_text(model, text, who)
    at = one_index(position, prompt.tokens, "position", who)
    here = moe_layer(model, layer, who)
    only = None if expert is None else one_index(expert, model.config.router.num_experts, "expert", who)
    parts = stream_parts(model, prompt, at, here)
    w, router = parts.reader, parts.reader.moe.router
    direction = np.asarray(before_norm(router.T, parts.stream.astype(float), w.moe_norm_in, model.config)).T
    constant = 0.0 if w.moe_norm_in_bias is None else w.moe_norm_in_bias @ router
    constant = constant if w.moe.router_bias is None else constant + w.moe.router_bias
    said = {"logit": parts.stream @ direction + constant, "constant": constant}
    found = _labelled(model, prompt, at, parts, direction, said, router_layer=here)
    return found if only is None else found.isel(expert=only)


def attribution_table(found: xr.Dataset, top: int | None = None) -> pd.DataFrame:
    """The parts of an attribution, a row each, the largest first: part, layer, head, slot, chosen, value, share.

    share: value / total; they add up to 1, one may exceed it or be negative, and all are NaN where the total is 0. Of a router
    with all its experts also `expert`, and share is of that expert's total. Empty slots are left out. `top`: only so many rows.
    """
    import pandas as pd

    if missing := [name for name in ("embed", "attention", "experts", "total") if name not in found]:
        raise ValueError(
            f"attribution_table: wanted the answer of logit_attribution or router_attribution, got one without {missing[0]}"
        )
    frames = [_rows(found[name], found["total"]).assign(part=part) for name, part in _PARTS.items() if name in found]
    table = pd.concat(frames, ignore_index=True)
    table = table[~(table["chosen"] < 0)]
    table = table[[n for n in ("expert", "part", "layer", "head", "slot", "chosen", "value", "share") if n in table]]
    table = table.astype({n: "Int64" for n in ("layer", "head", "slot", "chosen")})
    table = table.sort_values("value", key=abs, ascending=False, kind="stable", ignore_index=True)
    return table if top is None else table.head(top)


def _rows(array: xr.DataArray, total: xr.DataArray) -> pd.DataFrame:
    import pandas as pd

    whole = total.where(total != 0).drop_vars([n for n in total.coords if n not in total.dims])
    if not array.dims:
        return pd.DataFrame({"value": [array.item()], "share": [(array / whole).item()]})
    array = array.drop_vars([n for n in array.coords if n not in (*array.dims, "chosen")])
    array = array.assign_coords({d: np.arange(n) for d, n in array.sizes.items() if d not in array.coords})
    return xr.Dataset({"value": array, "share": array / whole}).to_dataframe().reset_index()


def _labelled(
    model: Model, prompt: Prompt, at: int, parts: Parts, direction: np.ndarray, logit: dict[str, Any], **about: Any
) -> xr.Dataset:
    arrays = parts.along(direction)
    arrays["bias"] = arrays["bias"] + logit["constant"]
    for name in ("shared", "bias"):
        if not np.any(arrays[name]):
            del arrays[name]
    lead = ("expert",) if arrays["embed"].ndim else ()
    inner = {"attention": ("layer", "head"), "experts": ("layer", "slot"), "shared": ("layer",)}
    dims = {name: (*lead, *inner.get(name, ())) for name in (*arrays, "total", "logit")}
    sums = [a.sum(tuple(range(len(lead), a.ndim))) for a in arrays.values()]
    arrays |= {"total": np.sum(sums, axis=0), "logit": logit["logit"]}
    coords = {"layer": np.arange(len(parts.heads)), "chosen": (("layer", "slot"), parts.chosen)}
    if lead:
        coords["expert"] = np.arange(len(arrays["embed"]))
    about |= {"model": model.name, "dtype": model.dtype, "position": at, "piece": model.pieces(prompt)[0][at]}
    about["norms"] = "frozen at their values in this run"
    return xr.Dataset({name: (dims[name], a) for name, a in arrays.items()}, coords, about)
