"""Float64 oracle of xAI's Grok-1 forward pass, in plain NumPy: slow, explicit, made to be compared with.

It is written from the established facts about the public reference (FACTS.md sections 1-5 and 7, and the README of the
golden data), not from the core in grokscope, which it neither imports nor follows. Everything is float64, so none of
the reference's bfloat16 roundings happens here. Two of the reference's quirks are left out on purpose: token id 0
inside a real prompt is an ordinary token (the reference hides it), and a mixture with float weights is computed (the
reference silently returns its input).
"""

from collections.abc import Callable
from typing import Any

import numpy as np

Leaf = dict[str, np.ndarray]
Params = Callable[[str], Leaf]
MASKED = -1e30  # finite: a row that sees no key gets the uniform pattern, not NaN


def dense(leaf: Leaf) -> np.ndarray:
    """Give a parameter as float64; row group g (K/G consecutive rows) of int8 weights is multiplied by scales row g."""
    if "array" in leaf:
        return np.asarray(leaf["array"]).astype(np.float64)
    weight, scales = np.asarray(leaf["weight"]).astype(np.float64), np.asarray(leaf["scales"]).astype(np.float64)
    rows, groups = weight.shape[-2], scales.shape[-2]
    if rows % groups:
        raise ValueError(f"{rows} rows cannot be shared out among {groups} rows of scales")
    for row in range(rows):
        weight[..., row, :] *= scales[..., row // (rows // groups), :]
    return weight


def softmax_last(x: np.ndarray) -> np.ndarray:
    """Softmax over the last axis."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def rms_norm(config: dict[str, Any], params: Params, name: str, x: np.ndarray) -> np.ndarray:
    """Divide by the root mean square and multiply by the plain scale (not 1 + scale)."""
    mean_square = (x * x).mean(axis=-1, keepdims=True)
    return x / np.sqrt(mean_square + config.get("norm_eps", 1e-5)) * dense(params(f"{name}/scale"))


def activate(x: np.ndarray, kind: str) -> np.ndarray:
    """Apply the gate's activation: gelu in its tanh form, or silu."""
    if kind == "gelu":
        return 0.5 * x * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3)))
    if kind == "silu":
        return 0.5 * x * (1.0 + np.tanh(0.5 * x))  # = x * sigmoid(x), without overflow
    raise ValueError(f"unknown activation {kind!r}")


def glu(config: dict[str, Any], x: np.ndarray, gate: np.ndarray, value: np.ndarray, down: np.ndarray) -> np.ndarray:
    """Compute the gated unit: activation(x @ linear) * (x @ linear_v) @ linear_1."""
    return (activate(x @ gate, config.get("activation", "gelu")) * (x @ value)) @ down


def rope(config: dict[str, Any], x: np.ndarray) -> np.ndarray:
    """Rotate coordinate pair (i, i + K/2) of every head of x [B,T,heads,K] by its position / base^(2i/K)."""
    half = x.shape[-1] // 2
    out = np.empty_like(x)
    for t in range(x.shape[1]):
        for i in range(half):
            angle = t / config.get("rope_base", 10000.0) ** (2.0 * i / (2 * half))
            first, second = x[:, t, :, i], x[:, t, :, i + half]
            out[:, t, :, i] = first * np.cos(angle) - second * np.sin(angle)
            out[:, t, :, i + half] = second * np.cos(angle) + first * np.sin(angle)
    return out


def visible(n: int, length: int) -> np.ndarray:
    """Say which keys (columns) each of n queries (rows) may read: the real ones that are not after it."""
    return np.array([[key <= query and key < length for key in range(n)] for query in range(n)], dtype=bool)


def attention(config: dict[str, Any], params: Params, name: str, x: np.ndarray, lengths: np.ndarray) -> Leaf:
    """Run grouped-query attention on x [B,T,D]; "out" is before the post-norm."""
    (B, T, _), H, G, K = x.shape, config["num_q_heads"], config["num_kv_heads"], config["key_size"]
    q = rope(config, (x @ dense(params(f"{name}/query/w"))).reshape(B, T, H, K))
    k = rope(config, (x @ dense(params(f"{name}/key/w"))).reshape(B, T, G, K))
    v = (x @ dense(params(f"{name}/value/w"))).reshape(B, T, G, K)
    scores, pattern, z = np.zeros((B, H, T, T)), np.zeros((B, H, T, T)), np.zeros((B, T, H, K))
    cap = config.get("attention_cap", 30.0)
    for b in range(B):
        for h in range(H):
            g = h // (H // G)  # consecutive query heads share a key/value head
            raw = q[b, :, h] @ k[b, :, g].T * config["attn_output_multiplier"]
            scores[b, h] = raw if cap is None else cap * np.tanh(raw / cap)
            pattern[b, h] = softmax_last(np.where(visible(T, int(lengths[b])), scores[b, h], MASKED))
            z[b, :, h] = pattern[b, h] @ v[b, :, g]
    out = z.reshape(B, T, H * K) @ dense(params(f"{name}/linear/w"))
    return {"q": q, "k": k, "v": v, "scores": scores, "pattern": pattern, "z": z, "out": out}


