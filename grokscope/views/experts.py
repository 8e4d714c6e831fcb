"""A layer's experts in one text: how busy each is, which are chosen together, where tokens come from and go, whom each serves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr
from scipy.special import ndtri

from grokscope.analysis.coactivation import coactivation
from grokscope.analysis.load import expert_load
from grokscope.analysis.measure import share
from grokscope.analysis.transitions import transitions
from grokscope.counters.counters import RoutingCounters
from grokscope.trace.trace import Trace
from grokscope.views.payload import small
from grokscope.views.routing import Text

FEW = 16
"""Up to so many experts, tokens' ways are drawn as ribbons; of more, as a matrix."""
BUSIEST = 64
"""A matrix shows so many experts, the busiest."""
NULL_UP_TO = 128
"""Beyond so many experts the load-matched null of pairs takes longer than a click may."""
LISTED = 12


@dataclass(frozen=True, eq=False)
class Flow:
    """Tokens between neighbouring kept layers: counts [P, E, E] for P pairs of `layers`, of first choices and of all slots."""

    layers: list[int]
    first: np.ndarray
    any: np.ndarray


@dataclass(frozen=True, eq=False)
class Turns:
    """The same for many experts, of first choices and one pair of layers.

    probability [M, M]: P(column at the second layer | row at the first), NaN for a row without tokens. chance [M]: the columns'
    own shares. rows, columns [M]: the busiest experts of each layer.
    """

    layers: list[int]
    rows: np.ndarray
    columns: np.ndarray
    probability: np.ndarray
    chance: np.ndarray


@dataclass(frozen=True, eq=False)
class LayerView:
    """A layer's experts.

    load, z [E]: the share of tokens that an expert serves, and how far from the null k/E of even use, whose sd takes tokens as
    independent; far: the |z| that by chance one expert of all layers would pass in one text of 20. first [E]: the share whose first
    choice it is. gate [E]: the mean gate of those that it serves, NaN for none. together, expected, apart [M, M] over `busiest`:
    P(column | row), its load-matched null, z of the difference (NaN under 4 documents); None where each token has one expert,
    expected and apart also beyond NULL_UP_TO experts. notes: what is not so, in words.
    """

    tokens: int
    load: np.ndarray
    first: np.ndarray
    gate: np.ndarray | None
    z: np.ndarray
    even: float
    sd: float
    far: float
    busiest: np.ndarray
    together: np.ndarray | None
    expected: np.ndarray | None
    apart: np.ndarray | None
    notes: list[str]


@dataclass(frozen=True, eq=False)
class ExpertTokens:
    """Whom an expert serves at a layer: places are those of kept tokens.

    piece [N]: a place of each piece it takes most often; taken of seen: how often it took the piece, and how often that
    stands in the text. place [N]: its strongest single tokens, with their gates (None where not recorded: then by slot)
    and slots. visits of tokens: all that it takes, of the text.
    """

    visits: int
    tokens: int
    piece: np.ndarray
    taken: np.ndarray
    seen: np.ndarray
    place: np.ndarray
    gate: np.ndarray | None
    slot: np.ndarray


def layer_view(text: Text, layer: int) -> LayerView:
    """The experts of layer number `layer` in a text. Raises ValueError where no token has an expert there."""
    own = part(text, [layer])
    counters = RoutingCounters.from_trace(own)
    if not counters.tokens:
        raise ValueError(f"experts: wanted tokens with an expert at layer {layer}, got none; select another layer")
    load = expert_load(counters).isel(layer=0)
    busy = _busiest(counters.table("load")[0])
    notes = []
    if not text.has("router.gates"):
        notes.append("No gates: first choices are the first slots as recorded.")
    elif "router.gates" not in own.data:
        notes.append("Some gates are not numbers: first choices are the first slots as recorded.")
    if text.trace.config.d_shared:
        notes.append("A shared expert serves every token beside these.")
    pairs = None
    if counters.spec.slots < 2:
        notes.append("Each token has one expert, so none are chosen together.")
    else:
        pairs = _pairs(counters, busy)
        if "null_mean" not in pairs:
            notes.append(f"More than {NULL_UP_TO} experts: gs.routing.coactivation has the load-matched null of pairs.")
    first = counters.table("load_first")[0]
    even = float(load["null_mean"][0])
    sd = max(float(np.sqrt(even * (1 - even) / counters.tokens)), 1e-12)  # of tokens: a text alone has no documents to compare
    return LayerView(
        tokens=counters.tokens,
        load=_f4(load["value"]),
        first=_f4(first / counters.tokens),
        gate=_mean_gates(text, layer) if text.has("router.gates") else None,
        z=_f4((load["value"] - load["null_mean"]) / sd),
        even=even,
        sd=sd,
        far=_far(text.trace),
        busiest=busy.astype(np.uint16),
        together=None if pairs is None else _f4(pairs["value"]),
        expected=_f4(pairs["null_mean"]) if pairs is not None and "null_mean" in pairs else None,
        apart=_f4(pairs["z"]) if pairs is not None and "null_mean" in pairs else None,
        notes=notes,
    )


