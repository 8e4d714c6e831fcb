"""One text of a trace as the workbench shows it first: its tokens, the experts they chose, their gates; planes when asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from grokscope.text.visible import visible
from grokscope.trace.trace import Trace
from grokscope.views.payload import Plane, small

Values = Mapping[str, np.ndarray]
"""Arrays of the user's own, by name: [T], or [L, T] over the trace's layers."""


@dataclass(frozen=True, eq=False)
class RoutingView:
    """What every panel stands on. experts [L, T, A] (255: empty), gates [L, T, A] as a plane, or None where not recorded."""

    model: str
    rule: str
    texts: list[str]
    layers: list[int]
    dense: list[int]
    """Layers that are known to have no router."""
    pieces: list[str]
    positions: list[int]
    ids: list[int]
    num_experts: int
    about: list[str]
    """What the rule does not say: layers without a router, experts that serve every token."""
    heads: list[int]
    experts: np.ndarray
    gates: Plane | None
    colours: list[tuple[str, str]]
    """(name, label) of what tokens can be coloured by."""
    edits: list[str]


@dataclass(frozen=True, eq=False)
class Text:
    """One text of a trace, without its padding, as plain arrays."""

    trace: Trace
    row: int = 0

    @property
    def length(self) -> int:
        """Its kept tokens."""
        return int((self.trace.data["token"].values < int(self.trace.data["length"].values[self.row])).sum())

    def has(self, site: str) -> bool:
        """Whether the trace kept this site."""
        return site in self.trace.data

    def array(self, site: str, *dims: str, **at: int) -> np.ndarray:
        """A site of this text over `dims`; `at` chooses places by index, of `layer` by number."""
        data = self.trace[site].isel(batch=self.row)
        if "layer" in at:
            data = data.sel(layer=at.pop("layer"))
        if "token" not in at:
            data = data.isel(token=slice(0, self.length))
        return data.isel(at).transpose(*dims).values


def routing_view(trace: Trace, row: int = 0, values: Values | None = None) -> RoutingView:
    """The first view of a trace's text number `row`. Raises ValueError for a trace without routing."""
    text = Text(trace, row)
    if not text.has("router.experts"):
        raise ValueError(
            f"explore: wanted a trace with router.experts, got {', '.join(trace.sites)}; trace with capture=['router.*']"
        )
    n, config = text.length, trace.config
    gates = text.array("router.gates", "layer", "token", "slot") if text.has("router.gates") else None
    return RoutingView(
        model=visible(str(trace.provenance["model"])),
        rule=rule_of(trace),
        texts=[visible("".join(row[:24])).replace("▁", " ")[:60] for row in trace.pieces],
        layers=[int(layer) for layer in trace["router.experts"]["layer"].values],
        dense=dense_of(trace),
        pieces=[visible(piece) for piece in trace.pieces[row][:n]],
        positions=[int(p) for p in trace.data["token"].values[:n]],
        ids=[int(i) for i in trace.data["token_id"].values[row][:n]],
        num_experts=config.router.num_experts,
        about=about_of(trace),
        heads=_heads(trace),
        experts=small(text.array("router.experts", "layer", "token", "slot")),
        gates=None if gates is None else Plane.of(gates, "gate", (0.0, scale_of(gates))),
        colours=[(name, label) for name, (label, there, _) in PLANES.items() if there(text)]
        + [(f"values:{visible(name)}", visible(name)) for name in values or {}],
        edits=[visible(e) for e in trace.provenance["edits"]],
    )


def rule_of(trace: Trace) -> str:
    """The router's rule in a few words; what a recording does not know is not claimed."""
    rule, unknown = trace.config.router, (trace.provenance.get("recording") or {}).get("unknown", [])
    if "router.score" in unknown:
        return f"top {rule.top_k} of {rule.num_experts}; the recording does not say the router's rule"
    return rule.rule


def dense_of(trace: Trace) -> list[int]:
    """The numbers of the dense layers, as a recording or the config has them."""
    recording = trace.provenance.get("recording") or {}
    return [int(n) for n in recording.get("dense_layers") or trace.config.dense_layers]


def about_of(trace: Trace) -> list[str]:
    """Dense layers and shared experts, in words."""
    config, recording, dense = trace.config, trace.provenance.get("recording") or {}, dense_of(trace)
    first = int(trace["router.experts"]["layer"].values[0])
    if recording and not dense and first:
        return [f"layers before {first} not recorded, as dense ones are"]
    said = [f"{'layers' if len(dense) > 1 else 'layer'} {_runs(dense)} dense, without a router"] if dense else []
    return said + (["a shared expert serves every token beside these"] if config.d_shared else [])


def _runs(numbers: list[int]) -> str:
    """Rising numbers in short: 0-2, 7."""
    breaks = [0, *(i for i in range(1, len(numbers)) if numbers[i] != numbers[i - 1] + 1), len(numbers)]
    parts = [numbers[a:b] for a, b in pairwise(breaks)]
    return ", ".join(f"{p[0]}-{p[-1]}" if len(p) > 1 else str(p[0]) for p in parts)


def scale_of(gates: np.ndarray) -> float:
    """The top of the gates' scale: 1, or the largest gate where that says more, as of sigmoids and of many slots."""
    largest = float(np.nanmax(gates, initial=0))
    return 1.0 if 0.5 <= largest <= 1 or largest <= 0 else largest