def route(config: dict[str, Any], params: Params, layer: str, x: np.ndarray, rule: str) -> Leaf:
    """Choose each token's experts by softmax over all; the gates are divided by their sum only if rule is "chosen"."""
    logits = x @ dense(params(f"{layer}/router/w"))
    probs = softmax_last(logits)
    experts = np.argsort(-probs, axis=-1, kind="stable")[..., : config["num_selected_experts"]]  # ties: lowest index
    gates = np.take_along_axis(probs, experts, axis=-1)
    if rule == "chosen":
        gates = gates / gates.sum(axis=-1, keepdims=True)
    return {"logits": logits, "probs": probs, "experts": experts, "gates": gates}


def run_experts(config: dict[str, Any], params: Params, layer: str, x: np.ndarray, experts: np.ndarray) -> np.ndarray:
    """Compute the output [B,T,A,D] of every chosen expert before its gate, token by token."""
    leaves = [params(f"{layer}/moe/{part}/w") for part in ("linear", "linear_v", "linear_1")]
    out = np.zeros((*experts.shape, x.shape[-1]))
    for e in np.unique(experts):
        gate, value, down = (dense({part: held[e] for part, held in leaf.items()}) for leaf in leaves)
        for b, t, slot in np.argwhere(experts == e):
            out[b, t, slot] = glu(config, x[b, t], gate, value, down)
    return out


def feed_forward(config: dict[str, Any], params: Params, layer: str, x: np.ndarray, rule: str) -> Leaf:
    """Run the mixture of experts, or the dense block where there is at most one; "moe.out" is before the post-norm."""
    if config["num_experts"] <= 1:
        parts = (dense(params(f"{layer}/{part}/w")) for part in ("linear", "linear_v", "linear_1"))
        return {"moe.out": glu(config, x, *parts)}
    routed = route(config, params, layer, x, rule)
    outputs = run_experts(config, params, layer, x, routed["experts"])
    mixed = np.zeros_like(x)
    for slot in range(config["num_selected_experts"]):
        mixed += routed["gates"][..., slot, None] * outputs[..., slot, :]
    return {**{f"router.{key}": value for key, value in routed.items()}, "expert.out": outputs, "moe.out": mixed}


def block(config: dict[str, Any], params: Params, layer: str, x: np.ndarray, lengths: np.ndarray, rule: str) -> Leaf:
    """Run one decoder layer on the residual x and return all its captures."""
    post = config.get("post_norms", True)
    att = attention(
        config, params, f"{layer}/multi_head_attention", rms_norm(config, params, f"{layer}/rms_norm", x), lengths
    )
    if post:
        att["out"] = rms_norm(config, params, f"{layer}/rms_norm_1", att["out"])
    mid = x + att["out"]
    moe = feed_forward(config, params, layer, rms_norm(config, params, f"{layer}/rms_norm_2", mid), rule)
    if post:
        moe["moe.out"] = rms_norm(config, params, f"{layer}/rms_norm_3", moe["moe.out"])
    attn = {f"attn.{key}": value for key, value in att.items()}
    return {"resid_pre": x, **attn, "resid_mid": mid, **moe, "resid_post": mid + moe["moe.out"]}


def forward(
    config: dict[str, Any], params: Params, tokens: np.ndarray, lengths: np.ndarray | None = None, softmax: str = "all"
) -> dict[str, np.ndarray]:
    """Run tokens [B,T] of right-padded rows with lengths [B] real tokens and return every capture and the logits."""
    tokens = np.asarray(tokens)
    if softmax not in ("all", "chosen"):
        raise ValueError(f"unknown router rule {softmax!r}")
    if tokens.ndim != 2 or tokens.min(initial=0) < 0:
        raise ValueError("tokens must be [B, T] and not negative")
    lengths = np.full(len(tokens), tokens.shape[1]) if lengths is None else np.asarray(lengths)
    table = dense(params("language_model/in_out_embed/embeddings"))
    x = table[np.minimum(tokens, len(table) - 1)] * config["embedding_multiplier_scale"]  # ids >= V read the last row
    out = {"embed": x}
    for i in range(config["num_layers"]):
        layer = block(config, params, f"transformer/decoder_layer_{i}", x, lengths, softmax)
        out.update({f"{i}.{key}": value for key, value in layer.items()})
        x = layer["resid_post"]
    out["final"] = rms_norm(config, params, "language_model/rms_norm", x)
    out["logits"] = out["final"] @ table.T * config["output_multiplier_scale"]  # the same table, tied
    return out
