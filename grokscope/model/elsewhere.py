"""What other libraries call things that are done otherwise here: a missing name is answered with what to do."""

from __future__ import annotations

_ON_WEIGHTS = "weights are data: model.weights.embed, .unembed, .blocks[layer].attn.q, ..., moe.router"
ELSEWHERE = {
    "add_hook": "run_with_hooks takes functions; edits are values, model.trace(text, edits=[...]): nothing must be removed",
    "hooks": "edits are values that a run takes: model.trace(text, edits=[...])",
    "reset_hooks": "nothing stays behind after a run with edits",
    "to_string": "model.tokenizer.decode(ids)",
    "forward": 'model.trace(text)["logits"]',
    "loss": "model.score(text) has the log-probability of each token",
    "cfg": "model.config",
    "W_Q": _ON_WEIGHTS, "W_K": _ON_WEIGHTS, "W_V": _ON_WEIGHTS, "W_O": _ON_WEIGHTS,
    "state_dict": _ON_WEIGHTS, "parameters": "model.config.num_parameters counts them; " + _ON_WEIGHTS,
    "from_pretrained": "gs.load(path or hub id) makes a model",
    "eval": "a model here is always so", "to": "gs.load chooses the device; dtype= and weights= say how",
    "device": "jax.devices() names them; gs.load chooses",
}  # fmt: skip