def _heads(trace: Trace) -> list[int]:
    data = trace.data
    if "head" not in data.dims:
        return []
    return [int(h) for h in data["head"].values] if "head" in data.coords else list(range(data.sizes["head"]))


def plane(trace: Trace, row: int, name: str, expert: int = 0, values: Values | None = None) -> Plane:
    """What `name` says of each token, [L, T] or [T]. Raises ValueError for one that this trace cannot give."""
    text = Text(trace, row)
    if name.startswith("values:"):
        return _given(text, name.removeprefix("values:"), values or {})
    if name not in PLANES or not PLANES[name][1](text):
        there = [n for n, (_, has, _) in PLANES.items() if has(text)]
        raise ValueError(f"colour: wanted one of {', '.join(there)}, got {name!r}; trace with capture=['router.*', 'logits']")
    return PLANES[name][2](text, expert)


def _given(text: Text, name: str, values: Values) -> Plane:
    values = {visible(n): v for n, v in values.items()}
    if name not in values:
        raise ValueError(f"colour: wanted one of {', '.join(values) or 'none given'}, got {name!r}; give it in values=")
    array, layers = np.asarray(values[name], np.float32), text.trace["router.experts"].sizes["layer"]
    if array.shape[-1:] != (text.length,) or array.shape[:-1] not in ((), (layers,)):
        raise ValueError(
            f"values[{name!r}]: wanted [{text.length}] or [{layers}, {text.length}], got {list(array.shape)}; "
            "give a number a token, or a row a layer"
        )
    return Plane.of(array, name, signed=bool((array < 0).any()))


def _probs(text: Text) -> np.ndarray:
    return text.array("router.probs", "layer", "token", "expert")


def _entropy(text: Text, expert: int) -> Plane:
    p = _probs(text)
    h = -(p * np.log2(np.where(p > 0, p, 1))).sum(-1)
    return Plane.of(h, "entropy of the router, bits", (0.0, float(np.log2(p.shape[-1]))))


def _margin(text: Text, expert: int) -> Plane:
    logits = text.array("router.logits", "layer", "token", "expert")
    k = text.trace["router.experts"].sizes["slot"]
    if logits.shape[-1] <= k:
        return Plane.of(np.full(logits.shape[:2], np.nan), "margin, logits")
    ranked = -np.partition(-logits, (k - 1, k), axis=-1)
    return Plane.of(ranked[..., k - 1] - ranked[..., k], "margin of the last chosen, logits")


def _of_expert(site: str, label: str) -> Callable[[Text, int], Plane]:
    def made(text: Text, expert: int) -> Plane:
        return Plane.of(text.array(site, "layer", "token", "expert")[..., expert], f"{label} of expert {expert}")

    return made


def _gate(text: Text, expert: int) -> Plane:
    """The gate that a token gave the expert, none where it did not choose it."""
    experts, gates = (text.array(s, "layer", "token", "slot") for s in ("router.experts", "router.gates"))
    hit = experts == expert
    return Plane.of(np.where(hit.any(-1), (gates * hit).sum(-1), np.nan), f"gate of expert {expert}", (0.0, scale_of(gates)))


def _surprise(text: Text, expert: int) -> Plane:
    """-log p of each token given those before it, in nats; none for the first."""
    logits = text.array("logits", "token", "vocab")
    ids = text.trace.data["token_id"].values[text.row][: text.length]
    out = np.full(text.length, np.nan, np.float32)
    for first in range(0, text.length - 1, 256):  # as many rows as fit a cache: 8,192 x 131,072 would take 4 GB more
        rows = logits[first : min(first + 256, text.length - 1)]
        top = rows.max(-1)
        total = top + np.log(np.exp(rows - top[:, None]).sum(-1))
        out[first + 1 : first + 1 + len(rows)] = total - rows[np.arange(len(rows)), ids[first + 1 : first + 1 + len(rows)]]
    return Plane.of(out, "surprise, nats")


def _all_experts(*sites: str) -> Callable[[Text], bool]:
    def there(text: Text) -> bool:
        whole = text.trace.config.router.num_experts
        return all(text.has(s) and text.trace[s].sizes.get("expert", whole) == whole for s in sites)

    return there


def _has_surprise(text: Text) -> bool:
    data = text.trace.data
    whole = text.has("logits") and bool((np.diff(data["token"].values) == 1).all())
    return whole and bool((data["token_id"].values[text.row][: text.length] >= 0).all())


PLANES: dict[str, tuple[str, Callable[[Text], bool], Callable[[Text, int], Plane]]] = {
    "gate": ("gate of the expert", lambda t: t.has("router.gates"), _gate),
    "probability": ("probability of the expert", _all_experts("router.probs"), _of_expert("router.probs", "probability")),
    "logit": ("logit of the expert", _all_experts("router.logits"), _of_expert("router.logits", "logit")),
    "entropy": ("entropy of the router", _all_experts("router.probs"), _entropy),
    "margin": ("margin to the runner-up", _all_experts("router.logits"), _margin),
    "surprise": ("surprise at the token", _has_surprise, _surprise),
}
"""name: label, whether a text has it, how it is made."""

