"""The rotation that a config.json asks for: `rope_theta` beside `rope_scaling` (transformers 4), or `rope_parameters` (5)."""

from __future__ import annotations

import math
from typing import Any

from grokscope.checkpoints.huggingface.fields import Fields
from grokscope.config import RopeConfig
from grokscope.harmless import told

_KNOWN = {
    "rope_type", "type", "rope_theta", "factor", "original_max_position_embeddings", "attention_factor", "beta_fast",
    "beta_slow", "truncate", "mscale", "mscale_all_dim", "low_freq_factor", "high_freq_factor", "short_factor", "long_factor",
    "short_mscale", "long_mscale", "alpha", "partial_rotary_factor", "rope_ratio", "finetuned",
}  # fmt: skip


def rope_of(f: Fields, width: int, *, share: float | None = None, base: float) -> tuple[RopeConfig, float]:
    """(the rotation of the first entries of a head of `width`, what DeepSeek's two mscales make of the attention's scale).

    base: where the config does not say. share: of the head that is rotated, where the config does not say; None: this family
    rotates whole heads.
    """
    scaling = _scaling(f)
    theta = scaling.get("rope_theta", f.get("rope_theta", default=base))
    if type(theta) not in (int, float) or not 0 < theta < 1e30 or f.get("rope_theta", default=theta) != theta:
        f.refuse("rope_theta", "a positive number, the same wherever it stands", theta)
        theta = base
    part = scaling.get(
        "partial_rotary_factor", f.get("partial_rotary_factor", default=share if share is not None else 1)
    )
    if f.get("partial_rotary_factor", default=part) != part:
        f.refuse("partial_rotary_factor", f"what rope_parameters says ({part})")
    rotated = int(width * part) if type(part) in (int, float) else 0
    if part != 1 and share is None:
        f.refuse("partial_rotary_factor", "1: whole heads", part)
    elif not 2 <= rotated <= width or rotated % 2:
        f.refuse("head_dim", "an even number (rotary halves), of which as many entries are turned", width)
        rotated = 2
    inner = Fields(scaling)
    kind = scaling.get("rope_type", "default")
    reader, unknown = _KINDS.get(kind if isinstance(kind, str) else None), sorted(set(scaling) - _KNOWN)
    if reader is None or unknown:
        what = f"rope_type {', '.join(_KINDS)}" if reader is None else f"no {', '.join(unknown)}"
        f.problems.append(f"rope_scaling: wanted {what}, got {told(scaling)}: not supported")
        return RopeConfig(base=float(theta)), 1.0
    made = reader(f, inner, rotated, float(theta))
    all_dim, factor = (inner.get(name, default=0) for name in ("mscale_all_dim", "factor"))
    scale = _mscale(factor, all_dim) ** 2 if kind != "default" and all_dim and factor else 1.0
    if inner.get("alpha") and kind != ALPHA:
        inner.refuse("alpha", f'rope_type "{ALPHA}" beside it')
    f.problems += [f"rope_scaling: {problem}" for problem in inner.problems]
    return RopeConfig(**({"base": float(theta), "width": None if rotated == width else rotated} | made)), scale


def _scaling(f: Fields) -> dict[str, Any]:
    """The two spellings as one; both may stand there if they say the same."""
    old, new = f.get("rope_scaling", default={}), f.get("rope_parameters", default={})
    for given in (old, new):
        if not isinstance(given, dict) or any(isinstance(v, dict) for v in given.values()):
            f.refuse("rope_scaling", "one set of numbers for all layers", given)
            return {}
    old, new = ({"rope_type" if k == "type" and "rope_type" not in s else k: v for k, v in s.items()} for s in (old, new))
    if differs := sorted(name for name in set(old) & set(new) if old[name] != new[name]):
        f.refuse("rope_scaling", "what rope_parameters says", {name: old[name] for name in differs})
    return new | old


def _default(f: Fields, s: Fields, width: int, base: float) -> dict[str, Any]:
    return {}


def _linear(f: Fields, s: Fields, width: int, base: float) -> dict[str, Any]:
    return {"scaling": "linear", "factor": s.number("factor")}


def _alpha(f: Fields, s: Fields, width: int, base: float) -> dict[str, Any]:
    """A larger base, whatever the length of the text: what "dynamic" means beside an alpha (Hunyuan)."""
    if not s.get("alpha"):
        s.refuse("type", "an alpha beside it, since without one the base depends on each text's length", ALPHA)
        return {}
    return {"base": base * s.number("alpha") ** (width / (width - 2))}


def _original(f: Fields, s: Fields) -> int:
    """The context of the first training, inside rope_scaling or beside it."""
    beside = f.get("original_max_position_embeddings", "initial_context_length")
    inside = s.get("original_max_position_embeddings", default=beside)
    if beside is not None and inside != beside:
        s.refuse("original_max_position_embeddings", f"what stands beside rope_scaling ({beside})", inside)
    return s.size("original_max_position_embeddings", default=beside or f.size("max_position_embeddings"))


def _yarn(f: Fields, s: Fields, width: int, base: float) -> dict[str, Any]:
    """Of DeepSeek's two mscales the ratio multiplies cosine and sine."""
    factor, turns = s.number("factor"), (s.number("beta_fast", 32.0), s.number("beta_slow", 1.0))
    one, all_dim = (s.get(name, default=0) for name in ("mscale", "mscale_all_dim"))
    magnitude = _mscale(factor, one) / _mscale(factor, all_dim) if one and all_dim else _mscale(factor, 1)
    magnitude = s.number("attention_factor", magnitude)
    return {
        "scaling": "yarn", "factor": factor, "original_tokens": _original(f, s), "turns": turns,
        "truncate": s.flag("truncate", True), "magnitude": magnitude,
    }  # fmt: skip


def _mscale(factor: float, times: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * times * math.log(factor) + 1


def _llama3(f: Fields, s: Fields, width: int, base: float) -> dict[str, Any]:
    turns = (s.number("high_freq_factor"), s.number("low_freq_factor"))
    return {"scaling": "llama3", "factor": s.number("factor"), "original_tokens": _original(f, s), "turns": turns}


def _longrope(f: Fields, s: Fields, width: int, base: float) -> dict[str, Any]:
    """mscale where it is given (Phi-3.5-MoE); else sqrt(1 + ln(stretch) / ln(original)), as the paper has it."""
    original = _original(f, s)
    stretch = f.size("max_position_embeddings") / original
    usual = 1.0 if stretch <= 1 else math.sqrt(1 + math.log(stretch) / math.log(original))
    usual = s.number("attention_factor", usual)
    factors = []
    for name in ("short_factor", "long_factor"):
        given = s.get(name)
        if (
            not isinstance(given, list)
            or len(given) != width // 2
            or not all(type(x) in (int, float) and x > 0 for x in given)
        ):
            s.refuse(name, f"{width // 2} positive numbers, one a plane", given)
            given = [1.0] * (width // 2)
        factors.append(tuple(map(float, given)))
    made = {"scaling": "longrope", "original_tokens": original, "short": factors[0], "long": factors[1]}
    return made | {"magnitude": s.number("short_mscale", usual), "long_magnitude": s.number("long_mscale", usual)}


ALPHA = "dynamic"
_KINDS = {
    "default": _default, "linear": _linear, ALPHA: _alpha, "yarn": _yarn, "llama3": _llama3, "longrope": _longrope,
    "su": _longrope,
}  # fmt: skip
