"""Our dictionaries beside SAELens': the same weights, the same activations, to 1e-5.

    python -m venv /tmp/lens && /tmp/lens/bin/pip install sae-lens
    /tmp/lens/bin/python tests/bench/against_sae_lens.py make /tmp/made     # SAELens writes them and what it computes
    python -m tests.bench.against_sae_lens compare /tmp/made                # and we compare

`tests/goldens/sae` holds what the first wrote by SAELens 6.54.12 and torch 2.15.0.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

D, S, OUT, N = 5, 11, 7, 13
CASES = {
    "standard": ("StandardSAE", {}), "standard_ln": ("StandardSAE", {"normalize_activations": "layer_norm"}),
    "standard_rescaled": ("StandardSAE", {"normalize_activations": "constant_norm_rescale", "apply_b_dec_to_input": False}),
    "gated": ("GatedSAE", {}), "topk": ("TopKSAE", {"k": 3}),
    "topk_by_norm": ("TopKSAE", {"k": 3, "rescale_acts_by_decoder_norm": True}), "jumprelu": ("JumpReLUSAE", {}),
    "transcoder": ("Transcoder", {"d_out": OUT, "apply_b_dec_to_input": False}),
    "skip_transcoder": ("SkipTranscoder", {"d_out": OUT, "apply_b_dec_to_input": False}),
    "jumprelu_transcoder": ("JumpReLUTranscoder", {"d_out": OUT, "apply_b_dec_to_input": False}),
}  # fmt: skip


def make(folder: Path) -> None:
    """In SAELens' environment: each case with random weights, its features and its output."""
    import sae_lens.saes as saes
    import torch
    from sae_lens.saes import sae as base
    from sae_lens.saes import transcoder as more

    torch.manual_seed(0)
    for name, (kind, settings) in CASES.items():
        home = saes if hasattr(saes, kind) else more
        about = base.SAEMetadata(hook_name="blocks.1.hook_resid_post", model_name="made")
        config = getattr(home if hasattr(home, f"{kind}Config") else more, f"{kind}Config")(d_in=D, d_sae=S, metadata=about, **settings)
        sae = getattr(home, kind)(config)
        with torch.no_grad():
            for w in sae.parameters():
                w.copy_(torch.randn(w.shape))
            if hasattr(sae, "threshold"):
                sae.threshold.abs_()
            x = 2 * torch.randn(N, D) + 1
            features = sae.encode(x)
            out = sae(x)
        sae.save_model(folder / name)
        np.savez(folder / name / "golden.npz", x=x.numpy(), features=features.numpy(), out=out.numpy())


def compare(folder: Path) -> dict[str, float]:
    """The largest difference of each case."""
    import grokscope as gs

    found = {}
    for path in sorted(p for p in folder.iterdir() if p.is_dir()):
        sae, golden = gs.sae.load(path), np.load(path / "golden.npz")
        features = sae.encode(golden["x"])
        out = sae.decode(features, golden["x"])
        found[path.name] = max(abs(features - golden["features"]).max(), abs(out - golden["out"]).max())
    return found


if __name__ == "__main__":
    command, where = sys.argv[1:]
    if command == "make":
        make(Path(where))
    else:
        for name, off in compare(Path(where)).items():
            print(f"{name:22s} {off:.1e}")