def _far(trace: Trace) -> float:
    """The layer that is shown may have been chosen for its oddness, so all are counted."""
    cells = trace.config.router.num_experts * trace["router.experts"].sizes["layer"]
    return float(ndtri(1 - 0.025 / cells))


def _mean_gates(text: Text, layer: int) -> np.ndarray:
    experts, gates = (text.array(s, "token", "slot", layer=layer) for s in ("router.experts", "router.gates"))
    there, count = experts >= 0, text.trace.config.router.num_experts
    visits = np.bincount(experts[there], minlength=count)
    with np.errstate(invalid="ignore"):
        return _f4(np.bincount(experts[there], gates[there], count) / visits)


def part(text: Text, layers: list[int]) -> Trace:
    """A text's routing at these layers as a trace of its own, without what counting tokens' experts does not need.

    Gates that are not numbers are left out: choices are then in the order recorded.
    """
    data = text.trace.data
    gates = text.has("router.gates") and all(
        np.isfinite(text.array("router.gates", "token", "slot", layer=n)).all() for n in layers
    )
    sites = ["router.experts", *(["router.gates"] if gates else [])]
    kept = data[sites].isel(batch=[text.row]).drop_vars(["token_id", "piece"], errors="ignore")
    return Trace(kept.sel({"moe_layer" if "moe_layer" in kept.dims else "layer": layers}))


def _f4(values: xr.DataArray | np.ndarray) -> np.ndarray:
    return np.asarray(values, np.float32)


def _busiest(load: np.ndarray) -> np.ndarray:
    """Up to BUSIEST experts, in order of their numbers."""
    return np.sort(np.argsort(-load, kind="stable")[:BUSIEST])


def _pairs(counters: RoutingCounters, busy: np.ndarray) -> xr.Dataset:
    """P(column | row) of the busy experts with its null and z, where these are quick enough."""
    if counters.spec.num_experts <= NULL_UP_TO:
        return coactivation(counters).isel(layer=0, expert=busy, expert_other=busy)
    both, load = counters.table("coactivation")[0], counters.table("load")[0]
    return xr.Dataset({"value": (("expert", "expert_other"), share(both, load[:, None])[np.ix_(busy, busy)])})


def flow_view(text: Text, layer: int) -> Flow | Turns | None:
    """Where the tokens of layer number `layer` come from and go to; None for a trace of one layer."""
    layers = [int(n) for n in text.trace["router.experts"]["layer"].values]
    at = layers.index(layer)
    near = layers[max(0, at - 1) : at + 2]
    if len(near) < 2:
        return None
    if text.trace.config.router.num_experts <= FEW:
        counters = RoutingCounters.from_trace(part(text, near))
        return Flow(near, *(_counts(counters.table(f"transition_{c}.1")) for c in ("first", "any")))
    pair = near[-2:]
    counters = RoutingCounters.from_trace(part(text, pair))
    rows, columns = (_busiest(load) for load in counters.table("load_first"))
    found = transitions(counters).isel(layer=0, expert=rows, expert_next=columns)
    chance = found["null_mean"].values[0]
    return Turns(pair, rows.astype(np.uint16), columns.astype(np.uint16), _f4(found["value"]), _f4(chance))


def _counts(table: np.ndarray) -> np.ndarray:
    return table.astype(np.uint16 if table.size == 0 or table.max() < 65536 else np.uint32)


def expert_tokens(text: Text, layer: int, expert: int) -> ExpertTokens:
    """The pieces and the single tokens that an expert takes most at a layer."""
    experts = text.array("router.experts", "token", "slot", layer=layer)
    gates = text.array("router.gates", "token", "slot", layer=layer) if text.has("router.gates") else None
    place, slot = np.nonzero(experts == expert)
    if gates is None:
        order = np.argsort(slot, kind="stable")
    else:
        gate = gates[place, slot]
        order = np.argsort(-np.nan_to_num(gate, nan=-1.0), kind="stable")
    order = order[:LISTED]
    pieces = text.trace.data["piece"].values[text.row][: text.length].astype(object)  # as str, NumPy drops NULs at the end
    _, here, which, seen = np.unique(pieces, return_index=True, return_inverse=True, return_counts=True)
    taken = np.bincount(which[np.unique(place)], minlength=len(seen))
    most = np.lexsort((here, -taken / seen, -taken))[:LISTED]
    most = most[taken[most] > 0]
    return ExpertTokens(
        visits=len(np.unique(place)),
        tokens=int((experts >= 0).any(1).sum()),
        piece=here[most].astype(np.uint32),
        taken=taken[most].astype(np.uint32),
        seen=seen[most].astype(np.uint32),
        place=place[order].astype(np.uint32),
        gate=None if gates is None else gates[place, slot][order].astype(np.float32),
        slot=small(slot[order]),
    )
