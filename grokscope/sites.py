"""Every place inside the model that can be seen and changed.

A site is a pair (name, layer). This table is the documentation, the schema of captures and traces, and a test.

Letters: B batch, T token that reads, S token that is read, D d_model, H query head, G key/value head, K d_head,
E expert, A slot (a token's chosen experts, best first), F hidden neurons of an expert, V vocabulary. `*.out` is exactly
what is added to the residual stream: resid_mid == resid_pre + attn.out and resid_post == resid_mid + moe.out; and where
nothing norms or scales it, moe.out == sum of router.gates * expert.out + shared.out. A model has the sites that it has a use
for (`model.sites`): router.choice where something sets it apart from router.probs, shared.out with shared experts.
"""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

DIMS = {
    "L": "layer",
    "B": "batch",
    "T": "token",
    "S": "source",
    "D": "d_model",
    "H": "head",
    "G": "kv_head",
    "K": "d_head",
    "E": "expert",
    "A": "slot",
    "F": "d_expert",
    "V": "vocab",
}
"""Letter -> the name of that dimension in a trace."""


@dataclass(frozen=True)
class Site:
    """One observable place: its name, its dims in letters, and what it holds."""

    name: str
    dims: str
    meaning: str
    in_block: bool = True
    dtype: str = "float32"


SITES: dict[str, Site] = {
    s.name: s
    for s in (
        Site("embed", "BTD", "scaled token embedding", in_block=False),
        Site("resid_pre", "BTD", "residual stream entering the block"),
        Site("attn.in", "BTD", "what attention reads: the stream, normed"),
        Site("attn.q", "BTHK", "queries, after RoPE"),
        Site("attn.k", "BSGK", "keys, after RoPE"),
        Site("attn.v", "BSGK", "values"),
        Site("attn.scores", "BHTS", "scaled, soft-capped, times the temperature, before the mask"),
        Site("attn.pattern", "BHTS", "softmax of the scores over the tokens that are read; with a sink, less than 1 in all"),
        Site("attn.z", "BTHK", "what each head read, before the output projection"),
        Site("attn.out", "BTD", "added to the stream, after the post-norm"),
        Site("resid_mid", "BTD", "residual stream after attention"),
        Site("moe.in", "BTD", "what router and experts read: the stream, normed"),
        Site("router.logits", "BTE", "router logits, float32"),
        Site("router.probs", "BTE", "softmax of the logits over all experts, or the sigmoid of each, float32"),
        Site("router.choice", "BTE", "what top-k sees, where a bias, groups or near rivals set it apart from probs"),
        Site("router.experts", "BTA", "chosen experts, best first by the choice; -1 where a slot is empty", dtype="int32"),
        Site("router.gates", "BTA", "the weights really used; 0 where a slot is empty"),
        Site("expert.act", "BTAF", "hidden neurons of each chosen expert"),
        Site("expert.out", "BTAD", "each chosen expert's output, before its gate"),
        Site("shared.out", "BTD", "the shared experts' output, gated where the model gates it"),
        Site("moe.out", "BTD", "added to the stream, after the post-norm"),
        Site("resid_post", "BTD", "residual stream leaving the block"),
        Site("final", "BTD", "after the last norm", in_block=False),
        Site("logits", "BTV", "next-token logits", in_block=False),
    )
}

ROUTING = ("router.logits", "router.probs", "router.experts", "router.gates")
DEFAULT_CAPTURE = (*ROUTING, "logits")

TRANSFORMER_LENS = {
    "hook_embed": "embed",
    "hook_resid_pre": "resid_pre",
    "hook_resid_mid": "resid_mid",
    "hook_resid_post": "resid_post",
    "ln1.hook_normalized": "attn.in",
    "ln2.hook_normalized": "moe.in",
    "hook_attn_out": "attn.out",
    "hook_mlp_out": "moe.out",
    "attn.hook_rot_q": "attn.q",
    "attn.hook_rot_k": "attn.k",
    "attn.hook_v": "attn.v",
    "attn.hook_attn_scores": "attn.scores",
    "attn.hook_pattern": "attn.pattern",
    "attn.hook_z": "attn.z",
    "mlp.hook_router_logits": "router.logits",
    "mlp.hook_router_probs": "router.probs",
    "mlp.hook_router_scores": "router.probs",
    "mlp.hook_expert_indices": "router.experts",
    "mlp.hook_expert_weights": "router.gates",
    "mlp.hook_expert_out": "expert.out",
    "mlp.gate.hook_out": "router.logits",
    "ln_final.hook_normalized": "final",
}
_SHORT = {
    name.split("hook_")[-1].removeprefix("rot_"): site
    for name, site in TRANSFORMER_LENS.items()
    if name != "mlp.gate.hook_out"
}


