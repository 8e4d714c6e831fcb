"""How alike the experts of a layer are by their weights: whole matrices, mean neurons, neurons matched one to one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import xarray as xr

from grokscope.analysis.expert_matrices import each_layer, expert_matrix, row_chunks
from grokscope.analysis.measure import answer
from grokscope.transformer.forms import Weight
from grokscope.transformer.weights import BlockWeights

if TYPE_CHECKING:
    from grokscope.running.loaded import Loaded

MATRICES = ("gate", "up", "down")
METHODS = {
    "matrix": "the other's neurons permuted", "neuron_mean": "random directions", "matched": "coordinates dealt out anew",
}  # fmt: skip
"""Method -> its null."""
NO_CI = "absent: weights are no sample"
Cosines = dict[str, np.ndarray]
"""value, null_mean, null_sd [E, E], and what else a method gives."""


def expert_weight_similarity(
    model: Loaded,
    layers: Sequence[int] | None = None,
    matrix: Literal["gate", "up", "down"] = "gate",
    method: Literal["matrix", "neuron_mean", "matched"] = "matrix",
    neurons: int = 256,
    seed: int = 0,
) -> xr.Dataset:
    """The cosine of two experts' weights, (layer, expert, expert_other).

    A neuron is D numbers: a column of gate or up, a row of down. method "matrix": of the matrices as they stand, which asks for
    neurons in the same places; null: the other expert's neurons permuted, whose mean is exact and whose spread is from
    `neurons` seeded ones (exact where F is no more). "neuron_mean": of the mean neurons; null: two random directions, 0 and
    1/sqrt(D). "matched": `neurons` seeded neurons of the expert with the lower number, each paired with a neuron of its own among
    all of the other so that the mean cosine, the value, is largest (linear assignment); also `kendall_tau` between the places of
    paired neurons, 1 where the experts began as copies, with its spread by chance, `tau_null_sd`; null: the other expert's
    coordinates dealt out anew over its neurons, since the best of F is above 0 by chance, pooled over the layer's pairs.

    Cite: Lo et al. 2024, arXiv 2406.18219, section 4.1 (Grok-1's matrices: about 0; tau after matching -0.0003, Mixtral's 0.75).
    Confounds: experts that compute alike may have other weights: see `experiments.expert_output_similarity`. Expert numbers mean
    nothing across layers. Streamed layers come one at a time; "matched" holds two experts' matrices in float32 and, at
    Grok-1's shape on two CPU cores, takes a minute for a pair (28 to a layer); the others take half a minute for a layer.
    """
    for name, got, wanted in (("matrix", matrix, MATRICES), ("method", method, METHODS)):
        if got not in wanted:
            raise ValueError(f"{name}: wanted one of {', '.join(wanted)}, got {got!r}")
    if neurons < 2:
        raise ValueError(f"neurons: wanted 2 or more to sample, got {neurons}; take some hundreds")

    def measure(block: BlockWeights) -> Cosines:
        return expert_cosines(block, matrix, method, neurons, seed)

    found, parts = each_layer(model, "expert_weight_similarity", measure, layers)
    arrays = {name: np.stack([p[name] for p in parts]) for name in parts[0]}
    experts = np.arange(model.config.router.num_experts)
    return answer(
        ("layer", "expert", "expert_other"), arrays.pop("value"),
        {"layer": found, "expert": experts, "expert_other": experts}, **arrays,
        attrs={
            "null": METHODS[method], "matrix": matrix, "method": method, "neurons": min(neurons, model.config.d_expert),
            "seed": seed, "ci": NO_CI,
        },
    )  # fmt: skip


def cosines(gram: np.ndarray) -> np.ndarray:
    """[..., E, E] inner products -> cosines; NaN beside a vector of zeros."""
    norm = np.sqrt(np.diagonal(gram, axis1=-2, axis2=-1))
    product = norm[..., :, None] * norm[..., None, :]
    return np.divide(gram, product, out=np.full(gram.shape, np.nan), where=product > 0)


def expert_cosines(block: BlockWeights, matrix: str, method: str, neurons: int = 2, seed: int = 0) -> Cosines:
    """`expert_weight_similarity` of one layer."""
    w, by_row, rng = getattr(block.moe, matrix), matrix == "down", np.random.default_rng(seed)
    sample = np.sort(rng.permutation(w.shape[1 if by_row else 2])[:neurons])
    return _matched(w, by_row, sample, rng) if method == "matched" else _in_place(w, by_row, sample, method)


def _in_place(w: Weight, by_row: bool, sample: np.ndarray, method: str) -> Cosines:
    """Of matrices or of mean neurons: both follow from one pass over the rows."""
    experts, rows, width = w.shape
    d, f = (width, rows) if by_row else (rows, width)
    gram, total, taken = np.zeros((experts,) * 2), np.zeros((experts, d)), np.zeros((experts, len(sample), d), np.float32)
    for first, x in row_chunks(w):
        flat, here = x.reshape(experts, -1), slice(first, first + x.shape[1])
        gram += flat @ flat.T
        if by_row:
            total += x.sum(1, dtype=float)
            inside = (sample >= here.start) & (sample < here.stop)
            taken[:, inside] = x[:, sample[inside] - first]
        else:
            total[:, here] = x.sum(2, dtype=float)
            taken[:, :, here] = x[:, :, sample].swapaxes(1, 2)
    if method == "neuron_mean":
        null_mean, null_sd = np.zeros((experts,) * 2), np.full((experts,) * 2, d**-0.5)
        value = cosines(total @ total.T)
    else:
        norm = np.sqrt(np.diagonal(gram))
        product = np.where(norm[:, None] * norm > 0, norm[:, None] * norm, np.nan)
        value, null_mean = cosines(gram), total @ total.T / f / product
        null_sd = _permuted_sd(taken - (total / f)[:, None].astype(np.float32), f) / product
    return _off_diagonal({"value": value, "null_mean": null_mean, "null_sd": null_sd})


def _permuted_sd(neurons: np.ndarray, f: int) -> np.ndarray:
    """Spread of sum_i <a_i, b_p(i)> over permutations p of f neurons, from a sample [E, n, D] less the mean neuron.

    The variance is sum_ij <a_i, b_j>^2 / (f - 1) (Hoeffding 1951), all of it where the sample is all.
    """
    experts, n, _ = neurons.shape
    square = np.zeros((experts,) * 2)
    for i in range(experts):
        for j in range(i, experts):
            square[i, j] = square[j, i] = ((neurons[i] @ neurons[j].T).astype(float) ** 2).sum()
    return np.sqrt(square * (f / n) ** 2 / max(f - 1, 1))


def _matched(w: Weight, by_row: bool, sample: np.ndarray, rng: np.random.Generator) -> Cosines:
    """The best pairing of neurons, experts two by two."""
    experts = w.shape[0]
    value, tau, chance = np.eye(experts), np.eye(experts), []
    for i in range(experts - 1):
        a = _neurons(w, i, by_row)
        for j in range(i + 1, experts):
            b = _neurons(w, j, by_row)
            value[i, j], tau[i, j] = value[j, i], tau[j, i] = _assign(a[sample], b, sample)
            rng.permuted(b, axis=0, out=b)
            b /= np.maximum(np.linalg.norm(b, axis=1, keepdims=True), 1e-30)
            chance.append(_assign(a[sample], b, sample)[0])
    n = len(sample)
    spread = {"null_mean": np.mean(chance), "null_sd": np.std(chance, ddof=1) if len(chance) > 1 else np.nan}
    made = {"value": value} | {name: np.full((experts,) * 2, x) for name, x in spread.items()}
    tau_sd = np.full((experts,) * 2, np.sqrt(2 * (2 * n + 5) / (9 * n * (n - 1))) if n > 1 else np.nan)
    return _off_diagonal(made | {"kendall_tau": tau, "tau_null_sd": tau_sd})


def _neurons(w: Weight, expert: int, by_row: bool) -> np.ndarray:
    """F D, each of length 1."""
    made = expert_matrix(w, expert)
    made = made if by_row else np.ascontiguousarray(made.T)
    made /= np.maximum(np.linalg.norm(made, axis=1, keepdims=True), 1e-30)
    return made


def _assign(a: np.ndarray, b: np.ndarray, places: np.ndarray) -> tuple[float, float]:
    """(mean cosine, Kendall's tau of the places) of a's neurons [n, D], each with a neuron of b [F, D] of its own."""
    # JAX depends on SciPy, so it is there wherever this package is.
    from scipy.optimize import linear_sum_assignment
    from scipy.stats import kendalltau

    similar = a @ b.T
    rows, columns = linear_sum_assignment(similar, maximize=True)
    return float(similar[rows, columns].mean()), float(kendalltau(places, columns).statistic)


def _off_diagonal(parts: Cosines) -> Cosines:
    """An expert with itself has no null."""
    for name in ("null_mean", "null_sd", "tau_null_sd"):
        if name in parts:
            np.fill_diagonal(parts[name], np.nan)
    return parts
