"""The core against golden numbers of xAI's own code: logits, and every capture, for logits hide real mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from grokscope.checkpoints import grok1
from grokscope.model.model import Model
from grokscope.prompt import Prompt
from tests.conftest import GOLDENS, SHARED, shared

CASES = ["c1_gqa_q8", "c2_cap_q8", "c3_batch3_floatattn", "c4_top1"]
NAMES = {
    "resid_pre": "resid_pre", "attn.q": "attn.query_rope", "attn.k": "attn.key_rope", "attn.v": "attn.value",
    "attn.pattern": "attn.softmax_f32", "attn.out": "rms_norm_1.out", "resid_mid": "resid_mid",
    "router.logits": "router.logits", "router.probs": "router.probs", "router.gates": "router.expert_gate",
    "moe.out": "rms_norm_3.out", "resid_post": "resid_post",
}  # fmt: skip


def case_folder(case: str) -> Path:
    ours = GOLDENS / case
    return ours if ours.exists() else shared(f"grok1/cases/{case}")


def case_model(case: str, dtype: str) -> Model:
    folder = case_folder(case)
    config = grok1.config_from_reference(json.loads((folder / "config.json").read_text()))
    with np.load(folder / "params.npz") as stored:
        arrays = dict(stored)

    def get(name: str) -> dict[str, np.ndarray]:
        if name in arrays:
            return {"array": arrays[name]}
        scales = arrays[f"{name}::scales"]
        return {"weight": arrays[f"{name}::weight"], "scales": scales}

    return Model(config, grok1.weights_from(config, get), None, dtype, case)


def golden(case: str, kind: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The arrays, and where they can be compared: the reference hides token 0 inside a prompt, which we do not."""
    with np.load(case_folder(case) / f"{kind}.npz") as stored:
        arrays = dict(stored)
    tokens = arrays["tokens"]
    lengths = arrays.get("length", np.full(len(tokens), tokens.shape[1]))
    real = np.arange(tokens.shape[1]) < lengths[:, None]
    for row, position in np.argwhere((tokens == 0) & real):
        real[row, position:] = False
    return {**arrays, "length": lengths}, real


def run(case: str, kind: str, capture: list[str]):
    arrays, real = golden(case, kind)
    model = case_model(case, {"f32": "float32", "bf16": "bfloat16"}[kind])
    return model.trace(Prompt(arrays["tokens"], arrays["length"]), capture), arrays, real


@pytest.mark.parametrize("case", CASES)
def test_float32_logits_and_every_capture(case):
    trace, arrays, real = run(case, "f32", ["*"])
    for golden_logits in ("logits_ref_jit", "logits_pure"):
        difference = np.abs(trace["logits"].values - arrays[golden_logits])[real]
        assert difference.max() <= 2e-5
    for layer in range(trace.config.num_layers):
        for site, name in NAMES.items():
            ours = trace[site, layer].values
            theirs = arrays[f"L{layer}.{name}"].reshape(ours.shape)
            if site == "attn.pattern":
                ours, theirs = (np.moveaxis(a, 1, 2) for a in (ours, theirs))
            scale = max(1.0, np.abs(theirs[real]).max())
            assert np.abs(ours - theirs)[real].max() <= 1e-5 * scale, (site, layer)
        chosen = trace["router.experts", layer].values
        assert (chosen[real] == arrays[f"L{layer}.router.expert_index"][real]).all()


@pytest.mark.parametrize(("case", "tolerance"), [*zip(CASES, [0.03, 0.03, 0.12, 0.03], strict=True)])
def test_bfloat16_logits_and_routing(case, tolerance):
    trace, arrays, real = run(case, "bf16", ["logits", "router.*", "resid_post"])
    assert np.abs(trace["logits"].values - arrays["logits_ref_jit"])[real].max() <= tolerance
    for layer in range(trace.config.num_layers):
        ours, theirs = trace["router.experts", layer].values, arrays[f"L{layer}.router.expert_index"]
        assert (np.sort(ours)[real] == np.sort(theirs)[real]).all()  # of two gates within rounding either may be first


def test_padding_cannot_be_seen():
    """Row 1 of c3 is padded from position 7 on: what comes after its end is missing, not a number."""
    trace, arrays, _ = run("c3_batch3_floatattn", "f32", ["*"])
    assert arrays["length"].tolist() == [11, 7, 9]
    for site in trace.sites:
        values = np.moveaxis(trace[site].values, trace[site].dims.index("batch"), 0)[1]
        dims = [d for d in trace[site].dims if d != "batch"]
        axis = dims.index("token" if "token" in dims else "source")
        beyond = np.take(values, range(7, 11), axis)
        assert (beyond == -1).all() if values.dtype.kind == "i" else np.isnan(beyond).all(), site


@pytest.mark.skipif(not SHARED.exists(), reason="the reference data lie beside a developer's checkout")
class TestTinyCheckpoint:
    """A checkpoint in the released format: 11 layers, so that layer 10 comes before layer 2."""

    def model(self, dtype: str) -> Model:
        folder = shared("grok1/ckpt_tiny/ckpt-0")
        config = grok1.read_config(folder)
        return Model(config, grok1.load(folder, config), None, dtype, "ckpt_tiny")

    def test_float32(self):
        with np.load(shared("grok1/ckpt_tiny/golden_1x1.npz")) as arrays:
            trace = self.model("float32").trace(arrays["tokens"], ["logits", "resid_post", "router.*"])
            assert np.abs(trace["logits"].values[0] - arrays["f32.logits_full"]).max() <= 2e-5
            for layer in range(11):
                assert np.abs(trace["resid_post", layer].values - arrays[f"f32.L{layer}.resid_post"]).max() <= 3e-5
                chosen = arrays[f"f32.L{layer}.expert_index"].reshape(1, -1, 2)
                assert (trace["router.experts", layer].values == chosen).all()

    def test_float32_of_eight_devices(self):
        with np.load(shared("grok1/ckpt_tiny/golden_1x8_bf16.npz")) as arrays:
            logits = self.model("float32").trace(arrays["tokens"], "logits")["logits"].values[0]
            assert np.abs(logits - arrays["logits_full_f32"]).max() <= 2e-5

    def test_cached_decoding_gives_the_reference_s_cached_logits(self):
        """The reference's prefill of 9 tokens and 14 steps, against one pass: its own difference is 0 in float32."""
        with np.load(shared("grok1/ckpt_tiny/golden_1x1.npz")) as arrays:
            trace = self.model("float32").trace(arrays["tokens"][:, :23], "logits")
            assert np.abs(trace["logits"].values[0, 8:] - arrays["f32.logits_cached"]).max() <= 2e-5

    def test_bfloat16_away_from_ties(self):
        """In bfloat16 a tie within rounding may fall either way (FACTS section 12); after it a token's stream differs.

        Compared where no token so far had a layer whose second and third probabilities lie within 2e-3.
        """
        with np.load(shared("grok1/ckpt_tiny/golden_1x1.npz")) as arrays:
            ours = self.model("bfloat16").trace(arrays["tokens"], "logits")["logits"].values[0]
            probs = self.model("float32").trace(arrays["tokens"], "router.probs")["router.probs"].values[:, 0]
            ranked = np.sort(probs, axis=-1)
            close = ((ranked[..., -2] - ranked[..., -3]) < 2e-3).any(axis=0)
            clear = ~np.logical_or.accumulate(close)
            assert clear.sum() >= 3
            assert np.abs(ours - arrays["bf16.logits_full"])[clear].max() <= 0.03