def near(name: object, names: Iterable[str]) -> str:
    """"; did you mean 'x'?" with those of `names` that look like `name`, or nothing."""
    found = difflib.get_close_matches(str(name), list(dict.fromkeys(names)), 3, 0.5)
    ratio = [difflib.SequenceMatcher(None, one, str(name)).ratio() for one in found]
    found = [one for one, r in zip(found, ratio, strict=True) if r > 0.75 * ratio[0]]
    return f"; did you mean {' or '.join(map(repr, found))}?" if found else ""


def parse_site(name: str) -> tuple[str, int | None]:
    """A site's name in our spelling or TransformerLens's -> (our name, the layer if the spelling held one).

    Traps: TransformerLens's hook_q and hook_k come before RoPE and have no site here, hook_rot_q and hook_rot_k have;
    its short names q and k are understood as the rotated ones. Raises ValueError with the nearest names.
    """
    if not isinstance(name, str):
        raise ValueError(f"site: wanted a name, got {type(name).__name__} {str(name)[:40]!r}; see grokscope.SITES")
    if name in SITES:
        return name, None
    block = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    if block and block[2] in TRANSFORMER_LENS:
        return TRANSFORMER_LENS[block[2]], int(block[1])
    for table in (TRANSFORMER_LENS, _SHORT):
        if name in table:
            return table[name], None
    hint = near(block[2] if block else name, [*SITES, *TRANSFORMER_LENS])
    raise ValueError(f"site: wanted one of grokscope.SITES, got {name!r}{hint}")


def names_of(sites: Any) -> tuple[Any, ...]:
    """What is asked for, one after the other: names, or TransformerLens's (name, layer)."""
    if sites is None:
        return DEFAULT_CAPTURE
    if isinstance(sites, str) or (isinstance(sites, tuple) and len(sites) == 2 and not isinstance(sites[1], str | tuple)):
        return (sites,)
    if not hasattr(sites, "__iter__"):
        raise TypeError(f"capture: wanted names of sites, got {type(sites).__name__} {str(sites)[:40]!r}; see grokscope.SITES")
    return tuple(sites)


def _whole(selected: Any, what: str) -> tuple[int, ...]:
    """Whole numbers of any library as Python's; one may stand alone."""
    items = selected if hasattr(selected, "__iter__") and not isinstance(selected, str) else (selected,)
    try:
        if not any(isinstance(i, bool) for i in items):
            return tuple(operator.index(i) for i in items)
    except TypeError:
        pass
    raise ValueError(f"{what}: wanted whole numbers, got {str(selected)[:60]}; count from 0")


@dataclass(frozen=True)
class Capture:
    """Which sites a run keeps, and which layers, tokens, heads and experts of them (None: all).

    The selections apply to the sites that have the dimension; `heads` are query heads, `tokens` the reading tokens.
    """

    sites: tuple[str, ...] = DEFAULT_CAPTURE
    layers: tuple[int, ...] | None = None
    tokens: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None
    experts: tuple[int, ...] | None = None

    @classmethod
    def of(
        cls,
        sites: str | Iterable[str] | Capture | None = None,
        layers: Sequence[int] | None = None,
        **selections: Sequence[int] | None,
    ) -> Capture:
        """A capture from names, globs ("router.*") and TransformerLens names.

        A name that holds a layer ("blocks.3.attn.hook_pattern") sets `layers` when none are given.
        """
        if isinstance(sites, Capture):
            if given := [n for n, v in (("layers", layers), *selections.items()) if v is not None]:
                raise ValueError(f"capture: wanted {', '.join(given)} in the Capture, got them beside it; give them in one place")
            return sites
        wanted = names_of(sites)
        names: set[str] = set()
        named_layers: set[int] = set()
        for item in wanted:
            name, layer = item if isinstance(item, tuple) and len(item) == 2 else (item, None)
            named_layers |= set() if layer is None else set(_whole(layer, "capture"))
            if isinstance(name, str) and any(c in name for c in "*?["):
                matches = [s for s in SITES if fnmatchcase(s, name)]
                if not matches:
                    raise ValueError(f"capture: wanted a pattern that some site matches, got {name!r}; sites: {', '.join(SITES)}")
                names.update(matches)
            else:
                site, layer = parse_site(name)
                names.add(site)
                named_layers |= set() if layer is None else {layer}
        if layers is None and named_layers:
            layers = sorted(named_layers)
        chosen = {k: None if v is None else _whole(v, k) for k, v in selections.items()}
        return cls(tuple(s for s in SITES if s in names), None if layers is None else _whole(layers, "layers"), **chosen)

    def at(self, layer: int) -> tuple[str, ...]:
        """The sites inside block `layer` to keep."""
        if self.layers is not None and layer not in self.layers:
            return ()
        return tuple(s for s in self.sites if s not in SITES or SITES[s].in_block)

    def outside(self) -> tuple[str, ...]:
        """The sites outside the blocks to keep."""
        return tuple(s for s in self.sites if s in SITES and not SITES[s].in_block)
