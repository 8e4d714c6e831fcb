"""What a trained model is worth: bits per byte by domain, and what its routers do with the domains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from grokscope.model.model import Model
from grokscope.running.scoring import read_window
from grokscope.sweeps.corpus import Document, field_or_file, read_documents


def evaluate(model: Model, heldout: str | Path, documents: int | None = None) -> dict[str, Any]:
    """Measure `model` on a file of documents with domains (at most `documents` of each domain).

    Gives bits_per_byte by domain with their mean; load [layer, expert], each expert's share of its layer's slots; and
    domain_bits [layer], the mutual information of domain and first choice, with null_mean and null_max of 200 shuffles of
    the documents' labels. Documents longer than the context are cut.
    """
    seen: dict[str, int] = {}
    domains: list[str] = []
    bits, sizes = {}, {}
    first, slots = [], []
    chosen = [d for d in read_documents(heldout, field_or_file(heldout, "domain")) if _take(d, seen, documents)]
    for document in tqdm(chosen, desc="evaluating", unit="document", delay=1, disable=None):
        nats, experts, size = _read(model, document)
        bits[document.label] = bits.get(document.label, 0.0) + nats / np.log(2)
        sizes[document.label] = sizes.get(document.label, 0) + size
        domains.append(document.label)
        e = np.arange(model.config.router.num_experts)
        first.append((experts[..., 0, None] == e).sum(axis=1))
        slots.append((experts[..., None] == e).sum(axis=(1, 2)))
    per_byte = {d: bits[d] / sizes[d] for d in sizes}
    labels = np.unique(domains, return_inverse=True)[1]
    rng = np.random.default_rng(0)
    counts = np.array(first)
    null = np.array([_information(counts, rng.permutation(labels)) for _ in range(200)])
    total = np.sum(slots, axis=0)
    return {
        "bits_per_byte": {**per_byte, "mean": float(np.mean(list(per_byte.values())))},
        "load": (total / total.sum(axis=1, keepdims=True)).tolist(),
        "domain_bits": _information(counts, labels).tolist(),
        "null_mean": null.mean(axis=0).tolist(),
        "null_max": null.max(axis=0).tolist(),
        "documents": len(chosen),
    }


def _take(document: Document, seen: dict[str, int], most: int | None) -> bool:
    seen[document.label] = seen.get(document.label, 0) + 1
    return most is None or seen[document.label] <= most


def _read(model: Model, document: Document) -> tuple[float, np.ndarray, int]:
    """(nats, experts [L, T, A], bytes) of one document, in one pass."""
    encoded = model.encode(document.text, truncate=True)
    ids = encoded.ids[0]
    layers: list[np.ndarray] = []

    def record(layer: int | None, kept: dict[str, Any]) -> None:
        if layer is not None:
            layers.append(np.asarray(kept["router.experts"])[0, : len(ids) - 1])

    found = read_window(model, ids, ("router.experts",), record)
    text = document.text if encoded.tokens < model.config.max_tokens else model.tokenizer.decode(encoded.rows[0])  # type: ignore[union-attr]
    return -float(found.sum(dtype=np.float64)), np.array(layers), len(text.encode())


def _information(counts: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """I(label; expert) in bits by layer, from counts [document, layer, expert]."""
    joint = np.stack([counts[labels == k].sum(axis=0) for k in range(labels.max() + 1)]).astype(float)
    joint /= joint.sum(axis=(0, 2), keepdims=True)
    product = joint.sum(axis=0, keepdims=True) * joint.sum(axis=2, keepdims=True)
    return np.where(joint > 0, joint * np.log2(np.where(joint > 0, joint, 1) / np.maximum(product, 1e-300)), 0).sum(
        axis=(0, 2)
    )
