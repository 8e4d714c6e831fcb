"""Float64 oracle of Grok-2's forward pass, in plain NumPy: slow, explicit, made to be compared with.

It is written from the specification of the released model alone (its config.json, the tensors of its files, what the
authors' own serving code computes), not from the core in grokscope, which it neither imports nor follows. Tensors are
asked for by their released names and come as released: (out, in), the experts' eight parts joined. Everything is
float64, so none of the serving code's bfloat16 roundings happens here. `Readings` names the points on which public
implementations disagree; its defaults are the ones that grokscope takes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Captures = dict[str, np.ndarray]
Tensors = Callable[[str], np.ndarray]


@dataclass(frozen=True)
class Readings:
    """One reading of each disputed point: the form of GELU, where temperature acts, whether the gates sum to one."""

    gelu: str = "tanh"  # or "erf"
    temperature: str = "after"  # the cap, or "before" it, or "never"
    renormalise: bool = False
    router_capped: bool = True
    capped_first: bool = False  # the logits: capped, then scaled
    stretched: tuple[float, int, float, float] | None = None  # YaRN: times slower, first context, turns that stay, turns that do not


def softmax_last(x: np.ndarray) -> np.ndarray:
    """Softmax over the last axis."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def cap(x: np.ndarray, bound: float) -> np.ndarray:
    """Bend x smoothly into (-bound, bound)."""
    return bound * np.tanh(x / bound)


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """Divide by the root mean square and multiply by the plain weight (not 1 + weight)."""
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * weight


def gelu(x: np.ndarray, kind: str) -> np.ndarray:
    """Apply GELU: x times the normal distribution function, exactly ("erf") or by its usual formula ("tanh")."""
    if kind == "tanh":
        return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))
    if kind == "erf":
        return 0.5 * x * (1.0 + np.vectorize(math.erf)(x / math.sqrt(2.0)))
    raise ValueError(f"unknown GELU {kind!r}")


def slowed(pair: int, width: int, theta: float, stretched: tuple[float, int, float, float]) -> float:
    """Give the share of a pair's frequency that YaRN leaves, as llama.cpp's rope_yarn computes it."""
    factor, context, fast, slow = stretched

    def pair_with(turns: float) -> float:
        return width * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = max(0, math.floor(pair_with(fast))), min(width - 1, math.ceil(pair_with(slow)))
    ramp = min(1.0, max(0.0, (pair - first) / max(0.001, last - first)))
    return ramp / factor + (1 - ramp)


