"""What a mixture-of-experts transformer computes, in float64 NumPy, for every field of a ModelConfig.

It was written from the published formulas of the families and the docstrings of the configs, without a look at the
implementation that it checks. It returns every site of `grokscope.sites` that the model has, with a leading axis of the
layers that have it. Padding needs no mask: it stands to the right, and no token reads to its right.
"""

import math

import numpy as np


def array(weight):
    """Any form of a weight as float64. PerExpert holds one transposed matrix an expert; quantised forms have `.to`."""
    if hasattr(weight, "parts"):
        return np.stack([array(part).T for part in weight.parts])
    return np.asarray(weight.to(np.float32) if hasattr(weight, "to") else weight).astype(np.float64)


def sigmoid(x):
    return np.exp(-np.logaddexp(0, -x))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def cap(x, c):
    return x if c is None else c * np.tanh(x / c)


def rms(x, scale, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * scale


def norm(config, weights, name, x):
    """One of the norms of the stream; `weights` has the fields `name` and `name`_bias."""
    x = x - x.mean(-1, keepdims=True) if config.norm == "layer" else x
    x = rms(x, array(getattr(weights, name)), config.norm_eps)
    return x + array(getattr(weights, name + "_bias")) if config.norm_bias else x


def yarn(rope, width, plain):
    """Slow planes turn `factor` times slower, fast ones as before, those between in a straight ramp."""
    length, per_plane = rope.original_tokens / (2 * math.pi), width / (2 * math.log(rope.base))
    low, high = (per_plane * math.log(length / turns) for turns in rope.turns)
    low, high = (math.floor(low), math.ceil(high)) if rope.truncate else (low, high)
    low, high = max(low, 0), min(high, width - 1)
    high = high + 0.001 if low == high else high
    ramp = np.clip((np.arange(width // 2) - low) / (high - low), 0, 1)
    return plain / rope.factor * ramp + plain * (1 - ramp)


def frequencies(rope, width, tokens):
    """(the angle of each plane at position 1, what multiplies cosine and sine) for a text of so many tokens."""
    plain = np.array([rope.base ** (-2 * i / width) for i in range(width // 2)])
    if rope.scaling == "linear":
        return plain / rope.factor, rope.magnitude
    if rope.scaling == "yarn":
        return yarn(rope, width, plain), rope.magnitude
    if rope.scaling == "llama3":
        high, low = rope.turns
        kept = np.clip((rope.original_tokens * plain / (2 * math.pi) - low) / (high - low), 0, 1)
        return (1 - kept) * plain / rope.factor + kept * plain, rope.magnitude
    if rope.scaling == "longrope" and tokens > rope.original_tokens:
        return plain / np.array(rope.long), rope.long_magnitude
    return plain / np.array(rope.short if rope.scaling == "longrope" else 1.0), rope.magnitude


def rotate(block, x, lengths):
    """Turns the first entries of every head of x [B, T, heads, K], entry i with entry i + width / 2."""
    half, turned = block.rope_width // 2, x.copy()
    for b, tokens in enumerate(lengths):
        f, magnitude = frequencies(block.rope, block.rope_width, tokens)
        angle = np.arange(x.shape[1])[:, None, None] * f
        cos, sin = magnitude * np.cos(angle), magnitude * np.sin(angle)
        first, second = x[b, ..., :half], x[b, ..., half : 2 * half]
        turned[b, ..., :half] = first * cos - second * sin
        turned[b, ..., half : 2 * half] = second * cos + first * sin
    return turned


def plain_qkv(block, attn, x, lengths):
    """Projection and bias, norm (of each head or all as one vector), clip, rotation; or the norm last."""

    def normed(name, y):
        flat = y.reshape(*y.shape[:2], -1) if block.qk_norm == "all" else y
        return rms(flat, array(getattr(attn, name + "_norm")).reshape(-1), block.norm_eps).reshape(y.shape)

    def made(name):
        y = np.einsum("btd,dhk->bthk", x, array(getattr(attn, name)))
        y = y + array(getattr(attn, name + "_bias")) if name in block.attention_bias else y
        has_norm = block.qk_norm is not None and name != "v"
        y = normed(name, y) if has_norm and not block.qk_norm_last else y
        y = y if block.qkv_clip is None else np.clip(y, -block.qkv_clip, block.qkv_clip)
        y = y if name == "v" else rotate(block, y, lengths)
        return normed(name, y) if has_norm and block.qk_norm_last else y

    return made("q"), made("k"), made("v")


def latent_qkv(block, attn, x, lengths):
    """Keys and values are made of a small normed vector; every head's key begins with the same rotated part."""
    small = rms(x @ array(attn.q_down), array(attn.q_down_norm), block.latent_norm_eps) if block.q_rank else x
    q = rotate(block, np.einsum("btc,chk->bthk", small, array(attn.q)), lengths)
    shared = rotate(block, (x @ array(attn.k_rope))[:, :, None], lengths)
    c = rms(x @ array(attn.kv_down), array(attn.kv_down_norm), block.latent_norm_eps)
    own = np.einsum("btc,chk->bthk", c, array(attn.k))
    k = np.concatenate([np.repeat(shared, block.num_heads, axis=2), own], -1)
    return q, k, np.einsum("btc,chk->bthk", c, array(attn.v))


def attention(block, attn, x, lengths, sites):
    """Before the post-norm. A sink is one more logit in the sum of a row's softmax."""
    q, k, v = (latent_qkv if block.kv_rank else plain_qkv)(block, attn, x, lengths)
    (texts, tokens), heads = x.shape[:2], block.num_heads
    scores, pattern = np.zeros((2, texts, heads, tokens, tokens))
    sinks = array(attn.sinks)[:, None] if block.sinks else np.zeros((heads, 0))
    for b, h, t in np.ndindex(texts, heads, tokens):
        g = h // (heads // block.num_kv_heads)
        start = block.attention_temperature
        heat = math.log(t, start) if start and t > start else 1.0
        before, after = (heat, 1.0) if block.attention_temperature_first else (1.0, heat)
        scores[b, h, t] = after * cap(before * (k[b, :, g] @ q[b, t, h]) * block.attention_scale, block.attention_cap)
        first = 0 if block.window is None else max(0, t - block.window + 1)
        read = scores[b, h, t, first : t + 1]
        pattern[b, h, t, first : t + 1] = softmax(np.append(read, sinks[h]))[: len(read)]
    z = np.einsum("bhts,bshk->bthk", pattern, np.repeat(v, heads // block.num_kv_heads, axis=2))
    sites |= {"attn.q": q, "attn.k": k, "attn.v": v, "attn.scores": scores, "attn.pattern": pattern, "attn.z": z}
    out = np.einsum("bthk,hkd->btd", z, array(attn.o))
    return out + array(attn.o_bias) if "o" in block.attention_bias else out


def limit_groups(choice, groups, kept, how):
    """The choice of one token where the experts of the groups left out count for nothing."""
    members = choice.reshape(groups, -1)
    worth = members.max(-1) if how == "best" else np.sort(members, -1)[:, -2:].sum(-1)
    limited = np.full_like(members, 0.0 if how == "best" else -np.inf)
    winners = np.argsort(-worth, kind="stable")[:kept]
    limited[winners] = members[winners]
    return limited.reshape(-1)


def near_rivals(logits, router):
    """Sparsemixer for one token: each slot's expert, and the softmax over its near rivals alone."""
    pool, experts, gates = list(range(len(logits))), [], []
    for _ in range(router.top_k):
        best = max(pool, key=lambda e: (logits[e], -e))
        z = logits[best]
        rivals = [e for e in pool if z - logits[e] <= router.near * max(abs(logits[e]), z)]
        experts.append(best)
        gates.append(1 / sum(math.exp(logits[e] - z) for e in rivals))
        pool.remove(best)
    return experts, gates


def route(router, moe, x, sites):
    """The experts and gates of every token; a dense block has one expert, with gate 1, and no site."""
    if router.num_experts <= 1:
        return np.zeros((*x.shape[:2], 1), int), np.ones((*x.shape[:2], 1))
    logits = x @ array(moe.router) + (array(moe.router_bias) if router.logit_bias else 0)
    logits = cap(logits, router.logit_cap)
    probs = sigmoid(logits) if router.score == "sigmoid" else softmax(logits)
    choice = probs + (array(moe.choice_bias) if router.choice_bias else 0)
    choice = np.apply_along_axis(limit_groups, -1, choice, *router.groups) if router.groups else choice
    experts = np.argsort(-choice, kind="stable")[..., : router.top_k]
    gates = np.take_along_axis(probs, experts, -1)
    if router.near is not None:
        choice = logits
        for at in np.ndindex(x.shape[:2]):
            experts[at], gates[at] = near_rivals(logits[at], router)
    total = np.maximum(gates.sum(-1, keepdims=True), 1e-20) if router.renormalize else 1
    gates = gates / total * router.scale
    sites |= {"router.logits": logits, "router.probs": probs, "router.experts": experts, "router.gates": gates}
    sites |= {"router.choice": choice} if router.has_choice else {}
    return experts, gates


def hidden(block, gate, up):
    """The hidden neurons of a gated unit, from the two halves of its first projection."""
    if block.glu_limit is not None:
        gate, up = np.minimum(gate, block.glu_limit), np.clip(up, -block.glu_limit, block.glu_limit)
    y = block.glu_alpha * gate
    gelu = 0.5 * y * (1 + np.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
    exact = 0.5 * y * (1 + np.vectorize(math.erf)(y / math.sqrt(2)))
    acted = {"silu": y * sigmoid(y), "gelu": gelu, "gelu_erf": exact}[block.activation]
    return acted / block.glu_alpha * (up + block.glu_offset)


def mixture(block, moe, x, sites):
    """What the chosen experts and the shared ones make of every token together, times branch_scale."""
    experts, gates = route(block.router, moe, x, sites)
    w = {name: array(getattr(moe, name)) for name in ("gate", "up", "down")}
    b = {name: array(getattr(moe, name + "_bias")) if block.expert_bias else np.zeros(len(w[name])) for name in w}
    act, out = np.zeros((*experts.shape, block.d_expert)), np.zeros((*experts.shape, block.d_model))
    for at in np.ndindex(experts.shape):
        e, token = experts[at], x[at[:2]]
        act[at] = hidden(block, token @ w["gate"][e] + b["gate"][e], token @ w["up"][e] + b["up"][e])
        out[at] = act[at] @ w["down"][e] + b["down"][e]
    total = (gates[..., None] * out).sum(2)
    sites |= {} if block.is_dense else {"expert.act": act, "expert.out": out}
    if block.d_shared:
        shared = hidden(block, x @ array(moe.shared_gate), x @ array(moe.shared_up)) @ array(moe.shared_down)
        shared = shared * sigmoid(x @ array(moe.shared_router))[..., None] if block.shared_gate else shared
        sites |= {} if block.is_dense else {"shared.out": shared}
        total = total + shared
    return total * block.branch_scale


def one_block(block, weights, x, lengths):
    """All sites of one block."""
    sites = {"resid_pre": x, "attn.in": norm(block, weights, "attn_norm_in", x)}
    out = attention(block, weights.attn, sites["attn.in"], lengths, sites)
    out = norm(block, weights, "attn_norm_out", out) if block.post_norms else out
    sites["attn.out"] = out * block.residual_scale
    sites["resid_mid"] = x + sites["attn.out"]
    sites["moe.in"] = norm(block, weights, "moe_norm_in", sites["resid_mid"])
    out = mixture(block, weights.moe, sites["moe.in"], sites)
    out = norm(block, weights, "moe_norm_out", out) if block.post_norms else out
    sites["moe.out"] = out * block.residual_scale
    sites["resid_post"] = sites["resid_mid"] + sites["moe.out"]
    return sites


def forward(config, weights, ids, lengths):
    """Every site of the model for texts of ids [B, T], right-padded; at padding the values mean nothing."""
    embedding = array(weights.embed)
    x = embed = embedding[np.asarray(ids)] * config.embed_scale
    layers = []
    for layer in range(config.num_layers):
        layers.append(one_block(config.block(layer), weights.blocks[layer], x, [int(n) for n in lengths]))
        x = layers[-1]["resid_post"]
    final = norm(config, weights, "final_norm", x)
    logits = final @ (embedding if config.tied_embedding else array(weights.unembed)).T
    logits = logits + array(weights.unembed_bias) if config.unembed_bias else logits
    logits = cap(logits * config.logit_scale, config.final_cap)
    stacked = {name: np.stack([s[name] for s in layers if name in s]) for name in set().union(*layers)}
    return stacked | {"embed": embed, "final": final, "logits": logits}