def rope(x: np.ndarray, theta: float, readings: Readings = Readings()) -> np.ndarray:
    """Rotate coordinate pair (i, i + K/2) of every head of x [B,T,heads,K] by its position * theta^(-2i/K)."""
    width, out, size = x.shape[-1], np.empty_like(x), 1.0
    if readings.stretched is not None:
        size = 1 + 0.1 * math.log(readings.stretched[0])
    for t in range(x.shape[1]):
        for i in range(width // 2):
            angle = t * theta ** (-2.0 * i / width)
            if readings.stretched is not None:
                angle *= slowed(i, width, theta, readings.stretched)
            first, second = x[:, t, :, i] * size, x[:, t, :, i + width // 2] * size
            out[:, t, :, i] = first * math.cos(angle) - second * math.sin(angle)
            out[:, t, :, i + width // 2] = first * math.sin(angle) + second * math.cos(angle)
    return out


def temperature(config: dict[str, Any], position: int) -> float:
    """Give the factor on all scores of the query at a position counted from 0: one up to attn_temperature_len."""
    start = config.get("attn_temperature_len", -1)
    return math.log2(position) / math.log2(start) if 0 < start < position else 1.0


def scores_of(config: dict[str, Any], q: np.ndarray, k: np.ndarray, readings: Readings) -> np.ndarray:
    """Compute one head's scores [T,S] of q [T,K] and k [S,K]: scaled, capped, multiplied by the temperature."""
    bound = config["attn_logit_softcapping"]
    factor = np.array([temperature(config, p) for p in range(len(q))])[:, None]
    raw = q @ k.T * config["head_dim"] ** -0.5
    if readings.temperature == "after":
        return cap(raw, bound) * factor
    return cap(raw * factor, bound) if readings.temperature == "before" else cap(raw, bound)


def attention(config: dict[str, Any], tensors: Tensors, name: str, a: np.ndarray, readings: Readings) -> Captures:
    """Run grouped-query attention on the normed a [B,T,D]; "out" is before the post-norm."""
    (B, T, _), H, G, K = a.shape, config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    q = rope((a @ tensors(f"{name}.q_proj.weight").T).reshape(B, T, H, K), config["rope_theta"], readings)
    k = rope((a @ tensors(f"{name}.k_proj.weight").T).reshape(B, T, G, K), config["rope_theta"], readings)
    v = (a @ tensors(f"{name}.v_proj.weight").T).reshape(B, T, G, K)
    scores, pattern, z = np.zeros((B, H, T, T)), np.zeros((B, H, T, T)), np.zeros((B, T, H, K))
    for b in range(B):
        for h in range(H):
            g = h // (H // G)
            scores[b, h] = scores_of(config, q[b, :, h], k[b, :, g], readings)
            for t in range(T):
                pattern[b, h, t, : t + 1] = softmax_last(scores[b, h, t, : t + 1])
            z[b, :, h] = pattern[b, h] @ v[b, :, g]
    out = z.reshape(B, T, H * K) @ tensors(f"{name}.o_proj.weight").T
    return {"q": q, "k": k, "v": v, "scores": scores, "pattern": pattern, "z": z, "out": out}


def neurons(y: np.ndarray, gate: np.ndarray, up: np.ndarray, kind: str) -> np.ndarray:
    """Compute gelu(gate y) * up y with weights (out, in)."""
    return gelu(y @ gate.T, kind) * (y @ up.T)


def mixture(config: dict[str, Any], tensors: Tensors, name: str, y: np.ndarray, readings: Readings) -> Captures:
    """Route y [B,T,D] to its experts: softmax of the capped logits over all, the best few, their probabilities."""
    logits = y @ tensors(f"{name}.gate.weight").T
    logits = cap(logits, config["router_logit_softcapping"]) if readings.router_capped else logits
    probs = softmax_last(logits)
    experts = np.argsort(-logits, axis=-1, kind="stable")[..., : config["num_experts_per_tok"]]
    gates = np.take_along_axis(probs, experts, axis=-1)
    if readings.renormalise:
        gates = gates / gates.sum(axis=-1, keepdims=True)
    acts = np.zeros((*experts.shape, config["moe_intermediate_size"]))
    outputs = np.zeros((*experts.shape, y.shape[-1]))
    for e in np.unique(experts):
        w1, w2, w3 = (tensors(f"{name}.experts.{e}.{part}.weight") for part in ("w1", "w2", "w3"))
        for b, t, slot in np.argwhere(experts == e):
            acts[b, t, slot] = neurons(y[b, t], w1, w3, readings.gelu)
            outputs[b, t, slot] = acts[b, t, slot] @ w2.T
    return {
        "router.logits": logits,
        "router.probs": probs,
        "router.experts": experts,
        "router.gates": gates,
        "expert.act": acts,
        "expert.out": outputs,
        "mixed": (gates[..., None] * outputs).sum(axis=-2),
    }


def block(config: dict[str, Any], tensors: Tensors, layer: str, h: np.ndarray, readings: Readings) -> Captures:
    """Run one decoder layer on the residual h and return all its captures."""

    def norm(x: np.ndarray, which: str) -> np.ndarray:
        return rms_norm(x, tensors(f"{layer}.{which}.weight"), config["rms_norm_eps"])

    a = norm(h, "pre_attn_norm")
    att = attention(config, tensors, f"{layer}.self_attn", a, readings)
    att["out"] = norm(att["out"], "post_attn_norm")
    mid = h + att["out"]
    y = norm(mid, "pre_moe_norm")
    moe = mixture(config, tensors, f"{layer}.block_sparse_moe", y, readings)
    gate, up, down = (tensors(f"{layer}.mlp.{part}_proj.weight") for part in ("gate", "up", "down"))
    mlp = neurons(y, gate, up, readings.gelu) @ down.T
    out = norm((mlp + moe.pop("mixed")) / math.sqrt(2.0), "post_moe_norm")
    captures = {"resid_pre": h, "attn.in": a, **{f"attn.{key}": value for key, value in att.items()}}
    return {**captures, "resid_mid": mid, "moe.in": y, **moe, "mlp": mlp, "moe.out": out, "resid_post": mid + out}


def forward(
    config: dict[str, Any], tensors: Tensors, tokens: np.ndarray, readings: Readings = Readings()
) -> dict[str, np.ndarray]:
    """Run tokens [B,T], rows of equal length, and return every capture ("0.attn.q", ...) and the logits."""
    tokens = np.asarray(tokens)
    x = tensors("model.embed_tokens.weight")[tokens] * config["embedding_multiplier_scale"]
    out = {"embed": x}
    for i in range(config["num_hidden_layers"]):
        layer = block(config, tensors, f"model.layers.{i}", x, readings)
        out.update({f"{i}.{key}": value for key, value in layer.items()})
        x = layer["resid_post"]
    out["final"] = rms_norm(x, tensors("model.norm.weight"), config["rms_norm_eps"])
    raw, scale = out["final"] @ tensors("lm_head.weight").T, config["output_multiplier_scale"]
    bound = config["final_logit_softcapping"]
    out["logits"] = cap(raw, bound) * scale if readings.capped_first else cap(raw * scale, bound)
    return out
